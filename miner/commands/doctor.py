"""`miner doctor`: what is installed, what the machine has, and whether a job's servers answer."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from miner.commands import complete
from miner.commands.common import AsJson, Overrides, load, print_json
from miner.errors import UserError

if TYPE_CHECKING:
    from rich.console import Console

    from miner.doctor import Check

COLOURS = {"ok": "green", "warn": "yellow", "fail": "bold red"}


def doctor(
    job_file: Annotated[
        Path | None,
        typer.Argument(
            help="A job file, to check what it needs.", metavar="JOB.yaml", autocompletion=complete.job_files
        ),
    ] = None,
    online: Annotated[
        bool, typer.Option("--online/--offline", help="Ask the hub and the job's servers whether they answer.")
    ] = True,
    ask: Annotated[
        bool,
        typer.Option("--ask/--no-ask", help="Send the job's LLMs some tiny chat requests; they cost a few tokens."),
    ] = True,
    set_: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Check what is installed, the machine, keys, and what a job needs. Exit code 1 where something fails."""
    from rich.console import Console

    from miner import doctor as checks

    console = Console(highlight=False, markup=False, emoji=False)
    found = checks.report([*_all(job_file, set_, online, ask), _terminal(console)])
    print_json(found) if as_json else _show(console, found)
    if found["fail"]:
        raise typer.Exit(1)


def _all(job_file: Path | None, overrides: list[str] | None, online: bool, ask: bool) -> Iterator[Check]:
    from miner import doctor as checks

    temporary = Path(tempfile.gettempdir())
    if job_file is None:
        yield from checks.redacted(checks.machine(online, {"working folder": Path(), "temporary files": temporary}))
        return
    job, names, refused = _job(job_file, overrides)
    folders = {"temporary files": temporary}
    if job is not None:
        cache = Path(job.vector_cache) if job.vector_cache else Path(job.job) / "vector_cache"
        folders = {"job folder": Path(job.job), "vector cache": cache, **folders}
    yield from checks.redacted(checks.machine(online, folders, names), names)
    if refused or job is None:
        yield from checks.redacted([checks.Check("job", "job file", "fail", refused)], names)
        return
    from miner import doctor_job

    yield checks.Check("job", "job file", "ok", f"{job_file} loads")
    yield from checks.redacted(doctor_job.files(job), names)
    yield from checks.redacted(doctor_job.endpoints(job, online, ask), names)


def _job(job_file: Path, overrides: list[str] | None) -> tuple[Any, list[str], str]:
    """The job, the variables that it needs keys from, and why it cannot be used, or ""."""
    from miner import doctor_job

    job = None
    try:
        job = load(job_file, overrides)
        return job, doctor_job.keys(job), ""
    except UserError as error:
        return job, [], str(error)


def _terminal(console: Console) -> Check:
    from miner.doctor import Check

    if not sys.stdout.isatty():
        return Check("terminal", "output", "ok", "piped or redirected: no colour, no progress bar")
    colours = console.color_system or "no colour"
    narrow = console.width < 60
    remedy = "tables need 80 columns; widen the window, or set COLUMNS" if narrow else ""
    return Check("terminal", "output", "warn" if narrow else "ok", f"{console.width} columns, {colours}", remedy)


# ---------------------------------------------------------------- what is shown


def _show(console: Console, found: dict[str, Any]) -> None:
    """A heading for each group, then a line a check; packages that are well share one line by extra."""
    for number, (heading, rows) in enumerate(groupby(found["checks"], _heading)):
        console.print(f"{chr(10) if number else ''}{_plain(heading)}", style="bold")
        for one in _together(list(rows)):
            _line(console, one)
    console.print(f"\n{', '.join(f'{found[state]} {state}' for state in COLOURS)}")


def _heading(one: dict[str, Any]) -> str:
    return "installed" if _package(one) else str(one["group"])


def _package(one: dict[str, Any]) -> bool:
    return one["group"] == "core" or str(one["group"]).startswith("extra ")


def _together(rows: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for (group, is_package), some in groupby(rows, lambda one: (one["group"], _package(one))):
        if not is_package:
            yield from some
            continue
        each = list(some)
        well = [one for one in each if one["state"] == "ok"]
        names = [one["value"] if f"extra {one['name']}" == group else f"{one['name']} {one['value']}" for one in well]
        if names:
            yield {"name": group, "state": "ok", "value": ", ".join(names), "remedy": ""}
        yield from (one for one in each if one["state"] != "ok")


def _line(console: Console, one: dict[str, Any]) -> None:
    from rich.table import Table
    from rich.text import Text

    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(width=4)
    grid.add_column(width=20)
    grid.add_column(overflow="fold")
    colour, told = COLOURS[one["state"]], Text(_plain(one["value"]))
    if one["remedy"]:
        told.append(f"\n-> {_plain(one['remedy'])}", colour)
    grid.add_row(Text(one["state"], colour), Text(_plain(one["name"])), told)
    console.print(grid)


def _plain(text: str) -> str:
    from miner.readers.rows import clip

    return clip(text, 600)
