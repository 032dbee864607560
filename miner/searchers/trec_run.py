"""Results that another program ranked: a TREC run file, or the candidates of an earlier miner job."""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from miner.errors import UserError
from miner.readers.rows import clip, shown, text_lines
from miner.searchers import Array
from miner.store import iter_tables

LARGEST = float(np.finfo(np.float32).max)


class RunSearcher:
    """The lists of a run, cut at k.

    `unknown_queries`, `unknown_passages`: how many ids of the run the data lacks; a passage id counts where it stands
    in the list of a known query.
    """

    def __init__(self, offsets: Array, rows: Array, scores: Array, unknown_queries: int, unknown_passages: int) -> None:
        """offsets: int64[queries + 1]; the list of query q is rows int32 and scores float32 [offsets[q]:offsets[q+1]].

        Best first.
        """
        self._offsets, self._rows, self._scores = offsets, rows, scores
        self.unknown_queries = unknown_queries
        self.unknown_passages = unknown_passages

    def search(self, queries: Array, k: int) -> tuple[Array, Array]:
        """queries: int64[b] -> scores float32[b, k], descending, rows int64[b, k]; -inf and -1 where there is none."""
        scores = np.full((len(queries), k), -np.inf, np.float32)
        rows = np.full((len(queries), k), -1, np.int64)
        for at, query in enumerate(queries.tolist()):
            low, high = self._offsets[query : query + 2].tolist()
            size = min(k, high - low)
            scores[at, :size] = self._scores[low : low + size]
            rows[at, :size] = self._rows[low : low + size]
        return scores, rows


@dataclass
class _Results:
    """Those of known queries and passages, in file order, as row numbers; 24 bytes each."""

    queries: array[int] = field(default_factory=lambda: array("i"))
    rows: array[int] = field(default_factory=lambda: array("i"))
    ranks: array[int] = field(default_factory=lambda: array("q"))
    scores: array[float] = field(default_factory=lambda: array("d"))
    read: int = 0
    of_known_queries: int = 0
    unknown_queries: set[str] = field(default_factory=set)
    unknown_passages: set[str] = field(default_factory=set)


class _Line(NamedTuple):
    number: int
    query: str
    passage: str
    rank: int
    score: float


def build(path: Path, doc_ids: list[str], query_ids: list[str]) -> RunSearcher:
    """path: a TREC run (lines `qid Q0 docid rank score tag`, .gz accepted), or the folder of a miner job.

    doc_ids, query_ids: the ids of the data; their places are the row numbers. A run is ordered by score, descending,
    then by its rank column, then by line. (trec_eval goes by score as well, but orders ties by id, descending.) A job
    is ordered by rank. Its scores are kept if every row has one and they fall with the rank in every list, as they do
    not after a fusion; else all scores are -rank. Scores become float32.
    Raises UserError for a file that is missing or broken, a passage twice in one list, and ids that do not match.
    """
    job = path.is_dir()
    results = _job(path, doc_ids, query_ids) if job else _run(path, doc_ids, query_ids)
    _check_match(path, results, doc_ids, query_ids)
    repeat = _first_repeat(results, len(doc_ids))
    if repeat is not None:
        query, passage = query_ids[results.queries[repeat]], doc_ids[results.rows[repeat]]
        place = f"{path / 'candidates'}" if job else f"{path}:{_line_of_repeat(path, query, passage)}"
        raise UserError(f"{place}: query {shown(query)} lists {shown(passage)} twice; keep one of the two")
    return _searcher(results, len(query_ids), job)


def _check_match(path: Path, results: _Results, doc_ids: list[str], query_ids: list[str]) -> None:
    if not results.read:
        raise UserError(f"{path}: holds no results; write the run again")
    if results.rows:
        return
    kind, data, run = "query", query_ids, results.unknown_queries
    if results.of_known_queries:
        kind, data, run = "passage", doc_ids, results.unknown_passages
    theirs = shown(min(run)) if run else "none"
    ours = shown(data[0]) if data else "none"
    raise UserError(
        f"{path}: no {kind} id matches: the run has ids like {theirs}, the data {ours}; name a run over the same data"
    )


def _first_repeat(results: _Results, passages: int) -> int | None:
    """The place in the arrays of the first result whose query has had its passage before."""
    keys = np.array(results.queries, np.int64) * passages + np.array(results.rows, np.int64)
    order = np.argsort(keys, kind="stable")
    repeats = order[1:][keys[order[1:]] == keys[order[:-1]]]
    return int(repeats.min()) if len(repeats) else None


def _searcher(results: _Results, queries: int, job: bool) -> RunSearcher:
    of, ranks = np.array(results.queries, np.int32), np.array(results.ranks, np.int64)
    scores = np.array(results.scores, np.float64)
    if job and not _fall_with_rank(of, ranks, scores):
        scores = -ranks.astype(np.float64)
    order = np.lexsort((ranks, -scores, of))
    offsets = np.concatenate([[0], np.cumsum(np.bincount(of, minlength=queries))])
    rows = np.array(results.rows, np.int32)[order]
    unknown = len(results.unknown_queries), len(results.unknown_passages)
    return RunSearcher(offsets, rows, scores[order].astype(np.float32), *unknown)


