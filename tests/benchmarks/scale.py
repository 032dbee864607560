"""Build and search time, recall and memory of the dense index on simulated vectors.

    python tests/benchmarks/scale.py --rows 10000 100000 --kinds auto hnsw ivf-flat ivf-pq --queries 100000

Each line of the table is measured in a process of its own, with vectors that a seeded generator wrote to a temporary
file: normalised float32, 384 dimensions. --world clusters: one centre per 50 passages and noise in all directions, so
that most of 100 neighbours are chance. --world topics: 64 topics, in each 200 centres and passages around them in 24
directions of the topic, little noise besides; nearer to embeddings of text, which have few directions at any one place.
Queries are drawn as the passages are. The times carry over to real vectors, the recall does not.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
K, DIMENSION, SEED, BLOCK, NOISE = 100, 384, 13, 1024, 1.0
TOPICS, CENTRES, DIRECTIONS = 64, 200, 24
COLUMNS = (
    "passages",
    "queries",
    "asked",
    "taken",
    "width",
    "build s",
    "build CPU s",
    "search s",
    "search CPU s",
    "recall@100",
    "index MB",
    "peak MB",
)


def write_vectors(path: Path, rows: int, centres: np.ndarray, seed: int) -> None:
    """float32[rows, 384] at path (.npy), 64 Ki rows at a time: a centre plus noise of NOISE times its length."""
    out = np.lib.format.open_memmap(path, "w+", np.float32, (rows, DIMENSION))
    rng = np.random.default_rng(seed)
    for start in range(0, rows, 1 << 16):
        block = out[start : start + (1 << 16)]
        noise = rng.standard_normal(block.shape, np.float32) * np.float32(NOISE / DIMENSION**0.5)
        noise += centres[rng.integers(0, len(centres), len(block))]
        block[:] = noise / np.linalg.norm(noise, axis=1, keepdims=True)
    out.flush()


def write_topics(path: Path, rows: int, seed: int) -> None:
    """float32[rows, 384] at path (.npy): a topic, a centre in it, a place near the centre, some noise."""
    made = np.random.default_rng(SEED)
    topics = made.standard_normal((TOPICS, DIMENSION), np.float32) / np.float32(DIMENSION**0.5)
    bases = made.standard_normal((TOPICS, DIRECTIONS, DIMENSION), np.float32) / np.float32(
        (DIRECTIONS * DIMENSION) ** 0.5
    )
    centres = made.standard_normal((TOPICS, CENTRES, DIRECTIONS), np.float32)
    out = np.lib.format.open_memmap(path, "w+", np.float32, (rows, DIMENSION))
    rng = np.random.default_rng(seed)
    for start in range(0, rows, 1 << 16):
        block = out[start : start + (1 << 16)]
        topic = rng.integers(0, TOPICS, len(block))
        place = centres[topic, rng.integers(0, CENTRES, len(block))]
        place += np.float32(0.6) * rng.standard_normal(place.shape, np.float32)
        vectors = rng.standard_normal(block.shape, np.float32) * np.float32(0.15 / DIMENSION**0.5)
        for number in range(TOPICS):
            of = np.flatnonzero(topic == number)
            vectors[of] += np.float32(0.7) * topics[number] + place[of] @ bases[number]
        block[:] = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    out.flush()


def world(folder: Path, rows: int, queries: int, kind: str) -> None:
    if kind == "topics":
        write_topics(folder / "passages.npy", rows, SEED + 1)
        write_topics(folder / "queries.npy", queries, SEED + 2)
        return
    centres = np.random.default_rng(SEED).standard_normal((max(1, rows // 50), DIMENSION), np.float32)
    centres /= np.linalg.norm(centres, axis=1, keepdims=True)
    write_vectors(folder / "passages.npy", rows, centres, SEED + 1)
    write_vectors(folder / "queries.npy", queries, centres, SEED + 2)


def measure(folder: Path, kind: str) -> dict[str, object]:
    """One line of the table; for a process of its own, whose peak memory it says."""
    from miner.config.mining import Index
    from miner.searchers import dense, tuning

    passages, queries = (np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("passages", "queries"))
    settings = Index(kind=kind)
    with tempfile.TemporaryDirectory(dir=folder) as index:
        start = clocks()
        choice = dense.choose(len(passages), DIMENSION, len(queries), settings, whole=True)
        report = dense.make(passages, choice, Path(index), SEED)
        tuned = dense.open(passages, queries, Path(index), choice, settings)
        report |= tuning.tune(tuned, Path(index), K, settings, SEED)
        built = clocks()
        searcher = dense.open(passages, queries, Path(index), choice, settings)
        for low in range(0, len(queries), BLOCK):
            searcher.search(np.arange(low, min(low + BLOCK, len(queries))), K)
        done = clocks()
    return {
        "passages": f"{len(passages):,}",
        "queries": f"{len(queries):,}",
        "asked": kind,
        "taken": report["kind"],
        "width": " ".join(f"{knob} {report[knob]}" for knob in ("nprobe", "efSearch", "refine") if knob in report),
        "build s": f"{built[0] - start[0]:.1f}",
        "build CPU s": f"{built[1] - start[1]:.1f}",
        "search s": f"{done[0] - built[0]:.1f}",
        "search CPU s": f"{done[1] - built[1]:.1f}",
        "recall@100": f"{report['recall']:.3f}",
        "index MB": f"{report['bytes'] / 1e6:,.0f}",
        "peak MB": f"{peak() / 1e6:,.0f}",
        "reason": report["reason"],
    }


def clocks() -> tuple[float, float]:
    """Seconds on the wall, and of all cores together that this process had: a busy machine stretches only the first."""
    return time.perf_counter(), time.process_time()


def peak() -> float:
    """Bytes: the most that this process held resident, pages of mapped files among them."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1.0 if sys.platform == "darwin" else 1024.0)


