"""Which of a judge's verdicts may be trusted: the loosest threshold that keeps false negatives below a target.

Accepted is a pair whose grade (or score) is at or below the threshold; a failed answer never is. The thresholds are
tested one after the other, strictest first, each at the full level, and the first that fails ends it: fixed-sequence
testing, under which the chance that a chosen threshold is unsafe stays at 1 - level however many are tried
(Angelopoulos et al. 2021, "Learn then Test", arXiv 2110.01052, section 3). Those that accept too few pairs to pass
even without an error are passed over; that depends on the judge alone and never on what people said, so it costs
nothing.

The bound of one threshold is that of `bounds`, for pairs that come in queries. The correlation within a query is the
largest of three: that of the false negatives themselves, which few errors cannot show; that of relevance over all
answered pairs, since a query full of relevant passages is where the false negatives come from; and a floor.

It speaks of pairs that are drawn as the golden ones were.
"""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple

import numpy as np

from miner import bounds
from miner.agreement import Judged
from miner.bounds import LEVEL

Array = np.ndarray[Any, Any]
On = Literal["grade", "score"]
STEPS = 20  # score thresholds tried, at equal steps of accepted pairs
MOST = 10**7


class Threshold(NamedTuple):
    """What a threshold accepts, and how sure it is.

    accepted, queries: pairs, and the queries that they are of; false_negatives: of them relevant to people; share with
    its two-sided interval (low, high), None and (0, 1) where nothing is accepted; correlation: of two pairs of one
    query; effective: the independent pairs that they are worth; bound: one-sided, of the share. state: passes, fails,
    too few (it would not pass without an error either), or untested, behind one that failed.
    """

    on: On
    threshold: float
    accepted: int
    queries: int
    false_negatives: int
    share: float | None
    low: float
    high: float
    correlation: float
    effective: float
    bound: float
    state: str


class Calibration(NamedTuple):
    """The thresholds, strictest first, the loosest that passed, and for want of one the reason in words."""

    tried: list[Threshold]
    chosen: Threshold | None
    reason: str


def calibrate(judged: Judged, target: float, relevant_from: int, on: On = "grade", level: float = LEVEL) -> Calibration:
    """Choose the threshold below which a verdict may make a negative. target: the largest share of false negatives.

    Grades at or above relevant_from are never accepted. Without pairs nothing passes.
    """
    values = np.where(judged.judge < 0, np.nan, judged.judge if on == "grade" else judged.score)
    answered = ~np.isnan(values)
    relevant = judged.human >= relevant_from
    common = bounds.correlation(
        bounds.per_query(relevant & answered, judged.query), bounds.per_query(answered, judged.query)
    )
    tried: list[Threshold] = []
    for threshold in _grid(values[answered], relevant_from, on):
        accepted = answered & (values <= threshold)
        one = _threshold((on, threshold), accepted, relevant, judged.query, common, level)
        failed = any(other.state == "fails" for other in tried)
        state = "untested" if failed else _state(one, accepted, judged.query, target, level)
        tried.append(one._replace(state=state))
    passed = [one for one in tried if one.state == "passes"]
    return Calibration(
        tried, passed[-1] if passed else None, "" if passed else reason(tried, len(judged.human), target)
    )


def _grid(values: Array, relevant_from: int, on: On) -> list[float]:
    if on == "grade":
        return [float(grade) for grade in range(relevant_from)]
    steps = np.quantile(values, np.arange(1, STEPS + 1) / STEPS, method="lower") if len(values) else values
    return [float(value) for value in np.unique(steps)]


def _threshold(
    name: tuple[On, float], accepted: Array, relevant: Array, query: Array, common: float, level: float
) -> Threshold:
    errors, sizes = bounds.per_query(accepted & relevant, query), bounds.per_query(accepted, query)
    count, wrong = int(sizes.sum()), int(errors.sum())
    icc = max(bounds.ICC, common, bounds.correlation(errors, sizes))
    trials = bounds.effective(sizes, icc)
    worth = wrong / count * trials if count else 0.0
    low, high = bounds.exact_interval(worth, trials, level)
    bound = bounds.upper_bound(worth, trials, level)
    share = wrong / count if count else None
    return Threshold(*name, count, int((sizes > 0).sum()), wrong, share, low, high, icc, trials, bound, "")


def _state(one: Threshold, accepted: Array, query: Array, target: float, level: float) -> str:
    at_best = bounds.effective(bounds.per_query(accepted, query), bounds.ICC)
    if bounds.upper_bound(0, at_best, level) > target:
        return "too few"
    return "passes" if one.bound <= target else "fails"


def reason(tried: list[Threshold], pairs: int, target: float, level: float = LEVEL) -> str:
    """Why none of the thresholds passes: what more labels would have to show, or that they would not help."""
    some = [one for one in tried if one.accepted]
    if not some:
        return f"the judge accepts none of {pairs} pairs as irrelevant"
    best = min(
        (one for one in some if one.state != "untested"), key=lambda one: (one.share or 0.0, one.bound), default=some[0]
    )
    found = f"{best.false_negatives} of {best.accepted} accepted pairs are relevant"
    if (best.share or 0.0) >= target:
        return f"{found} at {best.on} <= {best.threshold:g}, {best.share:.1%} where {target:.1%} is wanted"
    more = accepted_needed(best, target, level)
    labels = math.ceil(more * pairs / best.accepted)
    return (
        f"{found} at {best.on} <= {best.threshold:g}, bound {best.bound:.1%} where {target:.1%} is wanted: too few"
        f" pairs; at this share about {more} accepted ones are needed, that is about {labels} golden pairs"
        f" ({bounds.needed(target, level)} accepted if none were relevant and each of another query)"
    )


def accepted_needed(one: Threshold, target: float, level: float = LEVEL) -> int:
    """About how many accepted pairs would bring the bound down to target, if share and clustering stay what they are.

    Takes the share to be below target.
    """
    share = one.share or 0.0
    low, high = 0, 1
    while bounds.upper_bound(share * high, high, level) > target and high < MOST:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if bounds.upper_bound(share * middle, middle, level) > target else (low, middle)
    return math.ceil(high * one.accepted / one.effective)
