"""The dense index on a Ray cluster: an actor a shard, lists merged by a tree of tasks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from miner import config
from miner.workers import Array

RETRIES = 8
PIECE = 1024  # queries that travel together
FAN = 8  # lists merged at once


class Sharded:
    """A Searcher over actors, one a shard. An actor that is lost starts anew elsewhere, and its call is made again."""

    def __init__(
        self,
        ray: Any,
        engine: config.Engine,
        get: Callable[[Any, Any], Any],
        shards: int,
        passages: Array,
        queries: Array,
        folder: Path,
        settings: config.Index,
    ) -> None:
        from miner.searchers import dense, sharded

        self._ray, self._get = ray, get
        self._queries, self._settings, self._rows = queries, settings, len(passages)
        self._choice = dense.chosen(folder)
        self._merge = ray.remote(sharded.merged).options(num_cpus=0, max_retries=RETRIES)
        # Of no cores once it is placed: where a node is lost, the others can take in its shards.
        shard = ray.remote(sharded.Shard).options(max_restarts=-1, max_task_retries=-1, scheduling_strategy="SPREAD")
        effort, threads = dense.effort(folder), max(1, int(engine.cpus))
        # Held here, so that an actor that starts anew finds what it is made of.
        self._parts = [
            (
                low,
                ray.put(np.ascontiguousarray(passages[low:high], np.float32)),
                ray.put(sharded.cut(folder, self._choice, low, high)),
            )
            for low, high in sharded.bounds(len(passages), shards)
        ]
        self._shards = [shard.remote(*part, self._choice.width, effort, threads) for part in self._parts]

    def search(self, queries: Array, k: int) -> tuple[Array, Array]:
        """As DenseSearcher.search."""
        from miner.searchers import sharded

        block = np.ascontiguousarray(self._queries[queries], np.float32)
        wanted, exactly = sharded.wanted(k, self._rows, self._choice, self._settings)
        scores, rows = self._found(block, k, wanted, exactly)
        if len(short := np.flatnonzero(rows[:, min(k, self._rows) - 1] < 0)):
            scores[short], rows[short] = self._found(block[short], k, min(k, self._rows), True)
        return scores, rows

    def _found(self, block: Array, k: int, wanted: int, exactly: bool) -> tuple[Array, Array]:
        from miner.searchers import sharded

        pieces = [self._ray.put(block[start : start + PIECE]) for start in range(0, len(block), PIECE)]
        lists = [
            self._tree([s.search.remote(piece, wanted, exactly) for s in self._shards], wanted) for piece in pieces
        ]
        found = [sharded.final(self._get(self._ray, one), k) for one in lists]
        scores, rows = (np.concatenate(parts) for parts in zip(*found, strict=True))
        return scores, rows

    def _tree(self, parts: list[Any], wanted: int) -> Any:
        while len(parts) > 1:
            parts = [self._merge.remote(wanted, *parts[at : at + FAN]) for at in range(0, len(parts), FAN)]
        return parts[0]
