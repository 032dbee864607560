"""Rate and memory of a million triples: miner's Parquet against `datasets.Dataset.from_dict` on exploded lists.

    python tests/benchmarks/export.py --triples 1000000 --dir FOLDER

Both sides start from the same files, those a job has before its export: passages, queries, decisions and positives in
Parquet. `miner` runs the code of the export step and ends with st-triplet.parquet on disk, in zstd as by default.
`from_dict` makes the three lists of texts, one entry a triple, hands them to Dataset.from_dict and has the data set in
memory; `from_dict + to_parquet` writes it too. Each run is a process of its own; the time counts from the first read to
the end, without imports. Simulated texts: passages of 20 to 120 words (on average 70), queries of 4 to 12, a vocabulary
of 50,000 words with Zipf's frequencies; 7 negatives and one positive a query.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
from pathlib import Path

import common
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from miner.records import DECISIONS, OUTCOMES, PASSAGES, POSITIVES, QUERIES

NEGATIVES, BLOCK, SEED = 7, 1024, 13
SIDES = ("miner", "miner, zstd", "from_dict", "from_dict + to_parquet")


# ---------------------------------------------------------------- the simulated job


def world(folder: Path, triples: int, passages: int) -> None:
    rng = np.random.default_rng(SEED)
    letters = np.array(list("abcdefghijklmnopqrstuvwxyz"))
    words = np.array(["".join(rng.choice(letters, size)) for size in rng.integers(2, 11, 50_000)])
    weights = 1 / np.arange(1, 50_001)
    stops = np.cumsum(weights / weights.sum())

    def texts(count: int, low: int, high: int) -> list[str]:
        sizes = rng.integers(low, high + 1, count)
        drawn = words[np.searchsorted(stops, rng.random(sizes.sum())).clip(max=len(words) - 1)]
        ends = np.cumsum(sizes)
        return [" ".join(drawn[end - size : end]) for end, size in zip(ends, sizes, strict=True)]

    queries = triples // NEGATIVES
    ids = [f"d{i:08}" for i in range(passages)]
    names = [f"q{i:08}" for i in range(queries)]
    none = [""] * passages
    pq.write_table(pa.table([ids, none, texts(passages, 20, 120), none], schema=PASSAGES), folder / "passages.parquet")
    blank = [""] * queries
    pq.write_table(pa.table([names, texts(queries, 4, 12), blank], schema=QUERIES), folder / "queries.parquet")
    for number, start in enumerate(range(0, queries, BLOCK)):
        block(folder, number, names[start : start + BLOCK], np.array(ids), rng)


def block(folder: Path, number: int, names: list[str], ids: np.ndarray, rng: np.random.Generator) -> None:
    """Decisions, outcomes and positives of one block of queries, as the decisions step leaves them."""
    drawn = ids[rng.integers(0, len(ids), (len(names), NEGATIVES + 1))]
    size = len(names) * NEGATIVES
    known = {
        "query_id": np.repeat(names, NEGATIVES).tolist(),
        "doc_id": drawn[:, 1:].ravel().tolist(),
        "source": ["mined"] * size,
        "score": rng.random(size).astype(np.float32),
        "kept": np.ones(size, bool),
        "reason": [""] * size,
        "slot": np.tile(np.arange(1, NEGATIVES + 1, dtype=np.int32), len(names)),
    }
    pq.write_table(filled(known, size, DECISIONS), folder / f"part-{number:05}.parquet")
    ones = np.ones(len(names), np.int32)
    known = {"query_id": names, "positives": ones, "negatives": ones * NEGATIVES, "reason": [""] * len(names)}
    pq.write_table(filled(known, len(names), OUTCOMES), folder / f"outcomes-{number:05}.parquet")
    known = {"query_id": names, "doc_id": drawn[:, 0].tolist(), "relevance": ones}
    known["score"] = rng.random(len(names)).astype(np.float32)
    pq.write_table(filled(known, len(names), POSITIVES), folder / f"positives-{number:05}.parquet")


def filled(known: dict, size: int, schema: pa.Schema) -> pa.Table:
    """A table of the schema; null where nothing is known."""
    columns = [pa.array(known[f.name], f.type) if f.name in known else pa.nulls(size, f.type) for f in schema]
    return pa.table(columns, schema=schema)


# ---------------------------------------------------------------- the sides


def miner(folder: Path, out: Path, compression: str = "none") -> int:
    from miner import exporters, store
    from miner.config import Export
    from miner.exporters import sentence_transformers
    from miner.stages import export

    columns = ["query_id", "doc_id", "score", "teacher_score", "kept", "slot"]
    queries = store.read_table(folder / "queries.parquet", ["query_id", "text"])
    known = dict(zip(*(column.to_pylist() for column in queries.columns), strict=True))
    passages = exporters.Passages(store.read_table(folder / "passages.parquet", ["doc_id", "title", "text"]))
    texts = export.Texts(known, passages)
    settings = Export(formats=["st-triplet"], scores=False, compression=compression)

    def parts():
        for part in sorted(folder.glob("part-*.parquet")):
            others = (store.read_table(part.with_name(part.name.replace("part", n))) for n in ("outcomes", "positives"))
            yield export.Part(store.read_table(part, columns), *others)

    splits = {"train": lambda: export.run(parts(), texts, export.Rules(settings))}
    plan = exporters.Plan(splits, passages, out, settings, NEGATIVES)
    return sentence_transformers.write("st-triplet", plan).counts["rows"]


def from_dict(folder: Path, out: Path, write: bool = False) -> int:
    import datasets

    def pairs(path: Path) -> dict[str, str]:
        columns = pq.read_table(path).select([0, "text"]).columns
        return dict(zip(*(column.to_pylist() for column in columns), strict=True))

    passages, queries = pairs(folder / "passages.parquet"), pairs(folder / "queries.parquet")
    lists: dict[str, list[str]] = {"anchor": [], "positive": [], "negative": []}
    for part in sorted(folder.glob("part-*.parquet")):
        best = pq.read_table(part.with_name(part.name.replace("part", "positives")), columns=["query_id", "doc_id"])
        positive = dict(zip(*(column.to_pylist() for column in best.columns), strict=True))
        decided = pq.read_table(part, columns=["query_id", "doc_id"])
        for query_id, doc_id in zip(*(column.to_pylist() for column in decided.columns), strict=True):
            lists["anchor"].append(queries[query_id])
            lists["positive"].append(passages[positive[query_id]])
            lists["negative"].append(passages[doc_id])
    data = datasets.Dataset.from_dict(lists)
    if write:
        data.to_parquet(str(out / "triplets.parquet"))
    return len(data)


def run_side(side: str, folder: Path, out: Path) -> None:
    import datasets

    from miner.exporters import sentence_transformers  # noqa: F401  imports are not timed

    datasets.disable_progress_bars()
    out.mkdir(exist_ok=True)
    start, cpu = time.perf_counter(), time.process_time()
    if side.startswith("miner"):
        count = miner(folder, out, "none" if side == "miner" else "zstd")
    else:
        count = from_dict(folder, out, side.endswith("parquet"))
    seconds, used = time.perf_counter() - start, time.process_time() - cpu
    size = sum(path.stat().st_size for path in out.iterdir()) / 1e6
    sys.stdout.write(json.dumps({"rows": count, "seconds": seconds, "cpu": used, "mb": size}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--triples", type=int, default=1_000_000)
    parser.add_argument("--passages", type=int, default=200_000)
    parser.add_argument("--runs", type=int, default=1)
    parser.add_argument("--dir", type=Path)
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--world", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    folder = given.dir or Path(tempfile.mkdtemp())
    if given.side:
        run_side(given.side, folder / "job", folder / "out")
    elif given.world:
        (folder / "job").mkdir(parents=True, exist_ok=True)
        world(folder / "job", given.triples, given.passages)
    else:
        compare(given, folder)


def compare(given: argparse.Namespace, folder: Path) -> None:
    """The parent stays small, since its memory counts into a child's peak."""
    folder.mkdir(parents=True, exist_ok=True)
    sizes = ["--triples", str(given.triples), "--passages", str(given.passages), "--dir", str(folder)]
    common.child([sys.executable, __file__, "--world", *sizes], folder / "log")
    found: list[tuple[str, dict[str, float], float]] = []
    for number in range(given.runs):
        for side in SIDES if number % 2 == 0 else SIDES[::-1]:
            shutil.rmtree(folder / "out", ignore_errors=True)
            done = common.child([sys.executable, __file__, "--side", side, *sizes], folder / "log")
            found.append((side, json.loads(done.out), done.peak))
    sides = {side: [(told, peak) for name, told, peak in found if name == side] for side in SIDES}
    wall, cpu = (
        {side: min(told[kind] for told, _ in runs) for side, runs in sides.items()} for kind in ("seconds", "cpu")
    )
    rows = [
        [
            side,
            runs[0][0]["rows"],
            f"{wall[side]:.1f}",
            f"{wall[side] / wall['miner']:.1f}",
            f"{cpu[side]:.1f}",
            f"{cpu[side] / cpu['miner']:.1f}",
            f"{runs[0][0]['rows'] / wall[side]:,.0f}",
            f"{max(peak for _, peak in runs):.0f}",
            f"{runs[0][0]['mb']:.0f}",
        ]
        for side, runs in sides.items()
    ]
    head = ["side", "triples", "wall s", "of miner", "CPU s", "of miner", "triples / s", "peak MiB", "file MB"]
    common.say(common.table(head, rows))
    common.say(
        f"\n{given.runs} runs in turn, the least time of each kind; {given.passages} passages; {common.machine()}"
    )


if __name__ == "__main__":
    main()
