"""Join decisions with texts into training examples, and hand them to the exporters."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

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
    """The negatives of each query, by slot: doc_id and score."""
    by_query: dict[str, list[Row]] = defaultdict(list)
    table = part.decisions.filter(part.decisions.column("kept")).select(["query_id", "doc_id", "score", "slot"])
    for row in table.to_pylist():
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
    before = 0
    for part in parts:
        ids = pa.array(exported(part), part.decisions.schema.field("query_id").type)
        table = part.decisions.filter(part.decisions.column("kept"))
        line = pc.index_in(table.column("query_id"), ids)
        table = table.append_column("row", pc.add(line.cast(pa.int64()), before)).filter(pc.is_valid(line))
        table = table.sort_by([("row", "ascending"), ("slot", "ascending")])
        pairs = list(zip(*(table.column(name).to_pylist() for name in ("query_id", "doc_id")), strict=True))
        for name, kind in (("judgment_key", "judgments"), ("generation_key", "synthetic")):
            table = table.append_column(name, pa.array([keys[kind].get(pair) for pair in pairs], pa.string()))
        yield table.select(PROVENANCE.names).cast(PROVENANCE)
        before += len(ids)
