"""`miner status`, `inspect`, `diff`, `show`: look at jobs and training files. None of them changes a thing."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from miner.commands import complete
from miner.commands.common import AsJson, JobFile, Overrides, load
from miner.errors import UserError

Full = Annotated[bool, typer.Option("--full", help="Show texts uncut.")]


def status(
    job_file: JobFile,
    watch: Annotated[
        bool, typer.Option("--watch", help="Look again and again until the run ends, or wait for one to begin.")
    ] = False,
    every: Annotated[float, typer.Option("--every", help="Seconds between two looks of --watch.", min=0.1)] = 2.0,
    set_: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Show each step of the job, fresh, stale or running, and how far a run is. Runs are not disturbed.

    With --watch --json: one JSON object a line, a line a look; `phase` is waiting, running or ended.
    """
    from miner import ledger_tail, views
    from miner.commands import safe, status_views
    from miner.job_status import Watch

    watching = Watch(load(job_file, set_), every)
    if not watch:
        found = watching.look()
        found["answers in the ledger"] = ledger_tail.answers(watching.folder.ledger)
        found |= views.expected(watching.job, found["steps"])
        print(safe.json_text(found, 2)) if as_json else status_views.print_status(found)
        return
    with _ended_by_hand():
        if as_json:
            for look in watching.follow():
                print(safe.json_text(look), flush=True)
        else:
            status_views.watch(watching.follow())


@contextlib.contextmanager
def _ended_by_hand() -> Iterator[None]:
    """Ctrl-C and SIGTERM end a view: the cursor is put right first, and there is nothing to go on with."""

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
    finally:
        signal.signal(signal.SIGTERM, before)


def inspect(
    job_file: JobFile,
    query_id: Annotated[
        str,
        typer.Argument(
            help="The query: its id, or a part of the text of one query alone.",
            metavar="QUERY_ID",
            autocompletion=complete.query_ids,
        ),
    ],
    doc: Annotated[
        str | None,
        typer.Option("--doc", help="Everything of this candidate: prompt messages, raw answer, tokens, cost."),
    ] = None,
    kept: Annotated[bool, typer.Option("--kept", help="Show only what became a negative.")] = False,
    reason: Annotated[str | None, typer.Option("--reason", help="Show only what was dropped for this reason.")] = None,
    full: Full = False,
    set_: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Show a query with its positives and every candidate: ranks, scores, margin, grade, evidence, decision."""
    if doc is not None and (kept or reason is not None):
        raise UserError("inspect: --doc names one candidate; leave --kept and --reason out")
    from miner import job_query
    from miner.commands import look_views, safe

    job = load(job_file, set_)
    if doc is not None:
        one = job_query.candidate(job, query_id, doc)
        print(safe.json_text(one, 2)) if as_json else look_views.print_one(one, full)
        return
    found = job_query.query(job, query_id)
    if kept or reason is not None:
        _narrow(found, kept, reason)
    print(safe.json_text(found, 2)) if as_json else look_views.print_query(found, full)


def _narrow(found: dict[str, Any], kept: bool, reason: str | None) -> None:
    """Leave only the candidates that are asked for, and tell how many there were. Raises UserError."""
    rows = found["candidates"]
    chosen = [row for row in rows if (not kept or row.get("kept")) and (reason is None or row["reason"] == reason)]
    if reason is not None and not any(row["reason"] == reason for row in rows):
        there = ", ".join(sorted({row["reason"] for row in rows if row["reason"]})) or "none"
        raise UserError(f"--reason {reason}: no candidate of query {found['query_id']!r} has it; there are {there}")
    found |= {"candidates": chosen, "of": len(rows)}


def diff(
    first: Annotated[Path, typer.Argument(help="Job file A.", metavar="A.yaml")],
    second: Annotated[Path, typer.Argument(help="Job file B.", metavar="B.yaml")],
    queries: Annotated[
        int | None,
        typer.Option("--queries", help="Queries shown one by one, most changes first; 5, with --json 1000.", min=0),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Compare two jobs: settings, counts, scores and costs that differ, and which negatives came and went, and why."""
    from miner import job_diff
    from miner.commands import diff_views, safe

    most = queries if queries is not None else job_diff.QUERIES if as_json else 5
    found = job_diff.payload(load(first, None), load(second, None), most)
    print(safe.json_text(found, 2)) if as_json else diff_views.print_comparison(found)


def show(
    file: Annotated[
        Path, typer.Argument(help="A training file of any form, or a BEIR or saved data set folder.", metavar="FILE")
    ],
    form: Annotated[str, typer.Option("--format", help="The form of the file; auto: told from its columns.")] = "auto",
    corpus: Annotated[Path | None, typer.Option("--corpus", help="Passages, where the rows hold ids.")] = None,
    rows: Annotated[
        str | None, typer.Option("--rows", help="Rows A:B, counted from 1, both shown; A: and :B are open.")
    ] = None,
    grep: Annotated[str, typer.Option("--grep", help="Only rows with this in any of their texts.")] = "",
    query: Annotated[str, typer.Option("--query", help="Only rows with this in the query.")] = "",
    full: Full = False,
    pager: Annotated[
        bool, typer.Option("--pager/--no-pager", help="On a terminal: through $PAGER, else less, or straight.")
    ] = True,
    as_json: AsJson = False,
) -> None:
    """Show rows of a training file: query, positives, negatives, scores, lengths, and the words that they share.

    The file is read as it is shown, whatever its size. With --json: one JSON object a row.
    """
    from miner import training_view
    from miner.commands import safe, show_views

    first, last = _range(rows)
    sources = training_view.open_files(file, None if form == "auto" else form, corpus)
    found = training_view.rows(sources, training_view.Wanted(first, last, grep, query))
    if as_json:
        for row in found:
            print(safe.json_text(row))
        return
    shown = show_views.paged if pager and show_views.is_terminal() else show_views.straight
    if not shown(found, full):
        print("no such row")


def _range(rows: str | None) -> tuple[int, int | None]:
    """first and last row of --rows; the last None for all. Raises UserError."""
    if rows is None:
        return 1, None
    low, colon, high = rows.strip().partition(":") if rows.strip() else ("?", "", "")
    numbers = [int(part) if part.isascii() and part.isdigit() else None for part in (low or "1", high or "1")]
    if None in numbers or not numbers[0]:
        raise UserError(f"--rows {rows}: write A:B, such as 11:20, A: or :B; rows count from 1")
    first = numbers[0]
    last = first if not colon else numbers[1] if high else None
    if last is not None and last < first:
        raise UserError(f"--rows {rows}: it ends before it begins; write the smaller number first")
    return first, last
