"""What a report reads of a job's ledger, by a connection that cannot write: a run may go on meanwhile."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from miner import ledger_tail

STEPS = 120  # of the lines over time


class Entry(NamedTuple):
    """A request: its body, what it was about, the chat completion or None, why it was given up, what is odd of it."""

    body: dict[str, Any]
    about: dict[str, str]
    response: dict[str, Any] | None
    reason: str
    mark: str


class Spent(NamedTuple):
    """What the answers of one task took in one of STEPS equal stretches of time. cost: US dollars, None if unknown."""

    task: str
    step: int
    requests: int
    tokens: int
    cost: float | None


@contextmanager
def opened(path: Path) -> Iterator[Book]:
    """The ledger of a job, for reading. Raises UserError, within too, where it cannot be read."""
    with ledger_tail.opened(path) as db:
        yield Book(path, db)


class Book:
    def __init__(self, path: Path, db: sqlite3.Connection) -> None:
        self.path = path
        self._db = db

    def _read(self, what: str, *values: Any) -> list[tuple[Any, ...]]:
        return self._db.execute(f"SELECT {what}", values).fetchall()

    def entry(self, key: str) -> Entry | None:
        for *texts, reason, mark in self._read("body, about, response, reason, mark FROM requests WHERE key = ?", key):
            body, about, response = (json.loads(text) if text else None for text in texts)
            return Entry(body or {}, about or {}, response, reason, mark)
        return None

    def repairs(self) -> dict[str, str]:
        """Key of a request to the key of the one that asked for it again, since its answer broke the form."""
        asked = "json_extract(about, '$.repairs')"
        return dict(self._read(f"{asked}, key FROM requests WHERE {asked} IS NOT NULL AND state = 'done' ORDER BY key"))

    def period(self) -> tuple[float, float]:
        """When the first and the last answer came, in seconds of the epoch; 0.0 twice without answers."""
        ((low, high),) = self._read("MIN(changed_at), MAX(changed_at) FROM requests WHERE state = 'done'")
        return float(low or 0.0), float(high or 0.0)

    def spent(self) -> list[Spent]:
        """Ordered by task and time."""
        low, high = self.period()
        width = (high - low) / STEPS or 1.0
        rows = self._read(
            "coalesce(json_extract(about, '$.task'), ''), min(?, CAST((changed_at - ?) / ? AS INT)) AS step, COUNT(*),"
            " SUM(prompt_tokens + completion_tokens), SUM(cost) FROM requests WHERE state = 'done'"
            " GROUP BY 1, 2 ORDER BY 1, 2",
            *(STEPS - 1, low, width),
        )
        return [Spent(*row) for row in rows]

    def prompts(self) -> list[tuple[Any, ...]]:
        """Of each task, prompt, version and endpoint: answers, tokens of prompts and of answers, dollars or None,
        mean and longest seconds."""
        about = "coalesce(json_extract(about, '$.{}'), '')".format
        return self._read(
            f"{about('task')}, {about('prompt')}, {about('prompt_version')}, endpoint, COUNT(*), SUM(prompt_tokens),"
            " SUM(completion_tokens), SUM(cost), AVG(seconds), MAX(seconds) FROM requests"
            " WHERE state = 'done' GROUP BY 1, 2, 3, 4 ORDER BY 1, 2, 3, 4"
        )

    def extremes(self, by: str, count: int) -> list[tuple[Any, ...]]:
        """The answers that took most. by: "seconds", or "tokens", which goes by cost first.

        task, prompt, query_id, doc_id, prompt tokens, answer tokens, dollars or None, seconds; none that took nothing.
        """
        tokens = "prompt_tokens + completion_tokens"
        order, least = (
            ("seconds DESC", "seconds > 0") if by == "seconds" else (f"cost DESC, {tokens} DESC", f"{tokens} > 0")
        )
        names = ", ".join(f"json_extract(about, '$.{name}')" for name in ("task", "prompt", "query_id", "doc_id"))
        return self._read(
            f"{names}, prompt_tokens, completion_tokens, cost, seconds FROM requests"
            f" WHERE state = 'done' AND {least} ORDER BY {order}, key LIMIT ?",
            count,
        )

    def given_up(self) -> list[tuple[str, int]]:
        """Why requests were given up for good, and how many; the most frequent first."""
        return self._read("reason, COUNT(*) FROM requests WHERE state = 'failed' GROUP BY 1 ORDER BY 2 DESC, 1")
