"""What the command line shows: the plan, the summary, one query with everything known of its candidates."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow.compute as pc
from rich.console import Console
from rich.table import Table
from rich.text import Text

from miner import engine, store
from miner.config import Job
from miner.errors import UserError
from miner.job import JobFolder, Stamp
from miner.ledger import Ledger
from miner.readers.rows import clip
from miner.steps import Context, Passages

Row = dict[str, Any]


def _add_counts(table: Table, step: str, state: list[str], counts: Row) -> None:
    """A row with the plain counts of a step, then one for each group of counts."""
    groups = {name: value for name, value in counts.items() if isinstance(value, dict)}
    table.add_row(step, *state, _listed({k: v for k, v in counts.items() if k not in (*groups, "reason")}))
    for name, group in groups.items():
        if group:
            table.add_row("", *("" for _ in state), f"{name}: {_listed(group)}")
    if "reason" in counts:
        table.add_row("", *("" for _ in state), str(counts["reason"]))


def _listed(counts: Row) -> str:
    shown = {name: f"{value:,}" if isinstance(value, int | float) else str(value) for name, value in counts.items()}
    return ", ".join(f"{name} {value}" for name, value in shown.items())


def _console() -> Console:
    """Nothing that is shown is read as markup: a path or an id may hold brackets and colons."""
    return Console(highlight=False, markup=False, emoji=False)


def summary(folder: JobFolder, stamps: list[Stamp], warnings: list[str]) -> Row:
    files = [str(p) for p in sorted(folder.step("export").glob("*"))] if stamps[-1].step == "export" else []
    return {
        "job": str(folder.root),
        "steps": {stamp.step: stamp.counts for stamp in stamps},
        "complete": all(stamp.complete for stamp in stamps),
        "warnings": warnings,
        "files": files,
    }


def print_summary(found: Row) -> None:
    console = _console()
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for step, counts in found["steps"].items():
        _add_counts(table, step, [], counts)
    console.print(table)
    for warning in found["warnings"]:
        console.print(Text(f"warning: {clip(warning, 1000)}", style="yellow"), soft_wrap=True)
    for file in found["files"]:
        console.print(Text(file), soft_wrap=True)


def plan(job: Job) -> Row:
    """Each step with its state, and the counts that are known before running."""
    folder = JobFolder(Path(job.job or ""))
    ledger = Ledger(folder.ledger) if folder.ledger.is_file() else None
    context = Context(job, folder, ledger)  # type: ignore[arg-type]  # states() asks nothing
    steps = [
        {"step": name, "state": why or "fresh", "counts": stamp.counts if stamp else {}}
        for name, why, stamp in engine.states(context)
    ]
    answers = len(ledger) if ledger else 0
    return {"job": str(folder.root), "steps": steps, "answers in the ledger": answers, **_expected(job, steps)}


def _expected(job: Job, steps: list[Row]) -> Row:
    counts = {row["step"]: row["counts"] for row in steps}
    queries = counts["corpus"].get("queries")
    if not job.judge.enabled:
        return {"judge requests": 0}
    pooled = counts["candidates"].get("pool")
    at_most = pooled if pooled is not None else queries and queries * job.pool_size
    return {"judge requests": at_most if at_most is not None else "unknown until the data is read"}


def print_plan(found: Row) -> None:
    console = _console()
    table = Table(box=None, padding=(0, 2, 0, 0))
    for name in ("step", "state", "counts"):
        table.add_column(name)
    for row in found["steps"]:
        _add_counts(table, row["step"], [row["state"]], row["counts"])
    console.print(table)
    for name in ("job", "answers in the ledger", "judge requests"):
        console.print(f"{name}: {found[name]}", soft_wrap=True)


def query(job: Job, query_id: str) -> Row:
    """A query, its positives and its candidates with all that is known of them. Raises UserError."""
    folder = JobFolder(Path(job.job or ""))
    queries = _optional(folder, "corpus/queries.parquet")
    if not queries:
        raise UserError(f"{folder.root}: nothing is mined yet; run `miner mine` first")
    row = next((r for r in queries if r["query_id"] == query_id), None)
    if row is None:
        known = ", ".join(r["query_id"] for r in queries[:3])
        raise UserError(f"query {query_id!r} is not in this job, which has {len(queries)}: {known}, …")
    passages = Passages(store.read_table(folder.step("corpus") / "passages.parquet"))
    judged = _judgments(folder, query_id)
    written = {r["doc_id"]: r for r in _of(folder, "synthetic/synthetic.parquet", query_id)}
    for doc_id, synthetic in written.items():
        passages.add(doc_id, synthetic["text"] or "")
    rows = _parts(folder, "decisions", "part", query_id) or _parts(folder, "candidates", "part", query_id)
    for candidate in rows:
        judgment = judged.get(candidate["doc_id"], {})
        candidate |= {k: judgment.get(k) for k in ("grade", "status", "evidence", "detail", "request_key")}
        candidate["text"] = passages[candidate["doc_id"]]
        if candidate["doc_id"] in written:
            candidate |= {k: written[candidate["doc_id"]][k] for k in ("facet", "change")}
    positives = _parts(folder, "candidates", "positives", query_id)
    for positive in positives:
        positive["text"] = passages[positive["doc_id"]]
    return {"query_id": query_id, "text": row["text"], "positives": positives, "candidates": rows}


def _optional(folder: JobFolder, name: str) -> list[Row]:
    path = folder.root / name
    return list(store.read_table(path).to_pylist()) if path.is_file() else []


def _of(folder: JobFolder, name: str, query_id: str) -> list[Row]:
    path = folder.root / name
    if not path.is_file():
        return []
    table = store.read_table(path)
    return list(table.filter(pc.equal(table.column("query_id"), query_id)).to_pylist())


def _judgments(folder: JobFolder, query_id: str) -> dict[str, Row]:
    names = ("judgments/judgments.parquet", "synthetic_judgments/judgments.parquet")
    return {row["doc_id"]: row for name in names for row in _of(folder, name, query_id)}


def _parts(folder: JobFolder, step: str, prefix: str, query_id: str) -> list[Row]:
    names = sorted(p.name for p in folder.step(step).glob(f"{prefix}-*.parquet"))
    return [row for name in names for row in _of(folder, f"{step}/{name}", query_id)]


def print_query(found: Row) -> None:
    console = _console()
    console.print(Text(f"{clip(found['query_id'])}  {clip(found['text'], 400)}", style="bold"))
    for row in found["positives"]:
        console.print(Text(f"  + {clip(row['doc_id'])}  {row['score']:.4f}  {clip(row['text'], 100)}", style="green"))
    table = Table(box=None, padding=(0, 1, 0, 0))
    for name in ("slot", "rank", "score", "teacher", "grade"):
        table.add_column(name, justify="right")
    for name in ("found by", "decision", "passage"):
        table.add_column(name)
    for row in found["candidates"]:
        table.add_row(*_cells(row), style="" if row.get("kept") else "dim")
    console.print(table)


def _cells(row: Row) -> list[Text]:
    evidence = f"\n“{clip(row['evidence'], 100)}”" if row.get("evidence") else ""
    numbers = [
        row.get("slot"),
        row.get("rank"),
        _score(row["score"]),
        _score(row.get("teacher_score")),
        row.get("grade"),
    ]
    cells = ["" if value is None else str(value) for value in numbers]
    found_by = ", ".join(f"{one['retriever']} {one['rank']}" for one in row.get("found_by") or [])
    decision = row["reason"] or ("kept" if row.get("kept") else "pool")
    band = f" ({row['band']})" if row.get("band") else ""
    return [
        Text(cell)
        for cell in (*cells, found_by, decision + band, f"{clip(row['doc_id'])}  {clip(row['text'])}{evidence}")
    ]


def _score(value: float | None) -> str | None:
    return None if value is None else f"{value:.4f}"


def print_calibration(found: Row) -> None:
    """The trade-off curve, most negatives first, then what was chosen and how it does on the queries held out."""
    console = _console()
    table = Table(box=None, padding=(0, 2, 0, 0))
    for name in ("rank_min", "margin", "negatives", "hardness", "false negatives", "95% interval", "bound", "judged"):
        table.add_column(name, justify="right")
    for point in sorted(found["points"], key=lambda one: (-one["kept"], -(one["hardness"] or 0))):
        table.add_row(*_point(point), style="" if point["upper"] <= found["target"] else "dim")
    console.print(table)
    console.print(f"{found['queries']} queries, {found['source']}; chosen on one half of them", soft_wrap=True)
    if found["chosen"] is None:
        lacking = found["lacking"]
        more = (
            f"about {lacking} more judged negatives may show it" if lacking else "the share itself is above it in all"
        )
        console.print(f"no setting is shown to be within {found['target']:.1%}: {more}; the job file is as it was")
        return
    for name in ("chosen", "held_out"):
        rank_min, margin, count, hardness, share, interval, bound, judged = _point(found[name])
        console.print(
            f"{name.replace('_', ' ')}: rank_min {rank_min}, {margin}: {count} negatives a query, hardness {hardness},"
            f" false negatives {share} ({interval}), bound {bound}, of {judged} judged",
            soft_wrap=True,
        )


def _point(point: Row) -> list[str]:
    low, high = point["interval"]
    return [
        str(point["rank_min"]),
        f"{point['kind']} {point['margin']:g}",
        f"{point['kept']:.2f}",
        "" if point["hardness"] is None else f"{point['hardness']:.4f}",
        "" if point["fn"] is None else f"{point['fn']:.1%}",
        f"{low:.1%} to {high:.1%}",
        f"{point['upper']:.1%}",
        str(point["judged"]),
    ]
