"""The ledger: one SQLite file with every request that was asked and every answer that was paid for.

Each answer is committed before anything uses it, so a killed run asks nothing twice. WAL mode lets several
processes share the file. Answers are kept raw, as the Batch API writes them: a parser may change, the text may not.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from miner.errors import UserError

SCHEMA = """
CREATE TABLE IF NOT EXISTS answers (
    key TEXT PRIMARY KEY,
    body TEXT NOT NULL,
    about TEXT NOT NULL,
    response TEXT NOT NULL,
    attempts INTEGER NOT NULL,
    seconds REAL NOT NULL,
    answered_at REAL NOT NULL
) WITHOUT ROWID
"""


@dataclass(frozen=True)
class Request:
    """One LLM request. `key` is made from what the model sees and from nothing else; `about` only explains."""

    key: str
    body: dict[str, Any]
    about: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Answer:
    """`response` is the chat completion object, or None where no answer came; then `error` says why."""

    response: dict[str, Any] | None
    error: str = ""
    attempts: int = 1
    seconds: float = 0.0


class Ledger:
    """Keys to answers. Raises UserError where the file cannot be opened or written."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._db = sqlite3.connect(path, timeout=60, isolation_level=None)
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=NORMAL")
            self._db.execute(SCHEMA)
        except sqlite3.Error as error:
            raise UserError(
                f"{path}: cannot open the ledger ({error}); restore it from a copy or move it away"
            ) from None

    def close(self) -> None:
        self._db.close()

    def has(self, key: str) -> bool:
        return self._db.execute("SELECT 1 FROM answers WHERE key = ?", (key,)).fetchone() is not None

    def get(self, key: str) -> dict[str, Any] | None:
        """The chat completion object kept under `key`, or None."""
        row = self._db.execute("SELECT response FROM answers WHERE key = ?", (key,)).fetchone()
        return None if row is None else json.loads(row[0])

    def request(self, key: str) -> dict[str, Any] | None:
        """The request body that was asked under `key`, or None."""
        row = self._db.execute("SELECT body FROM answers WHERE key = ?", (key,)).fetchone()
        return None if row is None else json.loads(row[0])

    def put(self, request: Request, answer: Answer) -> None:
        """Commit an answer; the first one stays where two processes answered the same request."""
        values = (
            request.key,
            json.dumps(request.body, ensure_ascii=False),
            json.dumps(request.about, ensure_ascii=False),
            json.dumps(answer.response, ensure_ascii=False),
            answer.attempts,
            answer.seconds,
            time.time(),
        )
        try:
            self._db.execute("INSERT OR IGNORE INTO answers VALUES (?, ?, ?, ?, ?, ?, ?)", values)
        except sqlite3.Error as error:
            raise UserError(f"{self.path}: cannot write the ledger ({error}); free disk space and run again") from None

    def __len__(self) -> int:
        return int(self._db.execute("SELECT COUNT(*) FROM answers").fetchone()[0])

    def lines(self) -> Iterator[dict[str, Any]]:
        """Every answer in the Batch API's output form, ordered by key, with `miner` telling what it was about."""
        rows = self._db.execute("SELECT key, about, response FROM answers ORDER BY key")
        for key, about, response in rows:
            yield {
                "id": f"miner-{key[:16]}",
                "custom_id": key,
                "response": {"status_code": 200, "request_id": "", "body": json.loads(response)},
                "error": None,
                "miner": json.loads(about),
            }
