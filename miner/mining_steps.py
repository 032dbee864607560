"""The steps between vectors and judgments: index, each retriever's lists, the teacher's scores, the candidates.

All but the index go by blocks of queries, one file each; a block whose file is there from an interrupted run is not
done again.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from miner import behind, numbering, progress, searchers, store, teachers
from miner.config import Mining, Retriever
from miner.fusion import Fused
from miner.numbering import Block, Numbered
from miner.records import TAUGHT, texts
from miner.shingles import spans
from miner.stages import candidates, filters, retrieved, teacher
from miner.steps import Context, Done
from miner.vector_cache import VectorCache

Array = np.ndarray[Any, Any]
Refusals = list[tuple[str, Array]]
AHEAD = 2  # blocks of queries that are searched elsewhere while one is written here


def world_of(run: Context) -> Numbered:
    """Kept for the next step; `run_candidates`, the last of those that need it, lets it go."""
    stamp = run.folder.stamp("corpus")
    key = (stamp.hash if stamp else "", run.job.data.relevant_from)
    if run.numbered is None or run.numbered[0] != key:
        passages, queries, qrels = (run.table("corpus", name) for name in ("passages", "queries", "qrels"))
        run.numbered = key, numbering.number(passages, queries, qrels, run.job.data.relevant_from)
    return run.numbered[1]


def _vectors(run: Context) -> tuple[Array, Array]:
    """(passages, queries), float32[n, d], memory-mapped."""
    folder = run.folder.step("vectors")
    return np.load(folder / "passages.npy", mmap_mode="r"), np.load(folder / "queries.npy", mmap_mode="r")


def blocks_of(run: Context, total: int) -> Iterator[tuple[str, Block]]:
    size = run.job.mining.block
    for number, low in enumerate(range(0, total, size)):
        yield f"{number:05d}", Block(low, min(low + size, total))


# ---------------------------------------------------------------- index and search


def run_index(run: Context, work: Path) -> Done:
    from miner.searchers import dense, tuning

    passages, queries = _vectors(run)
    settings, seed = run.job.mining.index, run.job.seed
    choice = dense.choose(len(passages), passages.shape[1], len(queries), settings, run.job.engine.kind == "local")
    logging.getLogger("miner").info("index: %s", choice.reason)
    built = dense.make(passages, choice, work, seed, run.workers.coder)
    depth = max(run.job.mining.window(r)[0] for r in run.job.mining.retrievers if r.kind == "dense")
    tuned = tuning.tune(dense.open(passages, queries, work, choice, settings), work, depth, settings, seed)
    if "warning" in tuned:
        run.warnings.append(f"index: {tuned['warning']}")
    return Done({**built, **tuned})


Build = Callable[[Context, Numbered, Retriever], searchers.Searcher]


def run_retrieved(run: Context, work: Path, retriever: Retriever, build: Build) -> Done:
    world = world_of(run)
    depth = run.job.mining.window(retriever)[0]
    blocks = [(work / f"part-{number}.parquet", block) for number, block in blocks_of(run, world.queries.num_rows)]
    lacking = [block for part, block in blocks if not part.is_file()]
    searcher = build(run, world, retriever) if lacking else None
    rows = 0

    def finish(part: Path, block: Block, found: retrieved.Found | None) -> None:
        nonlocal rows
        if found is not None:
            store.write_table(part, retrieved.listed(world, block, *found, depth))
        rows += store.count_rows(part)
        tick(block.size)

    with progress.bar(f"search {retriever.label}", world.queries.num_rows, "queries") as tick, behind.writer() as later:
        for part, block in blocks:
            found = None
            if lacking[:1] == [block] and searcher is not None:
                if isinstance(searcher, searchers.Elsewhere):
                    retrieved.expect(world, lacking[: 1 + AHEAD], searcher, depth)
                found = retrieved.search(world, lacking.pop(0), searcher, depth)
            later(finish, part, block, found)
    counts: dict[str, Any] = {"rows": rows}
    if isinstance(searcher, searchers.Elsewhere):
        counts |= searcher.report()
    return Done(counts)


def dense_searcher(run: Context, world: Numbered, retriever: Retriever) -> searchers.Searcher:
    return run.workers.dense(*_vectors(run), run.folder.step("index"), run.job.mining.index)


def bm25_searcher(run: Context, world: Numbered, retriever: Retriever) -> searchers.Searcher:
    from miner.searchers import bm25

    return bm25.build(texts(world.passages), texts(world.queries), retriever.language)


def run_file_searcher(run: Context, world: Numbered, retriever: Retriever) -> searchers.Searcher:
    from miner.searchers import trec_run

    ids = world.passages.column("doc_id").to_pylist(), world.queries.column("query_id").to_pylist()
    searcher = trec_run.build(Path(retriever.file or ""), *ids)
    for what, count in (("queries", searcher.unknown_queries), ("passages", searcher.unknown_passages)):
        if count:
            run.warnings.append(f"{retriever.file}: {count} {what} that the data lacks were left out")
    return searcher


# ---------------------------------------------------------------- teacher


def _fused(run: Context, number: str, block: Block) -> Fused:
    lists = [
        store.read_table(run.folder.step(f"retrieved_{retriever.label}") / f"part-{number}.parquet")
        for retriever in run.job.mining.retrievers
    ]
    return candidates.fused(block, lists, run.job.mining)


def run_teacher(run: Context, work: Path) -> Done:
    """The teacher's scores of every positive and of the best ranks, known positives not counted."""
    settings = run.job.teacher
    assert settings is not None, "the plan has this step only with a teacher"
    world, model = world_of(run), None
    read = partial(texts, world.queries), partial(texts, world.passages)
    cache = VectorCache(run.cache_root / store.digest(teachers.fingerprint(settings))[:32])
    counts = {"pairs": 0, "scored": 0}
    with progress.bar("teacher", world.queries.num_rows, "queries") as tick:
        for number, block in blocks_of(run, world.queries.num_rows):
            part = work / f"part-{number}.parquet"
            if not part.is_file():
                pairs = candidates.to_teach(world, block, _fused(run, number, block), settings.depth)
                model = model or run.workers.teacher(settings)
                keys = teacher.keys(*read, pairs)
                counts["scored"] += teacher.run(*read, pairs, keys, model, cache, lambda _: None)
                columns = [pa.array(pairs[:, 0]), pa.array(pairs[:, 1]), pa.array(teacher.gather(keys, cache))]
                store.write_table(part, pa.table(columns, names=TAUGHT.names).cast(TAUGHT))
            counts["pairs"] += store.count_rows(part)
            tick(block.size)
    return Done(counts)


