"""Train an encoder on a job's triples and on the same rows with other negatives, and measure what each has learnt.

OUT/runs/KEY.json   of one training: a value a query and measure; the key is made from all that it depends on
OUT/results.json    everything that the table was made from; OUT/table.md, OUT/plot.svg
OUT/models/         ARM-SEED-KEY, the trained encoders, where they are wanted
"""

from __future__ import annotations

import importlib.metadata
import json
import logging
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from miner import config, encoders, evaluate_data, evaluation, progress, ranking, store, trials
from miner.errors import UserError
from miner.evaluate_data import Held, Negatives, World
from miner.evaluation import BEFORE, JOB
from miner.records import content_id
from miner.steps import Context
from miner.trials import Lesson, Recipe

Array = np.ndarray[Any, Any]
Row = dict[str, Any]
log = logging.getLogger("miner")
TEXTS_AT_ONCE = 512
VERSIONS = ("torch", "transformers", "sentence-transformers", "ir_measures")


@dataclass(frozen=True)
class Options:
    """As they stand on the command line. against: other jobs by file name. limit: training queries at most."""

    eval: Path | None
    split: str
    baselines: tuple[str, ...]
    against: dict[str, config.Job]
    model: str | None
    negatives: int
    seeds: int
    recipe: Recipe
    limit: int | None
    output: Path | None
    keep_models: bool


@dataclass(frozen=True)
class Plan:
    """All that is trained and measured. negatives: arm -> query -> passages; those by lot are of the first seed."""

    world: World
    held: Held
    settings: config.Encoder
    options: Options
    rows: Array
    negatives: dict[str, Negatives]
    lost: dict[str, int]
    identity: str
    folder: Path

    @property
    def seeds(self) -> list[int]:
        first = self.world.run.job.seed
        return list(range(first, first + self.options.seeds))

    @property
    def arms(self) -> list[str]:
        return [*self.options.baselines, *self.options.against, JOB]


@dataclass(frozen=True, eq=False)
class Trial:
    """One training, or none: the untrained encoder has no lesson. key: made from all that its values depend on."""

    arm: str
    seed: int
    lesson: Lesson | None
    key: str


# ---------------------------------------------------------------- before the first training


def plan(run: Context, options: Options) -> Plan:
    """Read, check and mine everything that needs no training. Raises UserError."""
    held = evaluate_data.held_out(run, options.eval, options.split)
    others = {
        name: evaluate_data.opened(job, Path(name)) for name, job in options.against.items()
    }  # before anything that takes long
    settings = student(run.job.encoder, options)
    trials.check()
    world = World(run)
    negatives = dict(_arms(world, options, others))
    rows, lost = evaluation.shared_rows(world.pairs, negatives, options.negatives)
    rows = _limited(world, rows, options.limit)
    if not len(rows):
        worst = max(lost, key=lambda arm: lost[arm])
        raise UserError(
            f"miner evaluate: no training query has {options.negatives} negatives in every arm ({worst} lacks some for"
            f" {lost[worst]} of {len(world.pairs)} rows); lower --negatives"
        )
    identity = store.digest(encoders.fingerprint(settings))
    folder = options.output or run.folder.root / "evaluate"
    return Plan(world, held, settings, options, rows, negatives, lost, identity, folder)


def student(encoder: config.Encoder, options: Options) -> config.Encoder:
    """The encoder that is trained: the job's own through torch, or the one that the command names."""
    length = {"backend": "torch", "max_length": options.recipe.max_length}
    if options.model is not None:
        local = Path(options.model).expanduser()
        name = str(local.resolve()) if local.exists() else options.model
        return config.Encoder(model=name, device=encoder.device, **length)  # type: ignore[arg-type]
    if encoder.remote or encoder.backend == "precomputed" or encoder.onnx_file:
        what = "onnx_file" if encoder.onnx_file else f"backend {encoder.backend}"
        raise UserError(
            f"miner evaluate: the job's encoder ({what}) cannot be trained; name a model for torch with --model"
        )
    return encoder.model_copy(update={**length, "precision": "fp32", "tokenizer_file": None})


