"""The whole job as a user runs it: real encoder, real FAISS, a loopback LLM server."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import toy
from conftest import shared
from loopback import Loopback, grade, parts, sensible

from miner.store import tree_digest

pytestmark = pytest.mark.usefixtures("shared_vectors")

JUDGED = {"judge": {"enabled": True, "pool": 5}, "generator": {"enabled": True, "max_share": 0.4}}


def jsonl(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def rows_of(folder: Path, step: str) -> list[dict]:
    paths = sorted((folder / "job.job" / step).glob("part-*"))
    return [row for path in paths for row in pq.read_table(path).to_pylist()]


def test_mining_alone_exports_unjudged_negatives(tmp_path, miner):
    miner("run", toy.job(tmp_path))
    rows = jsonl(tmp_path / "job.job/export/flagembedding.jsonl")
    assert len(rows) == 16
    assert all(len(row["neg"]) == len(row["neg_scores"]) == 3 for row in rows)
    cat = next(row for row in rows if row["query"] == "what sound does a cat make")
    assert cat["pos"] == ["cat The cat meows when it wants attention."]
    assert not any("meows" in text for text in cat["neg"]), "a copy of the positive is no negative"
    assert cat["neg_scores"] == sorted(cat["neg_scores"], reverse=True)


def test_every_candidate_is_accounted_for(tmp_path, miner):
    miner("run", toy.job(tmp_path))
    found, decided = rows_of(tmp_path, "candidates"), rows_of(tmp_path, "decisions")
    assert [(r["query_id"], r["doc_id"]) for r in decided] == [(r["query_id"], r["doc_id"]) for r in found]
    assert all(row["kept"] == (row["reason"] == "") for row in decided)
    assert {row["retriever"] for row in found} == {"dense"}
    by_query = [row["rank"] for row in found if row["query_id"] == "q-cat-food"]
    assert by_query == list(range(1, len(by_query) + 1))


def test_only_judged_irrelevant_passages_become_negatives(tmp_path, miner):
    with Loopback() as server:
        miner("run", toy.job(tmp_path, llm=toy.llm(server.url), **JUDGED))
        bodies = list(server.bodies)
    assert len(bodies) == len({json.dumps(b, sort_keys=True) for b in bodies}), "nothing is asked twice"
    judged = {(parts(b)["QUERY"], parts(b)["PASSAGE"]): grade(b) for b in bodies if "FACET" not in parts(b)}
    rows = jsonl(tmp_path / "job.job/export/flagembedding.jsonl")
    assert rows
    assert all(judged[row["query"], text] <= 1 for row in rows for text in row["neg"])
    sources = set(pq.read_table(tmp_path / "job.job/export/provenance.parquet").column("source").to_pylist())
    assert sources == {"mined", "synthetic"}


def test_a_second_run_asks_nothing_and_redoes_nothing(tmp_path, miner):
    with Loopback() as server:
        job = toy.job(tmp_path, llm=toy.llm(server.url), **JUDGED)
        miner("run", job)
        asked, files = len(server.bodies), tree_digest(tmp_path / "job.job/export")
        again = miner("run", job)
        assert len(server.bodies) == asked
    assert again.stderr.count(": fresh") == 10
    assert tree_digest(tmp_path / "job.job/export") == files


def test_two_folders_give_the_same_bytes(tmp_path, miner):
    digests = []
    with Loopback() as server:
        for name in ("one", "two"):
            (tmp_path / name).mkdir()
            job = toy.job(tmp_path / name, llm=toy.llm(server.url), vector_cache=None, **JUDGED)
            miner("run", job, fresh=True)
            digests.append(tree_digest(tmp_path / name / "job.job/export"))
    assert digests[0] == digests[1]
    assert len(digests[0]) == 5


def test_a_changed_margin_redoes_only_what_depends_on_it(tmp_path, miner):
    with Loopback() as server:
        job = toy.job(tmp_path, llm=toy.llm(server.url), **JUDGED)
        miner("run", job)
        before = len(server.bodies)
        pooled = {json.dumps(b, sort_keys=True) for b in server.bodies}
        again = miner("run", job, "--set", "mining.margin_relative=0.2")
        new = {json.dumps(b, sort_keys=True) for b in server.bodies[before:]}
    assert "corpus: fresh" in again.stderr
    assert "vectors: fresh" in again.stderr
    assert "candidates: changed: mining.margin_relative" in again.stderr
    assert not new & pooled


def test_nothing_is_generated_while_judge_answers_are_missing(tmp_path, miner):
    def broken_judge(body: dict) -> tuple[int, dict[str, str], bytes]:
        return sensible(body) if "FACET" in parts(body) else (400, {}, b"{}")

    with Loopback(broken_judge) as server:
        job = toy.job(tmp_path, llm=toy.llm(server.url, attempts=1), **JUDGED)
        assert miner("run", job, check=False).returncode == 3
        assert server.bodies
        assert not any("FACET" in parts(body) for body in server.bodies)
        server.reply = sensible
        miner("run", job, "--retry-failed", check=False)  # one try each; a busy machine may lose a connection
        miner("run", job, "--retry-failed")
        assert any("FACET" in parts(body) for body in server.bodies)


@pytest.mark.parametrize(
    ("structured", "asks"), [("json_schema", "json_schema"), ("json_object", "json_object"), ("none", None)]
)
def test_the_form_of_the_answer_is_asked_for_as_the_job_says(tmp_path, miner, structured, asks):
    with Loopback() as server:
        miner("judge", toy.job(tmp_path, llm=toy.llm(server.url, structured=structured), judge={"enabled": True}))
        assert {body.get("response_format", {}).get("type") for body in server.bodies} == {asks}
        assert all(b["response_format"]["json_schema"]["strict"] for b in server.bodies if asks == "json_schema")


def test_an_unknown_grade_band_is_unsure_and_not_exported(tmp_path, miner):
    with Loopback() as server:
        miner("run", toy.job(tmp_path, llm=toy.llm(server.url), judge={"enabled": True, "pool": 5, "irrelevant_to": 0}))
    rows = rows_of(tmp_path, "decisions")
    unsure = [row for row in rows if row["grade"] == 1]
    assert unsure
    assert {row["reason"] for row in unsure} == {"judged_unsure"}


@pytest.mark.parametrize(
    ("name", "passages", "queries"),
    [
        ("xquad-zh", 240, 714),
        pytest.param("cranfield", 1398, 135, marks=pytest.mark.slow),
        pytest.param("scifact", 5183, 809, marks=pytest.mark.slow),
    ],
)
def test_real_data_without_judge(tmp_path, miner, name, passages, queries):
    path = shared(name)
    job = toy.job(tmp_path, data={"path": str(path)}, mining={"depth": 50, "negatives": 5, "block": 1024})
    summary = json.loads(miner("run", job, "--json", timeout=1800).stdout)
    assert summary["steps"]["corpus"]["passages"] == passages
    assert summary["steps"]["corpus"]["queries"] == queries
    outcomes = summary["steps"]["decisions"]["queries"]
    assert sum(outcomes.values()) == queries
