"""What `miner audit` finds while the rows stream by: defects of one row, and the short record of it that is kept.

Of each row a few numbers are kept, of each text a 16-byte digest; texts themselves only for a sample of queries.
"""

from __future__ import annotations

import hashlib
import heapq
import math
from array import array
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from miner import forms
from miner.defects import MAX_CHARS, script, text_defects
from miner.forms import NEGATIVE, POSITIVE, QUERY, Example, Row
from miner.records import fold
from miner.shingles import pair_jaccard, shingle_hashes, words

Array = np.ndarray[Any, Any]
COMPARED = 64  # texts of a row that are compared with each other
SAMPLED, SAMPLED_TEXTS = 1000, 16  # queries that are kept with their texts, and texts of each side
HOLDS = 40  # a text of fewer characters may well lie in another


@dataclass(frozen=True)
class Settings:
    """near: Jaccard from which texts are nearly the same; share: of the queries, above it a passage is worn;
    negatives: how many each row should have, None: as many as most have; shown: places kept of each code."""

    max_chars: int = MAX_CHARS
    near: float = 0.8
    share: float = 0.05
    negatives: int | None = None
    shown: int = 5
    seed: int = 0


class Hit(NamedTuple):
    """row counts all rows of all files from 0; -1: no row. slot -1: the row itself. value None: the text there."""

    row: int
    role: int
    slot: int
    value: str | None


@dataclass
class Findings:
    """Counts and first places of each code; all places too where something is to be mended."""

    shown: int
    keep_all: bool = False
    counts: Counter[str] = field(default_factory=Counter)
    places: dict[str, list[Hit]] = field(default_factory=dict)
    by_row: dict[int, list[tuple[str, int, int]]] = field(default_factory=dict)

    def add(self, code: str, row: int, role: int = QUERY, slot: int = -1, value: Any = None) -> None:
        self.counts[code] += 1
        places = self.places.setdefault(code, [])
        if len(places) < self.shown:
            places.append(Hit(row, role, slot, None if value is None else _short(value)))
        if self.keep_all and row >= 0:
            self.by_row.setdefault(row, []).append((code, role, slot))

    def add_rows(self, code: str, rows: Iterable[int], value: Any = "") -> None:
        for row in rows:
            self.add(code, int(row), value=value)


def _short(value: Any) -> str:
    return str(value)[:200]


@dataclass
class Log:
    """Numbers of each row and digests of each text, in order. rows: file and line; occurrences: row, role and slot."""

    file: array[int] = field(default_factory=lambda: array("H"))
    number: array[int] = field(default_factory=lambda: array("Q"))
    usable: array[int] = field(default_factory=lambda: array("B"))
    prompt: array[int] = field(default_factory=lambda: array("B"))
    kind: array[int] = field(default_factory=lambda: array("H"))
    columns: array[int] = field(default_factory=lambda: array("B"))
    numbers: array[int] = field(default_factory=lambda: array("B"))  # 1: ints among the scores, 2: floats
    largest: array[float] = field(default_factory=lambda: array("d"))  # of the scores, without sign; -1 for none
    negatives: array[int] = field(default_factory=lambda: array("I"))
    whole: bytearray = field(default_factory=bytearray)  # digest of the row
    bag: bytearray = field(default_factory=bytearray)  # digest of the query's set of words
    row: array[int] = field(default_factory=lambda: array("I"))
    role: array[int] = field(default_factory=lambda: array("B"))
    slot: array[int] = field(default_factory=lambda: array("I"))
    text: bytearray = field(default_factory=bytearray)
    ids: bytearray = field(default_factory=bytearray)
    kinds: dict[str, int] = field(default_factory=dict)

    def open_row(self, file: int, number: int) -> int:
        self.file.append(file)
        self.number.append(number)
        for column in (self.usable, self.prompt, self.kind, self.columns, self.numbers, self.negatives):
            column.append(0)
        self.largest.append(-1.0)
        self.whole += bytes(16)
        self.bag += bytes(16)
        return len(self.file) - 1

    def fill(self, row: int, form: str, values: Row, example: Example) -> list[bytes]:
        """Record an example; the digests of its texts, in the order of `example.texts()`."""
        self.usable[row] = 1
        self.prompt[row] = isinstance(values.get("prompt"), str)
        self.kind[row] = self.kinds.setdefault(str(values.get("type", "")), len(self.kinds))
        scored = any(values.get(name) is not None for name in ("pos_scores", "neg_scores", "score", "scores"))
        labelled = any(values.get(name) is not None for name in ("label", "labels"))
        self.columns[row] = scored + 2 * ("type" in values) + 4 * labelled
        self.negatives[row] = sum(text is not None for text in example.negatives)
        found, texts = [], example.texts()
        for role, slot, text in texts:
            found.append(digest(fold(text)))
            self.row.append(row)
            self.role.append(role)
            self.slot.append(slot)
            self.text += found[-1]
            self.ids += digest(_id(example, role, slot)) if _id(example, role, slot) else bytes(16)
        marked = sorted(bytes([role]) + key for (role, _, _), key in zip(texts, found, strict=True))
        self.whole[16 * row : 16 * row + 16] = digest(b"".join(marked))
        self.bag[16 * row : 16 * row + 16] = bag_of(example.query or "")
        return found


