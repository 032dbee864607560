"""Compare the lists of cold.py: cold_overlap.py WORK. miner's candidates against exact search in the peer's vectors."""

from __future__ import annotations

import sys
from collections import defaultdict
from pathlib import Path

import common
import numpy as np
from cold import DEPTH


def main(work: Path) -> None:
    positives, mined = _positives(work), _mined(work / "round-0" / "job.job" / "candidates")
    shares, top = [], []
    for query, ranked in _exact(work):
        best = [d for d in ranked if d not in positives[query]][:DEPTH]
        ours = [d for d in mined[query] if d not in positives[query]][:DEPTH]
        shares.append(len(set(best) & set(ours)) / len(best))
        top.append(best[0] == ours[0])
    common.say(
        f"Overlap of the top-{DEPTH} lists (positives out) with exact search in the peer's vectors, {len(shares)}"
        f" queries: mean {np.mean(shares):.5f}, lowest {min(shares):.2f}; same first passage {np.mean(top):.4f}."
    )


def _positives(work: Path) -> dict[str, set[str]]:
    found: dict[str, set[str]] = defaultdict(set)
    for query, doc, _ in common.read_qrels(work / "data" / "qrels" / "train.tsv"):
        found[query].add(doc)
    return found


def _mined(folder: Path) -> dict[str, list[str]]:
    rows = common.rows_with(folder, ["query_id", "doc_id", "rank"]).to_pydict()
    lists: dict[str, list[tuple[int, str]]] = defaultdict(list)
    for query, doc, rank in zip(rows["query_id"], rows["doc_id"], rows["rank"], strict=True):
        lists[query].append((rank, doc))
    return {query: [doc for _, doc in sorted(found)] for query, found in lists.items()}


def _exact(work: Path):  # type: ignore[no-untyped-def]
    """(query id, doc ids best first) from the peer's cached vectors; equal texts share one vector there."""
    corpus = common.read_jsonl(work / "data" / "corpus.jsonl")
    queries = common.read_jsonl(work / "data" / "queries.jsonl")
    pairs = common.read_qrels(work / "data" / "qrels" / "train.tsv")
    by_id = {row["_id"]: row["text"] for row in queries}
    doc_row = {text: i for i, text in enumerate(dict.fromkeys(common.passage(row) for row in corpus))}
    query_row = {text: i for i, text in enumerate(dict.fromkeys(by_id[q] for q, _, _ in pairs))}
    passages, asked = (np.load(next((work / "st-cache").glob(f"{k}_*.npy"))) for k in _NAMES)
    passages = passages[[doc_row[common.passage(row)] for row in corpus]]
    names = np.array([row["_id"] for row in corpus], object)
    for row in queries:
        if row["text"] in query_row:
            scores = passages @ asked[query_row[row["text"]]]
            yield row["_id"], names[np.argsort(-scores, kind="stable")[: DEPTH + 50]].tolist()


_NAMES = ("corpus_embeddings", "query_embeddings")

if __name__ == "__main__":
    main(Path(sys.argv[1]))
