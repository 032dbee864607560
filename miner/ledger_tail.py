"""Read a ledger that another process may be writing: no lock, no file made, nothing changed.

Each look opens the file and closes it again, so that the run that owns it can fold its write-ahead log when it ends.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

from miner.errors import UserError

WAIT_S = 5.0
CHUNK = 20_000  # rows a reading transaction: a long one would let the log grow
OPEN = ("sent", "intended")
HEAD = 500
NAMES = ("state", "about", f"substr(body, 1, {HEAD})", "prompt_tokens", "completion_tokens", "cost", "changed_at")
MODEL = '{"model": '  # how every body begins


@contextmanager
def opened(path: Path) -> Iterator[sqlite3.Connection]:
    """A connection that only reads. Raises UserError where the file is no ledger or cannot be read."""
    # Without a log nobody has the file open, and SQLite would make one beside it even to read.
    quiet = "" if path.with_name(f"{path.name}-wal").exists() else "&immutable=1"
    try:
        db = sqlite3.connect(f"file:{quote(str(path))}?mode=ro{quiet}", uri=True, timeout=WAIT_S, isolation_level=None)
        try:
            yield db
        finally:
            db.close()
    except sqlite3.Error as error:
        raise UserError(f"{path}: cannot read the ledger ({error}); restore it from a copy or move it away") from None


def fold(path: Path) -> None:
    """Fold the log into the file as its owner does when it ends: a look that was open at that moment has kept it from
    that. For when no run goes on; does nothing where the file cannot be written."""
    if not path.with_name(f"{path.name}-wal").exists():
        return
    with contextlib.suppress(sqlite3.Error), contextlib.closing(sqlite3.connect(path, timeout=WAIT_S)) as db:
        db.execute("SELECT COUNT(*) FROM sqlite_master").fetchone()


def _has_requests(db: sqlite3.Connection) -> bool:
    """False for a ledger that is just being made."""
    return db.execute("SELECT 1 FROM sqlite_master WHERE name = 'requests'").fetchone() is not None


class Seen(NamedTuple):
    """A request as it stands. about: what it is for, with task, prompt, prompt_version, query_id and doc_id."""

    state: str
    about: dict[str, Any]
    model: str
    prompt_tokens: int
    completion_tokens: int
    cost: float | None
    changed_at: float


@dataclass
class Tail:
    """What changed in a ledger since the last look. `rows`: settled ones are told once and not kept; open ones, which
    are in flight or were lost at a kill, are kept until they are settled."""

    path: Path
    open: dict[int, Seen] = field(default_factory=dict)
    _last: int = 0
    _count: int = 0

    def look(self) -> tuple[bool, list[Seen]]:
        """(whether to forget all that was told before, what is settled since). [] where there is no file yet."""
        if not self.path.is_file():
            return False, []
        with opened(self.path) as db:
            if not _has_requests(db):
                return False, []
            # Rows were taken out (--retry-failed, ledger gc): row numbers may stand for others now.
            anew = db.execute("SELECT COUNT(*) FROM requests").fetchone()[0] < self._count
            if anew:
                self._last, self._count, self.open = 0, 0, {}
            return anew, [*self._settled(db), *self._new(db)]

    def _settled(self, db: sqlite3.Connection) -> Iterator[Seen]:
        for row in list(self.open):
            found = db.execute(f"SELECT {', '.join(NAMES)} FROM requests WHERE rowid = ?", (row,)).fetchone()
            if found is None or found[0] not in OPEN:
                del self.open[row]
                if found is not None:
                    yield _seen(found)

    def _new(self, db: sqlite3.Connection) -> Iterator[Seen]:
        query = f"SELECT rowid, {', '.join(NAMES)} FROM requests WHERE rowid > ? ORDER BY rowid LIMIT {CHUNK}"
        while rows := db.execute(query, (self._last,)).fetchall():
            self._last, self._count = rows[-1][0], self._count + len(rows)
            for row, *values in rows:
                seen = _seen(values)
                if seen.state in OPEN:
                    self.open[row] = seen
                else:
                    yield seen


def _seen(values: Any) -> Seen:
    state, about, head, *numbers = values
    try:
        model = json.JSONDecoder().raw_decode(head, len(MODEL))[0] if head.startswith(MODEL) else ""
        return Seen(state, dict(json.loads(about)), model, *numbers)
    except (ValueError, TypeError):
        return Seen(state, {}, "", *numbers)  # of another program


def requests(path: Path, keys: Iterable[str]) -> dict[str, dict[str, Any]]:
    """By key: state, reason, mark, endpoint, body, response (None without an answer), prompt_tokens,
    completion_tokens, cached_tokens, cost, attempts, seconds. Keys that the ledger lacks are left out."""
    names = (
        *("state", "reason", "mark", "endpoint", "body", "response", "prompt_tokens", "completion_tokens"),
        *("cached_tokens", "cost", "attempts", "seconds"),
    )
    if not path.is_file():
        return {}
    found = {}
    with opened(path) as db:
        for key in keys if _has_requests(db) else ():
            row = db.execute(f"SELECT {', '.join(names)} FROM requests WHERE key = ?", (key,)).fetchone()
            if row is not None:
                values = dict(zip(names, row, strict=True))
                found[key] = {**values, **{name: _value(values[name]) for name in ("body", "response")}}
    return found


def _value(text: str | None) -> Any:
    return None if text is None else json.loads(text)


def answers(path: Path) -> int:
    """How many answers a ledger holds; 0 without one."""
    if not path.is_file():
        return 0
    with opened(path) as db:
        if not _has_requests(db):
            return 0
        return int(db.execute("SELECT COUNT(*) FROM requests WHERE state = 'done'").fetchone()[0])


def spent(path: Path) -> dict[str, float | None]:
    """Of all answers: answers, prompt_tokens, completion_tokens, cost (US dollars; None where no price was known)."""
    names = ("answers", "prompt_tokens", "completion_tokens", "cost")
    if not path.is_file():
        return dict.fromkeys(names, 0)
    query = "SELECT COUNT(*), SUM(prompt_tokens), SUM(completion_tokens), SUM(cost), COUNT(cost) FROM requests"
    with opened(path) as db:
        if not _has_requests(db):
            return dict.fromkeys(names, 0)
        count, prompt, completion, cost, priced = db.execute(f"{query} WHERE state = 'done'").fetchone()
    known = 0.0 if not count else cost if priced else None
    return dict(zip(names, (count, prompt or 0, completion or 0, known), strict=True))


def totals(path: Path) -> dict[str, float]:
    """tokens, cost and requests that all runs took out of the budget, as Ledger.totals."""
    none = {"tokens": 0.0, "cost": 0.0, "requests": 0.0}
    if not path.is_file():
        return none
    with opened(path) as db:
        return none | (dict(db.execute("SELECT name, value FROM totals")) if _has_requests(db) else {})
