"""What a report reads of a job's ledger, by a connection that cannot write: a run may go on meanwhile."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

from miner.errors import UserError
from miner.ledger import BUSY_S, Ledger

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


class Book:
    """Raises UserError where the ledger cannot be read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._db = self._opened()

    def _opened(self) -> sqlite3.Connection:
        """A file that is on a read-only disk has no place for the files that SQLite shares with writers."""
        error: sqlite3.Error | None = None
        for mode in ("mode=ro", "mode=ro&immutable=1"):
            found = sqlite3.connect(f"file:{quote(str(self.path))}?{mode}", uri=True, timeout=BUSY_S)
            try:
                names = {name for (name,) in found.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
                if "requests" in names:
                    return found
            except sqlite3.Error as raised:
                error = raised
            found.close()
            if error is None:
                Ledger(self.path).close()  # brings an older file to the present form
        raise UserError(
            f"{self.path}: cannot read the ledger ({error or 'no such table'}); restore it from a copy or move it away"
        )

    def close(self) -> None:
        self._db.close()

    def _read(self, what: str, *values: Any) -> Iterator[tuple[Any, ...]]:
        try:
            with closing(self._db.execute(f"SELECT {what}", values)) as cursor:
                yield from cursor
        except sqlite3.Error as error:
            raise UserError(
                f"{self.path}: cannot read the ledger ({error}); restore it from a copy or move it away"
            ) from None

    def entry(self, key: str) -> Entry | None:
        row = next(self._read("body, about, response, reason, mark FROM requests WHERE key = ?", key), None)
        if row is None:
            return None
        body, about, response = (json.loads(text) if text else None for text in row[:3])
        return Entry(body or {}, about or {}, response, row[3], row[4])

    def repairs(self) -> dict[str, str]:
        """Key of a request to the key of the one that asked for it again, since its answer broke the form."""
        asked = "json_extract(about, '$.repairs')"
        return dict(self._read(f"{asked}, key FROM requests WHERE {asked} IS NOT NULL AND state = 'done' ORDER BY key"))

    def totals(self) -> dict[str, float]:
        """tokens, cost and requests taken out of the budget so far."""
        found: dict[str, float] = {}
        with suppress(UserError):  # an older file has no such table
            found = dict(self._read("name, value FROM totals ORDER BY name"))
        return found

    def period(self) -> tuple[float, float]:
        """When the first and the last answer came, in seconds of the epoch; 0.0 twice without answers."""
        low, high = next(self._read("MIN(changed_at), MAX(changed_at) FROM requests WHERE state = 'done'"))
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
        return list(
            self._read(
                f"{about('task')}, {about('prompt')}, {about('prompt_version')}, endpoint, COUNT(*),"
                " SUM(prompt_tokens), SUM(completion_tokens), SUM(cost), AVG(seconds), MAX(seconds) FROM requests"
                " WHERE state = 'done' GROUP BY 1, 2, 3, 4 ORDER BY 1, 2, 3, 4"
            )
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
        return list(
            self._read(
                f"{names}, prompt_tokens, completion_tokens, cost, seconds FROM requests"
                f" WHERE state = 'done' AND {least} ORDER BY {order}, key LIMIT ?",
                count,
            )
        )

    def given_up(self) -> list[tuple[str, int]]:
        """Why requests were given up for good, and how many; the most frequent first."""
        return list(self._read("reason, COUNT(*) FROM requests WHERE state = 'failed' GROUP BY 1 ORDER BY 2 DESC, 1"))
