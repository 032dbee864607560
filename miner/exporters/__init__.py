"""Exporters write training files in one trainer's form, streaming, whole or not at all.

What they get is blocks: some queries with their positives and negatives as arrays of row numbers, so that texts are
gathered column by column and nothing is made once per triple.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from miner.config import Export
from miner.records import TEXT
from miner.shingles import ranges, spans

Array = np.ndarray[Any, Any]
ITEMS = 1 << 14  # positives and negatives of a block at most, unless one query alone has more

FORMATS = {
    "flagembedding": "miner.exporters.flagembedding",
    "flagembedding-reranker": "miner.exporters.flagembedding",
    "flagembedding-m3": "miner.exporters.flagembedding",
    "st-triplet": "miner.exporters.sentence_transformers",
    "st-ntuple": "miner.exporters.sentence_transformers",
    "st-labeled-pair": "miner.exporters.sentence_transformers",
    "st-labeled-list": "miner.exporters.sentence_transformers",
    "st-scored-pair": "miner.exporters.sentence_transformers",
    "st-scored-list": "miner.exporters.sentence_transformers",
    "tevatron": "miner.exporters.tevatron",
    "tevatron-legacy": "miner.exporters.tevatron",
    "beir": "miner.exporters.beir",
    "parquet": "miner.exporters.plain",
}


class Passages:
    """Texts by row number: the corpus first, then what was written. Ids are unique."""

    def __init__(self, corpus: pa.Table, written: pa.Table | None = None) -> None:
        """Both with doc_id, title and text."""
        self.corpus_size = corpus.num_rows
        names = ("doc_id", "title", "text")
        tables = [table.select(names) for table in (corpus, written) if table is not None]
        self._ids, self._titles, self._texts = (
            pa.chunked_array([chunk for table in tables for chunk in table.column(name).chunks], TEXT).combine_chunks()
            for name in names
        )
        self.titled = bool(pc.any(pc.not_equal(self._titles, "")).as_py())

    def __len__(self) -> int:
        return len(self._ids)

    def rows(self, doc_ids: pa.Array | pa.ChunkedArray) -> Array:
        """int64[n]: the row of each id, all of them known. Costs a pass over all ids: call it seldom, with many."""
        found = pc.index_in(doc_ids, value_set=self._ids)
        assert not found.null_count, "decisions are made of the corpus and of what was written"
        return np.asarray(found.to_numpy(zero_copy_only=False), np.int64)

    def ids(self, rows: Array) -> pa.Array:
        return self._ids.take(pa.array(rows))

    def titles(self, rows: Array) -> pa.Array:
        return self._titles.take(pa.array(rows))

    def bodies(self, rows: Array) -> pa.Array:
        return self._texts.take(pa.array(rows))

    def texts(self, rows: Array) -> pa.Array:
        """Large strings, as the encoder read them: `records.passage_text`, column by column."""
        bodies = self.bodies(rows)
        if not self.titled:
            return bodies
        titles = self.titles(rows)
        joined = pc.binary_join_element_wise(titles, bodies, pa.scalar(" ", TEXT))
        return pc.if_else(pc.equal(titles, ""), bodies, joined)


@dataclass(frozen=True)
class Side:
    """The positives, or the negatives, of a block: parallel arrays.

    query: int64[n], ascending, number of the query in the block; within a query best first, or in slot order. row:
    int64[n] into Passages. score, teacher: float64[n], the chosen score on the chosen scale, and the teacher's raw
    logit (NaN where there is none). info: n rows, what else is known of them.
    """

    query: Array
    row: Array
    score: Array
    teacher: Array
    info: pa.Table

    def offsets(self, queries: int) -> Array:
        """int64[queries + 1]: query i owns the rows offsets[i]:offsets[i + 1]."""
        return np.searchsorted(self.query, np.arange(queries + 1))

    def some(self, start: int, stop: int, first: int) -> Side:
        """The rows start:stop, their queries counted from `first`."""
        at = slice(start, stop)
        info = self.info.slice(start, stop - start)
        return Side(self.query[at] - first, self.row[at], self.score[at], self.teacher[at], info)


@dataclass(frozen=True)
class Block:
    """Some queries in order. ids, queries: large strings, the query's id and text. lost: items set aside, by reason."""

    ids: pa.Array
    queries: pa.Array
    positives: Side
    negatives: Side
    passages: Passages
    lost: dict[str, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.ids)

    def cut(self) -> Iterator[Block]:
        """The same queries in blocks of at most ITEMS passages, or one query; an empty block where all were lost."""
        if not len(self) and self.lost:
            yield self
        sides = [side.offsets(len(self)) for side in (self.positives, self.negatives)]
        for some in spans(np.diff(sides[0]) + np.diff(sides[1]), ITEMS):
            low, high = some.start, some.stop
            yield replace(
                self,
                ids=self.ids.slice(low, high - low),
                queries=self.queries.slice(low, high - low),
                positives=self.positives.some(sides[0][low], sides[0][high], low),
                negatives=self.negatives.some(sides[1][low], sides[1][high], low),
                lost=self.lost if low == 0 else {},
            )

    def pairs(self) -> tuple[Array, Array]:
        """int64[t] twice: each positive with each negative of its query, as rows of the two sides, in order."""
        offsets = self.negatives.offsets(len(self))
        starts, counts = offsets[self.positives.query], np.diff(offsets)[self.positives.query]
        return np.repeat(np.arange(len(counts)), counts), ranges(starts, counts)


class Line(NamedTuple):
    """One query with lists of positives and negatives."""

    query_id: str
    query: str
    positives: slice
    negatives: slice


def lines(block: Block, settings: Export) -> Iterator[Line]:
    """One a query, or one a positive where the job file says so. The slices are rows of the block's sides."""
    positives, negatives = (side.offsets(len(block)).tolist() for side in (block.positives, block.negatives))
    for i, (query_id, query) in enumerate(zip(block.ids.to_pylist(), block.queries.to_pylist(), strict=True)):
        mine = slice(negatives[i], negatives[i + 1])
        start, stop = positives[i], positives[i + 1]
        step = 1 if settings.positives == "each" else max(1, stop - start)
        for at in range(start, stop, step):
            yield Line(query_id, query, slice(at, at + step), mine)


Blocks = Callable[[], Iterator[Block]]


@dataclass(frozen=True)
class Plan:
    """What an exporter is given. splits: "train", and "dev" where some queries are held out.

    wanted: negatives that were wanted of each query. taught: every exported passage has a teacher score.
    """

    splits: dict[str, Blocks]
    passages: Passages
    folder: Path
    settings: Export
    wanted: int
    taught: bool = False


class File(NamedTuple):
    """For the data card: a configuration of the data set, its split, the pattern of the files below the folder."""

    name: str
    split: str
    pattern: str
    rows: int


class Written(NamedTuple):
    """counts: for the manifest."""

    counts: dict[str, int]
    files: list[File]


Exporter = Callable[[str, Plan], Written]


def get(name: str) -> Exporter:
    exporter: Exporter = importlib.import_module(FORMATS[name]).write
    return exporter
