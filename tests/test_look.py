"""The views of jobs and training files: what they tell, and that nothing they show can act on a terminal."""

from __future__ import annotations

import gzip
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import judging
import pexpect
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import toy
import typer
from loopback import Loopback
from rich.cells import cell_len
from typer.testing import CliRunner

from miner import config, engine, generate_steps, job_query, job_status, job_watch, ledger_tail, training_view
from miner.commands import look, safe, show_views
from miner.errors import UserError
from miner.job import JobFolder
from miner.ledger import Answer, Ledger, Request
from miner.readers import training

COMMANDS = ("status", "inspect", "diff", "show")
app = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False)
for name in COMMANDS:
    app.command()(getattr(look, name))
RLO = "\u202e"
HOSTILE = (
    f"<script>alert(1)</script> \x1b[31mred\x1b[2J \x9b5m \x07 {RLO}txt\u2066 \x00 [bold]b[/] 👩\u200d🚀"
    " \x1b]0;t\x07 \u3000x"
)
# Whatever can steer a terminal, turn the reading direction or hide; \x1b is looked at by itself where colours are on.
ACTIVE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\u200b\ufeff]")
MILLION = 1_000_000
pytestmark = pytest.mark.usefixtures("toy_key")


def run(*args: object, width: int = 80, **env: str) -> str:
    done = CliRunner().invoke(app, [str(arg) for arg in args], env={"COLUMNS": str(width), **env})
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == 0, done.output
    return done.stdout


def narrow(shown: str, width: int = 80) -> None:
    for line in shown.splitlines():
        assert cell_len(line) <= width, line


def command(*args: object) -> list[str]:
    return [sys.executable, "-m", "miner", *map(str, args)]


# ---------------------------------------------------------------- a job


@pytest.fixture(scope="module")
def job(tmp_path_factory, toy_key) -> Path:
    """A judged job with hostile texts, and so many negatives wanted that some are written."""
    folder = tmp_path_factory.mktemp("look") / "job"
    data = toy.beir(folder / "data")
    with (data / "corpus.jsonl").open("a") as corpus:
        for doc_id, title, text in (
            ("evil\x1b[31m", HOSTILE, f"The cat meows {HOSTILE}"),
            ("huge", "", "The cat purrs. "),
        ):
            corpus.write(json.dumps({"_id": doc_id, "title": title, "text": text}) + "\n")
    with (data / "queries.jsonl").open("a") as queries:
        queries.write(json.dumps({"_id": f"q-evil{RLO}", "text": f"{HOSTILE} what does the cat say"}) + "\n")
    with (data / "qrels" / "train.tsv").open("a") as qrels:
        qrels.write(f"q-evil{RLO}\tcat-voice\t1\n")
    with Loopback() as server:
        path = judging.job(folder, server, generator={"enabled": True, "max_share": 1.0}, mining={"negatives": 5})
        judging.advance(path)
    return path


