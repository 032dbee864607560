"""What a job will take on a cluster that a file describes, for its own data or for so many passages and queries."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from miner import config, engine, meter, rates, sizing
from miner.errors import UserError
from miner.steps import Context

Row = dict[str, Any]
TENTH = 10


def run(job: config.Job, file: Path, passages: int | None = None, queries: int | None = None) -> Row:
    """`work`, `cluster`, `stages` (one row each), `total`, `warnings` and the `rates` that were used.

    passages: None reads the job's data and counts; queries: None is a tenth of the passages. hours and dollars are
    None where they cannot be known, and are then not in the total.
    """
    described, known = rates.cluster_file(file)
    values = {name: rate.value for name, rate in known.rates.items()}
    if passages is None:
        counted = _counted(job, values["bytes_a_token"])
    else:
        few = max(passages // TENTH, 1) if queries is None else queries
        counted = passages, few, values["passage_tokens"], values["query_tokens"]
    workers = _workers(job, described)
    cluster = rates.cluster(file, described, known, workers)
    work = _work(job, counted, described, cluster, known, file)
    found = sizing.stages(work, cluster, values)
    return {
        "work": {"passages": work.passages, "queries": work.queries, "dimension": work.dimension, "index": work.index},
        "cluster": {"name": cluster.name, **described.model_dump(include={"nodes", "cores", "gpus", "gpu"})}
        | {"price": cluster.price, "workers": workers},
        "stages": [stage._asdict() for stage in found],
        "total": _total(found),
        "warnings": _not_sized(job) + _warnings(found, cluster),
        "rates": {name: rate.model_dump(mode="json") for name, rate in known.rates.items()},
    }


def _counted(job: config.Job, bytes_a_token: float) -> tuple[int, int, float, float]:
    """Passages, queries and the mean of their tokens, from the corpus step, which is run where it is not done."""
    with engine.opened(job) as context:
        engine.advance(context, "corpus")
        found = [_tokens(context, name, bytes_a_token) for name in ("passages", "queries")]
    (passages, long), (queries, short) = found
    return passages, queries, long, short


def _tokens(context: Context, name: str, bytes_a_token: float) -> tuple[int, float]:
    texts: pa.ChunkedArray = context.table("corpus", name).column("text")
    return len(texts), float(pc.mean(pc.binary_length(texts)).as_py() or 0) / bytes_a_token


def _workers(job: config.Job, described: rates.ClusterFile) -> int:
    """Searchers on a node: one a core that the job's engine reserves, one for all cores of a local job."""
    if job.engine.kind == "local":
        return 1
    most = max(int(described.cores // job.engine.cpus), 1)
    parts = job.engine.shards or job.engine.workers
    return most if parts is None else max(min(most, -(-parts // described.nodes)), 1)


def _work(
    job: config.Job,
    counted: tuple[int, int, float, float],
    described: rates.ClusterFile,
    cluster: sizing.Cluster,
    known: rates.Book,
    file: Path,
) -> sizing.Work:
    passages, queries, long, short = counted
    encoder = None if job.encoder.backend == "precomputed" else rates.model(job.encoder.model, known, file)
    dimension = job.encoder.dimensions or (encoder.dimension if encoder else 0)
    if not dimension:
        raise UserError(f"encoder.backend {job.encoder.backend}: set encoder.dimensions, or the size is not known")
    teacher, mining = job.teacher, job.mining
    kind: str = mining.index.kind
    if kind in ("hnsw", "pq"):
        raise UserError(f"mining.index.kind {kind}: its build is not sized; set auto, flat, ivf-flat or ivf-pq")
    if kind == "auto":
        memory = (mining.index.memory_gb or described.memory_gb / 2) * sizing.GB
        kind = sizing.chosen(passages, dimension, queries, memory, cluster.cores)
    pairs = queries * (min(teacher.depth, mining.depth) + 1) if teacher else 0
    return sizing.Work(
        passages,
        queries,
        min(long, job.encoder.max_length),
        short,
        encoder,
        dimension,
        kind,
        mining.depth,
        job.encoder.remote,
        rates.model(teacher.model, known, file) if teacher else None,
        pairs,
        min(long + short, teacher.max_length) if teacher else 0,
        _asked(job, queries, long, known),
        _llm(job, described),
        queries * mining.negatives,
    )


def _asked(job: config.Job, queries: int, long: float, known: rates.Book) -> tuple[sizing.Asked, ...]:
    """Every rung may be asked of every pair; the generator, at most, for all that a query wants."""
    if not job.judge.enabled:
        return ()
    judge, wanted = job.judge, job.mining.negatives
    rungs = [rung.prompt for rung in judge.rungs if rung.kind == "llm"]
    requests = float(queries * (judge.pool or 2 * wanted) * judge.orders)
    found = []
    for name in (*rungs, judge.prompt):
        what = f"judge {name}" if rungs else "judge"
        found.append(sizing.Asked(what, requests, *_judging(name, long, known), bool(judge.rungs)))
    if job.generator.enabled:
        most = float(queries * wanted) * job.generator.max_share * job.generator.samples
        made = (known.rates["generate_prompt"].value, known.rates["generate_answer"].value)
        found.append(sizing.Asked("generate", most, *made, True))
        found.append(sizing.Asked("judge synthetic", most, *_judging(judge.prompt, long, known), True))
    return tuple(found)


def _judging(prompt: str, long: float, known: rates.Book) -> tuple[float, float]:
    """Prompt and answer tokens of a judgment; of a prompt that was not measured, those of `graded`."""
    name = prompt if f"judge_{prompt}_prompt" in known.rates else "graded"
    longer = long - known.rates["judge_passage"].value
    copies = 1 if name == "packed" else 2  # the reference passage of a packed prompt is shared by its passages
    prompt_tokens = known.rates[f"judge_{name}_prompt"].value + copies * longer
    return max(prompt_tokens, 1.0), known.rates[f"judge_{name}_answer"].value


def _llm(job: config.Job, described: rates.ClusterFile) -> float | sizing.Paid | None:
    endpoint = job.judge.llm or job.llm
    if described.llm is not None:
        return described.llm * 1e9
    if endpoint is None:
        return None
    price = meter.price(endpoint)
    off = 1 - price.batch_discount if price and endpoint.backend == "openai-batch" else 1.0
    rpm, tpm = (_limit(endpoint, name) for name in ("rpm", "tpm"))
    if price is None:
        return sizing.Paid(endpoint.model, None, None, rpm, tpm)
    return sizing.Paid(endpoint.model, price.input * off, price.output * off, rpm, tpm)


def _limit(endpoint: config.Endpoint, name: str) -> float | None:
    lanes = [getattr(lane, name) or getattr(endpoint, name) for lane in endpoint.replicas] or [getattr(endpoint, name)]
    return float(sum(lanes)) if all(lanes) else None


def _total(found: list[sizing.Stage]) -> Row:
    hours, dollars = ([getattr(stage, name) for stage in found] for name in ("hours", "dollars"))
    return {
        "hours": sum(value for value in hours if value is not None),
        "dollars": sum(value for value in dollars if value is not None),
        "memory_gb": max(stage.memory_gb for stage in found if stage.gpus == 0),
        "disk_gb": sum(stage.disk_gb for stage in found),
        "hours_unknown": [stage.stage for stage in found if stage.hours is None],
        "dollars_unknown": [stage.stage for stage in found if stage.dollars is None],
    }


def _not_sized(job: config.Job) -> list[str]:
    others = [retriever.label for retriever in job.mining.retrievers if retriever.kind != "dense"]
    return [f"retriever {label}: not sized; its hours and files come on top" for label in others]


def _warnings(found: list[sizing.Stage], cluster: sizing.Cluster) -> list[str]:
    """What does not fit a node."""
    lines = []
    for stage in found:
        workers = cluster.workers if stage.stage == "search" else 1
        if stage.gpus == 0 and (needed := stage.memory_gb * workers) > cluster.memory_gb:
            lines.append(
                f"{stage.stage}: {needed:,.0f} GB a node, which has {cluster.memory_gb:,.0f}; take more or larger nodes"
            )
    return lines
