"""Mining with several retrievers, filters, caps and earlier jobs, as a user runs it; no LLM service, no torch."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import toy
import yaml
from loopback import Loopback

from miner.store import tree_digest

pytestmark = pytest.mark.usefixtures("shared_vectors")

DENSE, BM25 = {"kind": "dense"}, {"kind": "bm25", "language": "en"}
RUN = {"kind": "run", "name": "other", "file": "other.run"}
FUSIONS = {
    "rrf": {"fusion": "rrf", "retrievers": [DENSE, BM25, RUN]},
    "weighted": {"fusion": "weighted", "retrievers": [DENSE, {**BM25, "weight": 2.0}, RUN]},
    "union": {"fusion": "union", "retrievers": [{**DENSE, "quota": 1}, {**BM25, "quota": 1}, {**RUN, "quota": 2}]},
}
STEPS = ("retrieved_dense", "retrieved_bm25", "retrieved_other", "candidates", "decisions", "export")
# Dies, as by a power cut, at the n-th file that the store would put in place.
KILLED = """
import os, sys
from miner import store
left, replace = [int(sys.argv[1])], os.replace
def dying(*args):
    left[0] -= 1
    if left[0] < 0:
        os._exit(137)
    replace(*args)
store.os.replace = dying
sys.argv = ["miner", *sys.argv[2:]]
from miner.cli import main
main()
"""


def mixed(folder: Path, fusion: str = "rrf", **more: Any) -> Path:
    """A job over dense, bm25 and a TREC run that lists twelve passages at random."""
    folder.mkdir(exist_ok=True)
    toy.beir(folder / "data")
    rng = random.Random(1)
    docs = [json.loads(line)["_id"] for line in (folder / "data/corpus.jsonl").read_text().splitlines()]
    queries = [json.loads(line)["_id"] for line in (folder / "data/queries.jsonl").read_text().splitlines()]
    lines = [f"{q} Q0 {d} {r} {20 - r} x\n" for q in queries for r, d in enumerate(rng.sample(docs, 12), 1)]
    (folder / "other.run").write_text("".join(lines))
    return toy.job(folder, mining={**FUSIONS[fusion], **more.pop("mining", {})}, **more)


def folder_of(job: Path) -> Path:
    return job.with_suffix(".job")


def rows(job: Path, step: str, name: str = "part") -> list[dict[str, Any]]:
    paths = sorted((folder_of(job) / step).glob(f"{name}-*.parquet"))
    return [row for path in paths for row in pq.read_table(path).to_pylist()]


def ids(job: Path, name: str, column: str) -> list[str]:
    return pq.read_table(folder_of(job) / f"corpus/{name}.parquet").column(column).to_pylist()


def digests(job: Path, steps: tuple[str, ...] = STEPS) -> dict[str, dict[str, str]]:
    return {step: tree_digest(folder_of(job) / step) for step in steps}


def states(done: subprocess.CompletedProcess[str]) -> dict[str, str]:
    """Step -> "fresh" or why it ran."""
    lines = [line.partition(" ")[2] for line in done.stderr.splitlines()]  # behind the time of day
    found = [line.split(": ", 1) for line in lines if ": " in line]
    return {step: why for step, why in found if " " not in step and not why.startswith("done in")}


def ran(done: subprocess.CompletedProcess[str]) -> set[str]:
    starts = ("not done yet", "changed: ", "its files", "answers are")
    return {step for step, why in states(done).items() if why.startswith(starts)}


def refused(done: subprocess.CompletedProcess[str], *words: str) -> None:
    """Exit code 2; the last line says it all, and there is no traceback."""
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    said = [line for line in done.stderr.splitlines() if line.startswith("miner: ")]
    assert done.stderr.splitlines()[-1:] == said, done.stderr
    assert all(word in said[0] for word in words), said


# ---------------------------------------------------------------- several retrievers


@pytest.mark.parametrize("fusion", FUSIONS)
def test_found_by_is_what_the_retrievers_listed(tmp_path, miner, fusion):
    job = mixed(tmp_path / "job", fusion)
    miner("run", job)
    docs, queries = ids(job, "passages", "doc_id"), ids(job, "queries", "query_id")
    listed = {
        (queries[row["query"]], docs[row["passage"]], name): (row["rank"], row["score"])
        for name in ("dense", "bm25", "other")
        for row in rows(job, f"retrieved_{name}")
    }
    found = {
        (row["query_id"], row["doc_id"], one["retriever"]): (one["rank"], one["score"])
        for row in rows(job, "candidates")
        for one in row["found_by"]
    }
    assert found == listed
    assert {name for _, _, name in listed} == {"dense", "bm25", "other"}
    by_query: dict[str, list[dict[str, Any]]] = {}
    for row in rows(job, "candidates"):
        by_query.setdefault(row["query_id"], []).append(row)
    for mine in by_query.values():
        assert [row["rank"] for row in mine] == list(range(1, len(mine) + 1))
        assert len({row["doc_id"] for row in mine}) == len(mine)
        assert all(row["retriever"] in {one["retriever"] for one in row["found_by"]} for row in mine)
        pool = [row["retriever"] for row in mine if row["pool_rank"]]
        assert len(pool) == 3
        if fusion == "union":
            assert pool.count("dense") <= 1
            assert pool.count("bm25") <= 1
            assert pool.count("other") <= 2
            best = [min(one["rank"] for one in row["found_by"]) for row in mine]
            assert best == sorted(best)
    if fusion == "union":
        assert "quota" in {row["reason"] for row in rows(job, "candidates")}


def killed(job: Path, environment: dict[str, str], writes: int) -> int:
    command = [sys.executable, "-c", KILLED, str(writes), "run", str(job)]
    return subprocess.run(command, capture_output=True, env=environment, timeout=120).returncode


@pytest.mark.parametrize("fusion", FUSIONS)
def test_killed_at_any_write_it_ends_with_the_same_bytes(tmp_path, miner, environment, fusion):
    whole = mixed(tmp_path / "whole", fusion, mining={"max_uses": 2}, vector_cache=None)
    miner("run", whole, fresh=True)
    broken = mixed(tmp_path / "broken", fusion, mining={"max_uses": 2}, vector_cache=None)
    rng = random.Random(fusion)
    deaths = [killed(broken, environment, rng.randrange(1, 14)) for _ in range(4)]
    assert deaths[0] == 137
    miner("run", broken)
    assert digests(broken) == digests(whole)


def test_a_new_retriever_alone_is_searched(tmp_path, miner):
    job = mixed(tmp_path / "job", mining={"retrievers": [DENSE, RUN]})
    miner("run", job)
    toy.job(tmp_path / "job", mining={"retrievers": [DENSE, RUN, BM25]})
    assert ran(miner("run", job)) == {"retrieved_bm25", "candidates", "decisions", "export"}


def test_a_changed_run_file_is_read_again_and_nothing_else(tmp_path, miner):
    job = mixed(tmp_path / "job")
    miner("run", job)
    lines = (tmp_path / "job/other.run").read_text().splitlines(keepends=True)
    (tmp_path / "job/other.run").write_text("".join(lines[1:]))
    assert ran(miner("run", job)) == {"retrieved_other", "candidates", "decisions", "export"}


@pytest.mark.parametrize("setting", ["mining.margin_relative=0.2", "mining.max_uses=2", "mining.fusion=weighted"])
def test_what_the_lists_do_not_depend_on_searches_nothing(tmp_path, miner, setting):
    job = mixed(tmp_path / "job")
    miner("run", job)
    again = miner("run", job, "--set", setting)
    # Where the pool comes out the same, so do the candidates, and what follows stays fresh.
    assert {"candidates"} <= ran(again) <= {"candidates", "decisions", "export"}
    assert setting.split("=")[0] in states(again)["candidates"] or "fusion" in states(again)["candidates"]


# ---------------------------------------------------------------- filters

PASSAGES = [
    ("pos", "The cat meows when it wants attention from people", "a"),
    ("near", "The cat meows when it wants attention from people at home", "b"),
    ("answer", "At night the tom meows loudly in the yard", "c"),
    ("sibling", "Cats purr when they are content on a lap", "a"),
    ("twin", "A kitten cries for its mother with a thin voice", "d"),
    ("one", "Dogs bark at strangers who come to the gate", "e"),
    ("two", "Dogs bark at strangers who come to the gate of it", "f"),
]
FILTERS: list[tuple[dict[str, Any], dict[str, str]]] = [
    ({"near_duplicate_jaccard": 0.6}, {"near": "near_positive", "two|one": "near_better"}),
    ({"near_duplicate_cosine": 0.93}, {"near": "near_positive", "two|one": "near_better"}),
    ({"answers": "answers"}, {"answer": "answer"}),
    ({"group": "group"}, {"sibling": "sibling"}),
    ({"twin_queries": 0.8}, {"twin": "positive_of_twin"}),
]


@pytest.mark.parametrize(("setting", "expected"), FILTERS, ids=[next(iter(setting)) for setting, _ in FILTERS])
def test_each_filter_drops_what_it_is_for(tmp_path, miner, setting, expected):
    data = tmp_path / "data"
    toy.write_jsonl(data / "corpus.jsonl", [{"_id": i, "title": "", "text": t, "group": g} for i, t, g in PASSAGES])
    asked = [
        {"_id": "q", "text": "what sound does a cat make", "answers": ["meows"]},
        {"_id": "q2", "text": "what sound does a cat make?", "answers": ["a thin voice"]},
    ]
    toy.write_jsonl(data / "queries.jsonl", asked)
    (data / "qrels").mkdir()
    (data / "qrels/train.tsv").write_text("query-id\tcorpus-id\tscore\nq\tpos\t1\nq2\ttwin\t1\n")
    job = toy.job(tmp_path, filters=setting)
    miner("run", job)
    reasons = {row["doc_id"]: row["reason"] for row in rows(job, "candidates") if row["query_id"] == "q"}
    for names, reason in expected.items():
        assert reason in [reasons[name] for name in names.split("|")], reasons
    kinds = {"near_positive", "near_better", "answer", "sibling", "positive_of_twin"}
    assert {reason for reason in reasons.values() if reason in kinds} == set(expected.values())
    without = miner("run", job, "--set", f"filters.{next(iter(setting))}=null")
    assert ran(without) <= {"candidates", "decisions", "export"}
    assert not kinds & {row["reason"] for row in rows(job, "candidates")}


# ---------------------------------------------------------------- max_uses, index


def test_max_uses_holds_over_blocks_and_a_resume(tmp_path, miner):
    job = mixed(tmp_path / "job", mining={"block": 3, "max_uses": 2})
    miner("run", job)
    found = rows(job, "candidates")
    pooled = [row["doc_id"] for row in found if row["pool_rank"]]
    assert max(pooled.count(doc) for doc in pooled) == 2
    assert "max_uses" in {row["reason"] for row in found}
    whole = digests(job)
    # As a kill leaves it: the first blocks done in the work folder, no stamp.
    folder = folder_of(job)
    miner("run", job, "--until", "mine")
    work = folder / ".work" / work_name(folder)
    work.parent.mkdir(exist_ok=True)
    (folder / "candidates").rename(work)
    (folder / "stamps/candidates.json").unlink()
    for path in sorted(work.glob("part-*"))[2:]:
        path.unlink()
    kept = {path.name: path.stat().st_ino for path in work.glob("part-*")}
    miner("run", job)
    assert digests(job) == whole
    assert {name: (folder / "candidates" / name).stat().st_ino for name in kept} == kept


def work_name(folder: Path) -> str:
    from miner.store import digest

    inputs = json.loads((folder / "stamps/candidates.json").read_text())["inputs"]
    return f"candidates-{digest(inputs)[:16]}"


@pytest.mark.parametrize("kind", ["flat", "hnsw", "ivf-flat", "ivf-pq"])
def test_every_index_runs_and_says_its_recall(tmp_path, miner, kind):
    job = toy.job(tmp_path, mining={"depth": 5, "index": {"kind": kind}})
    miner("run", job)
    counts = json.loads((folder_of(job) / "manifest.json").read_text())["steps"]["index"]["counts"]
    # Lists need more passages to learn from than the toy corpus has: flat takes their place, and says so.
    assert counts["kind"] == (kind if kind in ("flat", "hnsw") else "flat")
    assert kind in counts["reason"]
    assert 0.95 <= counts["recall"] <= 1
    assert rows(job, "candidates")


# ---------------------------------------------------------------- an earlier job


def test_a_second_job_takes_answers_and_candidates_of_the_first(tmp_path, miner):
    with Loopback() as server:
        judged = {"llm": toy.llm(server.url), "judge": {"enabled": True, "pool": 5}}
        first = toy.job(tmp_path, **judged)
        miner("run", first)
        asked = len(server.bodies)
        assert asked
        (tmp_path / "second").mkdir()
        second = toy.job(
            tmp_path / "second",
            **judged,
            previous=str(folder_of(first)),
            encoder={"max_length": 32},
            mining={"retrievers": [{"kind": "run", "name": "old", "file": str(folder_of(first))}]},
        )
        done = miner("run", second)
        assert len(server.bodies) == asked, "the first job paid for these"
        assert "answers taken over" in done.stderr
        old = {(row["query_id"], row["doc_id"]) for row in rows(first, "candidates")}
        assert {(row["query_id"], row["doc_id"]) for row in rows(second, "candidates")} <= old
        both = [{"kind": "run", "name": "old", "file": str(folder_of(first))}, BM25]
        toy.job(
            tmp_path / "second",
            **judged,
            previous=str(folder_of(first)),
            encoder={"max_length": 32},
            mining={"retrievers": both, "fusion": "union"},
        )
        miner("run", second)
        found = {(row["query_id"], row["doc_id"]) for row in rows(second, "candidates")}
        assert old <= found
        bm25 = {(row["query"], row["passage"]) for row in rows(second, "retrieved_bm25")}
        listed = {(row["query"], row["passage"]) for row in rows(second, "retrieved_old")}
        assert len(found) == len(bm25 | listed)


def test_a_second_encoder_asks_only_what_the_first_did_not(tmp_path, miner):
    with Loopback() as server:
        judged = {"llm": toy.llm(server.url), "judge": {"enabled": True, "pool": 5}}
        first = toy.job(tmp_path, **judged)
        miner("run", first)
        bodies = {json.dumps(body, sort_keys=True) for body in server.bodies}
        start = len(server.bodies)
        (tmp_path / "second").mkdir()
        second = toy.job(tmp_path / "second", **judged, previous=str(folder_of(first)), encoder={"max_length": 8})
        miner("run", second)
        later = {json.dumps(body, sort_keys=True) for body in server.bodies[start:]}
    assert not later & bodies


# ---------------------------------------------------------------- calibrate margin

COMMENTED = """\
# the corpus
data:
  path: data  # beside this file
