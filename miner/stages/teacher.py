"""Score what the cache of teacher scores lacks.

A score is a vector of one dimension, kept by the content of its pair. The distinct pairs are cut into fixed chunks, one
shard each, before the cache is asked: a run that was killed loses at most one chunk, and started again it scores the
same batches as one that was not.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from miner.chunks import each
from miner.errors import UserError
from miner.teachers import Teacher
from miner.vector_cache import KEY, VectorCache

# Minutes of work on a slow machine, a second on a fast one; a shard is a file, so the chunks of a large call grow.
CHUNK_PAIRS = 1024
MOST_CHUNKS = 256
# Pairs whose texts are in memory while keys are computed.
BLOCK = 4096
Array = np.ndarray[Any, Any]
# The texts of the given rows, in that order; `partial(records.texts, table)` is one.
Texts = Callable[[list[int]], Iterable[str]]


def keys(query_texts: Texts, passage_texts: Texts, pairs: Array) -> Array:
    """S16[n]: the key of each pair. pairs: int64[n, 2], row numbers of query and passage."""
    out = np.empty(len(pairs), KEY)
    for start in range(0, len(pairs), BLOCK):
        block = pairs[start : start + BLOCK]
        out[start : start + len(block)] = [key(*pair) for pair in _read(query_texts, passage_texts, block)]
    return out


def key(query: str, passage: str) -> bytes:
    """BLAKE2b-128 of both texts; the query's length in front keeps ("ab", "c") and ("a", "bc") apart."""
    first = query.encode()
    return hashlib.blake2b(len(first).to_bytes(8, "little") + first + passage.encode(), digest_size=16).digest()


def run(
    query_texts: Texts,
    passage_texts: Texts,
    pairs: Array,
    keys: Array,
    teacher: Teacher,
    cache: VectorCache,
    tick: Callable[[int], None],
) -> int:
    """Bring the score of every pair into the cache. Returns the number of pairs scored.

    pairs: int64[n, 2], row numbers of query and passage; keys: S16[n], those of `keys`. `tick` is called with the
    number of distinct pairs of each chunk, cached ones too.
    """
    done: list[tuple[int, Array]] = []  # of each chunk that was handed out: its pairs, and the rows that lack

    def lacking() -> Iterator[tuple[list[tuple[str, str]]]]:
        for rows in chunks(keys):
            some = rows[cache.missing(keys[rows])]
            if not len(some):
                tick(len(rows))
                continue
            done.append((len(rows), some))
            yield (list(_read(query_texts, passage_texts, pairs[some])),)

    scored = 0
    for number, scores in each(teacher, "score", lacking()):
        size, some = done[number]
        cache.append(keys[some], np.asarray(scores, np.float32).reshape(len(some), 1))
        scored += len(some)
        tick(size)
    if scored:
        cache.refresh()
    return scored


def gather(keys: Array, cache: VectorCache) -> Array:
    """float32[n]: the raw logit of each key, all of which `run` must have brought in. Raises UserError otherwise."""
    lost = int(cache.missing(keys).sum())
    if lost:
        raise UserError(f"{lost} of {len(keys)} teacher scores are no longer in the cache; start the run again")
    out = np.empty((len(keys), 1), np.float32)
    cache.gather(keys, out)
    return out[:, 0]


def chunks(keys: Array) -> list[Array]:
    """Row numbers of the distinct keys, in the order of their first rows, in chunks of one size."""
    first = np.sort(np.unique(keys, return_index=True)[1])
    size = max(CHUNK_PAIRS, -(-len(first) // MOST_CHUNKS))
    return [first[start : start + size] for start in range(0, len(first), size)]


def _read(query_texts: Texts, passage_texts: Texts, pairs: Array) -> Iterator[tuple[str, str]]:
    return zip(_texts(query_texts, pairs[:, 0]), _texts(passage_texts, pairs[:, 1]), strict=True)


def _texts(read: Texts, rows: Array) -> Iterator[str]:
    """The text of each row; a text that many pairs share is read once."""
    distinct, place = np.unique(rows, return_inverse=True)
    found = list(read(distinct.tolist()))
    return (found[at] for at in place.tolist())
