"""`miner golden`: sample pairs of a job, have people grade them, compare two of them, split into dev and test."""

from __future__ import annotations

import os
import re
import signal
import sys
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from miner.commands.common import AsJson, JobFile, Overrides, load_to_work, print_json, resumable
from miner.errors import UserError

if TYPE_CHECKING:
    from rich.console import Console

    from miner.golden import Labelling

app = typer.Typer(help="Pairs that people grade, to measure the judge with.", no_args_is_help=True)
GoldenFile = Annotated[Path, typer.Argument(help="A golden file (JSONL).", metavar="FILE")]
Seed = Annotated[int, typer.Option("--seed", help="Seed of the draw.", min=0)]

GRADES = ("not relevant", "same topic, no answer", "answers the main point", "answers fully")
HELP = "  ".join(f"{grade} {word}" for grade, word in enumerate(GRADES))
KEYS = "b back   s skip   q quit (every grade is saved as you press it)"


@app.command()
def sample(
    job_file: JobFile,
    output: Annotated[Path, typer.Option("--output", "-o", help="Golden file to write; it must not exist.")],
    count: Annotated[int, typer.Option("--count", help="Pairs to draw.", min=1)],
    seed: Seed = 13,
    uniform: Annotated[
        bool,
        typer.Option(
            "--uniform", help="Draw evenly, so that the measured error is the pool's; else harder pairs first."
        ),
    ] = False,
    set_: Overrides = None,
) -> None:
    """Draw pairs of the job's pool, over scores, grades and contradictions of the two, for people to grade."""
    if output.exists():
        raise UserError(f"{output}: exists already, and may hold grades; name another file")
    with resumable():
        job = load_to_work(job_file, set_)
        from miner import engine, golden, golden_sample

        with engine.opened(job) as context:
            pairs = golden_sample.draw(context, count, seed, uniform)
        golden.write(output, pairs)
    queries = len({pair.query_id for pair in pairs})
    print(f"{len(pairs)} pairs of {queries} queries written to {output}; grade them with: miner golden label {output}")


@app.command()
def label(
    file: GoldenFile,
    annotator: Annotated[str, typer.Option("--annotator", help="Your name, kept beside each grade.")] = "",
) -> None:
    """Grade the pairs of a file in the terminal, one key a grade. Started again, it goes on where it stopped.

    A second annotator grades a copy without grades; `miner golden sample` with the same seed writes it again.
    """
    from rich.console import Console

    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise UserError(f"miner golden label {file}: this is no terminal; start it in one")
    from miner.golden import Labelling

    console = Console(highlight=False, markup=False, emoji=False)
    interrupted = False
    with Labelling(file, annotator) as session:
        try:
            with _keys() as keys:
                _show(console, session)
                for key in keys:
                    if not _press(session, key):
                        break
                    _show(console, session)
        except KeyboardInterrupt:
            interrupted = True
        console.print(f"\n{session.labelled} of {len(session.pairs)} pairs are graded; {file} is saved", soft_wrap=True)
    if interrupted:
        raise typer.Exit(130)


def _press(session: Labelling, key: str) -> bool:
    """Do what a key says; False to quit. Keys that mean nothing do nothing."""
    if key in "0123":
        session.grade(int(key))
    elif key in ("b", "\x7f", "\x08", "left"):
        session.back()
    elif key in ("s", " ", "right"):
        session.skip()
    return key not in ("q", "\x04", "")


@contextmanager
def _keys() -> Iterator[Iterator[str]]:
    """Keys as they are pressed: the terminal is in cbreak mode inside, and as before afterwards, on signals too."""
    import termios
    import tty

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    def again(*_: object) -> None:
        tty.setcbreak(descriptor)

    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)
    handlers = {signal.SIGTERM: stop, signal.SIGHUP: stop, signal.SIGCONT: again}
    old = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        tty.setcbreak(descriptor, termios.TCSADRAIN)  # not TCSAFLUSH: keys pressed before it stood count
        yield _decoded(descriptor)
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)
        for number, handler in old.items():
            signal.signal(number, handler)


KEY = re.compile(r"\x1b(?:\[[0-9;]*[ -/]*[@-~]|O.)|[\s\S]")
ARROWS = {"D": "left", "C": "right"}


def _decoded(descriptor: int) -> Iterator[str]:
    """One key at a time, however many a read brings; arrows by name, "" at the end. Other sequences are no keys."""
    while chunk := os.read(descriptor, 1024):
        for key in KEY.findall(chunk.decode("utf-8", "replace")):
            if len(key) == 1:
                yield key.lower()
            elif key[-1] in ARROWS:
                yield ARROWS[key[-1]]
    yield ""


