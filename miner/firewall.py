"""Keep evaluation sets out of the training data: their queries, and the passages relevant to them.

Read each set (`read`), then ask of every passage and query of the training data whether it is one of theirs
(`Screen.refuse`): by id, as an exact copy after case-folding and white space, or as a near-duplicate. A text counts
whatever it was: a passage that is a copy of an evaluation query goes too.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from miner import store
from miner.config import Data, Firewall
from miner.errors import UserError
from miner.readers import beir, rows
from miner.records import fold, passage_text
from miner.shingles import ELEMENTS, Ragged, pair_jaccard, ranges, shingle_hashes, spans

Array = np.ndarray[Any, Any]
Kind = Literal["passage", "query"]
BATCH = 1 << 13
RELEVANT = 1
ALIKE = 0.2  # texts that share less than this are not versions of each other
KEYS = {"_id": ("passage", "query"), "doc_id": ("passage",), "query_id": ("query",)}


class Refusal(NamedTuple):
    """reason: firewall_id, firewall_copy or firewall_near_duplicate; place: file:line of the evaluation's row."""

    id: str
    reason: str
    place: str


class Barred(NamedTuple):
    """A row of an evaluation set: its ids, each with the kind of row it names, and its text, where known."""

    ids: tuple[tuple[Kind, str], ...]
    text: str
    place: str


# ---------------------------------------------------------------- reading evaluation sets


def files(entry: Firewall, key: str) -> list[Path]:
    """The files that are read: of a BEIR folder corpus, queries and qrels. Raises UserError naming `key`."""
    path = Path(entry.path)
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise UserError(f"{key}.path {path}: no such file or folder; paths count from the job file")
    if not (path / "qrels").is_dir():
        raise UserError(f"{key}.path {path}: no folder qrels in it; name a BEIR folder, or a file")
    found = [_packed_or_not(path / name) for name in ("corpus.jsonl", "queries.jsonl", f"qrels/{entry.split}.tsv")]
    if found[2] is None:
        splits = sorted({p.name.split(".tsv")[0] for p in (path / "qrels").glob("*.tsv*")})
        known = ", ".join(splits) or "none"
        raise UserError(f"{key}.split {entry.split}: no {path}/qrels/{entry.split}.tsv; the splits are {known}")
    if found[0] is None or found[1] is None:
        lacking = "corpus.jsonl" if found[0] is None else "queries.jsonl"
        raise UserError(f"{key}.path {path}: no {lacking} in it; name a whole BEIR folder, or a file")
    return [file for file in found if file]


def _packed_or_not(path: Path) -> Path | None:
    return next((p for p in (path, path.with_name(path.name + ".gz")) if p.is_file()), None)


def fingerprint(entries: Sequence[Firewall]) -> dict[str, Any]:
    """What the corpus depends on, flat: the settings of each set and the digests of its files, but no paths."""
    found: dict[str, Any] = {}
    for number, entry in enumerate(entries):
        key = f"data.firewall.{number}"
        found |= {f"{key}.{name}": value for name, value in entry.model_dump(exclude={"path"}).items()}
        found[f"{key}.files"] = {path.name: store.file_digest(path) for path in files(entry, key)}
    return found


def _rows(entry: Firewall, key: str) -> Iterator[Barred]:
    path = files(entry, key)[0]
    if Path(entry.path).is_dir():
        return _beir(entry, key)
    known = Path(path.name.removesuffix(".gz")).suffix.lower() in rows.KINDS
    return _table(path, key) if known else _ids(path)


