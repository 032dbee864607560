"""MaxSim: each token of the query takes its nearest token of the passage, and the mean of these is the score.

This is BGE-M3's multi-vector score (ColBERT's, divided by the query's tokens). There is no index here: it ranks again
what other retrievers found.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from miner.ragged_cache import Ragged
from miner.searchers import Array

# Passages whose token vectors are read at once: 128 of 512 tokens in 1024 dimensions are 128 MiB as float16.
PASSAGES = 128
# Row numbers int64[n], distinct and ascending -> their token vectors, in that order.
Getter = Callable[[Array], Ragged]


def scores(queries: Ragged, passages: Ragged, pairs: Array) -> Array:
    """float32[m] for pairs int64[m, 2] of (query row, passage row) in the two ragged arrays float16[total, d].

    The products are float32. A score depends on its two rows alone, not on what else is asked for. A query or a passage
    without tokens scores 0.
    """
    out = np.zeros(len(pairs), np.float32)
    last, query = -1, np.empty((0, 0), np.float32)
    for at, (row, passage) in enumerate(pairs.tolist()):
        if row != last:
            last, query = row, _tokens(queries, row)
        found = _tokens(passages, passage)
        if len(query) and len(found):
            out[at] = (query @ found.T).max(1).sum() / len(query)
    return out


def rescore(query_rows: Array, passage_rows: Array, queries: Getter, passages: Getter) -> Array:
    """float32[n]: the score of (query_rows[i], passage_rows[i]), both int64[n]; reads a bounded number of rows at once.

    Pairs of the same query should stand together, for each is read once for every PASSAGES pairs of the list.
    """
    out = np.empty(len(query_rows), np.float32)
    for start in range(0, len(query_rows), PASSAGES):
        part = slice(start, start + PASSAGES)
        asked, query_places = np.unique(query_rows[part], return_inverse=True)
        found, passage_places = np.unique(passage_rows[part], return_inverse=True)
        pairs = np.stack([query_places, passage_places], axis=1)
        out[part] = scores(queries(asked), passages(found), pairs)
    return out


def _tokens(some: Ragged, row: int) -> Array:
    return some.values[some.offsets[row] : some.offsets[row + 1]].astype(np.float32)
