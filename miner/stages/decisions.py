"""Decide each candidate: kept as a hard negative, or dropped for a reason that can be counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

import pyarrow as pa

from miner import ranking
from miner.config import Job
from miner.records import DECISIONS, OUTCOMES

Row = dict[str, Any]


def run(
    candidates: pa.Table,
    judgments: pa.Table | None,
    synthetic: dict[str, list[Row]],
    positives: Iterable[str],
    job: Job,
) -> tuple[pa.Table, pa.Table]:
    """Decisions on candidates (and what became of each query) for the queries of one candidates file.

    judgments: one row per pool row, in the same order; None where the judge is off. synthetic: by query_id, rows of
    SYNTHETIC with the `grade`, `verdict` and `judge_status` of their judgment. positives: query_id of each positive.
    """
    mined = _mined(candidates, judgments, job)
    kept = Counter(row["query_id"] for row in mined if row["kept"])
    extra: list[Row] = []
    for query_id in sorted(synthetic):
        extra += _synthetic(synthetic[query_id], kept[query_id], job)
    rows = mined + extra
    order = Counter(positives)
    negatives = Counter(row["query_id"] for row in rows if row["kept"])
    outcomes = [
        {
            "query_id": query_id,
            "positives": count,
            "negatives": negatives[query_id],
            "reason": "" if negatives[query_id] >= job.export.min_negatives else "too_few_negatives",
        }
        for query_id, count in sorted(order.items())
    ]
    return pa.Table.from_pylist(rows, DECISIONS), pa.Table.from_pylist(outcomes, OUTCOMES)


def _mined(candidates: pa.Table, judgments: pa.Table | None, job: Job) -> list[Row]:
    slot = ranking.slots(candidates, judgments, job.mining.negatives)
    judged = iter(judgments.to_pylist() if judgments is not None else [])
    rows = []
    for row, place in zip(candidates.to_pylist(), slot.tolist(), strict=True):
        judgment = next(judged) if row["pool_rank"] is not None and judgments is not None else {}
        reason = row["reason"] or _refusal(judgment) or ("" if place else "surplus")
        rows.append(_decision(row, judgment, "mined", reason, place))
    return rows


def _refusal(judgment: Row) -> str:
    if not judgment or judgment["verdict"] == "irrelevant":
        return ""
    if judgment["status"] != "ok":
        return f"judge_{judgment['status']}"
    return f"judged_{judgment['verdict']}"


def _synthetic(rows: list[Row], mined: int, job: Job) -> list[Row]:
    decided, place = [], mined
    for row in rows:
        reason = f"generator_{row['status']}" if row["status"] != "ok" else _refusal(row["judgment"])
        if not reason and place >= job.mining.negatives:
            reason = "surplus"
        place += not reason
        decided.append(_decision(row, row["judgment"], "synthetic", reason, 0 if reason else place))
    return decided


def _decision(row: Row, judgment: Row, source: str, reason: str, place: int) -> Row:
    return {
        "query_id": row["query_id"],
        "doc_id": row["doc_id"],
        "source": source,
        "retriever": row.get("retriever"),
        "rank": row.get("rank"),
        "score": row["score"],
        "positive_score": row.get("positive_score"),
        "grade": judgment.get("grade"),
        "verdict": judgment.get("verdict"),
        "status": judgment.get("status"),
        "kept": not reason,
        "reason": reason,
        "slot": place or None,
    }
