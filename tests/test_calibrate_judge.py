"""`miner calibrate judge` end to end, beside a judge that knows the truth and some that do not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import toy
import yaml
from loopback import Loopback, Reply, completion, failure, parts

from miner import calibrate_judge, golden
from miner.errors import UserError
from miner.golden import Golden

pytestmark = pytest.mark.usefixtures("shared_vectors")

QUERIES, EACH = 60, 4  # so that the grade 0 alone, a pair of each query, bounds 5%


def pairs() -> list[dict[str, Any]]:
    """240 pairs, grade = number % 4, told by the passage itself."""
    return [
        {
            "query_id": f"q{i // EACH:03}",
            "query": f"question {i // EACH}",
            "positive": "the answer",
            "doc_id": f"d{i}",
            "passage": f"passage {i} of grade {i % 4}",
            "grade": i % 4,
        }
        for i in range(QUERIES * EACH)
    ]


def truth(body: dict[str, Any]) -> int:
    return int(parts(body)["PASSAGE"].split()[-1])


def answer(grade: int, body: dict[str, Any]) -> Reply:
    return 200, {}, completion(json.dumps({"evidence": parts(body)["PASSAGE"][:20], "grade": grade}))


def honest(body: dict[str, Any]) -> Reply:
    return answer(truth(body), body)


def blind(body: dict[str, Any]) -> Reply:
    return answer(0, body)


def job_of(folder: Path, server: Loopback, **judge: Any) -> Path:
    toy.write_jsonl(folder / "golden.jsonl", pairs())
    return toy.job(folder, llm=toy.llm(server.url, attempts=1), judge={"enabled": True, **judge})


def call(miner: Any, job: Path, *more: object, **options: Any) -> Any:
    return miner(
        "calibrate", "judge", job, "--golden", job.parent / "golden.jsonl", "--target-fn", 0.05, *more, **options
    )


def test_a_judge_that_copies_the_truth_passes(tmp_path, miner):
    with Loopback(honest) as server:
        job = job_of(tmp_path, server)
        found = json.loads(call(miner, job, "--json").stdout)
        assert len(server.bodies) == 240
        shown = call(miner, job).stdout
        assert len(server.bodies) == 240  # all of it is in the ledger
    metrics = {name: one["value"] for name, one in found["metrics"].items()}
    assert metrics == {
        **{"kappa": 1.0, "kappa_quadratic": 1.0, "precision_irrelevant": 1.0, "recall_irrelevant": 1.0},
        **{"yield": 0.5, "false_negatives": 0.0, "auc_grade": 1.0},
    }
    assert found["confusion"] == [[60 if j == i else 0 for j in range(5)] for i in range(4)]
    assert found["chosen"]["threshold"] == 1.0
    assert found["chosen"]["accepted"] == 120
    assert found["chosen"]["bound"] <= 0.05
    assert [one["observed"]["value"] for one in found["reliability"]] == [0.0, 0.0, 1.0, 1.0]
    assert "grade <= 1 keeps false negatives at or below 5.0%" in shown
    assert "240 golden pairs of 60 queries, 120 relevant" in shown
    folder = job.with_suffix(".job")
    kept = calibrate_judge.calibration_of(folder, found["prompt_version"], "toy")
    assert kept is not None
    assert kept["golden_digest"] == found["golden_digest"]
    assert (kept["threshold"], kept["target"], kept["accepted"], kept["reason"]) == (1.0, 0.05, 120, "")
    assert kept["metrics"]["kappa"]["value"] == 1.0
    assert calibrate_judge.calibration_of(folder, found["prompt_version"], "other") is None
    assert calibrate_judge.calibration_of(folder, "0" * 16, "toy") is None
    assert calibrate_judge.calibration_of(folder, found["prompt_version"], "toy", endpoint="elsewhere") is None


def test_a_judge_that_always_says_0_is_refused(tmp_path, miner):
    with Loopback(blind) as server:
        job = job_of(tmp_path, server)
        before = job.read_bytes()
        done = call(miner, job, "--write", check=False)
    assert done.returncode == 1
    assert "the judge is too weak: 120 of 240 accepted pairs are relevant at grade <= 0, 50.0%" in done.stdout
    assert "undefined (one class only)" not in done.stdout.split("confusion")[1]
    assert job.read_bytes() == before
    (kept,) = calibrate_judge.calibrations(job.with_suffix(".job"))
    assert (kept["threshold"], kept["bound"]) == (None, None)
    assert kept["reason"].startswith("120 of 240")


def test_a_judge_that_is_right_about_0_only_sets_the_job_file(tmp_path, miner):
    def coarse(body: dict[str, Any]) -> Reply:
        return answer({0: 0, 1: 1, 2: 1, 3: 3}[truth(body)], body)

    with Loopback(coarse) as server:
        job = job_of(tmp_path, server)
        shown = call(miner, job).stdout
        assert "the job accepts up to 1: set judge.irrelevant_to, or --write does" in shown
        assert "irrelevant_to" not in yaml.safe_load(job.read_text())["judge"]
        call(miner, job, "--write")
        assert yaml.safe_load(job.read_text())["judge"]["irrelevant_to"] == 0
        again = json.loads(call(miner, job, "--json").stdout)
        assert len(server.bodies) == 240
    assert [one["state"] for one in again["thresholds"]] == ["passes", "fails"]
    assert again["metrics"]["false_negatives"]["value"] == 0.0


def test_failed_answers_are_not_accepted(tmp_path, miner):
    def half(body: dict[str, Any]) -> Reply:
        return honest(body) if int(parts(body)["QUERY"].split()[-1]) % 2 else (200, {}, completion("who knows"))

    with Loopback(half) as server:
        job = job_of(tmp_path, server)
        found = json.loads(call(miner, job, "--json", "--set", "judge.relevant_from=3", check=False).stdout)
    assert found["status"] == {"ok": 120, "unparsable": 120}
    assert [row[4] for row in found["confusion"]] == [30] * 4
    assert found["metrics"]["yield"]["value"] == pytest.approx(60 / 240)
    assert found["metrics"]["recall_irrelevant"]["value"] == pytest.approx(60 / 180)
    assert found["metrics"]["kappa_quadratic"]["value"] == 1.0  # of what was answered


def test_missing_answers_decide_nothing(tmp_path, miner):
    with Loopback(lambda body: failure(500) if truth(body) == 3 else honest(body)) as server:
        job = job_of(tmp_path, server)
        done = call(miner, job, check=False)
        assert done.returncode == 3
        assert "60 answers are missing (HTTP 500" in done.stdout
        assert calibrate_judge.calibrations(job.with_suffix(".job")) == []
        server.reply = honest
        assert "keeps false negatives" in call(miner, job, "--retry-failed").stdout


def test_splits_and_ungraded_pairs(tmp_path, miner):
    with Loopback(honest) as server:
        job = job_of(tmp_path, server)
        path = tmp_path / "golden.jsonl"
        miner("golden", "split", path)
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        graded = [row for row in rows if row["split"] == "dev"]
        for row in graded[:90]:
            row["grade"] = None
        toy.write_jsonl(path, rows)
        done = call(miner, job, "--split", "dev", "--json", check=False)
        found = json.loads(done.stdout)
        assert done.returncode == 1
        assert (found["pairs"], found["ungraded"]) == (30, 90)
        assert "too few pairs" in found["reason"]
        assert len(server.bodies) == 30
        shown = call(miner, job, "--split", "dev", check=False).stdout
        assert "not shown yet: 0 of " in shown
        assert "90 more not graded yet" in shown


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (["--target-fn", "1.5"], "--target-fn is 1.5; it lies between 0 and 1"),
        (["--golden", "nowhere.jsonl"], "nowhere.jsonl: no such file"),
        (["--split", "dev"], "no pair of split dev"),
        (["--set", "judge.enabled=false"], "judge.enabled is false"),
        (["--split", "train"], "--split"),
    ],
)
def test_mistakes_are_one_line(tmp_path, miner, change, words):
    with Loopback() as server:
        job = job_of(tmp_path, server)
        done = call(miner, job, *change, check=False)
        assert server.bodies == []
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert words in done.stderr


def test_a_score_is_used_where_the_judge_gives_one():
    rows = [{"grade": 0 if i % 10 else 3, "status": "ok", "score": (i % 10) / 10} for i in range(1000)]
    graded = [Golden(f"q{i}", "q", "", "d", "p", 3 if i % 10 >= 8 else 0) for i in range(1000)]
    found = calibrate_judge.report(graded, rows, 2, 1, 0.03, 1)
    assert found["metrics"]["auc_score"]["value"] == 1.0
    assert found["chosen"]["on"] == "score"
    assert found["chosen"]["threshold"] == 0.7
    assert [one["n"] for one in found["reliability"]] == [100] * 10
    logits = calibrate_judge.report(graded, [{**row, "score": 10 * row["score"] - 5} for row in rows], 2, 1, 0.03, 1)
    assert logits["chosen"]["threshold"] == 2.0
    assert sum(one["n"] for one in logits["reliability"]) == 1000


def test_calibrations_of_several_judges_stand_side_by_side(tmp_path):
    found = {
        **{"prompt": "p", "prompt_version": "v", "model": "m", "endpoint": "a", "relevant_from": 2, "max_chars": 9},
        **{"reference": True, "evidence": "require", "pack": 8, "orders": 1},
        **{"pairs": 1, "queries": 1, "golden": "g", "golden_digest": "0", "split": "test", "reason": "", "metrics": {}},
        **{"target": 0.03, "level": 0.95, "thresholds": []},
        "chosen": {"on": "grade", "threshold": 1, "bound": 0.01, "accepted": 300, "false_negatives": 0},
    }
    for endpoint, bound in (("b", 0.02), ("a", 0.029), ("a", 0.01)):
        chosen = {**found["chosen"], "bound": bound}
        calibrate_judge.record(tmp_path, {**found, "endpoint": endpoint, "chosen": chosen})
    assert [(one["endpoint"], one["bound"]) for one in calibrate_judge.calibrations(tmp_path)] == [
        ("a", 0.01),
        ("b", 0.02),
    ]
    worst = calibrate_judge.calibration_of(tmp_path, "v", "m")
    assert worst is not None
    assert worst["endpoint"] == "b"
    calibrate_judge.record(tmp_path, {**found, "endpoint": "c", "chosen": None, "reason": "weak"})
    worst = calibrate_judge.calibration_of(tmp_path, "v", "m")
    assert worst is not None
    assert worst["threshold"] is None
    for broken in (
        "{",
        "[]",
        '{"format": 2, "calibrations": [{"prompt_version": "v", "model": "m", "endpoint": "e"}]}',
    ):
        (tmp_path / "calibration.json").write_text(broken)
        with pytest.raises(UserError, match="not a calibration file of this version"):
            calibrate_judge.calibrations(tmp_path)


def test_a_golden_file_that_nobody_graded_is_refused(tmp_path):
    golden.write(tmp_path / "g.jsonl", [Golden("q", "q", "", "d", "p")])
    with pytest.raises(UserError, match="none of its 1 pairs is graded yet; miner golden label"):
        calibrate_judge.graded(tmp_path / "g.jsonl", "all")
