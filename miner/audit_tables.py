"""What `miner audit` finds once all rows were seen: what differs between rows, and texts that stand in several places.

All of it on digests and small numbers, as numpy tables.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from miner import forms
from miner.audit_checks import Findings, Log, Settings
from miner.forms import NEGATIVE, POSITIVE, QUERY

Array = np.ndarray[Any, Any]
WORN_FROM, WORN_ROWS = 5, 20  # uses, and queries, below which no passage counts as worn
UNIT = 1.0


def check_rows(log: Log, kinds: list[str], names: list[str], found: Findings, settings: Settings) -> None:
    """Rows that differ from the others of their file. kinds, names: kind and form of each file."""
    file, usable = np.array(log.file, np.int64), np.array(log.usable, bool)
    form = np.array(names, dtype=object)[file] if len(file) else np.empty(0, object)
    flag = usable & (form == "flagembedding")
    _check_prompts(np.array(log.prompt, bool), flag, found)
    _check_numbers(log, flag, found)
    largest = np.array(log.largest)
    _check_scale(largest, file, usable & (largest >= 0), found)
    for number, kind in enumerate(kinds):
        mine = usable & (file == number)
        if names[number] == "flagembedding":
            kind_of = np.array(log.kind, np.int64)
            _minority("F10", kind_of, mine & (kind_of != log.kinds.get("", -1)), found, list(log.kinds))
        if kind == "jsonl" and names[number] not in ("tevatron-legacy", "tevatron"):
            _minority("F08", np.array(log.columns), mine, found, None)
        if names[number] in forms.LISTS:
            _check_counts(np.array(log.negatives, np.int64), mine, found, settings)


def _check_prompts(prompt: Array, flag: Array, found: Findings) -> None:
    """Over all files: they are loaded together, and a missing column is then filled with nulls."""
    lacking = np.flatnonzero(flag & ~prompt)
    found.add_rows("F04" if (flag & prompt).any() else "F17", lacking, "no prompt")


def _check_numbers(log: Log, flag: Array, found: Findings) -> None:
    numbers = np.array(log.numbers)
    if (flag & (numbers & 2 > 0)).any():
        found.add_rows("S06", np.flatnonzero(flag & (numbers & 1 > 0)), "whole numbers, elsewhere floats")


def _check_scale(largest: Array, file: Array, scored: Array, found: Findings) -> None:
    """Files whose scores all lie within -1..1 beside files whose do not, and single rows far out of their file."""
    files = np.unique(file[scored])
    small = {int(f): bool(np.quantile(largest[scored & (file == f)], 0.95) <= UNIT) for f in files}
    counts = {f: int((scored & (file == f)).sum()) for f in small}
    sizes = [sum(n for f, n in counts.items() if small[f] is kind) for kind in (False, True)]
    odd = sizes[1] <= sizes[0]
    for f, kind in small.items():
        if all(sizes) and kind is odd:
            found.add_rows("S07", np.flatnonzero(scored & (file == f)), "-1 to 1" if kind else "beyond -1 to 1")
        elif kind:
            found.add_rows("S07", np.flatnonzero(scored & (file == f) & (largest > 2 * UNIT)), "beyond -1 to 1")


def _minority(code: str, values: Array, mine: Array, found: Findings, names: list[str] | None) -> None:
    kinds, counts = np.unique(values[mine], return_counts=True)
    if len(kinds) < 2:
        return
    common = kinds[np.argmax(counts)]
    for row in np.flatnonzero(mine & (values != common)):
        told = names[values[row]] or "none" if names else _columns(int(values[row]), int(common))
        found.add(code, int(row), value=told)


def _columns(own: int, common: int) -> str:
    parts = {1: "scores", 2: "type", 4: "labels"}
    return ", ".join(f"{'has' if own & bit else 'lacks'} {name}" for bit, name in parts.items() if (own ^ common) & bit)


def _check_counts(negatives: Array, mine: Array, found: Findings, settings: Settings) -> None:
    common = most_common(negatives[mine])
    wanted, code = (common, "F06") if settings.negatives is None else (settings.negatives, "F18")
    for row in np.flatnonzero(mine & (negatives > 0) & (negatives < wanted)):
        found.add(code, int(row), value=f"{negatives[row]} of {wanted}")


def most_common(values: Array) -> int:
    return int(np.argmax(np.bincount(values))) if len(values) else 0


# ---------------------------------------------------------------- texts in several places


class Places:
    """Every text of every row: row, role, slot, and a number that is the same for the same text."""

    def __init__(self, log: Log) -> None:
        self.row, self.role = np.array(log.row, np.int64), np.array(log.role, np.int64)
        self.slot = np.array(log.slot, np.int64)
        self.text = numbered(log.text)
        self.size = int(self.text.max()) + 1 if len(self.text) else 0
        rows = len(log.file)
        self.query = np.full(rows, -1, np.int64)
        asked = self.role == QUERY
        self.query[self.row[asked]] = self.text[asked]
        self.bag, self.whole = numbered(log.bag), numbered(log.whole)

    def of(self, role: int) -> Array:
        return np.flatnonzero(self.role == role)


def numbered(digests: bytearray) -> Array:
    """int64[n]: equal numbers for equal digests of 16 bytes."""
    if not digests:
        return np.empty(0, np.int64)
    halves = np.frombuffer(bytes(digests), np.uint64).reshape(-1, 2)
    order = np.lexsort((halves[:, 1], halves[:, 0]))
    new = np.r_[False, (np.diff(halves[order].astype(np.uint64), axis=0) != 0).any(axis=1)]
    out = np.empty(len(order), np.int64)
    out[order] = np.cumsum(new)
    return out


def check_places(log: Log, names: list[str], found: Findings, settings: Settings) -> None:
    """Copies within a row, across rows, and passages that serve too often. names: the form of each file."""
    at = Places(log)
    if not at.size:
        return
    _within_rows(at, log, names, found)
    _across_rows(at, found)
    _doubled_rows(at, log, names, found)
    _worn(at, found, settings)
    _ids(log, at, found)


def _add(code: str, at: Places, places: Array, found: Findings) -> None:
    for i in places:
        found.add(code, int(at.row[i]), int(at.role[i]), int(at.slot[i]))


def _within_rows(at: Places, log: Log, names: list[str], found: Findings) -> None:
    key = at.row * at.size + at.text
    positive, negative = at.of(POSITIVE), at.of(NEGATIVE)
    same = at.text == at.query[at.row]
    _add("R01", at, negative[np.isin(key[negative], key[positive])], found)
    _add("R05", at, negative[same[negative]], found)
    _add("R06", at, positive[same[positive]], found)
    _add("R07", at, _again(key, positive), found)
    repeated = _again(key, negative)
    _add("R03", at, repeated, found)
    file, counts = np.array(log.file, np.int64), np.array(log.negatives, np.int64)
    for number in np.unique(file[np.unique(at.row[repeated])]) if len(repeated) else ():
        common = most_common(counts[file == number])
        rows = np.unique(at.row[repeated][file[at.row[repeated]] == number])
        padded = rows[counts[rows] == common] if names[number] in forms.LISTS | forms.COLUMNS else rows[:0]
        for row in padded:
            times = int((at.row[repeated] == row).sum())
            found.add("R10", int(row), value=f"{times} of {counts[row]} negatives are repeats")


def _again(key: Array, places: Array) -> Array:
    """Of the places those whose key was met before."""
    first = np.unique(key[places], return_index=True)[1]
    again = np.ones(len(places), bool)
    again[first] = False
    return places[again]


def _across_rows(at: Places, found: Findings) -> None:
    """A negative that is a positive elsewhere: of the same query, of one of the same words, of any other."""
    positive, negative = at.of(POSITIVE), at.of(NEGATIVE)
    rest = negative[~np.isin((at.row * at.size + at.text)[negative], (at.row * at.size + at.text)[positive])]
    for code, group in (("X01", at.query), ("X02", at.bag), ("X03", np.zeros(len(at.query), np.int64))):
        key = group[at.row] * at.size + at.text
        hit = np.isin(key[rest], key[positive])
        _add(code, at, rest[hit], found)
        rest = rest[~hit]


def _doubled_rows(at: Places, log: Log, names: list[str], found: Findings) -> None:
    usable = np.flatnonzero((at.query >= 0) & np.array(log.usable, bool))
    again = _again(at.whole, usable)
    found.add_rows("X04", again)
    single = usable[~np.isin(usable, again)]
    lists = np.array([name in forms.LISTS for name in names])[np.array(log.file, np.int64)[single]]
    several = _again(at.query, single[lists])
    _add_queries("X05", several, found)
    first = single[np.unique(at.query[single], return_index=True)[1]]
    _add_queries("X07", _again(at.bag, np.sort(first)), found)


def _add_queries(code: str, rows: Array, found: Findings) -> None:
    for row in rows:
        found.add(code, int(row), QUERY, 0)


def _worn(at: Places, found: Findings, settings: Settings) -> None:
    """Passages that are negatives of more than so large a share of the queries; each is told once."""
    negative = at.of(NEGATIVE)
    queries = len(np.unique(at.query[at.row[negative]]))
    if queries < WORN_ROWS:
        return
    pairs, first = np.unique(at.text[negative] * at.size + at.query[at.row[negative]], return_index=True)
    texts, start, uses = np.unique(pairs // at.size, return_index=True, return_counts=True)
    earliest = np.minimum.reduceat(first, start)
    worn = np.flatnonzero((uses >= WORN_FROM) & (uses > settings.share * queries))
    for i in worn[np.lexsort((texts[worn], -uses[worn]))]:
        place = negative[earliest[i]]
        value = f"{uses[i]} of {queries} queries"
        found.add("X06", int(at.row[place]), NEGATIVE, int(at.slot[place]), value)


def _ids(log: Log, at: Places, found: Findings) -> None:
    """An id that stands for another text than where it was met first."""
    name = numbered(log.ids)
    named = np.frombuffer(bytes(log.ids), np.uint64).reshape(-1, 2).any(axis=1)
    places = np.flatnonzero(named)
    if not len(places):
        return
    _, first, inverse = np.unique(name[places], return_index=True, return_inverse=True)
    _add("F15", at, places[at.text[places] != at.text[places[first[inverse]]]], found)
