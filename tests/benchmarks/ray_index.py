"""An IVF-PQ of simulated vectors on Ray: made, cut into shards, searched; time, memory of every process, recall.

    python tests/benchmarks/ray_index.py --rows 100000 1000000 10000000 --folder BIG_DISK

Needs the extra `ray`, and in --folder 1.6 GB for a million rows. All that is measured is the project's own code: the
engine's tasks write the vectors, code them and search them, as in a job with `engine.kind: ray`; only the vectors are
made up. Each size is measured in a process with a cluster of its own, on this machine. ray_index.md has recorded
tables.

The vectors (384 dimensions, norm 1) have two levels of clusters, about 1,000 passages in the smaller ones, whose spread
lies mostly in 24 dimensions, as that of real embeddings does; queries are drawn around the same centres.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import common
import numpy as np

from miner import config, workers
from miner.config.mining import Index
from miner.searchers import dense, tuning

DIMENSION, SEED, K, SAMPLE = 384, 13, 100, 200
TOPICS, PER_CLUSTER, BASES, INNER = 100, 1000, 16, 24
PIECE = 1 << 18  # rows that one task writes
AT_ONCE = 1 << 15
BLOCK, AHEAD = 1024, 2  # as mining.block, and mining_steps.AHEAD
Array = np.ndarray[Any, Any]


# ---------------------------------------------------------------- vectors


@lru_cache(maxsize=1)
def centres(rows: int) -> tuple[Array, Array]:
    """Of the clusters, float32[c, 384], and the bases along which clusters are wide, float32[16, 24, 384]."""
    rng = np.random.default_rng(SEED)
    topics = unit(rng.standard_normal((TOPICS, DIMENSION), np.float32))
    count = max(1, rows // PER_CLUSTER)
    own = unit(rng.standard_normal((count, DIMENSION), np.float32))
    bases = rng.standard_normal((BASES, INNER, DIMENSION), np.float32) / np.float32(DIMENSION**0.5)
    return unit(topics[np.arange(count) % TOPICS] + np.float32(0.8) * own), bases


def unit(rows: Array) -> Array:
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), np.float32)


def drawn(total: int, count: int, seed: list[int]) -> Array:
    """float32[count, 384] from the world of `total` passages."""
    middle, bases = centres(total)
    rng = np.random.default_rng(seed)
    cluster = rng.integers(0, len(middle), count)
    found = middle[cluster] + np.float32(0.2 / DIMENSION**0.5) * rng.standard_normal((count, DIMENSION), np.float32)
    for number in range(BASES):
        here = np.flatnonzero(cluster % BASES == number)
        spread = rng.standard_normal((len(here), INNER), np.float32) * np.float32(0.5 / INNER**0.5)
        found[here] += spread @ bases[number]
    return unit(found)


def write(path: str, total: int, low: int, high: int) -> int:
    """The rows low..high of the passages into their place in the file. Returns their number."""
    out = np.load(path, mmap_mode="r+")
    for start in range(low, high, AT_ONCE):
        stop = min(start + AT_ONCE, high)
        out[start:stop] = drawn(total, stop - start, [SEED, 1, start])
    out.flush()
    return high - low


# ---------------------------------------------------------------- memory


class Watch:
    """Bytes that no file backs, and all with mapped pages: the most that this process, and any worker of it, held."""

    def __init__(self) -> None:
        self.driver, self.worker = np.zeros(2), np.zeros(2)
        self._used: dict[int, float] = {}
        self._on = True
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def _look(self) -> None:
        while self._on:
            self._used |= common.family(os.getpid())
            for pid in list(self._used):
                held = resident(pid)
                if pid == os.getpid():
                    self.driver = np.maximum(self.driver, held)
                elif name(pid).startswith("ray::"):
                    self.worker = np.maximum(self.worker, held)
            time.sleep(0.2)

    def since(self) -> tuple[Array, Array]:
        """(driver, the largest worker) since the last call."""
        found = self.driver, self.worker
        self.driver, self.worker = np.zeros(2), np.zeros(2)
        return found

    def cpu(self) -> float:
        """Processor seconds of all of them so far, those that have ended too."""
        return sum((self._used | common.family(os.getpid())).values())

    def stop(self) -> None:
        self._on = False
        self._thread.join()


def resident(pid: int) -> Array:
    """float64[2], bytes: own, and with mapped and shared pages."""
    try:
        fields = (line.split() for line in Path(f"/proc/{pid}/status").read_text().splitlines())
        found = {f[0]: 1024.0 * int(f[1]) for f in fields if f and f[0] in ("RssAnon:", "VmRSS:")}
    except OSError:
        return np.zeros(2)
    return np.array([found.get("RssAnon:", 0.0), found.get("VmRSS:", 0.0)])


def name(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""


# ---------------------------------------------------------------- what is measured


class Line:
    """One line of the table: seconds of the phases and what they held."""

    def __init__(self, watch: Watch) -> None:
        self.values: dict[str, Any] = {}
        self._watch = watch
        self.begin()

    def begin(self) -> None:
        self._watch.since()
        self._start = time.perf_counter(), self._watch.cpu()

    @contextlib.contextmanager
    def phase(self, called: str) -> Iterator[None]:
        self.begin()
        yield
        self.ended(called)

    def ended(self, called: str) -> None:
        spent = time.perf_counter() - self._start[0], self._watch.cpu() - self._start[1]
        self.values[f"{called} s"] = [round(seconds, 1) for seconds in spent]
        for who, held in zip(("driver", "worker"), self._watch.since(), strict=True):
            self.values[f"{called} {who} MB"] = [round(value / 1e6) for value in held.tolist()]
        sys.stderr.write(f"{called}: {spent[0]:.0f} s, {spent[1]:.0f} CPU s\n")


def measure(folder: Path, rows: int, queries: int, lists: int, cluster: Any, watch: Watch) -> dict[str, Any]:
    line = Line(watch)
    with line.phase("generate"):
        vectors, asked = generated(folder, rows, queries, cluster)
    settings = Index(kind="ivf-pq", sample=SAMPLE)
    choice = dense.choose(rows, DIMENSION, queries, settings)
    choice = replace(choice, lists=lists or choice.lists)
    (folder / "index").mkdir(parents=True, exist_ok=True)

    def coder(trained: Array) -> dense.Coder:
        line.ended("train")
        line.begin()
        found: dense.Coder = cluster.coder(trained)
        return found

    line.begin()
    built = dense.make(vectors, choice, folder / "index", SEED, coder)
    line.ended("fill")
    with line.phase("tune"):
        whole = dense.open(vectors, asked, folder / "index", choice, settings)
        tuned = tuning.tune(whole, folder / "index", K, settings, SEED)
    del whole
    with line.phase("start"):
        searcher = cluster.dense(vectors, asked, folder / "index", settings)
    with line.phase("search"):
        found = searched(searcher, queries)
    told = searcher.report() if hasattr(searcher, "report") else {}
    sample = np.sort(np.random.default_rng(SEED + 1).choice(queries, min(SAMPLE, queries), replace=False))
    with line.phase("exact"):
        recall = recalled(vectors, np.asarray(asked[sample]), found[sample])
    size = {"vectors MB": vectors.nbytes / 1e6, "index MB": built["bytes"] / 1e6}
    size["codes MB"] = rows * choice.code / 1e6
    more = {"rows": rows, "queries": queries, "lists": choice.lists, "nprobe": tuned["nprobe"], "code": choice.code}
    more |= {"files": len(list((folder / "index").glob("*.faiss"))), "tuned recall": tuned["recall"], "recall": recall}
    return more | line.values | {key: round(value) for key, value in size.items()} | {"actors": told}


def generated(folder: Path, rows: int, queries: int, cluster: Any) -> tuple[Array, Array]:
    """Passages, written by the workers, each a part of the file, and queries; memory-mapped."""
    path = folder / "passages.npy"
    np.lib.format.open_memmap(path, "w+", np.float32, (rows, DIMENSION)).flush()
    calls = ((str(path), rows, low, min(low + PIECE, rows)) for low in range(0, rows, PIECE))
    assert sum(count for _, count in cluster.tasks(write, calls)) == rows
    np.save(folder / "queries.npy", drawn(rows, queries, [SEED, 2]))
    return np.load(path, mmap_mode="r"), np.load(folder / "queries.npy", mmap_mode="r")


def searched(searcher: Any, queries: int) -> Array:
    """int64[queries, K], in blocks, some of which are begun ahead as a job does."""
    blocks = [np.arange(low, min(low + BLOCK, queries)) for low in range(0, queries, BLOCK)]
    found = []
    for number, block in enumerate(blocks):
        for later in blocks[number : number + 1 + AHEAD] if hasattr(searcher, "expect") else []:
            searcher.expect(later, K)
        found.append(searcher.search(block, K)[1])
    return np.concatenate(found)


def recalled(vectors: Array, queries: Array, found: Array) -> float:
    """recall@K of rows int64[q, K] against all products in float32, computed in blocks; a tie with the K-th counts."""
    best = np.full((len(queries), K), -np.inf, np.float32)
    for start in range(0, len(vectors), AT_ONCE):
        both = np.concatenate([best, queries @ vectors[start : start + AT_ONCE].T], axis=1)
        best = np.partition(both, -K, axis=1)[:, -K:]
    least = best.min(axis=1, keepdims=True) - 1e-6  # the last bits hang on the shape of a product
    score = np.stack([vectors[np.maximum(rows, 0)] @ query for rows, query in zip(found, queries, strict=True)])
    return round(float(((score >= least) & (found >= 0)).mean()), 4)


# ---------------------------------------------------------------- table


PHASES = ("generate", "train", "fill", "tune", "start", "search")
PLAIN = ("rows", "queries", "lists", "nprobe", "codes MB", "index MB", "files", "recall")


def table(lines: list[dict[str, Any]]) -> str:
    """Two: seconds on the wall and, after the stroke, of the processor; then memory, own and with mapped pages."""
    times = [[*(f"{line[c]:,}" for c in PLAIN), *(_pair(line[f"{p} s"]) for p in PHASES)] for line in lines]
    whose = [f"{phase} {who} MB" for phase in ("train", "fill", "tune", "search") for who in ("driver", "worker")]
    held = [[f"{line['rows']:,}", f"{line['vectors MB']:,}", *(_pair(line[c]) for c in whose)] for line in lines]
    first = common.table([*PLAIN, *(f"{phase} s" for phase in PHASES)], times)
    return f"{first}\n\n{common.table(['rows', 'vectors MB', *whose], held)}"


def _pair(values: list[float]) -> str:
    return " / ".join(f"{value:,}" for value in values)


def alone(args: argparse.Namespace, rows: int) -> dict[str, Any]:
    # Imported, so that the workers find its functions by their names.
    command = [sys.executable, "-c", "import ray_index; ray_index.main()", "--measure", str(rows)]
    command += ["--folder", str(args.folder)]
    command += ["--queries", str(args.queries), "--lists", str(args.lists), "--shards", str(args.shards)]
    here = Path(__file__).resolve().parent
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(here.parents[1]), str(here)])}
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
    line: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return line


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000_000])
    parser.add_argument("--queries", type=int, default=4096)
    parser.add_argument("--lists", type=int, default=0, help="0: as many as a job takes")
    parser.add_argument("--shards", type=int, default=2)
    parser.add_argument("--folder", type=Path, required=True, help="what is written there is deleted at the end")
    parser.add_argument("--measure", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure is None:
        lines = []
        for rows in args.rows:
            lines.append(alone(args, rows))
            common.say(json.dumps(lines[-1]))
        common.say(f"\n{common.machine()}\n\n{table(lines)}")
        return
    folder = args.folder / f"rows-{args.measure}"
    folder.mkdir(parents=True)
    engine = config.Engine(kind="ray", address="local", workers=args.shards, shards=args.shards)
    cluster, watch = workers.load(engine), Watch()
    try:
        common.say(json.dumps(measure(folder, args.measure, args.queries, args.lists, cluster, watch)))
    finally:
        watch.stop()
        cluster.close()
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
