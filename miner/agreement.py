"""How well do a judge's grades agree with people's, and how sure is that? Pure arrays.

A statistic here is a function of counts, float64[..., 4, 5]: human grade 0-3 by judge grade 0-3 and, last, failed. So
one line serves the data and all resamples of it. What cannot be said is nan, never 0 or 1: a kappa where both gave one
and the same class only, an AUC where people saw one class only, a share of nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any, Literal, NamedTuple

import numpy as np

from miner import bounds, resampling
from miner.bounds import LEVEL
from miner.resampling import SAMPLES, Interval, Statistic

Array = np.ndarray[Any, Any]
Weights = Literal["binary", "quadratic"]
GRADES = 4
FAILED = -1


@dataclass(frozen=True)
class Judged:
    """Pairs that people and a judge have graded, in any order.

    query: int64[n], numbers from 0 without gaps; human: int64[n], 0-3; judge: int64[n], 0-3 or -1 where the answer is
    failed; score: float64[n], higher is more relevant, nan where there is none.
    """

    query: Array
    human: Array
    judge: Array
    score: Array

    @classmethod
    def of(
        cls,
        query_ids: Sequence[str],
        human: Sequence[int],
        judge: Sequence[int | None],
        score: Sequence[float | None] | None = None,
    ) -> Judged:
        """From plain lists; None is a failed answer or no score. Without scores the grade is the score."""
        grades = np.array([FAILED if grade is None else grade for grade in judge], np.int64)
        scores = np.where(grades < 0, np.nan, grades) if score is None else score
        codes = np.unique(np.asarray(query_ids, object).astype(str), return_inverse=True)[1]
        return cls(codes.astype(np.int64), np.asarray(human, np.int64), grades, np.asarray(scores, np.float64))

    @property
    def queries(self) -> int:
        return int(self.query.max()) + 1 if len(self.query) else 0


def counts(judged: Judged, weights: Array | None = None) -> Array:
    """float64[4, 5], or [s, 4, 5] for weights float64[s, n]: human grade by judge grade, the last column failed."""
    cell = judged.human * (GRADES + 1) + np.where(judged.judge < 0, GRADES, judged.judge)
    if weights is None:
        return np.bincount(cell, minlength=GRADES * (GRADES + 1)).reshape(GRADES, GRADES + 1).astype(float)
    found: Array = weights @ np.eye(GRADES * (GRADES + 1))[cell]
    return found.reshape(-1, GRADES, GRADES + 1)


def confusion(human: Array, judge: Array, size: int = GRADES) -> Array:
    """int64[size, size]: rows human, columns judge; pairs with a failed answer are left out."""
    ok = judge >= 0
    return np.bincount(human[ok] * size + judge[ok], minlength=size * size).reshape(size, size)


def kappa(table: Array, weights: Weights = "binary") -> Array:
    """Cohen's kappa of float64[..., k, k] counts, any k >= 2: float64[...].

    binary: every disagreement counts the same (Cohen 1960, so for k > 2 it is the plain, unweighted one); quadratic: by
    the square of the distance (Cohen 1968). nan where chance alone would agree always: both gave one class only.
    """
    size = table.shape[-1]
    steps = np.arange(size)
    cost = (steps[:, None] - steps) ** 2 if weights == "quadratic" else steps[:, None] != steps
    total = table.sum((-2, -1))
    expected = table.sum(-1)[..., :, None] * table.sum(-2)[..., None, :]
    return np.asarray(1 - share((table * cost).sum((-2, -1)) * total, (expected * cost).sum((-2, -1))))


def share(part: Array, whole: Array) -> Array:
    """part / whole, nan where whole is 0."""
    found: Array = np.divide(part, whole, out=np.full(np.shape(whole), np.nan), where=np.asarray(whole) > 0)
    return found


def two_by_two(table: Array, relevant_from: int, irrelevant_to: int) -> Array:
    """float64[..., 4, 5] -> [..., 2, 2] of the answered pairs: people irrelevant, relevant by judge irrelevant, not."""
    rows = np.stack([table[..., :relevant_from, :].sum(-2), table[..., relevant_from:, :].sum(-2)], -2)
    accepted, others = rows[..., : irrelevant_to + 1].sum(-1), rows[..., irrelevant_to + 1 : GRADES].sum(-1)
    return np.stack([accepted, others], -1)


def kappa_binary(table: Array, relevant_from: int, irrelevant_to: int) -> Array:
    """Do they agree on what is irrelevant? Over answered pairs."""
    return kappa(two_by_two(table, relevant_from, irrelevant_to))


def kappa_quadratic(table: Array, _: int, __: int) -> Array:
    """Do they agree on the grade? Over answered pairs."""
    return kappa(table[..., :GRADES], "quadratic")


def precision(table: Array, relevant_from: int, irrelevant_to: int) -> Array:
    """Of the pairs that the judge calls irrelevant, the share that people do: 1 - false negatives among accepted."""
    accepted = two_by_two(table, relevant_from, irrelevant_to)[..., 0]
    return share(accepted[..., 0], accepted.sum(-1))


def false_negatives(table: Array, relevant_from: int, irrelevant_to: int) -> Array:
    """Of the pairs that the judge calls irrelevant, the share that is relevant."""
    accepted = two_by_two(table, relevant_from, irrelevant_to)[..., 0]
    return share(accepted[..., 1], accepted.sum(-1))


def recall(table: Array, relevant_from: int, irrelevant_to: int) -> Array:
    """Of the pairs that people call irrelevant, the share that the judge does; a failed answer does not."""
    found = two_by_two(table, relevant_from, irrelevant_to)[..., 0, 0]
    return share(found, table[..., :relevant_from, :].sum((-2, -1)))


def yield_(table: Array, relevant_from: int, irrelevant_to: int) -> Array:
    """The share of all pairs that the judge accepts as irrelevant."""
    return share(table[..., : irrelevant_to + 1].sum((-2, -1)), table.sum((-2, -1)))


def auc_grade(table: Array, relevant_from: int, _: int) -> Array:
    """The chance that of a relevant and an irrelevant pair the relevant one has the higher grade, ties half."""
    low, high = table[..., :relevant_from, :GRADES].sum(-2), table[..., relevant_from:, :GRADES].sum(-2)
    below = np.cumsum(low, -1) - low
    return share((high * (below + low / 2)).sum(-1), low.sum(-1) * high.sum(-1))


COUNTED: dict[str, Callable[[Array, int, int], Array]] = {
    "kappa": kappa_binary,
    "kappa_quadratic": kappa_quadratic,
    "precision_irrelevant": precision,
    "recall_irrelevant": recall,
    "yield": yield_,
    "false_negatives": false_negatives,
    "auc_grade": auc_grade,
}


def auc(relevant: Array, score: Array, weights: Array | None = None) -> Array:
    """float64[s]: area under the ROC curve, ties half (Mann-Whitney); nan where one class is missing.

    relevant: bool[n]; score: float64[n], pairs without one (nan) are left out; weights: float64[s, n], default ones.
    """
    known = ~np.isnan(score)
    rows = np.ones((1, len(score))) if weights is None else weights
    level = np.unique(score[known], return_inverse=True)[1]
    order = np.argsort(level, kind="stable")
    starts = np.flatnonzero(np.r_[True, np.diff(level[order]) > 0]) if len(level) else np.empty(0, np.int64)
    sides = []
    for side in (~relevant[known], relevant[known]):
        mass = (rows[:, known] * side)[:, order]
        sides.append(np.add.reduceat(mass, starts, axis=1) if len(starts) else np.zeros((len(rows), 1)))
    low, high = sides
    return share((high * (np.cumsum(low, 1) - low / 2)).sum(1), low.sum(1) * high.sum(1))


class Bin(NamedTuple):
    """Pairs whose score lies in [start, end), in the last bin up to its end too: their mean score, and the share of
    them that is relevant with its interval; nan in an empty bin."""

    start: float
    end: float
    n: int
    predicted: float
    observed: Interval


def reliability(judged: Judged, relevant_from: int, edges: Sequence[float], **options: Any) -> list[Bin]:
    """What a score means: the share of relevant pairs per bin of scores. options: seed, samples, level."""
    relevant = judged.human >= relevant_from
    place = np.searchsorted(edges, judged.score, "right") - 1
    place[judged.score == edges[-1]] = len(edges) - 2
    members = place[:, None] == np.arange(len(edges) - 1)
    sizes, score = members.sum(0), np.nan_to_num(judged.score)
    predicted = share(score @ members, sizes.astype(float))

    def observed(weights: Array) -> Array:
        return share((weights * relevant) @ members, weights @ members)

    found = resampling.interval(observed, judged.query, **options)
    assert isinstance(found, list), "one interval a bin"
    wide = [_widened(one, relevant, members[:, i], judged.query) for i, one in enumerate(found)]
    return [
        Bin(*ends, int(n), float(mean), one)
        for ends, n, mean, one in zip(pairwise(edges), sizes, predicted, wide, strict=True)
    ]


def _widened(one: Interval, part: Array, whole: Array, query: Array, level: float = LEVEL) -> Interval:
    """The interval of a share, reaching as far as the exact one: a bootstrap knows no error it has not seen."""
    low, high = bounds.clustered_interval(part, whole, query, level)
    return Interval(one.value, min(one.low, low), max(one.high, high)) if one.value == one.value else one


def statistic(judged: Judged, name: str, relevant_from: int, irrelevant_to: int) -> Statistic:
    """A statistic of COUNTED, or `auc_score`, as a function of row weights for the bootstrap."""
    if name == "auc_score":
        return partial(auc, judged.human >= relevant_from, judged.score)
    measure = COUNTED[name]
    return lambda weights: measure(counts(judged, weights), relevant_from, irrelevant_to)


def measure(
    judged: Judged, relevant_from: int, irrelevant_to: int, seed: int, samples: int = SAMPLES, level: float = LEVEL
) -> dict[str, Interval]:
    """Every statistic of COUNTED with its query-clustered interval, and `auc_score` where scores say more than grades.

    One bootstrap for all: the tables of the resamples are counted once. The intervals of shares reach at least as far
    as the exact ones of `bounds`; kappa and AUC have no such.
    """

    def every(weights: Array) -> Array:
        tables = counts(judged, weights)
        return np.stack([one(tables, relevant_from, irrelevant_to) for one in COUNTED.values()], 1)

    found = resampling.interval(every, judged.query, seed, samples, level)
    assert isinstance(found, list), "one interval a statistic"
    named = dict(zip(COUNTED, found, strict=True))
    for name, (part, whole) in _shares(judged, relevant_from, irrelevant_to).items():
        named[name] = _widened(named[name], part, whole, judged.query, level)
    if not np.array_equal(judged.score, np.where(judged.judge < 0, np.nan, judged.judge), equal_nan=True):
        one = statistic(judged, "auc_score", relevant_from, irrelevant_to)
        area = resampling.interval(one, judged.query, seed, samples, level)
        assert isinstance(area, Interval), "one number"
        named["auc_score"] = area
    return named


def _shares(judged: Judged, relevant_from: int, irrelevant_to: int) -> dict[str, tuple[Array, Array]]:
    """The statistics that are shares of pairs: bool[n] what is counted, bool[n] among which."""
    irrelevant, accepted = judged.human < relevant_from, (judged.judge >= 0) & (judged.judge <= irrelevant_to)
    return {
        "precision_irrelevant": (irrelevant & accepted, accepted),
        "recall_irrelevant": (irrelevant & accepted, irrelevant),
        "yield": (accepted, np.ones(len(accepted), bool)),
        "false_negatives": (~irrelevant & accepted, accepted),
    }


def difference(
    first: Judged, second: Judged, name: str, relevant_from: int, irrelevant_to: int, seed: int, samples: int = SAMPLES
) -> Interval:
    """second - first of one statistic on the same pairs in the same order, with its paired query-clustered interval."""
    if not np.array_equal(first.query, second.query) or not np.array_equal(first.human, second.human):
        raise ValueError("the two judges did not grade the same pairs in the same order")
    one, two = (statistic(judged, name, relevant_from, irrelevant_to) for judged in (first, second))
    return resampling.difference(one, two, first.query, seed, samples)


def mcnemar(only_first: int, only_second: int) -> float:
    """Exact two-sided p of McNemar 1947: of the pairs that just one of two judges got right, is it the same half?

    1.0 where the two never differ. It takes pairs for independent, so beside it stands the clustered interval.
    """
    from scipy.special import bdtr

    both = only_first + only_second
    return min(1.0, 2 * float(bdtr(min(only_first, only_second), both, 0.5))) if both else 1.0
