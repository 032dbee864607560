"""Jobs judged in every mode, and what becomes of the passages that the judge finds relevant."""

from __future__ import annotations

import json
import zlib
from collections import Counter
from typing import Any

import judging
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from judging import advance, by_hash, key, rows, truths
from loopback import Loopback, Reply, completion
from prompt_server import golden

from miner import calibrate_judge, judge_steps, llms, packs, prompts, ranking, store
from miner.config import Endpoint, Judge
from miner.errors import UserError
from miner.stages import decisions, judgments

MODES = ("graded", "binary", "packed", "listwise")
PAIRS = 16 * 6


@pytest.fixture(autouse=True)
def _key(monkeypatch):
    monkeypatch.setenv("TOY_KEY", "sk-toy-secret")


@pytest.fixture
def server():
    with Loopback(judging.judge()) as one:
        yield one


def kept(job) -> list[dict[str, Any]]:
    return [row for row in rows(job, "decisions", "part-*") if row["kept"]]


@pytest.mark.parametrize("mode", MODES)
def test_a_job_is_judged_in_every_mode(tmp_path, server, mode):
    job = judging.job(tmp_path / "a", server, judge={"prompt": mode, "pack": 4})
    counts = advance(job)["judgments"].counts
    true, found = truths(job), rows(job, "judgments")
    assert [key(row) for row in found] == list(true)
    assert {(row["status"], row["rung"], row["other_key"]) for row in found} == {("ok", "judge", None)}
    assert [row["verdict"] for row in found] == ["relevant" if grade >= 2 else "irrelevant" for grade in true.values()]
    requests = 2 * 16 if mode in prompts.MANY else PAIRS
    assert len(server.bodies) == len({row["request_key"] for row in found}) == requests
    assert counts["tokens"] == {"prompt": 100 * requests, "completion": 10 * requests}, "a request is counted once"
    if mode == "binary":
        assert [round(row["score"], 4) for row in found] == [judging.PROBABILITY[g] for g in true.values()]
        assert {row["grade"] for row in found} == {0, 3}
    else:
        assert [(row["grade"], row["score"]) for row in found] == [(grade, None) for grade in true.values()]
    assert kept(job)
    assert all(true[key(row)] <= 1 for row in kept(job))
    exported = pq.read_table(job.with_suffix(".job") / "export/provenance.parquet").to_pylist()
    assert {(row["query_id"], row["doc_id"]) for row in exported} == {key(row) for row in kept(job)}
    asked = len(server.bodies)
    again = advance(job, None, "mining.negatives=2", "judge.pool=6")
    assert (len(server.bodies), again["judgments"].counts) == (asked, counts)


def ruined(answer: dict[str, Any], kind: str) -> list[str]:
    """Contents that look like a low grade of what was asked and are none."""
    low = {"graded": '{"evidence": "", "grade": 0}', "binary": "No"}.get(kind, json.dumps(answer))
    odd = ["", "0", f"{low} {low}", low.replace("0", '"0"'), "The grade is 0.", "null", "[]"]
    if kind in prompts.MANY:
        entries = answer["answers"]
        others = [{**one, "id": one["id"] - 1} for one in entries]  # counted from 0
        odd += [json.dumps({"answers": some}) for some in ([], entries + entries, others, [{"id": 1}])]
        if kind == "listwise":
            odd.append(json.dumps({"answers": [{**one, "relation": "irrelevant"} for one in entries]}))
    return odd