def _fall_with_rank(of: Array, ranks: Array, scores: Array) -> bool:
    order = np.lexsort((ranks, of))
    of, scores = of[order], scores[order]
    return bool(np.isfinite(scores).all() and ((scores[1:] <= scores[:-1]) | (of[1:] != of[:-1])).all())


def _run(path: Path, doc_ids: list[str], query_ids: list[str]) -> _Results:
    passages, queries = _numbers(doc_ids), _numbers(query_ids)
    results = _Results()
    for line in _lines(path):
        results.read += 1
        query = queries.get(line.query)
        if query is None:
            results.unknown_queries.add(line.query)
            continue
        results.of_known_queries += 1
        row = passages.get(line.passage)
        if row is None:
            results.unknown_passages.add(line.passage)
            continue
        results.queries.append(query)
        results.rows.append(row)
        results.ranks.append(line.rank)
        results.scores.append(line.score)
    return results


def _numbers(ids: list[str]) -> dict[str, int]:
    return {name: row for row, name in enumerate(ids)}


def _lines(path: Path) -> Iterator[_Line]:
    if not path.is_file():
        raise UserError(f"{path}: no such file; name a TREC run or the folder of a miner job")
    for number, text in text_lines(path):
        fields = text.split()
        if not fields:
            continue
        if len(fields) != 6:
            raise UserError(
                f"{path}:{number}: {len(fields)} fields; a line of a run is `qid Q0 docid rank score tag`: {clip(text)}"
            )
        rank, score = _rank(fields[3], f"{path}:{number}"), _score(fields[4], f"{path}:{number}")
        yield _Line(number, fields[0], fields[2], rank, score)


def _rank(text: str, place: str) -> int:
    try:
        rank = int(text)
    except ValueError:
        rank = 1 << 63
    if abs(rank) >= 1 << 63:
        raise UserError(f"{place}: the rank {clip(text)!r} is not a whole number; write 1, 2, 3, …")
    return rank


def _score(text: str, place: str) -> float:
    try:
        score = float(text)
    except ValueError:
        score = math.nan
    if not abs(score) <= LARGEST:
        raise UserError(f"{place}: the score {clip(text)!r} is not a finite number (float32); write one like 12.34")
    return score


def _line_of_repeat(path: Path, query: str, passage: str) -> int:
    """Found by reading again: no need to keep the numbers of all lines for an error."""
    numbers = (line.number for line in _lines(path) if (line.query, line.passage) == (query, passage))
    next(numbers)
    return next(numbers)


def _job(path: Path, doc_ids: list[str], query_ids: list[str]) -> _Results:
    parts = sorted((path / "candidates").glob("part-*.parquet"))
    if not parts:
        raise UserError(f"{path}: holds no candidates/part-*.parquet; run `miner mine` there first")
    passages, queries = pa.array(doc_ids, pa.large_string()), pa.array(query_ids, pa.large_string())
    results = _Results()
    for part in parts:
        try:
            for table in iter_tables(part, ["query_id", "doc_id", "rank", "score"]):
                _add(results, table, passages, queries)
        except (pa.ArrowException, OSError, KeyError, ValueError) as error:
            raise UserError(
                f"{part}: not a candidates table of miner ({clip(str(error), 120)}); run `miner mine` there again"
            ) from None
    return results


def _add(results: _Results, table: pa.Table, passages: pa.Array, queries: pa.Array) -> None:
    """Raises ValueError for a row without a rank, and what pyarrow and `column` raise for a lacking column."""
    query_ids, doc_ids = (table.column(name).cast(pa.large_string()) for name in ("query_id", "doc_id"))
    if table.column("rank").null_count:
        raise ValueError("a row has no rank")
    query_rows, rows = pc.index_in(query_ids, queries), pc.index_in(doc_ids, passages)
    known_query, known = pc.is_valid(query_rows), pc.and_(pc.is_valid(query_rows), pc.is_valid(rows))
    lacking = pc.and_not(known_query, known)
    results.read += table.num_rows
    results.of_known_queries += pc.sum(known_query).as_py() or 0
    results.unknown_queries.update(query_ids.filter(pc.invert(known_query)).unique().drop_null().to_pylist())
    results.unknown_passages.update(doc_ids.filter(lacking).unique().drop_null().to_pylist())
    columns = {
        "queries": query_rows.cast(pa.int32()),
        "rows": rows.cast(pa.int32()),
        "ranks": table.column("rank").cast(pa.int64()),
        "scores": table.column("score").cast(pa.float64()),
    }
    for name, column in columns.items():
        getattr(results, name).frombytes(column.filter(known).to_numpy().tobytes())