@pytest.fixture(scope="module")
def long_job(job, tmp_path_factory) -> Path:
    """The same with a passage of a megabyte. It is put there afterwards: to encode it takes long."""
    folder = tmp_path_factory.mktemp("long") / "job"
    shutil.copytree(job.parent, folder)
    path = folder / "job.job" / "corpus" / "passages.parquet"
    table = pq.read_table(path)
    texts = [
        "The cat purrs. " * (MILLION // 15) if d == "huge" else t
        for d, t in zip(table["doc_id"].to_pylist(), table["text"].to_pylist(), strict=True)
    ]
    pq.write_table(table.set_column(2, "text", pa.array(texts, table["text"].type)), path)
    return folder / "job.yaml"


def test_inspect_tells_in_words_what_became_of_each_candidate(job):
    shown = run("inspect", job, "q-cat-voice")
    narrow(shown)
    assert "what sound does a cat make" in shown
    found = job_query.query(config.load(job, None), "q-cat-voice")
    assert len(found["candidates"]) > 5
    for row in found["candidates"]:
        assert f"score {row['score']:.4f}" in shown
        if row["kept"]:
            assert f"kept as negative {row['slot']}" in shown
        if row["margin"] is not None:
            assert row["margin"] == pytest.approx(row["positive_score"] - row["score"], abs=1e-6)
    assert "dropped: positive_copy (a copy of a positive)" in shown
    assert re.search(r"judge: irrelevant, grade [01] \(", shown)
    assert f"{len(found['candidates'])} candidates, {sum(r['kept'] for r in found['candidates'])} kept" in shown


def test_evidence_is_marked_where_it_stands(job):
    found = job_query.query(config.load(job, None), "q-cat-voice")
    row = next(row for row in found["candidates"] if row["evidence"])
    assert f"evidence “{row['evidence'].strip()}”" in run("inspect", job, "q-cat-voice")
    text = safe.marked("The  cat purrs", ["“THE cat”"], "bold")
    assert [(span.start, span.end) for span in text.spans] == [(0, 8)]


def test_a_part_of_the_text_names_a_query_if_it_is_of_one_alone(job):
    assert json.loads(run("inspect", job, "sound does a COW", "--json"))["query_id"] == "q-cow-voice"
    with pytest.raises(UserError, match=r"'what sound' stands in the texts of 8 queries: .*; write more of one"):
        run("inspect", job, "what sound")
    with pytest.raises(UserError, match=r"query 'q-nobody' is not in this job, which has 17: q-bat-food"):
        run("inspect", job, "q-nobody")


def test_only_kept_or_one_reason(job):
    kept = json.loads(run("inspect", job, "q-cat-voice", "--kept", "--json"))
    assert kept["candidates"]
    assert all(row["kept"] for row in kept["candidates"])
    copies = json.loads(run("inspect", job, "q-cat-voice", "--reason", "positive_copy", "--json"))
    assert [row["doc_id"] for row in copies["candidates"]] == ["cat-voice-copy"]
    assert f"1 of {copies['of']} candidates, 0 kept" in run("inspect", job, "q-cat-voice", "--reason", "positive_copy")
    with pytest.raises(UserError, match=r"--reason nothing: no candidate .* has it; there are .*positive"):
        run("inspect", job, "q-cat-voice", "--reason", "nothing")


def test_one_candidate_with_the_exact_messages_and_the_raw_answer(job):
    found = job_query.query(config.load(job, None), "q-cat-voice")
    row = next(row for row in found["candidates"] if row["status"] and row["source"] == "mined")
    one = json.loads(run("inspect", job, "q-cat-voice", "--doc", row["doc_id"], "--json"))
    (asked,) = one["asked"]
    ledger = Ledger(JobFolder(job.with_suffix(".job")).ledger)
    try:
        assert asked["request_key"] == row["request_key"]
        assert asked["messages"] == ledger.request(row["request_key"])["messages"]
        assert asked["answer"] == ledger.get(row["request_key"])["choices"][0]["message"]["content"]
    finally:
        ledger.close()
    assert (asked["prompt_tokens"], asked["completion_tokens"], asked["cost"]) == (100, 10, None)
    shown = run("inspect", job, "q-cat-voice", "--doc", row["doc_id"])
    narrow(shown)
    for text in ("[system]", "[user]", "[answer]", asked["answer"], "100 prompt (0 cached), 10 answer", "cost unknown"):
        assert text in shown
    with pytest.raises(
        UserError, match="--doc 'none': no candidate of query 'q-cat-voice' has this id: huge, cat-voice, "
    ):
        run("inspect", job, "q-cat-voice", "--doc", "none")
    with pytest.raises(UserError, match="leave --kept and --reason out"):
        run("inspect", job, "q-cat-voice", "--doc", "none", "--kept")


def test_a_written_candidate_shows_who_wrote_it_and_who_judged_it(job):
    written = pq.read_table(job.with_suffix(".job") / "synthetic/synthetic.parquet").to_pylist()[0]
    one = json.loads(run("inspect", job, written["query_id"], "--doc", written["doc_id"], "--json"))
    assert [asked["what"] for asked in one["asked"]] == ["generate", "judge"]
    assert one["asked"][0]["request_key"] == written["request_key"]
    assert written["text"] in one["row"]["text"]
    shown = run("inspect", job, written["query_id"], "--doc", written["doc_id"])
    assert "asked: generate" in shown
    positive = json.loads(run("inspect", job, "q-cow-voice", "--doc", "cow-food", "--json"))
    assert positive["kind"] == "candidate"


def test_long_texts_are_cut_unless_all_is_wanted(long_job):
    cut = run("inspect", long_job, "q-cat-voice")
    assert len(cut) < 20_000
    assert re.search(r"… \(999,990\s+characters\)", cut)
    whole = run("inspect", long_job, "q-cat-voice", "--full")
    narrow(whole)
    assert whole.count("purrs") >= MILLION // 15
    one = run("inspect", long_job, "q-cat-voice", "--doc", "huge")
    assert "979,990 characters more; --full shows them" in one
    assert run("inspect", long_job, "q-cat-voice", "--doc", "huge", "--full").count("purrs") > MILLION // 15


def test_nothing_hostile_reaches_a_terminal_from_any_view(job, tmp_path):
    file = tmp_path / "rows.jsonl"
    rows = [
        {"query": HOSTILE, "pos": [HOSTILE], "neg": [HOSTILE, "x" * MILLION], HOSTILE: 1},
        {"query": "a \ud800 b", "pos": [3], "neg": []},
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows) + "{broken \x1b[31m\n")
    views: list[tuple[object, ...]] = [
        ("inspect", job, "q-cat-voice"),
        ("inspect", job, f"q-evil{RLO}", "--full"),
        ("inspect", job, "q-cat-voice", "--doc", "evil\x1b[31m"),
        ("inspect", job, "q-cat-voice", "--doc", "evil\x1b[31m", "--full"),
        ("diff", job, job),
        ("status", job),
        ("show", file),
        ("show", file, "--full"),
    ]
    for args in views:
        for more in ((), ("--json",)):
            if "--full" in args and more:
                continue
            shown = run(*args, *more)
            assert not ACTIVE.search(shown), args
            assert "\x1b" not in shown
            if more:
                [json.loads(line) for line in shown.splitlines()] if args[0] == "show" else json.loads(shown)
            elif args[0] != "status":
                narrow(shown)
    shown = run("inspect", job, "q-cat-voice", width=300)
    assert "evil?[31m" in shown
    assert "<script>alert(1)</script> ?[31mred?[2J ?5m ? ?txt? ? [bold]b[/] 👩\u200d🚀 ?]0;t? x" in shown
    coloured = run("show", file, FORCE_COLOR="1")
    assert "\x1b[" in coloured
    assert not ACTIVE.search(re.sub(r"\x1b\[[0-9;]*m", "", coloured))


