"""What `miner estimate --cluster` shows: the stages of one cluster and size, or a Markdown table of several."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

from miner import estimate_cluster
from miner.commands.common import print_json
from miner.config import Job
from miner.errors import UserError

Row = dict[str, Any]


def show(job: Job, files: list[Path], passages: list[int], queries: int | None, explain: bool, as_json: bool) -> None:
    """One estimate for each file and number of passages; none of these reads the job's data."""
    if queries is not None and len(passages) != 1:
        raise UserError(f"--queries {queries} needs one --passages N, {len(passages)} are given; else a tenth is taken")
    sizes: list[int | None] = [*passages] or [None]
    found = [estimate_cluster.run(job, file, size, queries) for file, size in product(files, sizes)]
    if as_json:
        print_json(found[0] if len(found) == 1 else found)
    elif len(found) == 1:
        _print_stages(found[0])
    else:
        print("\n".join([*table(found), *_told(found)]))
    if explain and not as_json:
        for row in found:
            print("\n".join(["", *explained(row)]))


def table(found: list[Row]) -> list[str]:
    """Markdown: a line for each estimate; hours by stage, empty where a job has none."""
    fullest = sorted(found, key=lambda row: -len(row["stages"]))  # has every stage of the job, in order
    names = list(dict.fromkeys(stage["stage"] for row in fullest for stage in row["stages"]))
    head = ["passages", "queries", "cluster", "index", *(f"{name} h" for name in names)]
    head += ["all h", "GB a worker", "disk GB", "dollars"]
    lines = [_line(head), _line(["---"] * len(head))]
    return lines + [_line(_cells(row, names)) for row in found]


def _told(found: list[Row]) -> list[str]:
    """The warnings, below the table."""
    return [
        f"warning: {row['cluster']['name']}, {row['work']['passages']:,} passages: {warning}"
        for row in found
        for warning in row["warnings"]
    ]


def _cells(row: Row, names: list[str]) -> list[str]:
    work, total = row["work"], row["total"]
    hours = {stage["stage"]: _number(stage["hours"]) for stage in row["stages"]}
    known = [hours.get(name, "") for name in names]
    return [
        *(f"{work[name]:,}" for name in ("passages", "queries")),
        row["cluster"]["name"],
        work["index"],
        *known,
        _sum(total, "hours"),
        _number(total["memory_gb"]),
        _number(total["disk_gb"]),
        _sum(total, "dollars"),
    ]


def _sum(total: Row, name: str) -> str:
    return _number(total[name]) + (" + unknown" if total[f"{name}_unknown"] else "")


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _number(value: float | None) -> str:
    """Three digits at most: these are estimates."""
    if value is None:
        return "unknown"
    if value >= 100:
        return f"{float(f'{value:.3g}'):,.0f}"
    return "<0.01" if 0 < value < 0.005 else f"{value:.2f}" if value < 1 else f"{value:.1f}"


def _print_stages(row: Row) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False, markup=False, emoji=False)
    shown = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("stage", "on"):
        shown.add_column(name)
    for name in ("GPUs", "hours", "GB a worker", "disk GB", "dollars"):
        shown.add_column(name, justify="right")
    for stage in row["stages"]:
        numbers = (_number(stage[name]) for name in ("hours", "memory_gb", "disk_gb", "dollars"))
        shown.add_row(stage["stage"], stage["on"], str(stage["gpus"] or ""), *numbers)
    total = row["total"]
    memory, disk = _number(total["memory_gb"]), _number(total["disk_gb"])
    shown.add_row("total", "", "", _sum(total, "hours"), memory, disk, _sum(total, "dollars"))
    console.print(shown)
    work, cluster = row["work"], row["cluster"]
    console.print(
        f"{work['passages']:,} passages, {work['queries']:,} queries, {work['dimension']} dimensions, index"
        f" {work['index']}; {cluster['nodes']} nodes at {cluster['price']:,.2f} dollars an hour",
        soft_wrap=True,
    )
    for warning in row["warnings"]:
        console.print(f"warning: {warning}", soft_wrap=True)


def explained(row: Row) -> list[str]:
    """The lines of each stage, then the rates by name that these use, with their sources."""
    work, cluster = row["work"], row["cluster"]
    lines = [f"{cluster['name']}, {work['passages']:,} passages, {work['queries']:,} queries"]
    for stage in row["stages"]:
        lines += [f"{stage['stage']}:", *(f"    {line}" for line in stage["lines"])]
    rates = (
        f"    {name} {r['value']:g} {r['unit']} ({r['kind']}, {r['date']}): {r['source']}"
        for name, r in row["rates"].items()
    )
    return [*lines, "rates:", *rates]
