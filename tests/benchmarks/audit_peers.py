"""`miner audit` on what the peers' miners write: FlagEmbedding's hn_mine.py and sentence-transformers' own miner.

    python tests/benchmarks/audit_peers.py --data BEIR_FOLDER --model MODEL_FOLDER --hn-mine hn_mine.py --out FOLDER

Every query is shown with one of its known positives (the first by id); the others are the truth: a negative that is
one of them is a known false negative. `--peer-python` names the interpreter that has the peers (extra `interop`);
`miner` runs in this one. Texts are cut to 64 tokens. Prints Markdown.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

TOKENS, SEED = 64, 7
SMALL = 20
# Ranks, negatives, and whether the pool of passages is given; without it the first SMALL rows bring their own.
HN_MINE: dict[str, tuple[str, int, bool]] = {
    "hn_mine, defaults (ranks 10-210, 15)": ("10-210", 15, True),
    "hn_mine, ranks 0-15, 15": ("0-15", 15, True),
    "hn_mine, defaults on 20 rows without a pool": ("10-210", 15, False),
}
ST: dict[str, dict[str, Any]] = {
    "ST triplet, defaults": {},
    "ST n-tuple, 7, relative margin .05": {"num_negatives": 7, "relative_margin": 0.05, "output_format": "n-tuple"},
    "ST labeled-list, 7, scores": {"num_negatives": 7, "output_format": "labeled-list", "output_scores": True},
    "ST labeled-pair, 7": {"num_negatives": 7, "output_format": "labeled-pair"},
}
Row = dict[str, Any]


def read_jsonl(path: Path) -> list[Row]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line]


def write_jsonl(path: Path, rows: Iterable[Row]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def load(folder: Path) -> tuple[dict[str, str], dict[str, str], dict[str, list[str]]]:
    """Passages, queries, and the passages known as relevant to each query, of all splits."""
    passages = {r["_id"]: f"{r.get('title', '')} {r['text']}".strip() for r in read_jsonl(folder / "corpus.jsonl")}
    queries = {r["_id"]: r["text"] for r in read_jsonl(folder / "queries.jsonl")}
    known: dict[str, list[str]] = defaultdict(list)
    for path in sorted((folder / "qrels").glob("*.tsv")):
        for line in path.read_text(encoding="utf-8").splitlines()[1:]:
            query, doc, grade = line.split("\t")
            if int(grade) > 0 and passages.get(doc):
                known[query].append(doc)
    return passages, queries, {query: sorted(docs) for query, docs in known.items()}


def prepare(args: argparse.Namespace) -> dict[str, set[str]]:
    """Write what the peers read; the known relevant texts of each query text that are not shown."""
    passages, queries, known = load(args.data)
    write_jsonl(args.out / "pool.jsonl", ({"text": text} for text in passages.values() if text))
    shown = [{"query": queries[query], "pos": [passages[docs[0]]]} for query, docs in sorted(known.items())]
    write_jsonl(args.out / "shown.jsonl", shown)
    write_jsonl(args.out / "small.jsonl", shown[:SMALL])
    truth: dict[str, set[str]] = defaultdict(set)
    for query, docs in known.items():
        truth[queries[query]] |= {passages[doc] for doc in docs}
    return truth


def hn_mine(args: argparse.Namespace, span: str, count: int, pool: bool, target: Path) -> None:
    """FlagEmbedding's script, unchanged, as its manual runs it."""
    words: dict[str, Any] = {
        "input_file": args.out / ("shown.jsonl" if pool else "small.jsonl"),
        "output_file": target,
        "range_for_sampling": span,
        "negative_number": count,
        "embedder_name_or_path": args.model,
        "embedder_model_class": "encoder-only-base",
        "pooling_method": "mean",
        "use_fp16": False,
        "devices": "cpu",
        "batch_size": 64,
        "embedder_query_max_length": TOKENS,
        "embedder_passage_max_length": TOKENS,
    }
    command = [
        args.peer_python,
        args.hn_mine,
        *(part for name, value in words.items() for part in (f"--{name}", value)),
    ]
    run(command, target.with_suffix(".log"))


def run(command: list[Any], log: Path) -> None:
    with log.open("w") as out:
        done = subprocess.run(list(map(str, command)), stdout=out, stderr=subprocess.STDOUT)
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, command))}: exit {done.returncode}\n{log.read_text()[-2000:]}")


