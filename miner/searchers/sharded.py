"""The dense index in shards, each the passages low..high: the lists of all together are those of the one index.

Exact search: every shard's best, scored as the one index scores. IVF: every shard has the same centroids and codes, so
it finds its share of what the one index finds, and the best `wanted` of all shares by the index's own score are the
one index's list.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import faiss
import numpy as np

from miner.config.mining import Index
from miner.searchers import Array, dense, exact, ivf_files

KINDS = ("flat", "ivf-flat", "ivf-pq")


class Part(NamedTuple):
    """Of b queries: passage rows int64[b, w], -1 where there are fewer; float32[b, w]: the index's own score, by which
    each list is sorted, and the exact inner product."""

    row: Array
    found: Array
    score: Array


class Shard:
    """vectors: float32[high - low, d], of the passages from `low`, a memmap too; index: see `cut`."""

    def __init__(self, low: int, vectors: Array, index: Any, width: int, effort: int, threads: int) -> None:
        # A memmap stays one: no copy.
        self._low, self._vectors = low, np.ascontiguousarray(vectors, np.float32)
        self._index, self._width, self._threads = index, width, threads
        if self._index is not None:
            self._index.nprobe = effort

    def search(self, block: Array, wanted: int, exactly: bool) -> Part:
        """block: float32[b, d], query vectors."""
        faiss.omp_set_num_threads(self._threads)
        size = min(wanted, len(self._vectors))
        if self._index is None or exactly:
            score, row = exact.nearest(block, self._vectors, size)
            return Part(row + self._low, score, score)
        found, row = exact.listed(self._index, dense.padded(block, self._width), size)
        return Part(row, found, exact.rescored(block, self._vectors, np.where(row < 0, -1, row - self._low)))


def cut(folder: Path, choice: dense.Choice, low: int, high: int) -> Any:
    """The rows low..high of the index of `folder`, in memory; None of a flat one, which has no file."""
    return None if choice.kind == "flat" else ivf_files.cut(folder / dense.FILE, low, high)


def packed(index: Any) -> Array | None:
    """uint8[n], for exact.unpacked; None of None."""
    return None if index is None else np.asarray(faiss.serialize_index(index))


def bounds(rows: int, shards: int) -> Iterator[tuple[int, int]]:
    """low and high of each shard, none empty."""
    edges = np.linspace(0, rows, max(1, min(shards, rows)) + 1).astype(int).tolist()
    return pairwise(edges)


def wanted(k: int, rows: int, choice: dense.Choice, settings: Index) -> tuple[int, bool]:
    """How many a query are asked of each shard for k of `rows`, and whether by exact search, as the one index does."""
    if choice.kind == "flat" or dense.ENOUGH * k >= rows:
        return min(k, rows), True
    return min(k * (settings.refine if choice.kind == "ivf-pq" else 1), rows), False


def merged(wanted: int, *parts: Part) -> Part:
    """The best of all parts. The order of the parts, and merging some of them first, change nothing."""
    return best(Part(*(np.concatenate(columns, axis=1) for columns in zip(*parts, strict=True))), wanted)


def best(part: Part, wanted: int) -> Part:
    """The `wanted` best by the index's own score, ties by row."""
    order = np.lexsort((part.row, -part.found))[:, :wanted]
    return Part(*(np.take_along_axis(column, order, 1) for column in part))


def final(part: Part, k: int) -> tuple[Array, Array]:
    """Scores float32[b, k] and rows int64[b, k] as a Searcher gives them."""
    order = np.lexsort((part.row, -part.score))[:, :k]
    ends: Any = ((0, 0), (0, k - order.shape[1]))
    scores = np.pad(np.take_along_axis(part.score, order, 1), ends, constant_values=-np.inf)
    return scores, np.pad(np.take_along_axis(part.row, order, 1), ends, constant_values=-1)
