"""Several judges in turn: what each settles, what it sends on, and whose verdict counts. Pure arrays and tables."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

Array = np.ndarray[Any, Any]
FINAL = {"both": ("relevant", "irrelevant"), "relevant": ("relevant",), "irrelevant": ("irrelevant",)}


def settled(judged: pa.Table, settles: str) -> Array:
    """bool[n]: the rows that a rung decided for good, by `status` and `verdict`.

    Unsure, unparsable, refused and cut answers go on. A missing answer does not: that nobody answered says nothing of
    the pair, and an outage of the cheap judge must not send everything to the dear one.
    """
    status, verdict = (_words(judged, name) for name in ("status", "verdict"))
    return np.asarray(((status == "ok") & np.isin(verdict, FINAL[settles])) | (status == "missing"))


def left_open(judged: Sequence[pa.Table], settles: Sequence[str], total: int) -> tuple[Array, Array]:
    """int64[m]: the numbers of the pairs that all rungs so far leave open; object[m]: the verdict of the last of them.

    judged: of each rung, the rows that it was asked about, in the order of the pairs.
    """
    rows, verdict = np.arange(total), np.full(total, "", object)
    for table, what in zip(judged, settles, strict=True):
        going = ~settled(table, what)
        rows, verdict = rows[going], _words(table, "verdict")[going]
    return rows, verdict


def merged(judged: Sequence[pa.Table], settles: Sequence[str]) -> pa.Table:
    """One row a pair, in order, from the rung that decided it; what none settled is the last one's."""
    rows, parts = [], []
    here = np.arange(judged[0].num_rows)
    for number, (table, what) in enumerate(zip(judged, settles, strict=True), 1):
        done = settled(table, what) if number < len(judged) else np.ones(table.num_rows, bool)
        parts.append(table.filter(pa.array(done)))
        rows.append(here[done])
        here = here[~done]
    return pa.concat_tables(parts).take(pa.array(np.argsort(np.concatenate(rows))))


def moves(before: Array, after: pa.Table) -> Counter[str]:
    """How often a verdict became another one: {"unsure to irrelevant": 3}."""
    pairs = zip(before.tolist(), _words(after, "verdict").tolist(), strict=True)
    return Counter(f"{old} to {new}" for old, new in pairs if old and old != new)


def by_score(score: Array, above: float | None, below: float | None, percentile: bool) -> Array:
    """object[n]: the verdict on scores, float[n]; unsure where one is nan or lies between the bounds.

    percentile: the bounds are percentiles of the scores, not scores.
    """
    known = score[~np.isnan(score)]
    if percentile and len(known):
        above, below = (None if bound is None else float(np.percentile(known, bound)) for bound in (above, below))
    verdict = np.full(len(score), "unsure", object)
    verdict[score <= (-np.inf if below is None else below)] = "irrelevant"
    verdict[score >= (np.inf if above is None else above)] = "relevant"
    return verdict


def _words(table: pa.Table, name: str) -> Array:
    return np.asarray(table.column(name).to_numpy(zero_copy_only=False).astype(object))
