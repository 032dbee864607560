"""The texts of a report: passages, evidence, raw answers and prompts of the queries it tells, as far as they fit."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from miner import judge_steps, store
from miner.records import TEXT
from miner.report import read as report_read
from miner.report.browser import Meter, Numbers
from miner.report.choice import Choice
from miner.report.ledger import Book
from miner.report.prompts import Answers, Text, clean
from miner.report.read import Found

Row = dict[str, Any]
Key = tuple[str, str]
# Of what is fetched from the corpus, as a multiple of the bytes that the page has room for: texts shrink when packed.
FETCHED = 12


class Told(NamedTuple):
    """queries: with their judged and kept passages. complete: of these all other passages are told too."""

    queries: int
    complete: bool


@dataclass
class Known:
    """What LLMs said of the pairs of some queries. final: the row that decides; earlier: request keys of rungs before
    it; written: rows of SYNTHETIC, several where a text was written twice; shown: the passages of each request."""

    final: dict[Key, Row] = field(default_factory=dict)
    earlier: dict[Key, list[str]] = field(default_factory=dict)
    written: dict[Key, list[Row]] = field(default_factory=dict)
    shown: dict[str, list[str]] = field(default_factory=dict)


def known(found: Found, ids: Sequence[str]) -> Known:
    """Of these queries, from all steps that judge or write."""
    told, wanted = Known(), pa.array(ids, TEXT)
    for step in dict.fromkeys((*judge_steps.rung_steps(found.job.judge), "judgments", "synthetic_judgments")):
        for row in _rows(found, step, "judgments", JUDGED, wanted):
            key = row["query_id"], row["doc_id"]
            if key in told.final:
                told.earlier.setdefault(key, []).extend(_keys(told.final[key]))
            told.final[key] = row
            for request in _keys(row):
                docs = told.shown.setdefault(request, [])
                docs += [] if row["doc_id"] in docs else [row["doc_id"]]
    for row in _rows(found, "synthetic", "synthetic", WRITTEN, wanted):
        told.written.setdefault((row["query_id"], row["doc_id"]), []).append(row)
        near = [name for name in (row["positive_id"], row["near_miss_id"]) if name]
        told.shown.setdefault(row["request_key"], []).extend(near)
    return told


JUDGED = ["query_id", "doc_id", "evidence", "detail", "request_key", "other_key"]
WRITTEN = ["query_id", "doc_id", "positive_id", "near_miss_id", "facet", "change", "detail", "request_key"]


def _rows(found: Found, step: str, name: str, columns: list[str], wanted: pa.Array) -> Iterator[Row]:
    if found.has(step):
        table = store.read_table(found.run.folder.step(step) / f"{name}.parquet", columns)
        yield from table.filter(pc.is_in(table.column("query_id"), value_set=wanted)).to_pylist()


def _keys(row: Row) -> list[str]:
    return [key for key in (row["request_key"], row.get("other_key")) if key]


# ---------------------------------------------------------------- fill


def tell(found: Found, made: Numbers, choice: Choice, book: Book | None, room: int) -> Told:
    """Fill the texts of the first queries of `made`, in place, as far as `room` bytes reach: first what was judged,
    kept or written for each of them, then their other candidates."""
    writer = _Writer(found, made, choice, book, room)
    told = 0
    while told < choice.told and writer.first(told):
        told += 1
    complete = told == choice.told and all(writer.rest(number) for number in range(told))
    made.browser["answers"], made.browser["strings"] = writer.answers.answers, writer.answers.strings
    return Told(told, complete)


class _Writer:
    def __init__(self, found: Found, made: Numbers, choice: Choice, book: Book | None, room: int) -> None:
        self.browser, self.table, self.places = made.browser, made.table, made.places
        self.ids, self.known = choice.ids, known(found, choice.ids[: choice.told])
        self.answers, self.meter = Answers(book), Meter(room)
        self.starts = np.searchsorted(made.query, np.arange(choice.told + 1)).tolist()
        self.docs, self.turns = self.table.column("doc_id"), self.table.column("turn").to_pylist()
        self.texts = report_read.texts(found, self._wanted(found, choice.told, room))

    def _wanted(self, found: Found, told: int, room: int) -> set[str]:
        """The passages worth fetching: in the order of telling, as long as they may fit."""
        ids, sizes = report_read.lengths(found)
        ordered = [doc for number in range(told) for doc in self._sides(number)[0]]
        ordered += [doc for number in range(told) for doc in self._sides(number)[1]]
        ordered = list(dict.fromkeys(ordered))
        place = pc.index_in(pa.array(ordered, TEXT), value_set=ids)
        length = np.where(place.is_valid().to_numpy(zero_copy_only=False), sizes[pc.fill_null(place, 0).to_numpy()], 0)
        return set(ordered[: int(np.searchsorted(np.cumsum(length), FETCHED * room)) + 1])

    def _sides(self, number: int) -> tuple[list[str], list[str]]:
        """The passages of a query that are told first, positives among them, and the others."""
        start, end = self.starts[number], self.starts[number + 1]
        names = self.docs.slice(start, end - start).to_pylist()
        kept = self.table.column("kept").slice(start, end - start).to_pylist()
        source = self.table.column("source").slice(start, end - start).to_pylist()
        pooled = self.table.column("reason").slice(start, end - start).to_pylist()
        first = [self.places.name(row[0]) for row in self.browser["queries"]["positives"][number]]
        others: list[str] = []
        for name, is_kept, origin, why in zip(names, kept, source, pooled, strict=True):
            early = is_kept or origin == "synthetic" or why == "pool" or (self.ids[number], name) in self.known.final
            (first if early else others).append(name)
        return first, others

    def first(self, number: int) -> bool:
        """False where there is no room for it; then nothing is told of it."""
        marks, new = self.answers.marks(), self._new(self._sides(number)[0])
        rows = [self._row(number, row) for row in range(self.starts[number], self.starts[number + 1])]
        strings, answers = self.answers.since(marks)
        if not self.meter.take(list(new.values()), strings, answers, rows):
            self.answers.undo(marks)
            return False
        self._show(new)
        for at, row in enumerate(rows, self.starts[number]):
            for name, value in row.items():
                self.browser["candidates"][name][at] = value
        return True

    def rest(self, number: int) -> bool:
        new = self._new(self._sides(number)[1])
        if not self.meter.take(list(new.values())):
            return False
        self._show(new)
        return True

    def _new(self, docs: Sequence[str]) -> dict[int, str]:
        """place -> text of those that are not told yet."""
        there = self.browser["passages"]["text"]
        places = {self.places[doc]: doc for doc in docs if doc in self.texts}
        return {place: clean(self.texts[doc]) for place, doc in places.items() if there[place] is None}

    def _show(self, new: dict[int, str]) -> None:
        for place, text in new.items():
            self.browser["passages"]["text"][place] = text

    def _row(self, number: int, at: int) -> Row:
        """What LLMs said of one candidate: evidence, detail, the answer that decided, and the others."""
        key = self.ids[number], self.docs[at].as_py()
        said, several = self.known.final.get(key), self.known.written.get(key, [])
        written = next(iter(several[self.turns[at] :]), None)
        keys = [] if said is None else self._repaired(said)
        keys += [] if written is None else [written["request_key"]]
        keys += self.known.earlier.get(key, [])
        places = [self.answers.add(one, self._texts(number, one)) for one in dict.fromkeys(keys)]
        places = [place for place in places if place >= 0]
        details = [(said or {}).get("detail"), *_details(written)]
        return {
            "evidence": clean(said["evidence"]) if said and said["evidence"] else None,
            "detail": clean("; ".join(filter(None, details))) or None,
            "answer": places[0] if places else -1,
            "more": places[1:] or None,
        }

    def _repaired(self, said: Row) -> list[str]:
        """The requests about a pair, that whose answer counted first."""
        keys = _keys(said)
        again = [self.answers.repairs[key] for key in keys if key in self.answers.repairs]
        return [*again, *keys] if "repaired" in (said["detail"] or "") else [*keys, *again]

    def _texts(self, number: int, key: str) -> list[Text]:
        """The texts that may stand in a request's messages."""
        positives = [self.places.name(row[0]) for row in self.browser["queries"]["positives"][number]]
        docs = dict.fromkeys([*self.known.shown.get(key, []), *positives])
        found = [Text("p", self.places[doc], clean(self.texts[doc])) for doc in docs if doc in self.texts]
        return [*found, Text("q", number, self.browser["queries"]["text"][number])]


def _details(written: Row | None) -> list[str]:
    if written is None:
        return []
    named = [f"{name}: {written[name]}" for name in ("facet", "change") if written[name]]
    return [*named, written["detail"] or ""]
