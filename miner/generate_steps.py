"""The step that has the generator write what mining and judging left short, and the audit of its style."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from miner import encoders, prompts, ranking, shares, store, style
from miner.judge_steps import counted, judged_parts, plain, references, warn, write_failures
from miner.records import SYNTHETIC, TEXT, content_id, is_corpus, texts
from miner.stages import synthetic
from miner.steps import Context, Done
from miner.synthetic_checks import word_count

Array = np.ndarray[Any, Any]
# Of the style audit, by query in the order of a hash: more rows take longer and say no more.
AUDITED = 3000


class Short(NamedTuple):
    """A query that lacks so many negatives. positives: doc ids, the first stands in prompts; pool: (doc_id, score,
    judged irrelevant), best first."""

    query_id: str
    lacks: int
    positives: list[str]
    pool: list[tuple[str, float, bool]]


def run_synthetic(run: Context, work: Path) -> Done:
    short = shortages(run)
    wanted = _demands(run, short)
    total = len(wanted) * run.job.generator.samples
    with run.asking("generator", "generate", total) as ask:
        rows = synthetic.run(
            lambda: iter(wanted), run.prompt("generator"), run.endpoint("generator"), run.job.generator, ask
        )
    _check(run, rows, wanted, short)
    counts: dict[str, Counter[str]] = {name: Counter() for name in ("status", "copy_of", "reason", "tokens")}
    missing: Counter[str] = Counter()
    table = pa.Table.from_pylist(rows, SYNTHETIC)
    store.write_batches(work / "synthetic.parquet", SYNTHETIC, counted([table], counts, missing))
    write_failures(work)
    warn(run, "generate", missing)
    told = plain(counts)
    faults = {"faults": told.pop("reason")} if "reason" in told else {}
    taken = sum(map(is_corpus, rows))
    found = {"corpus_passages": taken} if taken else {}
    return Done({"rows": table.num_rows, **told, **faults, **found}, complete=not missing)


def _check(run: Context, rows: list[synthetic.Row], wanted: list[synthetic.Demand], short: list[Short]) -> None:
    """Fill copies, scores and reasons of what was written; the cheapest checks first."""
    generator = run.job.generator
    by_query = {one.query_id: one for one in short}

    @lru_cache(maxsize=64)  # the rows of a query are neighbours
    def near(query_id: str) -> synthetic.Near:
        one = by_query[query_id]
        positives, mined = ([run.passages[i] for i in ids] for ids in (one.positives, [row[0] for row in one.pool]))
        return synthetic.Near(positives, mined, [row[1] for row in one.pool if not math.isnan(row[1])])

    synthetic.check_texts(rows, wanted, run.prompt("generator"), near, generator)
    if any(map(synthetic.sound, rows)):
        passages = run.table("corpus", "passages")
        corpus = zip(passages.column("doc_id").to_pylist(), texts(passages), strict=True)
        met = partial(_met, run)
        synthetic.mark_corpus(rows, near, corpus, met, run.passages.__getitem__, generator.checks)
    if any(row["text"] for row in rows):
        encoder = encoders.load(run.job.encoder, run.job.token_outputs)
        query_vectors, passage_vectors = _vectors(run, "queries", "query_id"), _vectors(run, "passages", "doc_id")

        def known(query_id: str) -> Array:
            one = by_query[query_id]
            return passage_vectors([*one.positives, *(row[0] for row in one.pool)])

        vectors = synthetic.score(rows, query_vectors, lambda found: encoder.encode(found, "passage"))
        synthetic.check_scores(rows, vectors, near, known, generator.checks)
    sources = [demand.source(generator) for demand in wanted for _ in range(generator.samples)]
    synthetic.check_job(rows, sources, near, generator)


def _met(run: Context, queries: set[str]) -> dict[str, set[str]] | None:
    """Of each query the doc ids that mining found for it, in the pool or not, and its positives.

    None where mining refuses passages for what they are: nobody has asked that of one that it did not find.
    """
    refusing = [*run.job.filters.model_dump().values(), run.job.mining.max_uses]
    if any(rule is not None for rule in refusing):
        return None
    found: dict[str, set[str]] = {query_id: set() for query_id in queries}
    wanted = pa.array(sorted(queries), TEXT)
    for part in run.parts("candidates", "part") if queries else []:
        for path in (part, part.with_name(part.name.replace("part-", "positives-"))):
            table = store.read_table(path, ["query_id", "doc_id"])
            table = table.filter(pc.is_in(table.column("query_id"), value_set=wanted))
            for query_id, doc_id in zip(*(column.to_pylist() for column in table.columns), strict=True):
                found[query_id].add(doc_id)
    return found


# ---------------------------------------------------------------- what is wanted


def demands(run: Context, judged: bool = True) -> list[synthetic.Demand]:
    """What the generator is to write. judged: false where the judge has not answered yet: then the most it may be."""
    return _demands(run, shortages(run, judged))


def shortages(run: Context, judged: bool = True) -> list[Short]:
    """The queries that are short, by candidates file and query_id. judged: as for `demands`; the whole pool then counts
    as irrelevant."""
    reference, wanted = references(run), run.job.mining.negatives
    found = []
    for part, answers in judged_parts(run) if judged else ((part, None) for part in run.parts("candidates", "part")):
        table = store.read_table(part, ["query_id", "doc_id", "score", "pool_rank"])
        taken = _taken(table, answers, wanted) if judged else Counter[str]()
        pools = _pools(table, answers)
        positives: dict[str, list[str]] = {}
        for row in positives_of(part).select(["query_id", "doc_id"]).to_pylist():
            positives.setdefault(row["query_id"], []).append(row["doc_id"])
        for query_id in sorted(positives):
            count = synthetic.wanted(wanted - taken[query_id], wanted, run.job.generator)
            if count:
                first = reference[query_id]
                ids = [first, *sorted(doc_id for doc_id in positives[query_id] if doc_id != first)]
                found.append(Short(query_id, count, ids, pools.get(query_id, [])))
    return found


def _pools(table: pa.Table, judged: pa.Table | None) -> dict[str, list[tuple[str, float, bool]]]:
    """The pool of each query, best first. A passage without a score has NaN."""
    pool = table.filter(table.column("pool_rank").is_valid())
    fits = [True] * pool.num_rows
    if judged is not None:
        fits = [verdict == "irrelevant" for verdict in judged.column("verdict").to_pylist()]
    found: dict[str, list[tuple[int, str, float, bool]]] = {}
    for row, fit in zip(pool.to_pylist(), fits, strict=True):
        cosine = math.nan if row["score"] is None else row["score"]
        found.setdefault(row["query_id"], []).append((row["pool_rank"], row["doc_id"], cosine, fit))
    return {query_id: [row[1:] for row in sorted(rows)] for query_id, rows in found.items()}


def _demands(run: Context, short: list[Short]) -> list[synthetic.Demand]:
    """By query, in order. Where a prompt shows a near-miss, a query that has none gets another one, or nothing."""
    generator = run.job.generator
    if generator.strategies:
        return list(synthetic.in_turn(_by_strategy(run, short)))
    prompt = run.prompt("generator")
    found = []
    for one in short:
        turns = synthetic.facets(int(content_id(one.query_id), 16), one.lacks, generator)
        found += [
            _demand(run, prompt, one, number, facet, 1) for number, facet in enumerate(turns) if _fits(prompt, one)
        ]
    return list(synthetic.in_turn(found))


def _by_strategy(run: Context, short: list[Short]) -> list[synthetic.Demand]:
    """Strategies and facets in quota over the whole job: each facet as often as any other that stands beside it."""
    strategies, loaded = run.job.generator.strategies, strategy_prompts(run)
    slots, keys, open_ = [], [], []
    for one in short:
        fitting = [i for i, prompt in enumerate(loaded) if _fits(prompt, one)]
        for number in range(one.lacks if fitting else 0):
            slots.append((one, number))
            keys.append(f"{one.query_id} {number}")
            open_.append(fitting)
    dealt = shares.deal(keys, [strategy.weight for strategy in strategies], open_, run.job.seed)
    facets = [strategy.facets or run.job.generator.facets for strategy in strategies]
    facet = [""] * len(slots)
    for group in dict.fromkeys(facets):
        rows = [i for i, o in enumerate(dealt) if facets[o] == group and "facet" in loaded[o].front.inputs]
        every = [range(len(group))] * len(rows)
        turns = shares.deal([keys[i] for i in rows], [1.0] * len(group), every, run.job.seed)
        for i, turn in zip(rows, turns, strict=True):
            facet[i] = group[turn]
    return [
        _demand(run, loaded[o], *slot, given, strategies[o].k or 1)
        for slot, o, given in zip(slots, dealt, facet, strict=True)
    ]


def strategy_prompts(run: Context) -> list[prompts.Prompt]:
    """The prompt of each of generator.strategies, in order. Raises UserError."""
    own = Path(run.job.prompts) if run.job.prompts else None
    return [prompts.load("generate", strategy.prompt, own) for strategy in run.job.generator.strategies]


def _fits(prompt: prompts.Prompt, one: Short) -> bool:
    return "near_miss" not in prompt.front.inputs or any(fit for _, _, fit in one.pool)


def _demand(run: Context, prompt: prompts.Prompt, one: Short, number: int, facet: str, k: int) -> synthetic.Demand:
    """number: of the demand among those of its query; near-misses come by turns, the best first."""
    shows, misses = prompt.front.inputs, [doc_id for doc_id, _, fit in one.pool if fit]
    near_miss = misses[number % len(misses)] if "near_miss" in shows else ""
    words = 0
    if "words" in shows:
        drawn = one.positives[int(content_id(f"{one.query_id} {number}"), 16) % len(one.positives)]
        words = max(1, word_count(run.passages[drawn][: run.job.generator.max_chars]))
    return synthetic.Demand(
        one.query_id,
        run.queries[one.query_id],
        one.positives[0],
        run.passages[one.positives[0]],
        facet if "facet" in shows else "",
        prompt,
        near_miss,
        run.passages[near_miss] if near_miss else "",
        words,
        k,
    )


def _taken(table: pa.Table, judged: pa.Table | None, wanted: int) -> Counter[str]:
    """Mined negatives by query. An answer that is still to come may admit its passage, so it counts as one."""
    slots = ranking.slots(table, judged, wanted).tolist()
    taken = Counter(q for q, slot in zip(table.column("query_id").to_pylist(), slots, strict=True) if slot)
    if judged is not None:
        taken.update(judged.filter(pc.equal(judged.column("status"), "missing")).column("query_id").to_pylist())
    return taken


def positives_of(part: Path) -> pa.Table:
    return store.read_table(part.with_name(part.name.replace("part-", "positives-")))


def _vectors(run: Context, name: str, column: str) -> Callable[[list[str]], Array]:
    """ids -> float32[n, d] out of the vectors step's file for queries or passages."""
    vectors_ = np.load(run.folder.step("vectors") / f"{name}.npy", mmap_mode="r")
    row = {id_: i for i, id_ in enumerate(run.table("corpus", name).column(column).to_pylist())}
    return lambda ids: np.asarray(vectors_[[row[i] for i in ids]])


