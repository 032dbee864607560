"""Whole runs against a server that fails, stops or talks nonsense."""

from __future__ import annotations

import json
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import toy
from loopback import Loopback, Reply, failure, grade, parts, sensible
from test_ledger import damaged
from test_statuses import LOST, ODD

from miner.store import tree_digest

pytestmark = pytest.mark.usefixtures("shared_vectors")

KEY = "sk-toy-secret"  # the key of conftest's environment


def rows(job: Path, step: str, pattern: str) -> list[dict[str, Any]]:
    paths = sorted((job.with_suffix(".job") / step).glob(pattern))
    return [row for path in paths for row in pq.read_table(path).to_pylist()]


def assert_no_key(job: Path, *shown: subprocess.CompletedProcess[str]) -> None:
    """In no byte of the job's folder, in no value of its Parquet files (which are packed), in nothing printed."""
    for done in shown:
        assert KEY not in done.stdout + done.stderr
    files = [path for path in job.parent.rglob("*") if path.is_file()]
    assert any(path.name.startswith("ledger.sqlite") for path in files)
    for path in files:
        assert KEY.encode() not in path.read_bytes(), path
        if path.suffix == ".parquet":
            assert KEY not in json.dumps(pq.read_table(path).to_pylist()), path


def toy_job(folder: Path, server: Loopback, **llm: Any) -> Path:
    folder.mkdir(exist_ok=True)
    settings = toy.llm(server.url, **{"attempts": 2, "concurrency": 4, **llm})
    return toy.job(folder, llm=settings, judge={"enabled": True, "pool": 5})


def one_line(done: subprocess.CompletedProcess[str]) -> str:
    """The last line of stderr, behind the log lines of the steps."""
    lines = done.stderr.splitlines()
    assert all(line[2] == ":" for line in lines[:-1]), done.stderr
    return lines[-1]


def test_a_run_that_gave_up_asks_only_the_missing_ones_next_time(tmp_path, miner):
    def ill(body: dict[str, Any]) -> Reply:
        return failure(503, f"no room for {KEY}") if "the cat" in parts(body)["QUERY"] else sensible(body)

    with Loopback(ill) as server:
        job = toy_job(tmp_path / "ill", server)
        first = miner("run", job, check=False)
        asked = [json.dumps(body, sort_keys=True) for body in server.bodies]
        lost = {text for text, times in Counter(asked).items() if times == 2}
        assert first.returncode == 3
        assert (
            f"warning: judge: {len(lost)} answers are missing ({len(lost)} times: HTTP 503: no room for ***)"
            in first.stdout
        )
        found = rows(job, "judgments", "judgments.parquet")
        assert {row["status"] for row in found} == {"ok", "missing"}
        missing = [row for row in found if row["status"] == "missing"]
        assert {row["query_id"] for row in missing} == {"q-cat-food"}
        assert {(row["verdict"], row["grade"], row["detail"]) for row in missing} == {
            ("failed", None, "HTTP 503: no room for ***")
        }
        assert len(missing) == len(lost) > 0
        server.reply = sensible
        assert miner("run", job, check=False).returncode == 3
        assert len(server.bodies) == len(asked)  # given up is given up, until somebody says otherwise
        second = miner("run", job, "--retry-failed")
        again = {json.dumps(body, sort_keys=True) for body in server.bodies[len(asked) :]}
        assert again == lost
        assert len(server.bodies) == len(asked) + len(lost)
        miner("run", toy_job(tmp_path / "well", server), fresh=True)
        assert server.peak <= 4
    assert tree_digest(job.with_suffix(".job") / "export") == tree_digest(tmp_path / "well/job.job/export")
    assert_no_key(job, first, second)