encoder: {encoder}
mining:
  depth: 10
  negatives: 3   # three
  margin_relative: 0.05  # the default
  block: 5
judge:
  enabled: false
"""


def commented(folder: Path) -> Path:
    toy.beir(folder / "data")
    job = folder / "job.yaml"
    job.write_text(COMMENTED.format(encoder=yaml.safe_dump(toy.MINILM, default_flow_style=True, width=999).strip()))
    return job


def golden(folder: Path, relevant: bool = False) -> Path:
    """Every pair judged: the animal's other passages as `relevant` says, all the rest irrelevant."""
    lines = ["query_id\tdoc_id\trelevance"]
    for query in toy.ANIMALS:
        for kind in ("voice", "food"):
            for doc in toy.ANIMALS:
                for what in ("voice", "food", "sleep"):
                    grade = int(relevant and query == doc and what != kind)
                    if (query, kind) != (doc, what):
                        lines.append(f"q-{query}-{kind}\t{doc}-{what}\t{grade}")
    path = folder / "golden.tsv"
    path.write_text("\n".join(lines) + "\n")
    return path


def calibrate(miner, job: Path, *args: object, target: object = 0.3, check: bool = True) -> Any:
    return miner("calibrate", "margin", job, "--target-fn", target, *args, check=check)


