"""miner ledger, miner estimate: what the answers of a job cost, and what the next ones will."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from miner.commands.common import AsJson, JobFile, Overrides, load, load_to_work, print_json, resumable
from miner.errors import UserError

app = typer.Typer(help="The answers that a job has paid for.", no_args_is_help=True)


@app.command()
def stats(job_file: JobFile, set_: Overrides = None, as_json: AsJson = False) -> None:
    """Show requests, tokens, cost and time by task, prompt version, endpoint and state. A run may go on meanwhile."""
    ledger = _opened(job_file, set_)
    found = {"rows": ledger.stats(), "totals": ledger.totals(), "failures": list(ledger.failures())}
    ledger.close()
    if as_json:
        print_json(found)
        return
    _print_stats(found)


@app.command()
def export(
    job_file: JobFile,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="File to write, Batch API output form (.gz accepted).")
    ],
    set_: Overrides = None,
) -> None:
    """Write every answer to a file that `miner answers` and `backend: recorded` read."""
    from miner import store

    ledger = _opened(job_file, set_)
    print(f"{store.write_jsonl(output, ledger.lines())} answers written to {output}")
    ledger.close()


@app.command()
def gc(
    job_file: JobFile,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Count, and change nothing.")] = False,
    set_: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Move answers that no finished step rests on into an archive beside the ledger. Nothing paid for is lost."""
    with resumable():
        from miner import engine, tidy

        with engine.opened(load(job_file, set_)) as context:
            found = tidy.gc(context, dry_run)
    if as_json:
        print_json(found)
        return
    done = "would be moved" if dry_run else f"moved to {found['archive']}" if found["archive"] else "moved"
    print(f"{found['unused']} of {found['answers']} answers are unused and {done}; `miner answers` takes them in again")


def estimate(
    job_file: JobFile,
    cluster: Annotated[
        list[Path] | None, typer.Option("--cluster", help="Size the whole job for a cluster (YAML). Repeatable.")
    ] = None,
    passages: Annotated[
        list[int] | None, typer.Option("--passages", min=1, help="With --cluster: so many, not the data. Repeatable.")
    ] = None,
    queries: Annotated[
        int | None, typer.Option("--queries", min=1, help="With --passages; a tenth of them if not given.")
    ] = None,
    explain: Annotated[bool, typer.Option("--explain", help="With --cluster: show the arithmetic.")] = False,
    set_: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Tell what the LLM stages will ask, take and cost, before the first paid call. Mines first where it must."""
    if cluster:
        from miner.commands import sizing_views

        with resumable():
            sizing_views.show(load(job_file, set_), cluster, passages or [], queries, explain, as_json)
        return
    for name, value in (("--passages", passages), ("--queries", queries), ("--explain", explain)):
        if value:
            raise UserError(f"{name} is about a cluster; add --cluster FILE.yaml, or take it out")
    with resumable():
        job = load_to_work(job_file, set_)
        from miner import engine
        from miner import estimate as estimation

        with engine.opened(job) as context:
            found = estimation.run(context)
    print_json(found) if as_json else _print_estimate(found)


def _opened(job_file: Path, overrides: list[str] | None) -> Any:
    from miner.ledger import Ledger

    path = Path(load(job_file, overrides).job) / "ledger.sqlite"
    if not path.is_file():
        raise UserError(f"{path}: no ledger yet; `miner run {job_file}` makes it")
    return Ledger(path)


def _print_stats(found: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("what", "state"):
        table.add_column(name)
    for name in ("requests", "prompt tokens", "answer tokens", "cost", "s each"):
        table.add_column(name, justify="right")
    for row in found["rows"]:
        what = f"{row['task']} {row['prompt']} {row['prompt_version'][:8]}".strip()
        cost = _dollars(row["cost"]) if row["without_price"] < row["requests"] else "unknown"
        counts = (f"{row[name]:,}" for name in ("requests", "prompt_tokens", "completion_tokens"))
        table.add_row(what, row["state"], *counts, cost, f"{row['seconds']:.1f}")
    console.print(table)
    totals = found["totals"]
    if totals["requests"]:
        console.print(
            f"taken out of the budget so far: {totals['requests']:,.0f} requests, {totals['tokens']:,.0f} tokens,"
            f" {_dollars(totals['cost'])}",
            soft_wrap=True,
        )
    if found["failures"]:
        console.print(f"{len(found['failures'])} given up; `miner run --retry-failed` asks them again", soft_wrap=True)


def _print_estimate(found: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("stage")
    for name in ("requests", "in ledger", "to ask", "prompt tokens", "answer tokens", "cost", "at most", "time"):
        table.add_column(name, justify="right")
    for row in [*found["stages"], {"stage": "total", "at_most": False, **found["total"]}]:
        names = ("requests", "in_ledger", "to_ask", "prompt_tokens", "completion_tokens")
        counts = (f"{row[name]:,}" for name in names)
        name = f"{row['stage']}{' (at most)' if row['at_most'] else ''}"
        table.add_row(name, *counts, _dollars(row["cost"]), _dollars(row["most"]), _time(row["seconds"]))
    console.print(table)
    for name, limit in found["budget"].items():
        console.print(f"budget.{name}: {limit:,}")


def _dollars(cost: float | None) -> str:
    return "unknown" if cost is None else f"${cost:,.4f}" if cost < 1 else f"${cost:,.2f}"


def _time(seconds: float | None) -> str:
    if seconds is None:
        return "unknown"
    return (
        f"{seconds / 3600:.1f} h"
        if seconds >= 3600
        else f"{seconds / 60:.0f} min"
        if seconds >= 60
        else f"{seconds:.0f} s"
    )
