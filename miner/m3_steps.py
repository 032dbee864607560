"""The steps of a job that uses more of BGE-M3 than its dense vectors: token weights (sparse), token vectors (multi).

Both lie in the cache of vectors, by content; the step's own folder holds the dense ones as with every encoder.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from miner import encoders, progress, searchers, store
from miner.config import Retriever
from miner.mining_steps import Array, blocks_of, world_of
from miner.numbering import Block, Numbered
from miner.ragged_cache import Ragged, RaggedCache
from miner.records import texts
from miner.stages import m3_vectors, retrieved
from miner.steps import Context, Done, gather
from miner.vector_cache import VectorCache, keys

Name = Literal["passages", "queries"]
KINDS: dict[Name, encoders.Kind] = {"passages": "passage", "queries": "query"}
# Token vectors take 2 KiB a token: of a larger corpus only what the other retrievers found is given them, by a second
# pass over those passages.
ONE_PASS = 100_000
PASSAGES_AT_ONCE = 65_536


class _Store:
    """The three caches of passages and of queries, and the model that fills them, loaded when something lacks."""

    def __init__(self, run: Context) -> None:
        self._run = run
        self._identity = encoders.fingerprint(run.job.encoder, token_outputs=True)
        kinds = [retriever.kind for retriever in run.job.mining.retrievers]
        self._sparse, self.multi_is_wanted = "sparse" in kinds, "multivector" in kinds

    @cached_property
    def model(self) -> Any:
        return self._run.workers.encoder(self._run.job.encoder, token_outputs=True)

    def _folder(self, name: Name, output: str) -> Path:
        space = encoders.space(self._identity, KINDS[name]) | {"output": output}
        return self._run.cache_root / store.digest(space)[:32]

    def dense(self, name: Name) -> VectorCache:
        return VectorCache(self._folder(name, "m3"))

    def sparse(self, name: Name) -> RaggedCache:
        return RaggedCache(self._folder(name, "m3 sparse"))

    def multi(self, name: Name) -> RaggedCache:
        return RaggedCache(self._folder(name, "m3 multi"))

    def fill(self, name: Name, table: pa.Table, of: Array, multi: bool, tick: progress.Tick) -> int:
        """Encode what lacks, all outputs in one pass. of: S16[n], the keys of the table's rows."""
        dense = self.dense(name)
        sparse = self.sparse(name) if self._sparse else None
        tokens = self.multi(name) if multi else None
        caches = [cache for cache in (dense, sparse, tokens) if cache is not None]
        if not any(cache.missing(of).any() for cache in caches):
            tick(len(np.unique(of)))
            return 0
        return m3_vectors.run(table, of, KINDS[name], self.model, dense, sparse, tokens, tick)


def run_vectors(run: Context, work: Path) -> Done:
    held = _Store(run)
    counts: dict[str, Any] = {}
    for name in KINDS:
        table = run.table("corpus", name)
        of = keys(texts(table), table.num_rows)
        multi = held.multi_is_wanted and table.num_rows <= ONE_PASS
        with progress.bar(f"encode {name}", len(np.unique(of)), "texts") as tick:
            encoded = held.fill(name, table, of, multi, tick)
        dense = held.dense(name)
        counts["dimension"] = dense.dimension
        gather(work / f"{name}.npy", dense, of, dense.dimension)
        counts[name] = {"rows": table.num_rows, "encoded": encoded}
    return Done(counts)


def sparse(run: Context, world: Numbered, retriever: Retriever) -> searchers.Searcher:
    """The searcher over token weights; what the cache lost since is encoded again."""
    from miner.searchers import sparse as adapter

    held = _Store(run)
    of = {name: keys(texts(run.table("corpus", name)), run.table("corpus", name).num_rows) for name in KINDS}
    for name in KINDS:
        held.fill(name, run.table("corpus", name), of[name], False, lambda _: None)
    passages = held.sparse("passages").blocks(of["passages"], PASSAGES_AT_ONCE)
    return adapter.build(passages, held.sparse("queries").gather(of["queries"]), len(world.passages))


def run_multivector(run: Context, work: Path, retriever: Retriever) -> Done:
    """Rank what the other retrievers found by MaxSim."""
    from miner.searchers import multivector

    world, held = world_of(run), _Store(run)
    depth = run.job.mining.window(retriever)[0]
    of = {"passages": keys(texts(world.passages), len(world.passages))}
    of["queries"] = keys(texts(world.queries), len(world.queries))
    counts = {"rows": 0, "encoded": held.fill("queries", world.queries, of["queries"], True, lambda _: None)}
    with progress.bar(f"rank {retriever.label}", world.queries.num_rows, "queries") as tick:
        for number, block in blocks_of(run, world.queries.num_rows):
            part = work / f"part-{number}.parquet"
            if not part.is_file():
                query, row = _union(run, number, block)
                some = np.unique(row)
                table = world.passages.take(some)
                counts["encoded"] += held.fill("passages", table, of["passages"][some], True, lambda _: None)
                getters = _getter(held.multi("queries"), of["queries"]), _getter(held.multi("passages"), of["passages"])
                score = multivector.rescore(block.low + query, row, *getters)
                order = np.lexsort((row, -score, query))
                found = retrieved.listed(world, block, query[order], row[order], score[order], depth)
                store.write_table(part, found)
            counts["rows"] += store.count_rows(part)
            tick(block.size)
    return Done(counts)


def _getter(cache: RaggedCache, of: Array) -> Any:
    def get(rows: Array) -> Ragged:
        return cache.gather(of[rows])

    return get


def _union(run: Context, number: str, block: Block) -> tuple[Array, Array]:
    """(query from block.low, passage row), sorted: what any other retriever found."""
    others = [r.label for r in run.job.mining.retrievers if r.kind != "multivector"]
    tables = [
        store.read_table(run.folder.step(f"retrieved_{label}") / f"part-{number}.parquet", ["query", "passage"])
        for label in others
    ]
    pairs = np.concatenate([np.stack([t.column(0).to_numpy(), t.column(1).to_numpy()], axis=1) for t in tables])
    pairs = np.unique(pairs.astype(np.int64), axis=0)
    return pairs[:, 0] - block.low, pairs[:, 1]
