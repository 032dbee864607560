"""Codes of 4 bits for every 4 dimensions, all compared with each query, 32 at a time in the processor's registers.

Source: Andre, Kermarrec and Le Scouarnec 2017, "Accelerated nearest neighbor search with Quick ADC"; faiss's
IndexPQFastScan. Unlike lists it needs no structure in the vectors: its cost is the same share of exact search on all.
"""

from __future__ import annotations

from typing import Any

import faiss
import numpy as np

from miner.searchers import Array

DIMENSIONS, CENTROIDS, ROUNDS = 4, 16, 10
SAMPLE = 1 << 14  # vectors that train it
MOST = 64  # times the wanted passages: to score so many exactly costs more than exact search


def sizes(dimension: int) -> tuple[int, int]:
    """(bytes of a code, dimension padded with zeros)."""
    groups = -(-dimension // DIMENSIONS)
    return -(-groups // 2), groups * DIMENSIONS


def trained(sample: Array, seed: int) -> Any:
    """sample: float32[n, width] -> an index without rows. On one thread the same input gives the same bytes."""
    width = int(sample.shape[1])
    index = faiss.IndexPQFastScan(width, width // DIMENSIONS, 4, faiss.METRIC_INNER_PRODUCT)
    index.pq.cp.seed = seed
    index.pq.cp.niter, index.pq.cp.max_points_per_centroid = ROUNDS, SAMPLE // CENTROIDS
    index.train(sample)
    return index


def nearest(index: Any, block: Array, k: int) -> Array:
    """block: float32[b, width] -> rows int64[b, k] of the best codes, -1 in place of some at the end.

    Which of the rows that tie at the end faiss gives is chance, so all of them are left out: a query has one list,
    whatever is searched together.
    """
    found, rows = index.search(block, k)
    return np.where(found > found[:, -1:], rows, -1) if k < index.ntotal else rows