def _id(example: Example, role: int, slot: int) -> str:
    if not example.ids:
        return ""
    place = {QUERY: 0, POSITIVE: 1 + slot, NEGATIVE: 1 + len(example.positives) + slot}[role]
    name = example.ids[place] if place < len(example.ids) else ""
    return f"{'q' if role == QUERY else 'p'} {name}" if name else ""


def digest(value: str | bytes) -> bytes:
    data = value if isinstance(value, bytes) else value.encode("utf-8", "surrogatepass")
    return hashlib.blake2b(data, digest_size=16).digest()


def bag_of(query: str) -> bytes:
    """The same for queries of the same words, in whatever order; of fewer than three words, for the same text."""
    found = sorted(set(words(query)))
    return digest(" ".join(found)) if len(found) > 2 else digest("\0" + fold(query))


# ---------------------------------------------------------------- one row


def check_row(
    row: int, form: str, values: Row, example: Example, log: Log, found: Findings, settings: Settings
) -> None:
    """All that is wrong with a row by itself, but for texts that are the same or nearly so."""
    for trouble in example.troubles:
        found.add(trouble.code, row, trouble.role, trouble.slot, trouble.value)
    _check_sides(row, form, example, found)
    _check_scores(row, form, values, example, log, found)
    for role, slot, text in example.texts():
        for code in text_defects(role, text, settings.max_chars):
            found.add(code, row, role, slot, text)
    _check_against_positives(row, example, found)


def _check_sides(row: int, form: str, example: Example, found: Findings) -> None:
    missing = {trouble.code for trouble in example.troubles if trouble.slot < 0}
    if not example.positives and form != "st-pair" and not missing & {"F02", "F03"}:
        found.add("F16", row, value="")
    if not example.negatives and form in forms.LISTS and not missing & {"F03", "F12"}:
        found.add("F05", row, value="")


def _check_scores(row: int, form: str, values: Row, example: Example, log: Log, found: Findings) -> None:
    sides = (
        (POSITIVE, example.positives, example.positive_scores),
        (NEGATIVE, example.negatives, example.negative_scores),
    )
    given = [scores is not None for _, _, scores in sides]
    if any(given) and not all(given) and form == "flagembedding":
        found.add("S03", row, value="pos_scores" if given[0] else "neg_scores")
    good: dict[int, list[tuple[int, float]]] = {POSITIVE: [], NEGATIVE: []}
    for role, texts, scores in sides:
        if scores is not None and (not isinstance(scores, list) or len(scores) != len(texts)):
            size = len(scores) if isinstance(scores, list) else "no list"
            found.add("S01" if role == POSITIVE else "S02", row, value=f"{len(texts)} texts, {size} scores")
        for slot, score in enumerate(scores if isinstance(scores, list) else ()):
            if _check_score(row, role, slot, score, log, found):
                good[role].append((slot, float(score)))
    _compare_scores(row, good, found)


def _check_score(row: int, role: int, slot: int, score: Any, log: Log, found: Findings) -> bool:
    if isinstance(score, bool) or not isinstance(score, int | float):
        found.add("S04", row, role, slot, repr(score))
        return False
    if not math.isfinite(score):
        found.add("S05", row, role, slot, score)
        return False
    log.numbers[row] |= 1 if isinstance(score, int) else 2
    log.largest[row] = max(log.largest[row], abs(float(score)))
    return True


def _compare_scores(row: int, good: dict[int, list[tuple[int, float]]], found: Findings) -> None:
    positives = [score for _, score in good[POSITIVE]]
    everything = positives + [score for _, score in good[NEGATIVE]]
    if len(everything) > 2 and len(set(everything)) == 1:
        found.add("S09", row, value=everything[0])
        return
    for slot, score in good[NEGATIVE] if positives else ():
        if score >= min(positives):
            found.add("S08", row, NEGATIVE, slot, f"{score:g}, the positive {min(positives):g}")


def _check_against_positives(row: int, example: Example, found: Findings) -> None:
    positives = [text for text in example.positives if text]
    scripts = {script(text) for text in positives} - {""}
    folded = [fold(text) for text in positives]
    for slot, text in enumerate(example.negatives):
        if not text:
            continue
        if scripts and script(text) and script(text) not in scripts:
            found.add("R09", row, NEGATIVE, slot, text)
        mine = fold(text)
        if any(_holds(mine, other) for other in folded):
            found.add("R08", row, NEGATIVE, slot, text)


