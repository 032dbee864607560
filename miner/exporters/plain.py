"""One Parquet row for each positive and negative, with texts, scores and all that is known of where it comes from."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa

from miner.exporters import Block, File, Plan, Side, Written, files
from miner.records import ORIGIN, TEXT

NAME = "examples"
# `score`: the retriever's cosine; `exported_score`: the one in the training files, as score_of and score_scale say.
SCHEMA = pa.schema(
    [
        ("query_id", TEXT),
        ("query", TEXT),
        ("doc_id", TEXT),
        ("text", TEXT),
        ("label", pa.int8()),
        ("relevance", pa.int32()),
        ("slot", pa.int32()),
        ("exported_score", pa.float32()),
        *ORIGIN,
        ("judgment_key", pa.string()),
        ("generation_key", pa.string()),
    ]
)


def write(_: str, plan: Plan) -> Written:
    counts, written = {"rows": 0}, []
    for split, blocks in plan.splits.items():
        tables = (table for block in blocks() for table in _tables(block))
        count, pattern = files.parquet(plan.folder, files.place(NAME, split), SCHEMA, tables, plan.settings)
        counts["rows" if split == "train" else f"{split}_rows"] = count
        written.append(File(NAME, split, pattern, count))
    return Written(counts, written)


def _tables(block: Block) -> Iterator[pa.Table]:
    whole = pa.concat_tables([_side(block, block.positives, 1), _side(block, block.negatives, 0)])
    query = np.concatenate([block.positives.query, block.negatives.query])
    row = np.concatenate([block.positives.row, block.negatives.row])
    order = np.argsort(query, kind="stable")
    for start in range(0, len(order), files.BATCH):
        some = order[start : start + files.BATCH]
        texts = {
            "query_id": block.ids.take(pa.array(query[some])),
            "query": block.queries.take(pa.array(query[some])),
            "doc_id": block.passages.ids(row[some]),
            "text": block.passages.texts(row[some]),
        }
        table = whole.take(pa.array(some))
        yield pa.table([*texts.values(), *(table.column(name) for name in SCHEMA.names[4:])], schema=SCHEMA)


def _side(block: Block, side: Side, label: int) -> pa.Table:
    """The columns after the texts; null where a side does not have one."""
    size = len(side.row)
    known: dict[str, Any] = {name: side.info.column(name) for name in side.info.column_names}
    known["label"] = np.full(size, label, np.int8)
    known["exported_score"] = pa.array(side.score.astype(np.float32), from_pandas=True)
    if label and "source" not in known:
        known["source"] = pa.array(["positive"] * size, pa.string())
    fields = [SCHEMA.field(name) for name in SCHEMA.names[4:]]
    columns = [known[f.name] if f.name in known else pa.nulls(size, f.type) for f in fields]
    return pa.table(dict(zip([f.name for f in fields], columns, strict=True))).cast(pa.schema(fields))
