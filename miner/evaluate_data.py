"""What `miner evaluate` trains and measures on: the job's rows, the same with other negatives, held-out queries."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from miner import config, engine, mining_steps, ranking, shingles, store
from miner.errors import UserError
from miner.job import JobFolder
from miner.numbering import Numbered
from miner.readers import beir, rows
from miner.records import fold, passage_text, texts
from miner.steps import Context

Array = np.ndarray[Any, Any]
Negatives = dict[int, list[int]]
BASELINES = ("none", "random", "bm25", "st")
ALIKE = 0.5  # share of words from which two queries of one id are the same query


def opened(job: config.Job, file: Path) -> Context:
    """The job as it lies there, without its lock: nothing is written. UserError where its export is not fresh."""
    context = Context(job, JobFolder(Path(job.job or "")), None)  # type: ignore[arg-type]  # nobody is asked
    stale = next((f"{name}: {why}" for name, why, _ in engine.states(context) if why), None)
    if stale:
        raise UserError(f"{file}: the job is not done ({stale}); run `miner run {file}` first")
    return context


# ---------------------------------------------------------------- held-out queries


@dataclass(frozen=True)
class Held:
    """Held-out queries and the corpus that they are asked of. lost: what was left out, by reason.

    qrels: query_id -> doc_id -> relevance, of the queries in their order. A passage answers from `relevant_from` on.
    """

    name: str
    queries: dict[str, str]
    passages: dict[str, str]
    qrels: dict[str, dict[str, int]]
    relevant_from: int = 1
    lost: dict[str, int] = field(default_factory=dict)

    @cached_property
    def digest(self) -> str:
        return store.digest([self.queries, list(self.passages.items()), self.qrels, self.relevant_from])


def held_out(run: Context, path: Path | None, split: str) -> Held:
    """The queries of a BEIR folder's split, or, without a path, the job's own dev queries. Raises UserError."""
    found = _folder(run, path, split) if path else _dev(run)
    for query_id, text in _overlap(run, found):
        raise UserError(
            f"miner evaluate: the held-out query {rows.clip(query_id)} ({rows.clip(text)}) is a training query of the"
            " job too; keep the set out with data.firewall (path, split) and run the job again"
        )
    return found


def _folder(run: Context, path: Path, split: str) -> Held:
    if not (path / "qrels").is_dir():
        raise UserError(f"--eval {path}: no folder qrels in it; name a BEIR folder")
    data = config.Data(path=str(path), split=split)  # type: ignore[call-arg]
    whole = any((path / f"corpus.jsonl{packed}").is_file() for packed in ("", ".gz"))
    if whole:
        source = beir.read(data)
        passages = {p.doc_id or "": passage_text(p.title, p.text) for p in source.passages}
        queries, judged = source.queries, source.qrels
    else:
        passages = _passages(run)
        queries, judged = beir.judged(data)
    qrels: dict[str, dict[str, int]] = {}
    for one in judged:
        qrels.setdefault(one.query_id, {})[one.doc_id] = one.relevance
    known = {q.query_id or "": q.text for q in queries}
    return _held(f"{path.name}, split {split}", known, passages, qrels, 1)


def _dev(run: Context) -> Held:
    ids = _exported(run, "dev")
    if not ids:
        raise UserError(
            "miner evaluate: nothing is held out; name an evaluation set with --eval FOLDER, or set export.dev_share"
            " and run the job again"
        )
    qrels: dict[str, dict[str, int]] = {query_id: {} for query_id in ids}
    table = run.table("corpus", "qrels")
    for query_id, doc_id, relevance in zip(*(table.column(n).to_pylist() for n in table.column_names), strict=True):
        if query_id in qrels:
            qrels[query_id][doc_id] = relevance
    return _held("dev queries of the job", run.queries, _passages(run), qrels, run.job.data.relevant_from)


def _held(
    name: str, queries: dict[str, str], passages: dict[str, str], qrels: dict[str, dict[str, int]], relevant_from: int
) -> Held:
    """Without judgments of passages that are not there, and without the queries that then have no answer."""
    lost = {"judgments without a passage": 0, "queries without text or answer": 0}
    kept: dict[str, dict[str, int]] = {}
    for query_id, judged in qrels.items():
        there = {doc_id: relevance for doc_id, relevance in judged.items() if doc_id in passages}
        lost["judgments without a passage"] += len(judged) - len(there)
        if queries.get(query_id) and max(there.values(), default=relevant_from - 1) >= relevant_from:
            kept[query_id] = there
        else:
            lost["queries without text or answer"] += 1
    if len(kept) < 2:
        raise UserError(f"miner evaluate: {name}: {len(kept)} queries with an answer in the corpus; two are the least")
    counts = {reason: count for reason, count in lost.items() if count}
    return Held(name, {q: queries[q] for q in kept}, passages, kept, relevant_from, counts)


def _overlap(run: Context, held: Held) -> Iterable[tuple[str, str]]:
    """Held-out queries that the job trains on: the same text, or the same id with much the same words."""
    training = {query_id: run.queries[query_id] for query_id in _exported(run, "train")}
    known = {fold(text) for text in training.values()}
    for query_id, text in held.queries.items():
        mine = training.get(query_id)
        if fold(text) in known or (mine is not None and _alike(mine, text)):
            yield query_id, text


def _alike(a: str, b: str) -> bool:
    first, second = set(shingles.words(a)), set(shingles.words(b))
    return len(first & second) >= ALIKE * max(1, len(first | second))


# ---------------------------------------------------------------- the job's rows


def _provenance(run: Context) -> pa.Table:
    table = store.read_table(run.folder.step("export") / "provenance.parquet", ["query_id", "slot", "doc_id", "split"])
    return table.sort_by([("query_id", "ascending"), ("slot", "ascending")])


def _exported(run: Context, split: str) -> list[str]:
    table = _provenance(run)
    ids = table.filter(pc.equal(table.column("split"), split)).column("query_id")
    return [str(query_id) for query_id in pc.unique(ids).to_pylist()]


def _passages(run: Context) -> dict[str, str]:
    table = run.table("corpus", "passages")
    return dict(zip(table.column("doc_id").to_pylist(), texts(table), strict=True))


@dataclass
class World:
    """A job's training data in numbers: row numbers of its queries, and of its passages with what was written behind.

    pairs: int64[n, 2], the training queries with each of their known positives.
    """

    run: Context

    @cached_property
    def numbered(self) -> Numbered:
        return mining_steps.world_of(self.run)

    @cached_property
    def query_ids(self) -> list[str]:
        return [str(one) for one in self.numbered.queries.column("query_id").to_pylist()]

    @cached_property
    def queries(self) -> list[str]:
        return list(texts(self.numbered.queries))

    @cached_property
    def passages(self) -> list[str]:
        """Grows where another job's negatives, or written ones, come in."""
        return list(texts(self.numbered.passages))

    @cached_property
    def corpus_size(self) -> int:
        return len(self.numbered.passages)

    @cached_property
    def pairs(self) -> Array:
        row = {query_id: number for number, query_id in enumerate(self.query_ids)}
        wanted = [row[query_id] for query_id in _exported(self.run, "train")]
        found: Array = self.numbered.positives[:, :2]
        return found[np.isin(found[:, 0], wanted)]

    @cached_property
    def positives(self) -> dict[int, frozenset[int]]:
        """query -> the copy classes of all its known positives."""
        found: dict[int, set[int]] = {}
        for query, passage in self.numbered.positives[:, :2].tolist():
            found.setdefault(query, set()).add(int(self.numbered.copy_class[passage]))
        return {query: frozenset(classes) for query, classes in found.items()}

    def classes(self, passages: Iterable[int]) -> frozenset[int]:
        """What stands for the text of each passage; what is not in the corpus stands for itself."""
        of, size = self.numbered.copy_class, self.corpus_size
        return frozenset(int(of[one]) if one < size else -one for one in passages)

    def free(self, query: int, passages: Iterable[int], wanted: int) -> list[int]:
        """The first `wanted` of them that repeat neither a known positive of the query nor one another."""
        seen, kept = set(self.positives[query]), list[int]()
        for one in passages:
            text = int(self.numbered.copy_class[one])
            if text not in seen:
                seen.add(text)
                kept.append(one)
            if len(kept) == wanted:
                break
        return kept

    def vectors(self) -> tuple[Array, Array]:
        """(passages, queries), float32[n, d], memory-mapped."""
        folder = self.run.folder.step("vectors")
        return np.load(folder / "passages.npy", mmap_mode="r"), np.load(folder / "queries.npy", mmap_mode="r")