# ---------------------------------------------------------------- the audit of its style


def style_of(run: Context, decided: Iterable[pa.Table]) -> dict[str, Any]:
    """Can a classifier tell the synthetic negatives that are kept from the mined ones? For manifest, card and report.

    decided: tables of DECISIONS, of which query_id, doc_id, source and kept are read. At most AUDITED rows of each
    source, by a hash of their query. Keys: auc, low and high (None where nothing was measured), mined, synthetic,
    queries, verdict (ok, warn from style.WARN, refuse from generator.style_refuse, too_few), features, needed.
    """
    written = run.table("synthetic", "synthetic").select(["query_id", "doc_id", "text"]).to_pylist()
    own = {(row["query_id"], row["doc_id"]): row["text"] for row in written if row["text"]}
    chosen: dict[str, list[tuple[str, str, str]]] = {"mined": [], "synthetic": []}
    for table in decided:
        kept = table.filter(table.column("kept")).select(["source", "query_id", "doc_id"])
        for row in kept.to_pylist():
            chosen[row["source"]].append((content_id(row["query_id"]), row["query_id"], row["doc_id"]))
        chosen = {source: _few(rows) for source, rows in chosen.items()}
    mined, made = _few(chosen["mined"], 1), _few(chosen["synthetic"], 1)
    shown = [run.passages[doc_id] for _, _, doc_id in mined] + [own[row[1:]] for row in made]
    second = [False] * len(mined) + [True] * len(made)
    told = style.audit(shown, second, [query_id for _, query_id, _ in (*mined, *made)], run.job.seed)
    return {
        **{name: None if math.isnan(value) else value for name, value in _measured(told).items()},
        "mined": len(mined),
        "synthetic": len(made),
        "queries": told.groups,
        "verdict": _verdict(told, run.job.generator.style_refuse),
        "features": [list(feature) for feature in told.features],
        "needed": told.needed,
    }


