"""What a report says of real jobs at every step: counts, columns, exact prompts, sections, size."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import judging
import pyarrow.parquet as pq
import pytest
import reports
import toy
import typer
from loopback import Loopback, completion
from test_synthetic import written
from typer.testing import CliRunner

from miner import audit_checks, calibrate_judge, config, engine
from miner.commands.report import report
from miner.errors import UserError
from miner.ledger import Ledger
from miner.report import choice as report_choice
from miner.report import data as report_data
from miner.report import page as report_page
from miner.report import plots as report_plots
from miner.report import read as report_read
from miner.report import style as report_style
from miner.report.choice import Wanted
from miner.report.prompts import Text, clean, cut

EVIL = "<script>alert('cat')</script><img src=x onerror=alert(1)>\u202e The cat meows, \x07 and $x_1$ too."
BAND = {"name": "cheap", "prompt": "binary", "irrelevant_p": 0.1, "relevant_p": 0.9}
GENERATOR = {"enabled": True, "max_share": 1.0, "checks": {"too_easy": None, "template": None}}


def reply(body: dict[str, Any]) -> Any:
    schema = body.get("response_format", {}).get("json_schema", {}).get("schema", {})
    if "passage" in schema.get("properties", {}):
        return 200, {}, completion(json.dumps(written(body)))
    return judging.judge(lambda query, text: 0 if "zebra" in text else judging.by_hash(query, text))(body)


def golden(path: Path) -> Path:
    """40 relevant pairs of other queries, as the server's judge knows them."""
    rows = [
        {
            "query_id": f"g{i}",
            "query": f"what sound does a {name} make",
            "doc_id": f"gd{i}",
            "grade": 3,
            "positive": "p",
        }
        | {"passage": f"{name} number {i} {name} calls when it wants attention."}
        for i, name in enumerate([*toy.ANIMALS] * 5)
    ]
    toy.write_jsonl(path, rows)
    return path


