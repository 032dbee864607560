"""searchers.trec_run: runs and jobs written here, what they say when read, and what is said of broken ones."""

from __future__ import annotations

import gzip
import math
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from miner.errors import UserError
from miner.searchers import trec_run

DOCS, QUERIES = [f"d{n}" for n in range(6)], [f"q{n}" for n in range(3)]
LINE = st.tuples(
    st.sampled_from([*QUERIES, "other", "another"]),
    st.sampled_from([*DOCS, "x", "y"]),
    st.integers(-1, 4),
    st.sampled_from([0.0, -1.5, 2.25, 1e-9, 7.0]),
)
ROW = tuple[str, str, int, float | None]


def write(path: Path, text: str) -> Path:
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text, encoding="utf-8")
    return path


def job(folder: Path, *parts: list[ROW]) -> Path:
    """A job's folder with these candidates: (query_id, doc_id, rank, score)."""
    (folder / "candidates").mkdir(parents=True)
    for number, rows in enumerate(parts):
        columns = dict(zip(("query_id", "doc_id", "rank", "score"), zip(*rows, strict=True), strict=True))
        types = {"query_id": pa.large_string(), "doc_id": pa.large_string(), "rank": pa.int32(), "score": pa.float32()}
        table = pa.table({name: pa.array(column, types[name]) for name, column in columns.items()})
        pq.write_table(table, folder / f"candidates/part-{number:05d}.parquet", row_group_size=2)
    return folder


def lists(path: Path, k: int = len(DOCS)) -> list[list[tuple[str, float]]]:
    """What each query of QUERIES finds, best first."""
    scores, rows = trec_run.build(path, DOCS, QUERIES).search(np.arange(len(QUERIES)), k)
    assert (scores.dtype, rows.dtype, scores.shape, rows.shape) == (np.float32, np.int64, rows.shape, (len(QUERIES), k))
    assert ((rows == -1) == np.isneginf(scores)).all()
    assert (np.diff(rows == -1, axis=1) >= 0).all()
    return [
        [(DOCS[row], score) for row, score in zip(of.tolist(), own.tolist(), strict=True) if row >= 0]
        for of, own in zip(rows, scores, strict=True)
    ]


RUN = """q1 Q0 d3 1 12.5 mine
q1 Q0 d0 2 11 mine

q0\tQ0\td5\t1\t-3e0\tmine
q1 Q0 d4 3 99 mine
other Q0 d1 1 5 mine
q0 Q0 gone 2 -4 mine
"""


@pytest.mark.parametrize("name", ["run.txt", "run.trec.gz"])
def test_a_run_is_ordered_by_score_and_unknown_ids_are_counted(tmp_path, name):
    path = write(tmp_path / name, RUN)
    assert lists(path) == [[("d5", -3)], [("d4", 99), ("d3", 12.5), ("d0", 11)], []]
    assert lists(path, 2) == [[("d5", -3)], [("d4", 99), ("d3", 12.5)], []]
    searcher = trec_run.build(path, DOCS, QUERIES)
    assert (searcher.unknown_queries, searcher.unknown_passages) == (1, 1)
    assert searcher.search(np.array([1, 1, 2]), 1)[1].tolist() == [[4], [4], [-1]]


def test_equal_scores_are_ordered_by_rank_then_by_line(tmp_path):
    path = write(tmp_path / "run", "q0 Q0 d3 2 1 t\nq0 Q0 d5 1 1 t\nq0 Q0 d4 2 1.0 t\nq0 Q0 d0 9 1.5 t\n")
    assert [name for name, _ in lists(path)[0]] == ["d0", "d5", "d3", "d4"]


def test_scores_that_only_a_double_tells_apart_keep_their_order(tmp_path):
    path = write(tmp_path / "run", "q0 Q0 d3 1 1.0000000001 t\nq0 Q0 d2 1 1.0000000002 t\n")
    assert lists(path)[0] == [("d2", 1), ("d3", 1)]


@given(st.lists(LINE, min_size=1, max_size=40, unique_by=lambda line: line[:2]), st.integers(1, 6))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_run_reads_as_sorted_in_plain_python(tmp_path, lines, k):
    text = "".join(f"{query} Q0 {passage} {rank} {score!r} t\n" for query, passage, rank, score in lines)
    path = write(tmp_path / "run", text)
    known = [line for line in lines if line[0] in QUERIES]
    if not any(line[1] in DOCS for line in known):
        with pytest.raises(UserError, match=r"no (query|passage) id matches"):
            lists(path)
        return
    expected = [
        [(line[1], pytest.approx(line[3])) for line in sorted(known, key=lambda line: (-line[3], line[2]))
         if line[0] == query and line[1] in DOCS][:k]
        for query in QUERIES
    ]  # fmt: skip
    assert lists(path, k) == expected
    searcher = trec_run.build(path, DOCS, QUERIES)
    assert searcher.unknown_queries == len({line[0] for line in lines} - set(QUERIES))
    assert searcher.unknown_passages == len({line[1] for line in known} - set(DOCS))


