"""The part of a report in which every decision can be looked up: columns of all candidates, still without texts."""

from __future__ import annotations

import json
import zlib
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from miner.records import TEXT
from miner.report import read as report_read
from miner.report.choice import Choice
from miner.report.prompts import clean
from miner.report.read import Found

Array = np.ndarray[Any, Any]
Row = dict[str, Any]
COLUMNS = [
    *("query_id", "doc_id", "source", "retriever", "rank", "score", "to_positive", "teacher_score"),
    *("found_by", "band"),
    *("grade", "verdict", "status", "rung", "kept", "reason", "slot"),
]
QUERY_CHARS = 1_500_000
WORDS = ("source", "reason", "status", "verdict", "rung", "band")


class Places:
    """Passages in the order of their first use, by id."""

    def __init__(self) -> None:
        self._place: dict[str, int] = {}
        self._name: list[str] = []

    def __getitem__(self, doc_id: str) -> int:
        if doc_id not in self._place:
            self._place[doc_id] = len(self._name)
            self._name.append(doc_id)
        return self._place[doc_id]

    def ids(self) -> list[str]:
        return list(self._name)

    def name(self, place: int) -> str:
        return self._name[place]


class Meter:
    """How many bytes values take in the page, compressed as there; `left` of `room`."""

    def __init__(self, room: int) -> None:
        self.left = room
        self._squeeze = zlib.compressobj(6)

    def take(self, *values: Any) -> bool:
        """Is there room for them still? They count as taken all the same."""
        text = "".join(dumped(value) for value in values).encode()
        self.left -= len(self._squeeze.compress(text)) + len(self._squeeze.flush(zlib.Z_SYNC_FLUSH))
        return self.left >= 0


def dumped(value: Any) -> str:
    """JSON as the page holds it."""
    return json.dumps(value, separators=(",", ":"), allow_nan=False)


def size(value: Any) -> int:
    """Bytes of a value, compressed as in the page."""
    return len(zlib.compress(dumped(value).encode(), 6))


# ---------------------------------------------------------------- numbers


class Numbers(NamedTuple):
    """The part without texts. table: the candidates in the page's order; query: int64[n], the place of each one's."""

    browser: Row
    table: pa.Table
    query: Array
    places: Places


def numbers(found: Found, choice: Choice) -> Numbers:
    """Candidates, queries and positives of the chosen queries; no text but those of queries."""
    table, query = _gathered(found, choice.ids)
    places = Places()
    words: dict[str, list[str]] = {}
    candidates: Row = {"query": query.tolist(), "passage": [places[i] for i in table.column("doc_id").to_pylist()]}
    for name in WORDS:
        words[name], candidates[name] = _coded(table.column(name))
    candidates |= {"kept": [int(kept) for kept in table.column("kept").to_pylist()]}
    candidates |= {name: pc.fill_null(table.column(name), 0).to_pylist() for name in ("slot", "rank")}
    candidates |= {"score": _rounded(table.column("score")), "teacher": _rounded(table.column("teacher_score"))}
    if table.column("to_positive").null_count < table.num_rows:
        candidates["near"] = _rounded(table.column("to_positive"))
    candidates["grade"] = table.column("grade").to_pylist()
    words["retriever"], candidates["found"] = _found_by(table)
    blank = [None] * table.num_rows
    candidates |= {"evidence": [*blank], "detail": [*blank], "answer": [-1] * table.num_rows, "more": [*blank]}
    queries = {
        "id": [clean(name) for name in choice.ids],
        "text": _query_texts(found, choice),
        "outcome": [clean(word or "exported") for word in choice.outcome],
        "positives": _positives(found, choice.ids, places),
    }
    names = places.ids()
    passages = {"id": [clean(name) for name in names], "text": [None] * len(names)}
    browser = {"words": words, "queries": queries, "passages": passages, "candidates": candidates}
    return Numbers(browser, table, query, places)


