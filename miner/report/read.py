"""What a report reads of a job: the steps that fit together, its candidates in one form, texts by id. Takes no lock."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from miner import engine, judge_steps, store
from miner.config import Job
from miner.errors import UserError
from miner.job import JobFolder, Stamp
from miner.ledger import Ledger
from miner.readers.rows import clip
from miner.records import DECISIONS, OUTCOMES, TEXT, passage_text
from miner.steps import Context

Array = np.ndarray[Any, Any]
# Columns that decisions take from judgments as they are.
JUDGED = {"grade": "grade", "verdict": "verdict", "status": "status", "judge_score": "score", "rung": "rung"}
UNDECIDED = "not decided yet"


@dataclass
class Found:
    """A job as far as its steps fit together. stamps: of those, by step; notes: what a reader must know of the rest."""

    run: Context
    stamps: dict[str, Stamp]
    notes: list[str] = field(default_factory=list)

    @property
    def job(self) -> Job:
        return self.run.job

    def has(self, step: str) -> bool:
        return step in self.stamps

    def close(self) -> None:
        if self.run.ledger is not None:
            self.run.ledger.close()

    def counts(self, step: str) -> dict[str, Any]:
        """What the step counted; {} where it is not there."""
        return self.stamps[step].counts if step in self.stamps else {}


def opened(job: Job) -> Found:
    """Raises UserError where nothing is mined yet. The ledger, where there is one, is open in `run`: close it."""
    folder = JobFolder(Path(job.job or ""))
    run = Context(job, folder, None)  # type: ignore[arg-type]  # a job that asked no LLM has none, and nothing is asked
    stamps = _fitting(run)
    if "candidates" not in stamps:
        raise UserError(f"{folder.root}: nothing is mined yet; run `miner mine` first")
    notes = [*_left(run, stamps), *_stale(run, stamps)]
    if folder.ledger.is_file():
        with suppress(UserError):  # on a disk that cannot be written it is read all the same, by report_ledger
            run.ledger = Ledger(folder.ledger)
    return Found(run, stamps, notes)


def snapshot(job: Job) -> dict[str, str]:
    """The hash of each step's files: two that are equal say that no step was replaced meanwhile."""
    folder = JobFolder(Path(job.job or ""))
    stamps = ((step.name, folder.stamp(step.name)) for step in engine.plan(job))
    return {name: stamp.hash for name, stamp in stamps if stamp is not None}


def _fitting(run: Context) -> dict[str, Stamp]:
    """The steps made from the very files that the steps before them have now, with all their own files there."""
    found: dict[str, Stamp] = {}
    for step in engine.plan(run.job):
        stamp = run.folder.stamp(step.name)
        if stamp is None or not _there(run, stamp):
            continue
        if all(name in found and stamp.inputs.get(f"files of {name}") == found[name].hash for name in step.needs):
            found[step.name] = stamp
    return found


READ = ("corpus", "candidates", "judgments", "synthetic", "decisions", "export")


def _there(run: Context, stamp: Stamp) -> bool:
    if not stamp.step.startswith(READ):
        return True
    return all((run.folder.step(stamp.step) / name).is_file() for name in stamp.outputs)


def _left(run: Context, stamps: dict[str, Stamp]) -> list[str]:
    other = [s.name for s in engine.plan(run.job) if s.name not in stamps and run.folder.stamp(s.name) is not None]
    if not other:
        return []
    return [f"left out of this report, since earlier steps were made anew after them: {', '.join(other)}; run the job"]


def _stale(run: Context, stamps: dict[str, Stamp]) -> list[str]:
    """What is not as the job file now says. A step that follows a stale one is not told again."""
    try:
        states = [(name, why) for name, why, _ in engine.states(run) if why]
    except UserError as error:
        return [f"whether the steps are fresh cannot be told: {error}"]
    notes = [
        f"step {name} is stale ({clip(why, 100)}): the report shows its older state"
        for name, why in states
        if name in stamps and not why.startswith("follows ") and why != "answers are missing"
    ]
    lacking = [name for name, why in states if why == "not done yet"]
    return notes + ([f"not done yet: {', '.join(lacking)}"] if lacking else [])


# ---------------------------------------------------------------- candidates and queries


def parts(found: Found, columns: list[str]) -> Iterator[pa.Table]:
    """Tables with these columns of DECISIONS, one a file of the job. A job that has not decided shows its candidates:
    `reason` is then why one left the pool, what the judge said of it, or "pool"."""
    if found.has("decisions"):
        for path in found.run.parts("decisions", "part"):
            yield store.read_table(path, columns)
        return
    known = judge_steps.judged_parts(found.run) if found.has("judgments") else None
    for path, judged in known or ((path, None) for path in found.run.parts("candidates", "part")):
        yield _undecided(store.read_table(path), judged).select(columns)