def _few(rows: list[tuple[str, str, str]], slack: int = 4) -> list[tuple[str, str, str]]:
    """The first AUDITED by hash, sorted; with slack, so that not every table has them sorted."""
    return rows if len(rows) <= AUDITED * slack and slack > 1 else sorted(rows)[:AUDITED]


def _measured(told: style.Style) -> dict[str, float]:
    return {name: round(getattr(told, name), 4) for name in ("auc", "low", "high")}


def _verdict(told: style.Style, refuse: float | None) -> str:
    """As style.audit has it, with the job's own limit in place of REFUSE."""
    if told.verdict not in ("warn", "refuse"):
        return told.verdict
    return "refuse" if refuse is not None and told.auc >= refuse else "warn"


def style_warning(told: dict[str, Any]) -> str:
    """What the user is told of an audit's verdict; "" for a good one, and where there were too few rows for one: that
    stands in the counts and on the card."""
    if told["verdict"] in ("ok", "too_few"):
        return ""
    what = f"AUC {told['auc']:.2f} ({told['low']:.2f}-{told['high']:.2f})"
    ending = "they show how they were made"
    if told["verdict"] == "refuse":
        ending = "all are left out (generator.style_refuse)"
    return f"generate: a classifier tells synthetic from mined negatives, {what}; {ending}"


def style_card(told: dict[str, Any]) -> dict[str, Any]:
    """The audit as a short table, for the counts of the step and the data card."""
    names = ("verdict", "auc", "low", "high", "synthetic", "mined", "queries", "needed")
    found = {name: told[name] for name in names if told[name] not in (None, "")}
    features = ", ".join(name for name, _ in told["features"][:6])
    return found | ({"most telling features": features} if features else {})


def left_out(written: dict[str, list[dict[str, Any]]], decided: Iterable[pa.Table]) -> dict[str, list[dict[str, Any]]]:
    """The rows of `decisions.run`'s `synthetic`, those that were kept or in reserve marked with reason style_audit."""
    good: set[tuple[str, str]] = set()
    for table in decided:
        made = table.filter(pc.equal(table.column("source"), "synthetic")).select(["query_id", "doc_id", "reason"])
        good.update((r["query_id"], r["doc_id"]) for r in made.to_pylist() if r["reason"] in ("", "surplus"))
    return {
        query_id: [
            {**row, "reason": "style_audit"} if synthetic.sound(row) and (query_id, row["doc_id"]) in good else row
            for row in rows
        ]
        for query_id, rows in written.items()
    }