@pytest.mark.parametrize(
    "stop",
    [
        failure(401, f"Incorrect API key provided: {KEY}. You can find your API key at {'x' * 97}{KEY}"),
        failure(429, "You exceeded your current quota", code="insufficient_quota"),
    ],
)
def test_a_provider_that_stops_ends_the_run_with_one_line(tmp_path, miner, stop):
    served = iter(range(10))
    with Loopback(lambda body: stop if next(served, None) is None else sensible(body)) as server:
        job = toy_job(tmp_path / "stop", server)
        first = miner("--verbose", "run", job, check=False)
        assert first.returncode == 5
        assert one_line(first).startswith("miner: the provider refuses every request (HTTP 4")
        assert len(server.bodies) <= 10 + 4
        done = set(server.completed)
        assert len(done) == 10
        server.reply = sensible
        seen = len(server.bodies)
        second = miner("run", job)
        again = [json.dumps(body, sort_keys=True) for body in server.bodies[seen:]]
        assert not done & set(again)
        assert "candidates: fresh" in second.stderr
    assert_no_key(job, first, second)


def test_odd_answers_never_become_negatives(tmp_path, miner):
    """Every kind of odd answer and of failure, some of them in a real run: counted, named, and never kept."""
    given: dict[tuple[str, str], str] = {}
    kinds = [*ODD, *LOST]

    def reply(body: dict[str, Any]) -> Reply:
        texts = parts(body)
        pair = texts["QUERY"], texts["PASSAGE"]
        if pair not in given:
            given[pair] = kinds[len(given)] if len(given) < len(kinds) else "sound"
        name = given[pair]
        return (200, {}, ODD[name][2]) if name in ODD else LOST[name][1] if name in LOST else sensible(body)

    with Loopback(reply) as server:
        job = toy_job(tmp_path / "odd", server, attempts=1)
        first = miner("run", job, check=False)
        assert first.returncode == 3
        assert "judge: 4 answers are missing" in first.stdout
        asked = len(server.bodies)
        repairs = [body for body in server.bodies if len(body["messages"]) > 2]
        assert asked == 80 + len(repairs)
        assert len(repairs) == sum(status == "unparsable" and "evidence" not in why for status, why, _ in ODD.values())
        second = miner("run", job, "--retry-failed", check=False)
        assert second.returncode == 3
        again = {parts(body)["PASSAGE"] for body in server.bodies[asked:]}
        assert again == {passage for (_, passage), name in given.items() if name in LOST}
    texts = {row["doc_id"]: f"{row['title']} {row['text']}" for row in rows(job, "corpus", "passages.parquet")}
    queries = {row["query_id"]: row["text"] for row in rows(job, "corpus", "queries.parquet")}
    expected = {name: ODD[name][:2] for name in ODD} | {name: ("missing", LOST[name][0]) for name in LOST}
    found = rows(job, "judgments", "judgments.parquet")
    assert len(found) == 80
    for row in found:
        name = given[queries[row["query_id"]], texts[row["doc_id"]]]
        if name == "sound":
            assert row["status"] == "ok"
            continue
        status, detail = expected[name]
        assert (row["status"], row["verdict"], row["grade"], row["evidence"]) == (status, "failed", None, ""), name
        assert detail in row["detail"], name
    decided = {(row["query_id"], row["doc_id"]): row for row in rows(job, "decisions", "part-*")}
    for row in found:
        decision = decided[row["query_id"], row["doc_id"]]
        if row["status"] != "ok":
            assert (decision["kept"], decision["reason"]) == (False, f"judge_{row['status']}")
    assert any(decision["kept"] for decision in decided.values())
    assert_no_key(job, first, second)


def test_a_spoilt_ledger_ends_the_run_with_one_line(tmp_path, miner):
    with Loopback() as server:
        job = toy_job(tmp_path / "spoilt", server)
        (job.with_suffix(".job") / "stamps").mkdir(parents=True)
        damaged(job.with_suffix(".job") / "ledger.sqlite")
        done = miner("run", job, check=False)
    assert done.returncode == 2
    assert done.stdout == ""
    assert "cannot" in one_line(done)


def test_the_toy_judge_uses_every_grade():
    """The runs above mean something: of the sound answers some are relevant and some are not."""
    bodies = [{"messages": [{"content": f"=== QUERY x ===\nq{i}\n=== END x ==="}]} for i in range(50)]
    assert {grade(body) for body in bodies} == {0, 1, 2}
