"""The arithmetic of a job on a cluster: hours, memory, disk and dollars of each stage, and the lines that lead there.

Nothing is measured or read here: rates come in by name (see rates.yaml), with the work and the cluster. Work is spread
without loss over what a stage uses, and the whole cluster is paid while a stage runs on it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

Rates = Mapping[str, float]
GB, HOUR, MILLION = 1e9, 3600.0, 1e6
LISTS, PER_LIST, TRAIN_PER_LIST, ROUNDS = 4, 39, 64, 10  # as searchers/dense.py builds an IVF
CENTROIDS, STEP = 256, 4
FILE = 1 << 30  # as searchers/ivf_files.py cuts an index
EXACT_S, EXACT_CORE = 1800.0, 3e10  # as searchers/dense.py chooses


class Model(NamedTuple):
    """weights: that one token passes through; parameters: all; both in numbers, not millions."""

    weights: float
    parameters: float
    dimension: int = 0


class Gpu(NamedTuple):
    """bf16, fp32: dense operations a second."""

    name: str
    bf16: float
    fp32: float
    memory_gb: float


@dataclass(frozen=True)
class Cluster:
    """cores, gpus, memory_gb, price (dollars an hour) and workers are of one node; workers: processes that search."""

    name: str
    nodes: int
    cores: int
    memory_gb: float
    price: float
    gpus: int = 0
    gpu: Gpu | None = None
    workers: int = 1


class Asked(NamedTuple):
    """Requests to an LLM with the mean of their tokens. at_most: no more than so many."""

    stage: str
    requests: float
    prompt: float
    answer: float
    at_most: bool = False


class Paid(NamedTuple):
    """An LLM elsewhere: dollars for a million tokens, None where unknown; per_minute: requests and tokens allowed."""

    model: str
    prompt: float | None
    answer: float | None
    rpm: float | None = None
    tpm: float | None = None


@dataclass(frozen=True)
class Work:
    """What the job asks for. server: a server encodes (bf16), not the torch encoder (fp32); depth: passages a query.

    index: flat, ivf-flat or ivf-pq. pairs: that the teacher scores, each of pair_tokens. llm: parameters of the model
    that the cluster's GPUs serve, or the prices of one elsewhere. rows: exported.
    """

    passages: int
    queries: int
    passage_tokens: float
    query_tokens: float
    encoder: Model | None
    dimension: int
    index: str
    depth: int
    server: bool = False
    teacher: Model | None = None
    pairs: float = 0
    pair_tokens: float = 0
    asked: tuple[Asked, ...] = ()
    llm: float | Paid | None = None
    rows: float = 0


class Stage(NamedTuple):
    """hours and dollars are None where they cannot be known. memory_gb: of one worker; lines: the arithmetic."""

    stage: str
    on: str
    gpus: int
    hours: float | None
    memory_gb: float
    disk_gb: float
    dollars: float | None
    lines: tuple[str, ...]


def stages(work: Work, cluster: Cluster, rates: Rates) -> list[Stage]:
    """Every stage that the job has, in the order in which they run."""
    found = [encode(work, cluster, rates)] if work.encoder else []
    found += [index(work, cluster, rates)] if work.index != "flat" else []
    found.append(search(work, cluster, rates))
    found += [teach(work, cluster, rates)] if work.teacher else []
    found += [ask(asked, work, cluster, rates) for asked in work.asked]
    return [*found, export(work, cluster, rates)]


def chosen(rows: int, dimension: int, queries: int, memory: float, cores: int) -> str:
    """The index that `mining.index.kind: auto` takes on a machine whose index may have `memory` bytes."""
    size = 4.0 * rows * dimension
    if size > memory:
        return "ivf-pq"
    if 2.0 * rows * dimension * queries / (EXACT_CORE * cores) <= EXACT_S:
        return "flat"
    return "ivf-flat" if 2 * size <= memory else "ivf-pq"


def lists(rows: int) -> int:
    return max(1, min(int(LISTS * rows**0.5), rows // PER_LIST))


def index_bytes(kind: str, rows: int, dimension: int) -> float:
    """Beside the vectors: of ivf-flat they again, of ivf-pq a byte for 4 dimensions; 8 bytes of number in both."""
    if kind == "flat":
        return 0.0
    centroids = 4.0 * lists(rows) * dimension
    if kind == "ivf-flat":
        return rows * (4.0 * dimension + 8) + centroids
    return rows * (_code(dimension) + 8.0) + centroids + 4.0 * CENTROIDS * dimension


def _code(dimension: int) -> int:
    return -(-dimension // STEP)


def replica_gpus(parameters: float, memory_gb: float, fill: float) -> int:
    """GPUs that serve one copy of an LLM of 2 bytes a parameter: the least power of two that holds it."""
    gpus = 1
    while 2 * parameters / GB > fill * memory_gb * gpus:
        gpus *= 2
    return gpus


# ---------------------------------------------------------------- the stages


def encode(work: Work, cluster: Cluster, rates: Rates) -> Stage:
    assert work.encoder is not None
    tokens = work.passages * work.passage_tokens + work.queries * work.query_tokens
    texts = f"{work.passages:,} x {work.passage_tokens:g} + {work.queries:,} x {work.query_tokens:g}"
    vectors = 4.0 * (work.passages + work.queries) * work.dimension
    disk = vectors + tokens * rates["bytes_a_token"]
    more = (
        f"tokens = {texts} = {tokens:.3g}",
        f"disk = texts {tokens:.3g} x {rates['bytes_a_token']:g} B + vectors"
        f" {work.passages + work.queries:,} x {work.dimension} x 4 B = {disk / GB:.3g} GB",
    )
    return _model("encode", work.encoder, tokens, disk, more, work.server, cluster, rates)


def teach(work: Work, cluster: Cluster, rates: Rates) -> Stage:
    assert work.teacher is not None
    tokens = work.pairs * work.pair_tokens
    disk = work.pairs * rates["retrieved_row"]
    more = (f"tokens = {work.pairs:,.0f} pairs x {work.pair_tokens:g} = {tokens:.3g}",)
    return _model("teacher", work.teacher, tokens, disk, more, False, cluster, rates)


def _model(
    stage: str,
    model: Model,
    tokens: float,
    disk: float,
    more: tuple[str, ...],
    server: bool,
    cluster: Cluster,
    r: Rates,
) -> Stage:
    """A transformer reads tokens: 2 operations a weight and token, on all GPUs or else on all cores."""
    operations = 2 * model.weights * tokens
    line = f"operations = 2 x {model.weights / MILLION:g} M weights x {tokens:.3g} tokens = {operations:.3g}"
    if cluster.gpu is None:
        speed, on, gpus = r["encode_core"] * 1e9 * cluster.cores * cluster.nodes, _cores(cluster), 0
        how = f"{r['encode_core']:g} GFLOP/s x {cluster.cores * cluster.nodes} cores"
    else:
        share, peak = (r["encode_server"], cluster.gpu.bf16) if server else (r["encode_gpu"], cluster.gpu.fp32)
        gpus = cluster.gpus * cluster.nodes
        speed, on = share * peak * gpus, f"{gpus} {cluster.gpu.name}"
        how = f"{share:g} of {peak / 1e12:g} TFLOP/s ({'bf16' if server else 'fp32'}) x {gpus} {cluster.gpu.name}"
    memory = 4 * model.parameters / GB + r["process_gb"]
    lines = (
        *more,
        line,
        f"seconds = {operations:.3g} / ({how}) = {operations / speed:.3g}",
        f"memory a worker = {model.parameters / MILLION:g} M parameters x 4 B + {r['process_gb']:g} GB"
        f" = {memory:.3g} GB",
    )
    return _stage(stage, on, gpus, operations / speed, memory, disk, cluster, lines)


def index(work: Work, cluster: Cluster, rates: Rates) -> Stage:
    """Trained and filled on one node, as searchers/dense.py does."""
    count, d = lists(work.passages), work.dimension
    sample = min(work.passages, max(TRAIN_PER_LIST * count, CENTROIDS * PER_LIST))
    train, fill = 2.0 * sample * count * d * ROUNDS, 2.0 * work.passages * count * d
    code = 2.0 * work.passages * CENTROIDS * d if work.index == "ivf-pq" else 0.0
    seconds = (train + fill + code) / (rates["build_core"] * 1e9 * cluster.cores)
    size = index_bytes(work.index, work.passages, d)
    growing = min(size, FILE) / GB
    memory = rates["index_growth"] * growing + 4 * sample * d / GB + rates["process_gb"]
    lines = (
        f"{work.index} of {count:,} lists; sample = {sample:,} vectors",
        f"training = 2 x {sample:,} x {count:,} lists x {d} x {ROUNDS} rounds = {train:.3g}",
        f"filling = 2 x {work.passages:,} x {count:,} lists x {d} = {fill:.3g}; codes = {code:.3g}",
        f"seconds = {train + fill + code:.3g} / ({rates['build_core']:g} GFLOP/s x {cluster.cores} cores of one node)"
        f" = {seconds:.3g}",
        f"memory = {rates['index_growth']:g} x {growing:.3g} GB of an index file"
        f" + {4 * sample * d / GB:.3g} GB of sample + {rates['process_gb']:g} GB = {memory:.3g} GB",
    )
    return _stage("index", f"{cluster.cores} cores", 0, seconds, memory, size, cluster, lines)


def search(work: Work, cluster: Cluster, rates: Rates) -> Stage:
    """Every worker holds a shard of the vectors and of the index, and sees every query."""
    d, cores = work.dimension, cluster.cores * cluster.nodes
    per_core, lines = _a_query(work, rates)
    seconds = work.queries * per_core / cores
    shards = cluster.nodes * cluster.workers
    size = 4.0 * work.passages * d + index_bytes(work.index, work.passages, d)
    memory = size / shards / GB + rates["process_gb"]  # queries come in blocks of a few MB
    disk = work.queries * work.depth * rates["retrieved_row"]
    lines += (
        f"seconds = {work.queries:,} queries x {per_core:.3g} core seconds / {cores} cores = {seconds:.3g}",
        f"memory a worker = ({4.0 * work.passages * d / GB:.3g} GB of vectors + "
        f"{index_bytes(work.index, work.passages, d) / GB:.3g} GB of index) / {shards} shards"
        f" + {rates['process_gb']:g} GB = {memory:.3g} GB",
        f"disk = {work.queries:,} x {work.depth} x {rates['retrieved_row']:g} B = {disk / GB:.3g} GB",
    )
    return _stage("search", _cores(cluster), 0, seconds, memory, disk, cluster, lines)


def _a_query(work: Work, rates: Rates) -> tuple[float, tuple[str, ...]]:
    """Core seconds of one query over all passages, and the line."""
    n, d = work.passages, work.dimension
    if work.index == "flat":
        found = 2.0 * n * d / (rates["search_core"] * 1e9)
        return found, (f"a query = 2 x {n:,} x {d} / {rates['search_core']:g} GFLOP/s = {found:.3g} core seconds",)
    coarse = 2.0 * lists(n) * d / (rates["search_core"] * 1e9)
    if work.index == "ivf-flat":
        found = 2.0 * n * rates["flat_share"] * d / (rates["flat_list_core"] * 1e9)
        how = f"2 x {n:,} x {rates['flat_share']:g} x {d} / {rates['flat_list_core']:g} GFLOP/s"
    else:
        found = n * rates["code_share"] * _code(d) / (rates["code_list_core"] * 1e6)
        how = f"{n:,} x {rates['code_share']:g} x {_code(d)} B / {rates['code_list_core']:g} MB/s"
    return coarse + found, (f"a query = centroids {coarse:.3g} + {how} = {coarse + found:.3g} core seconds",)


def ask(asked: Asked, work: Work, cluster: Cluster, rates: Rates) -> Stage:
    """On the cluster's GPUs, or by a server that is paid by the token; then the cluster is not paid meanwhile."""
    tokens = asked.requests * (asked.prompt + asked.answer)
    disk = tokens * rates["bytes_a_token"]
    name = f"{asked.stage} (at most)" if asked.at_most else asked.stage
    first = (
        f"tokens = {asked.requests:,.0f} requests x ({asked.prompt:g} + {asked.answer:g}) = {tokens:.3g}",
        f"disk = {tokens:.3g} x {rates['bytes_a_token']:g} B = {disk / GB:.3g} GB",
    )
    if isinstance(work.llm, Paid):
        return _elsewhere(name, asked, work.llm, disk, first)
    assert work.llm is not None
    assert cluster.gpu is not None
    each = replica_gpus(work.llm, cluster.gpu.memory_gb, rates["llm_fill"])
    gpus = cluster.nodes * (cluster.gpus // each) * each
    operations = 2 * work.llm * tokens
    seconds = operations / (rates["llm_gpu"] * cluster.gpu.bf16 * gpus)
    lines = (
        *first,
        f"operations = 2 x {work.llm / GB:g} G parameters x {tokens:.3g} tokens = {operations:.3g}",
        f"replicas = {gpus // each} of {each} GPU, {2 * work.llm / GB:g} GB of weights each",
        f"seconds = {operations:.3g} / ({rates['llm_gpu']:g} of {cluster.gpu.bf16 / 1e12:g} TFLOP/s (bf16) x"
        f" {gpus} {cluster.gpu.name}) = {seconds:.3g}",
    )
    return _stage(name, f"{gpus} {cluster.gpu.name}", gpus, seconds, 2 * work.llm / GB, disk, cluster, lines)


def _elsewhere(name: str, asked: Asked, paid: Paid, disk: float, first: tuple[str, ...]) -> Stage:
    prompt, answer = asked.requests * asked.prompt, asked.requests * asked.answer
    dollars = None
    lines = first
    if paid.prompt is not None and paid.answer is not None:
        dollars = (prompt * paid.prompt + answer * paid.answer) / MILLION
        lines += (
            f"dollars = ({prompt:.3g} x {paid.prompt:g} + {answer:.3g} x {paid.answer:g}) / 1e6 = {dollars:,.2f}",
        )
    limits = ((asked.requests, paid.rpm, "requests"), (prompt + answer, paid.tpm, "tokens"))
    minutes = {what: amount / limit for amount, limit, what in limits if limit}
    lines += tuple(f"minutes by {what} = {value:.3g}" for what, value in minutes.items())
    hours = max(minutes.values()) / 60 if minutes else None
    return Stage(name, paid.model, 0, hours, 0.0, disk / GB, dollars, lines)


def export(work: Work, cluster: Cluster, rates: Rates) -> Stage:
    seconds, disk = work.rows / rates["export_core"], work.rows * rates["export_row"]
    texts = work.passages * work.passage_tokens * rates["bytes_a_token"]
    memory = texts / GB + rates["process_gb"]
    lines = (
        f"seconds = {work.rows:,.0f} rows / {rates['export_core']:,.0f} a second = {seconds:.3g}",
        f"memory = {texts / GB:.3g} GB of passages + {rates['process_gb']:g} GB = {memory:.3g} GB",
        f"disk = {work.rows:,.0f} x {rates['export_row']:g} B = {disk / GB:.3g} GB",
    )
    return _stage("export", "1 core", 0, seconds, memory, disk, cluster, lines)


def _cores(cluster: Cluster) -> str:
    return f"{cluster.cores * cluster.nodes} cores"


def _stage(
    name: str, on: str, gpus: int, seconds: float, memory: float, disk: float, cluster: Cluster, lines: tuple[str, ...]
) -> Stage:
    hours = seconds / HOUR
    dollars = hours * cluster.nodes * cluster.price
    line = f"dollars = {hours:.3g} h x {cluster.nodes} nodes x {cluster.price:g} = {dollars:,.2f}"
    return Stage(name, on, gpus, hours, memory, disk / GB, dollars, (*lines, line))