# ---------------------------------------------------------------- status


def test_status_tells_that_no_run_goes_on_and_changes_nothing(job):
    root = job.with_suffix(".job")
    before = {path: path.stat().st_mtime_ns for path in sorted(root.rglob("*"))}
    found = json.loads(run("status", job, "--json"))
    assert {step["state"] for step in found["steps"]} == {"fresh"}
    assert (found["run"], found["progress"], found["budget"]) == (None, None, {})
    assert found["answers in the ledger"] > 0
    assert "no run is going on" in run("status", job)
    assert run("status", job, "--watch").endswith("no run is going on; every step is fresh\n")
    assert {path: path.stat().st_mtime_ns for path in sorted(root.rglob("*"))} == before


def test_status_names_the_process_that_holds_the_lock(job):
    with JobFolder(job.with_suffix(".job")).lock():
        found = json.loads(run("status", job, "--json"))
        assert found["run"]["pid"] == os.getpid()
        assert found["run"]["step"] is None
        assert f"a run is going on (process {os.getpid()}, " in run("status", job)


def test_a_lock_that_nobody_took_since_the_last_look_is_not_touched(tmp_path, monkeypatch):
    """So that a look never comes between a run that begins and its lock."""
    taken = []
    flock = job_watch.fcntl.flock
    monkeypatch.setattr(job_watch.fcntl, "flock", lambda *args: (taken.append(args), flock(*args))[1])
    path = tmp_path / ".lock"
    lock = job_watch.Lock(path)
    assert lock.holder() is None
    path.write_text("999999999")
    assert (lock.holder(), len(taken)) == (None, 1)
    assert (lock.holder(), len(taken)) == (None, 1)
    with JobFolder(tmp_path / "job").lock():
        held = job_watch.Lock(tmp_path / "job" / ".lock")
        assert [held.holder().pid, held.holder().pid] == [os.getpid()] * 2
    assert held.holder() is None


