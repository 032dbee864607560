"""Decide each candidate: kept as a hard negative, or dropped for a reason that can be counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from miner import ranking
from miner.config import Job
from miner.records import DECISIONS, FALSE_NEGATIVES, OUTCOMES, TEXT, is_corpus

Row = dict[str, Any]
TOO_MANY = "too_many_false_negatives"
# A column of decisions and the one of judgments that it repeats.
JUDGED = {"grade": "grade", "verdict": "verdict", "status": "status", "judge_score": "score", "rung": "rung"}
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
    return decided, _outcomes(positives, kept, _relevant(mined), job)


def false_negatives(decided: pa.Table, became: pa.Table, judgments: pa.Table | None, job: Job) -> pa.Table | None:
    """FALSE_NEGATIVES rows: the mined candidates that were judged relevant, of the queries that are not set aside.

    decided, became: what `run` returned for the same judgments. None where the job drops them unlisted. Where it
    relabels, `source` is "relabelled" and the rows are positives like all others; else it is "reported".
    """
    if judgments is None or job.judge.false_negatives == "drop":
        return None
    aside = became.filter(pc.equal(became.column("reason"), TOO_MANY)).column("query_id")
    mined = decided.filter(pc.equal(decided.column("source"), "mined"))
    mask = pc.and_(_is_relevant(mined), pc.invert(pc.is_in(mined.column("query_id"), value_set=aside.combine_chunks())))
    found = mined.filter(mask)
    # A passage that the generator brought was judged elsewhere.
    found = found.filter(pc.is_in(_key(found), value_set=_key(judgments).combine_chunks()))
    said = judgments.filter(pc.is_in(_key(judgments), value_set=_key(found).combine_chunks()))
    columns = {name: found.column(name) for name in ("query_id", "doc_id", "score", "teacher_score", "judge_score")}
    # A teacher gives no grade.
    columns |= {"relevance": pc.fill_null(found.column("grade"), job.judge.relevant_from), "rung": found.column("rung")}
    columns |= {name: said.column(name) for name in ("evidence", "request_key")}
    source = "relabelled" if job.judge.false_negatives == "relabel" else "reported"
    columns["source"] = pa.array([source] * found.num_rows, pa.string())
    return pa.table({name: columns[name] for name in FALSE_NEGATIVES.names}).cast(FALSE_NEGATIVES)


def _key(table: pa.Table) -> Any:
    """query_id and doc_id in one: the length tells where the first ends."""
    size = pc.cast(pc.utf8_length(table.column("query_id")), TEXT)
    return pc.binary_join_element_wise(size, table.column("query_id"), table.column("doc_id"), pa.scalar(" ", TEXT))


def _is_relevant(decided: pa.Table) -> Any:
    said = (pc.equal(decided.column(name), value) for name, value in (("status", "ok"), ("verdict", "relevant")))
    return pc.fill_null(pc.and_(*said), False)


def _relevant(mined: pa.Table) -> Counter[str]:
    """By query, how many mined candidates were judged relevant."""
    return Counter(mined.filter(_is_relevant(mined)).column("query_id").to_pylist())


def _mined(candidates: pa.Table, judgments: pa.Table | None, wanted: int) -> pa.Table:
    """The decisions in the order of candidates, column by column: there may be a hundred million of them."""
    in_pool = candidates.column("pool_rank").is_valid().to_numpy()
    slot = ranking.slots(candidates, judgments, wanted)
    reason = candidates.column("reason").cast(pa.string()).to_numpy(zero_copy_only=False).astype(object)
    if judgments is not None:
        reason[in_pool] = _refusals(judgments)
    reason[(reason == "") & (slot == 0)] = "surplus"
    columns = {name: candidates.column(name) for name in ("query_id", "doc_id", "retriever", "rank")}
    measured = ("score", "positive_score", "to_positive", "teacher_score", "found_by")
    columns |= {name: candidates.column(name) for name in measured}
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
    if judgments is None:
        return {name: pa.nulls(len(in_pool), DECISIONS.field(name).type) for name in JUDGED}
    place = pa.array(np.cumsum(in_pool) - 1, mask=~in_pool)
    return {name: judgments.column(source).take(place) for name, source in JUDGED.items()}


def _synthetic(rows: list[Row], mined: int, wanted: int) -> list[Row]:
    decided, place = [], mined
    for row in rows:
        reason = _synthetic_refusal(row) or ("surplus" if place >= wanted else "")
        place += not reason
        decided.append(
            {
                **{name: row["judgment"].get(source) for name, source in JUDGED.items()},
                "query_id": row["query_id"],
                "doc_id": row["doc_id"],
                **_origin(row),
                "score": row["score"],
                "kept": not reason,
                "reason": reason,
                "slot": None if reason else place,
            }
        )
    return decided


def _origin(row: Row) -> Row:
    """A corpus passage that stands in the place of its written copy is a mined one; the generator found it."""
    if is_corpus(row):
        return {"source": "mined", "retriever": "generator"}
    return {"source": "synthetic"}


def _synthetic_refusal(row: Row) -> str:
    judgment = row["judgment"]
    if row["status"] != "ok":
        return f"generator_{row['status']}"
    if row["copy_of"]:
        return f"copy_of_{row['copy_of']}"
    if row.get("reason"):  # a check of the generator's refused it, and nobody was asked
        return str(row["reason"])
    if judgment["status"] != "ok":
        return f"judge_{judgment['status']}"
    return "" if judgment["verdict"] == "irrelevant" else f"judged_{judgment['verdict']}"


def _outcomes(positives: Iterable[str], kept: Counter[str], relevant: Counter[str], job: Job) -> pa.Table:
    limit = job.judge.max_false_negatives
    rows = []
    for query_id, count in sorted(Counter(positives).items()):
        too_many = limit is not None and relevant[query_id] > limit
        reason = "" if kept[query_id] >= job.export.min_negatives else "too_few_negatives"
        rows.append(
            {
                "query_id": query_id,
                "positives": count,
                "negatives": kept[query_id],
                "false_negatives": relevant[query_id],
                "reason": TOO_MANY if too_many else reason,
            }
        )
    return pa.Table.from_pylist(rows, OUTCOMES)
