"""Searchers find the nearest passages of a block of queries. One module per kind, imported only when used.

A searcher is built over the whole corpus and all queries; queries and passages are named by their row numbers in the
corpus step's tables, which are sorted by id.
"""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import numpy as np

Array = np.ndarray[Any, Any]


class Searcher(Protocol):
    def search(self, queries: Array, k: int) -> tuple[Array, Array]:
        """queries: int64[b] row numbers -> scores float32[b, k], descending, and passage rows int64[b, k].

        -1 (score -inf) where a query has fewer than k; how ties are ordered is left to the searcher. k <= passages.
        """


@runtime_checkable
class Elsewhere(Searcher, Protocol):
    """A searcher whose work is done by others while this process does its own."""

    def expect(self, queries: Array, k: int) -> None:
        """Begin a search that will be asked for, with the same queries and k. Once begun, it is not begun again."""

    def report(self) -> dict[str, Any]:
        """How it worked, for the manifest."""