# ---------------------------------------------------------------- arms


def exported(world: World, other: Context | None = None) -> Negatives:
    """The negatives that a job exports for the world's training queries, in slot order: its own, or another's.

    Of another job the queries of the same id and text count; its passages are taken by their text.
    """
    run = other or world.run
    written = dict[str, str]()
    if run.job.generator.enabled:
        table = run.table("synthetic", "synthetic")
        written = dict(zip(*(table.column(name).to_pylist() for name in ("doc_id", "text")), strict=True))
    row = {query_id: number for number, query_id in enumerate(world.query_ids)}
    number = {str(one): at for at, one in enumerate(world.numbered.passages.column("doc_id").to_pylist())}
    wanted = {world.query_ids[query] for query in np.unique(world.pairs[:, 0]).tolist()}
    found: Negatives = {}
    table = _provenance(run)
    for query_id, doc_id in zip(*(table.column(name).to_pylist() for name in ("query_id", "doc_id")), strict=True):
        if query_id in wanted and (other is None or _same_query(world, run, query_id)):
            text = written.get(doc_id) or run.passages[doc_id]
            found.setdefault(row[query_id], []).append(_place(world, number.get(doc_id), text))
    return found


def _same_query(world: World, run: Context, query_id: str) -> bool:
    return fold(run.queries[query_id]) == fold(world.run.queries[query_id])


