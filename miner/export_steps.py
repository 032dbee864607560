"""The last steps of a job: which candidates become negatives, and the training files with their data card."""

from __future__ import annotations

import importlib.metadata
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from miner import calibrate_judge, exporters, generate_steps, store, urls
from miner.card import card
from miner.config import Job
from miner.exporters import scores, split
from miner.generate_steps import positives_of
from miner.judge_steps import judged_parts
from miner.records import FALSE_NEGATIVES, POSITIVES, TEXT
from miner.stages import decisions, export
from miner.steps import Context, Done

Facts = dict[str, Any]
# What the plain and the training files need of the decisions; the other columns are read for provenance alone.
COLUMNS = ["query_id", "doc_id", "score", "teacher_score", "kept", "slot"]


def run_decisions(run: Context, work: Path) -> Done:
    written = _synthetic_rows(run)
    counts = _decide(run, work, written)
    if not run.job.generator.enabled:
        return Done(counts)
    told = generate_steps.style_of(run, _decided(work))
    if told["verdict"] == "refuse":
        counts = _decide(run, work, generate_steps.left_out(written, _decided(work)))
    if warning := generate_steps.style_warning(told):
        run.warnings.append(warning)
    return Done({**counts, "style": generate_steps.style_card(told)})


def _decided(work: Path) -> Iterator[pa.Table]:
    columns = ["query_id", "doc_id", "source", "kept", "reason"]
    return (store.read_table(path, columns) for path in sorted(work.glob("part-*.parquet")))


def _decide(run: Context, work: Path, written: dict[str, list[dict[str, Any]]]) -> Facts:
    counts: Counter[str] = Counter()
    outcomes: Counter[str] = Counter()
    for part, judged in judged_parts(run):
        positives = positives_of(part).column("query_id").to_pylist()
        mine = {q: written[q] for q in set(positives) if q in written}
        decided, became = decisions.run(store.read_table(part), judged, mine, positives, run.job)
        number = part.stem.removeprefix("part-")
        store.write_table(work / f"outcomes-{number}.parquet", became)
        relevant = decisions.false_negatives(decided, became, judged, run.job)
        if relevant is not None:
            name = "relabelled" if run.job.judge.false_negatives == "relabel" else "false_negatives"
            store.write_table(work / f"{name}-{number}.parquet", relevant)
        store.write_table(work / f"part-{number}.parquet", decided)
        for row in decided.group_by(["source", "reason"]).aggregate([([], "count_all")]).to_pylist():
            counts[f"{row['source']}.{row['reason'] or 'kept'}"] += row["count_all"]
        outcomes.update(reason or "exported" for reason in became.column("reason").to_pylist())
    return {"candidates": dict(sorted(counts.items())), "queries": dict(sorted(outcomes.items()))}


def _synthetic_rows(run: Context) -> dict[str, list[dict[str, Any]]]:
    if not run.job.generator.enabled:
        return {}
    judged = {(r["query_id"], r["doc_id"]): r for r in run.table("synthetic_judgments", "judgments").to_pylist()}
    rows: dict[str, list[dict[str, Any]]] = {}
    for row in run.table("synthetic", "synthetic").to_pylist():
        judgment = judged.get((row["query_id"], row["doc_id"]), {})
        rows.setdefault(row["query_id"], []).append({**row, "judgment": judgment})
    return rows


# ---------------------------------------------------------------- export


