"""nDCG, reciprocal rank and recall of a ranking, query by query, by the library ir_measures."""

from __future__ import annotations

from ir_measures import RR, R, iter_calc, nDCG

Qrels = dict[str, dict[str, int]]
Run = dict[str, dict[str, float]]


def measure(qrels: Qrels, run: Run, relevant_from: int) -> dict[str, list[float]]:
    """Measure name (trials.MEASURES) -> one value for each query of `qrels`, in its order.

    nDCG takes the relevance as the gain; the others count a passage from `relevant_from` on. A query without a ranking
    has 0 in all.
    """
    wanted = {
        "nDCG@10": nDCG @ 10,
        "MRR@10": RR(rel=relevant_from) @ 10,
        "recall@100": R(rel=relevant_from) @ 100,
    }
    found = {(one.measure, one.query_id): float(one.value) for one in iter_calc(list(wanted.values()), qrels, run)}
    return {name: [found.get((key, query_id), 0.0) for query_id in qrels] for name, key in wanted.items()}
