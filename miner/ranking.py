"""Pure array functions over ranked lists: who is refused, and why; who is drawn.

Lists are flat: parallel arrays sorted by (group, rank), where a group is one query.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

Array = np.ndarray[Any, Any]


def position(groups: Array) -> Array:
    """int64[n]: 0, 1, 2, … within each run of equal values of a sorted array."""
    if not len(groups):
        return np.empty(0, np.int64)
    starts = np.flatnonzero(np.r_[True, groups[1:] != groups[:-1]])
    return np.arange(len(groups)) - np.repeat(starts, np.diff(np.r_[starts, len(groups)]))


def best_first(scores: Array, rows: Array) -> tuple[Array, Array]:
    """float32[b, k], int64[b, k] -> the same, each list by falling score, ties by row. What is so already stays."""
    ahead = (scores[:, :-1] > scores[:, 1:]) | ((scores[:, :-1] == scores[:, 1:]) & (rows[:, :-1] <= rows[:, 1:]))
    wrong = np.flatnonzero(~ahead.all(axis=1))
    if len(wrong):
        order = np.lexsort((rows[wrong], -scores[wrong]))
        scores, rows = scores.copy(), rows.copy()
        scores[wrong], rows[wrong] = (np.take_along_axis(a[wrong], order, 1) for a in (scores, rows))
    return scores, rows


def among(values: Array, known: Array) -> Array:
    """bool[n]: which values are in `known`, both int64 and `known` sorted."""
    if not len(known):
        return np.zeros(len(values), bool)
    at = np.minimum(np.searchsorted(known, values), len(known) - 1)
    return np.asarray(known[at] == values)


def is_repeat(groups: Array, classes: Array) -> Array:
    """bool[n]: an earlier row of the same group has the same class."""
    order = np.lexsort((np.arange(len(groups)), classes, groups))
    same = (groups[order][1:] == groups[order][:-1]) & (classes[order][1:] == classes[order][:-1])
    repeat = np.zeros(len(groups), bool)
    repeat[order[1:][same]] = True
    return repeat


def ceiling(lowest_positive: Array, absolute: float | None, relative: float | None) -> tuple[Array, Array]:
    """The highest score that each margin lets pass: s+ - m and s+ - r*abs(s+), s+ being the LOWEST positive score.

    inf where a margin is not set. The relative margin is that of sentence-transformers; with cosine scores above
    zero, r = 0.05 is NV-Retriever's "95% of the positive" (arXiv 2407.15831).
    """
    none = np.full(lowest_positive.shape, np.inf, lowest_positive.dtype)
    by_absolute = none if absolute is None else lowest_positive - absolute
    by_relative = none if relative is None else lowest_positive - relative * np.abs(lowest_positive)
    return by_absolute, by_relative


def first_true(tests: list[Array], size: int) -> Array:
    """int8[n]: the number, from 1, of the first test that is true for the row, 0 where none is. tests: bool[n] each."""
    found = np.zeros(size, np.int8)
    for number in range(len(tests), 0, -1):
        found[tests[number - 1]] = number
    return found


def words(codes: Array, names: Sequence[str]) -> pa.DictionaryArray:
    """names[code] of each row; the dictionary holds each name once, and only those that occur."""
    there = np.unique(codes)
    held = list(dict.fromkeys(names[code] for code in there.tolist()))
    place = np.zeros(len(names), np.int32)
    place[there] = [held.index(names[code]) for code in there.tolist()]
    return pa.DictionaryArray.from_arrays(pa.array(place[codes], pa.int32()), pa.array(held, pa.string()))


def mix(values: Array) -> Array:
    """uint64[n] -> uint64[n]: SplitMix64's finaliser, a hash whose order is as good as a shuffle."""
    x = values.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(x ^ (x >> np.uint64(31)))


def lottery(query_hashes: Array, doc_hashes: Array, seed: int) -> Array:
    """uint64[n]: the ticket of each (query, passage); the smallest are drawn.

    A ticket depends on the pair and the seed alone, so a draw does not change when other queries come or go.
    """
    return mix(query_hashes ^ mix(doc_hashes + np.uint64(seed)))


def pool_ranks(groups: Array, allowed: Array, tickets: Array | None, size: int) -> Array:
    """int32[n]: 1..size for the rows drawn into each group's pool, 0 for the others.

    tickets: None takes the best ranks; else the smallest tickets are drawn, in that order.
    """
    rows = np.flatnonzero(allowed)
    if tickets is not None:
        rows = rows[np.lexsort((tickets[rows], groups[rows]))]
    place = position(groups[rows]) + 1
    ranks = np.zeros(len(groups), np.int32)
    ranks[rows] = np.where(place <= size, place, 0)
    return ranks


def renumber(groups: Array, order: Array, size: int) -> Array:
    """int32[n]: 1..size for the rows with the lowest `order` of each group, 0 for the others and where order is 0."""
    rows = np.flatnonzero(order)
    group, wanted = groups[rows], order[rows]
    if not np.all((group[:-1] < group[1:]) | ((group[:-1] == group[1:]) & (wanted[:-1] <= wanted[1:]))):
        rows = rows[np.lexsort((wanted, group))]
    place = position(groups[rows]) + 1
    ranks = np.zeros(len(groups), np.int32)
    ranks[rows] = np.where(place <= size, place, 0)
    return ranks


def slots(candidates: pa.Table, judgments: pa.Table | None, wanted: int) -> Array:
    """int32[n]: the place (from 1) of each candidate among its query's negatives, 0 for those not taken."""
    pool_rank = candidates.column("pool_rank").to_numpy(zero_copy_only=False)
    in_pool = ~np.isnan(pool_rank.astype(float))
    allowed = in_pool.copy()
    if judgments is not None:
        verdicts = judgments.column("verdict").to_numpy(zero_copy_only=False)
        allowed[in_pool] = verdicts == "irrelevant"
        if (
            "status" in judgments.column_names
        ):  # a verdict of an answer that is not ok would be a bug, and admits nothing
            allowed[in_pool] &= judgments.column("status").to_numpy(zero_copy_only=False) == "ok"
    query_id = candidates.column("query_id").to_numpy(zero_copy_only=False)
    changes = np.r_[False, query_id[1:] != query_id[:-1]] if len(query_id) else np.empty(0, bool)
    return pool_ranks(np.cumsum(changes), allowed, np.nan_to_num(pool_rank.astype(float)), wanted)
