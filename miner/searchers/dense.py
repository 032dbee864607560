"""The dense retriever's index: FAISS over one vector a passage; the score is the inner product.

flat is exact and needs no file: it searches the vectors where they lie. pq, hnsw, ivf-flat and ivf-pq write
`dense.faiss` (a large IVF more than one: ivf_files), opened memory-mapped where faiss can. What those find is scored
anew from the vectors, so a score is the exact float32 inner product whatever the kind, and equal vectors tie.

Sources: faiss wiki, "Guidelines to choose an index" and "Faiss indexes"; Malkov and Yashunin 2016 (HNSW); Jegou,
Douze and Schmid 2011 (product quantisation).
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import faiss
import numpy as np

from miner import behind, store
from miner.chunks import each
from miner.config.mining import Index
from miner.errors import UserError
from miner.searchers import Array, exact, fast_codes, ivf_files

_faiss: Any = faiss  # whose type stubs lack some functions
FILE, CHOICE, TUNED = "dense.faiss", "choice.json", "tuned.json"
GB = 1e9
ADD = 1 << 14  # vectors added at once
PATIENCE_S = 1800.0  # exact search may take so long before auto prefers an approximate index
CORE_FLOPS = 3e10  # float32 multiplications and additions per second and core: tests/benchmarks/scale.md has 23 to 55
GPU_FLOPS = 5e12
GPU_KINDS, GPU_MOST = ("flat", "ivf-flat"), 2048  # faiss on a GPU returns no longer lists and probes no more
PER_LIST = 39  # faiss's own least number of training vectors per centroid
TRAIN_PER_LIST = 64
PQ_CENTROIDS, PQ_ROUNDS = 256, 10
LEAST = {"flat": 0, "hnsw": 1, "ivf-flat": 4 * PER_LIST, "ivf-pq": PQ_CENTROIDS * PER_LIST}
LEAST["pq"] = fast_codes.CENTROIDS * PER_LIST
LINKS, BUILD_EFFORT = 32, 80
ENOUGH = 4  # whoever wants a quarter of the corpus gets it by exact search


@dataclass(frozen=True)
class Choice:
    """kind: flat, pq, hnsw, ivf-flat or ivf-pq; reason: a sentence for people.

    lists: of ivf; links: of hnsw; code: bytes per vector of pq and ivf-pq; width: dimension padded with zeros to
    code's needs.
    """

    kind: str
    reason: str
    lists: int = 0
    links: int = 0
    code: int = 0
    width: int = 0


# ---------------------------------------------------------------- which index


def choose(rows: int, dimension: int, queries: int, settings: Index, whole: bool = False) -> Choice:
    """The kind that was asked for, or for auto, in this order:

    flat where the vectors fit the memory (memory_gb, else half of the machine's) and 2 * rows * dimension * queries
    operations take at most 30 minutes, at 30 GFLOP/s per core or 5 TFLOP/s on a GPU. Where only time is short: pq if
    one process without a GPU searches it all (`whole`), else ivf-flat if twice the vectors fit. Else ivf-pq. Never
    hnsw: the same graph at every run takes a build on one core.
    flat too where there are too few vectors to train the other. Depends on the machine as said, and on nothing random.
    """
    memory = settings.memory_gb * GB if settings.memory_gb else _machine_memory() / 2
    if settings.kind == "auto":
        kind, why = _automatic(rows, dimension, queries, memory, _has_gpu(settings), whole)
    else:
        kind, why = settings.kind, f"mining.index.kind is {settings.kind}"
    if rows < LEAST[kind]:
        why = f"{rows:,} passages are too few for {kind}, which needs {LEAST[kind]:,} ({why})"
        kind = "flat"
    return _sized(Choice(kind, f"{kind}: {why}"), rows, dimension, memory)


def _automatic(rows: int, dimension: int, queries: int, memory: float, gpu: bool, whole: bool) -> tuple[str, str]:
    size = 4.0 * rows * dimension
    seconds = 2.0 * rows * dimension * queries / (GPU_FLOPS if gpu else CORE_FLOPS * behind.cores())
    vectors = f"{rows:,} vectors of {dimension} take {size / GB:,.2f} GB"
    if size > memory:
        return "ivf-pq", f"{vectors}, more than the {memory / GB:,.2f} GB allowed"
    exact = f"{vectors} of the {memory / GB:,.2f} GB allowed; exact search for {queries:,} queries takes about"
    if seconds > PATIENCE_S:
        slow = f"{exact} {seconds / 60:,.0f} min, more than {PATIENCE_S / 60:.0f}"
        if whole and not gpu:
            return "pq", slow
        # Its lists are a second copy of the vectors.
        return ("ivf-flat", slow) if 2 * size <= memory else ("ivf-pq", f"{slow}, and ivf-flat takes twice the memory")
    return "flat", f"{exact} {max(seconds, 1):,.0f} s"


def _sized(choice: Choice, rows: int, dimension: int, memory: float) -> Choice:
    """Fill in the numbers that the index is built with."""
    lists = max(1, min(int(4 * rows**0.5), rows // PER_LIST))
    if choice.kind == "hnsw":
        return replace(choice, links=LINKS)
    if choice.kind == "ivf-flat":
        return replace(choice, lists=lists)
    if choice.kind == "pq":
        code, width = fast_codes.sizes(dimension)
        return replace(choice, code=code, width=width)
    if choice.kind == "ivf-pq":
        # 4 dimensions a byte lose little; coarser only where even the codes would not fit.
        step = next((s for s in (4, 8) if rows * (-(-dimension // s) + 8) <= memory), 16)
        code = -(-dimension // step)
        return replace(choice, lists=lists, code=code, width=code * step)
    return choice


def _machine_memory() -> float:
    """Bytes: the machine's memory, or the container's limit where that is lower."""
    total = float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    try:
        return min(total, float(Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii")))
    except (OSError, ValueError):  # no such limit, or "max"
        return total


def _has_gpu(settings: Index) -> bool:
    return settings.gpu and hasattr(faiss, "StandardGpuResources") and bool(faiss.get_num_gpus())


def _on_gpu(choice: Choice, settings: Index) -> bool:
    return choice.kind in GPU_KINDS and _has_gpu(settings)


# ---------------------------------------------------------------- build


class Coder:
    """What fills an IVF that is trained: each row's list, and its code in there."""

    def __init__(self, trained: Array) -> None:
        """trained: uint8[n], a serialised index."""
        self._index = exact.unpacked(trained)

    def codes(self, vectors: Array) -> Array:
        """float32[n, d] -> uint8[n, size], as the index's add_sa_codes reads them."""
        block = padded(vectors, self._index.d)
        lists = np.ascontiguousarray(exact.probes(self._index, block, 1)[1][:, 0])
        found = np.empty((len(block), self._index.sa_code_size()), np.uint8)
        self._index.encode_vectors(len(block), *(faiss.swig_ptr(a) for a in (block, lists, found)), True)
        return found


def make(
    vectors: Array, choice: Choice, folder: Path, seed: int, coder: Callable[[Array], Coder] = Coder
) -> dict[str, Any]:
    """vectors: float32[n, d], a memmap too -> what was built, for the manifest. Same input and seed, same file.

    coder: may make a chunks.Many; then an IVF, which is trained here, is filled by several workers at once.

    Writes choice.json and, unless flat, dense.faiss. It takes memory for the graph of hnsw, for one file of an IVF (see
    ivf_files), for 16 Ki vectors at a time, and for the training sample: 64 vectors per list, or for ivf-pq 9,984 if
    that is more.
    """
    size = 0
    if simple := {"hnsw": _hnsw, "pq": _pq}.get(choice.kind):
        index = simple(vectors, choice, seed)
        store.replace(folder / FILE, lambda part: faiss.write_index(index, str(part)))
        size = (folder / FILE).stat().st_size
    elif choice.kind != "flat":
        trained = _trained(vectors, choice, seed)
        size = ivf_files.write(folder / FILE, trained, _coded(vectors, coder(trained)))
    store.write_json(folder / CHOICE, asdict(choice))
    details = {key: value for key, value in asdict(choice).items() if value}
    return {**details, "passages": len(vectors), "bytes": size}


def _hnsw(vectors: Array, choice: Choice, seed: int) -> Any:
    index = faiss.IndexHNSWFlat(int(vectors.shape[1]), choice.links, faiss.METRIC_INNER_PRODUCT)
    index.hnsw.efConstruction = BUILD_EFFORT
    with _one_thread():  # threads link nodes in the order in which they come, another at each run
        _add(index, vectors, 0)
    return index


def _pq(vectors: Array, choice: Choice, seed: int) -> Any:
    with _one_thread():
        index = fast_codes.trained(padded(_sample(vectors, fast_codes.SAMPLE, seed), choice.width), seed)
    _add(index, vectors, choice.width)
    return index


def _sample(vectors: Array, size: int, seed: int) -> Array:
    return vectors[np.sort(np.random.default_rng(seed).choice(len(vectors), min(size, len(vectors)), replace=False))]


def _trained(vectors: Array, choice: Choice, seed: int) -> Array:
    """uint8[n]: the IVF without rows, serialised."""
    width = choice.width or int(vectors.shape[1])
    coarse = faiss.IndexFlatIP(width)
    if choice.kind == "ivf-flat":
        index: Any = faiss.IndexIVFFlat(coarse, width, choice.lists, faiss.METRIC_INNER_PRODUCT)
    else:
        index = faiss.IndexIVFPQ(coarse, width, choice.lists, choice.code, 8, faiss.METRIC_INNER_PRODUCT)
        index.pq.cp.seed = seed
        index.pq.cp.niter, index.pq.cp.max_points_per_centroid = PQ_ROUNDS, PER_LIST
    index.cp.seed = seed
    train = padded(_sample(vectors, max(TRAIN_PER_LIST * choice.lists, LEAST[choice.kind]), seed), width)
    index.train_q1(len(train), faiss.swig_ptr(train), False, faiss.METRIC_INNER_PRODUCT)
    with _one_thread():  # a hundred tiny clusterings: on a busy machine, threads wait for each other at each step
        index.train(train)
    return np.asarray(faiss.serialize_index(index))


def _coded(vectors: Array, coder: Coder) -> Iterator[Array]:
    """The codes of ADD rows at a time, in the order of the rows, in whatever order they come."""
    waiting: dict[int, Array] = {}
    done = 0
    blocks = ((np.asarray(vectors[start : start + ADD]),) for start in range(0, len(vectors), ADD))
    for number, codes in each(coder, "codes", blocks):
        waiting[number] = codes
        while (found := waiting.pop(done, None)) is not None:
            yield found
            done += 1


@contextmanager
def _one_thread() -> Iterator[None]:
    threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(threads)


def _add(index: Any, vectors: Array, width: int) -> None:
    for start in range(0, len(vectors), ADD):
        index.add(padded(vectors[start : start + ADD], width))


def padded(block: Array, width: int) -> Array:
    """Zeros at the end change no inner product."""
    if block.shape[1] < width:
        block = np.pad(block, ((0, 0), (0, width - block.shape[1])))
    return np.ascontiguousarray(block, np.float32)


# ---------------------------------------------------------------- search


class DenseSearcher:
    """Ties go to the lowest passage row; k may exceed the number of passages."""

    def __init__(self, vectors: Array, query_vectors: Array, index: Any, choice: Choice, settings: Index) -> None:
        """index: the opened FAISS index; None searches the vectors themselves."""
        if vectors.shape[1] != query_vectors.shape[1]:
            raise UserError(
                f"passage vectors have {vectors.shape[1]} dimensions, query vectors {query_vectors.shape[1]};"
                " encode both with one model"
            )
        # A float32 memmap stays one: no copy.
        self.vectors = np.ascontiguousarray(vectors, np.float32)
        self.query_vectors = query_vectors
        self.choice = choice
        self._index = index
        self._more = settings.refine if choice.kind == "ivf-pq" else 1
        self._most = GPU_MOST if _on_gpu(choice, settings) else len(vectors)

    @property
    def knob(self) -> str:
        """What widens the search, "" where nothing does."""
        return {"flat": "", "hnsw": "efSearch", "pq": "refine"}.get(self.choice.kind, "nprobe")

    @property
    def widest(self) -> int:
        most = {"flat": 0, "hnsw": len(self.vectors), "pq": fast_codes.MOST}.get(self.choice.kind, self.choice.lists)
        return min(most, self._most)

    def widen(self, effort: int) -> None:
        if self.knob == "efSearch":
            self._index.hnsw.efSearch = effort
        elif self.knob == "refine":
            self._more = effort
        elif self.knob:
            self._index.nprobe = effort

    def search(self, queries: Array, k: int) -> tuple[Array, Array]:
        """queries: int64[b] row numbers -> scores float32[b, k], descending, and passage rows int64[b, k].

        -1 (score -inf) only where the corpus has fewer than k: a query for which the index gives fewer is searched
        for exactly.
        """
        block = np.ascontiguousarray(self.query_vectors[queries], np.float32)
        store.let_go(self.query_vectors)
        scores, rows = self.indexed(block, k)
        if len(short := np.flatnonzero(rows[:, min(k, len(self.vectors)) - 1] < 0)):
            scores[short], rows[short] = self.exact(block[short], k)
        return scores, rows

    def indexed(self, block: Array, k: int) -> tuple[Array, Array]:
        """block: float32[b, d], query vectors -> as search, with what the index gives and no more."""
        wanted = min(k * self._more, len(self.vectors))
        too_long = wanted > self._most or (self.knob and ENOUGH * k >= len(self.vectors))
        if self._index is None or too_long or not len(block):
            return self.exact(block, k)
        block = np.ascontiguousarray(block, np.float32)
        wide = padded(block, self.choice.width)
        # A graph is walked by itself, and a GPU picks its own lists.
        if isinstance(self._index, faiss.IndexIVF):
            rows = exact.listed(self._index, wide, wanted)[1]
        elif self.choice.kind == "pq":
            rows = fast_codes.nearest(self._index, wide, wanted)
        else:
            rows = self._index.search(wide, wanted)[1]
        scores, rows = self._best(block, rows, k)
        if self.choice.kind == "pq" and (alike := rows[:, 0] < 0).any():  # all codes tie
            scores[alike], rows[alike] = self.exact(block[alike], k)
        return scores, rows

    def exact(self, block: Array, k: int) -> tuple[Array, Array]:
        """block: float32[b, d], query vectors -> as search."""
        return _filled(*exact.nearest(block, self.vectors, k), k)

    def _best(self, block: Array, rows: Array, k: int) -> tuple[Array, Array]:
        """Score the rows found, int64[b, any], in place, and keep the k best."""
        scores = exact.rescored(block, self.vectors, rows)
        order = np.lexsort((rows, -scores))[:, :k]
        return _filled(np.take_along_axis(scores, order, 1), np.take_along_axis(rows, order, 1), k)


def _filled(scores: Array, rows: Array, k: int) -> tuple[Array, Array]:
    ends = ((0, 0), (0, k - rows.shape[1]))
    return np.pad(scores, ends, constant_values=-np.inf), np.pad(rows, ends, constant_values=-1)


def open(vectors: Array, query_vectors: Array, folder: Path, choice: Choice, settings: Index) -> DenseSearcher:
    """vectors: float32[n, d], query_vectors: float32[q, d], memmaps too; folder: what make and tune wrote.

    UserError where dense.faiss or tuned.json cannot be read or belongs to other vectors.
    """
    gpu = _on_gpu(choice, settings)
    index = None if choice.kind == "flat" else _read(folder / FILE, len(vectors), gpu)
    if gpu:
        index = _moved(vectors, index)
    searcher = DenseSearcher(vectors, query_vectors, index, choice, settings)
    if (folder / TUNED).is_file():
        searcher.widen(effort(folder))
    return searcher


def effort(folder: Path) -> int:
    """How wide `tune` found that the search must be: nprobe, efSearch or refine."""
    tuned = _json(folder / TUNED)
    return int(next((tuned[knob] for knob in ("nprobe", "efSearch", "refine") if knob in tuned), 0))


def _read(path: Path, rows: int, gpu: bool) -> Any:
    try:
        # This flag maps an hnsw; it is younger than faiss 1.9, which then reads all.
        flag = getattr(faiss, "IO_FLAG_MMAP_IFC", 0)
        index = ivf_files.read(path, not gpu) if ivf_files.is_ivf(path) else faiss.read_index(str(path), flag)
    except RuntimeError as error:
        raise UserError(f"{path}: cannot read ({_last(error)}); run the job, which makes it anew") from None
    if index.ntotal != rows:
        raise UserError(f"{path}: holds {index.ntotal} vectors, the corpus {rows}; run the job, which makes it anew")
    return index


def _moved(vectors: Array, index: Any) -> Any:
    """The index, or a flat one of the vectors where that is None, on the first GPU."""
    try:
        if index is not None:
            return _faiss.index_cpu_to_gpu(_faiss.StandardGpuResources(), 0, index)
        index = _faiss.GpuIndexFlatIP(_faiss.StandardGpuResources(), int(vectors.shape[1]))
        _add(index, vectors, 0)
    except RuntimeError as error:
        raise UserError(f"mining.index.gpu: the index does not fit the GPU ({_last(error)}); set it to false") from None
    return index


def _last(error: RuntimeError) -> str:
    """What faiss says, without the place in its sources."""
    return " ".join(str(error).rpartition("Error: ")[2].split())


def chosen(folder: Path) -> Choice:
    """What make built in `folder`, for open."""
    return Choice(**_json(folder / CHOICE))


def _json(path: Path) -> dict[str, Any]:
    try:
        value: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot read ({error}); run the job, which makes it anew") from None
    return value
