"""Searchers find the nearest passages of a block of queries."""

from __future__ import annotations

import importlib
from typing import Any, Protocol

import numpy as np

Array = np.ndarray[Any, Any]
SEARCHERS = {"flat": "miner.searchers.faiss_flat"}


class Searcher(Protocol):
    def search(self, queries: Array, k: int) -> tuple[Array, Array]:
        """queries: float32[b, d] -> scores float32[b, k], descending, and rows int64[b, k]; -1 where there are none."""


def build(name: str, vectors: Array) -> Searcher:
    """An index over vectors: float32[n, d], which may be memory-mapped."""
    searcher: Searcher = importlib.import_module(SEARCHERS[name]).build(vectors)
    return searcher
