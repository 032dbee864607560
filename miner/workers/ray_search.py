"""The dense index on a Ray cluster: an actor a shard, lists merged by a tree of tasks.

Where an actor sees the job's folder, it opens its rows of the vectors memory-mapped and cuts its part of the index out
of the files there: it holds the codes of its rows, and nothing goes through Ray but queries and lists. Elsewhere its
rows and its part of the index are shipped to it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from miner import config, ledger_shards
from miner.errors import MinerError, ProviderStop
from miner.workers import Array

if TYPE_CHECKING:
    from miner.searchers.sharded import Part, Shard

log = logging.getLogger("miner")
RETRIES = 8
PIECE = 1024  # queries that travel together
FAN = 8  # lists merged at once
MB = 1e6


class Files(NamedTuple):
    """Where the process that runs the job sees the vectors (.npy) and the index; in `home` it wrote `token`."""

    vectors: str
    folder: str
    home: str
    token: str


class Unshipped(MinerError):
    """The actor has nothing to search: it does not see the files, and nothing was shipped to it since it started."""


class Actor:
    """One shard, the passages low..high. threads: that it searches on; effort: nprobe."""

    def __init__(self, low: int, high: int, width: int, effort: int, threads: int, files: Files | None) -> None:
        self._low, self._how = low, (width, effort, threads)
        self._shard: Shard | None = None
        self._most: dict[str, int] = {}
        if files is not None and ledger_shards.shared(Path(files.home), files.token):
            from miner.searchers import dense, sharded

            index = sharded.cut(Path(files.folder), dense.chosen(Path(files.folder)), low, high)
            self._open(np.load(files.vectors, mmap_mode="r")[low:high], index)

    def _open(self, vectors: Array, index: Any) -> None:
        from miner.searchers import sharded

        self._shard = sharded.Shard(self._low, vectors, index, *self._how)

    def take(self, vectors: Array, index: Array | None) -> None:
        """vectors: float32[high - low, d]; index: uint8[n], serialised."""
        from miner.searchers import exact

        self._open(vectors, None if index is None else exact.unpacked(index))

    def ready(self) -> bool:
        return self._shard is not None

    def search(self, block: Array, wanted: int, exactly: bool) -> Part:
        """As sharded.Shard.search."""
        if self._shard is None:
            raise Unshipped("a shard has nothing to search")
        found = self._shard.search(block, wanted, exactly)
        self.memory()
        return found

    def memory(self) -> dict[str, int]:
        """Bytes, the most that it had at the start and at the end of its calls: see `resident`."""
        now = resident()
        self._most = {name: max(now[name], self._most.get(name, 0)) for name in now}
        return self._most


def resident() -> dict[str, int]:
    """Bytes of this process: `own` that no file backs, `shared` with Ray's object store, `mapped` pages of files, which
    the machine takes back when it needs memory. Empty where the system does not say."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    except OSError:
        return {}
    names = {"RssAnon": "own", "RssShmem": "shared", "RssFile": "mapped"}
    fields = (line.split() for line in lines)
    return {names[f[0][:-1]]: 1024 * int(f[1]) for f in fields if f and f[0][:-1] in names}


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
        """passages: float32[n, d]; a memmap of a .npy file is opened by the actors that see it."""
        from miner.searchers import dense, sharded

        self._ray, self._get, self._folder = ray, get, folder
        self._passages, self._queries, self._settings = passages, queries, settings
        self._choice = dense.chosen(folder)
        self._merge = ray.remote(sharded.merged).options(num_cpus=0, max_retries=RETRIES)
        # Of no cores once it is placed: where a node is lost, the others can take in its shards.
        actor = ray.remote(Actor).options(max_restarts=-1, max_task_retries=-1, scheduling_strategy="SPREAD")
        how = (self._choice.width, dense.effort(folder), max(1, int(engine.cpus)), _files(passages, folder))
        self._bounds = list(sharded.bounds(len(passages), shards))
        self._actors = [actor.remote(*bound, *how) for bound in self._bounds]
        self._shipped: dict[int, tuple[Any, Any]] = {}
        self._begun: dict[tuple[bytes, int], list[Any]] = {}
        self._ship()

    def _ship(self) -> None:
        """What an actor does not see is sent; it is kept here, for an actor that starts anew."""
        from miner.searchers import sharded

        for at, ready in enumerate(self._all("ready")):
            if ready:
                continue
            if at not in self._shipped:
                low, high = self._bounds[at]
                part = sharded.packed(sharded.cut(self._folder, self._choice, low, high))
                rows = np.ascontiguousarray(self._passages[low:high], np.float32)
                self._shipped[at] = self._ray.put(rows), self._ray.put(part)
            self._get(self._ray, self._actors[at].take.remote(*self._shipped[at]))

    def _all(self, method: str) -> list[Any]:
        found: list[Any] = self._get(self._ray, [getattr(actor, method).remote() for actor in self._actors])
        return found

    def expect(self, queries: Array, k: int) -> None:
        """As searchers.Elsewhere."""
        key = queries.tobytes(), k
        if key not in self._begun:
            self._begun[key] = self._sent(self._block(queries), *self._wanted(k))

    def search(self, queries: Array, k: int) -> tuple[Array, Array]:
        """As DenseSearcher.search."""
        rows, block = len(self._passages), self._block(queries)
        scores, found = self._found(block, k, *self._wanted(k), self._begun.pop((queries.tobytes(), k), None))
        if len(short := np.flatnonzero(found[:, min(k, rows) - 1] < 0)):
            scores[short], found[short] = self._found(block[short], k, min(k, rows), True)
        return scores, found

    def _block(self, queries: Array) -> Array:
        return np.ascontiguousarray(self._queries[queries], np.float32)

    def _wanted(self, k: int) -> tuple[int, bool]:
        from miner.searchers import sharded

        return sharded.wanted(k, len(self._passages), self._choice, self._settings)

    def _found(
        self, block: Array, k: int, wanted: int, exactly: bool, begun: list[Any] | None = None
    ) -> tuple[Array, Array]:
        from miner.searchers import sharded

        for _ in range(RETRIES):
            lists = self._sent(block, wanted, exactly) if begun is None else begun
            try:
                found = [sharded.final(self._get(self._ray, one), k) for one in lists]
            except Unshipped:  # an actor started anew, on a machine that does not see the files
                self._ship()
                begun = None
                continue
            scores, rows = (np.concatenate(parts) for parts in zip(*found, strict=True))
            return scores, rows
        raise ProviderStop("ray: the actors of the dense index are lost again and again; run again")

    def _sent(self, block: Array, wanted: int, exactly: bool) -> list[Any]:
        pieces = [self._ray.put(block[start : start + PIECE]) for start in range(0, len(block), PIECE)]
        return [self._tree([a.search.remote(piece, wanted, exactly) for a in self._actors], wanted) for piece in pieces]

    def _tree(self, parts: list[Any], wanted: int) -> Any:
        while len(parts) > 1:
            parts = [self._merge.remote(wanted, *parts[at : at + FAN]) for at in range(0, len(parts), FAN)]
        return parts[0]

    def report(self) -> dict[str, Any]:
        """As searchers.Elsewhere: of the actors, and the most megabytes that one of them held."""
        try:
            told = self._all("memory")
        except ProviderStop:  # the lists are there; only this is not
            return {}
        most = {f"{name}_mb": round(max(one[name] for one in told) / MB) for name in told[0]}
        found = {"shards": len(told), "shipped": len(self._shipped), **most}
        log.info("ray: memory of a shard: %s", ", ".join(f"{name} {value:,}" for name, value in found.items()))
        return found


def _files(passages: Array, folder: Path) -> Files | None:
    """None where the vectors are no .npy file."""
    name = getattr(passages, "filename", None)
    if name is None or Path(name).suffix != ".npy" or np.load(name, mmap_mode="r").shape != passages.shape:
        return None
    home = folder.parent.resolve() / ledger_shards.FOLDER
    return Files(str(Path(name).resolve()), str(folder.resolve()), str(home), ledger_shards.share(home))
