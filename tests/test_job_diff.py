"""Two jobs compared: what is told of them is what their files hold."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Any

import judging
import numpy as np
import pyarrow as pa
import pytest
import toy
import typer
from loopback import Loopback
from rich.cells import cell_len
from typer.testing import CliRunner

from miner import config, job_diff, job_query, records, store
from miner.commands import look
from miner.errors import UserError
from miner.job import Stamp

app = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False)
app.command()(look.diff)
app.command()(look.status)
pytestmark = pytest.mark.usefixtures("toy_key")
Pair = tuple[str, str]


def run(*args: object) -> str:
    done = CliRunner().invoke(app, ["diff", *map(str, args)], env={"COLUMNS": "80"})
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == 0, done.output
    return done.stdout


@pytest.fixture(scope="module")
def jobs(tmp_path_factory, toy_key) -> tuple[Path, Path]:
    """B goes deeper, wants more, refuses the best rank, has one passage, one query and one positive more and lacks a
    query of A."""
    folder = tmp_path_factory.mktemp("diff")
    with Loopback() as server:
        first = judging.job(folder / "a", server, mining={"depth": 5})
        judging.advance(first)
        data = toy.beir(folder / "b" / "data")
        with (data / "corpus.jsonl").open("a") as corpus:
            corpus.write(json.dumps({"_id": "new", "title": "", "text": "The cat makes a sound: it purrs."}) + "\n")
        lines = (data / "queries.jsonl").read_text().splitlines()
        kept = [line for line in lines if json.loads(line)["_id"] != "q-owl-food"]
        asked = {"_id": "q-new", "text": "who purrs"}
        (data / "queries.jsonl").write_text("\n".join([*kept, json.dumps(asked)]) + "\n")
        qrels = (data / "qrels" / "train.tsv").read_text().replace("q-owl-food\towl-food\t1\n", "")
        (data / "qrels" / "train.tsv").write_text(f"{qrels}q-new\tnew\t1\nq-cat-voice\tcat-sleep\t1\n")
        second = judging.job(folder / "b", server, mining={"negatives": 4, "depth": 14, "rank_min": 2})
        judging.advance(second)
    return first, second


def payload(first: Path, second: Path, *more: Any) -> dict[str, Any]:
    found = job_diff.payload(config.load(first, None), config.load(second, None), *more)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    return found


def decided(path: Path) -> dict[Pair, dict[str, Any]]:
    return {judging.key(row): row for row in judging.rows(path, "decisions", "part-*")}


def test_every_negative_that_came_or_went_is_told_with_its_reasons(jobs):
    found = payload(*jobs)
    a, b = map(decided, jobs)
    kept = [{pair for pair, row in side.items() if row["kept"]} for side in (a, b)]
    told = {what: {} for what in ("gained", "lost", "moved")}
    for query in found["comparison"]["queries"]:
        for what, rows in told.items():
            rows |= {(query["id"], row["doc_id"]): row for row in query[what]}
    assert told["gained"].keys() == kept[1] - kept[0]
    assert told["lost"].keys() == kept[0] - kept[1]
    assert told["moved"].keys() == {
        pair for pair in kept[0] & kept[1] if any(a[pair][name] != b[pair][name] for name in ("slot", "grade"))
    }
    assert all(told.values())
    for rows in told.values():
        for pair, row in rows.items():
            for name, side in (("a", a), ("b", b)):
                own = side.get(pair)
                assert row[f"rank_{name}"] == (own and own["rank"])
                assert row[f"grade_{name}"] == (own and own["grade"])
                if own is not None:
                    assert row[f"why_{name}"] == (own["reason"] or f"kept as negative {own['slot']}")
            assert row["score"] == (b.get(pair) or a[pair])["score"]
    corpus = judging.rows(jobs[1], "corpus", "passages.parquet")
    passages = {row["doc_id"]: f"{row['title']} {row['text']}".strip() for row in corpus}
    assert all(row["text"] == passages[pair[1]] for pair, row in told["gained"].items())
    facts = dict(found["facts"])
    assert (facts["negatives gained"], facts["negatives lost"]) == (len(told["gained"]), len(told["lost"]))


def test_why_a_job_has_no_such_candidate(jobs):
    found = {query["id"]: query for query in payload(*jobs)["comparison"]["queries"]}
    assert {row["why_a"] for row in found["q-new"]["gained"]} == {"no such query"}
    assert {row["why_b"] for row in found["q-owl-food"]["lost"]} == {"no such query"}
    whys = {(row["doc_id"], row["why_a"]) for query in found.values() for row in query["gained"]}
    assert ("new", "not in the corpus") in whys
    back = {query["id"]: query for query in payload(*reversed(jobs))["comparison"]["queries"]}
    assert {row["why_a"] for query in back.values() for row in query["gained"]} >= {"rank_min", "no such query"}
    a, b = map(decided, jobs)
    beyond = [
        pair for pair, row in b.items() if row["kept"] and pair not in a and pair[0] != "q-new" and pair[1] != "new"
    ]
    assert beyond
    for query_id, doc_id in beyond:
        (row,) = [row for row in found[query_id]["gained"] if row["doc_id"] == doc_id]
        assert (row["why_a"], row["rank_a"]) == ("not found", None)


def test_only_settings_that_differ_are_told(jobs):
    rows = {name: (a, b) for name, a, b in payload(*jobs)["comparison"]["config"]}
    assert {name: rows[name] for name in rows if not name.startswith("data.")} == {
        "mining.depth": (5, 14),
        "mining.negatives": (3, 4),
        "mining.rank_min": (1, 2),
    }


def test_counts_are_those_of_the_steps(jobs):
    rows = {name: (a, b) for name, a, b in payload(*jobs)["comparison"]["counts"]}
    assert rows["corpus.passages"] == (25, 26)
    dropped = [sum(row["reason"] == "judged_relevant" for row in decided(path).values()) for path in jobs]
    assert list(rows["decisions.candidates.mined.judged_relevant"]) == dropped
    assert rows["candidates.dropped.rank_min"][0] is None


def test_positives_that_changed(jobs):
    found = {one["id"]: (one["gained"], one["lost"]) for one in payload(*jobs)["comparison"]["positives"]}
    assert found == {
        "q-new": (["new"], []),
        "q-owl-food": ([], ["owl-food"]),
        "q-cat-voice": (["cat-sleep"], []),
    }
    (section,) = payload(*jobs)["sections"]
    assert ["q-cat-voice", "what sound does a cat make", "cat-sleep", ""] in section["tables"][0]["rows"]


def test_measures_are_arithmetic_on_the_files(jobs):
    rows = {name: (a, b) for name, a, b in payload(*jobs)["comparison"]["metrics"]}
    for at, path in enumerate(jobs):
        own = decided(path).values()
        kept = [row for row in own if row["kept"]]
        assert rows["negatives"][at] == len(kept)
        mean = sum(row["score"] for row in kept) / len(kept)
        assert rows["mean score of negatives (hardness)"][at] == pytest.approx(mean, abs=1e-5)
        below = sum(row["positive_score"] - row["score"] for row in kept) / len(kept)
        assert rows["mean distance below the lowest positive"][at] == pytest.approx(below, abs=1e-5)
        judged = [row for row in own if row["status"] == "ok"]
        assert rows["negatives of the judged (yield)"][at] == pytest.approx(len(kept) / len(judged), abs=1e-4)
        assert rows["prompt tokens"][at] == 100 * rows["LLM answers"][at] > 0
    assert rows["cost in dollars"] == (None, None)  # nobody gave a price


def test_a_job_does_not_differ_from_itself(jobs):
    found = payload(jobs[0], jobs[0])
    comparison = found["comparison"]
    assert (comparison["config"], comparison["queries"], comparison["positives"]) == ([], [], [])
    assert all(a == b for _, a, b in comparison["counts"])
    assert {name: a for name, a, _ in comparison["metrics"]}["negatives in common (of either)"] == 1.0
    assert found["warnings"] == []
    assert (found["kind"], found["flow"], found["browser"]) == ("comparison", [], None)


def test_the_queries_with_the_most_changes_come_first(jobs):
    every = payload(*jobs)["comparison"]["queries"]
    sizes = [sum(len(query[what]) for what in ("gained", "lost", "moved")) for query in every]
    assert sizes == sorted(sizes, reverse=True)
    few = payload(*jobs, 2)
    assert few["comparison"]["queries"] == every[:2]
    assert dict(few["facts"])["queries whose negatives changed"] == len(every)
    assert dict(few["facts"])["of these told one by one"] == 2


def test_the_terminal_shows_the_same_in_short(jobs):
    shown = run(*jobs, "--queries", "3")
    assert all(cell_len(line) <= 80 for line in shown.splitlines() if "/" not in line)
    assert "mining.negatives" in shown
    found = payload(*jobs, 3)
    for query in found["comparison"]["queries"]:
        assert query["text"] in shown
        for row in query["gained"] + query["lost"]:
            assert row["doc_id"] in shown
            assert f"A: {row['why_a']}; B: {row['why_b']}" in shown
    assert len(json.loads(run(*jobs, "--json"))["comparison"]["queries"]) > 5
    assert (
        json.loads(run(*jobs, "--json", "--queries", "1"))["comparison"]["queries"]
        == found["comparison"]["queries"][:1]
    )


def test_jobs_that_are_not_there_yet_or_share_little_are_warned_of(jobs, tmp_path):
    empty = toy.job(tmp_path / "empty")
    found = payload(jobs[0], empty)
    assert [line for line in found["warnings"] if "B: " in line and "no candidates yet; `miner run` makes them" in line]
    assert dict(found["facts"])["negatives lost"] == len([1 for row in decided(jobs[0]).values() if row["kept"]])
    other = toy.beir(tmp_path / "other" / "data")
    queries = (other / "queries.jsonl").read_text().replace('"q-', '"p-')
    (other / "queries.jsonl").write_text(queries)
    qrels = other / "qrels" / "train.tsv"
    qrels.write_text(qrels.read_text().replace("q-", "p-").replace("p-id", "q-id"))
    path = toy.job(tmp_path / "other")
    judging.advance(path, "mine")
    found = payload(jobs[0], path)
    assert "only 0 queries are in both jobs by id, 16 in A alone and 16 in B alone" in " ".join(found["warnings"])
    assert "has no decisions yet" in " ".join(found["warnings"])


def test_a_job_file_that_was_changed_since_is_warned_of(jobs, tmp_path):
    changed = tmp_path / "job.yaml"
    text = jobs[0].read_text().replace("depth: 5", "depth: 4").replace("path: data", f"path: {jobs[0].parent / 'data'}")
    changed.write_text(f"{text}\njob: {jobs[0].with_suffix('.job')}\n")
    (warning,) = payload(jobs[0], changed)["warnings"]
    assert warning.startswith("B: the job file is not as it was when the job last ran")


def test_a_broken_or_missing_file_is_one_line(jobs, tmp_path):
    with pytest.raises(UserError, match="no such job file"):
        run(jobs[0], tmp_path / "none.yaml")
    (copied := tmp_path / "job.yaml").write_text(jobs[0].read_text())
    shutil.copytree(jobs[0].with_suffix(".job"), tmp_path / "job.job")
    next((tmp_path / "job.job" / "decisions").glob("part-*.parquet")).write_bytes(b"no Parquet")
    with pytest.raises(UserError, match=r"decisions/part-\S+: cannot read \("):
        run(jobs[0], copied)


def test_decisions_on_the_candidates_of_an_earlier_mining_are_none(jobs, tmp_path):
    (mined := tmp_path / "job.yaml").write_text(
        jobs[0].read_text().replace("path: data", f"path: {jobs[0].parent / 'data'}").replace("depth: 5", "depth: 4")
    )
    shutil.copytree(jobs[0].with_suffix(".job"), tmp_path / "job.job")
    judging.advance(mined, "mine")
    assert decided(mined)  # the files of the step are there still
    found = payload(jobs[0], mined)
    assert [line for line in found["warnings"] if line.startswith("B: ") and "has no decisions yet" in line]
    rows = {name: (a, b) for name, a, b in found["comparison"]["metrics"]}
    assert (rows["negatives"][1], rows["judged"][1], rows["negatives in common (of either)"][1]) == (None, None, None)
    assert rows["candidates"][1] == len(judging.rows(mined, "candidates", "part-*"))
    seen = job_query.query(config.load(mined, None), "q-cat-voice")["candidates"]
    assert seen
    assert not any(row.get("kept") for row in seen)


def test_a_text_that_was_written_twice_is_one_candidate(jobs, tmp_path):
    """Its rows have one id; what was kept stands for both."""
    shutil.copytree(jobs[0].with_suffix(".job"), tmp_path / "job.job")
    (twice := tmp_path / "job.yaml").write_text(jobs[0].read_text())
    for path in (tmp_path / "job.job" / "decisions").glob("part-*.parquet"):
        table = store.read_table(path)
        rows = [{**row, "kept": False, "reason": "copy_of_synthetic", "slot": None} for row in table.to_pylist()]
        store.write_table(path, pa.concat_tables([pa.Table.from_pylist(rows, table.schema), table]))
    facts = dict(payload(twice, twice)["facts"])
    assert [facts[f"negatives {what}"] for what in ("gained", "lost", "moved")] == [0, 0, 0]
    assert payload(jobs[0], twice)["comparison"]["queries"] == []


def test_200_000_candidates_take_seconds(tmp_path):
    """Measured alone on two cores: 1.5 s; the bound is wide, since the machine may be busy."""
    total, each = 200_000, 20
    rng = np.random.default_rng(0)
    queries = total // each
    ids = [f"q{i}" for i in range(queries)]
    for name in "ab":
        folder = tmp_path / f"{name}.job"
        texts = [f"query {i}" for i in range(queries)]
        store.write_table(folder / "corpus" / "queries.parquet", _filled(records.QUERIES, query_id=ids, text=texts))
        docs = [f"d{i}" for i in (np.arange(each)[None] + rng.integers(0, 10**6, (queries, 1))).ravel()]
        kept = rng.random(total) < 0.3
        slots = pa.array(np.ones(total, np.int32), mask=~kept)
        columns = {"query_id": np.repeat(ids, each).tolist(), "doc_id": docs, "kept": kept.tolist(), "slot": slots}
        columns["score"] = rng.random(total).astype(np.float32)
        store.write_table(folder / "decisions" / "part-00000.parquet", _filled(records.DECISIONS, **columns))
        store.write_json(folder / "stamps" / "decisions.json", vars(Stamp("decisions", {}, {}, {}, True)))
        (tmp_path / f"{name}.yaml").write_text("data: {path: .}\njudge: {enabled: false}\n")
    start = time.perf_counter()
    found = payload(tmp_path / "a.yaml", tmp_path / "b.yaml")
    assert time.perf_counter() - start < 30
    assert ["candidates", total, total] in found["comparison"]["metrics"]
    assert len(found["comparison"]["queries"]) == job_diff.QUERIES


def _filled(schema: pa.Schema, **columns: Any) -> pa.Table:
    """A table of a schema; the columns that are not given are null."""
    size = len(columns["query_id"])
    arrays = [columns.get(name, pa.nulls(size)) for name in schema.names]
    return pa.table([one if isinstance(one, pa.Array) else pa.array(one) for one in arrays], names=schema.names).cast(
        schema
    )
