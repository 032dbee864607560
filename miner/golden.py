"""Golden files: pairs that people graded, one JSON object a line; reading, splitting, labelling, comparing two.

    {"query_id": "q1", "query": "…", "positive": "…", "doc_id": "d7", "passage": "…",
     "grade": 0, "tag": "negation", "reason": "says the opposite", "split": "test", "annotator": "ann"}

positive: the reference passage, "" for none; grade: 0-3, null until somebody grades it; tag: what kind of pair it is;
reason: one line; split: dev to tune prompts on, test to measure with, of which only the whole query can be in one. The
first five keys are required, a missing split is test. Other keys travel along unread.
"""

from __future__ import annotations

import fcntl
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from miner import agreement, ranking, resampling, store
from miner.errors import UserError
from miner.readers import rows
from miner.records import content_id

GRADES = range(4)
Split = Literal["dev", "test"]
SPLITS = ("dev", "test")
KEYS = ("query_id", "query", "positive", "doc_id", "passage", "grade", "tag", "reason", "split", "annotator")


@dataclass(frozen=True)
class Golden:
    query_id: str
    query: str
    positive: str
    doc_id: str
    passage: str
    grade: int | None = None
    tag: str = ""
    reason: str = ""
    split: str = "test"
    annotator: str = ""
    more: dict[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> tuple[str, str]:
        return self.query_id, self.doc_id


def read(path: Path, labelled: bool = True) -> list[Golden]:
    """The pairs of a golden file, in its order. Raises UserError with file:line.

    labelled: a pair without a grade is an error. A pair twice is one always, and so is a query with two texts or in two
    splits.
    """
    pairs: list[Golden] = []
    seen: dict[tuple[str, str], str] = {}
    queries: dict[str, tuple[str, str, str]] = {}
    for row in rows.read(path):
        pair = _pair(row)
        if labelled and pair.grade is None:
            raise UserError(f"{row.place}: grade is null; grade the pair first: miner golden label {path}")
        if pair.key in seen:
            raise UserError(f"{row.place}: the pair {pair.key} stands at {seen[pair.key]} already; delete one")
        seen[pair.key] = row.place
        text, split_, place = queries.setdefault(pair.query_id, (pair.query, pair.split, row.place))
        if text != pair.query:
            raise UserError(f"{row.place}: query {pair.query_id!r} has another text at {place}; give each its own id")
        if split_ != pair.split:
            raise UserError(
                f"{row.place}: query {pair.query_id!r} is in {pair.split}, at {place} in {split_}; keep it in one"
            )
        pairs.append(pair)
    return pairs


def _pair(row: rows.Row) -> Golden:
    values = row.values
    for name in KEYS[:5]:
        if name not in values:
            raise UserError(f"{row.place}: no {name}; a golden pair has {', '.join(KEYS)}")
    ids = [rows.id_of(row, name) or "" for name in ("query_id", "doc_id")]
    texts = {name: rows.text_of(row, name, False) for name in KEYS if name not in ("query_id", "doc_id", "grade")}
    for name in ("query", "passage"):
        if not texts[name].strip():
            raise UserError(f"{row.place}: {name} is empty; a pair without it cannot be judged")
    grade = values.get("grade")
    if grade is not None and (type(grade) is not int or grade not in GRADES):
        raise UserError(f"{row.place}: grade is {rows.shown(grade)}; write 0, 1, 2 or 3, or null for none yet")
    texts["split"] = texts["split"] or "test"
    if texts["split"] not in SPLITS:
        raise UserError(f"{row.place}: split is {rows.shown(texts['split'])}; write dev or test")
    more = {name: value for name, value in values.items() if name not in KEYS}
    return Golden(query_id=ids[0], doc_id=ids[1], grade=grade, more=more, **texts)


def write(path: Path, pairs: Sequence[Golden]) -> None:
    """Atomically; the same pairs give the same bytes."""
    store.write_jsonl(path, ({**{name: getattr(pair, name) for name in KEYS}, **pair.more} for pair in pairs))


def part(pairs: Sequence[Golden], name: str, path: Path) -> list[Golden]:
    """The pairs of a split, or all of them for "all". Raises UserError where there are none."""
    found = [pair for pair in pairs if name in ("all", pair.split)]
    if not found:
        raise UserError(
            f"{path}: no pair of split {name}; use --split all, or part the file: miner golden split {path}"
        )
    return found


def split(pairs: Sequence[Golden], test_share: float, seed: int) -> list[Golden]:
    """The same pairs, whole queries drawn into dev and test: round(test_share * queries) into test, one in each
    at least.

    Which queries depends on their ids and the seed alone. Raises UserError where there is only one query.
    """
    ids = sorted({pair.query_id for pair in pairs})
    if len(ids) < 2:
        raise UserError(f"golden split: the file has {len(ids)} queries; a split is by query and needs two")
    count = min(max(round(test_share * len(ids)), 1), len(ids) - 1)
    test = {ids[row] for row in np.argsort(tickets(ids, seed), kind="stable")[:count]}
    return [replace(pair, split="test" if pair.query_id in test else "dev") for pair in pairs]


def tickets(texts: Sequence[str], seed: int) -> np.ndarray[Any, Any]:
    """uint64[n]: a lottery ticket for each text, by text and seed alone."""
    hashes = np.array([int(content_id(text), 16) for text in texts], np.uint64)
    return ranking.mix(hashes ^ ranking.mix(np.array([seed], np.uint64)))


class Labelling:
    """A labelling session on a golden file. Every grade is in the file before `grade` returns: the file is written anew
    and renamed, so a kill at any time leaves it whole, with every key pressed before.

    `with Labelling(path, name) as session:` one session a file at a time. `pair` is the one to grade, None where none
    is left. It starts at the first pair without a grade; skipped ones come again in the next session.
    """

    def __init__(self, path: Path, annotator: str) -> None:
        self.path, self.annotator = path.resolve(), annotator
        self.pairs: list[Golden] = []
        self.at = 0
        self.skipped: set[int] = set()
        self._before: list[int] = []

    def __enter__(self) -> Labelling:
        lock = self.path.with_name(f".{self.path.name}.lock")
        pairs = read(self.path, labelled=False)
        self._lock = lock.open("a")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._lock.close()
            raise UserError(f"{self.path}: another session is labelling this file; end it, or label a copy") from None
        for left in self.path.parent.glob(f".{self.path.name}.*.part"):  # of a session that was killed while it wrote
            left.unlink(missing_ok=True)
        self.pairs = read(self.path, labelled=False) or pairs
        self.at = self._next(0)
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):
            Path(self._lock.name).unlink()
        self._lock.close()

    @property
    def pair(self) -> Golden | None:
        return self.pairs[self.at] if self.at < len(self.pairs) else None

    @property
    def labelled(self) -> int:
        return sum(pair.grade is not None for pair in self.pairs)

    def grade(self, grade: int) -> None:
        """Grade the pair, save, go to the next without a grade. Nothing where no pair is left."""
        if self.pair is None:
            return
        self.pairs[self.at] = replace(self.pair, grade=grade, annotator=self.annotator or self.pair.annotator)
        self.skipped.discard(self.at)
        write(self.path, self.pairs)
        self._go()

    def skip(self) -> None:
        """Leave the pair as it is and go on."""
        if self.pair is not None:
            if self.pair.grade is None:
                self.skipped.add(self.at)
            self._go()

    def back(self) -> None:
        """To the pair that was shown before; at the start of a session to the one before in the file."""
        self.at = self._before.pop() if self._before else max(self.at - 1, 0)

    def _go(self) -> None:
        self._before.append(self.at)
        self.at = self._next(self.at + 1)

    def _next(self, start: int) -> int:
        """The next pair to grade from `start` on, then from the top; len(pairs) where only skipped ones are left."""
        size = len(self.pairs)
        order = [*range(start, size), *range(min(start, size))]
        return next((i for i in order if self.pairs[i].grade is None and i not in self.skipped), size)