def _arms(world: World, options: Options, others: dict[str, Context]) -> Iterator[tuple[str, Negatives]]:
    """arm -> negatives, the job's first. Those by lot are the first seed's: at another there are as many."""
    yield JOB, evaluate_data.exported(world)
    for name, other in others.items():
        yield name, evaluate_data.exported(world, other)
    if "random" in options.baselines:
        yield "random", evaluate_data.random(world, options.negatives, world.run.job.seed)
    if "bm25" in options.baselines:
        yield "bm25", evaluate_data.bm25(world, options.negatives)
    if "st" in options.baselines:
        yield "st", evaluate_data.library(world, options.negatives)


def _limited(world: World, rows: Array, limit: int | None) -> Array:
    """The rows of at most so many queries, drawn by a hash of seed and id."""
    queries = np.unique(rows[:, 0])
    if limit is None or limit >= len(queries):
        return rows
    seed = ranking.mix(np.array([world.run.job.seed], np.uint64))
    drawn = queries[np.argsort(ranking.mix(world.numbered.query_hash[queries] ^ seed), kind="stable")[:limit]]
    kept: Array = rows[np.isin(rows[:, 0], drawn)]
    return kept


def trials_of(found: Plan) -> list[Trial]:
    """The untrained encoder, then seed by seed every arm, so that a run that was stopped has whole seeds first."""
    out = [Trial(BEFORE, found.seeds[0], None, _key(found, None))]
    for seed in found.seeds:
        out += [Trial(arm, seed, lesson, _key(found, lesson)) for arm, lesson in _lessons(found, seed)]
    return out


def _lessons(found: Plan, seed: int) -> Iterator[tuple[str, Lesson]]:
    """The same rows in the same batches for every arm."""
    world, options = found.world, found.options
    negatives = found.negatives
    if "random" in options.baselines:
        negatives = {**negatives, "random": evaluate_data.random(world, options.negatives, seed)}
    queries, positives = found.rows[:, 0].tolist(), found.rows[:, 1].tolist()
    kept = {arm: [of[query][: options.negatives] for query in queries] for arm, of in negatives.items()}
    texts = [
        world.classes([positive, *(one for of in kept.values() for one in of[row])])
        for row, positive in enumerate(positives)
    ]
    known = [world.positives[query] for query in queries]
    batches = []
    for epoch in range(options.recipe.epochs):
        rows = evaluation.order(len(queries), seed, epoch).tolist()
        batches += evaluation.batches(rows, queries, known, texts, options.recipe.batch)
    columns = [[world.queries[one] for one in queries], [world.passages[one] for one in positives]]
    for arm in found.arms:
        more = [[world.passages[one] for one in place] for place in zip(*kept[arm], strict=True)] if arm in kept else []
        yield arm, Lesson([*columns, *more], batches, seed)


def _key(found: Plan, lesson: Lesson | None) -> str:
    """Two arms with the same negatives have the same key, and are trained once."""
    recipe, held = found.options.recipe, found.held.digest
    versions = [importlib.metadata.version(name) for name in VERSIONS]
    if lesson is None:
        return store.digest([found.identity, held, recipe.max_length, versions])[:32]
    texts = [[content_id(text) for text in column] for column in lesson.columns]
    return store.digest([found.identity, held, recipe, texts, lesson.batches, lesson.seed, versions])[:32]


# ---------------------------------------------------------------- training and measuring


def run(found: Plan) -> Row:
    """Do what is not done, write the results. Returns them."""
    todo = trials_of(found)
    started, trained = time.monotonic(), 0
    lacking = len({trial.key for trial in todo if not _is_done(found, trial)})
    log.info("evaluate: %d of %d trials are to be done", lacking, len({trial.key for trial in todo}))
    for trial in todo:
        if _is_done(found, trial):
            continue
        values = _done(found, trial)
        store.write_json(_file(found, trial), {"arm": trial.arm, "seed": trial.seed, **values})
        trained += 1
        each = (time.monotonic() - started) / trained
        log.info(
            "evaluate: %s, seed %d: %s %.3f; %d of %d done, about %.0f min left",
            *(trial.arm, trial.seed, evaluation.MAIN, float(np.mean(values["values"][evaluation.MAIN]))),
            *(trained, lacking, each * (lacking - trained) / 60),
        )
    results = _results(found, todo)
    _write(found, results)
    return results


