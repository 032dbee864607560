"""Data of cold.py: cold_data.py SCIFACT OUT PASSAGES QUERIES.

The queries are the claims, filled up with titles of abstracts as queries for these."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import common


def main(source: Path, out: Path, passages: int, queries: int) -> None:
    corpus = {row["_id"]: row for row in common.read_jsonl(source / "corpus.jsonl")}
    claims = {row["_id"]: row["text"] for row in common.read_jsonl(source / "queries.jsonl")}
    qrels = [row for split in ("train", "test") for row in common.read_qrels(source / "qrels" / f"{split}.tsv")]
    wanted = list(dict.fromkeys(q for q, _, relevance in qrels if relevance > 0))[:queries]
    pairs = [row for row in qrels if row[0] in set(wanted) and row[2] > 0]
    chosen = dict.fromkeys(d for _, d, _ in pairs) | dict.fromkeys(sorted(corpus))
    docs = [corpus[d] for d in list(chosen)[:passages]]
    held = {row["_id"] for row in docs}
    titled = [row for row in docs if row.get("title")][: max(queries - len(wanted), 0)]
    asked = [{"_id": q, "text": claims[q]} for q in wanted]
    asked += [{"_id": f"title-{row['_id']}", "text": row["title"]} for row in titled]
    pairs = [row for row in pairs if row[1] in held] + [(f"title-{row['_id']}", row["_id"], 1) for row in titled]
    _write(out, docs, asked, pairs)
    _write(out.with_name(out.name + "-small"), docs[:3], asked[:1], [(asked[0]["_id"], docs[0]["_id"], 1)])


def _write(
    out: Path, docs: list[dict[str, Any]], asked: list[dict[str, Any]], pairs: list[tuple[str, str, int]]
) -> None:
    common.write_jsonl(out / "corpus.jsonl", docs)
    common.write_jsonl(out / "queries.jsonl", asked)
    common.write_qrels(out / "qrels" / "train.tsv", pairs)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
