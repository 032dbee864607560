"""The section of a report about what the answers took: tokens and dollars over time, by prompt, and the dearest."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from miner import ledger_tail
from miner.report.ledger import STEPS, Book, Spent
from miner.report.plots import Line, Plot, lines
from miner.report.sections import section, table

Row = dict[str, Any]
SHOWN = 12
UNITS = ((86400.0, "days"), (3600.0, "hours"), (60.0, "minutes"), (1.0, "seconds"))


def cost(book: Book | None) -> Row | None:
    """None where no LLM was asked."""
    if book is None:
        return None
    low, high = book.period()
    spent = book.spent()
    if not spent:
        return None
    unit, word = next(((size, name) for size, name in UNITS if high - low >= 2 * size), UNITS[-1])
    names = ("task", "prompt", "version", "endpoint", "answers", "prompt tokens", "answer tokens", "dollars")
    took = ("task", "prompt", "query_id", "doc_id", "prompt tokens", "answer tokens", "dollars", "seconds")
    plots = [_over_time(spent, what, (high - low) / unit, word) for what in ("tokens", "dollars")]
    tables = [
        table("By prompt", (*names, "mean seconds", "longest"), book.prompts()),
        table("Dearest requests", took, book.extremes("tokens", SHOWN)),
        table("Slowest requests", took, book.extremes("seconds", SHOWN)),
        table("Given up for good", ("why", "requests"), book.given_up()),
        table("Taken out of the budget", ("", "amount"), list(ledger_tail.totals(book.path).items())),
    ]
    first, last = (time.strftime("%Y-%m-%d %H:%M", time.gmtime(at)) for at in (low, high))
    note = f"Answers from {first} to {last} UTC. Empty dollars: no price was known."
    return section("cost", "Cost and time", note, plots, tables)


def _over_time(spent: list[Spent], what: str, length: float, unit: str) -> Plot | None:
    """Sums so far, by task."""
    found, at = [], np.linspace(0, length, STEPS + 1)
    for task in dict.fromkeys(one.task for one in spent):
        taken = np.zeros(STEPS + 1)
        known = False
        for one in spent:
            amount = one.tokens if what == "tokens" else one.cost
            if one.task == task and amount is not None:
                taken[one.step + 1] += amount
                known = True
        if known and taken.any():
            found.append(Line(task or "other", at.tolist(), np.cumsum(taken).tolist()))
    alt = "; ".join(f"{line.label} {line.y[-1]:,.4g}" for line in found)
    title = f"{what.capitalize()} over time"
    return lines(title, found, f"{unit} since the first answer", f"{what} so far", f"{title}. {alt}.")