def _show(console: Console, session: Labelling) -> None:
    """The pair and the keys. The query stands last, so that it is in sight below a passage of any length."""
    from rich.text import Text

    pair, total = session.pair, len(session.pairs)
    console.clear()
    skipped = f", {len(session.skipped)} skipped" if session.skipped else ""
    place = f"pair {session.at + 1} of {total}" if pair else f"all {total} pairs seen"
    console.print(f"{clean(session.path.name)}   {place}   {session.labelled} graded{skipped}", style="dim")
    if pair is None:
        console.print("\nNone is left to grade.   b back   q quit")
        return
    for name, text, style in (
        ("reference", pair.positive, "dim"),
        ("passage", pair.passage, ""),
        ("query", pair.query, "bold"),
    ):
        if text:
            console.rule(name, align="left", style="dim")
            console.print(Text(clean(text), style=style))
    console.rule(style="dim")
    console.print(HELP)
    console.print(KEYS + ("" if pair.grade is None else f"   graded {pair.grade}"), style="dim")


def clean(text: str) -> str:
    """Untrusted text for a terminal: lines stay lines, every space is a space, and what could steer the terminal or
    hide (escapes and other controls, bidirectional overrides, zero-width marks, private characters) is shown as a
    replacement character. The two joiners that Persian and Indic scripts write with stay."""
    return "".join(_clean(char) for char in text.replace("\r\n", "\n").strip())


def _clean(char: str) -> str:
    if char.isprintable() or char in "\n\u200c\u200d":
        return char
    kind = unicodedata.category(char)
    if kind == "Zs" or char == "\t":
        return " "
    return "\n" if kind in ("Zl", "Zp") else "\ufffd"


@app.command()
def agree(
    first: Annotated[Path, typer.Argument(help="Golden file of one annotator.", metavar="A")],
    second: Annotated[Path, typer.Argument(help="Golden file of another.", metavar="B")],
    relevant_from: Annotated[
        int, typer.Option("--relevant-from", help="Grades from here on are relevant.", min=1, max=3)
    ] = 2,
    seed: Seed = 13,
    as_json: AsJson = False,
) -> None:
    """How far two annotators agree: kappa with intervals, the confusion table, and the pairs where they differ."""
    from miner import golden

    one, two = (golden.read(path, labelled=False) for path in (first, second))
    found = golden.compare(one, two, relevant_from, seed)
    print_json(_without_nan(found)) if as_json else _print_agreement(found, first, second)


def _without_nan(found: dict[str, Any]) -> dict[str, Any]:
    for name in ("kappa", "kappa_quadratic"):
        found[name] = {key: None if value != value else value for key, value in found[name].items()}
    return found


def _print_agreement(found: dict[str, Any], first: Path, second: Path) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False, markup=False, emoji=False)
    left = f", {found['left_out']} left out, graded once only" if found["left_out"] else ""
    console.print(f"{found['pairs']} pairs of {found['queries']} queries{left}", soft_wrap=True)
    console.print(f"same grade        {found['same_grade']:.1%}")
    for name, words in (("kappa", "kappa, relevant"), ("kappa_quadratic", "kappa, quadratic")):
        console.print(f"{words:<18}{interval(found[name])}")
    console.print(f"\nrows: {clean(str(first))}, columns: {clean(str(second))}", soft_wrap=True)
    table = Table(box=None, padding=(0, 2, 0, 0))
    for name in ("", *map(str, range(4))):
        table.add_column(name, justify="right")
    for grade, row in enumerate(found["confusion"]):
        table.add_row(str(grade), *map(str, row))
    console.print(table)
    for one in found["differ"]:
        a, b = one["grades"]
        console.print(Text(f"\n{a} or {b}   {clean(one['query_id'])}   {clean(one['doc_id'])}", style="bold"))
        console.print(Text(f"  query    {clean(one['query'])}"))
        console.print(Text(f"  passage  {clean(one['passage'])}"))
        for grade, reason in zip(one["grades"], one["reasons"], strict=True):
            if reason:
                console.print(Text(f"  {grade}: {clean(reason)}", style="dim"))


def interval(one: dict[str, Any], percent: bool = False) -> str:
    """A value with its interval, or why there is none."""
    if one["value"] is None or one["value"] != one["value"]:
        return "undefined (one class only)"
    numbers = (one["value"], one["low"], one["high"])
    value, low, high = (
        "?" if n is None or n != n else f"{n:.1%}" if percent else f"{n:.3f}".replace("0.", ".", 1) for n in numbers
    )
    return f"{value} ({low} to {high})"


@app.command()
def split(
    file: GoldenFile,
    test_share: Annotated[float, typer.Option("--test-share", help="Share of the queries that go to test.")] = 0.5,
    seed: Seed = 13,
) -> None:
    """Part the queries into dev, to tune prompts on, and test, to measure with; writes the split into the file."""
    if not 0 < test_share < 1:
        raise UserError(f"golden split: --test-share is {test_share:g}; it lies between 0 and 1")
    from miner import golden

    with golden.Labelling(file, "") as session:  # so that no grade that is pressed meanwhile is lost
        pairs = golden.split(session.pairs, test_share, seed)
        golden.write(session.path, pairs)
    for name in golden.SPLITS:
        own = [pair for pair in pairs if pair.split == name]
        print(f"{name:<5}{len(own)} pairs of {len({pair.query_id for pair in own})} queries")
