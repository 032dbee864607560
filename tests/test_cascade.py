"""Several judges in turn: who is asked about what, whose verdict counts, and what it took."""

from __future__ import annotations

import json
import shutil
import signal
from collections import Counter
from typing import Any

import judging
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import toy
from judging import PROBABILITY, advance, by_hash, key, rows, truths
from loopback import Loopback, completion, failure, parts, sensible
from pydantic import ValidationError
from test_kill import Run

from miner import calibrate_judge, cascade, estimate, judge_steps, prompts, store, tidy
from miner.config.llm import Judge, Rung
from miner.errors import ProviderStop, UserError
from miner.store import tree_digest

BAND = {"name": "cheap", "prompt": "binary", "irrelevant_p": 0.1, "relevant_p": 0.9}


@pytest.fixture(autouse=True)
def _key(monkeypatch):
    monkeypatch.setenv("TOY_KEY", "sk-toy-secret")


@pytest.fixture
def server():
    with Loopback(judging.judge()) as one:
        yield one


def strong(query: str, passage: str) -> int:
    """Another mind than the cheap judge's: it never agrees in the grey band."""
    return {0: 0, 1: 2, 2: 1, 3: 3}[by_hash(query, passage)]


def both(body: dict[str, Any]):
    return judging.judge(strong if judging.mode(body) == "graded" else by_hash)(body)


def price(server: Loopback, dollars: float) -> dict[str, Any]:
    return toy.llm(server.url, model="cheap", price={"input": dollars, "output": dollars})


# ---------------------------------------------------------------- whole jobs


def test_the_grey_band_goes_to_the_strong_judge_and_nothing_else(tmp_path, server):
    server.reply = both
    job = judging.job(tmp_path / "a", server, judge={"rungs": [{**BAND, "llm": price(server, 1.0)}]})
    stamps = advance(job)
    true = truths(job)
    grey = [pair for pair, grade in true.items() if PROBABILITY[grade] in (0.3, 0.7)]
    asked = Counter((body["model"], judging.mode(body)) for body in server.bodies)
    assert asked == {("cheap", "binary"): len(true), ("toy", "graded"): len(grey)}
    assert [key(row) for row in rows(job, "judgments_cheap")] == list(true)
    assert [key(row) for row in rows(job, "judgments_judge")] == grey
    final = rows(job, "judgments")
    assert [key(row) for row in final] == list(true)
    for row in final:
        grade = true[key(row)]
        assert row["rung"] == ("judge" if key(row) in grey else "cheap")
        assert row["verdict"] == {0: "irrelevant", 1: "relevant", 2: "irrelevant", 3: "relevant"}[grade]
    ones, twos = (sum(grade == wanted for grade in true.values()) for wanted in (1, 2))
    cheap, last = stamps["judgments_cheap"].counts, stamps["judgments_judge"].counts
    assert (cheap["rows"], cheap["settled"], cheap["sent on"]) == (len(true), len(true) - len(grey), len(grey))
    assert cheap["verdict"] == {
        "irrelevant": sum(g == 0 for g in true.values()),
        "relevant": sum(g == 3 for g in true.values()),
        "unsure": len(grey),
    }
    assert cheap["cost"] == pytest.approx(len(true) * 110 / 1e6)
    assert "cost" not in last, "no price is known of the model toy"
    assert (last["rows"], last["settled"], last["sent on"]) == (len(grey), len(grey), 0)
    assert last["changed"] == {"unsure to irrelevant": twos, "unsure to relevant": ones}
    assert last["tokens"] == {"prompt": 100 * len(grey), "completion": 10 * len(grey)}
    assert stamps["judgments"].counts["rung"] == {"cheap": len(true) - len(grey), "judge": len(grey)}
    kept = [key(row) for row in rows(job, "decisions", "part-*") if row["kept"]]
    assert kept
    assert all(true[pair] in (0, 2) for pair in kept)
    with judging.opened(job) as run:
        assert set(judge_steps.keys_used(run)) == set(run.ledger.keys())
    manifest = json.loads((job.with_suffix(".job") / "manifest.json").read_text())
    assert {name: one["model"] for name, one in manifest["prompts"].items()} == {"judge": "toy", "judge cheap": "cheap"}


