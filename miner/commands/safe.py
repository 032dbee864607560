"""Untrusted text on its way to a terminal or a program: nothing in it is markup, steers the terminal or hides."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable
from typing import Any

from rich.console import Console
from rich.text import Text

from miner.commands.prompt_views import clean

LONG = 20_000  # characters of a text that is looked at alone
LONGEST = 400  # characters of a passage that are shown unless all are asked for


def console_of(**options: Any) -> Console:
    """Nothing that is shown is read as markup: a path, an id or a text may hold brackets and colons."""
    return Console(highlight=False, markup=False, emoji=False, **options)


def inline(text: str, most: int | None = LONGEST) -> str:
    """A text as one line: white space collapsed, at most so many characters, the rest counted."""
    cut = text if most is None else text[: most * 4 + 100]  # not all of a megabyte for a line of it
    line = " ".join(cut.split())
    if most is not None and (len(line) > most or len(cut) < len(text)):
        line = f"{line[:most].rstrip()}… ({len(text):,} characters)"
    return _cleaned(line)


def whole(text: str, most: int | None = None) -> str:
    """A text with its lines: every kind of space is a space, and every kind of line end is one. What is beyond `most`
    characters is counted."""
    if most is not None and len(text) > most:
        return f"{whole(text[:most])}…\n({len(text) - most:,} characters more; --full shows them)"
    return "\n".join(_cleaned("".join(" " if c.isspace() else c for c in line)) for line in text.splitlines())


def _cleaned(line: str) -> str:
    # The two joiners turn nothing and stay: Persian and Indic scripts, and emoji, are written with them.
    return "".join(part if part in "\u200c\u200d" else clean(part) for part in re.split("([\u200c\u200d])", line))


def marked(text: str, parts: Iterable[str], style: str) -> Text:
    """A cleaned text in which the parts are styled, whatever their case and white space."""
    shown = Text(text)
    for part in parts:
        wanted = inline(part, None).strip("\"'“”…. ")
        if wanted:
            shown.highlight_regex(re.compile(r"\s+".join(map(re.escape, wanted.split())), re.IGNORECASE), style)
    return shown


def block(console: Console, text: Text, indent: int = 0, first: str = "") -> None:
    """Print a text wrapped to the width, each line indented; `first` stands before the first line."""
    lines = list(text.wrap(console, max(console.width - indent, 10))) or [Text("")]
    shown = Text()
    for number, line in enumerate(lines):
        line.rstrip()
        lead = first.ljust(indent) if number == 0 else " " * indent
        shown.append("\n" if number else "").append(lead if line.plain else lead.rstrip()).append_text(line)
    console.print(shown, soft_wrap=True)


def json_text(value: Any, indent: int | None = None) -> str:
    """JSON in which nothing can act on a terminal and every number is one: NaN is null."""
    text = json.dumps(_finite(value), ensure_ascii=False, indent=indent, default=str, allow_nan=False)
    return "".join(c if c.isprintable() or c == "\n" else json.dumps(c)[1:-1] for c in text)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(name): _finite(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def number(value: Any, digits: int = 4) -> str:
    """A score, or - where there is none."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return "-"
    return f"{value:.{digits}f}"


def dollars(cost: float | None) -> str:
    return "cost unknown" if cost is None else f"${cost:,.4f}" if cost < 1 else f"${cost:,.2f}"


def seconds(value: float) -> str:
    if value >= 5400:
        return f"{value / 3600:.1f} h"
    return f"{value / 60:.0f} min" if value >= 90 else f"{value:.0f} s"
