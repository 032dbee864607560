"""In what order the candidates of a query enter its pool. Lists are flat: parallel arrays sorted by (group, rank).

An order is int64[n]: from 1 within each group for the allowed rows, 0 for the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from miner import ranking

Array = np.ndarray[Any, Any]


def _ordered(groups: Array, allowed: Array, *keys: Array) -> Array:
    """By the keys, the first of them first; then by rank."""
    rows = np.flatnonzero(allowed)
    if keys:
        rows = rows[np.lexsort((rows, *(key[rows] for key in reversed(keys)), groups[rows]))]
    order = np.zeros(len(groups), np.int64)
    order[rows] = ranking.position(groups[rows]) + 1
    return order


def by_rank(groups: Array, allowed: Array) -> Array:
    return _ordered(groups, allowed)


def by_ticket(groups: Array, allowed: Array, tickets: Array) -> Array:
    """tickets: uint64[n] of `ranking.lottery`; the smallest come first, so any prefix is a uniform draw."""
    return _ordered(groups, allowed, tickets)


def by_softmax(groups: Array, allowed: Array, score: Array, tickets: Array, temperature: float) -> Array:
    """Without replacement, each next one with probability proportional to exp(score / temperature).

    Gumbel-top-k (Kool et al. 2019): the largest score/temperature + Gumbel noise, made from the tickets.
    """
    # 52 bits and a half: never 0 nor 1, where the noise would be infinite.
    uniform = ((tickets >> np.uint64(12)).astype(float) + 0.5) / 2.0**52
    return _ordered(groups, allowed, -(score.astype(float) / temperature - np.log(-np.log(uniform))))


def by_bands(groups: Array, allowed: Array, bands: int) -> tuple[Array, Array]:
    """Equal parts of each group by rank, the hardest first, taken from by turns; and the band of each row, int64[n].

    A row that is not allowed has band -1.
    """
    rows = np.flatnonzero(allowed)
    place = ranking.position(groups[rows])
    sizes = np.bincount(groups[rows], minlength=int(groups.max(initial=-1)) + 1)[groups[rows]]
    band = np.full(len(groups), -1, np.int64)
    band[rows] = place * bands // np.maximum(sizes, 1)
    within = np.zeros(len(groups), np.int64)
    order = np.lexsort((place, band[rows], groups[rows]))
    within[rows[order]] = ranking.position(groups[rows][order] * bands + band[rows][order])
    return _ordered(groups, allowed, within, band), band


def band_names(band: Array, bands: int) -> pa.Array:
    names = ["hard", "medium", "easy"] if bands == 3 else [f"band{i + 1}" for i in range(bands)]
    codes = pa.array(np.maximum(band, 0), pa.int32(), mask=band < 0)
    return pa.DictionaryArray.from_arrays(codes, pa.array(names)).cast(pa.string())


def by_mmr(
    groups: Array, rows: Array, allowed: Array, score: Array, vectors: Array, balance: float, size: int
) -> Array:
    """Maximal marginal relevance (Carbonell & Goldstein 1998): the next one has the largest
    balance * score - (1 - balance) * (largest cosine with those taken), of equals the better ranked.

    vectors: float32[passages, d], L2-normalised, read per group. The first 2 * size of each group are ordered so, their
    scores scaled to 0..1 (equal ones count 1); the rest follow by rank.
    """
    order = by_rank(groups, allowed)
    for members in _groups(groups, (order > 0) & (order <= 2 * size)):
        relevance = score[members].astype(float)
        span = relevance.max() - relevance.min()
        relevance = (relevance - relevance.min()) / span if span else np.ones(len(members))
        units = np.asarray(vectors[rows[members]], np.float32)
        nearest = np.full(len(members), -1.0)
        left = np.ones(len(members), bool)
        for step in range(len(members)):
            value = np.where(left, balance * relevance - (1 - balance) * nearest, -np.inf)
            taken = int(value.argmax())
            order[members[taken]] = step + 1
            left[taken] = False
            nearest = np.maximum(nearest, units @ units[taken])
    return order


def _groups(groups: Array, wanted: Array) -> list[Array]:
    members = np.flatnonzero(wanted)
    if not len(members):
        return []
    return np.split(members, np.flatnonzero(np.diff(groups[members])) + 1)


def over_quota(groups: Array, order: Array, retriever: Array, quotas: Sequence[int | None]) -> Array:
    """bool[n]: allowed rows that come, in their order, after their retriever's quota is full."""
    over = np.zeros(len(groups), bool)
    for i, quota in enumerate(quotas):
        if quota is not None:
            place = _ordered(groups, (order > 0) & (retriever == i), order)
            over |= place > quota
    return over


def cap(
    used: Array,
    groups: Array,
    rows: Array,
    order: Array,
    size: int,
    most: int,
    retriever: Array | None = None,
    quotas: Sequence[int | None] = (),
) -> Array:
    """bool[n]: allowed rows skipped since their passage is in `most` pools already. Counts the pools up in `used`.

    The next in order takes the place of a skipped one, in its retriever's quota too; rows behind a full pool are not
    skipped but never reached. Queries are served in their order, so a query's pool depends on those before it. used:
    int64[passages]; retriever, quotas: as in `over_quota`, which is to be applied afterwards.
    """
    worn = np.zeros(len(groups), bool)
    for members in _groups(groups, order > 0):
        in_order = members[np.argsort(order[members], kind="stable")]
        free = used[rows[in_order]] < most
        taken = free
        if retriever is not None:
            place = np.where(free, np.arange(1, len(free) + 1), 0)
            taken = free & ~over_quota(np.zeros_like(in_order), place, retriever[in_order], quotas)
        reached = np.cumsum(taken) - taken < size
        worn[in_order[~free & reached]] = True
        used[rows[in_order[taken & reached]]] += 1
    return worn
