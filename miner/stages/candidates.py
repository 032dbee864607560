"""Search the passages near each query, refuse what cannot be a negative, draw the pool."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from miner import ranking
from miner.config import Mining
from miner.records import CANDIDATES, POSITIVES, fold, texts
from miner.searchers import Searcher

Array = np.ndarray[Any, Any]
SPARE = 8
LONGEST = 1 << 23  # rows of all lists that are searched at once


@dataclass(frozen=True)
class Inputs:
    """What every block of queries shares. Row numbers point into the tables, which are sorted by id.

    positives: int64[m, 3], (query row, passage row, relevance), sorted by query, then passage.
    """

    passages: pa.Table
    queries: pa.Table
    positives: Array
    passage_vectors: Array
    query_vectors: Array
    copy_class: Array
    class_size: Array
    doc_hash: Array
    query_class: Array
    query_hash: Array


def prepare(
    passages: pa.Table,
    queries: pa.Table,
    qrels: pa.Table,
    passage_vectors: Array,
    query_vectors: Array,
    relevant_from: int,
) -> Inputs:
    """Number the ids and find the exact copies (same text after case-folding and white space)."""
    hashes = _hashes(fold(text) for text in texts(passages))
    classes, copy_class, class_size = np.unique(hashes, return_inverse=True, return_counts=True)
    query_hashes = _hashes(fold(text) for text in texts(queries))
    at = np.minimum(np.searchsorted(classes, query_hashes), len(classes) - 1)
    return Inputs(
        passages=passages,
        queries=queries,
        positives=_positive_rows(passages, queries, qrels, relevant_from),
        passage_vectors=passage_vectors,
        query_vectors=query_vectors,
        copy_class=copy_class.astype(np.int64),
        class_size=class_size,
        doc_hash=_hashes(passages.column("doc_id").to_pylist()),
        query_class=np.where(classes[at] == query_hashes, at, -1),
        query_hash=_hashes(queries.column("query_id").to_pylist()),
    )


def _hashes(words: Iterable[str]) -> Array:
    digests = (hashlib.blake2b(word.encode(), digest_size=8).digest() for word in words)
    return np.frombuffer(b"".join(digests), np.uint64)


def _positive_rows(passages: pa.Table, queries: pa.Table, qrels: pa.Table, relevant_from: int) -> Array:
    query_row = {key: row for row, key in enumerate(queries.column("query_id").to_pylist())}
    doc_row = {key: row for row, key in enumerate(passages.column("doc_id").to_pylist())}
    rows = [
        (query_row[q], doc_row[d], r)
        for q, d, r in zip(*(qrels.column(name).to_pylist() for name in qrels.column_names), strict=True)
        if r >= relevant_from
    ]
    return np.array(sorted(rows), np.int64).reshape(-1, 3)


@dataclass(frozen=True)
class _Block:
    """Positives and ranked lists of queries low..high; `query` counts from low."""

    pos_query: Array
    pos_row: Array
    pos_score: Array
    lowest: Array
    query: Array
    row: Array
    score: Array


def run(
    inputs: Inputs, low: int, high: int, searcher: Searcher, mining: Mining, pool: int, seed: int
) -> tuple[pa.Table, pa.Table]:
    """Candidates and scored positives of the queries low..high, both sorted by (query, rank) and (query, passage)."""
    block = _search(inputs, low, high, searcher, mining.depth)
    query, row = block.query, block.row
    rank = ranking.position(query) + 1
    reason = _reasons(inputs, block, low, rank, mining)
    within = _within_depth(query, reason, mining.depth)
    tickets = None
    if mining.sample == "random":
        tickets = ranking.lottery(inputs.query_hash[low + query], inputs.doc_hash[row], seed)
    pool_rank = ranking.pool_ranks(query, (reason == "") & within, tickets, pool)
    reason[(reason == "") & (pool_rank == 0)] = "not_sampled"
    keep = np.flatnonzero(within)
    columns = [
        inputs.queries.column("query_id").take(low + query[keep]),
        inputs.passages.column("doc_id").take(row[keep]),
        pa.array(["dense"] * len(keep)),
        rank[keep],
        block.score[keep],
        block.lowest[query[keep]],
        pa.array(reason[keep], pa.string()),
        pa.array(pool_rank[keep], mask=pool_rank[keep] == 0),
    ]
    return _table(columns, CANDIDATES), _positives(inputs, block, low, high)


def _table(columns: list[Any], schema: pa.Schema) -> pa.Table:
    arrays = [c if isinstance(c, pa.Array | pa.ChunkedArray) else pa.array(c) for c in columns]
    return pa.table(arrays, names=schema.names).cast(schema)


def _search(inputs: Inputs, low: int, high: int, searcher: Searcher, depth: int) -> _Block:
    slice_ = slice(*np.searchsorted(inputs.positives[:, 0], [low, high]))
    pos_query, pos_row = inputs.positives[slice_, 0] - low, inputs.positives[slice_, 1]
    vectors = np.asarray(inputs.query_vectors[low:high], np.float32)
    pos_score = np.einsum("ij,ij->i", vectors[pos_query], inputs.passage_vectors[pos_row], dtype=np.float32)
    lowest = np.full(high - low, np.inf, np.float32)
    np.minimum.at(lowest, pos_query, pos_score)
    wanted = _wanted(inputs, pos_query, pos_row, high - low, depth)
    total = len(inputs.passages)
    lists = [part for k, rows in _by_size(wanted, total) for part in _ranked(vectors, rows, wanted, k, total, searcher)]
    query, row, score = (np.concatenate(parts) for parts in zip(*lists, strict=True))
    order = np.lexsort((row, -score, query))
    return _Block(pos_query, pos_row, pos_score, lowest, query[order], row[order], score[order])


def _wanted(inputs: Inputs, pos_query: Array, pos_row: Array, size: int, depth: int) -> Array:
    """How many passages to ask for, so that `depth` are left when the positives and their copies are out."""
    pairs = np.unique(np.stack([pos_query, inputs.copy_class[pos_row]], axis=1), axis=0)
    known = np.bincount(pairs[:, 0], inputs.class_size[pairs[:, 1]], size)
    return np.asarray(depth + known, np.int64)


def _by_size(wanted: Array, total: int) -> list[tuple[int, Array]]:
    """Queries grouped by list length, so that one query with many positives costs the others nothing."""
    base = int(wanted.min()) + SPARE
    sizes = np.where(wanted <= base, base, 2 ** np.ceil(np.log2(wanted)).astype(np.int64))
    return [(min(int(k), total), np.flatnonzero(sizes == k)) for k in np.unique(sizes)]


def _ranked(
    vectors: Array, rows: Array, wanted: Array, k: int, total: int, searcher: Searcher
) -> Iterator[tuple[Array, Array, Array]]:
    """The `wanted` best of each query, ties by doc_id.

    A searcher breaks ties as it likes, so a list in which a tie runs from the last wanted row to the end is asked for
    again, longer: the passages tied with it may lie behind the end.
    """
    step = max(1, LONGEST // k)
    for some in (rows[start : start + step] for start in range(0, len(rows), step)):
        scores, found = searcher.search(vectors[some], k)
        last = np.minimum(wanted[some], k)[:, None] - 1
        cut = (k < total) & (np.take_along_axis(scores, last, 1)[:, 0] == scores[:, -1])
        order = np.lexsort((found, -scores))
        scores, found = np.take_along_axis(scores, order, 1), np.take_along_axis(found, order, 1)
        there = (found >= 0) & (np.arange(k) <= last) & ~cut[:, None]
        yield np.repeat(some, there.sum(axis=1)), found[there], scores[there]
        if cut.any():
            yield from _ranked(vectors, some[cut], wanted, min(2 * k, total), total, searcher)


def _reasons(inputs: Inputs, block: _Block, low: int, rank: Array, mining: Mining) -> Array:
    query, row, score = block.query, block.row, block.score
    total, classes = len(inputs.passages), len(inputs.class_size)
    cls = inputs.copy_class[row]
    by_absolute, by_relative = ranking.ceiling(block.lowest, mining.margin_absolute, mining.margin_relative)
    never = np.zeros(len(query), bool)
    tests = [
        ("positive", np.isin(query * total + row, block.pos_query * total + block.pos_row)),
        (
            "positive_copy",
            np.isin(query * classes + cls, block.pos_query * classes + inputs.copy_class[block.pos_row]),
        ),
        ("query_copy", cls == inputs.query_class[low + query]),
        ("copy_of_better", ranking.is_repeat(query, cls)),
        ("rank_min", rank < mining.rank_min),
        ("rank_max", never if mining.rank_max is None else rank > mining.rank_max),
        ("score_max", never if mining.score_max is None else score > np.float32(mining.score_max)),
        ("margin_absolute", score > by_absolute[query]),
        ("margin_relative", score > by_relative[query]),
        ("score_min", never if mining.score_min is None else score < np.float32(mining.score_min)),
    ]
    return ranking.first_reason(tests, len(query))


def _within_depth(query: Array, reason: Array, depth: int) -> Array:
    """The rows up to the depth-th passage that is neither a positive nor a positive's copy."""
    counts = ~np.isin(reason, ["positive", "positive_copy"])
    running = np.cumsum(counts)
    starts = np.flatnonzero(np.r_[True, query[1:] != query[:-1]])
    before: Array = np.repeat(running[starts] - counts[starts], np.diff(np.r_[starts, len(query)]))
    return np.asarray(running - before <= depth)


def _positives(inputs: Inputs, block: _Block, low: int, high: int) -> pa.Table:
    slice_ = slice(*np.searchsorted(inputs.positives[:, 0], [low, high]))
    columns = [
        inputs.queries.column("query_id").take(low + block.pos_query),
        inputs.passages.column("doc_id").take(block.pos_row),
        inputs.positives[slice_, 2],
        block.pos_score,
    ]
    return _table(columns, POSITIVES)
