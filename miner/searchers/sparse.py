"""Lexical matching over learned token weights: the score of a query and a passage is the sum, over the tokens that both
have, of the product of their weights (BGE-M3's sparse output). Exact, by an inverted index.

The index is cut into blocks of passages: a block's scores stay in the processor's cache, and only one block at a time
is turned from rows of tokens into lists of passages. It takes 8 bytes for each token of each passage.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from miner.ragged_cache import Ragged, spread
from miner.searchers import Array

BLOCK = 65_536


class Block(NamedTuple):
    """Passages first, first + 1, …: tokens[i] is in rows[cuts[i]:cuts[i + 1]] (counted from first), so weighted."""

    first: int
    size: int
    tokens: Array
    cuts: Array
    rows: Array
    weights: Array


class SparseSearcher:
    """Implements Searcher; queries are named by their row numbers in the ragged array that `build` was given."""

    def __init__(self, blocks: list[Block], queries: Ragged) -> None:
        self._blocks = blocks
        self._queries = queries

    def search(self, queries: Array, k: int) -> tuple[Array, Array]:
        """queries: int64[b] -> scores float32[b, k], descending, and passage rows int64[b, k].

        Sums are made in float64. Ties go to the lower row. Passages that share no weighted token with the query are
        never returned: -1 and -inf stand where fewer than k others are left.
        """
        scores = np.full((len(queries), k), -np.inf, np.float32)
        rows = np.full((len(queries), k), -1, np.int64)
        for at, query in enumerate(np.asarray(queries).tolist()):
            best, found = self._one(query, k)
            scores[at, : len(best)] = best
            rows[at, : len(found)] = found
        return scores, rows

    def _one(self, query: int, k: int) -> tuple[Array, Array]:
        own = self._queries.values[self._queries.offsets[query] : self._queries.offsets[query + 1]]
        best, found = np.empty(0, np.float32), np.empty(0, np.int64)
        for block in self._blocks:
            scores = _scores(block, own)
            # What only equals the k-th best of the blocks before loses the tie by its row.
            rows = np.flatnonzero(scores > (best[-1] if len(best) == k else 0))
            if len(rows):
                best, found = _best(
                    np.concatenate([best, scores[rows]]), np.concatenate([found, rows + block.first]), k
                )
        return best, found


def build(passages: Iterable[Ragged], queries: Ragged, n_passages: int) -> SparseSearcher:
    """passages: SPARSE rows, in blocks that follow each other in the corpus's order; a whole corpus may be one block.

    queries: SPARSE rows. Raises ValueError where the blocks do not hold n_passages rows together.
    """
    blocks = []
    first = 0
    for part in (piece for given in passages for piece in _pieces(given)):
        blocks.append(_invert(part, first))
        first += blocks[-1].size
    if first != n_passages:
        raise ValueError(f"{first} passages in place of {n_passages}")
    return SparseSearcher(blocks, queries)


def _pieces(given: Ragged) -> Iterator[Ragged]:
    for start in range(0, len(given.offsets) - 1, BLOCK):
        cuts = given.offsets[start : start + BLOCK + 1]
        yield Ragged(given.values[cuts[0] : cuts[-1]], cuts - cuts[0])


def _invert(part: Ragged, first: int) -> Block:
    count = len(part.offsets) - 1
    order = np.argsort(part.values["token"], kind="stable")
    tokens, starts = np.unique(part.values["token"][order], return_index=True)
    rows = np.repeat(np.arange(count, dtype=np.int32), np.diff(part.offsets))[order]
    cuts = np.append(starts, len(order))
    return Block(first, count, tokens, cuts, rows, part.values["weight"][order])


def _scores(block: Block, query: Array) -> Array:
    """float32[block.size]"""
    if not len(block.tokens):
        return np.zeros(block.size, np.float32)
    at = np.minimum(np.searchsorted(block.tokens, query["token"]), len(block.tokens) - 1)
    shared = block.tokens[at] == query["token"]
    lengths = np.diff(block.cuts)[at[shared]]
    places = spread(block.cuts[at[shared]], lengths)
    products = np.repeat(query["weight"][shared].astype(np.float64), lengths) * block.weights[places]
    return np.bincount(block.rows[places], products, block.size).astype(np.float32)


def _best(scores: Array, rows: Array, k: int) -> tuple[Array, Array]:
    """The k highest scores, descending, ties by row."""
    if len(scores) > k:
        least = np.partition(scores, len(scores) - k)[len(scores) - k]
        kept = scores >= least
        scores, rows = scores[kept], rows[kept]
    order = np.lexsort((rows, -scores))[:k]
    return scores[order], rows[order]