def _undecided(table: pa.Table, judged: pa.Table | None) -> pa.Table:
    pooled = table.column("pool_rank").is_valid().to_numpy()
    reason = table.column("reason").cast(pa.string()).to_numpy(zero_copy_only=False).astype(object)
    reason[pooled] = "pool" if judged is None else _said(judged)
    size = table.num_rows
    same = ("query_id", "doc_id", "retriever", "rank", "score", "positive_score", "to_positive", "teacher_score")
    columns: dict[str, Any] = {name: table.column(name) for name in (*same, "found_by", "band")}
    columns |= {name: pa.nulls(size, DECISIONS.field(name).type) for name in (*JUDGED, "slot")}
    if judged is not None:
        place = pa.array(np.cumsum(pooled) - 1, mask=~pooled)
        columns |= {name: judged.column(source).take(place) for name, source in JUDGED.items()}
    columns["source"] = pa.array(np.full(size, "mined", object), pa.string())
    columns |= {"kept": pa.array(np.zeros(size, bool)), "reason": pa.array(reason, pa.string())}
    return pa.table({name: columns[name].cast(DECISIONS.field(name).type) for name in DECISIONS.names})


def _said(judged: pa.Table) -> Array:
    """object[n]: judged_VERDICT where the answer could be read, else judge_STATUS."""
    status, verdict = (np.asarray(judged.column(name).to_pylist(), object) for name in ("status", "verdict"))
    return np.asarray(np.where(status == "ok", "judged_" + verdict, "judge_" + status), object)


def outcomes(found: Found) -> pa.Table:
    """One OUTCOMES row a query, in the order of the files; `reason` "" is exported. Before the job has decided, the
    counts of negatives are 0 and `reason` says so."""
    return _joined(list(outcome_parts(found)), OUTCOMES)


def outcome_parts(found: Found) -> Iterator[pa.Table]:
    """The same, by the files of `parts`."""
    if found.has("decisions"):
        yield from map(store.read_table, found.run.parts("decisions", "outcomes"))
        return
    for path in found.run.parts("candidates", "positives"):
        yield _waiting(store.read_table(path, ["query_id"]))


def _waiting(positives: pa.Table) -> pa.Table:
    counted = positives.group_by("query_id", use_threads=False).aggregate([([], "count_all")])
    size = counted.num_rows
    nothing = pa.array(np.zeros(size, np.int32))
    columns = [counted.column("query_id"), counted.column("count_all"), nothing, nothing]
    return pa.table([*columns, pa.array([UNDECIDED] * size, pa.string())], names=OUTCOMES.names)


def positives(found: Found, columns: list[str]) -> pa.Table:
    """POSITIVES rows, the relabelled ones of the job among them."""
    tables = [store.read_table(path, columns) for path in found.run.parts("candidates", "positives")]
    if found.has("decisions"):
        tables += [store.read_table(path, columns) for path in found.run.parts("decisions", "relabelled")]
    schema = pa.schema([pa.field(name, _POSITIVE[name]) for name in columns])
    return _joined(tables, schema)


_POSITIVE = {
    **{"query_id": TEXT, "doc_id": TEXT, "relevance": pa.int32()},
    **{"score": pa.float32(), "teacher_score": pa.float32()},
}


def _joined(tables: list[pa.Table], schema: pa.Schema) -> pa.Table:
    return pa.concat_tables([schema.empty_table(), *(table.select(schema.names).cast(schema) for table in tables)])


# ---------------------------------------------------------------- texts


def lengths(found: Found) -> tuple[pa.Array, Array]:
    """The id of every passage of the corpus, and int64[n]: its characters as the encoder reads it."""
    ids, sizes = [pa.array([], TEXT)], [np.empty(0, np.int64)]
    for table in _passages(found):
        ids.append(table.column("doc_id").combine_chunks())
        title, text = (pc.utf8_length(table.column(name)).to_numpy() for name in ("title", "text"))
        sizes.append(title + (title > 0) + text)
    return pa.concat_arrays([one.cast(TEXT) for one in ids]), np.concatenate(sizes).astype(np.int64)


def _passages(found: Found) -> Iterator[pa.Table]:
    path = found.run.folder.step("corpus") / "passages.parquet"
    with store.readable(path):
        yield from store.iter_tables(path, ["doc_id", "title", "text"])


def texts(found: Found, ids: set[str]) -> dict[str, str]:
    """doc_id -> text of these passages, synthetic ones too. Reads the corpus once, group by group."""
    wanted, shown = pa.array(sorted(ids), TEXT), {}
    for table in _passages(found):
        table = table.filter(pc.is_in(table.column("doc_id"), value_set=wanted))
        for doc_id, title, text in zip(*(table.column(n).to_pylist() for n in table.column_names), strict=True):
            shown[doc_id] = passage_text(title, text)
    return {**synthetic_texts(found), **shown}


def synthetic_texts(found: Found) -> dict[str, str]:
    """doc_id -> text of what the generator wrote; nothing of requests without a readable answer."""
    if not found.has("synthetic"):
        return {}
    table = found.run.table("synthetic", "synthetic").select(["doc_id", "text"])
    pairs = zip(*(table.column(name).to_pylist() for name in ("doc_id", "text")), strict=True)
    return {doc_id: text for doc_id, text in pairs if text}


def query_texts(found: Found, ids: list[str]) -> list[str]:
    """The texts of these queries, in their order."""
    table = store.read_table(found.run.folder.step("corpus") / "queries.parquet", ["query_id", "text"])
    place = pc.index_in(pa.array(ids, TEXT), value_set=table.column("query_id").combine_chunks().cast(TEXT))
    return [text or "" for text in table.column("text").take(place).to_pylist()]