def _beir(entry: Firewall, key: str) -> Iterator[Barred]:
    """The queries that the split judges, not all of queries.jsonl: that file holds the training queries too."""
    source = beir.read(Data(path=entry.path, split=entry.split))  # type: ignore[call-arg]
    docs, queries = dict[str, str](), dict[str, str]()
    for qrel in source.qrels:
        queries.setdefault(qrel.query_id, qrel.place)
        if qrel.relevance >= RELEVANT:
            docs.setdefault(qrel.doc_id, qrel.place)
    if not docs:
        raise UserError(f"{key}.split {entry.split}: its qrels hold no relevance of {RELEVANT} or more; name another")
    for passage in source.passages:
        if passage.doc_id is not None and docs.pop(passage.doc_id, ""):
            yield Barred((("passage", passage.doc_id),), passage_text(passage.title, passage.text), passage.place)
    for query in source.queries:
        if query.query_id is not None and queries.pop(query.query_id, ""):
            yield Barred((("query", query.query_id),), query.text, query.place)
    for doc_id, place in docs.items():
        yield Barred((("passage", doc_id),), "", place)
    for query_id, place in queries.items():
        yield Barred((("query", query_id),), "", place)


def _table(path: Path, key: str) -> Iterator[Barred]:
    for row in rows.read(path):
        names = [name for name in KEYS if row.values.get(name) is not None]
        text = passage_text(rows.text_of(row, "title", False), rows.text_of(row, "text", False))
        if not names and not text.strip():
            raise UserError(f"{row.place}: no _id, query_id, doc_id or text; {key} needs one of them in each row")
        ids = tuple((kind, rows.id_of(row, name) or "") for name in names for kind in KEYS[name])
        yield Barred(ids, text, row.place)  # type: ignore[arg-type]


def _ids(path: Path) -> Iterator[Barred]:
    empty = True
    for number, line in rows.text_lines(path):
        if name := line.strip():
            empty = False
            yield Barred((("passage", name), ("query", name)), "", f"{path}:{number}")
    if empty:
        raise UserError(f"{path}: the file holds no ids")


# ---------------------------------------------------------------- the wall


@dataclass
class Wall:
    """All that is barred. ids: of each kind, id -> (place, text or ""); copies: digest of the folded text -> place."""

    ids: dict[Kind, dict[str, tuple[str, str]]] = field(default_factory=lambda: {"passage": {}, "query": {}})
    copies: dict[bytes, str] = field(default_factory=dict)
    near: dict[tuple[bytes, float], tuple[str, str]] = field(default_factory=dict)

    def add(self, row: Barred, entry: Firewall) -> None:
        for kind, name in row.ids if entry.ids else ():
            self.ids[kind].setdefault(name, (row.place, row.text))
        if row.text.strip():
            digest = _digest(row.text)
            self.copies.setdefault(digest, row.place)
            if entry.near is not None:
                self.near.setdefault((digest, entry.near), (row.place, row.text))

    @cached_property
    def index(self) -> _Index:
        return _Index.build([text for _, text in self.near.values()], [at for _, at in self.near])

    @cached_property
    def places(self) -> list[str]:
        return [place for place, _ in self.near.values()]


def read(entries: Sequence[Firewall]) -> Wall:
    """Read every evaluation set. Raises UserError for one that is missing, broken, or would bar nothing."""
    wall = Wall()
    for number, entry in enumerate(entries):
        key = f"data.firewall.{number}"
        barred = False
        for row in _rows(entry, key):
            barred = barred or bool(row.text.strip()) or (entry.ids and bool(row.ids))
            wall.add(row, entry)
        if not barred:
            raise UserError(f"{key}.ids: false, but {entry.path} holds ids alone, so it would bar nothing; set it true")
    return wall


def _digest(text: str) -> bytes:
    return hashlib.blake2b(fold(text).encode("utf-8", "surrogatepass"), digest_size=16).digest()