@pytest.mark.parametrize("relevant", [False, True])
def test_the_setting_is_written_and_comments_stay(tmp_path, miner, relevant):
    job = commented(tmp_path)
    before = job.read_text()
    found = json.loads(calibrate(miner, job, "--golden", golden(tmp_path, relevant), "--json").stdout)
    assert found["queries"] == 16
    assert found["chosen"], found["lacking"]
    assert found["chosen"]["upper"] <= 0.3
    after = job.read_text()
    for comment in ("# the corpus", "# beside this file", "# three"):
        assert comment in after
    mining = yaml.safe_load(after)["mining"]
    kind = found["chosen"]["kind"]
    assert mining["rank_min"] == found["chosen"]["rank_min"]
    assert mining[f"margin_{kind}"] == found["chosen"]["margin"]
    assert [mining["margin_absolute"], mining["margin_relative"]].count(None) == 1
    untouched = [line for line in before.splitlines() if "margin" not in line and "rank_min" not in line]
    assert [line for line in after.splitlines() if line in untouched] == untouched
    assert ran(miner("run", job)) <= {"candidates", "decisions", "export"}
    again = json.loads(calibrate(miner, job, "--golden", tmp_path / "golden.tsv", "--json").stdout)
    assert again == found, "what was written does not change what is measured"
    assert job.read_text() == after


