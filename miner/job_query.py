"""One query of a job with all that is known of it, and one of its candidates with what was asked and answered."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from miner import judge_steps, ledger_tail, store
from miner.config import Job
from miner.errors import UserError
from miner.job import JobFolder
from miner.records import passage_text

Row = dict[str, Any]
JUDGED = ("grade", "verdict", "status", "evidence", "detail", "rung", "request_key")


def query(job: Job, wanted: str) -> Row:
    """query_id, text, positives and candidates by rank, each with its text and what was found and judged of it.

    wanted: a query_id, or a part of the text of one query alone. Raises UserError.
    """
    folder = JobFolder(Path(job.job or ""))
    query_id, text = _found(folder, wanted)
    step = "decisions" if fits(folder, "decisions") else "candidates"
    candidates = _parts(folder, step, "part", query_id)
    positives = _parts(folder, "candidates", "positives", query_id)
    judged = {row["doc_id"]: row for row in _judgments(folder, query_id)}
    # A text that was written twice has one id: the first is the one that counts.
    made = reversed(_rows(folder.root / "synthetic/synthetic.parquet", query_id))
    written = {row["doc_id"]: row for row in made}
    texts = passage_texts(folder, [row["doc_id"] for row in (*candidates, *positives)])
    for candidate in candidates:
        doc_id = candidate["doc_id"]
        candidate |= {name: judged.get(doc_id, {}).get(name) for name in JUDGED}
        candidate["margin"] = _margin(candidate)
        candidate["text"] = texts.get(doc_id, "")
        if doc_id in written:
            own = written[doc_id]
            candidate |= {"text": own["text"] or "", "facet": own["facet"], "change": own["change"]}
    for positive in positives:
        positive["text"] = texts.get(positive["doc_id"], "")
    return {"query_id": query_id, "text": text, "positives": positives, "candidates": candidates}


def _margin(candidate: Row) -> float | None:
    """How far below the lowest positive of the query; negative where above it."""
    lowest, score = candidate.get("positive_score"), candidate["score"]
    return None if lowest is None or score is None else round(lowest - score, 6)


def _found(folder: JobFolder, wanted: str) -> tuple[str, str]:
    path = folder.step("corpus") / "queries.parquet"
    if not path.is_file():
        raise UserError(f"{folder.root}: nothing is mined yet; run `miner mine` first")
    table = store.read_table(path, ["query_id", "text"])
    if not table.num_rows:
        raise UserError(f"{folder.root}: nothing is mined yet; run `miner mine` first")
    ids, texts = table.column("query_id"), table.column("text")
    row = pc.index(ids, pa.scalar(wanted, ids.type)).as_py()
    if row < 0:
        rows = pc.indices_nonzero(pc.match_substring(texts, wanted, ignore_case=True)).to_pylist() if wanted else []
        if len(rows) != 1:
            raise _unknown(wanted, ids, rows)
        row = rows[0]
    return ids[row].as_py(), texts[row].as_py()


def _unknown(wanted: str, ids: Any, rows: list[int]) -> UserError:
    if rows:
        known = ", ".join(ids[row].as_py() for row in rows[:3])
        return UserError(f"{wanted!r} stands in the texts of {len(rows)} queries: {known}, …; write more of one")
    known = ", ".join(ids.slice(0, 3).to_pylist())
    return UserError(f"query {wanted!r} is not in this job, which has {len(ids)}: {known}, …")


# ---------------------------------------------------------------- one candidate


def candidate(job: Job, wanted: str, doc_id: str) -> Row:
    """query_id, query, kind (candidate or positive), row, and `asked`: every LLM request that the row rests on, in the
    order in which they were asked, with messages, raw answer, model, prompt, tokens and cost. Raises UserError."""
    folder = JobFolder(Path(job.job or ""))
    found = query(job, wanted)
    sides = (("candidate", found["candidates"]), ("positive", found["positives"]))
    matching = [(kind, row) for kind, rows in sides for row in rows if row["doc_id"] == doc_id]
    if not matching:
        ids = [row["doc_id"] for _, rows in sides for row in rows]
        known = f"{', '.join(ids[:3])}, …" if ids else "it has none"
        raise UserError(f"--doc {doc_id!r}: no candidate of query {found['query_id']!r} has this id: {known}")
    kind, row = matching[0]
    asked = _asked(job, folder, found["query_id"], doc_id)
    return {"query_id": found["query_id"], "query": found["text"], "kind": kind, "row": row, "asked": asked}


def _asked(job: Job, folder: JobFolder, query_id: str, doc_id: str) -> list[Row]:
    """Of a cascade the rungs in turn, then the judgment that counts, where no rung has told it yet."""
    rungs = judge_steps.rung_steps(job.judge) if job.judge.rungs else []
    said: list[tuple[str, Row]] = []
    for step, what in (
        ("synthetic/synthetic", "generate"),
        *((f"{step}/judgments", step.removeprefix("judgments_")) for step in rungs),
        ("judgments/judgments", "judge"),
        ("synthetic_judgments/judgments", "judge"),
    ):
        rows = _rows(folder.root / f"{step}.parquet", query_id)
        said += [(what, row) for row in rows if row["doc_id"] == doc_id]
    wanted = {key: (what, row) for what, row in reversed(said) for key in _keys(row)}
    known = ledger_tail.requests(folder.ledger, wanted)
    return [
        _request(*wanted[key], key, known.get(key)) for key in dict.fromkeys(k for _, row in said for k in _keys(row))
    ]


def _keys(row: Row) -> list[str]:
    return [key for key in (row.get("request_key"), row.get("other_key")) if key]


def _request(what: str, row: Row, key: str, kept: Row | None) -> Row:
    """messages and answer are None where the ledger does not hold the request any more."""
    own = ("status", "detail", "grade", "verdict", "evidence", "prompt", "prompt_version", "model")
    found = {"what": what, "request_key": key, **{name: row.get(name) for name in own}}
    if kept is None:
        return {**found, "messages": None, "answer": None}
    names = ("state", "reason", "mark", "endpoint", "prompt_tokens", "completion_tokens", "cached_tokens", "cost")
    body = kept["body"] or {}
    return {
        **found,
        **{name: kept[name] for name in (*names, "attempts", "seconds")},
        "messages": body.get("messages"),
        "sampling": {name: value for name, value in body.items() if name not in ("model", "messages")},
        "answer": _said(kept["response"]),
        "response": kept["response"],
    }


def _said(response: Any) -> str | None:
    """The text of the answer, as the model wrote it; None where there is none."""
    try:
        content = response["choices"][0]["message"].get("content")
    except (TypeError, KeyError, IndexError, AttributeError):
        return None
    return content if isinstance(content, str) else None


# ---------------------------------------------------------------- files


def fits(folder: JobFolder, step: str) -> bool:
    """The step is done, and made from the very files that the steps before it have now. What a job decided of the
    candidates of an earlier mining says nothing of those that are there."""
    stamps = {path.stem: folder.stamp(path.stem) for path in (folder.root / "stamps").glob("*.json")}
    before = "files of "

    def fitting(name: str) -> bool:
        stamp = stamps.get(name)
        return stamp is not None and all(
            fitting(key.removeprefix(before)) and getattr(stamps[key.removeprefix(before)], "hash", None) == digest
            for key, digest in stamp.inputs.items()
            if key.startswith(before)
        )

    return fitting(step)


def _rows(path: Path, query_id: str) -> list[Row]:
    """The rows of a query; row groups that cannot hold it are not read."""
    if not path.is_file():
        return []
    return list(store.read_table(path, filters=[("query_id", "=", query_id)]).to_pylist())


def _judgments(folder: JobFolder, query_id: str) -> list[Row]:
    names = ("judgments", "synthetic_judgments")
    return [row for name in names for row in _rows(folder.step(name) / "judgments.parquet", query_id)]


def _parts(folder: JobFolder, step: str, prefix: str, query_id: str) -> list[Row]:
    paths = sorted(folder.step(step).glob(f"{prefix}-*.parquet"))
    return [row for path in paths for row in _rows(path, query_id)]


def passage_texts(folder: JobFolder, ids: Iterable[str]) -> dict[str, str]:
    """doc_id to text with title, of the corpus passages among `ids`."""
    path, wanted = folder.step("corpus") / "passages.parquet", sorted(set(ids))
    if not wanted or not path.is_file():
        return {}
    table = store.read_table(path, ["doc_id", "title", "text"], [("doc_id", "in", wanted)])
    columns = [table.column(name).to_pylist() for name in ("doc_id", "title", "text")]
    return {doc_id: passage_text(title, text) for doc_id, title, text in zip(*columns, strict=True)}
