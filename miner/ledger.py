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
from urllib.parse import quote

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

COLUMNS = ("key", "body", "about", "response", "attempts", "seconds", "answered_at")

BUSY_S = 60


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


def _share(db: sqlite3.Connection) -> None:
    """Switch to WAL. SQLite's own waiting does not cover two processes that switch one new file at the same time."""
    deadline = time.monotonic() + BUSY_S
    while True:
        try:
            db.execute("PRAGMA journal_mode=WAL")
            return
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
            time.sleep(0.02)


class Ledger:
    """Keys to answers. Raises UserError where the file cannot be opened or written."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._db = sqlite3.connect(f"file:{quote(str(path))}", uri=True, timeout=BUSY_S, isolation_level=None)
            _share(self._db)
            self._db.execute("PRAGMA synchronous=NORMAL")
            self._db.execute(SCHEMA)
            next(self._read(f"{', '.join(COLUMNS)} FROM answers LIMIT 1"), None)  # of another program, or damaged
        except sqlite3.Error as error:
            raise self._broken("open", error) from None

    def close(self) -> None:
        self._db.close()

    def _read(self, what: str, *values: str) -> Iterator[tuple[Any, ...]]:
        try:
            yield from self._db.execute(f"SELECT {what}", values)
        except sqlite3.Error as error:
            raise self._broken("read", error) from None

    def _broken(self, verb: str, error: sqlite3.Error) -> UserError:
        return UserError(f"{self.path}: cannot {verb} the ledger ({error}); restore it from a copy or move it away")

    def has(self, key: str) -> bool:
        return any(self._read("1 FROM answers WHERE key = ?", key))

    def get(self, key: str) -> dict[str, Any] | None:
        """The chat completion object kept under `key`, or None."""
        row = next(self._read("response FROM answers WHERE key = ?", key), None)
        return None if row is None else json.loads(row[0])

    def request(self, key: str) -> dict[str, Any] | None:
        """The request body that was asked under `key`, or None."""
        row = next(self._read("body FROM answers WHERE key = ?", key), None)
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
            self._db.execute(
                f"INSERT OR IGNORE INTO answers ({', '.join(COLUMNS)}) VALUES (?, ?, ?, ?, ?, ?, ?)", values
            )
        except sqlite3.Error as error:
            raise UserError(f"{self.path}: cannot write the ledger ({error}); free disk space and run again") from None

    def adopt(self, other: Path) -> int:
        """Copy the answers of another ledger that this one lacks. Returns their number."""
        before = len(self)
        try:
            self._db.execute("ATTACH DATABASE ? AS other", (f"file:{quote(str(other))}?mode=ro",))
            names = ", ".join(COLUMNS)
            self._db.execute(f"INSERT OR IGNORE INTO answers ({names}) SELECT {names} FROM other.answers")
            self._db.execute("DETACH DATABASE other")
        except sqlite3.Error as error:
            raise UserError(f"{other}: cannot take over its answers ({error}); is it the ledger of a job?") from None
        return len(self) - before

    def __len__(self) -> int:
        return int(next(self._read("COUNT(*) FROM answers"))[0])

    def lines(self) -> Iterator[dict[str, Any]]:
        """Every answer in the Batch API's output form, ordered by key, with `miner` telling what it was about."""
        for key, about, response in self._read("key, about, response FROM answers ORDER BY key"):
            yield {
                "id": f"miner-{key[:16]}",
                "custom_id": key,
                "response": {"status_code": 200, "request_id": "", "body": json.loads(response)},
                "error": None,
                "miner": json.loads(about),
            }
