"""Decide each candidate: kept as a hard negative, or dropped for a reason that can be counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

import numpy as np
import pyarrow as pa

from miner import ranking
from miner.config import Job
from miner.records import DECISIONS, OUTCOMES

Row = dict[str, Any]
Array = np.ndarray[Any, Any]


def run(
    candidates: pa.Table,
    judgments: pa.Table | None,
    synthetic: dict[str, list[Row]],
    positives: Iterable[str],
    job: Job,
) -> tuple[pa.Table, pa.Table]:
    """Decisions on candidates, and what became of each query, for the queries of one candidates file.

    judgments: one row per pool row, in the same order; None where the judge is off. synthetic: by query_id, rows of
    SYNTHETIC, each with its JUDGMENTS row as `judgment`. positives: the query_id of each positive.
    """
    mined = _mined(candidates, judgments, job.mining.negatives)
    kept = Counter(mined.filter(mined.column("kept")).column("query_id").to_pylist())
    written: list[Row] = []
    for query_id in sorted(synthetic):
        written += _synthetic(synthetic[query_id], kept[query_id], job.mining.negatives)
    kept.update(row["query_id"] for row in written if row["kept"])
    decided = pa.concat_tables([mined, pa.Table.from_pylist(written, DECISIONS)])
    return decided, _outcomes(positives, kept, job.export.min_negatives)


def _mined(candidates: pa.Table, judgments: pa.Table | None, wanted: int) -> pa.Table:
    """The decisions in the order of candidates, column by column: there may be a hundred million of them."""
    in_pool = candidates.column("pool_rank").is_valid().to_numpy()
    slot = ranking.slots(candidates, judgments, wanted)
    reason = candidates.column("reason").cast(pa.string()).to_numpy(zero_copy_only=False).astype(object)
    if judgments is not None:
        reason[in_pool] = _refusals(judgments)
    reason[(reason == "") & (slot == 0)] = "surplus"
    columns = {name: candidates.column(name) for name in ("query_id", "doc_id", "retriever", "rank")}
    columns |= {name: candidates.column(name) for name in ("score", "positive_score", "teacher_score", "found_by")}
    columns["band"] = candidates.column("band").cast(pa.string())
    columns |= _judged(judgments, in_pool)
    columns |= {
        "source": pa.array(np.full(len(slot), "mined", object), pa.string()),
        "kept": pa.array(reason == ""),
        "reason": pa.array(reason, pa.string()),
        "slot": pa.array(slot, mask=slot == 0),
    }
    return pa.table({name: columns[name] for name in DECISIONS.names}).cast(DECISIONS)


def _refusals(judgments: pa.Table) -> Array:
    """object[n]: why each judged row is no negative, "" for those judged irrelevant."""
    status, verdict = (
        judgments.column(name).to_numpy(zero_copy_only=False).astype(object) for name in ("status", "verdict")
    )
    refused = np.where(status == "ok", "judged_" + verdict, "judge_" + status)
    return np.where((status == "ok") & (verdict == "irrelevant"), "", refused)


def _judged(judgments: pa.Table | None, in_pool: Array) -> dict[str, Any]:
    """The judgment columns spread over all candidates, null outside the pool."""
    names = ("grade", "verdict", "status")
    if judgments is None:
        return {name: pa.nulls(len(in_pool), DECISIONS.field(name).type) for name in names}
    place = pa.array(np.cumsum(in_pool) - 1, mask=~in_pool)
    return {name: judgments.column(name).take(place) for name in names}


def _synthetic(rows: list[Row], mined: int, wanted: int) -> list[Row]:
    decided, place = [], mined
    for row in rows:
        reason = _synthetic_refusal(row) or ("surplus" if place >= wanted else "")
        place += not reason
        decided.append(
            {
                **{name: row["judgment"].get(name) for name in ("grade", "verdict", "status")},
                "query_id": row["query_id"],
                "doc_id": row["doc_id"],
                "source": "synthetic",
                "score": row["score"],
                "kept": not reason,
                "reason": reason,
                "slot": None if reason else place,
            }
        )
    return decided


def _synthetic_refusal(row: Row) -> str:
    judgment = row["judgment"]
    if row["status"] != "ok":
        return f"generator_{row['status']}"
    if row["copy_of"]:
        return f"copy_of_{row['copy_of']}"
    if judgment["status"] != "ok":
        return f"judge_{judgment['status']}"
    return "" if judgment["verdict"] == "irrelevant" else f"judged_{judgment['verdict']}"


def _outcomes(positives: Iterable[str], kept: Counter[str], enough: int) -> pa.Table:
    rows = [
        {
            "query_id": query_id,
            "positives": count,
            "negatives": kept[query_id],
            "reason": "" if kept[query_id] >= enough else "too_few_negatives",
        }
        for query_id, count in sorted(Counter(positives).items())
    ]
    return pa.Table.from_pylist(rows, OUTCOMES)
