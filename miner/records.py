"""The tables that stages exchange: one pyarrow schema each, the columns in file order.

Keys are (query_id, doc_id). Text columns are `large_string`, since a corpus may pass 2 GiB.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import pyarrow as pa

TEXT = pa.large_string()
AT_ONCE = 1024  # texts that are Python objects at one time
WORD = pa.dictionary(pa.int32(), pa.string())

PASSAGES = pa.schema([("doc_id", TEXT), ("title", TEXT), ("text", TEXT), ("extra", TEXT)])
QUERIES = pa.schema([("query_id", TEXT), ("text", TEXT), ("extra", TEXT)])
QRELS = pa.schema([("query_id", TEXT), ("doc_id", TEXT), ("relevance", pa.int32())])
DROPS = pa.schema([("kind", TEXT), ("id", TEXT), ("place", TEXT), ("reason", TEXT)])

# What one retriever found, by (query, rank). `query` and `passage` are row numbers of the corpus step's tables.
RETRIEVED = pa.schema([("query", pa.int32()), ("passage", pa.int32()), ("rank", pa.int32()), ("score", pa.float32())])
TAUGHT = pa.schema([("query", pa.int32()), ("passage", pa.int32()), ("score", pa.float32())])
# Every retriever that found a candidate, with its own rank and score.
FOUND_BY = pa.list_(pa.struct([("retriever", pa.string()), ("rank", pa.int32()), ("score", pa.float32())]))

# One row per (query, passage) that a searcher returned. `retriever` ranked it best, `rank` is that of the fused list,
# `score` the encoder's cosine. `reason` is empty for the rows of the pool, in which
# `pool_rank` counts from 1; `positive_score` is the lowest positive `score` of the query, `positive_teacher_score` the
# lowest of the teacher, which scores the best ranks only.
CANDIDATES = pa.schema(
    [
        ("query_id", TEXT),
        ("doc_id", TEXT),
        ("retriever", WORD),
        ("rank", pa.int32()),
        ("score", pa.float32()),
        ("positive_score", pa.float32()),
        ("to_positive", pa.float32()),
        ("teacher_score", pa.float32()),
        ("positive_teacher_score", pa.float32()),
        ("found_by", FOUND_BY),
        ("band", WORD),
        ("reason", WORD),
        ("pool_rank", pa.int32()),
    ]
)
POSITIVES = pa.schema(
    [
        ("query_id", TEXT),
        ("doc_id", TEXT),
        ("relevance", pa.int32()),
        ("score", pa.float32()),
        ("teacher_score", pa.float32()),
    ]
)

# The columns that say which LLM answer a row rests on.
ANSWERED = [
    ("status", pa.string()),
    ("detail", TEXT),
    ("prompt", pa.string()),
    ("prompt_version", pa.string()),
    ("model", pa.string()),
    ("request_key", pa.string()),
    ("prompt_tokens", pa.int32()),
    ("completion_tokens", pa.int32()),
]
# `score`: how sure the judge is that the passage is relevant, where it says so, else null. `rung`: who of a cascade
# decided. Of a request about several passages the first row bears the tokens. `other_key`: of a packed judge that is
# asked in two orders, the second request.
JUDGMENTS = pa.schema(
    [
        ("query_id", TEXT),
        ("doc_id", TEXT),
        ("grade", pa.int8()),
        ("verdict", pa.string()),
        ("evidence", TEXT),
        ("score", pa.float32()),
        ("rung", pa.string()),
        *ANSWERED,
        ("other_key", pa.string()),
    ]
)
# One row per generation request; `text` is null where nothing readable came back. `sample` counts the answers to one
# demand from 0; `words` is the length it should have; `requirements` and `violated` are JSON lists, null where the
# prompt asks for none. `copy_of` says whose copy the text is: of the positive, of a corpus passage (`corpus_id`, also
# of a near copy), or of another synthetic one of the query; empty for a new text. `reason`: the check that it failed.
# Where `doc_id` is `corpus_id`, a passage of the corpus stands in the place of its written copy.
SYNTHETIC = pa.schema(
    [
        ("query_id", TEXT),
        ("doc_id", TEXT),
        ("positive_id", TEXT),
        ("near_miss_id", TEXT),
        ("facet", pa.string()),
        ("k", pa.int32()),
        ("words", pa.int32()),
        ("sample", pa.int32()),
        ("change", TEXT),
        ("requirements", TEXT),
        ("violated", TEXT),
        ("text", TEXT),
        ("copy_of", pa.string()),
        ("corpus_id", TEXT),
        ("reason", pa.string()),
        ("score", pa.float32()),
        *ANSWERED,
    ]
)
# Where a decided passage comes from, and what was measured and judged of it.
ORIGIN = [
    ("source", pa.string()),
    ("retriever", pa.string()),
    ("rank", pa.int32()),
    ("score", pa.float32()),
    ("positive_score", pa.float32()),
    ("to_positive", pa.float32()),
    ("teacher_score", pa.float32()),
    ("found_by", FOUND_BY),
    ("band", pa.string()),
    ("grade", pa.int8()),
]
# Every candidate, mined or synthetic, with what became of it. `slot` counts a query's negatives from 1.
DECISIONS = pa.schema(
    [
        ("query_id", TEXT),
        ("doc_id", TEXT),
        *ORIGIN,
        ("verdict", pa.string()),
        ("status", pa.string()),
        ("judge_score", pa.float32()),
        ("rung", pa.string()),
        ("kept", pa.bool_()),
        ("reason", pa.string()),
        ("slot", pa.int32()),
    ]
)
# `false_negatives`: mined candidates of the query that the judge found relevant.
OUTCOMES = pa.schema(
    [
        ("query_id", TEXT),
        ("positives", pa.int32()),
        ("negatives", pa.int32()),
        ("false_negatives", pa.int32()),
        ("reason", pa.string()),
    ]
)
# What the judge found relevant among the candidates. Where the job relabels, these are positives too: `relevance` is
# the judge's grade, `score` and `teacher_score` are on the scales of the other positives.
FALSE_NEGATIVES = pa.schema(
    [
        *((name, POSITIVES.field(name).type) for name in POSITIVES.names),
        ("source", pa.string()),
        ("rung", pa.string()),
        ("judge_score", pa.float32()),
        ("evidence", TEXT),
        ("request_key", pa.string()),
    ]
)


def is_corpus(row: Mapping[str, Any]) -> bool:
    """Does a passage of the corpus stand in this row of SYNTHETIC, in the place of its written copy?"""
    return row["corpus_id"] is not None and row["corpus_id"] == row["doc_id"]


def passage_text(title: str, text: str) -> str:
    """The passage as the encoder reads it and as the trainer will: title, a space, text (BEIR's habit)."""
    return f"{title} {text}" if title else text


def fold(text: str) -> str:
    """The form in which two texts count as copies: case-folded, white space collapsed."""
    return " ".join(text.casefold().split())


def content_id(text: str) -> str:
    """An id made from the text alone: 16 hex digits of its BLAKE2b."""
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def texts(table: pa.Table, rows: Iterable[int] | None = None) -> Iterator[str]:
    """The texts of a passages or queries table as the encoder reads them: those of `rows`, or all in order."""
    texted = table.select([name for name in ("title", "text") if name in table.column_names])
    if rows is None:
        batches: Iterable[Any] = texted.to_batches(max_chunksize=AT_ONCE)
    else:
        batches = _taken(texted, iter(rows))
    for batch in batches:
        # Whole columns to Python at once: a value at a time takes several times as long.
        columns = [column.to_pylist() for column in batch.columns]
        yield from columns[0] if len(columns) == 1 else map(passage_text, *columns)


def _taken(table: pa.Table, rows: Iterator[int]) -> Iterator[pa.Table]:
    while some := list(itertools.islice(rows, AT_ONCE)):
        yield table.take(some)
