"""`miner report`: one HTML file that shows a job, or compares two, without a network."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from miner.commands.common import AsJson, Overrides, load, print_json
from miner.errors import UserError

# What says which queries are on a page, and how large it may be.
PAGE = ("queries", "page", "query", "max_mb")


def report(
    context: typer.Context,
    job_files: Annotated[list[Path], typer.Argument(help="A job file (YAML); two are compared.", metavar="JOB.yaml")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="File to write; without it report.html in the job's folder.")
    ] = None,
    queries: Annotated[
        int, typer.Option("--queries", min=1, help="Queries whose texts, answers and prompts are on a page.")
    ] = 800,
    page: Annotated[int, typer.Option("--page", min=1, help="Which so many queries, counted from 1.")] = 1,
    query: Annotated[
        list[str] | None, typer.Option("--query", help="Query whose texts are in the page anyway. Repeatable.")
    ] = None,
    max_mb: Annotated[float, typer.Option("--max-mb", help="Largest file, in millions of bytes.")] = 8.0,
    set_: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Write one HTML file: summary, plots, warnings, and every decision with its prompt and answer.

    Reads what the job has, at whatever step it is, and takes no lock: a run may go on meanwhile. It needs no network,
    and opens in any browser. With --json the data without the single decisions are printed, and nothing is written.
    """
    if len(job_files) > 2:
        raise UserError(f"report: {len(job_files)} job files are named; one is shown, two are compared")
    if len(job_files) == 2:
        _refuse(context, PAGE, "a comparison")
    if as_json:
        _refuse(context, ("output", *PAGE), "--json, which writes no page")
    jobs = [load(path, set_) for path in job_files]
    if len(jobs) == 2:
        from miner import job_diff

        made = job_diff.payload(*jobs)
    else:
        made = _of_one(jobs[0], queries, page, query or [], max_mb, browser=not as_json)
    if as_json:
        print_json(made)
        return
    name = "comparison" if len(jobs) == 2 else f"report-{page}" if page > 1 else "report"
    _write(made, output or Path(jobs[0].job) / f"{name}.html")


def _refuse(context: typer.Context, names: tuple[str, ...], what: str) -> None:
    """Options that would not be read. Raises UserError."""
    for name in names:
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            raise UserError(f"report: --{name.replace('_', '-')} says nothing to {what}; leave it out")


def _of_one(job: Any, queries: int, page: int, forced: list[str], max_mb: float, browser: bool) -> dict[str, Any]:
    from miner.report import data as report_data
    from miner.report.choice import Wanted

    return report_data.payload(job, Wanted(queries, page, tuple(forced)), max_mb, browser)


def _write(made: dict[str, Any], path: Path) -> None:
    from miner import store
    from miner.report import page as report_page

    text = report_page.page(made)
    store.write_text(path, text)
    print(f"{path} ({len(text.encode()) / 1e6:.2f} MB)")
    if made["browser"] is not None and made["browser"]["note"]:
        print(made["browser"]["note"])
