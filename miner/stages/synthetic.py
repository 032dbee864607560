"""Have the generator write negatives for the queries that judging left short. They are judged like all others."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyarrow as pa

from miner import prompts
from miner.config import Endpoint, Generator
from miner.encoders import Encoder
from miner.ledger import Request
from miner.llms import Ask, form_check, request
from miner.records import SYNTHETIC, content_id, fold


@dataclass(frozen=True)
class Demand:
    """One synthetic negative wanted: a query that is short, its positive, and the facet to change."""

    query_id: str
    query: str
    positive_id: str
    positive: str
    facet: str


def wanted(short: int, negatives: int, generator: Generator) -> int:
    """Synthetic negatives to write for a query that lacks `short` of `negatives`: capped by max_share."""
    return max(0, min(short, int(generator.max_share * negatives)))


def facets(query_hash: int, count: int, generator: Generator) -> list[str]:
    """Facets in turn, starting where the query's hash says, so that all are used alike over the queries."""
    start = query_hash % len(generator.facets)
    return [generator.facets[(start + i) % len(generator.facets)] for i in range(count)]


def run(
    demands: Callable[[], Iterator[Demand]],
    prompt: prompts.Prompt,
    endpoint: Endpoint,
    generator: Generator,
    ask: Ask,
) -> pa.Table:
    """One SYNTHETIC row per demand, in order."""

    asked_for = partial(requests, demands, prompt, endpoint, generator)
    rows = []
    seen: set[tuple[str, str]] = set()
    for demand, reply in zip(demands(), ask(asked_for, form_check(prompt)), strict=True):
        asked = reply.request
        parsed = prompts.read_answer(reply.response, prompt.front.answer_schema, reply.error)
        text = parsed.value.get("passage", "").strip()
        if parsed.status == "ok" and not text:
            parsed = prompts.Parsed("unparsable", "empty passage", {})
        rows.append(
            {
                "query_id": demand.query_id,
                "doc_id": f"syn-{content_id(f'{demand.query_id} {text or asked.key}')}",
                "positive_id": demand.positive_id,
                "facet": demand.facet,
                "change": parsed.value.get("change", ""),
                "text": text or None,
                "copy_of": _copy_of(fold(text), demand, seen),
                "score": None,
                **prompts.answered(parsed, asked.key, asked.body["model"], prompt, reply.response),
            }
        )
    return pa.Table.from_pylist(rows, SYNTHETIC)


def requests(
    demands: Callable[[], Iterator[Demand]], prompt: prompts.Prompt, endpoint: Endpoint, generator: Generator
) -> Iterator[Request]:
    """What is asked for each demand, in order."""
    return (_request(demand, prompt, endpoint, generator) for demand in demands())


def _request(demand: Demand, prompt: prompts.Prompt, endpoint: Endpoint, generator: Generator) -> Request:
    values = {
        "query": demand.query,
        "positive": demand.positive[: generator.max_chars],
        "facet": demand.facet,
    }
    values["nonce"] = prompts.nonce(*values.values())
    about = {"query_id": demand.query_id, "doc_id": demand.positive_id}
    return request(endpoint, prompt, about, **{k: v for k, v in values.items() if k in prompt.front.inputs})


def _copy_of(text: str, demand: Demand, seen: set[tuple[str, str]]) -> str:
    """Whose copy a folded text is, of those that the demand knows; `seen` collects the texts of each query."""
    if text == fold(demand.positive):
        return "positive"
    known = (demand.query_id, text) in seen
    seen.add((demand.query_id, text))
    return "synthetic" if text and known else ""


def mark_copies(table: pa.Table, corpus: Iterable[str]) -> pa.Table:
    """Mark the written passages that stand in the corpus already. Reads the corpus once and keeps none of it."""
    rows = table.to_pylist()
    written = {fold(row["text"]) for row in rows if row["text"] and not row["copy_of"]}
    copies = {text for text in map(fold, corpus) if text in written} if written else set()
    for row in rows:
        if row["text"] and fold(row["text"]) in copies:
            row["copy_of"] = "corpus"
    return pa.Table.from_pylist(rows, SYNTHETIC)


def score(table: pa.Table, query_vectors: Callable[[list[str]], Any], encoder: Encoder) -> pa.Table:
    """Fill `score`: the cosine of query and written passage, the scale that mined candidates have.

    query_vectors: query ids -> float32[n, d].
    """
    rows = [row for row, text in enumerate(table.column("text").to_pylist()) if text]
    if not rows:
        return table
    written = table.take(rows)
    vectors = encoder.encode(written.column("text").to_pylist(), "passage")
    cosines = (query_vectors(written.column("query_id").to_pylist()) * vectors).sum(axis=1)
    scores: list[float | None] = [None] * table.num_rows
    for row, cosine in zip(rows, cosines.tolist(), strict=True):
        scores[row] = cosine
    place = table.schema.get_field_index("score")
    return table.set_column(place, "score", pa.array(scores, pa.float32()))
