"""The best inner products, the same to the byte whatever is searched together.

faiss multiplies matrices, and the last bits of such a product hang on the shape of both. So what it finds is scored
anew, one pair at a time; and where a row that it did not give could belong to the best by those last bits, the query is
searched for again, longer. A query then has one list, alone or in a block, on one thread or many, over all vectors or
over shards that are merged.
"""

from __future__ import annotations

from typing import Any

import faiss
import numpy as np

from miner import ranking
from miner.searchers import Array

_faiss: Any = faiss  # whose type stubs lack some functions
SPARE = 8  # rows fetched beyond those wanted: mostly enough to see that nothing else can belong to them
# Fewer queries are compared pair by pair. faiss 1.15 does so below some 340, an eighth as fast as a matrix product.
_faiss.cvar.distance_compute_blas_threshold = 20


def nearest(block: Array, vectors: Array, k: int) -> tuple[Array, Array]:
    """block: float32[b, d], vectors: float32[n, d], of norm 1 at most -> the min(k, n) best of each query.

    Scores float32[b, min(k, n)], descending, and rows int64; ties go to the lowest row.
    """
    size = min(k, len(vectors))
    scores, rows = np.empty((len(block), size), np.float32), np.empty((len(block), size), np.int64)
    unsure, fetched = np.arange(len(block)), min(size + SPARE, len(vectors))
    while size and len(unsure):
        some = np.ascontiguousarray(block[unsure])
        found, near = faiss.knn(some, vectors, fetched, metric=faiss.METRIC_INNER_PRODUCT)
        exact = rescored(some, vectors, near)
        exact, near = ranking.best_first(exact, near)
        scores[unsure], rows[unsure] = exact[:, :size], near[:, :size]
        if fetched == len(vectors):
            break
        unsure = unsure[found[:, -1] + _rounding(some) >= scores[unsure, -1]]
        fetched = min(2 * fetched, len(vectors))
    return scores, rows


def _rounding(block: Array) -> Array:
    """float32[b]: how far two ways of summing one inner product in float32 can lie apart.

    Each is off by at most d * 2^-24 * |query| * |passage|, in whatever order it adds (Higham 2002, section 3.1).
    """
    return np.asarray(block.shape[1] * 2.0**-23 * np.linalg.norm(block, axis=1), np.float32)


def rescored(block: Array, vectors: Array, rows: Array) -> Array:
    """float32[b, w]: the inner products of each query with its rows, int64[b, w]; -inf for a row of -1."""
    rows = np.ascontiguousarray(rows)
    scores = np.empty(rows.shape, np.float32)
    if rows.size:
        pointers = (faiss.swig_ptr(a) for a in (scores, block, vectors, rows))
        _faiss.fvec_inner_products_by_idx(*pointers, block.shape[1], *rows.shape)
    return scores


def probes(index: Any, block: Array, count: int) -> tuple[Array, Array]:
    """The `count` lists of an IVF whose centroids are nearest: scores float32[b, count], list numbers int64."""
    held = _faiss.downcast_index(index.quantizer)
    return nearest(block, faiss.rev_swig_ptr(held.get_xb(), index.nlist * index.d).reshape(index.nlist, index.d), count)


def listed(index: Any, block: Array, k: int) -> tuple[Array, Array]:
    """block: float32[b, index.d] -> the k best of an IVF by its own score, ties to the lowest row: as `nearest`.

    -1 (score -inf) where its index.nprobe nearest lists hold fewer. Lists in which a tie runs over the end are asked
    for again, longer.
    """
    near, lists = probes(index, block, index.nprobe)
    scores, rows = np.empty((len(block), k), np.float32), np.empty((len(block), k), np.int64)
    unsure, fetched = np.arange(len(block)), min(k + SPARE, index.ntotal)
    while k and len(unsure):
        found, row = index.search_preassigned(block[unsure], fetched, lists[unsure], near[unsure])
        found[row < 0] = -np.inf
        order = np.lexsort((row, -found))[:, :k]
        scores[unsure], rows[unsure] = np.take_along_axis(found, order, 1), np.take_along_axis(row, order, 1)
        if fetched == index.ntotal:
            break
        unsure = unsure[(row[:, -1] >= 0) & (found[:, -1] == scores[unsure, -1])]
        fetched = min(2 * fetched, index.ntotal)
    return scores, rows


def unpacked(packed: Array) -> Any:
    """The index of faiss.serialize_index, uint8[n], as one of its own class."""
    whole = faiss.deserialize_index(np.array(packed))
    index = _faiss.downcast_index(whole)
    index.referenced_objects = [whole]  # which owns what both point to
    return index