def _file(found: Plan, trial: Trial) -> Path:
    return found.folder / "runs" / f"{trial.key}.json"


def _model(found: Plan, trial: Trial) -> Path:
    """The key stands in the name: another recipe gives another model."""
    return found.folder / "models" / f"{trial.arm}-{trial.seed}-{trial.key[:8]}"


def _is_done(found: Plan, trial: Trial) -> bool:
    """Measured, and where models are kept, there as a model: one that an earlier run threw away is trained again."""
    lacks_model = found.options.keep_models and trial.lesson is not None and not _model(found, trial).is_dir()
    return _file(found, trial).is_file() and not lacks_model


def _kept(model: Any, folder: Path) -> None:
    """Save the model whole or not at all."""
    work = folder.with_name(f".{folder.name}.{os.getpid()}.part")
    try:
        work.parent.mkdir(parents=True, exist_ok=True)
        model.save(work)
        store.promote(work, folder)
    except OSError as error:
        raise UserError(f"{folder}: cannot write ({error.strerror}); free space or choose another folder") from None
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _done(found: Plan, trial: Trial) -> Row:
    """Train and measure: {"values": measure -> one number a query, "loss": mean loss or null}."""
    from miner.trials import ir_measures, sentence_transformers

    model, loss = sentence_transformers.load(found.settings), None
    if trial.lesson is not None:
        with progress.bar(f"train {trial.arm} {trial.seed}", len(trial.lesson.batches), "steps") as tick:
            loss = model.fit(trial.lesson, found.options.recipe, tick)
        if found.options.keep_models:
            _kept(model, _model(found, trial))
    held = found.held
    doc_ids, query_ids = list(held.passages), list(held.qrels)
    with progress.bar(f"encode for {trial.arm} {trial.seed}", len(doc_ids) + len(query_ids), "texts") as tick:
        passages = _encoded(model, list(held.passages.values()), "passage", tick)
        queries = _encoded(model, [held.queries[one] for one in query_ids], "query", tick)
    scores, rows = evaluation.top(queries, passages, trials.DEPTH)
    ranked = {
        query_id: {doc_ids[at]: float(score) for at, score in zip(mine, of, strict=True)}
        for query_id, mine, of in zip(query_ids, rows, scores, strict=True)
    }
    return {"loss": loss, "values": ir_measures.measure(held.qrels, ranked, held.relevant_from)}


def _encoded(model: encoders.Encoder, texts: list[str], kind: encoders.Kind, tick: progress.Tick) -> Array:
    """float32[n, d] in the order of `texts`. Longest first, so that a batch is of one length."""
    order = sorted(range(len(texts)), key=lambda at: (-len(texts[at]), at))
    out: Array = np.empty((0, 0), np.float32)
    for start in range(0, len(order), TEXTS_AT_ONCE):
        some = order[start : start + TEXTS_AT_ONCE]
        vectors = model.encode([texts[at] for at in some], kind)
        if not start:
            out = np.empty((len(texts), vectors.shape[1]), np.float32)
        out[some] = vectors
        tick(len(some))
    return out


# ---------------------------------------------------------------- results


def _results(found: Plan, todo: list[Trial]) -> Row:
    read = {trial: json.loads(_file(found, trial).read_text(encoding="utf-8")) for trial in todo}
    values: dict[str, dict[str, Array]] = {}
    for arm in [BEFORE, *found.arms]:
        own = [read[trial]["values"] for trial in todo if trial.arm == arm]
        values[arm] = {name: np.array([one[name] for one in own]) for name in trials.MEASURES}
    arms = evaluation.report(values, found.world.run.job.seed)
    for row in arms:
        row |= {"loss": [read[t]["loss"] for t in todo if t.arm == row["arm"]], **_character(found, row["arm"])}
    options, held = found.options, found.held
    return {
        "model": _name(found.settings.model),
        "recipe": {**options.recipe._asdict(), "negatives": options.negatives, "seeds": found.seeds},
        "versions": {name: importlib.metadata.version(name) for name in VERSIONS},
        "training": {
            "queries": len(np.unique(found.rows[:, 0])),
            "rows": len(found.rows),
            "rows_of_the_job": len(found.world.pairs),
            "rows_short_of_negatives": found.lost,
            "limit": options.limit,
        },
        "held_out": {
            "name": held.name,
            "queries": len(held.qrels),
            "passages": len(held.passages),
            "relevant_from": held.relevant_from,
            "left_out": held.lost,
        },
        "arms": arms,
        "query_ids": list(held.qrels),
        "per_query": {
            arm: {name: array.mean(axis=0).tolist() for name, array in of.items()} for arm, of in values.items()
        },
    }


