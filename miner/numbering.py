"""The ids of a job as row numbers: what the stages that work on arrays share.

Row numbers point into the corpus step's tables, which are sorted by id.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from miner.ranking import among
from miner.records import fold, texts

Array = np.ndarray[Any, Any]


class Block(NamedTuple):
    """The queries low..high."""

    low: int
    high: int

    @property
    def size(self) -> int:
        return self.high - self.low


@dataclass(frozen=True)
class Numbered:
    """positives: int64[m, 3], (query row, passage row, relevance), sorted by query, then passage.

    Passages with the same `copy_class` have the same text after case-folding and white space; `query_class` is the
    class of the passages that repeat the query's text, -1 where there are none.
    """

    passages: pa.Table
    queries: pa.Table
    positives: Array
    copy_class: Array
    class_size: Array
    query_class: Array

    @cached_property
    def doc_hash(self) -> Array:
        """uint64[passages]: of the ids."""
        return _hashes(self.passages.column("doc_id").to_pylist())

    @cached_property
    def query_hash(self) -> Array:
        """uint64[queries]: of the ids."""
        return _hashes(self.queries.column("query_id").to_pylist())

    def positives_of(self, block: Block) -> Array:
        """int64[p, 3]: the rows of `positives` of a block, the query counted from block.low."""
        rows = self.positives[slice(*np.searchsorted(self.positives[:, 0], [block.low, block.high]))].copy()
        rows[:, 0] -= block.low
        return rows


def number(passages: pa.Table, queries: pa.Table, qrels: pa.Table, relevant_from: int) -> Numbered:
    hashes = _hashes(fold(text) for text in texts(passages))
    classes, copy_class, class_size = np.unique(hashes, return_inverse=True, return_counts=True)
    query_hashes = _hashes(fold(text) for text in texts(queries))
    at = np.minimum(np.searchsorted(classes, query_hashes), len(classes) - 1)
    return Numbered(
        passages=passages,
        queries=queries,
        positives=_positive_rows(passages, queries, qrels, relevant_from),
        copy_class=copy_class.astype(np.int64),
        class_size=class_size,
        query_class=np.where(classes[at] == query_hashes, at, -1),
    )


def _hashes(words: Iterable[str]) -> Array:
    digests = (hashlib.blake2b(word.encode(), digest_size=8).digest() for word in words)
    return np.frombuffer(b"".join(digests), np.uint64)


def _positive_rows(passages: pa.Table, queries: pa.Table, qrels: pa.Table, relevant_from: int) -> Array:
    query_row = {key: row for row, key in enumerate(queries.column("query_id").to_pylist())}
    doc_row = {key: row for row, key in enumerate(passages.column("doc_id").to_pylist())}
    rows = [
        (query_row[q], doc_row[d], r)
        for q, d, r in zip(*(qrels.column(name).to_pylist() for name in qrels.column_names), strict=True)
        if r >= relevant_from
    ]
    return np.array(sorted(rows), np.int64).reshape(-1, 3)


def are_positive(world: Numbered, positives: Array, query: Array, row: Array) -> tuple[Array, Array]:
    """(bool[n], bool[n]): which pairs are known positives, and which repeat the text of one of their query's."""
    total, classes = len(world.passages), len(world.class_size)
    exact = among(query * total + row, positives[:, 0] * total + positives[:, 1])
    classes_of = world.copy_class[positives[:, 1]]
    if world.class_size[classes_of].max(initial=0) <= 1:  # no positive has a copy
        return exact, exact.copy()
    copies = np.unique(positives[:, 0] * classes + classes_of)
    return exact, among(query * classes + world.copy_class[row], copies)
