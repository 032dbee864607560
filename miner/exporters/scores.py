"""The scores that are exported: on which scale, how far apart, and what that says about distillation."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from miner.exporters import Array, Block


@dataclass(frozen=True)
class Scale:
    """raw, sigmoid, or minmax with the ends that become 0 and 1."""

    kind: str = "raw"
    low: float = 0.0
    high: float = 1.0

    def apply(self, scores: Array) -> Array:
        """float64[n]; NaN stays NaN. minmax of equal scores is 0."""
        if self.kind == "sigmoid":
            return np.asarray(0.5 * (1.0 + np.tanh(0.5 * scores)))  # does not overflow
        if self.kind == "minmax":
            return np.asarray((scores - self.low) / ((self.high - self.low) or 1.0))
        return scores


@dataclass(frozen=True)
class Survey:
    """What one pass over all blocks counts, on raw scores. Of queries: spread is the median standard deviation of a
    query's scores, top the mean weight of the best under the softmax of the raw ones, top_advised of scores / spread.
    """

    queries: int
    positives: int
    negatives: int
    fewest: int  # negatives of a query
    most: int
    taught: bool
    low: float
    high: float
    spread: float
    top: float
    top_advised: float
    lost: dict[str, int]

    def scale(self, kind: str) -> Scale:
        return Scale(kind, self.low, self.high)


class _Counter:
    """What `survey` has seen so far."""

    def __init__(self) -> None:
        self.lost: dict[str, int] = {}
        self.counts, self.taught = np.zeros(3, np.int64), True
        self.sizes: list[Array] = []
        self.ends: list[tuple[float, float]] = []
        self.by_query: list[Array] = []

    def add(self, block: Block) -> None:
        for reason, count in block.lost.items():
            self.lost[reason] = self.lost.get(reason, 0) + count
        sides = (block.positives, block.negatives)
        self.counts += [len(block), *(len(side.row) for side in sides)]
        self.sizes.append(np.diff(block.negatives.offsets(len(block))))
        self.taught &= not any(np.isnan(side.teacher).any() for side in sides)
        query, score = (np.concatenate([getattr(side, name) for side in sides]) for name in ("query", "score"))
        known = ~np.isnan(score)
        if known.any():
            self.ends.append((float(score[known].min()), float(score[known].max())))
            self.by_query.append(_peaks(query[known], score[known]))

    def found(self) -> Survey:
        sizes = np.concatenate(self.sizes) if self.counts[0] else np.zeros(1, np.int64)
        peaks = np.concatenate(self.by_query) if self.by_query else np.zeros((1, 3))
        low, high = (min(a for a, _ in self.ends), max(b for _, b in self.ends)) if self.ends else (0.0, 0.0)
        queries, positives, negatives = self.counts.tolist()
        spread, top, advised = float(np.median(peaks[:, 0])), float(peaks[:, 1].mean()), float(peaks[:, 2].mean())
        few, most, taught = int(sizes.min()), int(sizes.max()), self.taught and queries > 0
        return Survey(queries, positives, negatives, few, most, taught, low, high, spread, top, advised, self.lost)


def survey(blocks: Iterator[Block]) -> Survey:
    """Of no query: zeros."""
    counter = _Counter()
    for block in blocks:
        counter.add(block)
    return counter.found()


def _peaks(query: Array, score: Array) -> Array:
    """float64[queries, 3]: the standard deviation of a query's scores; the best one's weight under the softmax of the
    raw scores, and of the scores over their standard deviation (1 where there is one score or all are equal)."""
    order = np.argsort(query, kind="stable")
    score = score[order].astype(np.float64)
    _, group = np.unique(query[order], return_inverse=True)
    size = np.bincount(group)
    deviation = np.sqrt(np.maximum(np.bincount(group, score**2) / size - (np.bincount(group, score) / size) ** 2, 0))
    best = np.full(len(size), -np.inf)
    np.maximum.at(best, group, score)
    tops = [deviation]
    for divisor in (np.ones(len(size)), np.where(deviation > 0, deviation, 1.0)):
        tops.append(1.0 / np.bincount(group, np.exp((score - best[group]) / divisor[group])))
    return np.column_stack(tops)