def _gathered(found: Found, names: Sequence[str]) -> tuple[pa.Table, Array]:
    """The candidates of these queries, in their order: kept ones by slot, then the others by rank. Column `turn` tells
    apart those of one query that share an id."""
    ids = pa.array(names, TEXT)
    tables = []
    for part in report_read.parts(found, COLUMNS):
        place = pc.index_in(part.column("query_id"), value_set=ids)
        tables.append(part.append_column("place", place).filter(place.is_valid()))
    table = pa.concat_tables(tables)
    table = table.append_column("turn", pa.array(_turns(table)))
    place = table.column("place").to_numpy().astype(np.int64)
    kept = table.column("kept").to_numpy(zero_copy_only=False)
    last = np.iinfo(np.int32).max
    slot, rank = (pc.fill_null(table.column(name), last).to_numpy() for name in ("slot", "rank"))
    order = np.lexsort((np.arange(len(place)), np.where(kept, slot, rank), ~kept.astype(bool), place))
    return table.take(pa.array(order)), place[order]


def _turns(table: pa.Table) -> Array:
    """int64[n]: how many rows of the same query and passage stand before. The generator may write a text twice, whose
    id is made from it; mined passages have one row each."""
    turn, met = np.zeros(table.num_rows, np.int64), Counter[tuple[str, str]]()
    made = np.flatnonzero(pc.equal(table.column("source"), "synthetic").to_numpy(zero_copy_only=False))
    keys = (table.column(name).take(pa.array(made)).to_pylist() for name in ("query_id", "doc_id"))
    for at, key in zip(made, zip(*keys, strict=True), strict=True):
        turn[at] = met[key]
        met[key] += 1
    return turn


def _coded(column: Any) -> tuple[list[str], list[int]]:
    """The different words, "" first, then in order, and the place of each row's."""
    words = ["", *sorted(set(column.unique().to_pylist()) - {None, ""})]
    place = pc.index_in(pc.fill_null(column.cast(pa.string()), ""), value_set=pa.array(words, pa.string()))
    return [clean(word) for word in words], place.to_pylist()


def _rounded(column: Any) -> list[float | None]:
    values = np.round(column.cast(pa.float64()).to_numpy(zero_copy_only=False), 4)
    return [value if finite else None for value, finite in zip(values.tolist(), np.isfinite(values), strict=True)]


def _found_by(table: pa.Table) -> tuple[list[str], list[Any]]:
    """Who found each candidate: [[retriever, rank, score], …] or None."""
    column = table.column("found_by").combine_chunks()
    flat = column.flatten()
    words, place = _coded(pa.chunked_array([flat.field("retriever")]))
    rank, score = flat.field("rank").to_pylist(), _rounded(pa.chunked_array([flat.field("score")]))
    every = [list(one) for one in zip(place, rank, score, strict=True)]
    ends = np.cumsum(pc.fill_null(pc.list_value_length(column), 0).to_numpy()).tolist()
    return words, [every[start:end] or None for start, end in zip([0, *ends], ends, strict=False)]


def _query_texts(found: Found, choice: Choice) -> list[str]:
    """All texts, where they are few; else of the queries whose passages are shown too, and "" of the others."""
    shown = [clean(text) for text in report_read.query_texts(found, choice.ids)]
    if sum(map(len, shown)) <= QUERY_CHARS:
        return shown
    return [text if number < choice.told else "" for number, text in enumerate(shown)]


def _positives(found: Found, ids: list[str], places: Places) -> list[list[list[Any]]]:
    table = report_read.positives(found, ["query_id", "doc_id", "relevance", "score", "teacher_score"])
    at = pc.index_in(table.column("query_id"), value_set=pa.array(ids, TEXT))
    table = table.append_column("at", at).filter(at.is_valid())
    columns = [table.column(name).to_pylist() for name in ("at", "doc_id", "relevance")]
    columns += [_rounded(table.column(name)) for name in ("score", "teacher_score")]
    rows: list[list[list[Any]]] = [[] for _ in ids]
    for place, doc_id, relevance, score, teacher in zip(*columns, strict=True):
        rows[place].append([places[doc_id], relevance, score, teacher])
    return rows
