"""Ask one searcher for the passages near each query: known positives stay in the lists, and cost no place in them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa

from miner import ranking
from miner.numbering import Block, Numbered, are_positive
from miner.records import RETRIEVED
from miner.searchers import Elsewhere, Searcher

Array = np.ndarray[Any, Any]
Found = tuple[Array, Array, Array]  # query, counted from block.low, passage and score, by (query, -score, passage)
SPARE = 8
LONGEST = 1 << 23  # rows of all lists that are searched at once


def run(world: Numbered, block: Block, searcher: Searcher, depth: int) -> pa.Table:
    """RETRIEVED rows of a block, by (query, rank): up to the depth-th passage that is no positive and no copy of one.

    Equal scores are ranked by doc_id.
    """
    return listed(world, block, *search(world, block, searcher, depth), depth)


def search(world: Numbered, block: Block, searcher: Searcher, depth: int) -> Found:
    """What the searcher gives for the queries of a block, enough for `listed`; sorted as it wants it."""
    wanted = _wanted(world, world.positives_of(block), block.size, depth)
    total = len(world.passages)
    lists = [
        part
        for k, queries in _by_size(wanted, total)
        for part in _ranked(block.low, queries, wanted, k, total, searcher)
    ]
    query, row, score = (np.concatenate(parts) for parts in zip(*lists, strict=True))
    order = np.argsort(query, kind="stable")  # a query is in one part, best first there
    return query[order], row[order], score[order]


def expect(world: Numbered, blocks: Iterable[Block], searcher: Elsewhere, depth: int) -> None:
    """Tell it what `run` will ask of these blocks: of all together, no more than one search may be long."""
    room = LONGEST
    for block in blocks:
        wanted = _wanted(world, world.positives_of(block), block.size, depth)
        for k, queries in _by_size(wanted, len(world.passages)):
            for some in _pieces(queries, k):
                room -= k * len(some)
                if room < 0:
                    return
                searcher.expect(block.low + some, k)


def listed(world: Numbered, block: Block, query: Array, row: Array, score: Array, depth: int) -> pa.Table:
    """RETRIEVED rows of sorted lists, cut at `depth` passages besides the positives. query: counted from block.low."""
    positive, copy = are_positive(world, world.positives_of(block), query, row)
    keep = _within(query, ~(positive | copy), depth)
    rank = ranking.position(query) + 1
    columns = [block.low + query[keep], row[keep], rank[keep], score[keep]]
    return pa.table([pa.array(column) for column in columns], names=RETRIEVED.names).cast(RETRIEVED)


def _wanted(world: Numbered, positives: Array, size: int, depth: int) -> Array:
    """How many passages to ask for, so that `depth` are left when the positives and their copies are out."""
    pairs = np.unique(np.stack([positives[:, 0], world.copy_class[positives[:, 1]]], axis=1), axis=0)
    known = np.bincount(pairs[:, 0], world.class_size[pairs[:, 1]], size)
    return np.asarray(depth + known, np.int64)


def _by_size(wanted: Array, total: int) -> list[tuple[int, Array]]:
    """Queries grouped by list length, so that one query with many positives costs the others nothing."""
    base = int(wanted.min()) + SPARE
    sizes = np.where(wanted <= base, base, 2 ** np.ceil(np.log2(wanted)).astype(np.int64))
    return [(min(int(k), total), np.flatnonzero(sizes == k)) for k in np.unique(sizes)]


def _pieces(queries: Array, k: int) -> Iterator[Array]:
    step = max(1, LONGEST // k)
    return (queries[start : start + step] for start in range(0, len(queries), step))


def _ranked(
    low: int, queries: Array, wanted: Array, k: int, total: int, searcher: Searcher
) -> Iterator[tuple[Array, Array, Array]]:
    """The `wanted` best of each query, ties by doc_id.

    A searcher breaks ties as it likes, so a list in which a tie runs from the last wanted row to the end is asked for
    again, longer: the passages tied with it may lie behind the end.
    """
    for some in _pieces(queries, k):
        scores, found = searcher.search(low + some, k)
        last = np.minimum(wanted[some], k)[:, None] - 1
        tie = np.take_along_axis(scores, last, 1)[:, 0] == scores[:, -1]
        cut = (k < total) & tie & (found[:, -1] >= 0)
        scores, found = ranking.best_first(scores, found)
        there = (found >= 0) & (np.arange(k) <= last) & ~cut[:, None]
        yield np.repeat(some, there.sum(axis=1)), found[there], scores[there]
        if cut.any():
            yield from _ranked(low, some[cut], wanted, min(2 * k, total), total, searcher)


def _within(query: Array, counts: Array, depth: int) -> Array:
    """int64[k]: the rows up to the depth-th counted one of each query."""
    if not len(query):
        return np.empty(0, np.int64)
    running = np.cumsum(counts)
    starts = np.flatnonzero(np.r_[True, query[1:] != query[:-1]])
    before: Array = np.repeat(running[starts] - counts[starts], np.diff(np.r_[starts, len(query)]))
    return np.flatnonzero(running - before <= depth)
