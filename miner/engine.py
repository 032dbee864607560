"""The order of the steps, what makes each stale, and the loop that runs what is not fresh."""

from __future__ import annotations

import importlib.metadata
import logging
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa

from miner import (
    calibrate_judge,
    encoders,
    firewall,
    generate_steps,
    judge_steps,
    llms,
    m3_steps,
    mining_steps,
    prompt_files,
    readers,
    steps,
    store,
    teachers,
)
from miner.config import Job, Retriever
from miner.errors import UserError
from miner.export_steps import described, publish, run_decisions, run_export
from miner.job import JobFolder, Stamp
from miner.ledger import Ledger, Request
from miner.steps import Context, Done

log = logging.getLogger("miner")
Inputs = dict[str, Any]


@dataclass(frozen=True)
class Step:
    """`settings`: the part of the job file that the step depends on, flat. `format` goes up when its output changes."""

    name: str
    needs: tuple[str, ...]
    settings: Callable[[Context], Inputs]
    run: Callable[[Context, Path], Done]
    format: int = 1


def _corpus(run: Context) -> Inputs:
    data = run.job.data
    root = Path(data.path)
    files = {
        str(path.relative_to(root) if path.is_relative_to(root) and path != root else path.name): store.file_digest(
            path
        )
        for path in _read_files(run)
    }
    source = {"data.path": data.path} if readers.detect(data) == "datasets" and not root.exists() else {}
    settings = _flat("data", data.model_dump(exclude={"path", "corpus", "firewall"}))
    return settings | {"data.files": files} | source | firewall.fingerprint(data.firewall)


def _read_files(run: Context) -> list[Path]:
    """Of a BEIR folder only what is read, so that a note beside the data does not make the job stale."""
    data = run.job.data
    files = readers.local_files(data)
    if readers.detect(data) != "beir":
        return files
    names = ("corpus.jsonl", "queries.jsonl", f"{data.split}.tsv")
    return [path for path in files if path.name.removesuffix(".gz") in names or str(path) == data.corpus]


def _vectors(run: Context) -> Inputs:
    return _flat("encoder", encoders.fingerprint(run.job.encoder, run.job.token_outputs))


def _index(run: Context) -> Inputs:
    depth = max(run.job.mining.window(r)[0] for r in run.job.mining.retrievers if r.kind == "dense")
    return _flat("index", run.job.mining.index.model_dump()) | {"depth": depth, "seed": run.job.seed}


def _retrieved(retriever: Retriever) -> Callable[[Context], Inputs]:
    def settings(run: Context) -> Inputs:
        mining = run.job.mining
        found: Inputs = {"kind": retriever.kind, "depth": mining.window(retriever)[0], "block": mining.block}
        if retriever.file is not None:
            found["file"] = _run_digests(Path(retriever.file))
        return found | {"language": retriever.language} | _relevant(run)

    return settings


def _run_digests(path: Path) -> dict[str, str]:
    """Of a run file, or of the candidates of an earlier job."""
    files = sorted((path / "candidates").glob("part-*.parquet")) if path.is_dir() else [path]
    if not all(file.is_file() for file in files):
        raise UserError(f"mining.retrievers: file {path}: no such file; name a TREC run or the folder of a job")
    return {file.name: store.file_digest(file) for file in files}


def _fusion(run: Context) -> Inputs:
    mining = run.job.mining
    weights = [[retriever.label, retriever.weight] for retriever in mining.retrievers]
    return {"fusion": mining.fusion, "rrf_k": mining.rrf_k, "weights": weights, "block": mining.block}


def _teacher(run: Context) -> Inputs:
    settings = run.job.teacher
    assert settings is not None, "the plan has this step only with a teacher"
    return _flat("teacher", teachers.fingerprint(settings)) | {"depth": settings.depth} | _fusion(run) | _relevant(run)


def _candidates(run: Context) -> Inputs:
    mining = run.job.mining.model_dump(exclude={"negatives", "index", "retrievers"})
    windows = [[r.label, *run.job.mining.window(r), r.quota] for r in run.job.mining.retrievers]
    seed = {"seed": run.job.seed} if run.job.mining.sample in ("random", "softmax") else {}
    content = {f"filters.{name}": value for name, value in run.job.filters.model_dump().items() if value is not None}
    settings = _flat("mining", mining) | {"windows": windows, "pool": run.job.pool_size}
    return settings | seed | content | _fusion(run) | _relevant(run)


