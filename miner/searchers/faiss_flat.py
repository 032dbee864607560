"""FAISS flat index: exact inner product, which is the cosine for normalised vectors."""

from __future__ import annotations

import faiss
import numpy as np

from miner.searchers import Array

ADD = 65_536


class FlatSearcher:
    def __init__(self, vectors: Array) -> None:
        self._index = faiss.IndexFlatIP(int(vectors.shape[1]))
        for start in range(0, len(vectors), ADD):
            self._index.add(np.ascontiguousarray(vectors[start : start + ADD], np.float32))

    def search(self, queries: Array, k: int) -> tuple[Array, Array]:
        scores, rows = self._index.search(np.ascontiguousarray(queries, np.float32), k)
        return scores, rows


def build(vectors: Array) -> FlatSearcher:
    return FlatSearcher(vectors)