@pytest.fixture(scope="module", autouse=True)
def _key():
    """And no measurement of style, which takes longest: it has a test of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TOY_KEY", "sk-toy-secret")
        patch.setattr(report_style, "STYLED", 0)
        yield


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("reports")


@pytest.fixture(scope="module")
def full(base):
    """A job with two rungs, canaries, a generator and a hostile passage, exported."""
    folder = base / "full"
    toy.beir(folder / "data")
    with (folder / "data" / "corpus.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps({"_id": "evil", "title": "", "text": EVIL}) + "\n")
    canaries = {"rate": 0.3, "golden": str(golden(folder / "golden.jsonl")), "min": 5, "window": 10, "halt_recall": 0.0}
    with Loopback(reply) as server:
        mining = {"negatives": 4, "depth": 12}
        judge = {"rungs": [BAND], "canaries": canaries, "max_chars": 100}
        path = judging.job(folder, server, judge=judge, generator=GENERATOR, mining=mining)
        judging.advance(path)
    return path


@pytest.fixture(scope="module")
def made(full):
    return report_data.payload(config.load(full, []))


def decided(path: Path) -> list[dict[str, Any]]:
    return judging.rows(path, "decisions", "part-*")


def section(made: dict[str, Any], name: str) -> dict[str, Any]:
    return next(one for one in made["sections"] if one["id"] == name)


def table(made: dict[str, Any], name: str, title: str) -> list[list[Any]]:
    return next(one["rows"] for one in section(made, name)["tables"] if one["title"] == title)


def edges(made: dict[str, Any]) -> dict[tuple[str, str], int]:
    return {(one["from"], one["to"]): one["count"] for one in made["flow"]}


def shown(made: dict[str, Any]) -> dict[tuple[str, ...], dict[str, Any]]:
    """The candidates of the browser as rows, by query and passage; a third part of the key counts those of one key."""
    browser = made["browser"]
    columns = browser["candidates"]
    assert len({len(column) for column in columns.values()}) == 1
    rows: dict[tuple[str, ...], dict[str, Any]] = {}
    for at in range(len(columns["query"])):
        row = {name: column[at] for name, column in columns.items()}
        row |= {name: browser["words"][name][row[name]] for name in browser["words"] if name in row}
        rows[_next(rows, (browser["queries"]["id"][row["query"]], browser["passages"]["id"][row["passage"]]))] = row
    return rows


def _next(rows: dict[tuple[str, ...], Any], key: tuple[str, ...]) -> tuple[str, ...]:
    """The key, or (of a text that was written twice) the key and a number."""
    return key if key not in rows else next((*key, str(n)) for n in range(1, 99) if (*key, str(n)) not in rows)


def messages(browser: dict[str, Any], answer: dict[str, Any]) -> list[dict[str, str]]:
    """As the page puts them together."""
    texts = {"p": browser["passages"]["text"], "q": browser["queries"]["text"]}

    def part(one: Any) -> str:
        return browser["strings"][one] if isinstance(one, int) else texts[one[0]][one[1]]

    return [{"role": one["role"], "content": "".join(map(part, one["parts"]))} for one in answer["messages"]]


# ---------------------------------------------------------------- a whole job


def test_the_flow_is_what_the_decisions_say(full, made):
    rows, found = decided(full), edges(made)
    mined = Counter(row["reason"] for row in rows if row["source"] == "mined")
    synthetic = Counter(row["reason"] for row in rows if row["source"] == "synthetic")
    pool = [row for row in judging.rows(full, "candidates", "part-*") if row["pool_rank"]]
    assert synthetic
    assert synthetic[""]
    assert found["candidates", "pool"] == len(pool) == len(judging.rows(full, "judgments"))
    judged = [row for row in judging.rows(full, "judgments") if row["verdict"] == "irrelevant"]
    assert found["pool", "judged irrelevant"] == len(judged)
    assert found["pool", "judged_relevant"] == mined["judged_relevant"]
    assert found["judged irrelevant", "negatives"] == mined[""]
    assert found["generated", "negatives"] == synthetic[""]
    for reason, count in (mined - Counter({"": mined[""]})).items():
        assert sum(n for (_, end), n in found.items() if end == reason) == count + synthetic[reason]
    starts, ends = Counter[str](), Counter[str]()
    for (start, end), count in found.items():
        starts[start] += count
        ends[end] += count
    for name in ("pool", "judged irrelevant", "negatives"):
        assert starts[name] == ends[name], "nothing is lost on the way"
    files = pq.read_table(full.with_suffix(".job") / "export" / "provenance.parquet")
    assert found["negatives", "exported"] == files.num_rows
    assert dict(map(tuple, made["facts"]))["negatives exported"] == files.num_rows


def test_every_candidate_is_there_as_it_was_decided(full, made):
    found, browser = shown(made), made["browser"]
    rows = decided(full)
    assert len(found) == len(rows)
    met: dict[tuple[str, ...], Any] = {}
    for row in sorted(rows, key=lambda row: not row["kept"]):
        one = found[key := _next(met, judging.key(row))]
        met[key] = row
        for name in ("source", "reason", "status", "verdict", "rung", "band"):
            assert one[name] == (row[name] or "")
        assert (one["grade"], bool(one["kept"])) == (row["grade"], row["kept"])
        assert (one["rank"], one["slot"]) == (row["rank"] or 0, row["slot"] or 0)
        assert one["score"] == (None if row["score"] is None else pytest.approx(row["score"], abs=1e-4))
        by = [(browser["words"]["retriever"][w], rank) for w, rank, _ in one["found"] or []]
        assert by == [(f["retriever"], f["rank"]) for f in row["found_by"] or []]
    columns = browser["candidates"]
    keys = [
        (query, not kept, slot if kept else rank or 10**6)
        for query, kept, slot, rank in zip(*(columns[n] for n in ("query", "kept", "slot", "rank")), strict=True)
    ]
    assert keys == sorted(keys), "by query, kept ones by slot, then by rank"
    outcomes = {r["query_id"]: r["reason"] or "exported" for r in judging.rows(full, "decisions", "outcomes-*")}
    assert dict(zip(browser["queries"]["id"], browser["queries"]["outcome"], strict=True)) == outcomes
    names = browser["passages"]["id"]
    positives = {
        (query, names[one[0]])
        for query, rows_ in zip(browser["queries"]["id"], browser["queries"]["positives"], strict=True)
        for one in rows_
    }
    assert positives == {judging.key(row) for row in judging.rows(full, "candidates", "positives-*")}
    assert browser["note"] == ""


def test_prompts_are_put_together_again_letter_by_letter(full, made):
    browser, found = made["browser"], shown(made)
    ledger = Ledger(full.with_suffix(".job") / "ledger.sqlite")
    asked: dict[tuple[str, ...], list[str]] = {}
    for step in ("judgments_cheap", "judgments_judge", "synthetic_judgments"):
        for row in judging.rows(full, step):
            asked.setdefault(judging.key(row), []).append(row["request_key"])
    written_: dict[tuple[str, ...], Any] = {}
    for row in judging.rows(full, "synthetic", "synthetic.parquet"):
        written_[key := _next(written_, judging.key(row))] = row
        asked[key] = [*asked.get(judging.key(row), [])[:1], row["request_key"]]
    assert max(map(len, asked.values())) > 1
    assert any(len(key) > 2 for key in asked)
    told = 0
    for key, keys in asked.items():
        one = found[key]
        places = [one["answer"], *(one["more"] or [])]
        answers = [browser["answers"][place] for place in places]
        wanted = sorted(json.dumps(ledger.request(k)["messages"]) for k in keys)
        assert sorted(json.dumps(messages(browser, answer)) for answer in answers) == wanted
        said = {ledger.get(k)["choices"][0]["message"]["content"] for k in keys}
        assert {answer["text"] for answer in answers} == said
        told += len(places)
    assert told > 100
    for row in judging.rows(full, "judgments"):
        answer = browser["answers"][found[judging.key(row)]["answer"]]
        assert answer["text"] == ledger.get(row["request_key"])["choices"][0]["message"]["content"]
        assert (answer["prompt"], answer["version"]) == (f"judge/{row['prompt']}", row["prompt_version"])
        assert answer["tokens"] == [row["prompt_tokens"], row["completion_tokens"]]
        assert found[judging.key(row)]["evidence"] == (row["evidence"] or None)
    ledger.close()
    kinds = {
        part[0] for a in browser["answers"] for m in a["messages"] for part in m["parts"] if isinstance(part, list)
    }
    assert kinds == {"p", "q"}
    held = sum(map(len, browser["strings"])) + sum(len(text) for text in browser["passages"]["text"] if text)
    whole = sum(len(m["content"]) for answer in browser["answers"] for m in messages(browser, answer))
    assert held < whole / 4, "each text stands once"


def test_texts_stay_as_they_are_and_the_page_obeys_none(made):
    browser = made["browser"]
    assert EVIL in browser["passages"]["text"]
    text = report_page.page(made)
    assert "<script>alert" not in text
    assert "onerror=alert" not in text


def test_rungs_canaries_and_cost_are_told(full, made):
    stamps = full.with_suffix(".job") / "stamps"
    counts = {
        name: json.loads((stamps / f"judgments_{name}.json").read_text())["counts"] for name in ("cheap", "judge")
    }
    rungs = {row[0]: row[1:] for row in table(made, "cascade", "Rungs, in order")}
    for name, one in counts.items():
        assert rungs[name] == [one["rows"], one["settled"], one["sent on"], *_tokens(one), None]
    moved = {(row[0], row[1]): row[2] for row in table(made, "cascade", "Verdicts that a rung changed")}
    assert moved == {("judge", move): count for move, count in counts["judge"]["changed"].items()}
    canaries = {row[0]: row for row in table(made, "canaries", "Canaries")}
    assert canaries["cheap"][2] == counts["cheap"]["canaries"]["asked"] > 0
    ledger = Ledger(full.with_suffix(".job") / "ledger.sqlite")
    prompts = table(made, "cost", "By prompt")
    assert sum(row[4] for row in prompts) == len(ledger)
    assert sum(row[5] for row in prompts) == sum(row["prompt_tokens"] for row in ledger.stats())
    ledger.close()
    assert any("is not calibrated" in line for line in made["warnings"])
    used = Counter(row["doc_id"] for row in decided(full) if row["kept"] and row["source"] == "mined")
    assert table(made, "reuse", "Most reused")[0][1] == max(used.values())


def _tokens(counts: dict[str, Any]) -> list[int]:
    return [counts["tokens"]["prompt"], counts["tokens"]["completion"]]


def test_the_same_job_gives_the_same_bytes(full, made):
    again = report_data.payload(config.load(full, []))
    assert json.dumps(again) == json.dumps(made)
    assert json.dumps(made, allow_nan=False)


def test_a_report_takes_no_lock_and_makes_nothing_stale(full, tmp_path):
    app = typer.Typer()
    app.command()(report)
    folder = full.with_suffix(".job")
    before = {path.name for path in folder.iterdir()}
    with judging.opened(full) as run:
        done = CliRunner().invoke(app, [str(full)])
        assert done.exit_code == 0, done.output
        assert all(not why for _, why, _ in engine.states(run))
    assert done.output.startswith(f"{folder / 'report.html'} (")
    assert {path.name for path in folder.iterdir()} - before <= {"report.html"}
    judging.advance(full)  # the folder is not refused
    printed = CliRunner().invoke(app, [str(full), "--json"])
    found = json.loads(printed.output)
    assert found["browser"] is None
    assert found["flow"]
    for unread in (["--json", "--queries", "3"], ["--json", "-o", "x.html"], [str(full), "--max-mb", "3"]):
        refused = CliRunner().invoke(app, [str(full), *unread])
        assert isinstance(refused.exception, UserError)
        assert "says nothing to" in str(refused.exception)
    other = tmp_path / "x.html"
    done = CliRunner().invoke(
        app, [str(full), "-o", str(other), "--queries", "3", "--page", "2", "--query", "q-cat-food"]
    )
    assert "Texts of 4 of 16 queries" in done.output or "Texts of 3 of 16 queries" in done.output
    assert other.read_text(encoding="utf-8").startswith("<!doctype html>")


# ---------------------------------------------------------------- which queries


def test_pages_take_turns_and_show_each_query_once(full):
    job, seen = config.load(full, []), []
    for page in (1, 2, 3):
        browser = report_data.payload(job, Wanted(6, page))["browser"]
        texts = {i for a in browser["answers"] for m in a["messages"] for i in _queries(m)}
        assert len(texts) <= 6
        seen += [browser["queries"]["id"][place] for place in texts]
        assert f"page {page} of 3" in browser["note"]
        assert len(browser["queries"]["id"]) == 16, "numbers of all are on every page"
    assert len(seen) == len(set(seen)) == 16
    for wanted, what in ((Wanted(6, 4), "page 4 is wanted"), (Wanted(forced=("nobody",)), "no such query")):
        with pytest.raises(UserError, match=what):
            report_data.payload(job, wanted)


def _queries(message: dict[str, Any]) -> set[int]:
    return {part[1] for part in message["parts"] if isinstance(part, list) and part[0] == "q"}


@pytest.fixture(scope="module")
def wide(base):
    """A job of 300 queries that nothing ran: two are left out, two have false negatives."""
    job = reports.folder(base / "wide", 300, answered=300)
    outcomes = base / "wide" / "job.job" / "decisions" / "outcomes-00000.parquet"
    became = pq.read_table(outcomes)
    rows = became.to_pylist()
    rows[200]["reason"], rows[201]["reason"] = "too_few_negatives", "too_many_false_negatives"
    for number, row in enumerate(rows):
        row["false_negatives"] = int(number in (7, 201))
    pq.write_table(type(became).from_pylist(rows, became.schema), outcomes)
    return job


def test_every_kind_of_query_is_among_the_first(wide):
    found = report_read.opened(wide)
    first = report_choice.choose(found, Wanted(4))
    assert {"q00200", "q00201", "q00007"} < set(first.ids[:4])
    assert set(first.outcome[:4]) == {"", "too_few_negatives", "too_many_false_negatives"}
    assert (first.told, first.total, first.pages, first.candidates) == (4, 300, 75, 6000)
    assert len(first.ids) == 300
    assert report_choice.choose(found, Wanted(4)) == first
    other = report_choice.choose(dataclasses.replace(found, run=_seeded(found.run, 14)), Wanted(4))
    assert other.ids[:4] != first.ids[:4]
    few = report_choice.choose(found, Wanted(4, forced=("q00123",), candidates=200))
    assert "q00123" in few.ids[:5]
    assert (few.told, len(few.ids)) == (5, 200 // reports.DEPTH)
    found.close()


def _seeded(run: Any, seed: int) -> Any:
    return dataclasses.replace(run, job=run.job.model_copy(update={"seed": seed}))


@pytest.mark.slow
def test_a_large_job_stays_below_eight_megabytes(tmp_path):
    job = reports.folder(tmp_path, 10_000, answered=300)
    made = report_data.payload(job)
    page = report_page.page(made)
    assert len(page.encode()) < 8_000_000
    browser = made["browser"]
    assert len(browser["candidates"]["query"]) == 200_000
    texts = browser["passages"]["text"]
    told = {
        place
        for row, place in zip(browser["candidates"]["query"], browser["candidates"]["passage"], strict=True)
        if row < 800
    }
    assert all(texts[place] for place in told)
    assert all(len(texts[place]) > 300 for place in told)
    assert "Texts of 800 of 10,000 queries" in browser["note"]


def test_texts_reach_as_far_as_the_room(wide):
    sizes = []
    for room in (0.4, 2.0):
        made = report_data.payload(wide, max_mb=room)
        size = len(report_page.page(made).encode())
        assert size < room * 1e6
        sizes.append(sum(text is not None for text in made["browser"]["passages"]["text"]))
        assert "leaves room for no more" in made["browser"]["note"] or room == 2.0
        for answer in made["browser"]["answers"]:
            messages(made["browser"], answer)  # nothing refers to a text that is left out
    assert 0 < sizes[0] < sizes[1]
    with pytest.raises(UserError, match="leaves no room"):
        report_data.payload(wide, max_mb=0.1)


def test_style_and_defects_of_the_texts_are_told(wide, monkeypatch):
    monkeypatch.setattr(report_style, "STYLED", 60)
    found = report_read.opened(wide)
    looked = report_style.look(found)
    assert looked.told is not None
    assert 100 < looked.told.rows <= 120, "a positive and a negative of each of 60 queries, but for texts met before"
    assert looked.told.verdict == "ok", "all texts are drawn alike"
    assert looked.queries == 298
    assert report_style.warnings(found, looked) == []
    told = dataclasses.replace(looked.told, verdict="warn", auc=0.7, low=0.65, high=0.75, features=[("word 'a'", 1.0)])
    worse = looked._replace(told=told, length=0.8, found=audit_checks.Findings(3))
    worse.found.add("R02", 1)
    lines = report_style.warnings(found, worse)
    assert "AUC 0.70 (0.65-0.75)" in lines[0]
    assert lines[1] == "style: negatives are longer than positives, Cohen's d 0.80"
    assert "negative is nearly a positive of its row, 1 times" in lines[2]
    found.close()


def test_a_step_that_is_replaced_meanwhile_is_read_again(wide, monkeypatch):
    real, calls, export = report_data._payload, [], Path(wide.job) / "export"

    def racing(*given: Any) -> Any:
        calls.append(given)
        made = real(*given)
        if len(calls) == 1:
            stamp = Path(wide.job) / "stamps" / "export.json"
            (export / "new.txt").write_text("of another run")
            stamp.write_text(json.dumps({**json.loads(stamp.read_text()), "outputs": {"new.txt": "0"}}))
        return made

    monkeypatch.setattr(report_data, "_payload", racing)
    report_data.payload(wide, browser=False)
    assert len(calls) == 2


# ---------------------------------------------------------------- at every step


def test_a_job_is_shown_at_every_step(base):
    with Loopback(reply) as server:
        path = judging.job(base / "steps", server, judge={"canaries": {"rate": 0.0}})
        with pytest.raises(UserError, match="nothing is mined yet"):
            report_data.payload(config.load(path, []))
        judging.advance(path, "mine")
        mined = report_data.payload(config.load(path, []))
        judging.advance(path, "judge")
        judged = report_data.payload(config.load(path, []))
        judging.advance(path)
        whole = report_data.payload(config.load(path, []))
    pool = sum(row["pool_rank"] is not None for row in judging.rows(path, "candidates", "part-*"))
    assert edges(mined)["candidates", "pool"] == pool
    assert {row["reason"] for row in shown(mined).values()} >= {"pool"}
    assert not mined["browser"]["answers"]
    assert set(mined["browser"]["queries"]["outcome"]) == {"not decided yet"}
    assert any("not done yet: judgments, decisions, export" in line for line in mined["warnings"])
    verdicts = Counter(row["verdict"] for row in judging.rows(path, "judgments"))
    assert edges(judged)["pool", "judged irrelevant"] == verdicts["irrelevant"]
    assert edges(judged)["pool", "judged_relevant"] == verdicts["relevant"]
    for key, row in shown(judged).items():
        if row["status"]:
            assert row["reason"] == f"judged_{row['verdict']}"
            assert shown(whole)[key]["grade"] == row["grade"]
    assert len(judged["browser"]["answers"]) == pool
    assert edges(whole)["negatives", "exported"] > 0


def test_a_job_without_a_judge(tmp_path):
    path = toy.job(tmp_path, mining={"margin_relative": 0.05})
    judging.advance(path)
    made = report_data.payload(config.load(path, []))
    kept = sum(row["kept"] for row in decided(path))
    near = {judging.key(row): row["to_positive"] for row in decided(path)}
    assert {key: one["near"] for key, one in shown(made).items()} == pytest.approx(near, abs=1e-4)
    assert None not in near.values()
    score = {judging.key(row): row["score"] for row in decided(path)}
    assert score != near
    assert edges(made)["pool", "negatives"] == edges(made)["negatives", "exported"] == kept
    assert made["warnings"][0].startswith("no judge was used")
    assert {one["id"] for one in made["sections"]} == {"candidates", "scores", "lengths", "reuse"}
    assert made["browser"]["answers"] == []
    report_page.page(made)


def test_a_job_without_candidates(tmp_path):
    made = report_data.payload(reports.folder(tmp_path, 0))
    assert edges(made)["candidates", "pool"] == 0
    assert made["browser"]["candidates"]["query"] == []
    report_page.page(made)


def test_a_packed_judge_in_two_orders_shows_both_answers(base):
    with Loopback(reply) as server:
        path = judging.job(base / "packed", server, judge={"prompt": "packed", "orders": 2, "pack": 3})
        judging.advance(path, "judge")
    made = report_data.payload(config.load(path, []))
    found, browser = shown(made), made["browser"]
    ledger = Ledger(path.with_suffix(".job") / "ledger.sqlite")
    twice = 0
    for row in judging.rows(path, "judgments"):
        one = found[judging.key(row)]
        keys = [key for key in (row["request_key"], row["other_key"]) if key]
        answers = [browser["answers"][place] for place in [one["answer"], *(one["more"] or [])]]
        assert [messages(browser, a) for a in answers] == [ledger.request(key)["messages"] for key in keys]
        twice += len(keys) == 2
    ledger.close()
    assert twice
    assert len(browser["answers"]) < len(judging.rows(path, "judgments")), "one answer is about several passages"


def test_a_repaired_answer_comes_first_and_says_so(base):
    def broken(body: dict[str, Any]) -> Any:
        first = len(body["messages"]) == 2 and "cat" in judging.texts(body)[0]
        return (
            (200, {}, completion("I think: no."))
            if first
            else judging.judge()(body | {"messages": body["messages"][:2]})
        )

    with Loopback(broken) as server:
        path = judging.job(base / "repaired", server)
        judging.advance(path, "judge")
    made = report_data.payload(config.load(path, []))
    told = [
        [made["browser"]["answers"][place] for place in (row["answer"], *row["more"])]
        for row in shown(made).values()
        if row["detail"] == "repaired"
    ]
    assert told
    for again, first in told:
        assert first["text"] == "I think: no."
        assert json.loads(again["text"])["grade"] in range(4)
        assert again["note"].startswith("asked again")
        assert len(messages(made["browser"], again)) == 4


def test_steps_that_no_longer_fit_are_left_out(full, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(full.parent, copy)
    judging.advance(copy / "job.yaml", "mine", "mining.depth=9")
    made = report_data.payload(config.load(copy / "job.yaml", ["mining.depth=9"]))
    assert any("left out of this report" in line and "decisions, export" in line for line in made["warnings"])
    assert set(made["browser"]["queries"]["outcome"]) == {"not decided yet"}
    rows = judging.rows(copy / "job.yaml", "candidates", "part-*")
    assert len(shown(made)) == len(rows)
    made = report_data.payload(config.load(copy / "job.yaml", ["mining.depth=9", "mining.margin_relative=0.9"]))
    assert any("step candidates is stale (changed: mining.margin_relative)" in line for line in made["warnings"])


def test_what_people_said_of_the_judge_is_drawn(full, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(full.parent, copy)
    path, rows = copy / "job.yaml", []
    for number in range(80):
        text = f"{'cat' if number % 2 else 'stone'} {number} wants attention."
        grade = judging.by_hash("what sound does a cat make", text)
        rows.append(
            {"query_id": f"g{number}", "query": "what sound does a cat make", "positive": "p", "doc_id": f"g{number}"}
            | {"passage": text, "grade": 3 if number % 2 else grade}
        )
    toy.write_jsonl(copy / "graded.jsonl", rows)
    with Loopback(reply) as server:
        text = re.sub(r"http://127.0.0.1:\d+", server.url.removesuffix("/v1"), path.read_text())
        path.write_text(text)
        with judging.opened(path) as run:
            told = calibrate_judge.judge(run, copy / "graded.jsonl", "all", 0.5)
            calibrate_judge.record(run.folder.root, told)
    made = report_data.payload(config.load(path, []))
    plot = section(made, "agreement")["plots"][0]
    for one in told["reliability"]:
        if one["n"]:
            assert f"{one['start'] + 0.5:.2f}: {one['observed']['value']:.0%}" in plot["alt"]
    agreed = {row[1]: row[2] for row in table(made, "agreement", "Agreement with people, 95% intervals")}
    assert agreed["kappa, irrelevant or not"] == pytest.approx(told["metrics"]["kappa"]["value"], abs=1e-4)
    (copy / "graded.jsonl").write_text("changed")
    assert not section(report_data.payload(config.load(path, [])), "agreement")["plots"]


# ---------------------------------------------------------------- parts


def test_messages_are_cut_at_the_texts_and_nothing_is_lost():
    texts = [Text("p", 0, "a passage about cats"), Text("q", 1, "short"), Text("p", 2, "x" * 60 + "tail that was cut")]
    content = "A a passage about cats B short C a passage about cats" + "x" * 60 + "tail"
    found = list(cut(content, texts))
    assert found == ["A ", texts[0], " B short C ", texts[0], "x" * 60 + "tail"]
    assert list(cut("", texts)) == []
    assert list(cut("nothing", [])) == ["nothing"]
    assert clean("a\ud800b\x07\U0001f600") == "a\ufffdb\x07\U0001f600"


def test_plots_share_no_name_obey_no_label_and_repeat():
    import numpy as np

    groups = {"</text><script>alert(1)</script>": np.arange(30.0), "日本 $x_1$ \x07": np.arange(20.0) / 3}
    first, other = (report_plots.histogram(name, groups, "<b>") for name in ("one", "two"))
    assert first == report_plots.histogram("one", groups, "<b>")
    names = [set(re.findall(r' id="([^"]*)"', plot.svg)) for plot in (first, other)]
    assert names[0]
    assert not names[0] & names[1]
    for plot in (first, other):
        assert "<script" not in plot.svg
        assert "style" not in plot.svg
        assert set(re.findall(r"https?://[^\"' ]*", plot.svg)) <= {
            "http://www.w3.org/2000/svg",
            "http://www.w3.org/1999/xlink",
        }
        assert "currentColor" in plot.svg
        assert all(" " <= letter <= "~" or letter == "\n" for letter in plot.svg)
    assert report_plots.histogram("none", {"a": np.array([np.nan])}, "x") is None