def test_no_write_leaves_the_file(tmp_path, miner):
    job = commented(tmp_path)
    before = job.read_bytes()
    done = calibrate(miner, job, "--golden", golden(tmp_path), "--no-write")
    assert done.stdout
    assert job.read_bytes() == before


def test_hidden_positives_stand_in_for_judgments(tmp_path, miner):
    job = commented(tmp_path)
    with (tmp_path / "data/qrels/train.tsv").open("a") as qrels:
        for name in toy.ANIMALS:
            qrels.write(f"q-{name}-voice\t{name}-sleep\t1\nq-{name}-food\t{name}-sleep\t1\n")
    found = json.loads(calibrate(miner, job, "--json", "--no-write", target=0.5).stdout)
    assert found["queries"] == 16
    assert found["source"] == "16 hidden positives"
    assert any(point["fn"] for point in found["points"])


PAIRS = [
    ("q-cat-voice\tcat-food\n", ("golden.tsv:1", "2 columns")),
    ("q-cat-voice\tcat-food\t1\nq-cat-food\tcat-voice\tyes\n", ("golden.tsv:2", "'yes'")),
    ("q-cat-voice\tcat-food\t1\nq-cat-food\tcat-voice\t--1\n", ("golden.tsv:2", "'--1'")),
    ("q-cat-voice\tcat-food\t1\nq-cat-food\tcat-voice\t\u00b2\n", ("golden.tsv:2", "'\u00b2'")),
    ("nobody\tnothing\t1\n", ("golden.tsv", "none of its pairs")),
    ("q-cat-voice\tcat-food\t1\n", ("calibrate margin", "too few")),
    ("", ("golden.tsv",)),
]