# ---------------------------------------------------------------- candidates


def run_candidates(run: Context, work: Path) -> Done:
    world, vectors = world_of(run), _vectors(run)
    refuse = _content(run, world, vectors)
    draw = candidates.Draw(run.job.pool_size, run.job.seed, np.zeros(len(world.passages), np.int64), vectors[0])
    counts: Counter[str] = Counter()
    mining = run.job.mining
    near = mining.margin_on == "rocchio" and (mining.margin_absolute, mining.margin_relative) != (None, None)

    def weighed() -> Iterator[tuple[str, Block, tuple[Fused, candidates.Scores, Refusals] | None]]:
        for number, block in blocks_of(run, world.queries.num_rows):
            if (work / f"part-{number}.parquet").is_file():
                yield number, block, None
                continue
            found = _fused(run, number, block)
            scores = _scores(run, world, block, found, vectors, number, near)
            yield number, block, (found, scores, refuse(block, found.query, found.row))

    def finish(number: str, block: Block, tables: tuple[pa.Table, pa.Table] | None) -> None:
        part = work / f"part-{number}.parquet"
        if tables is not None:
            store.write_table(work / f"positives-{number}.parquet", tables[1])
            store.write_table(part, tables[0])
        counts.update(_reason_counts(part))
        for mapped in vectors:
            store.let_go(mapped)
        tick(block.size)

    with progress.bar("select", world.queries.num_rows, "queries") as tick, behind.writer() as later:
        for number, block, parts in behind.ahead(weighed()):
            if parts is None:
                _count_uses(draw.used, work / f"part-{number}.parquet", world)
                later(finish, number, block, None)
            else:
                later(finish, number, block, candidates.run(world, block, *parts, mining, draw))
    run.numbered = None
    pooled = counts.pop("", 0)
    return Done({"candidates": pooled + counts.total(), "pool": pooled, "dropped": dict(sorted(counts.items()))})