def _name(model: str) -> str:
    """The last part of a local path; another name as it is."""
    return Path(model).name if Path(model).is_absolute() else model


def _character(found: Plan, arm: str) -> Row:
    """How near to the query an arm's negatives are by the job's vectors, and how many of them the job exports too.

    gap: the mean of the negative's cosine less that of its row's positive; negatives outside the corpus not counted.
    """
    negatives = found.negatives
    if arm not in negatives:
        return {"gap": None, "shared": None}
    passages, queries = found.world.vectors()
    own, wanted = found.negatives[JOB], found.options.negatives
    gaps, shared = list[float](), 0
    for query, positive in found.rows.tolist():
        mine = negatives[arm][query][:wanted]
        shared += len(set(mine) & set(own[query][:wanted]))
        inside = [one for one in mine if one < len(passages)]
        gaps += (passages[inside] @ queries[query] - passages[positive] @ queries[query]).tolist()
    return {"gap": float(np.mean(gaps)) if gaps else None, "shared": shared / (wanted * len(found.rows))}


def _write(found: Plan, results: Row) -> None:
    from miner.trials import matplotlib

    store.write_json(found.folder / "results.json", results)
    store.write_text(found.folder / "table.md", "\n".join(["# Evaluation", "", *told(results)]) + "\n")
    store.replace(found.folder / "plot.svg", lambda part: matplotlib.draw(results["arms"], evaluation.MAIN, part))


def told(results: Row) -> list[str]:
    """The results as Markdown: what was done, the table, how to read it."""
    recipe, training, held = results["recipe"], results["training"], results["held_out"]
    short = ", ".join(f"{arm} {count}" for arm, count in training["rows_short_of_negatives"].items())
    limit = f", limited to {training['limit']} queries" if training["limit"] else ""
    versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    near = [
        f"{row['arm']} {row['gap']:+.3f} ({row['shared']:.0%})" for row in results["arms"] if row["gap"] is not None
    ]
    return [
        f"- Model: {results['model']}; {versions}.",
        f"- Held out: {held['name']}: {held['queries']} queries, {held['passages']} passages"
        + "".join(f"; left out: {count} {reason}" for reason, count in held["left_out"].items())
        + ".",
        f"- Training: {training['rows']} rows (query, positive) of {training['queries']} queries, the same in every"
        f" arm, {recipe['negatives']} negatives each{limit}. Of the job's {training['rows_of_the_job']} rows these are"
        f" without enough negatives: {short}.",
        f"- Recipe: MultipleNegativesRankingLoss (scale {recipe['scale']:g}), AdamW, learning rate"
        f" {recipe['learning_rate']:g}, {recipe['warmup']:.0%} warm-up, batches of {recipe['batch']} queries,"
        f" {recipe['epochs']} epoch{'s' if recipe['epochs'] > 1 else ''}, {recipe['max_length']} tokens,"
        f" {recipe['precision']}, seeds {', '.join(map(str, recipe['seeds']))}; at one seed every arm gets the same"
        " batches.",
        "",
        evaluation.markdown(results["arms"]),
        "± is the standard deviation over seeds. job - arm: paired by query, seeds averaged, with the 95% interval of a"
        " bootstrap over queries; p of a paired randomization test, after Holm over the trained arms (that of `before`"
        " stands alone). It says what other queries might give, not other trainings: see ± and `ahead`, the seeds at"
        " which the job's mean is higher.",
        "",
        "Mean cosine of the negatives less that of their positive, by the job's encoder (and the share of them that the"
        f" job exports too): {', '.join(near)}.",
    ]