def _holds(a: str, b: str) -> bool:
    """Is the shorter a part of the longer, and no copy?"""
    short, long = sorted((a, b), key=len)
    return HOLDS <= len(short) < len(long) and short in long


# ---------------------------------------------------------------- rows of a batch


def check_near(rows: Sequence[tuple[int, Example, list[bytes]]], found: Findings, settings: Settings) -> None:
    """Negatives that are nearly a positive of their row, or nearly another negative. Copies are told elsewhere."""
    texts: list[str] = []
    owner: list[tuple[int, int, int, bytes]] = []
    left, right = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    for row, example, digests in rows:
        kept = [(one, key) for one, key in zip(example.texts(), digests, strict=True) if one[0] != QUERY][:COMPARED]
        a, b = np.triu_indices(len(kept), 1)
        left.append(a + len(texts))
        right.append(b + len(texts))
        texts += [one[2] for one, _ in kept]
        owner += [(row, one[0], one[1], key) for one, key in kept]
    a, b = np.concatenate(left), np.concatenate(right)
    sets = shingle_hashes(texts)
    told: set[tuple[int, str]] = set()
    for i in np.flatnonzero(pair_jaccard(sets, a, sets, b) >= settings.near):
        _, role, _, key = owner[a[i]]
        row, other, slot, same = owner[b[i]]
        code = "R02" if role == POSITIVE else "R04"
        if other == NEGATIVE and key != same and (int(b[i]), code) not in told:
            told.add((int(b[i]), code))
            found.add(code, row, NEGATIVE, slot, texts[b[i]])


# ---------------------------------------------------------------- statistics and sample


@dataclass
class Lengths:
    """Running sums of characters and their logarithms, and the scripts, of positives and negatives."""

    count: list[int] = field(default_factory=lambda: [0, 0, 0])
    chars: list[int] = field(default_factory=lambda: [0, 0, 0])
    logs: list[float] = field(default_factory=lambda: [0.0, 0.0, 0.0])
    squares: list[float] = field(default_factory=lambda: [0.0, 0.0, 0.0])
    scripts: list[Counter[str]] = field(default_factory=lambda: [Counter(), Counter(), Counter()])

    def add(self, role: int, text: str) -> None:
        log = math.log1p(len(text))
        self.count[role] += 1
        self.chars[role] += len(text)
        self.logs[role] += log
        self.squares[role] += log * log
        self.scripts[role][script(text) or "none"] += 1

    def mean(self, role: int) -> float:
        return self.chars[role] / max(1, self.count[role])

    def difference(self) -> float | None:
        """Cohen's d of the logarithms of the lengths, negatives minus positives; None below 30 texts of each."""
        if min(self.count[1:]) < 30:
            return None
        means = [self.logs[role] / self.count[role] for role in (POSITIVE, NEGATIVE)]
        within = sum(self.squares[role] - self.count[role] * means[role - 1] ** 2 for role in (POSITIVE, NEGATIVE))
        deviation = math.sqrt(max(within, 0.0) / (sum(self.count[1:]) - 2))
        return (means[1] - means[0]) / deviation if deviation > 1e-9 else 0.0


@dataclass
class Group:
    """A sampled query with its different texts; row: where it was met first."""

    row: int
    query: str
    positives: list[str] = field(default_factory=list)
    negatives: list[str] = field(default_factory=list)


@dataclass
class Sample:
    """The queries whose digests are smallest: a sample that neither order nor split into files changes."""

    size: int = SAMPLED
    seed: int = 0
    groups: dict[bytes, Group] = field(default_factory=dict)
    seen: int = 0
    _heap: list[int] = field(default_factory=list)

    def add(self, row: int, example: Example) -> None:
        if not example.query:
            return
        key = digest(f"{self.seed} {fold(example.query)}")
        if key not in self.groups:
            number = int.from_bytes(key, "big")
            if len(self.groups) >= self.size:
                if number >= -self._heap[0]:
                    return
                del self.groups[(-heapq.heappop(self._heap)).to_bytes(16, "big")]
            heapq.heappush(self._heap, -number)
            self.groups[key] = Group(row, example.query)
        group = self.groups[key]
        for side, texts in ((group.positives, example.positives), (group.negatives, example.negatives)):
            new = [text for text in texts if text and text.strip() and text not in side]
            side += list(dict.fromkeys(new))[: SAMPLED_TEXTS - len(side)]

    def both(self) -> list[tuple[bytes, Group]]:
        """The groups with a positive and a negative, in the order of their digests."""
        return [(key, group) for key, group in sorted(self.groups.items()) if group.positives and group.negatives]
