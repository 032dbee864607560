"""Refuse what cannot be a negative, each with its reason, and draw the pool from the rest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from miner import fusion, ranking, selection
from miner.config import Mining
from miner.fusion import Fused
from miner.numbering import Block, Numbered, are_positive
from miner.records import CANDIDATES, POSITIVES

Array = np.ndarray[Any, Any]
LATER = ("max_uses", "quota", "not_sampled")  # reasons of those that passed every test


@dataclass(frozen=True)
class Scores:
    """Of the candidates and of the block's positives, in their order: float32, the teacher's NaN where it gave none.

    to_positive: a candidate's highest cosine with a positive of its query; NaN where nothing asks for it.
    """

    dense: Array
    positive_dense: Array
    to_positive: Array
    teacher: Array
    positive_teacher: Array


@dataclass(frozen=True)
class Draw:
    """How many are drawn, by what chance, and how often each passage was drawn before (int64, counted on)."""

    pool: int
    seed: int
    used: Array
    vectors: Array


def fused(block: Block, lists: list[pa.Table], mining: Mining) -> Fused:
    """One list per query out of the RETRIEVED tables of all retrievers; the query is counted from block.low."""
    keys = []
    for table in lists:
        query, row, rank, score = (table.column(name).to_numpy() for name in table.column_names)
        keys.append((query.astype(np.int64) - block.low, row.astype(np.int64), rank, score))
    weights = [retriever.weight for retriever in mining.retrievers]
    return fusion.fuse(keys, weights, mining.fusion, mining.rrf_k)


def to_teach(world: Numbered, block: Block, found: Fused, depth: int) -> Array:
    """int64[m, 2]: (query row, passage row) of every positive and of the `depth` best others of each query."""
    positives = world.positives_of(block)
    known, copies = are_positive(world, positives, found.query, found.row)
    others = np.flatnonzero(~(known | copies))
    best = others[ranking.position(found.query[others]) < depth]
    pairs = np.concatenate([positives[:, :2], np.stack([found.query[best], found.row[best]], axis=1)])
    pairs[:, 0] += block.low
    return np.unique(pairs, axis=0)


def run(
    world: Numbered,
    block: Block,
    found: Fused,
    scores: Scores,
    refusals: list[tuple[str, Array]],
    mining: Mining,
    draw: Draw,
) -> tuple[pa.Table, pa.Table]:
    """Candidates by (query, rank) and scored positives by (query, passage).

    refusals: (reason, bool[n]) of the content filters, by order of precedence.
    """
    query, row = found.query, found.row
    positives = world.positives_of(block)
    lowest = _lowest(positives[:, 0], scores.positive_dense, block.size)
    lowest_teacher = _lowest(positives[:, 0], scores.positive_teacher, block.size)
    tests = _tests(world, block, found, scores, (lowest, lowest_teacher), refusals, mining)
    reasons = ["", *(name for name, _ in tests), *LATER]
    reason = ranking.first_true([failed for _, failed in tests], len(query))
    pool_rank, band = _pool(world, block, found, scores, reason, len(tests), mining, draw)
    names = [retriever.label for retriever in mining.retrievers]
    columns = [
        world.queries.column("query_id").take(block.low + query),
        world.passages.column("doc_id").take(row),
        ranking.words(_best(found.ranks), names),
        ranking.position(query) + 1,
        scores.dense,
        lowest[query],
        _or_null(scores.to_positive),
        _or_null(scores.teacher),
        _or_null(lowest_teacher[query]),
        _found_by(found, names),
        band,
        ranking.words(reason, reasons),
        pa.array(pool_rank, mask=pool_rank == 0),
    ]
    return _table(columns, CANDIDATES), _positives(world, block, positives, scores)


def rocchio(score: Array, to_positive: Array) -> Array:
    """float32[n]: the mean of the cosines with the query and with its nearest positive.

    What is relevant lies near what is known to be relevant (Rocchio 1971, with equal weights): a candidate near both is
    more likely a positive that nobody marked than one that is as near to the query alone.
    """
    return np.asarray((score + to_positive) / np.float32(2), np.float32)


def _lowest(query: Array, score: Array, size: int) -> Array:
    """float32[size]: the lowest positive score of each query; inf where there is none, NaN where one is not known."""
    lowest = np.full(size, np.inf, np.float32)
    with np.errstate(invalid="ignore"):
        np.minimum.at(lowest, query, score)
    return lowest


def _best(ranks: Array) -> Array:
    """int64[n]: the retriever with the best rank, the first of equal ones."""
    return np.asarray(np.where(ranks > 0, ranks, np.iinfo(np.int32).max).argmin(axis=1))


def _or_null(values: Array) -> pa.Array:
    return pa.array(values, pa.float32(), mask=~np.isfinite(values))


def _found_by(found: Fused, names: list[str]) -> pa.Array:
    there = found.ranks > 0
    _, retriever = np.nonzero(there)
    places = pa.DictionaryArray.from_arrays(pa.array(retriever, pa.int32()), pa.array(names, pa.string()))
    entries = pa.StructArray.from_arrays(
        [
            places.cast(pa.string()),
            pa.array(found.ranks[there], pa.int32()),
            pa.array(found.scores[there], pa.float32()),
        ],
        names=["retriever", "rank", "score"],
    )
    return pa.ListArray.from_arrays(pa.array(np.r_[0, there.sum(axis=1).cumsum()], pa.int32()), entries)


def _table(columns: list[Any], schema: pa.Schema) -> pa.Table:
    arrays = [c if isinstance(c, pa.Array | pa.ChunkedArray) else pa.array(c) for c in columns]
    return pa.table(arrays, names=schema.names).cast(schema)


def _tests(
    world: Numbered,
    block: Block,
    found: Fused,
    scores: Scores,
    lowest: tuple[Array, Array],
    refusals: list[tuple[str, Array]],
    mining: Mining,
) -> list[tuple[str, Array]]:
    """(reason, bool[n]: refused for it), by order of precedence."""
    query, row = found.query, found.row
    positive, copy = are_positive(world, world.positives_of(block), query, row)
    cls = world.copy_class[row]
    by_teacher = mining.margin_on == "teacher"
    score = scores.teacher if by_teacher else scores.dense
    weighed = rocchio(score, scores.to_positive) if mining.margin_on == "rocchio" else score
    ceilings = ranking.ceiling(lowest[by_teacher][query], mining.margin_absolute, mining.margin_relative)
    never = np.zeros(len(query), bool)
    return [
        ("positive", positive),
        ("positive_copy", copy),
        ("query_copy", cls == world.query_class[block.low + query]),
        ("copy_of_better", _copy_of_better(world, query, cls)),
        *refusals,
        *_windows(found, mining),
        ("no_teacher_score", np.isnan(score)),
        ("score_max", never if mining.score_max is None else score > np.float32(mining.score_max)),
        ("margin_absolute", weighed > ceilings[0]),
        ("margin_relative", weighed > ceilings[1]),
        ("score_min", never if mining.score_min is None else score < np.float32(mining.score_min)),
    ]


def _copy_of_better(world: Numbered, query: Array, cls: Array) -> Array:
    found = np.zeros(len(query), bool)
    several = np.flatnonzero(world.class_size[cls] > 1)  # mostly few: only they can repeat one
    found[several] = ranking.is_repeat(query[several], cls[several])
    return found


def _windows(found: Fused, mining: Mining) -> list[tuple[str, Any]]:
    """Above the window of any retriever is too near to trust; below the window of all that found it is too far."""
    bounds = [mining.window(retriever) for retriever in mining.retrievers]
    first = np.array([low for _, low, _ in bounds])
    last = np.array([high or np.iinfo(np.int32).max for _, _, high in bounds])
    there = found.ranks > 0
    return [
        ("rank_min", np.any(there & (found.ranks < first), axis=1)),
        ("rank_max", ~np.any(there & (found.ranks <= last), axis=1)),
    ]


def _pool(
    world: Numbered, block: Block, found: Fused, scores: Scores, reason: Array, tests: int, mining: Mining, draw: Draw
) -> tuple[Array, pa.Array]:
    """int32[n] pool ranks, and band names; gives the reasons of those not drawn, numbered behind the `tests`."""
    max_uses, quota, not_sampled = range(tests + 1, tests + 1 + len(LATER))
    allowed = reason == 0
    order, band = _order(world, block, found, scores, allowed, mining, draw)
    quotas = [retriever.quota for retriever in mining.retrievers]
    limited = (_best(found.ranks), quotas) if any(quotas) else ()
    if mining.max_uses is not None:
        worn = selection.cap(draw.used, found.query, found.row, order, draw.pool, mining.max_uses, *limited)
        reason[worn] = max_uses
        order[worn] = 0
    if any(quotas):
        over = selection.over_quota(found.query, order, _best(found.ranks), quotas)
        reason[over] = quota
        order[over] = 0
    pool_rank = ranking.renumber(found.query, order, draw.pool)
    reason[(reason == 0) & (pool_rank == 0)] = not_sampled
    return pool_rank, band


def _order(
    world: Numbered, block: Block, found: Fused, scores: Scores, allowed: Array, mining: Mining, draw: Draw
) -> tuple[Array, pa.Array]:
    """int64[n]: in what order the allowed candidates of each query are taken, from 1; 0 for the others."""
    query, row = found.query, found.row
    no_band = pa.nulls(len(query), pa.string())

    def tickets() -> Array:
        return ranking.lottery(world.query_hash[block.low + query], world.doc_hash[row], draw.seed)

    score = scores.teacher if mining.margin_on == "teacher" else scores.dense
    if mining.sample == "random":
        return selection.by_ticket(query, allowed, tickets()), no_band
    if mining.sample == "softmax":
        return selection.by_softmax(query, allowed, score, tickets(), mining.temperature), no_band
    if mining.sample == "mmr":
        return selection.by_mmr(query, row, allowed, score, draw.vectors, mining.mmr_lambda, draw.pool), no_band
    if mining.sample == "bands":
        order, band = selection.by_bands(query, allowed, mining.bands)
        return order, selection.band_names(band, mining.bands)
    return selection.by_rank(query, allowed), no_band


def _positives(world: Numbered, block: Block, positives: Array, scores: Scores) -> pa.Table:
    columns = [
        world.queries.column("query_id").take(block.low + positives[:, 0]),
        world.passages.column("doc_id").take(positives[:, 1]),
        positives[:, 2],
        scores.positive_dense,
        _or_null(scores.positive_teacher),
    ]
    return _table(columns, POSITIVES)