def table(lines: list[dict[str, str]]) -> str:
    head = ["| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS)]
    return "\n".join(head + ["| " + " | ".join(line[column] for column in COLUMNS) + " |" for line in lines])


def chart(lines: list[dict[str, str]]) -> str:
    """CPU seconds of the search as bars in text, on a logarithmic scale from 1 s: ten characters each power of ten."""
    rows = []
    for line in lines:
        length = max(1, round(10 * np.log10(max(1.0, float(line["search CPU s"])))))
        rows.append(f"{line['passages']:>10} {line['asked']:<9}{'#' * length} {line['search CPU s']} s")
    return "\n".join(rows)


def machine() -> str:
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        names = [s.partition(":")[2].strip() for s in info.read_text().splitlines() if s.startswith("model name")]
        model = names[0] if names else model
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9
    load = os.getloadavg()[0]
    import faiss

    return f"{model}, {os.cpu_count()} cores, {memory:.0f} GB; faiss {faiss.__version__}; load at the start {load:.1f}"


def say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--queries", type=int, default=100_000)
    parser.add_argument("--kinds", nargs="+", default=["auto", "pq", "hnsw", "ivf-flat", "ivf-pq"])
    parser.add_argument("--world", choices=["clusters", "topics"], default="clusters")
    parser.add_argument("--measure", nargs=2, metavar=("FOLDER", "KIND"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        say(json.dumps(measure(Path(args.measure[0]), args.measure[1])))
        return
    say(machine())
    lines = []
    for rows in args.rows:
        with tempfile.TemporaryDirectory() as name:
            world(Path(name), rows, args.queries, args.world)
            for kind in args.kinds:
                lines.append(alone(name, kind))
                say(json.dumps(lines[-1]))
    say(f"\n{table(lines)}\n\n{chart(lines)}")


def alone(folder: str, kind: str) -> dict[str, str]:
    command = [sys.executable, __file__, "--measure", folder, kind]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    line: dict[str, str] = json.loads(done.stdout.splitlines()[-1])
    return line


if __name__ == "__main__":
    main()
