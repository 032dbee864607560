"""Encode what the vector cache lacks.

The texts are put in one order (longest first, then by key) and cut into fixed chunks, one shard each. Chunks are cut
before the cache is asked, so a run that was killed and started again encodes the same batches as one that was not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa

from miner.chunks import cut, each, lengths_of
from miner.encoders import Encoder, Kind, Paid, Vectors
from miner.records import texts
from miner.vector_cache import VectorCache

Array = np.ndarray[Any, Any]


def run(
    table: pa.Table, keys: Array, kind: Kind, encoder: Encoder, cache: VectorCache, tick: Callable[[int], None]
) -> int:
    """Bring the vector of every row into the cache. keys: S16[n]. Returns the number of texts encoded.

    encoder: may be a chunks.Many; then several chunks are encoded at once, and only this process writes.
    """
    done: list[tuple[int, Array]] = []  # of each chunk that was handed out: its texts, and the rows that lack

    def lacking() -> Iterator[tuple[list[str], Kind]]:
        for rows in cut(lengths_of(table), keys, encoder.chunk_texts if isinstance(encoder, Paid) else None):
            some = rows[cache.missing(keys[rows])]
            if not len(some):
                tick(len(rows))
                continue
            done.append((len(rows), some))
            yield list(texts(table, some.tolist())), kind

    encoded = 0
    for number, found in _encoded(encoder, lacking(), lambda number: keys[done[number][1]], cache):
        size, some = done[number]
        if found is not None:
            cache.append(keys[some], found)
        encoded += len(some)
        tick(size)
    cache.refresh()
    return encoded


def _encoded(
    encoder: Encoder, chunks: Iterator[tuple[list[str], Kind]], keys: Callable[[int], Array], cache: VectorCache
) -> Iterator[tuple[int, Vectors | None]]:
    """The number of each chunk and its vectors; None of a paid encoder, whose vectors are in the cache already."""
    if not isinstance(encoder, Paid):
        yield from each(encoder, "encode", chunks)
        return
    for number, (chosen, kind) in enumerate(chunks):
        _keep_each(encoder, chosen, kind, keys(number), cache)
        yield number, None


def _keep_each(encoder: Paid, chosen: list[str], kind: Kind, keys: Array, cache: VectorCache) -> None:
    """One shard of every reply there is, whatever stopped the others: what was paid for is not asked again."""
    found: dict[int, Vectors] = {}
    try:
        encoder.encode_each(chosen, kind, lambda rows, vectors: found.update(zip(rows, vectors, strict=True)))
    finally:
        if found:
            rows = sorted(found)
            cache.append(keys[rows], np.stack([found[row] for row in rows]))