def _relevant(run: Context) -> Inputs:
    return {"data.relevant_from": run.job.data.relevant_from}


def _judge(run: Context) -> Inputs:
    return _flat("judge", judge_steps.settings(run.job)) | _asked(run, "judge")


def _written(run: Context) -> Inputs:
    """Of the judging of what was generated: no canary is among it."""
    return {name: value for name, value in _judge(run).items() if not name.startswith("judge.canaries")}


def _rung(run: Context, number: int) -> Inputs:
    at = judge_steps.at(run, number)
    settles = [[rung.name, rung.settles] for rung in run.job.judge.rungs[: number + 1]]
    if at is not None:
        return _judge(at) | {"settles": settles}
    bounds = run.job.judge.rungs[number].model_dump(include={"kind", "above", "below", "unit"})
    return _flat("rung", bounds) | {"settles": settles}


def _cascade(run: Context) -> Inputs:
    return {"settles": [[rung.name, rung.settles] for rung in run.job.judge.rungs]}


def _judging(job: Job) -> list[Step]:
    """The judgments; in a cascade after a step for each rung."""
    needed = ("corpus", "candidates")
    if not job.judge.rungs:
        return [Step("judgments", needed, _judge, judge_steps.run_judgments, format=2)]
    names = judge_steps.rung_steps(job.judge)
    rungs = [
        Step(
            name,
            (*needed, *names[:number]),
            partial(_rung, number=number),
            partial(judge_steps.run_rung, number=number),
        )
        for number, name in enumerate(names)
    ]
    return [*rungs, Step("judgments", tuple(names), _cascade, judge_steps.run_cascade, format=2)]


def _asked(run: Context, stage: str) -> Inputs:
    endpoint = run.endpoint(stage)
    return {
        f"{stage}.prompt": run.prompt(stage).version,
        f"{stage}.model": endpoint.model,
        f"{stage}.endpoint": llms.identity(endpoint),
        f"{stage}.structured": "json_schema" if endpoint.structured == "auto" else endpoint.structured,
        **({f"{stage}.{name}": True for name in ("repair", "shorten") if getattr(endpoint, name)}),
    }


def _generate(run: Context) -> Inputs:
    # How the style audit ends changes nothing here: the decisions take it in.
    generator = run.job.generator.model_dump(mode="json", exclude={"enabled", "prompt", "llm", "style_refuse"})
    several: Inputs = {"seed": run.job.seed} if run.job.generator.strategies else {}
    for number, prompt in enumerate(generate_steps.strategy_prompts(run), 1):
        several[f"generator.strategies.{number}"] = prompt.version
    settings = _flat("generator", generator) | _asked(run, "generator") | several
    return settings | {"negatives": run.job.mining.negatives}


def _decisions(run: Context) -> Inputs:
    style = {"style_refuse": run.job.generator.style_refuse} if run.job.generator.enabled else {}
    judge = (
        run.job.judge.model_dump(include={"false_negatives", "max_false_negatives"}) if run.job.judge.enabled else {}
    )
    return {"negatives": run.job.mining.negatives, "min_negatives": run.job.export.min_negatives} | style | judge


def _export(run: Context) -> Inputs:
    vouched = {"judge.calibration": calibrate_judge.state(run)} if run.job.judge.enabled else {}
    return _flat("export", run.job.export.model_dump(exclude={"copy_to"})) | {
        "negatives": run.job.mining.negatives,
        "card": described(run),
        **vouched,
    }


def _flat(prefix: str, value: Any) -> Inputs:
    if not isinstance(value, dict):
        return {prefix: list(value) if isinstance(value, tuple) else value}
    return {k: v for name, inner in value.items() for k, v in _flat(f"{prefix}.{name}", inner).items()}