GOOD = "q0 Q0 d0 1 2.5 t\n"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (GOOD + "q0 Q0 d1 2 1.5\n", ":2: 5 fields; a line of a run is `qid Q0 docid rank score tag`"),
        (GOOD + "\nq0 Q0 d1 2 1.5 my tag\n", ":3: 7 fields"),
        (GOOD + "q0 Q0 d1 2 high t\n", ":2: the score 'high' is not a finite number"),
        (GOOD + "q0 Q0 d1 2 nan t\n", ":2: the score 'nan' is not a finite number"),
        (GOOD + "other Q0 d1 2 -inf t\n", ":2: the score '-inf' is not a finite number"),
        (GOOD + "q0 Q0 d1 2 1e39 t\n", ":2: the score '1e39' is not a finite number"),
        (GOOD + "q0 Q0 d1 first 2 t\n", ":2: the rank 'first' is not a whole number"),
        (GOOD + f"q0 Q0 d1 {1 << 63} 2 t\n", f":2: the rank '{1 << 63}' is not a whole number"),
        (
            GOOD + "q1 Q0 d0 1 2 t\n\nother Q0 x 1 1 t\nother Q0 x 1 1 t\nq0 Q0 d0 3 1 t\nq1 Q0 d0 1 2 t\n",
            ':6: query "q0" lists "d0" twice; keep one of the two',
        ),
        ("", ": holds no results; write the run again"),
        ("\n \n", ": holds no results"),
        (
            "9 Q0 d0 1 1 t\n8 Q0 d0 1 1 t\n",
            ': no query id matches: the run has ids like "8", the data "q0"; name a run',
        ),
        ("q1 Q0 x 1 1 t\n", ': no passage id matches: the run has ids like "x", the data "d0"; name a run'),
    ],
)
def test_a_broken_run_is_refused_in_one_line(tmp_path, text, said):
    path = write(tmp_path / "run.txt", text)
    with pytest.raises(UserError) as info:
        trec_run.build(path, DOCS, QUERIES)
    assert str(info.value).startswith(f"{path}{said}")
    assert "\n" not in str(info.value)


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(UserError, match=r"gone: no such file"):
        lists(tmp_path / "gone")
    (tmp_path / "latin").write_bytes(GOOD.encode() + "q0 Q0 é 2 1 t\n".encode("latin-1"))
    with pytest.raises(UserError, match=r"latin:2: not UTF-8"):
        lists(tmp_path / "latin")
    (tmp_path / "cut.gz").write_bytes(gzip.compress(RUN.encode() * 50)[:-9])
    with pytest.raises(UserError, match=r"cut.gz: broken gzip after line"):
        lists(tmp_path / "cut.gz")


def test_the_candidates_of_a_job_keep_their_ranks_and_scores(tmp_path):
    """Ids as a whole, over several parts and row groups; rows in no order."""
    first: list[ROW] = [("q1", "d3", 2, 0.5), ("q1", "d1", 1, 0.75), ("other", "d1", 1, 9.0)]
    second: list[ROW] = [("q2", "d5", 7, 0.875), ("q1", "gone", 4, 0.25), ("q1", "d0", 3, 0.5)]
    folder = job(tmp_path / "job", first, second)
    assert lists(folder) == [[], [("d1", 0.75), ("d3", 0.5), ("d0", 0.5)], [("d5", 0.875)]]
    searcher = trec_run.build(folder, DOCS, QUERIES)
    assert (searcher.unknown_queries, searcher.unknown_passages) == (1, 1)


@pytest.mark.parametrize("score", [None, math.nan, 0.9, math.inf])
def test_scores_that_do_not_fall_with_the_rank_give_way_to_the_ranks(tmp_path, score):
    rows: list[ROW] = [("q1", "d3", 1, 0.75), ("q1", "d1", 2, score), ("q0", "d1", 5, 0.5)]
    assert lists(job(tmp_path / "job", rows)) == [[("d1", -5)], [("d3", -1), ("d1", -2)], []]


def test_a_score_missing_for_an_unknown_query_changes_nothing(tmp_path):
    assert lists(job(tmp_path / "job", [("q1", "d3", 1, 0.75), ("other", "d3", 1, None)]))[1] == [("d3", 0.75)]


def refused(folder: Path) -> str:
    with pytest.raises(UserError) as info:
        trec_run.build(folder, DOCS, QUERIES)
    assert "\n" not in str(info.value)
    return str(info.value)


def test_a_broken_job_is_refused_in_one_line(tmp_path):
    assert "holds no candidates/part-*.parquet; run `miner mine` there first" in refused(tmp_path)
    twice = job(tmp_path / "twice", [("q0", "d0", 1, 0.5)], [("q0", "d0", 2, 0.25)])
    assert refused(twice) == f'{twice}/candidates: query "q0" lists "d0" twice; keep one of the two'
    assert 'no query id matches: the run has ids like "a"' in refused(job(tmp_path / "a", [("a", "d0", 1, 0.5)]))
    assert 'no passage id matches: the run has ids like "a"' in refused(job(tmp_path / "b", [("q0", "a", 1, 0.5)]))

    broken = job(tmp_path / "broken", [("q0", "d0", 1, 0.5)])
    part = broken / "candidates/part-00000.parquet"
    pq.write_table(pa.table({"query_id": ["q0"], "doc_id": ["d0"], "rank": [1]}), part)
    assert refused(broken).startswith(f"{part}: not a candidates table of miner (")
    pq.write_table(pa.table({"query_id": ["q0"], "doc_id": ["d0"], "rank": ["x"], "score": [1.0]}), part)
    assert refused(broken).startswith(f"{part}: not a candidates table of miner (")
    ranks = pa.array([None], pa.int32())
    pq.write_table(pa.table({"query_id": ["q0"], "doc_id": ["d0"], "rank": ranks, "score": [1.0]}), part)
    assert "a row has no rank" in refused(broken)
    part.write_bytes(b"PAR1")
    assert refused(broken).startswith(f"{part}: not a candidates table of miner (")
