"""How many negatives are relevant after all, by an encoder and by a judge, on a sample of queries, with intervals."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from miner import config, encoders, engine
from miner.audit_checks import Group, digest
from miner.bounds import exact_interval
from miner.errors import UserError
from miner.records import fold
from miner.stages import judgments

Array = np.ndarray[Any, Any]
DRAWS = 2000
RANDOM_QUANTILE = 0.95  # a random passage lies below it so often


def by_encoder(
    job: config.Job, encoder: encoders.Encoder, groups: list[tuple[bytes, Group]], seed: int
) -> dict[str, Any]:
    """Shares of the negatives: above their query's lowest positive; within the job's margin of it, or above; and no
    closer than positives of other queries. Each with a 95% interval by bootstrap over queries."""
    queries = encoder.encode([group.query for _, group in groups], "query")
    sides = [[text for _, group in groups for text in side(group)] for side in (_positives, _negatives)]
    distinct = list(dict.fromkeys(sides[0] + sides[1]))
    vectors = encoder.encode(distinct, "passage")
    row = {text: i for i, text in enumerate(distinct)}
    chance = _chance(queries, vectors, [[row[text] for text in group.positives] for _, group in groups])
    relative, absolute = job.mining.margin_relative or 0.0, job.mining.margin_absolute or 0.0
    counts = np.zeros((len(groups), 4))
    for i, (_, group) in enumerate(groups):
        lowest = float((vectors[[row[text] for text in group.positives]] @ queries[i]).min())
        scores = vectors[[row[text] for text in group.negatives]] @ queries[i]
        near = lowest - relative * abs(lowest) - absolute
        counts[i] = [(scores > lowest).sum(), (scores > near).sum(), (scores <= chance[i]).sum(), len(scores)]
    names = ("above the positive", "above the positive less the margin", "no closer than a random passage")
    shares = {name: _clustered(counts[:, i], counts[:, 3], seed) for i, name in enumerate(names)}
    return {"queries": len(groups), "negatives": int(counts[:, 3].sum()), "model": job.encoder.model, "shares": shares}


def _chance(queries: Array, vectors: Array, positives: list[list[int]]) -> Array:
    """float32[n]: what 95% of the positives of other queries do not reach. positives: rows of `vectors`."""
    others = np.unique([rows[0] for rows in positives])
    scores = queries @ vectors[others].T
    for i, rows in enumerate(positives):
        scores[i, np.isin(others, rows)] = np.nan
    scores[np.isnan(scores).all(axis=1)] = -np.inf  # there is no other positive: nothing counts as random
    return np.asarray(np.nanquantile(scores, RANDOM_QUANTILE, axis=1))


def _positives(group: Group) -> list[str]:
    return group.positives


def _negatives(group: Group) -> list[str]:
    return group.negatives


def _clustered(hits: Array, sizes: Array, seed: int) -> dict[str, float]:
    """A share and its 95% interval over draws of whole queries."""
    drawn = np.random.default_rng(seed).integers(0, len(hits), (DRAWS, len(hits)))
    shares = hits[drawn].sum(axis=1) / np.maximum(sizes[drawn].sum(axis=1), 1)
    low, high = np.quantile(shares, [0.025, 0.975])
    return {"share": float(hits.sum() / max(1.0, sizes.sum())), "low": float(low), "high": float(high)}


def by_judge(job: config.Job, groups: list[tuple[bytes, Group]]) -> dict[str, Any]:
    """One negative of each query graded with the job's judge; the share found relevant among the answers that count.

    A query gives one pair, so the pairs are independent and the interval is exact. Answers go into the job's ledger.
    Raises UserError where the job's judge is off.
    """
    if not job.judge.enabled:
        raise UserError("--judge: judge.enabled is false in the job; switch it on, or leave --judge out")
    chosen = [(f"audit-{key.hex()}", group, group.negatives[key[-1] % len(group.negatives)]) for key, group in groups]

    def pairs() -> Iterator[judgments.Pair]:
        for name, group, negative in chosen:
            doc_id = digest(fold(negative)).hex()
            yield judgments.Pair(name, doc_id, group.query, group.positives[0], negative)

    verdicts: list[str] = []
    with engine.opened(job) as context, context.asking("judge", "judge", len(chosen)) as ask:
        for table in judgments.run(pairs, context.prompt("judge"), context.endpoint("judge"), job.judge, ask):
            verdicts += table.column("verdict").to_pylist()
    relevant, failed = verdicts.count("relevant"), verdicts.count("failed")
    answered = len(verdicts) - failed
    low, high = exact_interval(relevant, answered) if answered else (0.0, 1.0)
    found = {"share": relevant / answered if answered else None, "low": low, "high": high}
    return {"asked": len(verdicts), "failed": failed, "unsure": verdicts.count("unsure"), "relevant": relevant, **found}
