"""Cut texts into the chunks that are encoded together: the same ones whatever the cache holds already.

Chunks are cut before the cache is asked, so a run that was killed and started again encodes the same batches as one
that was not.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Protocol, runtime_checkable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

CHUNK_TEXTS = 2048
CHUNK_CHARS = 1_000_000
Array = np.ndarray[Any, Any]


def lengths_of(table: pa.Table) -> Array:
    """int64[n]: the characters of each row of a passages or queries table, title included."""
    length = pc.utf8_length(table.column("text")).to_numpy()
    if "title" in table.column_names:
        length = length + pc.utf8_length(table.column("title")).to_numpy()
    return np.asarray(length, np.int64)


def cut(lengths: Array, keys: Array, count: int | None = None) -> list[Array]:
    """Row numbers of the distinct texts, longest first, in chunks of bounded count and size."""
    _, first = np.unique(keys, return_index=True)
    order = first[np.lexsort((keys[first], -lengths[first]))]
    if not len(order):
        return []
    filled = np.cumsum(lengths[order])
    cuts: list[int] = []
    start = 0
    while start < len(order):
        base = filled[start - 1] if start else 0
        stop = int(np.searchsorted(filled, base + CHUNK_CHARS, side="right"))
        start = min(max(stop, start + 1), start + (count or CHUNK_TEXTS))
        cuts.append(start)
    return np.split(order, cuts[:-1])


@runtime_checkable
class Many(Protocol):
    """An encoder or a teacher that is many: each worker has its own."""

    def each(self, method: str, calls: Iterable[tuple[Any, ...]]) -> Iterator[tuple[int, Any]]:
        """Call `method` with each tuple of arguments: its number and what it returned, in the order of arrival.

        `calls` is drawn from as workers become free.
        """


def each(of: Any, method: str, calls: Iterable[tuple[Any, ...]]) -> Iterator[tuple[int, Any]]:
    """As Many.each; where `of` is one and not many, one call after the other."""
    if isinstance(of, Many):
        return of.each(method, calls)
    return ((number, getattr(of, method)(*arguments)) for number, arguments in enumerate(calls))
