"""What `miner show` shows: rows of a training file, through a pager that is fed as fast as it is read."""

from __future__ import annotations

import contextlib
import io
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from miner.commands.safe import LONGEST, block, console_of, inline

Row = dict[str, Any]
WORD = re.compile(r"\w+")
# Words that any two texts share.
COMMON = frozenset(
    {"the", "and", "for", "are", "was", "were", "with", "from", "that", "this", "what", "which", "who", "how", "why"}
    | {"when", "where", "does", "did", "can"}
)
SHORTEST = 3


def shared_words(query: str, text: str) -> list[str]:
    """The words of a query that a text has too, case-folded, in order, each once; short and common ones left out."""
    there = {word.casefold() for word in WORD.findall(text)}
    words = dict.fromkeys(word.casefold() for word in WORD.findall(query))
    return [
        w for w in words if w in there and w not in COMMON and (len(w) >= SHORTEST or w.isdigit() or not w.isascii())
    ]


def render(console: Console, row: Row, full: bool) -> None:
    """One row with a line before it."""
    most = None if full else LONGEST
    where = f"row {row['row']}  {inline(Path(row['place']).name, 100)}"
    if "broken" in row:
        code, reason = row["broken"]
        block(console, Text(where, "dim"))
        block(console, Text(f"{code} {inline(reason, 300)}", "yellow"), 2)
        console.print()
        return
    sizes = f"{len(row['positives'])} positive, {len(row['negatives'])} negative"
    block(console, Text(f"{where}  {sizes}", "dim"))
    query = inline(row["query"] or "", most)
    sides = [("+", "green", one) for one in row["positives"]] + [("-", "red", one) for one in row["negatives"]]
    texts = [inline(one["text"], most) if one["text"] is not None else None for _, _, one in sides]
    found = [shared_words(query, text or "") for text in texts]
    block(console, _bold(query, {word for words in found for word in words}, "cyan"), 4, "  ?")
    for (sign, style, one), text, words in zip(sides, texts, found, strict=True):
        about = [f"{one['characters']:,} chars"]
        about += [f"score {one['score']:.4f}"] if one["score"] is not None else []
        about += [inline(str(one["id"]), 60)] if one["id"] else []
        block(console, Text(", ".join(about), "dim"), 4, f"  {sign}")
        block(console, _bold("not a text" if text is None else text, set(words), style), 4)
    for code, what in row["troubles"]:
        block(console, Text(f"{code} {inline(what, 200)}", "yellow"), 4, "  !")
    console.print()


def _bold(text: str, words: set[str], style: str) -> Text:
    shown = Text(text, style)
    if words:
        shown.highlight_regex(rf"(?i)(?<!\w)(?:{'|'.join(map(re.escape, sorted(words)))})(?!\w)", "bold")
    return shown


# ---------------------------------------------------------------- out


def straight(rows: Iterable[Row], full: bool) -> int:
    """Print the rows as they come. Returns their number."""
    console, count = console_of(), 0
    for row in rows:
        render(console, row, full)
        count += 1
    return count


def paged(rows: Iterable[Row], full: bool) -> int:
    """Show the rows in $PAGER, else less, else straight. No more is read than the pager takes. Returns how many were
    shown, or 1 where the reader left before the first."""
    command = shlex.split(os.environ.get("PAGER", "")) or ["less"]
    if shutil.which(command[0]) is None:
        return straight(rows, full)
    env = {**os.environ}
    env.setdefault("LESS", "-FRX")  # colours; no waiting for a key where all fits
    coloured = Path(command[0]).name == "less" and "r" in (env["LESS"] + "".join(command[1:])).lower()
    pager = subprocess.Popen(command, stdin=subprocess.PIPE, env=env)
    assert pager.stdin is not None, "a pipe was asked for"
    count = left = 0
    try:
        for text in _rendered(rows, full, coloured):
            pager.stdin.write(text.encode("utf-8", "replace"))
            pager.stdin.flush()
            count += 1
    except (BrokenPipeError, KeyboardInterrupt):
        left = 1  # the reader has seen enough
    with contextlib.suppress(BrokenPipeError):
        pager.stdin.close()
    _await(pager)
    return count or left


def _rendered(rows: Iterable[Row], full: bool, coloured: bool) -> Iterator[str]:
    width = shutil.get_terminal_size().columns
    for row in rows:
        into = io.StringIO()
        render(console_of(file=into, width=width, force_terminal=coloured), row, full)
        yield into.getvalue()


def _await(pager: subprocess.Popen[bytes]) -> None:
    """Ctrl-C is the pager's own key: it stays until it is left."""
    while True:
        try:
            pager.wait()
            return
        except KeyboardInterrupt:
            continue


def is_terminal() -> bool:
    return sys.stdin.isatty() and sys.stdout.isatty()
