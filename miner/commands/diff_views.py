"""What `miner diff` shows: two jobs side by side, then the queries whose negatives changed most."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from miner.commands.safe import block, console_of, inline

Row = dict[str, Any]
SIGNS = {"gained": ("+", "green"), "lost": ("-", "red"), "moved": ("~", "yellow")}
ROWS = 10  # of one query and kind


def print_comparison(found: Row) -> None:
    """found: as job_diff.payload returns it; all of its queries are shown."""
    console, comparison = console_of(), found["comparison"]
    for line in found["warnings"]:
        block(console, Text(f"warning: {inline(line, None)}", "yellow"))
    for name, value in found["facts"]:
        block(console, Text(_shown(value)), 34, name)
    _print_sides(console, "configuration", comparison["config"], "the same")
    _print_sides(console, "measured", comparison["metrics"], "nothing")
    _print_sides(console, "counts that differ", [row for row in comparison["counts"] if row[1] != row[2]], "none")
    for one in comparison["positives"]:
        _print_positives(console, one)
    for one in comparison["queries"]:
        _print_query(console, one)


def _shown(value: Any) -> str:
    """A value of a table, short enough for a column."""
    if value is None:
        return "-"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return inline(str(value), 300)
    return f"{value:,}" if isinstance(value, int) else f"{value:,.6g}"


def _print_sides(console: Console, title: str, rows: list[list[Any]], none: str) -> None:
    console.print()
    block(console, Text(title, "bold") + Text("" if rows else f": {none}"))
    if not rows:
        return
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for name in ("", "A", "B"):
        table.add_column(name, overflow="fold")
    for name, a, b in rows:
        table.add_row(
            *(Text(_shown(value), "" if a != b or at == 0 else "dim") for at, value in enumerate((name, a, b)))
        )
    console.print(table)


def _print_positives(console: Console, one: Row) -> None:
    console.print()
    block(console, Text(f"positives of {inline(one['id'], 60)}  {inline(one['text'], 200)}", "bold"))
    for what in ("gained", "lost"):
        sign, style = SIGNS[what]
        for doc_id in one[what][:ROWS]:
            block(console, Text(inline(doc_id, 60), style), 4, f"  {sign}")
        _print_more(console, one, what)


def _print_query(console: Console, one: Row) -> None:
    console.print()
    block(console, Text(f"{inline(one['id'], 60)}  {inline(one['text'], 200)}", "bold"))
    for what, (sign, style) in SIGNS.items():
        for row in one[what][:ROWS]:
            block(console, Text(f"{inline(row['doc_id'], 60)}  {_about(row)}", style), 4, f"  {sign}")
            block(console, Text(f"A: {inline(row['why_a'], 60)}; B: {inline(row['why_b'], 60)}"), 4)
            block(console, Text(inline(row["text"], 140), "dim"), 4)
        _print_more(console, one, what)


def _print_more(console: Console, one: Row, what: str) -> None:
    if len(one[what]) > ROWS:
        block(console, Text(f"{len(one[what]) - ROWS} more {what}"), 4)


def _about(row: Row) -> str:
    parts = [] if row["score"] is None else [f"score {row['score']:.4f}"]
    for name in ("rank", "grade"):
        a, b = row[f"{name}_a"], row[f"{name}_b"]
        if a is not None or b is not None:
            parts.append(f"{name} {a}" if a == b else f"{name} {_shown(a)} to {_shown(b)}")
    return ", ".join(parts)
