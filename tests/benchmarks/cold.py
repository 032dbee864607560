"""Cold mining, encoding included: `miner mine` beside sentence-transformers' mine_hard_negatives, same weights.

    python tests/benchmarks/cold.py --scifact FOLDER --model FOLDER [--passages 5000 --queries 2000]

--model: a sentence-transformers folder with fp32 weights. The sides take turns, each in a fresh process. Afterwards
the lists are compared: miner's candidates with an exact search in the vectors that sentence-transformers made.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import common

DEPTH, NEGATIVES, MARGIN = 100, 7, 0.05


def main() -> None:
    args = _arguments()
    if args.threads:
        os.environ["OMP_NUM_THREADS"] = str(args.threads)  # of torch and faiss, in the children too
    if args.side:
        return sentence_transformers_side(args)
    with tempfile.TemporaryDirectory() as name:
        common.say(measure(args, Path(name)))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scifact", type=Path, help="BEIR folder of SciFact (corpus, queries, qrels train and test)")
    parser.add_argument("--model", type=Path, required=True, help="sentence-transformers folder, fp32")
    parser.add_argument("--passages", type=int, default=5000)
    parser.add_argument("--queries", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=1, help="times that all sides run, in turn")
    parser.add_argument("--threads", type=int, default=0, help="threads of all sides; 0: one a core")
    parser.add_argument("--faiss", choices=["off", "on", "both"], default="both", help="use_faiss of the peer")
    parser.add_argument("--side", choices=["faiss", "torch"], help=argparse.SUPPRESS)
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def measure(args: argparse.Namespace, work: Path) -> str:
    common.child([sys.executable, __file__.replace("cold.py", "cold_data.py"), args.scifact, work / "data",
                  args.passages, args.queries], work / "data.log")  # fmt: skip
    first = _miner(args, work, "first", "data-small")  # converts the model to ONNX where that is still to be done
    names = {"off": ["torch"], "on": ["faiss"], "both": ["torch", "faiss"]}[args.faiss]
    times: dict[str, list[common.Child]] = {"miner": [], **{f"ST {name}": [] for name in names}}
    for number in range(args.rounds):
        times["miner"].append(_miner(args, work, f"round-{number}", "data"))
        for name in names:
            times[f"ST {name}"].append(_peer(args, work, name))
    lines = [
        f"{common.machine()}; {args.passages} passages x {args.queries} queries, depth {DEPTH}.",
        f"miner's first run on three passages (with the conversion to ONNX, if still to be done): {first.wall:.1f} s.",
        "",
        common.ratio_table(times, "miner"),
        "",
        common.child([sys.executable, __file__.replace("cold.py", "cold_overlap.py"), work], work / "overlap.log").out,
    ]
    return "\n".join(lines)


def _miner(args: argparse.Namespace, work: Path, name: str, data: str) -> common.Child:
    mining: dict[str, Any] = {"depth": DEPTH, "negatives": NEGATIVES, "margin_on": "dense", "margin_relative": MARGIN}
    job = common.write_job(
        work / name / "job.yaml",
        data={"path": str(work / data)},
        encoder={"model": str(args.model.resolve()), "threads": args.threads},  # backend auto: ONNX Runtime on a CPU
        mining=mining,
        judge={"enabled": False},
    )
    return common.child(common.miner("mine", job, "--json"), work / f"miner-{name}.log")


def _peer(args: argparse.Namespace, work: Path, side: str) -> common.Child:
    shutil.rmtree(work / "st-cache", ignore_errors=True)
    argv = [sys.executable, __file__, "--side", side, "--model", args.model, "--work", work]
    return common.child(argv, work / f"st-{side}.log")


def sentence_transformers_side(args: argparse.Namespace) -> None:
    from datasets import Dataset
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.util import mine_hard_negatives

    data = args.work / "data"
    corpus = {row["_id"]: common.passage(row) for row in common.read_jsonl(data / "corpus.jsonl")}
    queries = {row["_id"]: row["text"] for row in common.read_jsonl(data / "queries.jsonl")}
    pairs = [(queries[q], corpus[d]) for q, d, _ in common.read_qrels(data / "qrels" / "train.tsv")]
    mined = mine_hard_negatives(
        Dataset.from_dict({"query": [q for q, _ in pairs], "positive": [d for _, d in pairs]}),
        SentenceTransformer(str(args.model), device="cpu"),
        corpus=list(corpus.values()),
        range_max=DEPTH,
        relative_margin=MARGIN,
        num_negatives=NEGATIVES,
        output_format="n-tuple",
        output_scores=True,
        use_faiss=args.side == "faiss",
        cache_folder=str(args.work / "st-cache"),  # its vectors are read when the lists are compared
    )
    mined.to_parquet(str(args.work / "st.parquet"))


if __name__ == "__main__":
    main()
