"""Judges against people: a golden file of TREC DL 2019 pairs, balanced over grades and queries.

    python tests/benchmarks/judge_dl19.py OUT.jsonl
    miner golden split OUT.jsonl --test-share 0.5
    miner prompt eval binary --golden OUT.jsonl --model NAME --base-url http://127.0.0.1:18080/v1    # and the others

Of each query the reference is one passage of its best grade; of the others up to three of each grade are drawn, and
what a query lacks in a grade is drawn from the queries that have more, so that every grade has the same number.
Everything is drawn by a hash. judge_dl19.md has the recorded numbers.
"""

from __future__ import annotations

import hashlib
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import common

SOURCE = Path(__file__).resolve().parents[3] / "shared" / "data" / "dl19-judge-dev"
EACH = 3


def ticket(*words: str) -> str:
    return hashlib.blake2b("\0".join(("13", *words)).encode()).hexdigest()


def drawn(judged: dict[str, list[tuple[str, int]]], references: dict[str, str]) -> list[tuple[str, str, int]]:
    """(query_id, doc_id, grade): EACH of a grade and query, then what other queries have more of."""
    chosen: list[tuple[str, str, int]] = []
    for grade in range(4):
        pools = {
            query: sorted((ticket(query, doc), doc) for doc, own in rows if own == grade and doc != references[query])
            for query, rows in judged.items()
        }
        taken = [(query, doc, grade) for query, pool in pools.items() for _, doc in pool[:EACH]]
        rest = sorted(
            (at, key, query, doc) for query, pool in pools.items() for at, (key, doc) in enumerate(pool[EACH:])
        )
        lacking = EACH * len(judged) - len(taken)
        chosen += taken + [(query, doc, grade) for _, _, query, doc in rest[:lacking]]
    return sorted(chosen, key=lambda row: (row[0], ticket(row[0], row[1])))


def main(out: Path) -> None:
    passages = {row["_id"]: common.passage(row) for row in common.read_jsonl(SOURCE / "corpus.jsonl")}
    queries = {row["_id"]: row["text"] for row in common.read_jsonl(SOURCE / "queries.jsonl")}
    judged: dict[str, list[tuple[str, int]]] = defaultdict(list)
    for query, doc, grade in common.read_qrels(SOURCE / "qrels" / "dev.tsv"):
        judged[query].append((doc, grade))
    references = {
        q: max(rows, key=lambda row: (row[1], ticket("reference", q, row[0])))[0] for q, rows in judged.items()
    }
    rows: list[dict[str, Any]] = [
        {
            "query_id": query,
            "query": queries[query],
            "positive": passages[references[query]],
            "doc_id": doc,
            "passage": passages[doc],
            "grade": grade,
            "annotator": "nist",
        }
        for query, doc, grade in drawn(judged, references)
    ]
    common.write_jsonl(out, rows)
    counts = ", ".join(f"{grade}: {sum(row['grade'] == grade for row in rows)}" for grade in range(4))
    common.say(f"{len(rows)} pairs; by grade {counts}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
