"""The steps of a job: each reads files, calls one stage, writes files. What must be fresh for it stands in `inputs`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from miner import encoders, firewall, ledger_shards, llms, progress, prompts, readers, store, urls, workers
from miner.config import Endpoint, Job
from miner.encoders.precomputed import Precomputed
from miner.job import JobFolder
from miner.ledger import Ledger
from miner.meter import Meter
from miner.numbering import Numbered
from miner.records import passage_text, texts
from miner.stages import corpus, vectors
from miner.vector_cache import VectorCache, keys

Array = np.ndarray[Any, Any]


class Done(NamedTuple):
    counts: dict[str, Any]
    complete: bool = True


@dataclass
class Context:
    """One invocation on one job. `backend` makes the LLM backend of an endpoint; tests and `answers` replace it."""

    job: Job
    folder: JobFolder
    ledger: Ledger
    backend: Callable[[Endpoint, Meter], llms.Backend] = llms.load
    collect: bool = False
    warnings: list[str] = field(default_factory=list)
    numbered: tuple[Any, Numbered] | None = None  # of `mining_steps.world_of`: what it was made from, and itself
    closing: ExitStack = field(default_factory=ExitStack)

    def __post_init__(self) -> None:
        if urls.is_url(self.job.data.path) or urls.is_url(self.job.data.corpus):
            data = urls.fetched(self.job.data, self.folder.root / "fetched")
            self.job = self.job.model_copy(update={"data": data})
        encoder = self.job.encoder
        if self.job.engine.gpus and encoder.backend == "auto" and encoder.device is None:
            # What backend auto stands for is decided here, where there may be no GPU; the workers have one each.
            encoder = encoder.model_copy(update={"device": "cuda"})
            self.job = self.job.model_copy(update={"encoder": encoder})
        if self.job.engine.kind == "ray" and self.backend is llms.load:
            self.backend = self._on_cluster

    def _on_cluster(self, endpoint: Endpoint, meter: Meter) -> llms.Backend:
        _ = self.workers  # joins the cluster
        return llms.load(endpoint, meter, self.job.engine)

    def table(self, step: str, name: str) -> pa.Table:
        return store.read_table(self.folder.step(step) / f"{name}.parquet")

    def parts(self, step: str, name: str) -> list[Path]:
        return sorted(self.folder.step(step).glob(f"{name}-*.parquet"))

    @property
    def cache_root(self) -> Path:
        """The folder of vectors and teacher scores by content."""
        return Path(self.job.vector_cache) if self.job.vector_cache else self.folder.root / "vector_cache"

    def endpoint(self, stage: str) -> Endpoint:
        chosen = getattr(self.job, stage).llm or self.job.llm
        assert chosen is not None, "the job model refuses an enabled LLM stage without endpoint"
        return chosen

    def prompt(self, stage: str) -> prompts.Prompt:
        own = Path(self.job.prompts) if self.job.prompts else None
        task: prompts.Task = "judge" if stage == "judge" else "generate"
        return prompts.load(task, getattr(self.job, stage).prompt, own)

    @cached_property
    def workers(self) -> workers.Workers:
        found = workers.load(self.job.engine)
        self.closing.callback(found.close)
        return found

    @cached_property
    def queries(self) -> dict[str, str]:
        table = self.table("corpus", "queries")
        return dict(zip(table.column("query_id").to_pylist(), table.column("text").to_pylist(), strict=True))

    @cached_property
    def passages(self) -> Passages:
        return Passages(self.table("corpus", "passages"))

    def meter(self, stage: str) -> Meter:
        return Meter(self.endpoint(stage), self.ledger, self.job.budget)

    @contextmanager
    def asking(self, stage: str, what: str, total: int) -> Iterator[llms.Ask]:
        """Ask the stage's endpoint, with progress; `total` rows. A context that collects asks nobody."""
        meter = self.meter(stage)
        if self.collect:
            yield llms.collector(meter)
            return
        ledger_shards.merge(self.folder.root / ledger_shards.FOLDER, self.ledger)
        with progress.bar(what, total, "answers", meter.line) as tick, ExitStack() as stack:

            def made() -> llms.Backend:
                backend = self.backend(meter.endpoint, meter)
                stack.callback(getattr(backend, "close", lambda: None))  # a model in this process gives its memory back
                return backend

            yield llms.asker(made, meter, tick)


