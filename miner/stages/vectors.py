"""Encode what the vector cache lacks.

The texts are put in one order (longest first, then by key) and cut into fixed chunks, one shard each. Chunks are cut
before the cache is asked, so a run that was killed and started again encodes the same batches as one that was not.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa

from miner.chunks import cut, lengths_of
from miner.encoders import Encoder, Kind, Paid, Vectors
from miner.records import texts
from miner.vector_cache import VectorCache

Array = np.ndarray[Any, Any]


def run(
    table: pa.Table, keys: Array, kind: Kind, encoder: Encoder, cache: VectorCache, tick: Callable[[int], None]
) -> int:
    """Bring the vector of every row into the cache. keys: S16[n]. Returns the number of texts encoded."""
    encoded = 0
    lengths = lengths_of(table)
    for rows in cut(lengths, keys, encoder.chunk_texts if isinstance(encoder, Paid) else None):
        lacking = rows[cache.missing(keys[rows])]
        if len(lacking):
            chosen = list(texts(table, lacking.tolist()))
            if isinstance(encoder, Paid):
                _keep_each(encoder, chosen, kind, keys[lacking], cache)
            else:
                cache.append(keys[lacking], encoder.encode(chosen, kind))
            encoded += len(lacking)
        tick(len(rows))
    cache.refresh()
    return encoded


def _keep_each(encoder: Paid, chosen: list[str], kind: Kind, keys: Array, cache: VectorCache) -> None:
    """One shard of every reply there is, whatever stopped the others: what was paid for is not asked again."""
    found: dict[int, Vectors] = {}
    try:
        encoder.encode_each(chosen, kind, lambda rows, vectors: found.update(zip(rows, vectors, strict=True)))
    finally:
        if found:
            rows = sorted(found)
            cache.append(keys[rows], np.stack([found[row] for row in rows]))
