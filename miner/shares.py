"""Who gets what, in fixed shares: options dealt to keys in quota; samples picked so that they cover a range. Pure."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


def quotas(count: int, weights: Sequence[float]) -> list[int]:
    """`count` split by weight, by the largest remainders; ties to the first."""
    total = math.fsum(weights)
    exact = [count * weight / total for weight in weights]
    found = [math.floor(share) for share in exact]
    order = sorted(range(len(weights)), key=lambda i: (found[i] - exact[i], i))
    for i in order[: count - sum(found)]:
        found[i] += 1
    return found


def deal(keys: Sequence[str], weights: Sequence[float], allowed: Sequence[Sequence[int]], seed: int) -> list[int]:
    """An option for each key, in quota: with all options allowed, each is dealt as often as `quotas` says.

    allowed: the options open to each key, at least one. A key takes, of its options with some quota left, the one that
    it likes best by a weighted hash of its own, so when keys come or go most others keep theirs. Keys with few options
    choose first, the others in the order of their hashes. Where no option of a key has quota left, it takes its best.
    """
    left = quotas(len(keys), weights)
    order = sorted(range(len(keys)), key=lambda i: (len(allowed[i]), draw(seed, keys[i], ""), keys[i]))
    dealt = [0] * len(keys)
    for i in order:
        likes = sorted(allowed[i], key=lambda o: (math.log(draw(seed, keys[i], str(o))) / weights[o], o), reverse=True)
        dealt[i] = next((option for option in likes if left[option] > 0), likes[0])
        left[dealt[i]] -= 1
    return dealt


def draw(seed: int, key: str, option: str) -> float:
    """Uniform in (0, 1), by hash."""
    mixed = hashlib.blake2b(f"{seed} {option} {key}".encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return (int.from_bytes(mixed, "big") + 0.5) / 2.0**64


def spread(scores: Sequence[Sequence[float]], band: Sequence[float], start: float) -> list[int]:
    """Of the samples of each demand of a query the one to keep, -1 where it has none.

    The kept ones are to cover the quantiles of `band`, the scores of the query's mined candidates: of n demands the
    targets are (0 + start)/n, (1 + start)/n, …; start, from 0 to 1, differs between queries, so that over the job the
    source of a negative does not show in its score (after CausalNeg, arXiv 2606.01304). The sum of the distances is
    the smallest that is possible. Without a band the first samples are kept.
    """
    from scipy.optimize import linear_sum_assignment

    full = [i for i, group in enumerate(scores) if group]
    picks = [0 if group else -1 for group in scores]
    if not full or not band:
        return picks
    targets = (np.arange(len(full)) + start) / len(full)
    away = [np.abs(_quantile(scores[i], band)[:, None] - targets) for i in full]
    found = linear_sum_assignment(np.array([distances.min(axis=0) for distances in away]))
    for row, target in zip(*found, strict=True):
        picks[full[row]] = int(away[row][:, target].argmin())
    return picks


def _quantile(scores: Sequence[float], band: Sequence[float]) -> Array:
    """float64[n]: where scores lie in a band, 0 to 1; outside of it, further by the distance in widths of the band."""
    edge, found = np.sort(np.array(band, float)), np.array(scores, float)
    width = max(float(edge[-1] - edge[0]), 1e-9)
    inside = np.interp(found, edge, np.linspace(0.0, 1.0, len(edge)))
    return np.asarray(inside + (found - np.clip(found, edge[0], edge[-1])) / width)