def plan(job: Job) -> list[Step]:
    """The steps of a job in order; what the job file switches off is not among them."""
    judged = ("judgments",) if job.judge.enabled else ()
    written = ("synthetic", "synthetic_judgments") if job.generator.enabled else ()
    needed = ("corpus", "candidates")
    mined = ("corpus", "vectors", "candidates")
    found = [
        Step("corpus", (), _corpus, steps.run_corpus),
        Step("vectors", ("corpus",), _vectors, m3_steps.run_vectors if job.token_outputs else steps.run_vectors),
        *_mining(job),
        *(_judging(job) if job.judge.enabled else ()),
        Step("synthetic", (*mined, "judgments"), _generate, generate_steps.run_synthetic, format=3),
        Step("synthetic_judgments", (*needed, "synthetic"), _written, judge_steps.run_synthetic_judgments, format=2),
        Step("decisions", ("candidates", *judged, *written), _decisions, run_decisions, format=4),
        Step("export", ("corpus", "candidates", *judged, *written, "decisions"), _export, run_export, format=4),
    ]
    return [step for step in found if written or not step.name.startswith("synthetic")]


SEARCHERS = {
    "dense": mining_steps.dense_searcher,
    "bm25": mining_steps.bm25_searcher,
    "run": mining_steps.run_file_searcher,
    "sparse": m3_steps.sparse,
}


def _mining(job: Job) -> list[Step]:
    """The index, a step for each retriever, the teacher where there is one, the candidates."""
    found = []
    if any(retriever.kind == "dense" for retriever in job.mining.retrievers):
        found.append(Step("index", ("vectors",), _index, mining_steps.run_index))
    lists: tuple[str, ...] = ()
    for retriever in sorted(job.mining.retrievers, key=lambda one: one.kind == "multivector"):
        needs = {"dense": ("vectors", "index"), "sparse": ("vectors",), "multivector": ("vectors", *lists)}
        if retriever.kind == "multivector":
            run = partial(m3_steps.run_multivector, retriever=retriever)
        else:
            run = partial(mining_steps.run_retrieved, retriever=retriever, build=SEARCHERS[retriever.kind])
        name = f"retrieved_{retriever.label}"
        found.append(Step(name, ("corpus", *needs.get(retriever.kind, ())), _retrieved(retriever), run))
        lists = (*lists, name)
    taught = ("teacher",) if job.teacher else ()
    if job.teacher:
        found.append(Step("teacher", ("corpus", *lists), _teacher, mining_steps.run_teacher))
    needed = ("corpus", "vectors", *lists, *taught)
    return [*found, Step("candidates", needed, _candidates, mining_steps.run_candidates, format=2)]


LAST = {"mine": "candidates", "judge": "judgments", "generate": "synthetic_judgments", "export": "export"}


def last_step(job: Job, stage: str | None) -> str:
    """The step at which `--until STAGE` (or `miner STAGE`) stops. Raises UserError."""
    names = [step.name for step in plan(job)]
    wanted = LAST.get(stage, stage) if stage else names[-1]
    if wanted not in names:
        known = ", ".join(dict.fromkeys([*LAST, *names]))
        off = stage in LAST or any(wanted == n for n in ("judgments", "synthetic", "synthetic_judgments"))
        why = "is switched off in the job file" if off else f"is no stage; the stages are {known}"
        raise UserError(f"stage {stage} {why}")
    return wanted


@contextmanager
def opened(job: Job, **options: Any) -> Iterator[Context]:
    """The job's context, its folder locked and its ledger open."""
    folder = JobFolder(Path(job.job or ""))
    with folder.lock():
        ledger = Ledger(folder.ledger)
        run = Context(job, folder, ledger, **options)
        try:
            if job.previous is not None:
                _adopt(ledger, Path(job.previous))
            yield run
        finally:
            run.closing.close()
            ledger.close()


def _adopt(ledger: Ledger, previous: Path) -> None:
    if not (previous / "ledger.sqlite").is_file():
        raise UserError(f"previous {previous}: no ledger.sqlite there; name the folder of a job")
    if taken := ledger.adopt(previous / "ledger.sqlite"):
        log.info("%d answers taken over from %s", taken, previous)


