"""What `miner status` shows: the steps once, or anew at every look until the run ends."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from miner import views
from miner.commands.safe import block, console_of, dollars, inline, seconds

Row = dict[str, Any]
STYLES = {"fresh": "green", "running": "bold yellow"}


def print_status(found: Row) -> None:
    """One look, with all counts."""
    console = console_of()
    console.print(views.steps_table(found["steps"]))
    for line in told(found):
        block(console, Text(line))
    for name in ("job", "answers in the ledger", "judge requests"):
        console.print(f"{name}: {found[name]}", soft_wrap=True)


def told(found: Row) -> list[str]:
    """In words: who runs, how far, how fast, what it costs."""
    run = found["run"]
    if run is None:
        lines = ["no run is going on"]
    else:
        step = f": {run['step']}" if run["step"] else ", between two steps"
        lines = [
            f"a run is going on (process {run['pid'] or 'unknown'}, for {seconds(found['at'] - run['since'])}){step}"
        ]
    if found["progress"]:
        lines += _progress(found["progress"])
    for name, one in found["budget"].items():
        money = name == "max_cost"
        taken, limit = (dollars(v) if money else f"{v:,.0f}" for v in (one["taken"], one["limit"]))
        lines.append(f"budget.{name}: {taken} of {limit} taken ({one['taken'] / one['limit']:.0%})")
    return lines


def _progress(one: Row) -> list[str]:
    share = f" ({one['done'] / one['expected']:.0%})" if one["expected"] else ""
    first = f"{one['step']}: {one['done']:,} of {one['expected']:,} {one['unit']}{share}"
    if one["unit"] != "requests":
        return [first]
    flying = "" if one["in_flight"] is None else f", {one['in_flight']:,} in flight"
    lines = [f"{first}, {one['failed']:,} failed{flying}"]
    if one["rate"] is not None:
        left = f", about {seconds(one['left_s'])} left" if one["left_s"] is not None else ", time left unknown"
        lines.append(f"{one['rate']:,.1f} answers/s{left}")
    lines.append(
        f"{one['prompt_tokens']:,} prompt and {one['completion_tokens']:,} answer tokens, {dollars(one['cost'])}"
    )
    return lines


# ---------------------------------------------------------------- watched


def watch(looks: Iterator[Row]) -> None:
    """Live on a terminal; else a paragraph whenever something has changed."""
    console = console_of()
    if console.is_terminal and not console.is_dumb_terminal:
        last = _live(console, looks)
    else:
        last = _lines(console, looks)
    if last is not None:
        block(console, Text(ending(last)))


def _live(console: Console, looks: Iterator[Row]) -> Row | None:
    last = None
    with Live(console=console, auto_refresh=False, redirect_stdout=False, redirect_stderr=False) as live:
        for last in looks:
            live.update(_screen(console, last), refresh=True)
    return last


def _lines(console: Console, looks: Iterator[Row]) -> Row | None:
    last, before = None, None
    for last in looks:
        run = last["run"]
        changing = [[one["state"] for one in last["steps"]], run and run["step"], last["progress"], last["phase"]]
        if changing != before:
            now = _now(last)
            if before is None and last["phase"] != "ended":
                now += [f"{one['step']}: {one['state']}" for one in last["steps"] if one["state"] != "fresh"]
            if now:
                block(console, Text("; ".join(now)), 9, time.strftime("%H:%M:%S", time.localtime(last["at"])))
                console.file.flush()
        before = changing
    return last


def _now(found: Row) -> list[str]:
    """What is told at a look; that a run has ended is told last, with how it ended."""
    if found["phase"] == "ended":
        return told(found)[1:]
    return told(found) + (["waiting for one to begin; Ctrl-C ends"] if found["phase"] == "waiting" else [])


def _screen(console: Console, found: Row) -> Group:
    """At most a line a step, so that the whole fits a small terminal."""
    table = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True, overflow="ellipsis")
    table.add_column(no_wrap=True, overflow="ellipsis", style="dim")
    for row in found["steps"]:
        counts = {name: value for name, value in row["counts"].items() if isinstance(value, int | float)}
        plain = ", ".join(f"{name} {value:,}" for name, value in counts.items())
        state = Text(inline(row["state"], 60), STYLES.get(row["state"], ""))
        table.add_row(Text(inline(row["step"], 40)), state, Text(plain))
    return Group(table, *(Text(line, no_wrap=True, overflow="ellipsis") for line in _now(found)))


def ending(found: Row) -> str:
    """How it stands when nothing runs any more."""
    open_ = [row for row in found["steps"] if row["state"] != "fresh"]
    if not open_:
        return "no run is going on; every step is fresh"
    return f"no run is going on any more; {open_[0]['step']} is next: {inline(open_[0]['state'], 200)}"