def test_a_job_that_was_never_run(tmp_path):
    path = toy.job(tmp_path)
    shown = run("status", path)
    assert "not done yet" in shown
    assert "no run is going on" in shown
    assert not (tmp_path / "job.job").exists()
    with pytest.raises(UserError, match="nothing is mined yet; run `miner mine` first"):
        run("inspect", path, "q")


def test_what_an_llm_step_is_to_ask_is_what_it_asks(tmp_path_factory):
    """Of a binary and a packed judge, both in two orders: as many answers as were expected, step by step."""
    folder = tmp_path_factory.mktemp("rungs") / "job"
    judge = {
        "prompt": "packed",
        "pack": 3,
        "orders": 2,
        "rungs": [{"name": "cheap", "prompt": "binary", "settles": "irrelevant"}],
    }
    with Loopback(judging.judge()) as server:
        path = judging.job(folder, server, judge=judge)
        judging.advance(path)
    watching = job_status.context_of(config.load(path, None))
    ledger = JobFolder(path.with_suffix(".job")).ledger
    assert job_watch.target(watching, "judgments_cheap").expected == 2 * 16 * 6
    for step in ("judgments_cheap", "judgments_judge"):
        wanted = job_watch.target(watching, step)
        tally = job_watch.Tally(wanted, ledger_tail.Tail(ledger))
        told = tally.count(None, 0.0, 10.0)
        assert wanted.expected == tally.counts["done"] == told["done"] > 0
        assert told["left_s"] is None
    assert job_watch.target(watching, "candidates") is None


def test_the_requests_of_a_generator_are_counted(job):
    watching = job_status.context_of(config.load(job, None))
    ledger = JobFolder(job.with_suffix(".job")).ledger
    for step in ("judgments", "synthetic", "synthetic_judgments"):
        wanted = job_watch.target(watching, step)
        tally = job_watch.Tally(wanted, ledger_tail.Tail(ledger))
        tally.count(None, 0.0, 10.0)
        assert wanted.expected == tally.counts["done"] > 0, step


def test_a_query_without_a_near_miss_is_not_waited_for(tmp_path_factory):
    generator = {"enabled": True, "max_share": 1.0, "prompt": "near-miss-paraphrase"}
    few = {"judge": {"pool": 2}, "mining": {"negatives": 2}}
    with Loopback() as server:
        path = judging.job(tmp_path_factory.mktemp("near") / "job", server, generator=generator, **few)
        judging.advance(path)
    watching = job_status.context_of(config.load(path, None))
    rows = judging.rows(path, "synthetic", "synthetic.parquet")
    bare = {one.query_id for one in generate_steps.shortages(watching)} - {row["query_id"] for row in rows}
    wanted = job_watch.target(watching, "synthetic")
    assert bare
    assert wanted.expected == len(rows) > 0
    assert not bare & wanted.queries


def test_a_tail_tells_what_changed_and_makes_no_file(tmp_path):
    path = tmp_path / "ledger.sqlite"
    tail = ledger_tail.Tail(path)
    assert tail.look() == (False, [])
    ledger = Ledger(path)
    body = {"model": "toy", "messages": []}
    for key in ("a", "b"):
        ledger.sent(Request(key, body, {"task": "judge"}))
    ledger.flush()
    assert tail.look() == (False, [])
    assert len(tail.open) == 2
    ledger.put(Request("a", body, {"task": "judge"}), Answer({"choices": []}))
    anew, (seen,) = tail.look()
    assert (anew, seen.state, seen.about, seen.model) == (False, "done", {"task": "judge"}, "toy")
    ledger.put(Request("b", body), Answer(None, "no", final=True))
    assert [one.state for one in tail.look()[1]] == ["failed"]
    assert not tail.open
    ledger.forget_failures()
    anew, settled = tail.look()
    assert (anew, [one.state for one in settled]) == (True, ["done"])
    with ledger_tail.opened(path) as reading:
        reading.execute("SELECT 1 FROM requests").fetchone()
        ledger.close()
    assert len(list(tmp_path.iterdir())) == 3  # the look kept the log from being folded
    assert ledger_tail.answers(path) == 1
    ledger_tail.fold(path)
    assert ledger_tail.answers(path) == 1
    assert [file.name for file in tmp_path.iterdir()] == ["ledger.sqlite"]
    path.write_bytes(b"not a database at all" * 100)
    with pytest.raises(UserError, match="cannot read the ledger"):
        ledger_tail.answers(path)