def run_export(run: Context, work: Path) -> Done:
    calibrate_judge.gate(run)
    settings, texts = run.job.export, _texts(run)
    rules = export.Rules(settings, run.job.seed)
    survey = scores.survey(export.run(_parts(run, COLUMNS), texts, rules))
    rules = rules._replace(scale=survey.scale(settings.score_scale), dev=_held_out(run, texts, rules))
    detailed = rules._replace(keys=_keys(run))
    counts: dict[str, Any] = {}
    files: list[exporters.File] = []
    for name in dict.fromkeys(settings.formats):
        splits = _splits(run, texts, detailed if name == "parquet" else rules)
        plan = exporters.Plan(splits, texts.passages, work, settings, run.job.mining.negatives, survey.taught)
        written = exporters.get(name)(name, plan)
        counts[name] = written.counts
        files += written.files
    tables = (t for name, blocks in _splits(run, texts, detailed).items() for t in export.provenance(blocks(), name))
    counts["negatives"] = store.write_batches(work / "provenance.parquet", export.PROVENANCE, tables)
    if parts := run.parts("decisions", "relabelled"):
        found = (_relabelled(part) for part in parts)
        counts["relabelled"] = store.write_batches(work / "relabelled.parquet", FALSE_NEGATIVES, found)
    if rules.dev is not None:
        counts["dev_queries"] = len(rules.dev)
    if survey.lost:
        counts["left_out"] = survey.lost
    told = facts(run, survey, counts, files)
    told["scores"] |= _spread(scores.survey(export.run(_parts(run, COLUMNS), texts, rules._replace(dev=None))))
    store.write_text(work / "README.md", card(told))
    return Done(counts)


def publish(run: Context, last: str) -> None:
    """Copy the finished export to `export.copy_to`, where the run came so far."""
    where = run.job.export.copy_to
    if where is not None and last == "export":
        urls.publish(run.folder.step("export"), where, run.folder.root / "copied.json")


def _texts(run: Context) -> export.Texts:
    corpus = store.read_table(run.folder.step("corpus") / "passages.parquet", ["doc_id", "title", "text"])
    written = None
    if run.job.generator.enabled:
        made = run.table("synthetic", "synthetic").select(["doc_id", "text", "corpus_id"])
        own = pc.not_equal(made.column("doc_id"), pc.fill_null(made.column("corpus_id"), ""))
        made = made.filter(pc.and_(made.column("text").is_valid(), own)).drop_columns(["corpus_id"])
        written = made.append_column("title", pa.array([""] * made.num_rows, TEXT))
    return export.Texts(run.queries, exporters.Passages(corpus, written))


def _splits(run: Context, texts: export.Texts, rules: export.Rules) -> dict[str, exporters.Blocks]:
    columns = None if rules.keys is not None else COLUMNS

    def blocks(held_out: bool) -> exporters.Blocks:
        return lambda: export.run(_parts(run, columns), texts, rules._replace(held_out=held_out))

    return {"train": blocks(False)} | ({"dev": blocks(True)} if rules.dev is not None else {})


def _held_out(run: Context, texts: export.Texts, rules: export.Rules) -> pa.Array | None:
    """The ids of the dev queries; None where none are wanted or none can be had."""
    share = run.job.export.dev_share
    if not share:
        return None
    whole = rules._replace(settings=rules.settings.model_copy(update={"positives": "together"}))
    ids: list[str] = []
    queries: list[str] = []
    owner, rows = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    for block in export.run(_parts(run, COLUMNS), texts, whole):
        owner.append(block.positives.query + len(ids))
        rows.append(block.positives.row)
        ids += block.ids.to_pylist()
        queries += block.queries.to_pylist()
    cluster = split.clusters(queries, np.concatenate(owner), np.concatenate(rows))
    out = split.held_out(ids, cluster, share, run.job.seed)
    if out.any():
        return pa.array(ids, TEXT).filter(pa.array(out))
    run.warnings.append(
        f"export: nothing is held out: no cluster of like queries is within dev_share {share} of {len(ids)} queries"
    )
    return None


def _keys(run: Context) -> export.Keys:
    keys: export.Keys = {"judgments": {}, "synthetic": {}}
    if run.job.judge.enabled:
        keys["judgments"] |= _request_keys(run.table("judgments", "judgments"))
    if run.job.generator.enabled:
        keys["judgments"] |= _request_keys(run.table("synthetic_judgments", "judgments"))
        keys["synthetic"] |= _request_keys(run.table("synthetic", "synthetic"))
    return keys