@pytest.mark.parametrize(("settles", "sent"), [("both", (1, 2)), ("irrelevant", (1, 2, 3)), ("relevant", (0, 1, 2))])
def test_a_rung_settles_only_the_verdicts_that_it_may(tmp_path, server, settles, sent):
    job = judging.job(tmp_path / "a", server, judge={"rungs": [{**BAND, "settles": settles}]})
    advance(job, "judge")
    true = truths(job)
    assert {key(row) for row in rows(job, "judgments_judge")} == {p for p, g in true.items() if g in sent}
    server.bodies.clear()
    other = "irrelevant" if settles != "irrelevant" else "relevant"
    again = judging.job(tmp_path / "a", server, judge={"rungs": [{**BAND, "settles": other}]})
    cheap = advance(again, "judge")["judgments_cheap"].counts
    assert {judging.mode(body) for body in server.bodies} <= {"graded"}, "the cheap judge is not asked again"
    assert cheap["settled"] == sum(row["verdict"] == other for row in rows(again, "judgments_cheap"))


def test_unreadable_answers_go_on_and_missing_ones_do_not(tmp_path, server):
    """An outage of the cheap judge must not send everything to the dear one, nor make anything a negative."""

    def cheap(body: dict[str, Any]):
        _, passages = judging.texts(body)
        if judging.mode(body) != "binary":
            return judging.judge()(body)
        turn = sum(map(ord, passages[0][1])) % 3
        return (failure(400), (200, {}, completion("Maybe")), judging.judge()(body))[turn]

    server.reply = cheap
    job = judging.job(tmp_path / "a", server, judge={"rungs": [BAND]})
    stamps = advance(job, "decisions")
    first, second = ({key(row): row for row in rows(job, f"judgments_{name}")} for name in ("cheap", "judge"))
    status = {pair: row["status"] for pair, row in first.items()}
    assert set(status.values()) == {"ok", "missing", "unparsable"}
    assert {status[pair] for pair in second} == {"ok", "unparsable"}
    assert all(pair in second for pair, one in status.items() if one == "unparsable")
    final = {key(row): row for row in rows(job, "judgments")}
    assert {final[pair]["verdict"] for pair, one in status.items() if one == "missing"} == {"failed"}
    assert not stamps["judgments_cheap"].complete
    kept = {key(row) for row in rows(job, "decisions", "part-*") if row["kept"]}
    assert all((final[p]["status"], final[p]["verdict"]) == ("ok", "irrelevant") for p in kept)


def test_three_rungs_of_three_modes(tmp_path, server):
    packed = {"name": "middle", "prompt": "packed", "irrelevant_to": 0, "relevant_from": 3}
    cheap = {**BAND, "settles": "irrelevant"}
    job = judging.job(tmp_path / "a", server, judge={"orders": 2, "pack": 3, "rungs": [cheap, packed]})
    counts = {name: stamp.counts for name, stamp in advance(job, "judge").items()}
    true = truths(job)
    size = Counter(true.values())
    assert counts["judgments_cheap"]["sent on"] == size[1] + size[2] + size[3] == counts["judgments_middle"]["rows"]
    assert counts["judgments_middle"]["sent on"] == size[1] + size[2] == counts["judgments_judge"]["rows"]
    assert counts["judgments"]["rung"] == {"cheap": size[0], "middle": size[3], "judge": size[1] + size[2]}
    assert [r["verdict"] for r in rows(job, "judgments")] == [
        "relevant" if g > 1 else "irrelevant" for g in true.values()
    ]


def test_what_is_generated_goes_to_the_last_judge(tmp_path, server):
    def reply(body: dict[str, Any]):
        if "FACET" in parts(body):
            return sensible(body)
        return judging.judge(lambda query, passage: 0 if "Not so" in passage else 3)(body)

    server.reply = reply
    job = judging.job(
        tmp_path / "a",
        server,
        judge={"rungs": [{**BAND, "llm": price(server, 1.0)}]},
        generator={"enabled": True, "max_share": 0.4},
    )
    advance(job, "generate")
    written = [b for b in server.bodies if "FACET" not in parts(b) and "Not so" in parts(b)["PASSAGE"]]
    assert written
    assert {(body["model"], judging.mode(body)) for body in written} == {("toy", "graded")}
    assert {row["rung"] for row in rows(job, "synthetic_judgments")} == {"judge"}