@dataclass(frozen=True)
class _Index:
    """An inverted index from shingles to barred texts.

    A text that reaches Jaccard t with a barred one of n shingles shares ceil(t * n) of these, so it has one of any
    n - ceil(t * n) + 1 of them: only the rarest so many are looked up, and what they find is counted exactly.
    """

    sets: Ragged
    near: Array
    shingle: Array
    owner: Array

    @staticmethod
    def build(texts: list[str], near: list[float]) -> _Index:
        sets, at = shingle_hashes(texts), np.array(near, float)
        _, inverse, counts = np.unique(sets.values, return_inverse=True, return_counts=True)
        owner = np.repeat(np.arange(len(texts)), sets.sizes)
        order = np.lexsort((sets.values, counts[inverse], owner))
        needed = sets.sizes - np.ceil(at * sets.sizes - 1e-9).astype(np.int64) + 1
        place = np.arange(len(owner)) - np.repeat(sets.offsets[:-1], sets.sizes)
        order = order[place < np.repeat(needed, sets.sizes)]
        order = order[np.argsort(sets.values[order], kind="stable")]
        return _Index(sets, at, sets.values[order], owner[order])

    def find(self, sets: Ragged) -> Array:
        """int64[n]: for each set the first barred text that it is near to, -1 for none."""
        start = np.searchsorted(self.shingle, sets.values)
        count = np.searchsorted(self.shingle, sets.values, side="right") - start
        row = np.repeat(np.arange(len(sets.sizes)), sets.sizes)
        size = len(self.near)
        found = np.full(len(sets.sizes), size)
        hit = np.flatnonzero(count)
        for some in (hit[part] for part in spans(count[hit], ELEMENTS)):
            pairs = np.unique(np.repeat(row[some], count[some]) * size + self.owner[ranges(start[some], count[some])])
            mine, theirs = np.divmod(pairs, size)
            close = pair_jaccard(sets, mine, self.sets, theirs) >= self.near[theirs]
            np.minimum.at(found, mine[close], theirs[close])
        return np.where(found < size, found, -1)


# ---------------------------------------------------------------- the training data


@dataclass
class Screen:
    """Says which rows of the training data are barred, and doubts ids that stand for different texts."""

    wall: Wall
    _same: dict[Kind, int] = field(default_factory=lambda: {"passage": 0, "query": 0})
    _other: dict[Kind, list[str]] = field(default_factory=lambda: {"passage": [], "query": []})

    def refuse(self, kind: Kind, ids: Iterable[str], texts: Iterable[str]) -> Iterator[Refusal]:
        """The barred rows, in the order given. Of several reasons the first holds: id, copy, near-duplicate."""
        both = zip(ids, texts, strict=True)
        while batch := list(islice(both, BATCH)):
            found = {i: told for i, row in enumerate(batch) if (told := self._exact(kind, *row))}
            self._compare(kind, [batch[i] for i, told in found.items() if told.reason == "firewall_id"])
            left = [i for i in range(len(batch)) if i not in found]
            if self.wall.near and left:
                near = self.wall.index.find(shingle_hashes(batch[i][1] for i in left))
                for at in np.flatnonzero(near >= 0):
                    name = batch[left[at]][0]
                    found[left[at]] = Refusal(name, "firewall_near_duplicate", self.wall.places[near[at]])
            yield from (found[i] for i in sorted(found))

    def _exact(self, kind: Kind, name: str, text: str) -> Refusal | None:
        if (barred := self.wall.ids[kind].get(name)) is not None:
            return Refusal(name, "firewall_id", barred[0])
        place = self.wall.copies.get(_digest(text)) if self.wall.copies else None
        return Refusal(name, "firewall_copy", place) if place is not None else None

    def _compare(self, kind: Kind, hits: list[tuple[str, str]]) -> None:
        known = [(name, text, told) for name, text in hits if (told := self.wall.ids[kind][name][1]).strip()]
        if known:
            rows_ = np.arange(len(known))
            sets = [shingle_hashes(row[side] for row in known) for side in (1, 2)]
            alike = pair_jaccard(sets[0], rows_, sets[1], rows_) >= ALIKE
            self._same[kind] += int(alike.sum())
            self._other[kind] += [known[i][0] for i in np.flatnonzero(~alike)]

    def warnings(self) -> list[str]:
        """A line for each kind of which every id that met stood for another text: such ids are hardly shared."""
        return [
            f"data.firewall: {len(names)} {kind} ids of the evaluation are in data with other texts, {names[0]!r} for"
            " one, and none with the same; if the two number their rows on their own, set ids: false"
            for kind, names in self._other.items()
            if names and not self._same[kind]
        ]
