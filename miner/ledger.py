"""The ledger: one SQLite file with every request that was asked, and every answer that was paid for.

A request is `intended` (of a batch that is being submitted), `sent` (in flight, or lost at a kill), `done` (its answer
is here), or `failed` (given up: a tombstone, which is not asked again before somebody says so). Each answer is
committed before anything uses it, so a killed run asks nothing twice. WAL mode lets several processes share the file.
Answers are kept raw, as the Batch API writes them: a parser may change, the text may not.

What a job may spend is reserved here before a request is sent, and settled with its answer, in one table of totals for
all runs of the job. What was in flight at a kill stays counted as spent: nobody knows whether it was charged.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

from miner.errors import UserError

SCHEMA = """
CREATE TABLE IF NOT EXISTS requests (
    key TEXT NOT NULL UNIQUE,
    state TEXT NOT NULL,
    body TEXT NOT NULL,
    about TEXT NOT NULL,
    response TEXT,
    reason TEXT NOT NULL DEFAULT '',
    mark TEXT NOT NULL DEFAULT '',
    endpoint TEXT NOT NULL DEFAULT '',
    prompt_tokens INTEGER NOT NULL DEFAULT 0,
    completion_tokens INTEGER NOT NULL DEFAULT 0,
    cached_tokens INTEGER NOT NULL DEFAULT 0,
    cost REAL,
    attempts INTEGER NOT NULL DEFAULT 0,
    seconds REAL NOT NULL DEFAULT 0,
    changed_at REAL NOT NULL
);
CREATE TABLE IF NOT EXISTS totals (name TEXT PRIMARY KEY, value REAL NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS notes (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
"""
# Version 1 had one table of answers.
UPGRADE = """
INSERT OR IGNORE INTO requests (key, state, body, about, response, attempts, seconds, changed_at)
    SELECT key, 'done', body, about, response, attempts, seconds, answered_at FROM answers;
DROP TABLE answers;
"""
COLUMNS = (
    "key, state, body, about, response, reason, mark, endpoint, prompt_tokens, completion_tokens, cached_tokens, cost,"
    " attempts, seconds, changed_at"
)
PUT = f"""
INSERT INTO requests ({COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (key) DO UPDATE SET state = excluded.state, response = excluded.response, reason = excluded.reason,
    mark = excluded.mark, endpoint = excluded.endpoint, prompt_tokens = excluded.prompt_tokens,
    completion_tokens = excluded.completion_tokens, cached_tokens = excluded.cached_tokens, cost = excluded.cost,
    attempts = excluded.attempts, seconds = excluded.seconds, changed_at = excluded.changed_at
WHERE requests.state <> 'done'
"""
SENT = """
INSERT INTO requests (key, state, body, about, endpoint, changed_at) VALUES (?, ?, ?, ?, ?, ?)
ON CONFLICT (key) DO UPDATE SET state = excluded.state, endpoint = excluded.endpoint, changed_at = excluded.changed_at
WHERE requests.state <> 'done'
"""
BUSY_S = 60


@dataclass(frozen=True)
class Request:
    """One LLM request. `key` is made from what the model sees and from nothing else; `about` only explains.

    `shorter`: the body to ask once where the model has no room for this one, or None. Its answer is kept under `key`,
    and marked.
    """

    key: str
    body: dict[str, Any]
    about: dict[str, str] = field(default_factory=dict)
    shorter: dict[str, Any] | None = None


@dataclass(frozen=True)
class Answer:
    """`response` is the chat completion object, or None where no answer came; then `error` says why.

    final: no later try can succeed, or enough were made: a tombstone. mark: what is odd about an answer ("shortened").
    endpoint: who answered. batched: charged at the Batch API's price.
    """

    response: dict[str, Any] | None
    error: str = ""
    attempts: int = 1
    seconds: float = 0.0
    final: bool = False
    mark: str = ""
    endpoint: str = ""
    batched: bool = False


class Charge(NamedTuple):
    """What a request takes out of the budget. cost: US dollars, None where no price is known."""

    tokens: int
    cost: float | None
    requests: int = 1


class Usage(NamedTuple):
    """Tokens as the server counted them, and what they cost (US dollars; None: no price is known)."""

    prompt: int
    completion: int
    cached: int
    cost: float | None


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
        self._waiting: list[tuple[Any, ...]] = []
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._db = sqlite3.connect(f"file:{quote(str(path))}", uri=True, timeout=BUSY_S, isolation_level=None)
            _share(self._db)
            self._db.execute("PRAGMA synchronous=NORMAL")
            self._prepare()
        except sqlite3.Error as error:
            raise self._broken("open", error) from None

    def _prepare(self) -> None:
        found = {name for (name,) in self._db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        with self._transaction():
            for statement in SCHEMA.split(";")[:-1]:
                self._db.execute(statement)
            if "answers" in found:
                for statement in UPGRADE.split(";")[:-1]:
                    self._db.execute(statement)
        next(self._read(f"{COLUMNS} FROM requests LIMIT 1"), None)  # of another program, or damaged

    def close(self) -> None:
        self.flush()
        self._db.close()

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            if self._db.in_transaction:  # a full disk has SQLite roll back by itself
                self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """A transaction that takes along what waits to be written."""
        try:
            with self._transaction():
                self._db.executemany(SENT, self._waiting)
                yield
        except sqlite3.Error as error:
            raise UserError(f"{self.path}: cannot write the ledger ({error}); free disk space and run again") from None
        self._waiting = []

    def _read(self, what: str, *values: Any) -> Iterator[tuple[Any, ...]]:
        try:
            yield from self._db.execute(f"SELECT {what}", values)
        except sqlite3.Error as error:
            raise self._broken("read", error) from None

    def _broken(self, verb: str, error: sqlite3.Error) -> UserError:
        return UserError(f"{self.path}: cannot {verb} the ledger ({error}); restore it from a copy or move it away")

    # ------------------------------------------------------------ answers

    def has(self, key: str) -> bool:
        return any(self._read("1 FROM requests WHERE key = ? AND state = 'done'", key))

    def get(self, key: str) -> dict[str, Any] | None:
        """The chat completion object kept under `key`, or None."""
        row = next(self._read("response FROM requests WHERE key = ? AND state = 'done'", key), None)
        return None if row is None else json.loads(row[0])

    def given_up(self, key: str) -> str:
        """Why the request was given up for good, or "" where it was not."""
        row = next(self._read("reason FROM requests WHERE key = ? AND state = 'failed'", key), None)
        return "" if row is None else row[0] or "given up"

    def request(self, key: str) -> dict[str, Any] | None:
        """The request body that was asked under `key`, or None."""
        row = next(self._read("body FROM requests WHERE key = ?", key), None)
        return None if row is None else json.loads(row[0])

    def mark(self, key: str) -> str:
        """What is odd about the answer, or ""."""
        row = next(self._read("mark FROM requests WHERE key = ?", key), None)
        return "" if row is None else row[0]

    def put(self, request: Request, answer: Answer, usage: Usage | None = None, reserved: Charge | None = None) -> None:
        """Commit an answer, or the tombstone of a request that is given up, and settle what was reserved for it.

        The first answer stays where two processes answered the same request. A failure that is not final is not
        written down: the next run asks again.
        """
        used = usage or Usage(0, 0, 0, None)
        with self._writing():
            if answer.response is not None or answer.final:
                self._db.execute(PUT, (*_row(request, answer), *used[:4], answer.attempts, answer.seconds, time.time()))
            self._settle(reserved, used)

    def sent(self, request: Request, endpoint: str = "", state: str = "sent") -> None:
        """Note that the request is on its way. Written with the next answer: the note pays for nothing by itself."""
        self._waiting.append((request.key, state, _json(request.body), _json(request.about), endpoint, time.time()))
        if len(self._waiting) >= 1000:
            self.flush()

    def flush(self) -> None:
        if self._waiting:
            with self._writing():
                pass

    # ------------------------------------------------------------ money

    def reserve(self, charge: Charge, limits: Charge) -> str:
        """Take a request out of the budget before it is sent: "", or the limit that it would pass, and then nothing.

        limits: the largest totals, inf where there is none. One transaction, so that several processes keep one budget.
        """
        wanted = {"tokens": charge.tokens, "cost": charge.cost or 0.0, "requests": charge.requests}
        with self._writing():
            totals = self.totals()
            for name, amount in wanted.items():
                if totals[name] + amount > getattr(limits, name) * (1 + 1e-12):
                    return name
            self._add(wanted)
        return ""

    def release(self, charge: Charge, sent: bool = True) -> None:
        """Give back what a try took that was not charged. sent: it counts as a request all the same."""
        with self._writing():
            requests = 0 if sent else -charge.requests
            self._add({"tokens": -charge.tokens, "cost": -(charge.cost or 0.0), "requests": requests})

    def settle(self, reserved: Charge | None, used: Usage) -> None:
        """Replace what was reserved by what was used."""
        with self._writing():
            self._settle(reserved, used)

    def add_spent(self, amounts: dict[str, float]) -> None:
        """Count what was spent without a reservation: tokens, cost, requests."""
        with self._writing():
            self._add(amounts)

    def _settle(self, reserved: Charge | None, used: Usage) -> None:
        """A server that counts no tokens is taken to have used all that was reserved."""
        tokens = used.prompt + used.completion
        if reserved is not None and tokens:
            cost = used.cost if used.cost is not None else (reserved.cost or 0.0)
            self._add({"tokens": tokens - reserved.tokens, "cost": cost - (reserved.cost or 0.0)})

    def _add(self, amounts: dict[str, float]) -> None:
        self._db.executemany(
            "INSERT INTO totals VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET value = value + excluded.value",
            list(amounts.items()),
        )

    def totals(self) -> dict[str, float]:
        """tokens, cost (US dollars) and requests that all runs took together, reservations included."""
        return {"tokens": 0.0, "cost": 0.0, "requests": 0.0} | dict(self._read("name, value FROM totals"))

    # ------------------------------------------------------------ notes: what is known of servers and batches

    def note(self, name: str) -> Any:
        """What was written under a name, or None."""
        row = next(self._read("value FROM notes WHERE name = ?", name), None)
        return None if row is None else json.loads(row[0])

    def notes(self, start: str) -> dict[str, Any]:
        """All notes whose name begins so, by name."""
        found = self._read("name, value FROM notes WHERE substr(name, 1, ?) = ? ORDER BY name", len(start), start)
        return {name: json.loads(value) for name, value in found}

    def write_note(self, name: str, value: Any) -> None:
        """Commit a note at once; None takes it away."""
        with self._writing():
            if value is None:
                self._db.execute("DELETE FROM notes WHERE name = ?", (name,))
            else:
                self._db.execute("INSERT OR REPLACE INTO notes VALUES (?, ?)", (name, _json(value)))

    # ------------------------------------------------------------ the whole file

    def adopt(self, other: Path) -> int:
        """Copy the answers of another ledger that this one lacks. Returns their number."""
        Ledger(other).close()  # brings an older file to this form
        before = len(self)
        try:
            self._db.execute("ATTACH DATABASE ? AS other", (f"file:{quote(str(other))}?mode=ro",))
            self._db.execute(
                f"INSERT OR REPLACE INTO requests ({COLUMNS}) SELECT {COLUMNS} FROM other.requests WHERE state = 'done'"
                " AND key NOT IN (SELECT key FROM requests WHERE state = 'done')"
            )
            self._db.execute("DETACH DATABASE other")
        except sqlite3.Error as error:
            raise UserError(f"{other}: cannot take over its answers ({error}); is it the ledger of a job?") from None
        return len(self) - before

    def __len__(self) -> int:
        """Answers that are here."""
        return int(next(self._read("COUNT(*) FROM requests WHERE state = 'done'"))[0])

    def forget_failures(self) -> int:
        """Take the tombstones away, so that their requests are asked again. Returns their number."""
        with self._writing():
            return self._db.execute("DELETE FROM requests WHERE state = 'failed'").rowcount

    def forget(self, keys: Iterable[str]) -> int:
        """Delete requests whatever their state. Returns how many were there."""
        with self._writing():
            return sum(self._db.execute("DELETE FROM requests WHERE key = ?", (key,)).rowcount for key in keys)

    def vacuum(self) -> None:
        """Give the space of deleted rows back to the disk."""
        self.flush()
        try:
            self._db.execute("VACUUM")
        except sqlite3.Error as error:
            raise self._broken("compact", error) from None

    def stats(self) -> list[dict[str, Any]]:
        """Counts, tokens, cost and mean seconds by task, prompt version, endpoint and state, ordered by these."""
        names = (
            *("task", "prompt", "prompt_version", "endpoint", "state", "requests", "prompt_tokens"),
            *("completion_tokens", "cached_tokens", "cost", "without_price", "attempts", "seconds"),
        )
        about = "coalesce(json_extract(about, '$.{}'), '')".format
        rows = self._read(
            f"{about('task')}, {about('prompt')}, {about('prompt_version')}, endpoint, state, COUNT(*),"
            " SUM(prompt_tokens), SUM(completion_tokens), SUM(cached_tokens), SUM(cost), SUM(cost IS NULL),"
            " SUM(attempts), AVG(seconds) FROM requests GROUP BY 1, 2, 3, 4, 5 ORDER BY 1, 2, 3, 4, 5"
        )
        return [dict(zip(names, row, strict=True)) for row in rows]

    def failures(self) -> Iterator[dict[str, Any]]:
        """The tombstones, ordered by key."""
        for key, about, reason, attempts in self._read(
            "key, about, reason, attempts FROM requests WHERE state = 'failed' ORDER BY key"
        ):
            yield {"key": key, **json.loads(about), "reason": reason, "attempts": attempts}

    def keys(self, state: str = "done") -> Iterator[str]:
        for (key,) in self._read("key FROM requests WHERE state = ? ORDER BY key", state):
            yield key

    def lines(self) -> Iterator[dict[str, Any]]:
        """Every answer in the Batch API's output form, ordered by key, with `miner` telling what it was about."""
        found = self._read("key, about, response FROM requests WHERE state = 'done' ORDER BY key")
        for key, about, response in found:
            yield {
                "id": f"miner-{key[:16]}",
                "custom_id": key,
                "response": {"status_code": 200, "request_id": "", "body": json.loads(response)},
                "error": None,
                "miner": json.loads(about),
            }


def _row(request: Request, answer: Answer) -> tuple[Any, ...]:
    """The first eight columns."""
    done = answer.response is not None
    response = _json(answer.response) if done else None
    what = (request.key, "done" if done else "failed", _json(request.body), _json(request.about), response)
    return (*what, answer.error, answer.mark, answer.endpoint)


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