class Passages:
    """doc_id -> text, read from the Arrow table on demand; synthetic passages are added by hand."""

    def __init__(self, table: pa.Table) -> None:
        self._titles, self._texts = table.column("title"), table.column("text")
        self._row = {doc_id: row for row, doc_id in enumerate(table.column("doc_id").to_pylist())}
        self._more: dict[str, str] = {}

    def __getitem__(self, doc_id: str) -> str:
        row = self._row.get(doc_id)
        if row is None:
            return self._more[doc_id]
        return passage_text(self._titles[row].as_py(), self._texts[row].as_py())

    def add(self, doc_id: str, text: str) -> None:
        self._more[doc_id] = text


# ---------------------------------------------------------------- mine


def run_corpus(run: Context, work: Path) -> Done:
    data = run.job.data
    source = readers.get(readers.detect(data))(data)
    screen = firewall.Screen(firewall.read(data.firewall)) if data.firewall else None
    found = corpus.run(source, data.relevant_from, screen.refuse if screen else None)
    run.warnings += screen.warnings() if screen else []
    for name in ("passages", "queries", "qrels", "drops"):
        store.write_table(work / f"{name}.parquet", getattr(found, name))
    return Done(corpus.count(found))


def run_vectors(run: Context, work: Path) -> Done:
    stored = encoders.stored(run.job.encoder)
    if stored is not None:
        return _copy_vectors(run, work, stored)
    encoder = lru_cache(lambda: run.workers.encoder(run.job.encoder))  # seconds, for nothing where all is there
    identity = encoders.fingerprint(run.job.encoder)
    counts: dict[str, Any] = {}
    kinds: dict[str, encoders.Kind] = {"passages": "passage", "queries": "query"}
    for name, kind in kinds.items():
        table = run.table("corpus", name)
        cache = VectorCache(run.cache_root / store.digest(encoders.space(identity, kind))[:32])
        wanted = keys(texts(table), table.num_rows)
        with progress.bar(f"encode {name}", len(np.unique(wanted)), "texts") as tick:
            lacks = bool(cache.missing(wanted).any())
            encoded = vectors.run(table, wanted, kind, encoder(), cache, tick) if lacks else 0
        # Of the cache first: a server that has nothing to encode is not asked for the width of its vectors.
        counts["dimension"] = cache.dimension or encoder().dimension
        gather(work / f"{name}.npy", cache, wanted, counts["dimension"])
        counts[name] = {"rows": table.num_rows, "encoded": encoded}

    def sample(count: int) -> list[str]:
        table = run.table("corpus", "passages")
        rows = np.linspace(0, table.num_rows - 1, min(count, table.num_rows), dtype=np.int64)
        return list(texts(table, rows.tolist()))

    return Done(counts | encoders.report(run.job.encoder, encoder, sample))


def _copy_vectors(run: Context, work: Path, stored: Precomputed) -> Done:
    counts: dict[str, Any] = {"dimension": stored.dimension}
    for name, column in (("passages", "doc_id"), ("queries", "query_id")):
        ids = run.table("corpus", name).column(column).to_pylist()
        stored.write(name, ids, work / f"{name}.npy")
        counts[name] = {"rows": len(ids), "encoded": 0}
    return Done(counts)


def gather(path: Path, cache: VectorCache, wanted: Array, dimension: int) -> None:
    def write(part: Path) -> None:
        with part.open("wb") as handle:  # numpy's own opener would add .npy to the temporary name
            np.lib.format.write_array_header_1_0(
                handle, {"descr": "<f4", "fortran_order": False, "shape": (len(wanted), dimension)}
            )
            for start in range(0, len(wanted), 1 << 14):
                block = wanted[start : start + (1 << 14)]
                out = np.empty((len(block), dimension), np.float32)
                cache.gather(block, out)
                handle.write(out.data)

    store.replace(path, write)
