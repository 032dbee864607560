"""sentence-transformers' n-tuples (anchor, positive, negative_1, …) and triplets, as Parquet that `datasets` opens.

Each positive of a query makes rows of its own. Every column but a label becomes a model input, so there are no ids;
`scores` (of the positive, then of the negatives) is one of the label names that the trainer knows.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from miner.config import Export
from miner.exporters import Example, Examples, Item
from miner.store import write_batches

BATCH = 4096
Row = dict[str, Any]


def write(name: str, examples: Examples, folder: Path, settings: Export, wanted: int) -> dict[str, int]:
    if name == "st-triplet":
        columns, short = ["negative"], 0
        rows = (row for example in examples() for row in _triplets(example))
    else:
        size = settings.ntuple_negatives or min(wanted, 4)
        columns = [f"negative_{i}" for i in range(1, size + 1)]
        short = sum(len(example.negatives) < size for example in examples())
        rows = (row for example in examples() for row in _ntuples(example, columns))
    fields = [(column, pa.large_string()) for column in ["anchor", "positive", *columns]]
    schema = pa.schema([*fields, *([("scores", pa.list_(pa.float32()))] if settings.scores else [])])
    count = write_batches(folder / f"{name}.parquet", schema, _tables(rows, schema))
    return {"rows": count, **({"queries_with_too_few_negatives": short} if name == "st-ntuple" else {})}


def _triplets(example: Example) -> Iterator[Row]:
    for positive in example.positives:
        for negative in example.negatives:
            yield _row(example, positive, ["negative"], [negative])


def _ntuples(example: Example, columns: list[str]) -> Iterator[Row]:
    if len(example.negatives) >= len(columns):
        for positive in example.positives:
            yield _row(example, positive, columns, example.negatives[: len(columns)])


def _row(example: Example, positive: Item, columns: list[str], negatives: list[Item]) -> Row:
    texts = {column: item.text for column, item in zip(columns, negatives, strict=True)}
    scores = [item.score for item in [positive, *negatives]]
    return {"anchor": example.query, "positive": positive.text, **texts, "scores": scores}


def _tables(rows: Iterator[Row], schema: pa.Schema) -> Iterator[pa.Table]:
    batch: list[Row] = []
    for row in rows:
        batch.append(row)
        if len(batch) == BATCH:
            yield pa.Table.from_pylist(batch, schema)
            batch = []
    yield pa.Table.from_pylist(batch, schema)