@pytest.mark.parametrize(("mode", "orders"), [*((mode, 1) for mode in MODES), ("packed", 2), ("listwise", 2)])
def test_only_a_readable_irrelevant_ever_becomes_a_negative(tmp_path, mode, orders):
    """Odd answers of every kind, each to a judge that would call everything irrelevant; about every third is sound.

    Which one a pack gets hangs on its texts, so that its two orders, and its repair, get the same.
    """
    sound: Counter[str] = Counter()

    def reply(body: dict[str, Any]) -> Reply:
        query, passages = judging.texts(body)
        entries = [judging.entry(mode, number, text, 0) for number, text in passages]
        number = zlib.crc32(" ".join([query, *sorted(text for _, text in passages)]).encode())
        if number % 3 == 0:
            sound[json.dumps(body["messages"][:2])] += 1
            return judging.judge(lambda *_: 0)(body)
        kinds = ruined({"answers": entries}, mode)
        finish = ("stop", "content_filter")[number % 2] if mode == "binary" else "stop"
        bad = kinds[number // 3 % len(kinds)]
        return 200, {}, completion("Maybe" if mode == "binary" and bad == "No" else bad, finish)

    with Loopback(reply) as server:
        job = judging.job(tmp_path / "a", server, judge={"prompt": mode, "pack": 3, "orders": orders})
        advance(job)
    judged = {key(row): row for row in rows(job, "judgments")}
    assert {row["status"] for row in judged.values()} > {"ok"}
    assert {row["verdict"] for row in judged.values() if row["status"] != "ok"} == {"failed"}
    assert {row["grade"] for row in judged.values() if row["status"] != "ok"} == {None}
    for row in rows(job, "decisions", "part-*"):
        said = judged.get(key(row))
        assert row["kept"] <= bool(said and said["status"] == "ok" and said["verdict"] == "irrelevant")
    assert sum(sound.values()) > 0


def test_a_verdict_of_an_answer_that_is_not_ok_admits_nothing():
    """Even where a judgments file was written by somebody who got it wrong."""
    pool = pa.table({"query_id": ["q"] * 2, "pool_rank": pa.array([1, 2], pa.int32())})
    judged = pa.table({"verdict": ["irrelevant"] * 2, "status": ["unparsable", "ok"]})
    assert ranking.slots(pool, judged, 2).tolist() == [0, 1]
    assert decisions._refusals(judged).tolist() == ["judge_unparsable", ""]


# ---------------------------------------------------------------- packs


def test_packs_hold_each_passage_once_in_a_seeded_order_and_its_reverse():
    ids = [f"d{i}" for i in range(7)]
    one = packs.shapes(ids, 3, 1, 13)
    assert sorted(len(pack) for pack in one) == [1, 3, 3]
    assert sorted(number for pack in one for number in pack) == list(range(7))
    assert packs.shapes(ids, 3, 2, 13) == [one[0], one[0][::-1], one[1], one[1][::-1], one[2]], "one alone has no order"
    assert packs.shapes(ids, 3, 1, 13) == one != packs.shapes(ids, 3, 1, 14)
    assert one[0] != (0, 1, 2), "not by rank: the best would always stand first"
    assert packs.shapes([], 3, 2, 13) == []


def test_two_orders_that_disagree_leave_the_pair_unsure(tmp_path):
    def favours_the_first(body: dict[str, Any]) -> Reply:
        query, passages = judging.texts(body)
        grades = [3 if place == 0 else by_hash(query, text) for place, (_, text) in enumerate(passages)]
        entries = [judging.entry("packed", n, text, g) for (n, text), g in zip(passages, grades, strict=True)]
        return 200, {}, completion(json.dumps({"answers": entries}))

    with Loopback(favours_the_first) as server:
        job = judging.job(tmp_path / "a", server, judge={"prompt": "packed", "pack": 4, "orders": 2})
        counts = advance(job)["judgments"].counts
        shown = [[text for _, text in judging.texts(body)[1]] for body in server.bodies]
    assert len(shown) == 16 * 2 * 2  # packs of 4 and 2, in two directions
    assert all(texts[::-1] in shown for texts in shown)
    assert counts["tokens"]["prompt"] == 100 * len(shown)
    true = truths(job)
    found = rows(job, "judgments")
    assert all(row["other_key"] not in (None, row["request_key"]) for row in found)
    moved = [row for row in found if row["verdict"] == "unsure"]
    assert moved
    for row in moved:  # once first and graded 3, once further down and graded for what it is
        assert true[key(row)] <= 1
        assert (row["status"], row["grade"]) == ("ok", 3)
        assert row["detail"].startswith("two orders disagree: grades")
    agreed = [row for row in found if row["verdict"] != "unsure"]
    assert all((row["verdict"] == "irrelevant") == (true[key(row)] <= 1) for row in agreed)
    # At each end of each pack stands one; those that are relevant in truth agree with the flattery.
    assert len(moved) == sum(true[key(row)] <= 1 for row in found) - sum(r["verdict"] == "irrelevant" for r in found)
    refused = {r["reason"] for r in rows(job, "decisions", "part-*") if r["verdict"] == "unsure"}
    assert refused == {"judged_unsure"}


def passage_first(body: dict[str, Any]) -> bool:
    return body["messages"][1]["content"].startswith("=== PASSAGE")


def test_a_binary_judge_in_two_orders_goes_by_the_mean(tmp_path):
    def sure_of_no(body: dict[str, Any]) -> Reply:
        """In the second order every passage has .5 less."""
        query, passages = judging.texts(body)
        probability = judging.PROBABILITY[by_hash(query, passages[0][1])]
        return 200, {}, judging.yes_no(max(0.02, probability - 0.5 * passage_first(body)))

    with Loopback(sure_of_no) as server:
        job = judging.job(tmp_path / "a", server, judge={"prompt": "binary", "orders": 2})
        counts = advance(job)["judgments"].counts
        first, second = ([b for b in server.bodies if passage_first(b) == way] for way in (False, True))
    assert len(first) == len(second) == PAIRS
    assert all("REFERENCE" in body["messages"][1]["content"] for body in first)
    assert not any("REFERENCE" in body["messages"][1]["content"] for body in second)
    assert {body["messages"][0]["content"] for body in first + second} == {prompts.load("judge", "binary", None).system}
    assert counts["tokens"]["prompt"] == 100 * 2 * PAIRS
    true, found = truths(job), rows(job, "judgments")
    assert all(row["other_key"] not in (None, row["request_key"]) for row in found)
    for row in found:
        alone = judging.PROBABILITY[true[key(row)]]
        mean = (alone + max(0.02, alone - 0.5)) / 2
        assert row["score"] == pytest.approx(mean, abs=1e-6)
        assert row["verdict"] == ("relevant" if mean >= 0.5 else "irrelevant")
    assert any(judging.PROBABILITY[true[key(r)]] >= 0.5 and r["verdict"] == "irrelevant" for r in found), "it matters"


def test_no_reference_is_spoken_of_where_none_is_shown():
    prompt = prompts.load("judge", "binary", None)
    for shown in (True, False):
        made = judgments.request_about([PAIR], prompt, ENDPOINT, Judge(reference=shown))
        assert ("as the reference does" in made.body["messages"][1]["content"]) == shown


def test_where_one_of_two_orders_has_no_answer_neither_counts(tmp_path):
    def silent(body: dict[str, Any]) -> Reply:
        return (200, {}, completion("Maybe", "stop")) if passage_first(body) else judging.judge()(body)

    with Loopback(silent) as server:
        job = judging.job(tmp_path / "a", server, judge={"prompt": "binary", "orders": 2})
        advance(job)
    assert {(row["status"], row["verdict"], row["score"]) for row in rows(job, "judgments")} == {
        ("unparsable", "failed", None)
    }
    assert kept(job) == []


# ---------------------------------------------------------------- reference, evidence, probabilities

ENDPOINT = Endpoint(model="toy")  # type: ignore[call-arg]
PAIR = judgments.Pair("q", "d", "what sound", "the positive", "The cat meows.")


@pytest.mark.parametrize("mode", ["graded", "binary", "packed"])
def test_without_reference_no_positive_is_shown(mode):
    prompt = prompts.load("judge", mode, None)
    made = judgments.request_about([PAIR], prompt, ENDPOINT, Judge(reference=False))
    assert "the positive" not in json.dumps(made.body)
    assert "the positive" in json.dumps(judgments.request_about([PAIR], prompt, ENDPOINT, Judge()).body)
    assert ("REFERENCE" in made.body["messages"][1]["content"]) == (mode == "graded"), "graded shows an empty one"


def test_a_listwise_judge_needs_the_reference(tmp_path, server):
    job = judging.job(tmp_path / "a", server, judge={"prompt": "listwise", "reference": False})
    with pytest.raises(UserError, match=r"judge.reference: false, but prompt listwise is listwise"):
        advance(job)
    assert not (job.with_suffix(".job") / "corpus").exists(), "told before any work"


def said(content: str, judge: Judge, mode: str = "graded") -> judgments.Said:
    prompt = prompts.load("judge", mode, None)
    request = judgments.request_about([PAIR], prompt, ENDPOINT, judge)
    reply = llms.Reply(request, json.loads(completion(content)), "")
    return judgments.read([PAIR], [(0,)], [reply], prompt, judge)[0]


@pytest.mark.parametrize(
    ("content", "require", "downgrade"),
    [
        ('{"evidence": "Zebras bark", "grade": 3}', ("unparsable", "failed"), ("ok", "unsure")),
        ('{"evidence": "", "grade": 2}', ("unparsable", "failed"), ("ok", "unsure")),
        ('{"evidence": "the cat meows", "grade": 3}', ("ok", "relevant"), ("ok", "relevant")),
        ('{"evidence": "Zebras bark", "grade": 1}', ("ok", "irrelevant"), ("ok", "irrelevant")),
        ('{"evidence": "Zebras bark", "grade": 4}', ("unparsable", "failed"), ("unparsable", "failed")),
    ],
)
def test_a_relevant_grade_without_evidence_is_never_irrelevant(content, require, downgrade):
    for rule, expected in (("require", require), ("downgrade", downgrade)):
        found = said(content, Judge(evidence=rule))
        assert (found.parsed.status, found.verdict) == expected
    if downgrade == ("ok", "unsure"):
        assert found.parsed.value["grade"] >= 2
        assert "evidence" in found.parsed.detail


@pytest.mark.parametrize(
    ("bounds", "verdicts"),
    [
        ({}, ["irrelevant", "irrelevant", "relevant", "relevant"]),
        ({"irrelevant_p": 0.1}, ["irrelevant", "unsure", "relevant", "relevant"]),
        ({"irrelevant_p": 0.1, "relevant_p": 0.9}, ["irrelevant", "unsure", "unsure", "relevant"]),
        ({"irrelevant_p": 0.3, "relevant_p": 0.3}, ["irrelevant", "relevant", "relevant", "relevant"]),
    ],
)
def test_probabilities_of_yes_have_bounds(bounds, verdicts):
    judge = Judge(**bounds)
    assert [judgments.by_probability(p, judge) for p in judging.PROBABILITY.values()] == verdicts


def test_a_yes_that_is_not_surely_a_no_has_no_low_grade():
    assert [(one.verdict, one.parsed.value["grade"], one.parsed.value["probability"]) for one in (
        said("No", Judge(), "binary"),
        said("Yes", Judge(), "binary"),
    )] == [("irrelevant", 0, 0.0), ("relevant", 3, 1.0)]  # fmt: skip
    assert said("Maybe", Judge(), "binary").parsed.status == "unparsable"


# ---------------------------------------------------------------- false negatives


def test_false_negatives_are_relabelled_reported_or_dropped(tmp_path, server):
    found = {}
    for how in ("drop", "report", "relabel"):
        job = judging.job(tmp_path / how, server, judge={"false_negatives": how})
        advance(job, "decisions")
        found[how] = job
    true = truths(found["drop"])
    relevant = {pair for pair, grade in true.items() if grade >= 2}
    assert relevant
    negatives = {how: [(key(row), row["slot"]) for row in kept(job)] for how, job in found.items()}
    assert negatives["drop"] == negatives["report"] == negatives["relabel"], "they are negatives in none of them"
    assert not rows(found["drop"], "decisions", "*elled-*") + rows(found["drop"], "decisions", "false_negatives-*")
    reported = rows(found["report"], "decisions", "false_negatives-*")
    relabelled = rows(found["relabel"], "decisions", "relabelled-*")
    assert {key(row) for row in relabelled} == {key(row) for row in reported} == relevant
    assert {row["source"] for row in reported} == {"reported"}
    judged = {key(row): row for row in rows(found["relabel"], "judgments")}
    scores = {key(row): row["score"] for row in rows(found["relabel"], "candidates", "part-*")}
    for row in relabelled:
        assert (row["source"], row["rung"], row["relevance"]) == ("relabelled", "judge", true[key(row)])
        assert (row["request_key"], row["evidence"]) == tuple(judged[key(row)][n] for n in ("request_key", "evidence"))
        assert row["score"] == scores[key(row)]
    outcomes = rows(found["drop"], "decisions", "outcomes-*")
    assert {row["query_id"]: row["false_negatives"] for row in outcomes} == {
        query: sum(pair[0] == query for pair in relevant) for query in {pair[0] for pair in true}
    }


def test_what_is_relabelled_is_exported_as_a_positive(tmp_path, server):
    job = judging.job(tmp_path / "a", server, judge={"false_negatives": "relabel"})
    counts = advance(job)["export"].counts
    passages = {row["doc_id"]: f"{row['title']} {row['text']}" for row in rows(job, "corpus", "passages.parquet")}
    queries = {row["text"]: row["query_id"] for row in rows(job, "corpus", "queries.parquet")}
    more: dict[str, set[str]] = {}
    for row in rows(job, "decisions", "relabelled-*"):
        more.setdefault(row["query_id"], set()).add(passages[row["doc_id"]])
    export = job.with_suffix(".job") / "export"
    lines = [json.loads(line) for line in (export / "flagembedding.jsonl").read_text().splitlines()]
    assert lines
    for line in lines:
        extra = more.get(queries[line["query"]], set())
        assert extra < set(line["pos"])
        assert len(line["pos"]) == len(line["pos_scores"]) == 1 + len(extra)
        assert not set(line["pos"]) & set(line["neg"])
    traced = pq.read_table(export / "relabelled.parquet").to_pylist()
    assert counts["relabelled"] == len(traced) == len(rows(job, "decisions", "relabelled-*"))
    assert all(row["request_key"] for row in traced)


def test_a_query_with_too_many_false_negatives_is_set_aside_whole(tmp_path, server):
    job = judging.job(tmp_path / "a", server, judge={"false_negatives": "relabel", "max_false_negatives": 2})
    stamps = advance(job, "decisions")
    many = {row["query_id"] for row in rows(job, "decisions", "outcomes-*") if row["false_negatives"] > 2}
    few = {row["query_id"] for row in rows(job, "decisions", "outcomes-*") if row["false_negatives"] <= 2}
    assert many
    assert few
    reasons = {row["query_id"]: row["reason"] for row in rows(job, "decisions", "outcomes-*")}
    assert {reasons[query] for query in many} == {"too_many_false_negatives"}
    assert "too_many_false_negatives" not in {reasons[query] for query in few}
    assert stamps["decisions"].counts["queries"]["too_many_false_negatives"] == len(many)
    assert not many & {row["query_id"] for row in rows(job, "decisions", "relabelled-*")}


# ---------------------------------------------------------------- the gate of the export


def entry(run: Any, **more: Any) -> dict[str, Any]:
    prompt, endpoint = run.prompt("judge"), run.endpoint("judge")
    settings = {name: getattr(run.job.judge, name) for name in (*calibrate_judge.RESTS_ON, *calibrate_judge.PACKED)}
    return {
        **{"prompt": "graded", "prompt_version": prompt.version, "model": endpoint.model, "endpoint": "toy"},
        **{"on": "grade", "threshold": 1, "bound": 0.02, "level": 0.95, "reason": "", "pairs": 300, "queries": 60},
        **{"metrics": {"kappa": {"value": 0.61234, "low": 0.5, "high": 0.7}}},
        **settings,
        **more,
    }


def test_a_calibration_in_one_order_does_not_vouch_for_two(tmp_path, server):
    job = judging.job(tmp_path / "a", server, judge={"uncalibrated": False, "prompt": "binary", "orders": 2})
    with judging.opened(job) as run:
        for orders in (1, 2):
            one = entry(run, prompt="binary", on="score", threshold=0.6, orders=orders)
            store.write_json(run.folder.root / "calibration.json", {"format": 1, "calibrations": [one]})
            if orders == 2:
                calibrate_judge.gate(run)
                continue
            with pytest.raises(UserError, match=r"was calibrated with judge\.orders 1, and the job has 2"):
                calibrate_judge.gate(run)


@pytest.mark.parametrize(
    ("more", "why"),
    [
        ({}, ""),
        (None, "the judge toy with prompt graded is not calibrated"),
        ({"prompt_version": "0" * 16}, "is not calibrated"),
        ({"model": "other"}, "is not calibrated"),
        ({"endpoint": "elsewhere"}, "is not calibrated"),
        ({"threshold": None, "bound": None, "reason": "too weak"}, r"failed its calibration \(too weak\)"),
        ({"max_chars": 600}, "was calibrated with judge.max_chars 600, and the job has 4000"),
        ({"reference": False}, "was calibrated with judge.reference false, and the job has true"),
        ({"orders": 2}, ""),  # of packs, and graded has none
        ({"threshold": 0}, "is calibrated up to grade 0, and judge.irrelevant_to is 1"),
    ],
)
def test_an_uncalibrated_judge_does_not_export(tmp_path, server, more, why):
    job = judging.job(tmp_path / "a", server, judge={"uncalibrated": False})
    folder = job.with_suffix(".job")
    with judging.opened(job) as run:
        if more is not None:
            store.write_json(folder / "calibration.json", {"format": 1, "calibrations": [entry(run, **more)]})
        if not why:
            calibrate_judge.gate(run)
            assert calibrate_judge.card_facts(run) == {
                **{"golden pairs": 300, "queries of these": 60, "Cohen's kappa, irrelevant or not": 0.612},
                "false negatives among accepted, at most (95% bound)": 0.02,
            }
            return
        with pytest.raises(UserError, match=f"^export: .*{why}.*; measure it with miner calibrate judge .*--uncalibr"):
            calibrate_judge.gate(run)
        before = calibrate_judge.state(run)
        assert calibrate_judge.card_facts(run) is None
    with judging.opened(job, "judge.uncalibrated=true") as run:
        calibrate_judge.gate(run)
        assert calibrate_judge.state(run) != before, "the export is made anew"
    with judging.opened(job, "judge.enabled=false") as run:
        calibrate_judge.gate(run)


def test_the_export_stops_at_the_gate_and_goes_on_with_leave(tmp_path, server):
    job = judging.job(tmp_path / "a", server, judge={"uncalibrated": False})
    with pytest.raises(UserError, match="export: the judge toy with prompt graded is not calibrated"):
        advance(job)
    asked = len(server.bodies)
    assert advance(job, None, "judge.uncalibrated=true")["export"].counts["negatives"] > 0
    assert len(server.bodies) == asked
    assert "The judge was not calibrated" in (job.with_suffix(".job") / "export/README.md").read_text()
    with pytest.raises(UserError, match="is not calibrated"):
        advance(job)


@pytest.mark.parametrize("mode", ["binary", "packed"])
def test_a_judge_of_another_mode_is_calibrated_as_it_is_asked(tmp_path, server, mode):
    job = judging.job(tmp_path / "a", server, judge={"prompt": mode, "uncalibrated": False})
    file = golden(tmp_path)
    truth = {row["passage"]: row["grade"] for row in map(json.loads, file.read_text().splitlines())}
    server.reply = judging.judge(lambda _, passage: truth[passage])
    with judging.opened(job) as run:
        found = calibrate_judge.judge(run, file, "all", 0.2)
        assert found["confusion"][3][3] == 8
        assert found["status"] == {"ok": 32}
        calibrate_judge.record(run.folder.root, found)
        one = calibrate_judge.calibration_for(run)
        assert one is not None
        assert (one["on"], one["pack"]) == (("score", 8) if mode == "binary" else ("grade", 8))
        if mode == "packed":
            calibrate_judge.gate(run)
    assert len(server.bodies) == (32 if mode == "binary" else 8)
    if mode == "binary":
        assert one["threshold"] == pytest.approx(0.3)
        with (
            judging.opened(job) as run,
            pytest.raises(UserError, match=r"is calibrated up to score 0.3, and judge.irrelevant_p is 0.5"),
        ):
            calibrate_judge.gate(run)
        calibrate_judge.write_setting(job, found["chosen"])
        with judging.opened(job) as run:
            assert run.job.judge.irrelevant_p == found["chosen"]["threshold"]
            calibrate_judge.gate(run)


def test_the_keys_that_finished_steps_rest_on(tmp_path, server):
    job = judging.job(tmp_path / "a", server, judge={"prompt": "packed", "pack": 4, "orders": 2})
    advance(job, "judge")
    with judging.opened(job) as run:
        assert set(judge_steps.keys_used(run)) == set(run.ledger.keys())
