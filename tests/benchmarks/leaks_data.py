"""Data of leaks.py: of each query one positive is shown, chosen by hash; the others are hidden."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import common
import numpy as np
import pyarrow.parquet as pq

Array = np.ndarray[Any, Any]
Kept = dict[str, list[str]]  # query id -> negatives, best rank first


class Source(NamedTuple):
    split: str
    relevant_from: int  # as the data set's own notes say


SOURCES = {"scifact": Source("train", 1), "cranfield": Source("train", 1), "dl19-judge-dev": Source("dev", 2)}


@dataclass
class Data:
    """One data set with its hidden positives; vectors are filled in from the first job."""

    folder: Path
    passages: dict[str, str]
    queries: dict[str, str]
    shown: dict[str, str]
    hidden: dict[str, set[str]]  # of queries with a hidden positive only
    vectors: dict[str, Array] = field(default_factory=dict)

    def cosine(self, query: str, doc: str) -> float:
        return float(self.vectors["q:" + query] @ self.vectors["p:" + doc])


def build(source: Path, name: str, out: Path, seed: int) -> Data:
    split, relevant_from = SOURCES[name]
    positives: dict[str, list[str]] = defaultdict(list)
    for query, doc, relevance in common.read_qrels(source / name / "qrels" / f"{split}.tsv"):
        if relevance >= relevant_from:
            positives[query].append(doc)
    corpus = common.read_jsonl(source / name / "corpus.jsonl")
    asked = [row for row in common.read_jsonl(source / name / "queries.jsonl") if row["_id"] in positives]
    shown = {query: min(docs, key=lambda doc: _ticket(seed, query, doc)) for query, docs in positives.items()}
    common.write_jsonl(out / "corpus.jsonl", corpus)
    common.write_jsonl(out / "queries.jsonl", asked)
    common.write_qrels(out / "qrels" / "train.tsv", [(query, doc, 1) for query, doc in shown.items()])
    return Data(
        out,
        {row["_id"]: common.passage(row) for row in corpus},
        {row["_id"]: row["text"] for row in asked},
        shown,
        {query: set(docs) - {shown[query]} for query, docs in positives.items() if len(docs) > 1},
    )


def _ticket(seed: int, query: str, doc: str) -> bytes:
    return hashlib.blake2b(f"{seed}:{query}:{doc}".encode()).digest()


def read_vectors(data: Data, job: Path) -> None:
    """The job's own vectors, so that every setting of every side is measured with the same ones."""
    for kind, column in (("passages", "doc_id"), ("queries", "query_id")):
        ids = pq.read_table(job / "corpus" / f"{kind}.parquet", columns=[column]).column(column).to_pylist()
        vectors = np.load(job / "vectors" / f"{kind}.npy")
        data.vectors |= {f"{kind[0]}:{key}": vector for key, vector in zip(ids, vectors, strict=True)}


def kept(job: Path) -> Kept:
    """The negatives that the job keeps, best rank first."""
    rows = common.rows_with(job / "decisions", ["query_id", "doc_id", "rank", "kept"]).to_pydict()
    found: dict[str, list[tuple[int, str]]] = defaultdict(list)
    for query, doc, rank, keep in zip(*rows.values(), strict=True):
        if keep:
            found[query].append((rank, doc))
    return {query: [doc for _, doc in sorted(ranked)] for query, ranked in found.items()}