def st_mine(args: argparse.Namespace) -> None:
    """All settings of sentence-transformers in one process, which runs in the peers' interpreter."""
    from datasets import Dataset
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.util import mine_hard_negatives

    random.seed(SEED)
    model = SentenceTransformer(str(args.model), device="cpu")
    model.max_seq_length = TOKENS
    shown = read_jsonl(args.out / "shown.jsonl")
    pairs = Dataset.from_dict({"query": [r["query"] for r in shown], "answer": [r["pos"][0] for r in shown]})
    corpus = [row["text"] for row in read_jsonl(args.out / "pool.jsonl")]
    for number, settings in enumerate(ST.values()):
        mined = mine_hard_negatives(
            pairs, model, corpus=corpus, verbose=False, cache_folder=str(args.out / "cache"), **settings
        )
        mined.to_parquet(str(args.out / f"st-{number}.parquet"))


def negatives(path: Path) -> Iterator[tuple[str, str]]:
    """(query, negative) of a file as the peer wrote it, read without miner."""
    if path.suffix == ".jsonl":
        yield from ((row["query"], text) for row in read_jsonl(path) for text in row["neg"])
        return
    import pyarrow.parquet as pq

    for row in pq.read_table(path).to_pylist():
        if isinstance(row["answer"], list):
            yield from ((row["query"], text) for text in row["answer"][1:])
        elif "label" in row:
            yield from ((row["query"], row["answer"]),) if not row["label"] else ()
        else:
            yield from ((row["query"], text) for name, text in row.items() if name.startswith("negative"))


def audit(args: argparse.Namespace, name: str, path: Path, truth: dict[str, set[str]]) -> None:
    command = [sys.executable, "-m", "miner", "audit", path, "--json", "--job", args.out / "job.yaml"]
    command += ["--sample", args.sample]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    if done.returncode > 1:
        raise SystemExit(done.stderr)
    found = json.loads(done.stdout)
    pairs = list(negatives(path))
    false = sum(text in truth[query] for query, text in pairs)
    say(f"\n### {name}\n")
    say(f"{found['rows']:,} rows, {len(pairs):,} negatives; exit code {done.returncode}.")
    say(f"Known as relevant by the qrels: {false:,} ({false / max(1, len(pairs)):.1%}).\n")
    say("| code | severity | finding | count | first |\n|---|---|---|---|---|")
    for finding in found["findings"]:
        told = [finding["code"], finding["severity"], finding["what"], f"{finding['count']:,}", first(finding)]
        say(f"| {' | '.join(told)} |")
    say("\n" + "\n".join(f"- {line.strip()}" for line in found["statistics"]))


def first(finding: dict[str, Any]) -> str:
    """Where it is first, and what stands there if that is no text."""
    one = finding["places"][0]
    place = f"{Path(one['place']).name} {one['where']}".strip()
    value = one["value"] if len(one["value"]) < 60 else ""
    return f"{place} {value}".strip().replace("|", "/")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="a BEIR folder")
    parser.add_argument("--model", type=Path, required=True, help="a sentence-transformers folder, mean pooling")
    parser.add_argument("--hn-mine", type=Path, required=True, help="FlagEmbedding's script")
    parser.add_argument("--peer-python", type=Path, default=Path(sys.executable))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--sample", type=int, default=60, help="queries that the encoder looks at")
    parser.add_argument("--st", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.st:
        return st_mine(args)
    args.out.mkdir(parents=True, exist_ok=True)
    truth = prepare(args)
    paths = {name: args.out / f"hn-{number}.jsonl" for number, name in enumerate(HN_MINE)}
    paths |= {name: args.out / f"st-{number}.parquet" for number, name in enumerate(ST)}
    for name, (span, count, pool) in HN_MINE.items():
        if not paths[name].exists():
            hn_mine(args, span, count, pool, paths[name])
    if not all(paths[name].exists() for name in ST):
        own = [args.peer_python, __file__, "--st"]
        given = [("--data", args.data), ("--model", args.model), ("--hn-mine", args.hn_mine), ("--out", args.out)]
        run([*own, *(part for pair in given for part in pair)], args.out / "st.log")
    job = {
        "data": {"path": str(args.data.resolve())},
        "encoder": {"model": str(args.model.resolve()), "max_length": TOKENS},
        "judge": {"enabled": False},
    }
    (args.out / "job.yaml").write_text(json.dumps(job), encoding="utf-8")  # JSON is YAML
    for name, path in paths.items():
        audit(args, name, path, truth)


if __name__ == "__main__":
    main()
