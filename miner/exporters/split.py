"""Hold out whole clusters of queries, so that nothing that training has seen stands in the dev files.

Two queries are of one cluster where they share a positive, or where their sets of words are alike (Jaccard similarity
of at least LIKE), or through a chain of such queries. Like sets are found exactly by prefix filtering (Chaudhuri et
al., "A primitive operator for similarity joins in data cleaning", ICDE 2006): with words ordered from rare to frequent,
two sets that reach the threshold share one of their first n - ceil(LIKE * n) + 1 words.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from miner.ranking import mix, position
from miner.records import content_id, fold
from miner.shingles import Ragged, pair_jaccard, ranges, spans, words

Array = np.ndarray[Any, Any]
LIKE = 0.8
PAIRS = 1 << 20  # pairs that are compared at once


def clusters(texts: Sequence[str], owner: Array, positive: Array) -> Array:
    """int64[n]: the number of each query's cluster. owner, positive: int64[m], query i has the passage of that row."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components  # a tenth of a second

    size = len(texts)
    left, right = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    order = np.argsort(positive, kind="stable")
    same = positive[order][1:] == positive[order][:-1]
    left.append(owner[order][:-1][same])
    right.append(owner[order][1:][same])
    sets, first = _sets(texts)
    left.append(np.arange(size))
    right.append(first)
    for a, b in _alike(sets, np.unique(first)):
        left.append(a)
        right.append(b)
    a, b = np.concatenate(left), np.concatenate(right)
    graph = coo_array((np.ones(len(a), np.int8), (a, b)), shape=(size, size))
    return np.asarray(connected_components(graph, directed=False)[1], np.int64)


def _sets(texts: Sequence[str]) -> tuple[Ragged, Array]:
    """The words of each text as numbers, rare ones smallest; and the first text that has the same set."""
    split = [sorted(set(words(text))) or [f" {fold(text)}"] for text in texts]
    sizes = np.array([len(row) for row in split], np.int64)
    coded = pa.array([word for row in split for word in row], pa.large_string()).dictionary_encode()
    codes = coded.indices.to_numpy().astype(np.int64)
    counts = np.bincount(codes, minlength=len(coded.dictionary))
    rank = np.empty(len(counts), np.int64)
    rank[np.argsort(counts, kind="stable")] = np.arange(len(counts))
    row = np.repeat(np.arange(len(texts)), sizes)
    values = rank[codes]
    values = values[np.lexsort((values, row))].astype(np.uint64)
    offsets = np.r_[0, np.cumsum(sizes)]
    seen: dict[bytes, int] = {}
    first = [seen.setdefault(values[offsets[i] : offsets[i + 1]].tobytes(), i) for i in range(len(texts))]
    return Ragged(values, offsets), np.array(first, np.int64)


def _alike(sets: Ragged, rows: Array) -> Iterator[tuple[Array, Array]]:
    """Pairs of `rows`, whose sets are distinct, with a similarity of at least LIKE."""
    sizes = sets.sizes[rows]
    kept = sizes - np.ceil(LIKE * sizes - 1e-9).astype(np.int64) + 1
    owner = np.repeat(rows, kept)
    word = sets.values[ranges(sets.offsets[rows], kept)].astype(np.int64)
    order = np.lexsort((owner, sets.sizes[owner], word))
    owner, word = owner[order], word[order]
    size = sets.sizes[owner]
    # Of the same word, later sets are as large or larger; one that is too large can not be alike.
    largest = np.floor(size / LIKE + 1e-9).astype(np.int64)
    key = word * (int(size.max(initial=0)) + 1)
    stop = np.searchsorted(key + size, key + np.minimum(largest, int(size.max(initial=0))), side="right")
    start = np.arange(len(owner)) + 1
    count = np.maximum(stop - start, 0)
    for some in spans(count, PAIRS):
        a = np.repeat(owner[some], count[some])
        b = owner[ranges(start[some], count[some])]
        hit = pair_jaccard(sets, a, sets, b) >= LIKE
        yield a[hit], b[hit]


def held_out(ids: Sequence[str], cluster: Array, share: float, seed: int) -> Array:
    """bool[n]: whole clusters in random order, each taken that does not bring the held out above `share` of queries.

    The order depends on the seed and each cluster's smallest id alone. All queries in one cluster: nothing is taken.
    """
    order = np.lexsort((np.array(ids, object), cluster)) if len(ids) else np.empty(0, np.int64)
    heads = order[position(cluster[order]) == 0]
    size = np.bincount(cluster) if len(ids) else np.empty(0, np.int64)
    hashes = np.array([int(content_id(ids[i]), 16) for i in heads], np.uint64)
    tickets = mix(hashes + np.uint64(seed))
    room = int(share * len(ids))
    chosen = np.zeros(len(size), bool)
    for i in np.argsort(tickets, kind="stable"):
        number = cluster[heads[i]]
        if size[number] <= room:
            chosen[number] = True
            room -= int(size[number])
    return np.asarray(chosen[cluster], bool)
