"""Encode what any of BGE-M3's three caches lacks, each text once for all of them.

As in `stages.vectors`, the texts are cut into pieces before the caches are asked: a run that was killed and started
again encodes the same batches as one that was not, and loses one piece at most.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from miner.chunks import cut, each, lengths_of
from miner.encoders import Kind
from miner.ragged_cache import Ragged, RaggedCache, spread
from miner.records import texts
from miner.vector_cache import VectorCache

# With token vectors: one takes 2 KiB in BGE-M3, so that a character takes some 0.5 KiB and a piece 100 MiB. Without
# them the larger chunks of `stages.vectors` serve, for each shard of the vectors holds a file open.
PIECE_CHARS = 200_000
Array = np.ndarray[Any, Any]


class Outputs(Protocol):
    """See miner.encoders.m3.Outputs."""

    @property
    def dense(self) -> Array: ...
    @property
    def sparse(self) -> Ragged: ...
    @property
    def multi(self) -> Ragged | None: ...


class Encoder(Protocol):
    def encode_all(self, texts: list[str], kind: Kind, multi: bool) -> Outputs:
        """The three outputs in the order of `texts`; `multi` of them is None where it is False here."""


def run(
    table: pa.Table,
    keys: Array,
    kind: Kind,
    encoder: Encoder,
    dense: VectorCache,
    sparse: RaggedCache | None,
    multi: RaggedCache | None,
    tick: Callable[[int], None],
) -> int:
    """Bring every row of a passages or queries table into every cache given. keys: S16[n], one for each row.

    The caches are refreshed at the end. Returns the number of texts encoded.
    """
    caches = [cache for cache in (dense, sparse, multi) if cache is not None]
    done: list[tuple[int, Array]] = []  # of each piece that was handed out: its texts, and the rows that lack

    def lacking() -> Iterator[tuple[list[str], Kind, bool]]:
        lengths = lengths_of(table)
        for rows in cut(lengths, keys) if multi is None else _pieces(lengths, keys):
            some = rows[np.any([cache.missing(keys[rows]) for cache in caches], axis=0)]
            if not len(some):
                tick(len(rows))
                continue
            done.append((len(rows), some))
            yield list(texts(table, some.tolist())), kind, multi is not None

    encoded = 0
    for number, found in each(encoder, "encode_all", lacking()):
        size, some = done[number]
        _store(keys[some], found, dense, sparse, multi)
        encoded += len(some)
        tick(size)
    for cache in caches:
        cache.refresh()
    return encoded


def _store(
    keys: Array, outputs: Outputs, dense: VectorCache, sparse: RaggedCache | None, multi: RaggedCache | None
) -> None:
    new = dense.missing(keys)
    if new.any():
        dense.append(keys[new], outputs.dense[new])
    for cache, found in ((sparse, outputs.sparse), (multi, outputs.multi)):
        if cache is not None and found is not None and (new := cache.missing(keys)).any():
            cache.append(keys[new], *_rows(found, np.flatnonzero(new)))


def _rows(found: Ragged, rows: Array) -> Ragged:
    if len(rows) == len(found.offsets) - 1:
        return found
    lengths = np.diff(found.offsets)[rows]
    return Ragged(found.values[spread(found.offsets[rows], lengths)], np.concatenate([[0], np.cumsum(lengths)]))


def _pieces(lengths: Array, keys: Array) -> Iterator[Array]:
    """Row numbers of the distinct texts, longest first, in pieces of PIECE_CHARS and at most one text more."""
    for rows in cut(lengths, keys):
        number = (np.cumsum(lengths[rows]) - lengths[rows]) // PIECE_CHARS
        yield from np.split(rows, np.flatnonzero(np.diff(number)) + 1)
