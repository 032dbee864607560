"""The steps of a job: each reads files, calls one stage, writes files. What must be fresh for it stands in `inputs`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from miner import encoders, firewall, llms, progress, prompts, ranking, readers, store
from miner.config import Endpoint, Job
from miner.encoders.precomputed import Precomputed
from miner.job import JobFolder
from miner.ledger import Ledger
from miner.meter import Meter
from miner.records import JUDGMENTS, SYNTHETIC, content_id, passage_text, texts
from miner.stages import corpus, judgments, synthetic, vectors
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
        with progress.bar(what, total, "answers", meter.line) as tick:
            yield llms.asker(lambda: self.backend(meter.endpoint, meter), meter, tick)


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
    encoder = lru_cache(lambda: encoders.load(run.job.encoder))  # seconds, for nothing where all vectors are there
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
            for start in range(0, len(wanted), 1 << 16):
                block = wanted[start : start + (1 << 16)]
                out = np.empty((len(block), dimension), np.float32)
                cache.gather(block, out)
                handle.write(out.tobytes())

    store.replace(path, write)


# ---------------------------------------------------------------- judge and generate


def run_judgments(run: Context, work: Path) -> Done:
    total = sum(_pool(part).num_rows for part in run.parts("candidates", "part"))
    return _judge(run, work, lambda: pool_pairs(run), total, "judge")


def _pool(part: Path) -> pa.Table:
    table = store.read_table(part, ["query_id", "doc_id", "pool_rank"])
    return table.filter(table.column("pool_rank").is_valid())


def references(run: Context) -> dict[str, str]:
    """The positive that stands for each query in prompts: highest relevance, then lowest doc_id.

    No score decides, so the answers of one encoder's job serve the next one's.
    """
    best: dict[str, tuple[int, str]] = {}
    for part in run.parts("candidates", "positives"):
        for row in store.read_table(part).to_pylist():
            rank = (-row["relevance"], row["doc_id"])
            best[row["query_id"]] = min(best.get(row["query_id"], rank), rank)
    return {query_id: rank[1] for query_id, rank in best.items()}


def pool_pairs(run: Context) -> Iterator[judgments.Pair]:
    reference = references(run)
    for part in run.parts("candidates", "part"):
        pool = _pool(part)
        for query_id, doc_id in zip(
            pool.column("query_id").to_pylist(), pool.column("doc_id").to_pylist(), strict=True
        ):
            yield judgments.Pair(
                query_id, doc_id, run.queries[query_id], run.passages[reference[query_id]], run.passages[doc_id]
            )


def _judge(run: Context, work: Path, pairs: Callable[[], Iterator[judgments.Pair]], total: int, what: str) -> Done:
    counts: dict[str, Counter[str]] = {"status": Counter(), "verdict": Counter(), "tokens": Counter()}
    missing: Counter[str] = Counter()
    with run.asking("judge", what, total) as ask:
        tables = judgments.run(pairs, run.prompt("judge"), run.endpoint("judge"), run.job.judge, ask)
        rows = store.write_batches(work / "judgments.parquet", JUDGMENTS, _counted(tables, counts, missing))
    _write_failures(work)
    _warn(run, what, missing)
    return Done({"rows": rows, **_plain(counts)}, complete=not missing)


def _counted(tables: Iterable[pa.Table], counts: dict[str, Counter[str]], missing: Counter[str]) -> Iterator[pa.Table]:
    for table in tables:
        for row in table.to_pylist():
            counts["status"][row["status"]] += 1
            for name in counts.keys() & row.keys() - {"status"}:
                counts[name].update([row[name]] if row[name] else [])
            counts["tokens"]["prompt"] += row["prompt_tokens"] or 0
            counts["tokens"]["completion"] += row["completion_tokens"] or 0
            if row["status"] == "missing":
                missing[row["detail"]] += 1
        yield table


FAILED = ("query_id", "doc_id", "status", "detail", "request_key")


def _write_failures(work: Path) -> None:
    """failures.jsonl: the rows without a usable answer, each with its reason."""
    (path,) = work.glob("*.parquet")
    name = "positive_id" if path.stem == "synthetic" else "doc_id"
    table = store.read_table(path, ["query_id", name, *FAILED[2:]])
    failed = table.filter(pc.not_equal(table.column("status"), "ok")).rename_columns(list(FAILED))
    store.write_jsonl(work / "failures.jsonl", failed.to_pylist())


def _plain(counts: dict[str, Counter[str]]) -> dict[str, dict[str, int]]:
    return {name: dict(sorted(counter.items())) for name, counter in counts.items() if counter}


def _warn(run: Context, what: str, missing: Counter[str]) -> None:
    if missing:
        reason, count = missing.most_common(1)[0]
        others = f", and {len(missing) - 1} other reasons" if len(missing) > 1 else ""
        run.warnings.append(
            f"{what}: {missing.total()} answers are missing ({count} times: {reason}{others});"
            " those given up for good are asked again with --retry-failed"
        )


def run_synthetic(run: Context, work: Path) -> Done:
    wanted = demands(run)
    counts: dict[str, Counter[str]] = {"status": Counter(), "copy_of": Counter(), "tokens": Counter()}
    missing: Counter[str] = Counter()
    with run.asking("generator", "generate", len(wanted)) as ask:
        table = synthetic.run(
            lambda: iter(wanted), run.prompt("generator"), run.endpoint("generator"), run.job.generator, ask
        )
    table = synthetic.mark_copies(table, texts(run.table("corpus", "passages")))
    if any(table.column("text").to_pylist()):
        table = synthetic.score(table, _query_vectors(run), encoders.load(run.job.encoder, run.job.token_outputs))
    store.write_batches(work / "synthetic.parquet", SYNTHETIC, _counted([table], counts, missing))
    _write_failures(work)
    _warn(run, "generate", missing)
    return Done({"rows": table.num_rows, **_plain(counts)}, complete=not missing)


def demands(run: Context, judged: bool = True) -> list[synthetic.Demand]:
    """What the generator is to write. judged: false where the judge has not answered yet: then the most it may be."""
    reference, wanted = references(run), run.job.mining.negatives
    found = []
    for part, answers in judged_parts(run) if judged else ((part, None) for part in run.parts("candidates", "part")):
        taken = _taken(store.read_table(part), answers, wanted) if judged else Counter[str]()
        for query_id in sorted(set(positives_of(part).column("query_id").to_pylist())):
            count = synthetic.wanted(wanted - taken[query_id], wanted, run.job.generator)
            for facet in synthetic.facets(int(content_id(query_id), 16), count, run.job.generator):
                doc_id = reference[query_id]
                found.append(synthetic.Demand(query_id, run.queries[query_id], doc_id, run.passages[doc_id], facet))
    return found


def _taken(table: pa.Table, judged: pa.Table | None, wanted: int) -> Counter[str]:
    """Mined negatives by query. An answer that is still to come may admit its passage, so it counts as one."""
    slots = ranking.slots(table, judged, wanted).tolist()
    taken = Counter(q for q, slot in zip(table.column("query_id").to_pylist(), slots, strict=True) if slot)
    if judged is not None:
        taken.update(judged.filter(pc.equal(judged.column("status"), "missing")).column("query_id").to_pylist())
    return taken


def positives_of(part: Path) -> pa.Table:
    return store.read_table(part.with_name(part.name.replace("part-", "positives-")))


def judged_parts(run: Context) -> Iterator[tuple[Path, pa.Table | None]]:
    """Each candidates file with the judgments of its pool rows; None where the judge is off."""
    judged = run.table("judgments", "judgments") if run.job.judge.enabled else None
    start = 0
    for part in run.parts("candidates", "part"):
        size = _pool(part).num_rows
        yield part, None if judged is None else judged.slice(start, size)
        start += size


def _query_vectors(run: Context) -> Callable[[list[str]], Array]:
    vectors_ = np.load(run.folder.step("vectors") / "queries.npy", mmap_mode="r")
    row = {query_id: i for i, query_id in enumerate(run.table("corpus", "queries").column("query_id").to_pylist())}
    return lambda ids: np.asarray(vectors_[[row[i] for i in ids]])


def run_synthetic_judgments(run: Context, work: Path) -> Done:
    reference = references(run)
    rows = [
        row for row in run.table("synthetic", "synthetic").to_pylist() if row["status"] == "ok" and not row["copy_of"]
    ]

    def pairs() -> Iterator[judgments.Pair]:
        for row in rows:
            query_id = row["query_id"]
            positive = run.passages[reference[query_id]]
            yield judgments.Pair(query_id, row["doc_id"], run.queries[query_id], positive, row["text"])

    return _judge(run, work, pairs, len(rows), "judge synthetic")
