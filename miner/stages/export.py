"""Join decisions with texts into training examples, and hand them to the exporters."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import pyarrow as pa

from miner.exporters import Example, Item
from miner.records import FOUND_BY

Row = dict[str, Any]

PROVENANCE = pa.schema(
    [
        ("row", pa.int64()),
        ("query_id", pa.large_string()),
        ("slot", pa.int32()),
        ("doc_id", pa.large_string()),
        ("source", pa.string()),
        ("retriever", pa.string()),
        ("rank", pa.int32()),
        ("score", pa.float32()),
        ("positive_score", pa.float32()),
        ("teacher_score", pa.float32()),
        ("found_by", FOUND_BY),
        ("band", pa.string()),
        ("grade", pa.int8()),
        ("judgment_key", pa.string()),
        ("generation_key", pa.string()),
    ]
)


class Part(NamedTuple):
    """Decisions, outcomes and scored positives of the same block of queries."""

    decisions: pa.Table
    outcomes: pa.Table
    positives: pa.Table


class Texts(NamedTuple):
    queries: dict[str, str]
    passages: Any  # doc_id -> text, corpus and synthetic


def run(parts: Iterable[Part], texts: Texts) -> Iterator[Example]:
    """One example per query that has enough negatives, in query order; slots give the order of negatives."""
    for part in parts:
        negatives = kept(part)
        positives = _positives(part.positives)
        for query_id in exported(part):
            yield Example(
                query_id,
                texts.queries[query_id],
                [Item(r["doc_id"], texts.passages[r["doc_id"]], r["score"]) for r in positives[query_id]],
                [Item(r["doc_id"], texts.passages[r["doc_id"]], r["score"]) for r in negatives[query_id]],
            )


def exported(part: Part) -> list[str]:
    rows = part.outcomes.to_pylist()
    return [row["query_id"] for row in rows if not row["reason"]]


def kept(part: Part) -> dict[str, list[Row]]:
    """The kept decisions of each query, by slot."""
    by_query: dict[str, list[Row]] = defaultdict(list)
    for row in part.decisions.filter(part.decisions.column("kept")).to_pylist():
        by_query[row["query_id"]].append(row)
    for rows in by_query.values():
        rows.sort(key=lambda row: row["slot"])
    return by_query


def _positives(table: pa.Table) -> dict[str, list[Row]]:
    """Best first: relevance, then score, then doc_id."""
    by_query: dict[str, list[Row]] = defaultdict(list)
    for row in table.to_pylist():
        by_query[row["query_id"]].append(row)
    for rows in by_query.values():
        rows.sort(key=lambda row: (-row["relevance"], -row["score"], row["doc_id"]))
    return by_query


def provenance(parts: Iterable[Part], keys: dict[str, Any]) -> Iterator[pa.Table]:
    """One row per exported negative. `row` counts the lines of flagembedding.jsonl from 0; keys: the request keys."""
    number = 0
    for part in parts:
        negatives = kept(part)
        rows: list[Row] = []
        for query_id in exported(part):
            for decision in negatives[query_id]:
                pair = (query_id, decision["doc_id"])
                shared = {name: decision[name] for name in PROVENANCE.names if name in decision}
                rows.append(
                    {
                        **shared,
                        "row": number,
                        "judgment_key": keys["judgments"].get(pair),
                        "generation_key": keys["synthetic"].get(pair),
                    }
                )
            number += 1
        yield pa.Table.from_pylist(rows, PROVENANCE)