def test_a_rung_that_goes_by_teacher_scores_asks_nobody(tmp_path, server):
    rung = {"name": "teacher", "kind": "teacher", "above": 90, "below": 20, "unit": "percentile"}
    job = judging.job(tmp_path / "a", server)
    advance(job, "mine")
    asked = len(server.bodies)
    with pytest.raises(UserError, match=r"judge\.rungs: teacher is of kind teacher, and the job has none"):
        advance(judging.job(tmp_path / "a", server, judge={"rungs": [rung]}))
    path = judging.job(tmp_path / "a", server, judge={"rungs": [rung]}, teacher={"model": "tiny"})
    score = {}
    with judging.opened(path) as run:
        for part in run.parts("candidates", "part"):
            table = store.read_table(part)
            values = [
                None if not row["pool_rank"] or row["doc_id"].endswith("sleep") else hash_score(row)
                for row in table.to_pylist()
            ]
            score |= {key(row): value for row, value in zip(table.to_pylist(), values, strict=True) if row["pool_rank"]}
            at = table.schema.get_field_index("teacher_score")
            store.write_table(part, table.set_column(at, "teacher_score", pa.array(values, pa.float32())))
        work = tmp_path / "work"
        work.mkdir()
        done = judge_steps.run_rung(run, work, 0)
        assert calibrate_judge.uncalibrated(run)[0] == (
            "rung teacher calls passages irrelevant by teacher score, which no calibration covers"
        )
        assert run.job.judge.uncalibrated
        shutil.copytree(work, run.folder.step("judgments_teacher"))
        left = judge_steps.open_pairs(run, 1, known=True)
        assert [(pair.query_id, pair.doc_id) for pair in left()] == [
            key(row) for row in pq.read_table(work / "judgments.parquet").to_pylist() if row["verdict"] == "unsure"
        ]
    known = sorted(value for value in score.values() if value is not None)
    low, high = np.percentile(np.array(known, np.float32).astype(float), [20, 90])
    found = pq.read_table(work / "judgments.parquet").to_pylist()
    for row in found:
        value = score[key(row)]
        band = "unsure" if value is None or low < value < high else "relevant" if value >= high else "irrelevant"
        assert (row["verdict"], row["status"], row["grade"], row["model"]) == (band, "ok", None, "tiny")
    assert done.counts["settled"] == sum(row["verdict"] != "unsure" for row in found) > 0
    assert len(server.bodies) == asked


def hash_score(row: dict[str, Any]) -> float:
    return by_hash(row["query_id"], row["doc_id"]) + len(row["doc_id"]) / 100


def test_every_rung_that_calls_things_irrelevant_needs_a_calibration(tmp_path, server):
    rungs = [BAND, {**BAND, "name": "second", "prompt": "graded", "settles": "relevant", "irrelevant_to": 0}]
    job = judging.job(tmp_path / "a", server, judge={"rungs": rungs, "uncalibrated": False})
    with judging.opened(job) as run:
        assert calibrate_judge.uncalibrated(run) == [
            "the judge toy with prompt binary is not calibrated",
            "the judge toy with prompt graded is not calibrated",
        ]
        with pytest.raises(UserError, match=r"binary is not calibrated \(and 1 more\); measure it"):
            calibrate_judge.gate(run)
        with pytest.raises(UserError, match="--rung dear: no such rung asks an LLM; the job has cheap, second, judge"):
            calibrate_judge.judge(run, tmp_path / "golden.jsonl", "all", 0.1, "dear")