@pytest.fixture
def spawned() -> Iterator[Callable[..., Any]]:
    children: list[Any] = []

    def begin(*args: object, **env: str) -> Any:
        own = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "PAGER", "LESS")}
        first, *rest = command(*args)
        given = {**own, "TERM": "xterm", "HF_HUB_OFFLINE": "1", **env}
        child = pexpect.spawn(first, rest, env=given, encoding="utf-8", timeout=60, dimensions=(24, 80))
        children.append(child)
        return child

    yield begin
    for child in children:
        child.close(force=True)


def test_a_run_in_another_terminal_is_watched_until_it_ends(tmp_path, environment, spawned):
    """Live in a terminal, as lines and as JSON lines in pipes; the run gives the files that it gives unwatched."""
    env = {**environment, "COLUMNS": "80"}
    with Loopback(delay_s=0.15) as server:
        price = {"input": 1.0, "output": 2.0}
        llm = {"concurrency": 4, "price": price}
        path = judging.job(tmp_path / "look" / "live", server, llm=llm, budget={"max_cost": 5.0})
        piped = [
            subprocess.Popen(
                command("status", path, "--watch", "--every", "0.5", *more), env=env, stdout=subprocess.PIPE, text=True
            )
            for more in ((), ("--json",))
        ]
        live = spawned("status", path, "--watch", "--every", "0.5")
        live.expect("waiting for one to begin")
        running = subprocess.Popen([sys.executable, "-m", "miner", "run", str(path)], env=env, stderr=subprocess.PIPE)
        try:
            live.expect(r"a run is going on \(process (\d+), ")
            assert int(live.match[1]) == running.pid
            live.expect(r"judgments: [1-9]\d* of 96 requests \(\d+%\), 0 failed")
            live.expect(r"[1-9]\d*\.\d answers/s, about \d+ s left")
            assert running.wait(60) == 0, running.stderr.read()
        finally:
            running.kill()
            running.stderr.close()
        live.expect("no run is going on; every step is fresh")
        live.expect(pexpect.EOF)
        live.close()
        assert live.exitstatus == 0
        lines, objects = (one.communicate(timeout=60)[0] for one in piped)
    narrow(lines)
    assert "\x1b" not in lines + objects
    assert lines.endswith("no run is going on; every step is fresh\n")
    looks = [json.loads(line) for line in objects.splitlines()]
    phases = [look["phase"] for look in looks]
    assert phases == sorted(phases, key=["waiting", "running", "ended"].index)
    assert (phases[0], phases[-1]) == ("waiting", "ended")
    judged = [one["progress"] for one in looks if one["progress"] and one["progress"]["step"] == "judgments"]
    done = [one["done"] for one in judged if one["unit"] == "requests"]
    assert done == sorted(done)
    assert len(set(done)) > 3
    last = judged[-1]
    # 100 and 10 tokens an answer, at 1 and 2 dollars a million
    assert last["cost"] == pytest.approx(last["done"] * (100 * 1 + 10 * 2) / 1e6)
    assert looks[-1]["budget"]["max_cost"]["taken"] == pytest.approx(96 * 120 / 1e6)
    assert not [file.name for file in path.with_suffix(".job").iterdir() if file.name.startswith("ledger.sqlite-")]
    rows = judging.rows(path, "decisions", "part-*")
    with Loopback() as server:
        other = judging.job(tmp_path / "look" / "unwatched", server, llm={"price": price}, budget={"max_cost": 5.0})
        judging.advance(other)
    assert rows == judging.rows(other, "decisions", "part-*")


