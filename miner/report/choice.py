"""Which queries a report shows, and whose texts: a seeded choice in which every kind of query has its turn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from miner.errors import UserError
from miner.records import TEXT, content_id
from miner.report import read as report_read
from miner.report.read import Found

Array = np.ndarray[Any, Any]
QUERIES, CANDIDATES = 800, 200_000


class Wanted(NamedTuple):
    """queries: how many get their texts on a page; page: which so many, from 1; forced: ids that are among them
    whatever the page; candidates: most whose numbers are shown."""

    queries: int = QUERIES
    page: int = 1
    forced: tuple[str, ...] = ()
    candidates: int = CANDIDATES


class Choice(NamedTuple):
    """ids, outcome: of the queries shown, the first `told` of them with their texts. total, pages: of the job.
    candidates: of the job. outcome "" is exported."""

    ids: list[str]
    outcome: list[str]
    told: int
    total: int
    pages: int
    candidates: int


def choose(found: Found, wanted: Wanted) -> Choice:
    """Raises UserError for a page that the job does not have, and for an unknown query."""
    became = report_read.outcomes(found)
    ids, outcome = (became.column(name).to_pylist() for name in ("query_id", "reason"))
    pages = max(1, -(-len(ids) // wanted.queries))
    if wanted.page > pages:
        raise UserError(
            f"report: page {wanted.page} is wanted, and {len(ids)} queries make {pages}; take a lower --page"
        )
    order = _in_turn(ids, _kinds(found, became), found.job.seed)
    told = _told(order, ids, wanted)
    sizes = _sizes(found, ids)
    shown = [*sorted(told), *(number for number in order.tolist() if number not in told)]
    enough = int(np.searchsorted(np.cumsum(sizes[shown]), wanted.candidates, side="right"))
    kept = shown[: max(1, enough)]
    kept = [*kept[: len(told)], *sorted(kept[len(told) :])]
    return Choice(
        [ids[number] for number in kept],
        [outcome[number] for number in kept],
        min(len(told), len(kept)),
        len(ids),
        pages,
        int(sizes.sum()),
    )


def _told(order: Array, ids: list[str], wanted: Wanted) -> set[int]:
    start = (wanted.page - 1) * wanted.queries
    told = set(order[start : start + wanted.queries].tolist())
    if wanted.forced:
        place = {name: number for number, name in enumerate(ids)}
        for name in wanted.forced:
            if name not in place:
                raise UserError(f"report: --query {name}: the job decides on no such query; it has {len(ids)}")
            told.add(place[name])
    return told


def _kinds(found: Found, became: pa.Table) -> list[tuple[str, bool, bool]]:
    """Of each query: what became of it, whether a false negative was found, whether something was written for it."""
    relevant = (became.column("false_negatives").to_numpy() > 0).tolist()
    if not found.has("decisions") and found.has("judgments"):
        judged = found.run.table("judgments", "judgments").select(["query_id", "verdict"])
        relevant = _among(became, judged.filter(pc.equal(judged.column("verdict"), "relevant")))
    written = [False] * became.num_rows
    if found.has("synthetic"):
        written = _among(became, found.run.table("synthetic", "synthetic").select(["query_id"]))
    return list(zip(became.column("reason").to_pylist(), relevant, written, strict=True))


def _among(became: pa.Table, table: pa.Table) -> list[bool]:
    met = table.column("query_id").unique().cast(TEXT)
    return list(pc.is_in(became.column("query_id"), value_set=met).to_pylist())


def _in_turn(ids: Sequence[str], kinds: Sequence[tuple[str, bool, bool]], seed: int) -> Array:
    """int64[n]: the queries, one of each kind by turns; within a kind in the order of a hash of seed and id."""
    hashes = np.array([int(content_id(f"{seed} {name}"), 16) for name in ids], np.uint64)
    names = sorted(set(kinds))
    kind = np.array([names.index(one) for one in kinds], np.int64)
    turn = np.zeros(len(ids), np.int64)
    for number in range(len(names)):
        mine = np.flatnonzero(kind == number)
        turn[mine[np.argsort(hashes[mine], kind="stable")]] = np.arange(len(mine))
    return np.lexsort((kind, turn))


def _sizes(found: Found, ids: list[str]) -> Array:
    """int64[n]: the candidates of each query."""
    sizes: dict[str, int] = {}
    for part in report_read.parts(found, ["query_id"]):
        for row in part.column("query_id").value_counts().to_pylist():
            sizes[row["values"]] = sizes.get(row["values"], 0) + row["counts"]
    return np.array([sizes.get(name, 0) for name in ids], np.int64)
