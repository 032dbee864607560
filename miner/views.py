"""What the command line shows of a run: the plan, the summary, the calibration of the margin."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from miner import engine, job_status, ledger_tail
from miner.config import Job
from miner.job import JobFolder, Stamp
from miner.readers.rows import clip

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
    context = job_status.context_of(job)
    steps = [
        {"step": name, "state": why or "fresh", "counts": stamp.counts if stamp else {}}
        for name, why, stamp in engine.states(context)
    ]
    answers = ledger_tail.answers(context.folder.ledger)
    return {"job": str(context.folder.root), "steps": steps, "answers in the ledger": answers, **expected(job, steps)}


def expected(job: Job, steps: list[Row]) -> Row:
    """How many requests the judge is to be asked at most, as far as that is known."""
    counts = {row["step"]: row["counts"] for row in steps}
    queries = counts["corpus"].get("queries")
    if not job.judge.enabled:
        return {"judge requests": 0}
    pooled = counts["candidates"].get("pool")
    at_most = pooled if pooled is not None else queries and queries * job.pool_size
    return {"judge requests": at_most if at_most is not None else "unknown until the data is read"}


def steps_table(steps: list[Row]) -> Table:
    """Every step with its state and its counts."""
    table = Table(box=None, padding=(0, 2, 0, 0))
    for name in ("step", "state", "counts"):
        table.add_column(name)
    for row in steps:
        _add_counts(table, row["step"], [row["state"]], row["counts"])
    return table


def print_plan(found: Row) -> None:
    console = _console()
    console.print(steps_table(found["steps"]))
    for name in ("job", "answers in the ledger", "judge requests"):
        console.print(f"{name}: {found[name]}", soft_wrap=True)


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
