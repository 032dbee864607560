"""Join decisions with texts into blocks of training examples, and say where each exported negative comes from."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any, NamedTuple, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from miner.config import Export
from miner.exporters import Array, Block, Passages, Side
from miner.ranking import mix, position
from miner.records import ORIGIN, TEXT, content_id

PROVENANCE = pa.schema(
    [
        ("row", pa.int64()),
        ("query_id", pa.large_string()),
        ("slot", pa.int32()),
        ("doc_id", pa.large_string()),
        *ORIGIN,
        ("judgment_key", pa.string()),
        ("generation_key", pa.string()),
        ("split", pa.string()),
    ]
)
AT_ONCE = 1 << 16  # decisions joined with texts at once, at least
Keys = dict[str, dict[tuple[str, str], str]]


class Part(NamedTuple):
    """Decisions, outcomes and scored positives of the same block of queries."""

    decisions: pa.Table
    outcomes: pa.Table
    positives: pa.Table


class Texts(NamedTuple):
    queries: dict[str, str]
    passages: Passages


class Scale(Protocol):
    def apply(self, scores: Array) -> Array: ...


class Rules(NamedTuple):
    """How blocks are made. scale None: scores stay raw. dev: the ids held out; `held_out` takes these, else the others.

    keys: the request keys of judgments and of what was generated, where provenance is wanted.
    """

    settings: Export
    seed: int = 0
    scale: Scale | None = None
    dev: pa.Array | None = None
    held_out: bool = False
    keys: Keys | None = None


def run(parts: Iterable[Part], texts: Texts, rules: Rules) -> Iterator[Block]:
    """Blocks of the queries that have enough negatives, in query order; slots give the order of negatives."""
    for part in _merged(parts, max(AT_ONCE, len(texts.passages))):
        yield from _block(part, texts, rules).cut()


def _merged(parts: Iterable[Part], rows: int) -> Iterator[Part]:
    """The parts with kept decisions only, several in one until they have `rows` of them: ids are looked up at once."""
    waiting: list[Part] = []
    for part in parts:
        waiting.append(part._replace(decisions=part.decisions.filter(part.decisions.column("kept"))))
        if sum(one.decisions.num_rows for one in waiting) >= rows:
            yield Part(*map(pa.concat_tables, zip(*waiting, strict=True)))
            waiting = []
    if waiting:
        yield Part(*map(pa.concat_tables, zip(*waiting, strict=True)))


def _block(part: Part, texts: Texts, rules: Rules) -> Block:
    ids = part.outcomes.filter(pc.equal(part.outcomes.column("reason"), "")).column("query_id").combine_chunks()
    if rules.dev is not None:
        inside = pc.is_in(ids, value_set=rules.dev)
        ids = ids.filter(inside if rules.held_out else pc.invert(inside))
    decided = part.decisions
    if rules.settings.max_negatives is not None:
        decided = decided.filter(pc.less_equal(decided.column("slot"), rules.settings.max_negatives))
    by = [("relevance", "descending"), ("score", "descending"), ("doc_id", "ascending")]
    if "source" in part.positives.column_names:
        by = [("source", "ascending"), *by]  # "positive" before "relabelled"
    sides = [_ordered(part.positives, ids, by), _ordered(decided, ids, [("slot", "ascending")])]
    doc_ids = pa.chunked_array([chunk for table in sides for chunk in table.column("doc_id").chunks], TEXT)
    rows = texts.passages.rows(doc_ids)
    cut = sides[0].num_rows
    positives, negatives = _side(sides[0], rows[:cut], rules), _side(sides[1], rows[cut:], rules)
    queries = pa.array([texts.queries[i] for i in ids.to_pylist()], pa.large_string())
    block = Block(ids, queries, positives, negatives, texts.passages)
    if rules.settings.score_of == "teacher":
        block = _only_scored(block, rules.settings.min_negatives)
    return _sampled(block, rules.seed) if rules.settings.positives == "sample" else block


def _ordered(table: pa.Table, ids: pa.Array, by: list[tuple[str, str]]) -> pa.Table:
    """The rows of `ids`, by query and then as `by` says, with the number of the query as a column."""
    table = table.append_column("query", pc.index_in(table.column("query_id"), value_set=ids))
    table = table.filter(table.column("query").is_valid())
    return table.take(pc.sort_indices(table, [("query", "ascending"), *by])).combine_chunks()


def _side(table: pa.Table, rows: Array, rules: Rules) -> Side:
    teacher = _numbers(table.column("teacher_score"))
    chosen = teacher if rules.settings.score_of == "teacher" else _numbers(table.column("score"))
    if rules.keys is not None and "slot" in table.column_names:
        table = _with_keys(table, rules.keys)
    scaled = chosen if rules.scale is None else rules.scale.apply(chosen)
    query = table.column("query").to_numpy().astype(np.int64)
    return Side(query, rows, scaled, teacher, table.drop_columns(["query"]))


def _numbers(column: pa.ChunkedArray) -> Array:
    """float64[n], NaN where null."""
    return np.asarray(column.cast(pa.float64()).to_numpy(), np.float64)


def _with_keys(table: pa.Table, keys: Keys) -> pa.Table:
    pairs = list(zip(*(table.column(name).to_pylist() for name in ("query_id", "doc_id")), strict=True))
    for name, kind in (("judgment_key", "judgments"), ("generation_key", "synthetic")):
        known = keys[kind]
        column = (
            pa.array([known.get(pair) for pair in pairs], pa.string()) if known else pa.nulls(len(pairs), pa.string())
        )
        table = table.append_column(name, column)
    return table


def _only_scored(block: Block, enough: int) -> Block:
    """Without the passages that the teacher did not score, and without the queries that then lack some."""
    sides = [_kept(side, ~np.isnan(side.score)) for side in (block.positives, block.negatives)]
    have, left = (np.diff(side.offsets(len(block))) for side in sides)
    keep = (have > 0) & (left >= enough)
    number = np.cumsum(keep) - 1
    positives, negatives = (_renumbered(_kept(side, keep[side.query]), number) for side in sides)
    lost = {
        "passages_without_teacher_score": sum(
            len(old.row) - len(new.row) for old, new in zip((block.positives, block.negatives), sides, strict=True)
        ),
        "queries_without_teacher_scores": int((~keep).sum()),
    }
    mask = pa.array(keep)
    return Block(
        block.ids.filter(mask),
        block.queries.filter(mask),
        positives,
        negatives,
        block.passages,
        {reason: count for reason, count in lost.items() if count},
    )


def _kept(side: Side, keep: Array) -> Side:
    info = side.info.filter(pa.array(keep))
    return Side(side.query[keep], side.row[keep], side.score[keep], side.teacher[keep], info)


def _renumbered(side: Side, number: Array) -> Side:
    return replace(side, query=number[side.query])


def _sampled(block: Block, seed: int) -> Block:
    """One positive a query. The draw depends on the query's id and the seed alone."""
    side = block.positives
    sizes = np.diff(side.offsets(len(block)))
    hashes = np.array([int(content_id(i), 16) for i in block.ids.to_pylist()], np.uint64)
    drawn = (mix(hashes + np.uint64(seed)) % np.maximum(sizes, 1).astype(np.uint64)).astype(np.int64)
    return replace(block, positives=_kept(side, position(side.query) == drawn[side.query]))


def provenance(blocks: Iterable[Block], split: str) -> Iterator[pa.Table]:
    """One row per exported negative, of blocks made with `keys`. `row` numbers the queries of the split from 0."""
    before = 0
    for block in blocks:
        side = block.negatives
        known: dict[str, Any] = {name: side.info.column(name) for name in side.info.column_names}
        known |= {"row": side.query + before, "split": pa.array([split] * len(side.row), pa.string())}
        yield pa.table({name: known[name] for name in PROVENANCE.names}).cast(PROVENANCE)
        before += len(block)
