"""Draw pairs of a job's pool for people to grade."""

from __future__ import annotations

import heapq
from collections import Counter
from typing import Any, NamedTuple

import numpy as np

from miner import engine, golden, store
from miner.errors import UserError
from miner.golden import Golden
from miner.judge_steps import references
from miner.steps import Context

Array = np.ndarray[Any, Any]
APART = 0.5


class Pooled(NamedTuple):
    """A pair of the pool. grade: the judge's, None where it has not answered in a usable way."""

    query_id: str
    doc_id: str
    score: float
    grade: int | None


def draw(run: Context, count: int, seed: int, uniform: bool) -> list[Golden]:
    """`count` pairs of the job's pool, with their texts and no grade, query by query. Mines first if it must.

    Stratified, see `strata`; where nothing is judged yet, over the score alone. uniform: evenly from the whole pool, so
    that what is measured on the sample holds for the pool; stratified samples hold more of the hard pairs than the pool
    does. Raises UserError where the pool is empty.
    """
    engine.advance(run, "mine")
    pool = _pool(run)
    if not pool:
        raise UserError("golden sample: the pool of the job is empty; loosen mining's margin or filters")
    names = ["" for _ in pool] if uniform else strata(pool)
    reference = references(run)
    chosen = [(pool[row], names[row]) for row in sample(pool, names, count, seed)]
    order = dict(
        zip([one.query_id for one, _ in chosen], golden.tickets([o.query_id for o, _ in chosen], seed), strict=True)
    )
    chosen.sort(key=lambda pair: (order[pair[0].query_id], pair[0].query_id))  # stable: as drawn within a query
    return [
        Golden(
            query_id=one.query_id,
            query=run.queries[one.query_id],
            positive=run.passages[reference[one.query_id]],
            doc_id=one.doc_id,
            passage=run.passages[one.doc_id],
            tag=name,
        )
        for one, name in chosen
    ]


def _pool(run: Context) -> list[Pooled]:
    """The pool of the job; grades of whatever has been judged of it."""
    path = run.folder.step("judgments") / "judgments.parquet"
    judged = store.read_table(path, ["query_id", "doc_id", "grade"]).to_pylist() if path.is_file() else []
    grades = {(row["query_id"], row["doc_id"]): row["grade"] for row in judged}
    found = []
    for file in run.parts("candidates", "part"):
        table = store.read_table(file, ["query_id", "doc_id", "score", "pool_rank"])
        for row in table.filter(table.column("pool_rank").is_valid()).to_pylist():
            key = row["query_id"], row["doc_id"]
            found.append(Pooled(*key, row["score"], grades.get(key)))
    return found


def strata(pool: list[Pooled]) -> list[str]:
    """The stratum of each pair: third of the score, grade of the judge, and whether the two contradict each other.

    They do where the places of the pair by grade and by score, both from 0 to 1 over the judged pairs, are more than
    half of the range apart: graded low though close to the query, or high though far.
    """
    from scipy.stats import rankdata

    score = np.array([one.score for one in pool], float)
    third = np.minimum((_places(rankdata(score)) * 3).astype(int), 2)
    rows = np.array([i for i, one in enumerate(pool) if one.grade is not None], np.int64)
    apart = np.zeros(len(pool), bool)
    if len(rows):
        grade = np.array([pool[row].grade for row in rows], float)
        apart[rows] = np.abs(_places(rankdata(grade)) - _places(rankdata(score[rows]))) > APART
    judged = ["" if one.grade is None else f" grade-{one.grade}" for one in pool]
    names = ("score-low", "score-middle", "score-high")
    return [
        f"{names[low]}{grade}{' contradiction' if odd else ''}"
        for low, grade, odd in zip(third, judged, apart, strict=True)
    ]


def _places(ranks: Array) -> Array:
    """Ranks 1..n, ties at their mean, as the middles of n equal steps of 0 to 1."""
    return (ranks - 0.5) / len(ranks)


def sample(pool: list[Pooled], names: list[str], count: int, seed: int) -> list[int]:
    """Row numbers of up to `count` pairs: one of each stratum in turn, of the query that was drawn least so far.

    Among equals the lottery ticket decides, which depends on the ids and the seed alone.
    """
    tickets = golden.tickets([f"{one.query_id}\t{one.doc_id}" for one in pool], seed).tolist()
    heaps: dict[str, list[tuple[int, int, int]]] = {}
    for row in range(len(pool)):
        heaps.setdefault(names[row], []).append((0, tickets[row], row))
    uses: Counter[str] = Counter()
    for heap in heaps.values():
        heapq.heapify(heap)
    chosen: list[int] = []
    while len(chosen) < count and any(heaps.values()):
        for name in sorted(heaps):
            found = _least_used(heaps[name], pool, uses) if len(chosen) < count else None
            if found is not None:
                uses[pool[found].query_id] += 1
                chosen.append(found)
    return chosen


def _least_used(heap: list[tuple[int, int, int]], pool: list[Pooled], uses: Counter[str]) -> int | None:
    """Pop the row with the least used query; entries keep an old count of uses until they come up."""
    while heap:
        old, ticket, row = heap[0]
        now = uses[pool[row].query_id]
        if old == now:
            heapq.heappop(heap)
            return row
        heapq.heapreplace(heap, (now, ticket, row))
    return None
