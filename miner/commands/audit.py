"""`miner audit`: options in, a table or JSON out. Texts of the files go to the terminal only cleaned."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from miner.commands import complete
from miner.commands.common import AsJson, Overrides
from miner.errors import UserError

PLACES = 3
Form = Annotated[
    str | None,
    typer.Option("--format", help="The form of all files; told from the columns.", autocompletion=complete.forms),
]
FailOn = Annotated[
    str,
    typer.Option(
        "--fail-on", help="Exit 1 from this severity on: error or warning.", autocompletion=complete.severities
    ),
]


def audit(
    files: Annotated[list[Path], typer.Argument(help="Training files of any form, or BEIR or saved data set folders.")],
    form: Form = None,
    corpus: Annotated[Path | None, typer.Option("--corpus", help="Passages, where the rows hold ids.")] = None,
    firewall: Annotated[
        list[Path] | None,
        typer.Option("--firewall", help="An evaluation set that must not be in the files. Repeatable."),
    ] = None,
    job: Annotated[
        Path | None, typer.Option("--job", help="Job file: its encoder estimates the share of false negatives.")
    ] = None,
    set_: Overrides = None,
    sample: Annotated[int, typer.Option("--sample", help="Queries that the encoder looks at; 0: none.", min=0)] = 300,
    judge: Annotated[
        int, typer.Option("--judge", help="Negatives that the job's judge grades, one a query; 0: none.", min=0)
    ] = 0,
    negatives: Annotated[
        int | None, typer.Option("--negatives", help="Negatives that a row needs: the trainer's group size less 1.")
    ] = None,
    fix: Annotated[
        Path | None, typer.Option("--fix", help="Write a cleaned copy there, and OUT.changes.jsonl.")
    ] = None,
    fail_on: FailOn = "error",
    places: Annotated[int, typer.Option("--places", help="Places shown of each finding.", min=1)] = PLACES,
    max_chars: Annotated[int, typer.Option("--max-chars", help="A longer text is over-long.", min=1)] = 20_000,
    near: Annotated[
        float, typer.Option("--near", help="Texts that share so much (Jaccard of word triples) are nearly the same.")
    ] = 0.8,
    share: Annotated[
        float, typer.Option("--share", help="A passage that is a negative of more of the queries is worn.")
    ] = 0.05,
    seed: Annotated[int, typer.Option("--seed", help="Of samples and intervals.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Audit training files: traps of the loaders, bad texts, false and doubled negatives, leaks, style.

    Exit code 0: nothing found at or above --fail-on; 1: something found; 2: a file or an option is wrong.
    """
    if fail_on not in complete.SEVERITIES:
        raise UserError(f"--fail-on {fail_on}: write {' or '.join(complete.SEVERITIES)}")
    if not 0 < near <= 1 or not 0 < share <= 1:
        raise UserError("--near and --share lie above 0 and up to 1")
    if judge and job is None:
        raise UserError("--judge: name the job file that has the judge with --job")
    from miner import audit as auditing
    from miner import config
    from miner.audit_checks import Settings

    settings = Settings(max_chars, near, share, negatives, places, seed)
    loaded = config.load(job, set_) if job is not None else None
    options = auditing.Options(
        files, form, corpus, firewall or (), loaded, sample, judge, settings, keep_all=fix is not None
    )
    report = auditing.run(options)
    fixed = _fix(report, fix, settings) if fix is not None else None
    _print_json(report, fixed) if as_json else _print_tables(report, fixed)
    if report.fails(fail_on):
        raise typer.Exit(1)


def _fix(report: Any, out: Path, settings: Any) -> dict[str, int]:
    from miner import audit_fix

    return audit_fix.write(report, out, settings)


def _print_json(report: Any, fixed: dict[str, int] | None) -> None:
    value = {
        "files": report.files,
        "rows": report.rows,
        "worst": report.worst,
        "findings": report.findings,
        "statistics": report.statistics,
        "measured": report.measured,
        "fixed": fixed,
    }
    text = json.dumps(value, ensure_ascii=False, indent=2, default=str)
    # What could act on a terminal is escaped, which is the same JSON.
    print("".join(c if c.isprintable() or c == "\n" else json.dumps(c)[1:-1] for c in text))


def _print_tables(report: Any, fixed: dict[str, int] | None) -> None:
    """Nothing is read as markup; every text from a file goes through `clip`."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from miner.readers.rows import clip

    wide = sys.stdout.isatty()
    console = Console(highlight=False, markup=False, emoji=False, width=None if wide else 80)
    for file in report.files:
        name = f"{clip(file['path'], 200)}{'/' if file['split'] else ''}{clip(file['split'])}"
        console.print(Text(f"{name}: {file['form']}, {file['rows']:,} rows"), soft_wrap=True)
    styles = {"error": "red", "warning": "yellow", "info": "dim"}
    table = Table(box=None, padding=(0, 1, 0, 0))
    table.add_column("code")
    table.add_column("severity")
    table.add_column("count", justify="right")
    table.add_column("finding, and where first", ratio=1)
    for found in report.findings:
        shown = [Text(found["what"], style=styles[found["severity"]])]
        shown += [Text(_place(one, clip), style="dim") for one in found["places"]]
        table.add_row(found["code"], found["severity"], f"{found['count']:,}", Text("\n").join(shown))
    if report.findings:
        console.print(table)
    for line in report.statistics:
        console.print(Text(clip(line, 2000)))
    for name, count in (fixed or {}).items():
        console.print(f"{name}: {count:,}")
    errors = sum(found["count"] for found in report.findings if found["severity"] == "error")
    warnings = sum(found["count"] for found in report.findings if found["severity"] == "warning")
    console.print(f"{errors:,} errors, {warnings:,} warnings" if errors or warnings else "clean")


def _place(one: dict[str, str], clip: Any) -> str:
    place = f"{Path(one['place']).name} " if one["place"] else ""
    return f"  {clip(place + one['where'], 60)}  {clip(one['value'], 60)}".rstrip()