def _request_keys(table: pa.Table) -> dict[tuple[str, str], str]:
    columns = [table.column(name).to_pylist() for name in ("query_id", "doc_id", "request_key")]
    return {(query_id, doc_id): key for query_id, doc_id, key in zip(*columns, strict=True)}


def _parts(run: Context, columns: list[str] | None) -> Iterator[export.Part]:
    for part in run.parts("decisions", "part"):
        number = part.stem.removeprefix("part-")
        positives = run.folder.step("candidates") / f"positives-{number}.parquet"
        yield export.Part(
            store.read_table(part, columns),
            store.read_table(part.with_name(f"outcomes-{number}.parquet")),
            _with_relabelled(run, store.read_table(positives), part.with_name(f"relabelled-{number}.parquet")),
        )


def _with_relabelled(run: Context, positives: pa.Table, path: Path) -> pa.Table:
    """The positives, and what the judge found relevant where the job relabels: `source` then tells them apart.

    A grade of the judge is not on the scale of the data's relevance, so these get the lowest that makes a positive.
    """
    if not path.is_file():
        return positives
    more = _relabelled(path).select([*POSITIVES.names, "source"])
    lowest = pa.array([run.job.data.relevant_from] * more.num_rows, pa.int32())
    more = more.set_column(more.column_names.index("relevance"), "relevance", lowest)
    known = positives.append_column("source", pa.array(["positive"] * positives.num_rows, pa.string()))
    return pa.concat_tables([known, more.cast(known.schema)])


def _relabelled(path: Path) -> pa.Table:
    """Of the queries that are exported."""
    became = store.read_table(path.with_name(path.name.replace("relabelled", "outcomes")))
    found = store.read_table(path)
    kept = became.filter(pc.equal(became.column("reason"), "")).column("query_id").combine_chunks()
    return found.filter(pc.is_in(found.column("query_id"), value_set=kept))


# ---------------------------------------------------------------- the data card


def described(run: Context) -> str:
    """A digest of what the card says of the job and no file of an earlier step shows: one of the step's inputs."""
    return store.digest([_settings(run.job), _models(run.job), _prompts(run), run.job.seed])


def facts(run: Context, survey: scores.Survey, counts: Facts, files: list[exporters.File]) -> Facts:
    """All that the card says. No path, no address and no time is in it: two folders give the same card."""
    settings = run.job.export
    corpus, decided = run.folder.stamp("corpus"), run.folder.stamp("decisions")
    assert corpus is not None, "the export follows it"
    assert decided is not None, "the export follows them"
    written = [*files, exporters.File("provenance", "train", "provenance.parquet", counts["negatives"])]
    rows = Counter[str]()
    for file in written:
        rows[file.name] += file.rows
    paths = {file.name: file.pattern.removesuffix("/*.jsonl") for file in written if file.split == "train"}
    return {
        "title": settings.name or f"{_name(run.job.data.path)}: hard negatives",
        "license": settings.license,
        "license_note": settings.license_note,
        "language": settings.language,
        "source": {"name": _name(run.job.data.path), **_sizes(run)},
        "files": [file[:3] for file in written],
        "rows": dict(rows),
        "exported": {
            "dev_queries": counts.get("dev_queries", 0),
            **{name: getattr(survey, name) for name in ("queries", "positives", "negatives", "fewest", "most")},
        },
        "models": _models(run.job),
        "prompts": _prompts(run),
        "settings": _settings(run.job),
        "candidates": decided.counts["candidates"],
        "outcomes": decided.counts["queries"],
        "lost": survey.lost,
        "judged": run.job.judge.enabled,
        "judge": calibrate_judge.card_facts(run),
        "unvouched": calibrate_judge.uncalibrated(run),
        "relabelled": counts.get("relabelled", 0),
        "style": decided.counts.get("style"),
        "scores": _scores(run.job, survey),
        "train": {
            "model": _trained(run.job),
            "pooling": _pooling(run),
            "prompt": settings.prompt,
            "group": 1 + max(survey.fewest, 1),
            "paths": paths,
            "taught": survey.taught,
        },
        "reproduce": {
            "miner": importlib.metadata.version("miner"),
            "job": store.digest(_portable(run.job.model_dump(mode="json", exclude={"engine"}))),
            "data": corpus.hash,
            "seed": run.job.seed,
        },
    }