def test_estimates_and_clearing_up_know_of_every_rung(tmp_path, server):
    rung = {**BAND, "llm": price(server, 1.0)}
    job = judging.job(tmp_path / "a", server, judge={"rungs": [rung], "canaries": {"rate": 0.1, "halt_recall": 0}})
    with judging.opened(job) as run:
        before = estimate.run(run)["stages"]
    size = len(truths(job))
    assert [(row["stage"], row["model"], row["at_most"], row["to_ask"]) for row in before] == [
        ("judge cheap", "cheap", False, size),
        ("judge judge", "toy", True, size),
    ]
    advance(job, "judge")
    grey = len(rows(job, "judgments_judge"))
    with judging.opened(job) as run:
        after = estimate.run(run)["stages"]
        assert [(row["at_most"], row["requests"], row["in_ledger"]) for row in after] == [
            (False, size, size),
            (False, grey, grey),
        ]
        assert tidy.gc(run, dry_run=True) == {"answers": size + grey, "unused": 0, "archive": None}


def test_paths_of_a_rung_and_of_canaries_count_from_the_job_file(tmp_path, server):
    own = tmp_path / "a" / "own.md"
    own.parent.mkdir()
    own.write_text(prompts.load("judge", "binary", None).text)
    rungs = [{**BAND, "prompt": "own.md"}]
    job = judging.job(tmp_path / "a", server, judge={"rungs": rungs, "canaries": {"golden": "golden.jsonl"}})
    with judging.opened(job) as run:
        assert run.job.judge.rungs[0].prompt == str(own)
        assert run.job.judge.canaries.golden == str(tmp_path / "a" / "golden.jsonl")


# ---------------------------------------------------------------- stopped and killed


def test_a_cascade_that_was_stopped_asks_nothing_twice_and_ends_with_the_same_bytes(tmp_path, server):
    server.reply = both
    whole = judging.job(tmp_path / "whole", server, judge={"rungs": [BAND]})
    advance(whole)
    reference = {step: tree_digest(whole.with_suffix(".job") / step) for step in STEPS}
    count, job = len(server.bodies), judging.job(tmp_path / "part", server, judge={"rungs": [BAND]})
    del server.bodies[:]
    server.completed.clear()
    for stop in (10, 60, count - 10, count):
        left = iter(range(stop - len(server.completed)))
        server.reply = lambda body, left=left: both(body) if next(left, None) is not None else failure(401, "stop")
        if stop < count:
            with pytest.raises(ProviderStop):
                advance(job)
        else:
            advance(job)
    assert {step: tree_digest(job.with_suffix(".job") / step) for step in STEPS} == reference
    assert set(server.completed.values()) == {1}
    assert len(server.completed) == count


STEPS = ("judgments_cheap", "judgments_judge", "judgments", "decisions", "export")


@pytest.mark.slow
def test_a_killed_cascade_ends_with_the_same_bytes(tmp_path, server, environment):
    server.reply, server.delay_s = both, 0.02
    job = judging.job(tmp_path / "killed", server, judge={"rungs": [BAND]})
    for kind, enough in (("binary", 30), ("graded", 5)):
        start = len(server.bodies)
        code = Run(job, environment).strike(
            lambda _, k=kind, n=enough, s=start: sum(judging.mode(b) == k for b in server.bodies[s:]) >= n, 0.01
        )
        assert code == -signal.SIGKILL
    server.delay_s = 0
    advance(job)
    whole = judging.job(tmp_path / "whole", server, judge={"rungs": [BAND]})
    advance(whole)
    for step in STEPS:
        assert tree_digest(job.with_suffix(".job") / step) == tree_digest(whole.with_suffix(".job") / step)


# ---------------------------------------------------------------- pure


def table(*found: tuple[str, str]) -> pa.Table:
    return pa.table({"status": [one[0] for one in found], "verdict": [one[1] for one in found]})


ALL = table(
    ("ok", "irrelevant"),
    ("ok", "relevant"),
    ("ok", "unsure"),
    ("unparsable", "failed"),
    ("missing", "failed"),
    ("refused", "irrelevant"),  # no such row is ever written; were it, it would settle nothing
)


@pytest.mark.parametrize(("settles", "done"), [("both", [0, 1, 4]), ("irrelevant", [0, 4]), ("relevant", [1, 4])])
def test_what_is_settled(settles, done):
    assert np.flatnonzero(cascade.settled(ALL, settles)).tolist() == done