def test_ctrl_c_ends_the_watch_and_not_the_cursor(tmp_path, spawned):
    child = spawned("status", toy.job(tmp_path), "--watch")
    child.expect("waiting for one to begin")
    child.send("\x03")
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 130
    assert "\x1b[?25h" in child.before
    assert "Traceback" not in child.before


# ---------------------------------------------------------------- show


FLAG = [
    {"query": f"what does cat {i} eat", "pos": [f"Cat {i} eats fish."], "neg": [f"Dog {i} barks.", "Owls hoot."]}
    | {"pos_scores": [0.9], "neg_scores": [0.25, 0.125]}
    for i in range(1, 31)
]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "train.jsonl"
    toy.write_jsonl(path, FLAG)
    return path


def test_show_tells_rows_with_scores_lengths_and_places(file):
    shown = run("show", file, "--rows", "2:3")
    narrow(shown)
    assert re.findall(r"^row (\d+)  (\S+)  1 positive, 2 negative$", shown, re.MULTILINE) == [
        ("2", "train.jsonl:2"),
        ("3", "train.jsonl:3"),
    ]
    assert "  ? what does cat 2 eat\n  + 16 chars, score 0.9000\n    Cat 2 eats fish.\n" in shown
    assert "  - 11 chars, score 0.2500\n    Dog 2 barks.\n" not in shown  # 12 characters
    assert "  - 12 chars, score 0.2500\n    Dog 2 barks.\n" in shown


@pytest.mark.parametrize(
    ("given", "rows"),
    [("5", [5]), ("29:", [29, 30]), (":2", [1, 2]), ("30:90", [30]), ("40:", [])],
)
def test_rows_are_counted_from_1(file, given, rows):
    shown = run("show", file, "--rows", given, "--json")
    assert [json.loads(line)["row"] for line in shown.splitlines()] == rows


@pytest.mark.parametrize("given", ["0:2", "a:b", "3:2", "-1:4", ""])
def test_odd_rows_are_refused(file, given):
    with pytest.raises(UserError, match="--rows"):
        run("show", file, "--rows", given)


def test_grep_looks_in_all_texts_and_query_in_the_query_alone(file):
    def found(*args: str) -> list[int]:
        return [json.loads(line)["row"] for line in run("show", file, *args, "--json").splitlines()]

    assert found("--grep", "DOG 7 ") == [7]
    assert found("--query", "dog 7 ") == []
    assert found("--query", "CAT 7 ") == [7]
    assert found("--grep", "owls", "--query", "cat 3 ", "--rows", "2:9") == [3]
    assert run("show", file, "--grep", "zebra") == "no such row\n"


def test_every_kind_of_file_is_shown_alike(file, tmp_path):
    whole = run("show", file, "--json")
    packed = tmp_path / "train.jsonl.gz"
    packed.write_bytes(gzip.compress(file.read_bytes()))
    zst = tmp_path / "train.jsonl.zst"
    with pa.output_stream(str(zst), compression="zstd") as stream:
        stream.write(file.read_bytes())
    parquet = tmp_path / "train.parquet"
    pq.write_table(pa.Table.from_pylist(FLAG), parquet)
    for path in (packed, zst, parquet):
        rows = [json.loads(line) for line in run("show", path, "--json").splitlines()]
        assert [{**row, "place": ""} for row in rows] == [
            {**json.loads(line), "place": ""} for line in whole.splitlines()
        ]


def test_ids_are_looked_up_and_folders_are_read(tmp_path):
    data = toy.beir(tmp_path / "beir")
    (row, *_) = [json.loads(line) for line in run("show", data, "--query", "sound does a cat", "--json").splitlines()]
    assert (row["query_id"], row["positives"][0]["id"]) == ("q-cat-voice", "cat-voice")
    assert row["positives"][0]["text"] == "cat The cat meows when it wants attention."
    ids = {"query_id": "q", "query_text": "cat?", "positive_document_ids": ["cat-voice"], "negative_document_ids": []}
    toy.write_jsonl(tmp_path / "ids.jsonl", [ids])
    shown = run("show", tmp_path / "ids.jsonl", "--corpus", data / "corpus.jsonl")
    assert "cat The cat meows" in shown
    with pytest.raises(UserError, match="--corpus"):
        run("show", tmp_path / "ids.jsonl")