def compare(first: Sequence[Golden], second: Sequence[Golden], relevant_from: int, seed: int) -> dict[str, Any]:
    """What two annotators of the same pairs agree on: counts, kappa with query-clustered intervals, where they differ.

    Pairs that only one of them graded are left out and counted. Raises UserError where none is left.
    """
    other = {pair.key: pair for pair in second}
    shared = [(a, other[a.key]) for a in first if a.key in other]
    both = [(a, b) for a, b in shared if a.grade is not None and b.grade is not None]
    if not both:
        raise UserError("golden agree: no pair is graded in both files; compare their query_id and doc_id")
    judged = agreement.Judged.of(
        [a.query_id for a, _ in both], [a.grade or 0 for a, _ in both], [b.grade for _, b in both]
    )
    table = agreement.confusion(judged.human, judged.judge)
    found = {}
    for name in ("kappa", "kappa_quadratic"):
        one = agreement.statistic(judged, name, relevant_from, relevant_from - 1)
        found[name] = resampling.interval(one, judged.query, seed)._asdict()  # type: ignore[union-attr]
    return {
        "pairs": len(both),
        "queries": judged.queries,
        "left_out": len(first) + len(second) - 2 * len(both),
        "same_grade": float(np.trace(table) / len(both)),
        **found,
        "confusion": table.tolist(),
        "differ": [_difference(a, b) for a, b in sorted(both, key=_apart) if a.grade != b.grade],
    }


def _apart(pair: tuple[Golden, Golden]) -> tuple[int, tuple[str, str]]:
    a, b = pair
    return -abs((a.grade or 0) - (b.grade or 0)), a.key


def _difference(a: Golden, b: Golden) -> dict[str, Any]:
    return {
        **{name: getattr(a, name) for name in ("query_id", "doc_id", "query", "passage")},
        "grades": [a.grade, b.grade],
        "reasons": [a.reason, b.reason],
    }