@pytest.mark.parametrize(("text", "words"), PAIRS)
def test_judged_pairs_that_cannot_be_used_are_one_line(tmp_path, miner, text, words):
    job = commented(tmp_path)
    (tmp_path / "golden.tsv").write_text(text)
    refused(calibrate(miner, job, "--golden", tmp_path / "golden.tsv", check=False), *words)


def test_calibration_without_anything_judged_is_one_line(tmp_path, miner):
    job = commented(tmp_path)
    before = job.read_bytes()
    refused(calibrate(miner, job, check=False), "no query has two positives", "--golden")
    refused(calibrate(miner, job, "--golden", tmp_path / "absent.tsv", check=False), "absent.tsv")
    refused(calibrate(miner, job, target=1.5, check=False), "between 0 and 1")
    refused(calibrate(miner, job, "--hide", 0, check=False), "between 0 and 1")
    assert job.read_bytes() == before


# ---------------------------------------------------------------- what cannot be

WRONG: list[tuple[dict[str, Any], tuple[str, ...]]] = [
    ({"retrievers": [{"kind": "run", "file": "absent.run"}]}, ("absent.run", "no such file")),
    ({"retrievers": [{"kind": "bm25", "language": "xx"}]}, ("xx",)),
    ({"margin_on": "teacher"}, ("teacher.model",)),
    ({"retrievers": [{"kind": "dense", "quota": 2}]}, ("quota needs fusion: union",)),
    ({"retrievers": [{"kind": "run", "file": "data"}]}, ("data",)),
    ({"retrievers": [{"kind": "multivector"}]}, ("multivector",)),
    ({"retrievers": [DENSE, DENSE]}, ("two retrievers are called dense",)),
    ({"retrievers": [{"kind": "sparse"}]}, ("MiniLM",)),
]


@pytest.mark.parametrize(("mining", "words"), WRONG)
def test_what_cannot_be_is_one_line(tmp_path, miner, mining, words):
    refused(miner("run", toy.job(tmp_path, mining=mining), check=False), *words)