def advance(run: Context, until: str | None = None) -> list[Stamp]:
    """Run every step up to `until` that is not fresh; the stamps, in order. Finished steps stay, whatever follows."""
    stamps: dict[str, Stamp] = {}
    last = last_step(run.job, until)
    for stage in _llm_stages(run.job):
        # A broken prompt is told before hours of mining, not after; the text of a sound one is kept with the job.
        prompt_files.pin(run.folder.root, run.prompt(stage))
    judge_steps.check(run)
    for step in plan(run.job):
        inputs = _inputs(run, step, stamps)
        why = run.folder.staleness(step.name, inputs)
        log.info("%s: %s", step.name, why or "fresh")
        stamp = _do(run, step, inputs) if why else run.folder.stamp(step.name)
        assert stamp is not None, "a fresh step has a stamp"
        stamps[step.name] = stamp
        if step.name == last:
            break
    write_manifest(run, stamps)
    publish(run, last)
    return list(stamps.values())


def _do(run: Context, step: Step, inputs: Inputs) -> Stamp:
    start = time.monotonic()
    work = run.folder.work(step.name, inputs)
    done = step.run(run, work)
    pa.default_memory_pool().release_unused()  # or the next step's peak stands on what this one no longer needs
    stamp = run.folder.finish(step.name, inputs, work, done.counts, done.complete)
    log.info("%s: done in %.1f s", step.name, time.monotonic() - start)
    return stamp


def _inputs(run: Context, step: Step, stamps: dict[str, Stamp]) -> Inputs:
    upstream = {f"files of {name}": stamps[name].hash for name in step.needs}
    return {"format": step.format, **step.settings(run), **upstream}


def states(run: Context) -> Iterator[tuple[str, str, Stamp | None]]:
    """(step, why it would run or "", its last stamp) for each step; all that follow a stale one are stale too."""
    stamps: dict[str, Stamp] = {}
    stale = ""
    for step in plan(run.job):
        stamp = run.folder.stamp(step.name)
        if not stale:
            why = run.folder.staleness(step.name, _inputs(run, step, stamps))
            if stamp is not None:
                stamps[step.name] = stamp
            stale = step.name if why else ""
        else:
            why = f"follows {stale}" if stamp else "not done yet"
        yield step.name, why, stamp


def pending(run: Context) -> list[Request]:
    """The requests that the job can name now and that have no answer; [] where none is lacking. Mines if it must."""
    run.collect = True
    try:
        steps_ = [step.name for step in plan(run.job)]
        until = "synthetic_judgments" if "synthetic_judgments" in steps_ else "judgments"
        advance(run, until)
    except llms.Pending as lacking:
        return lacking.requests
    return []


def write_manifest(run: Context, stamps: dict[str, Stamp]) -> None:
    """Configuration, versions and stamps in one file. The only place where a clock is read into a file."""
    value = {
        "miner": importlib.metadata.version("miner"),
        "written_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "python": platform.python_version(),
        "packages": {name: importlib.metadata.version(name) for name in PACKAGES},
        "config": run.job.model_dump(mode="json"),
        "encoder": encoders.fingerprint(run.job.encoder, run.job.token_outputs) if "vectors" in stamps else None,
        "prompts": {stage: _prompt(run, stage) for stage in _llm_stages(run.job)}
        | {f"judge {name}": _prompt(at, "judge") for name, at in judge_steps.judges(run)[:-1]},
        "steps": {name: vars(stamp) for name, stamp in stamps.items()},
        "ledger": {"answers": len(run.ledger)},
    }
    store.write_json(run.folder.manifest, value)


PACKAGES = ("numpy", "pyarrow", "faiss-cpu", "onnxruntime", "tokenizers", "datasets", "openai", "pydantic", "jinja2")


def _llm_stages(job: Job) -> list[str]:
    return [stage for stage in ("judge", "generator") if getattr(job, stage).enabled]


def _prompt(run: Context, stage: str) -> dict[str, str]:
    prompt, endpoint = run.prompt(stage), run.endpoint(stage)
    return {
        "name": prompt.front.name,
        "version": prompt.version,
        "model": endpoint.model,
        "endpoint": llms.identity(endpoint),
    }