def eligible(run: Context, world: Numbered, mining: Mining) -> Iterator[tuple[Array, ...]]:
    """What `mining` lets into a pool of any size, from the lists that are there: by block, by (query, rank).

    (query rows int64[n], passage rows int64[n], ranks int32[n], what the margins weigh and its lowest of the positives
    float32[n], plain scores float32[n] of the same scorer). Queries without positive in `world` are left out.
    """
    vectors = _vectors(run)
    refuse = _content(run, world, vectors)
    everything = candidates.Draw(
        np.iinfo(np.int32).max, run.job.seed, np.zeros(len(world.passages), np.int64), vectors[0]
    )
    which = "teacher_score" if mining.margin_on == "teacher" else "score"
    for number, block in blocks_of(run, world.queries.num_rows):
        found = _fused(run, number, block)
        scores = _scores(run, world, block, found, vectors, number, mining.margin_on == "rocchio")
        refusals = refuse(block, found.query, found.row)
        table, _ = candidates.run(world, block, found, scores, refusals, mining, everything)
        rows = np.flatnonzero(table.column("pool_rank").is_valid().to_numpy())
        rows = rows[np.isin(found.query[rows], world.positives_of(block)[:, 0])]
        rank, score, lowest = (table.column(name).to_numpy()[rows] for name in ("rank", which, f"positive_{which}"))
        rocchio = mining.margin_on == "rocchio"
        weighed = candidates.rocchio(score, scores.to_positive[rows]) if rocchio else score
        yield block.low + found.query[rows], found.row[rows], rank, weighed, lowest, score


def _content(run: Context, world: Numbered, vectors: tuple[Array, Array]) -> Callable[[Block, Array, Array], Refusals]:
    """The content filters that are switched on: (block, query from block.low, passage) -> (reason, bool[n]) each."""
    chosen = run.job.filters
    answers = filters.answer_texts(world.queries, chosen.answers) if chosen.answers else []
    groups = filters.group_codes(filters.extra_field(world.passages, chosen.group)) if chosen.group else None

    def text_of(rows: Array) -> Iterator[str]:
        return texts(world.passages, rows.tolist())

    measures = []
    if chosen.near_duplicate_jaccard is not None:
        measures.append((filters.jaccard(text_of, chosen.near_duplicate_jaccard), chosen.near_duplicate_jaccard))
    if chosen.near_duplicate_cosine is not None:
        measures.append((filters.cosine(vectors[0]), chosen.near_duplicate_cosine))

    def refuse(block: Block, query: Array, row: Array) -> Refusals:
        positives = world.positives_of(block)
        found: Refusals = []
        near = [filters.near_duplicates(query, row, positives[:, 0], positives[:, 1], *measure) for measure in measures]
        found += [("near_positive", of_positive) for of_positive, _ in near]
        if answers:
            found.append(("answer", filters.has_answer(query, row, answers[block.low : block.high], text_of)))
        if groups is not None:
            found.append(("sibling", filters.sibling(query, row, positives[:, 0], positives[:, 1], groups)))
        if chosen.twin_queries is not None:
            twin = filters.positive_of_twin(block.low + query, row, world.positives, vectors[1], chosen.twin_queries)
            found.append(("positive_of_twin", twin))
        return found + [("near_better", of_better) for _, of_better in near]

    return refuse