def test_what_is_wrong_with_a_row_stands_beside_it(tmp_path):
    path = tmp_path / "odd.jsonl"
    toy.write_jsonl(path, [*FLAG[:1], {"query": None, "pos": [4], "neg": None, "colour": 1}])
    with path.open("a") as handle:
        handle.write('{"query": "cut off\n')
    shown = run("show", path)
    narrow(shown)
    assert "F01 broken JSON" in shown
    assert "F03" in shown
    assert "F07" in shown
    assert "not a text" in shown


def test_a_form_that_is_not_understood_is_the_error_of_the_audit(tmp_path, environment):
    path = tmp_path / "odd.jsonl"
    toy.write_jsonl(path, [{"a": 1}])
    done = subprocess.run(command("show", path), capture_output=True, text=True, env=environment, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (f"miner: {path}: the form cannot be told from its columns (a); name it with --format\n")
    with pytest.raises(UserError, match="--format nice: no such form; write one of flagembedding"):
        run("show", path, "--format", "nice")


def test_no_more_is_read_than_is_shown(file, monkeypatch):
    read = []
    lines = training._lines

    def counted(path: Path) -> Iterator[tuple[int, bytes]]:
        for one in lines(path):
            read.append(one[0])
            yield one

    monkeypatch.setattr(training, "_lines", counted)
    rows = training_view.rows(training_view.open_files(file, None, None), training_view.Wanted())
    assert next(rows)["row"] == 1
    assert len(read) <= 4
    run("show", file, "--rows", ":3")
    assert max(read) <= 4


def test_words_that_query_and_passage_share_are_bold():
    assert show_views.shared_words("What does the Cat 7 eat at noon", "the CAT and 7 dogs eat at home") == [
        "cat",
        "7",
        "eat",
    ]
    assert show_views.shared_words("什么 猫", "猫 吃") == ["猫"]


@pytest.mark.skipif(shutil.which("less") is None, reason="no less here")
def test_a_pager_is_fed_as_it_reads_and_leaves_without_a_trace(tmp_path, spawned):
    path = tmp_path / "many.jsonl"
    toy.write_jsonl(path, FLAG * 800)
    child = spawned("show", path)
    child.expect("row 1 ")
    child.expect(":")
    child.send(" ")
    child.expect("row 4 ")
    child.send("q")
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 0
    assert "Traceback" not in child.before
    straight = spawned("show", path, "--rows", "1:2", "--no-pager")
    straight.expect(pexpect.EOF)
    assert "\x1b[" in straight.before
    assert "(END)" not in straight.before


def test_a_reader_that_goes_away_is_no_traceback(file, environment):
    quoted = shlex.join(command("show", file))
    done = subprocess.run(
        ["bash", "-c", f"{quoted} | head -c 20"],
        capture_output=True,
        text=True,
        env=environment,
        timeout=60,
        check=False,
    )
    assert "Traceback" not in done.stderr


def test_a_job_is_looked_at_while_it_is_stopped_halfway(tmp_path_factory):
    """What the ledger holds of the next step is told though nobody works on it."""
    folder = tmp_path_factory.mktemp("half") / "job"
    with Loopback() as server:
        path = judging.job(folder, server, budget={"max_requests": 20})
        with pytest.raises(Exception, match="budget"), judging.opened(path) as context:
            engine.advance(context)
    found = json.loads(run("status", path, "--json"))
    progress = found["progress"]
    assert (progress["step"], progress["expected"]) == ("judgments", 96)
    assert 0 < progress["done"] <= 20
    assert (progress["rate"], progress["left_s"]) == (None, None)
    assert found["budget"]["max_requests"] == {"taken": 20.0, "limit": 20}
    assert f"judgments: {progress['done']} of 96 requests" in run("status", path)
    shown = run("inspect", path, "q-cat-voice")
    assert "in the pool at 1, not decided yet" in shown
