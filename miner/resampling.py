"""Intervals that know the pairs of one query to err together: the bootstrap draws whole queries. Pure arrays."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from miner import ranking
from miner.bounds import LEVEL

Array = np.ndarray[Any, Any]
# float64[s, n], how often each of n rows stands in each of s resamples -> float64[s] or [s, ...], nan where undefined.
Statistic = Callable[[Array], Array]

SAMPLES = 2000
AT_ONCE = 4_000_000  # numbers held at once, about 32 bytes each


class Interval(NamedTuple):
    """A statistic of the data and its two-sided interval. All nan where the statistic is undefined on the data."""

    value: float
    low: float
    high: float


def draws(queries: int, seed: int, samples: int, at_once: int | None = None) -> Iterator[Array]:
    """float64[queries, some]: how often each query is drawn in each sample. Hashes of counters, so no generator's
    version matters, and not the block size either; whole numbers, so sums are exact in any order."""
    at_once = at_once or max(1, AT_ONCE // queries)
    start = ranking.mix(np.array([seed], np.uint64))
    for first in range(0, samples, at_once):
        size = min(at_once, samples - first)
        counters = np.arange(first * queries, (first + size) * queries, dtype=np.uint64)
        drawn = (ranking.mix(counters ^ start) % np.uint64(queries)).astype(np.int64)
        drawn += np.repeat(np.arange(size) * queries, queries)
        yield np.bincount(drawn, minlength=size * queries).reshape(size, queries).T.astype(float)


def bootstrap(statistic: Statistic, query: Array, seed: int, samples: int = SAMPLES) -> Array:
    """float64[samples, ...]: the statistic on samples of whole queries, drawn with replacement.

    query: int64[n], each row's query as a number from 0 without gaps. The same seed draws the same queries, so that
    two statistics of one data set can be compared sample by sample. Field & Welsh 2007, "Bootstrapping clustered data".
    """
    queries = int(query.max()) + 1
    blocks = draws(queries, seed, samples, max(1, AT_ONCE // max(len(query), queries)))
    return np.concatenate([statistic(np.ascontiguousarray(block.T[:, query])) for block in blocks])


def percentiles(sampled: Array, queries: int, level: float = LEVEL) -> tuple[float, float]:
    """(low, high) of a bootstrap, without its undefined samples; (nan, nan) where nothing else is left.

    Expanded percentiles (Hesterberg 2015, "What teachers should know about the bootstrap", section 4): plain ones are
    too narrow by the factor that divides a t interval from a normal one, which tells below 100 queries.
    """
    from scipy.special import ndtr, stdtrit

    defined = sampled[~np.isnan(sampled)]
    if not len(defined) or queries < 2:
        return float("nan"), float("nan")
    tail = ndtr(np.sqrt(queries / (queries - 1)) * stdtrit(queries - 1, (1 - level) / 2))
    low, high = np.quantile(defined, [tail, 1 - tail])
    return float(low), float(high)


def interval(
    statistic: Statistic, query: Array, seed: int, samples: int = SAMPLES, level: float = LEVEL
) -> Interval | list[Interval]:
    """The statistic of the rows and its query-clustered bootstrap interval; a list where it gives several numbers."""
    value = statistic(np.ones((1, len(query))))[0]
    sampled = bootstrap(statistic, query, seed, samples)
    queries = int(query.max()) + 1
    if np.ndim(value):
        columns = sampled.reshape(samples, -1).T
        return [_interval(v, column, queries, level) for v, column in zip(np.ravel(value), columns, strict=True)]
    return _interval(value, sampled, queries, level)


def _interval(value: float, sampled: Array, queries: int, level: float) -> Interval:
    if np.isnan(value):
        return Interval(float("nan"), float("nan"), float("nan"))
    return Interval(float(value), *percentiles(sampled, queries, level))


def difference(
    first: Statistic, second: Statistic, query: Array, seed: int, samples: int = SAMPLES, level: float = LEVEL
) -> Interval:
    """second - first with its interval: both on the same drawn queries, since they judged the same pairs.

    Two statistics that agree on every pair give 0 with the interval (0, 0).
    """
    found = interval(lambda weights: second(weights) - first(weights), query, seed, samples, level)
    assert isinstance(found, Interval), "a difference of two numbers is one number"
    return found