def test_left_open_and_merged_are_each_others_rest():
    rng = np.random.default_rng(5)
    kinds = ALL.to_pylist()
    for _ in range(50):
        total, tables, here = int(rng.integers(0, 12)), [], None
        here = np.arange(total)
        settles = ["both", "relevant", "both"]
        for number, what in enumerate(settles):
            drawn = [kinds[i] for i in rng.integers(0, len(kinds), len(here))]
            schema = pa.schema(
                [("status", pa.string()), ("verdict", pa.string()), ("pair", pa.int64()), ("by", pa.int64())]
            )
            made = [{**one, "pair": int(pair), "by": number} for one, pair in zip(drawn, here, strict=True)]
            tables.append(pa.Table.from_pylist(made, schema))
            here = here[~cascade.settled(tables[-1], what)]
            if number < 2:
                rest, verdict = cascade.left_open(tables, settles[: number + 1], total)
                assert rest.tolist() == here.tolist()
                assert len(verdict) == len(rest)
        found = cascade.merged(tables, settles).to_pylist()
        assert [row["pair"] for row in found] == list(range(total))
        for row in found:
            seen = [t for t in tables if row["pair"] in t.column("pair").to_pylist()]
            assert row["by"] == len(seen) - 1, "the last that was asked decides"


def test_moves_of_verdicts():
    before = np.array(["unsure", "unsure", "relevant", "", "failed"], object)
    after = table(*(("ok", verdict) for verdict in ("irrelevant", "unsure", "irrelevant", "relevant", "relevant")))
    moved = {"unsure to irrelevant": 1, "relevant to irrelevant": 1, "failed to relevant": 1}
    assert cascade.moves(before, after) == moved


def test_verdicts_by_score():
    score = np.array([0.0, 1.0, 2.0, 3.0, np.nan, 4.0])
    irrelevant, unsure, relevant = "irrelevant", "unsure", "relevant"
    cases = {
        (3.0, 1.0, False): [irrelevant, irrelevant, unsure, relevant, unsure, relevant],
        (3.0, None, False): [unsure, unsure, unsure, relevant, unsure, relevant],
        (None, 0.5, False): [irrelevant, unsure, unsure, unsure, unsure, unsure],
        (100, 50, True): [irrelevant, irrelevant, irrelevant, unsure, unsure, relevant],
    }
    for (above, below, percentile), expected in cases.items():
        assert cascade.by_score(score, above, below, percentile).tolist() == expected
    assert cascade.by_score(np.full(2, np.nan), 50, 20, True).tolist() == [unsure, unsure]


@pytest.mark.parametrize(
    ("rungs", "why"),
    [
        ([{"name": "judge"}], "name judge is that of the last rung"),
        ([{"name": "a"}, {"name": "a"}], "the name a is there twice"),
        ([{"name": "A/b"}], "should match pattern"),
        ([{"name": "a", "kind": "teacher"}], "needs one of them"),
        ([{"name": "a", "above": 1.0}], "above and below are for kind teacher"),
        ([{"name": "a", "kind": "teacher", "above": 1.0, "below": 1.0}], "must be under above"),
        ([{"name": "a", "kind": "teacher", "above": 101.0, "unit": "percentile"}], "from 0 to 100"),
        ([{"name": "a", "irrelevant_to": 2}], "rung a: what is irrelevant must lie below"),
        ([{"name": "a", "irrelevant_p": 0.6}], "rung a: what is irrelevant must lie below"),
    ],
)
def test_contradictions_are_told(rungs, why):
    with pytest.raises(ValidationError, match=why):
        Judge(rungs=rungs)


def test_a_rung_is_a_judge_of_its_own():
    rung = Rung(name="a", prompt="binary", relevant_p=0.9)
    judge = Judge(max_chars=700, irrelevant_p=0.2, rungs=(rung,))
    own = judge.of(rung)
    assert (own.prompt, own.relevant_p, own.irrelevant_p, own.max_chars, own.rungs) == ("binary", 0.9, 0.2, 700, ())