def _sizes(run: Context) -> dict[str, int]:
    step = run.folder.step("corpus")
    return {name: store.count_rows(step / f"{name}.parquet") for name in ("passages", "queries")}


def _name(value: str) -> str:
    """The last part of a local path; another name, such as one of the hub, as it is."""
    return Path(value).name if Path(value).is_absolute() else value


def _models(job: Job) -> list[dict[str, str]]:
    dense = f"{len(job.mining.retrievers)} retrievers: " + ", ".join(r.label for r in job.mining.retrievers)
    found = [{"role": "encoder", "name": _name(job.encoder.model), "detail": dense}]
    if job.teacher:
        found.append({"role": "teacher", "name": _name(job.teacher.model), "detail": "cross-encoder"})
    for role, stage in (("judge", job.judge), ("generator", job.generator)):
        endpoint = stage.llm or job.llm
        if stage.enabled and endpoint is not None:
            found.append({"role": role, "name": _name(endpoint.model), "detail": ""})
    return found


def _prompts(run: Context) -> list[dict[str, str]]:
    stages = [stage for stage in ("judge", "generator") if getattr(run.job, stage).enabled]
    return [{"stage": s, "name": run.prompt(s).front.name, "version": run.prompt(s).version} for s in stages]


# Where things lie and how they are reached changes no file.
_PLACES = (
    "job",
    "vector_cache",
    "previous",
    "prompts",
    "base_url",
    "api_key",
    "answers",
    "replicas",
    "prices",
    "copy_to",
)


def _portable(value: Any) -> Any:
    """Settings without what differs from one machine to the next; of absolute paths the last part."""
    if isinstance(value, dict):
        return {name: _portable(inner) for name, inner in value.items() if name not in _PLACES}
    if isinstance(value, list | tuple):
        return [_portable(inner) for inner in value]
    return _name(value) if isinstance(value, str) else value


def _settings(job: Job) -> dict[str, str]:
    """The thresholds, flat: all that is set of mining and filters, and of judge and generator where they are on."""
    names = ["mining", "filters", *(n for n in ("judge", "generator") if getattr(job, n).enabled)]
    wanted: Any = {"data": {"relevant_from"}, **dict.fromkeys(names, True)}
    return dict(_flat("", _portable(job.model_dump(mode="json", include=wanted))))


def _flat(prefix: str, value: Any) -> Iterator[tuple[str, str]]:
    if isinstance(value, dict):
        for name, inner in value.items():
            if name not in ("llm", "index"):
                yield from _flat(f"{prefix}.{name}" if prefix else name, inner)
    elif value is not None:
        yield prefix, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _scores(job: Job, survey: scores.Survey) -> Facts:
    settings = job.export
    whose = "The teacher's logits" if settings.score_of == "teacher" else "The encoder's cosines"
    return {"of": whose, "scale": settings.score_scale, "low": survey.low, "high": survey.high}


def _spread(survey: scores.Survey) -> Facts:
    """Of the scores as exported."""
    return {name: getattr(survey, name) for name in ("spread", "top", "top_advised")}


def _pooling(run: Context) -> str:
    """How the model to start from pools: cls, mean or last, as it was encoded with."""
    stamp = run.folder.stamp("vectors")
    return str(stamp.inputs.get("encoder.pooling") or "cls") if stamp is not None else "cls"


def _trained(job: Job) -> str:
    """A model to start from: the encoder, where it is one that can be trained."""
    local = job.encoder.backend in ("auto", "torch", "onnx")
    return _name(job.encoder.model) if local else "BAAI/bge-base-en-v1.5"
