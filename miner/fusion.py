"""One list per query out of the lists of several retrievers."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from miner import ranking

Array = np.ndarray[Any, Any]
# query int64[n], row int64[n], rank int32[n], score float32[n], by (query, rank).
Ranked = tuple[Array, Array, Array, Array]


class Fused(NamedTuple):
    """Sorted by (query, -fused, row). ranks: int32[n, R], 0 where the retriever lacks the row; scores: float32[n, R],
    NaN there; fused: float64[n], higher is better."""

    query: Array
    row: Array
    ranks: Array
    scores: Array
    fused: Array


def fuse(lists: list[Ranked], weights: list[float], method: str, k: int) -> Fused:
    """rrf: sum of weight/(k + rank) (Cormack et al. 2009). weighted: sum of weight times the score scaled to 0..1 in
    the query's list, a flat list counting 1 (a convex combination, Bruch et al. 2023). union: by turns, by best rank,
    then by the order of the retrievers. One retriever alone keeps its order."""
    if len(lists) == 1:
        query, row, rank, score = lists[0]
        return Fused(query, row, rank.astype(np.int32)[:, None], score[:, None], -rank.astype(float))
    base = 1 + max((int(rows.max(initial=-1)) for _, rows, _, _ in lists), default=-1)
    keys, place = np.unique(np.concatenate([q * base + r for q, r, _, _ in lists]), return_inverse=True)
    ranks = np.zeros((len(keys), len(lists)), np.int32)
    scores = np.full((len(keys), len(lists)), np.nan, np.float32)
    start = 0
    for i, (query, _, rank, score) in enumerate(lists):
        at = place[start : start + len(query)]
        ranks[at, i], scores[at, i] = rank, score
        start += len(query)
    query, row = np.divmod(keys, max(base, 1))
    fused = _value(lists, place, ranks, weights, method, k)
    order = np.lexsort((row, -fused, query))
    return Fused(query[order], row[order], ranks[order], scores[order], fused[order])


def _value(lists: list[Ranked], place: Array, ranks: Array, weights: list[float], method: str, k: int) -> Array:
    there = ranks > 0
    if method == "union":
        # Best rank first; of equal best ranks, the first retriever's.
        best = np.where(there, ranks, np.iinfo(np.int32).max)
        return np.asarray(-(best.min(axis=1) * float(len(lists)) + best.argmin(axis=1)))
    if method == "rrf":
        parts = np.where(there, np.array(weights) / (k + ranks.astype(float)), 0)
        parts.sort(axis=1)  # rounding depends on the order of a sum, and ranks 1, 2, 3 are worth what 3, 1, 2 are
        return np.asarray(parts.sum(axis=1))
    total = np.zeros(len(ranks))
    start = 0
    for weight, (query, _, _, score) in zip(weights, lists, strict=True):
        total[place[start : start + len(query)]] += weight * _scaled(query, score.astype(float))
        start += len(query)
    return total


def _scaled(query: Array, score: Array) -> Array:
    """float64[n]: scores scaled to 0..1 within each query's list."""
    if not len(query):
        return score
    starts = np.flatnonzero(ranking.position(query) == 0)
    sizes = np.diff(np.r_[starts, len(query)])
    low = np.repeat(np.minimum.reduceat(score, starts), sizes)
    span = np.repeat(np.maximum.reduceat(score, starts), sizes) - low
    return np.where(span > 0, (score - low) / np.where(span > 0, span, 1), 1.0)