def _reason_counts(part: Path) -> dict[str, int]:
    counted = store.read_table(part, ["reason"]).column("reason").combine_chunks().value_counts()
    return {str(row["values"]): int(row["counts"]) for row in counted.to_pylist()}


def _count_uses(used: Array, part: Path, world: Numbered) -> None:
    table = store.read_table(part, ["doc_id", "pool_rank"])
    pool = table.filter(table.column("pool_rank").is_valid()).column("doc_id")
    np.add.at(used, pc.index_in(pool, world.passages.column("doc_id")).to_numpy(), 1)


def _scores(
    run: Context, world: Numbered, block: Block, found: Fused, vectors: tuple[Array, Array], number: str, near: bool
) -> candidates.Scores:
    """near: with the cosines to the positives."""
    kinds = [retriever.kind for retriever in run.job.mining.retrievers]
    positives = world.positives_of(block)
    dense = found.scores[:, kinds.index("dense")] if "dense" in kinds else np.full(len(found.row), np.nan, np.float32)
    pairs = np.stack([found.query, found.row], axis=1)
    taught = _taught(run, world, block, number)
    return candidates.Scores(
        dense=_cosines(vectors, block, pairs, dense),
        positive_dense=_cosines(vectors, block, positives, np.full(len(positives), np.nan, np.float32)),
        to_positive=_to_positive(vectors[0], pairs, positives) if near else np.full(len(pairs), np.nan, np.float32),
        teacher=taught(pairs),
        positive_teacher=taught(positives),
    )


def _to_positive(vectors: Array, pairs: Array, positives: Array) -> Array:
    """float32[n]: the highest cosine of each (query, passage) with a positive of its query; NaN where it has none."""
    out = np.full(len(pairs), np.nan, np.float32)
    known = positives[np.argsort(positives[:, 0], kind="stable")]
    low, high = (np.searchsorted(known[:, 0], pairs[:, 0], side) for side in ("left", "right"))
    asked = np.flatnonzero(high > low)
    for some in spans((high - low)[asked], 65_536):
        rows = asked[some]
        counts = (high - low)[rows]
        starts = np.r_[0, counts.cumsum()[:-1]]
        at = np.repeat(low[rows] - starts, counts) + np.arange(counts.sum())
        mine, theirs = np.repeat(pairs[rows, 1], counts), known[at, 1]
        cosine = np.einsum("ij,ij->i", vectors[mine], vectors[theirs], dtype=np.float32)
        out[rows] = np.maximum.reduceat(cosine, starts)
    return out


def _cosines(vectors: tuple[Array, Array], block: Block, pairs: Array, known: Array) -> Array:
    """float32[n]: the encoder's cosine of each (query, passage), computed where `known` is NaN."""
    out = known.astype(np.float32, copy=True)
    queries = np.asarray(vectors[1][block.low : block.high], np.float32)
    lacking = np.flatnonzero(np.isnan(out))
    for rows in np.array_split(lacking, max(1, len(lacking) // 65_536)):
        query, passage = pairs[rows, 0], pairs[rows, 1]
        out[rows] = np.einsum("ij,ij->i", queries[query], vectors[0][passage], dtype=np.float32)
    return out


def _taught(run: Context, world: Numbered, block: Block, number: str) -> Callable[[Array], Array]:
    """Looks up float32[n] for pairs of (query from block.low, passage); NaN where the teacher gave no score."""
    if run.job.teacher is None:
        return lambda pairs: np.full(len(pairs), np.nan, np.float32)
    table = store.read_table(run.folder.step("teacher") / f"part-{number}.parquet")
    total = len(world.passages)
    query, passage, score = (table.column(name).to_numpy() for name in TAUGHT.names)
    key = (query.astype(np.int64) - block.low) * total + passage
    order = np.argsort(key, kind="stable")

    def look(pairs: Array) -> Array:
        wanted = pairs[:, 0] * total + pairs[:, 1]
        at = np.minimum(np.searchsorted(key[order], wanted), len(order) - 1)
        return np.where(key[order][at] == wanted, score[order][at], np.float32(np.nan)).astype(np.float32)

    return look