def _place(world: World, at: int | None, text: str) -> int:
    """The row of a text: that of the corpus where it is there, else a new one."""
    if at is not None and world.passages[at] == text:
        return at
    world.passages.append(text)
    return len(world.passages) - 1


def random(world: World, wanted: int, seed: int) -> Negatives:
    """Passages of the corpus by lot, no known positive and no copy of one."""
    found: Negatives = {}
    for query in np.unique(world.pairs[:, 0]).tolist():
        start = ranking.mix(world.numbered.query_hash[query : query + 1] ^ ranking.mix(np.array([seed], np.uint64)))
        drawn = ranking.mix(start + np.arange(8 * (wanted + len(world.positives[query])), dtype=np.uint64))
        lots = (drawn % np.uint64(world.corpus_size)).tolist()
        found[query] = world.free(query, chain(lots, range(world.corpus_size)), wanted)  # a tiny corpus: then in order
    return found


def bm25(world: World, wanted: int) -> Negatives:
    """The best by words that are no known positive; stemmed where the job has a bm25 retriever with a language."""
    from miner.searchers import bm25 as by_words

    language = next((r.language for r in world.run.job.mining.retrievers if r.kind == "bm25"), None)
    searcher = by_words.build(texts(world.numbered.passages), world.queries, language)
    queries = np.unique(world.pairs[:, 0])
    depth = min(world.corpus_size, world.run.job.mining.depth + max(map(len, world.positives.values())))
    _, ranked = searcher.search(queries, depth)
    kept = (row[row >= 0].tolist() for row in ranked)
    return {q: world.free(q, passages, wanted) for q, passages in zip(queries.tolist(), kept, strict=True)}


def library(world: World, wanted: int) -> Negatives:
    """What sentence-transformers' mine_hard_negatives finds with the job's vectors, as deep as the job looks."""
    from miner.trials import sentence_transformers as peer

    by_passage, by_query = world.vectors()
    queries = np.unique(world.pairs[:, 0]).tolist()
    place = {world.passages[at]: at for at in reversed(range(world.corpus_size))}
    known = world.numbered.positives[:, :2]
    pairs = [(world.queries[q], world.passages[p]) for q, p in known[np.isin(known[:, 0], queries)].tolist()]
    found = peer.mine(
        pairs,
        {world.queries[q]: by_query[q] for q in queries},
        {text: by_passage[at] for text, at in place.items()},
        wanted,
        min(world.run.job.mining.depth, len(place) - 1),
    )
    return {q: [place[text] for text in found[world.queries[q]]] for q in queries if world.queries[q] in found}
