"""Warm mining: the vectors are there; what remains is search, filters and writing. miner beside its two peers.

    python tests/benchmarks/warm.py --model FOLDER [--passages 60000 --queries 50000] [--hn-mine hn_mine.py]

Vectors are simulated (clusters of unit vectors), or read from --passage-vectors and --query-vectors (.npy, float32,
rows L2-normalised), where query i has passage i as its positive. --model: a sentence-transformers folder; every side
loads it and encodes nothing with it. --hn-mine: FlagEmbedding's scripts/hn_mine.py, which its wheel lacks.
The sides take turns, each in a fresh process.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
from pathlib import Path

import common

DEPTH, NEGATIVES, MARGIN = 150, 15, 0.05
SIDES = str(Path(__file__).with_name("warm_sides.py"))


def main() -> None:
    args = _arguments()
    if args.threads:
        os.environ["OMP_NUM_THREADS"] = str(args.threads)  # of torch and faiss, in the children
    with tempfile.TemporaryDirectory(dir=args.scratch) as name:
        common.say(measure(args, Path(name)))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--passages", type=int, default=60_000)
    parser.add_argument("--queries", type=int, default=50_000)
    parser.add_argument("--passage-vectors", default="", help="in place of simulated ones")
    parser.add_argument("--query-vectors", default="", help="in place of simulated ones")
    parser.add_argument("--hn-mine", default="", help="FlagEmbedding's scripts/hn_mine.py; left out without")
    parser.add_argument("--rounds", type=int, default=1, help="times that all sides run, in turn")
    parser.add_argument("--threads", type=int, default=0, help="threads of all sides; 0: one a core")
    parser.add_argument("--scratch", type=Path, help="folder for temporary files")
    parser.add_argument(
        "--set", action="append", default=[], help="further --set of miner, for example mining.block=512"
    )
    return parser.parse_args()


def measure(args: argparse.Namespace, work: Path) -> str:
    _side("data", work, args.passages, args.queries, args.passage_vectors, args.query_vectors)
    _probe(args, work)
    _side("fill", work, args.model)
    peers = ["ST torch", "ST faiss", *(["FlagEmbedding"] if args.hn_mine else [])]
    names = ["miner mine", "miner run", *peers]
    times: dict[str, list[common.Child]] = {name: [] for name in names}
    for number in range(args.rounds):
        for name in names:
            times[name].append(_run(name, args, work, number))
    calls = {name: [float(c.out.split("call_s=")[1].split()[0]) for c in times[name]] for name in peers}
    lines = [
        f"{common.machine()}; {args.passages} passages x {args.queries} queries, {NEGATIVES} negatives, depth {DEPTH}.",
        "",
        common.ratio_table(times, "miner mine"),
        "",
        "Of which the peers' call alone, imports and reading left out: "
        + ", ".join(f"{name} {min(values):.1f} s" for name, values in calls.items()),
        "Found: " + ", ".join(f"{name} {times[name][0].out.split('rows=')[1].split()[0]} rows" for name in peers),
    ]
    return "\n".join(lines)


def _side(name: str, work: Path, *words: object) -> common.Child:
    argv = [sys.executable, SIDES, name, str(work), *map(str, words)]
    return common.child(argv, work / f"side-{name}.log")


def _probe(args: argparse.Namespace, work: Path) -> None:
    """A job on two texts, so that miner makes the folder of its vector cache (and the ONNX file)."""
    small = work / "small"
    common.write_jsonl(small / "corpus.jsonl", [{"_id": "a", "text": "small a"}, {"_id": "b", "text": "small b"}])
    common.write_jsonl(small / "queries.jsonl", [{"_id": "q", "text": "small q"}])
    common.write_qrels(small / "qrels" / "train.tsv", [("q", "a", 1)])
    common.child(common.miner("mine", _job(args, work, "small", small), "--json"), work / "probe.log")


def _job(args: argparse.Namespace, work: Path, name: str, data: Path) -> Path:
    return common.write_job(
        work / f"job-{name}" / "job.yaml",
        data={"path": str(data)},
        encoder={"model": str(args.model.resolve())},
        mining={"depth": DEPTH, "negatives": NEGATIVES, "margin_on": "dense", "margin_relative": MARGIN},
        judge={"enabled": False},
        export={"formats": ["st-ntuple"], "ntuple_negatives": NEGATIVES},
        vector_cache=str(work / "vector-cache"),
    )


def _run(name: str, args: argparse.Namespace, work: Path, number: int) -> common.Child:
    if not name.startswith("miner"):
        side, *words = {"ST torch": ("st", "torch"), "ST faiss": ("st", "faiss")}.get(name, ("flag", args.hn_mine))
        return _side(side, work, *words, args.model)
    command = name.split()[1]
    job = _job(args, work, f"{command}-{number}", work / "data")
    extra = [word for value in args.set for word in ("--set", value)]
    done = common.child(common.miner(command, job, "--json", *extra), work / f"miner-{command}.log")
    if command == "mine":
        counts = common.encoded(done.out)
        assert counts == [0, 0], f"the vector cache was not used: {counts} texts were encoded"
    shutil.rmtree(job.parent)
    return done


if __name__ == "__main__":
    main()
