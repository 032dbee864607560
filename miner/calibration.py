"""How many relevant passages would each window and margin let through, and which setting is safe? Pure arrays.

Lists are flat: parallel arrays sorted by (query, rank).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from miner import ranking
from miner.bounds import LEVEL, needed, upper_bound
from miner.resampling import draws

Array = np.ndarray[Any, Any]
RANKS = (1, 3, 5, 10)
MARGINS = (0.02, 0.05, 0.08, 0.12, 0.16, 0.2, 0.3)


class Setting(NamedTuple):
    """`mining.rank_min` with one of `mining.margin_absolute` and `mining.margin_relative`."""

    rank_min: int
    kind: Literal["absolute", "relative"]
    margin: float


class Point(NamedTuple):
    """What a setting does to the judged lists.

    kept: mean negatives per query, of those wanted; full: share of queries that have as many as wanted.
    fn: share of relevant passages among the kept ones that were judged; if nothing at all was judged irrelevant, as
    with hidden positives, among all kept ones. fn_all: among all kept ones in any case; the unjudged count as
    irrelevant, so it is a lower estimate. judged, relevant: the counts that fn is made of.
    interval: two-sided 95%; upper: one-sided 95% bound of fn. hardness: mean score of the kept ones.
    fn, fn_all, hardness: None where there is nothing to divide by.
    """

    rank_min: int
    kind: Literal["absolute", "relative"]
    margin: float
    kept: float
    full: float
    judged: int
    relevant: int
    fn: float | None
    fn_all: float | None
    interval: tuple[float, float]
    upper: float
    hardness: float | None


class _Sums(NamedTuple):
    """Per setting and query, float64[settings, queries]: passages kept, judged among them, relevant ones, score sum."""

    kept: Array
    judged: Array
    relevant: Array
    score: Array


def grid(scale: float = 1.0) -> list[Setting]:
    """The settings that are tried: 4 first ranks by 8 relative and 7 absolute margins.

    scale: what the absolute margins are multiplied by; 1 suits cosines, a teacher's logits want their own spread.
    A margin of 0 is the same rule in both kinds and stands once.
    """
    relative = [Setting(rank, "relative", margin) for rank in RANKS for margin in (0.0, *MARGINS)]
    absolute = [Setting(rank, "absolute", float(f"{scale * margin:.4g}")) for rank in RANKS for margin in MARGINS]
    return relative + absolute


def curve(
    query: Array,
    rank: Array,
    score: Array,
    lowest: Array,
    relevant: Array,
    plain: Array | None = None,
    *,
    negatives: int,
    grid: Sequence[Setting],
    seed: int,
    samples: int = 1000,
    queries: int | None = None,
    count_unjudged: bool | None = None,
) -> list[Point]:
    """A point per setting, in the order of the grid. Each query gives its first `negatives` passages that pass.

    query int64[n], rank int32[n], score and lowest positive score float32[n], relevant int8[n] (1 relevant, 0 judged
    and irrelevant, -1 not judged). plain: float32[n], the scores that hardness is the mean of, where the margin weighs
    something else. queries: how many were asked; None: those in the lists, where a query of which
    nothing was left is missing from `kept` and `full`. samples: of the bootstrap, which draws whole queries, since
    the passages of one query err together. count_unjudged: whether fn takes the unjudged for irrelevant; None: only if
    nothing here was judged irrelevant, so name it where parts of one list shall be compared. An empty list gives points
    with nothing kept and upper 1.
    """
    codes = np.cumsum(ranking.position(query) == 0) - 1
    present = int(codes[-1]) + 1 if len(codes) else 0
    total = max(present, queries or 0)
    everything = not np.any(relevant == 0) if count_unjudged is None else count_unjudged
    lists = (codes, rank, score, lowest, relevant, score if plain is None else plain)
    sums = _sums(lists, max(total, 1), negatives, grid, everything)
    bounds = _bounds(sums, seed, samples)
    return [
        _point(setting, [rows[i] for rows in sums], bound, negatives)
        for i, (setting, bound) in enumerate(zip(grid, bounds, strict=True))
    ]


def choose(points: Sequence[Point], target: float) -> Point | None:
    """Of the points whose fn is at most target with 95% certainty: the most kept, then the hardest, then the first.

    The bound holds for each setting by itself; the best of many is a little worse than it looks.
    """
    safe = [point for point in points if point.upper <= target and point.kept > 0]
    return max(safe, key=lambda point: (point.kept, point.hardness or 0.0), default=None)


def lacking(points: Sequence[Point], target: float) -> int | None:
    """About how many more judged pairs would let the most promising setting through, if its share stays what it is.

    0 where one passes already; None where the share itself is above target in all, which no judging mends.
    Without an error `needed` less what there is; else a bound comes nearer with the root of the count.
    """
    more = []
    for point in points:
        if point.upper <= target and point.kept > 0:
            return 0
        if point.fn == 0.0:
            more.append(max(1, needed(target) - point.judged))
        elif point.fn is not None and point.fn < target:
            ratio = (point.upper - point.fn) / (target - point.fn)
            more.append(math.ceil(point.judged * (ratio**2 - 1)))
    return min(more, default=None)


def hide(positives: Array, query_hash: Array, doc_hash: Array, seed: int, share: float) -> Array:
    """bool[n]: which positives are hidden, so that mining can be watched falling for them.

    positives: int64[n, 2 or more], a query row and a passage row first, in any order; hashes: uint64, by row.
    Of a query with m >= 2 positives `share` of them, rounded, yet at least one stays and at least one is hidden; of a
    query with one, none. What is hidden depends on the ids of the query's own pairs and the seed alone.
    """
    query, doc = positives[:, 0], positives[:, 1]
    # Mixed once more: the plain tickets also draw the pools, and the two draws shall not go together.
    tickets = ranking.mix(ranking.lottery(query_hash[query], doc_hash[doc], seed))
    order = np.lexsort((doc, tickets, query))
    _, code, sizes = np.unique(query, return_inverse=True, return_counts=True)
    count = np.where(sizes > 1, np.clip(np.floor(share * sizes + 0.5), 1, sizes - 1), 0)
    hidden = np.zeros(len(positives), bool)
    hidden[order] = ranking.position(query[order]) < count[code[order]]
    return hidden


def _sums(lists: tuple[Array, ...], queries: int, negatives: int, grid: Sequence[Setting], everything: bool) -> _Sums:
    codes, rank, score, lowest, relevant, plain = lists
    sums = _Sums(*np.zeros((4, len(grid), queries)))
    for i, setting in enumerate(grid):
        margins = (setting.margin, None) if setting.kind == "absolute" else (None, setting.margin)
        highest = np.minimum(*ranking.ceiling(lowest, *margins))
        rows = np.flatnonzero((rank >= setting.rank_min) & ~(score > highest))
        rows = rows[ranking.position(codes[rows]) < negatives]
        judged = np.ones(len(rows), bool) if everything else relevant[rows] >= 0
        parts = (np.ones(len(rows)), judged, relevant[rows] == 1, plain[rows])
        for target, weights in zip(sums, parts, strict=True):
            target[i] = np.bincount(codes[rows], weights.astype(float), queries)
    return sums


def _bounds(sums: _Sums, seed: int, samples: int) -> list[tuple[float, float, float]]:
    """Per setting (2.5%, 97.5%, 95%) of fn: percentiles of the bootstrap, the upper ones at least the exact bounds.

    A bootstrap knows no error that it has not seen: without any it would call every setting perfect.
    """
    relevant, judged = [], []
    for weights in draws(sums.kept.shape[1], seed, samples):
        relevant.append(sums.relevant @ weights)
        judged.append(sums.judged @ weights)
    found = []
    for i, (errors, trials) in enumerate(zip(np.hstack(relevant), np.hstack(judged), strict=True)):
        shares = errors[trials > 0] / trials[trials > 0]
        low, high, upper = np.quantile(shares, [0.025, 0.975, LEVEL]).tolist() if len(shares) else (0.0, 1.0, 1.0)
        counts = int(sums.relevant[i].sum()), int(sums.judged[i].sum())
        found.append((low, max(high, upper_bound(*counts, level=0.975)), max(upper, upper_bound(*counts))))
    return found


def _point(setting: Setting, rows: list[Array], bound: tuple[float, float, float], negatives: int) -> Point:
    kept, judged, relevant, score = (float(row.sum()) for row in rows)
    low, high, upper = bound
    return Point(
        *setting,
        kept=kept / len(rows[0]),
        full=float((rows[0] >= negatives).mean()),
        judged=int(judged),
        relevant=int(relevant),
        fn=relevant / judged if judged else None,
        fn_all=relevant / kept if kept else None,
        interval=(low, high),
        upper=upper,
        hardness=score / kept if kept else None,
    )
