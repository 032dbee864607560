"""Pairs of query and positive in a JSONL, CSV, TSV or Parquet file, columns named by `data.columns`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from miner.config import Columns, Data
from miner.errors import UserError
from miner.readers import RawPair, RawPassage, RawQuery, Source, rows


def read(data: Data) -> Source:
    return Source(passages=corpus_file(data), pairs=pairs(rows.read(Path(data.path)), data.columns))


def pairs(source: Iterable[rows.Row], columns: Columns) -> Iterator[RawPair]:
    used = set(columns.model_dump().values())
    place, met = "", columns.negative is None
    for row in source:
        place, met = row.place, met or columns.negative in row.values
        extra = rows.rest(row, used)
        query = RawQuery(rows.id_of(row, columns.query_id), rows.text_of(row, columns.query), extra, row.place)
        title = rows.text_of(row, columns.title) if columns.title else ""
        doc_id = rows.id_of(row, columns.doc_id)
        positives = rows.texts_of(row, columns.positive)
        ids = [doc_id] if len(positives) == 1 else [None] * len(positives)
        yield RawPair(
            query,
            [RawPassage(i, title, text, None, row.place) for i, text in zip(ids, positives, strict=True)],
            [RawPassage(None, "", text, None, row.place) for text in rows.texts_of(row, columns.negative, False)],
        )
    if not met:
        raise UserError(f"{place}: no row up to here has the column {columns.negative!r}; mend data.columns.negative")


def corpus_file(data: Data) -> Iterator[RawPassage]:
    """The passages of `data.corpus`, none where it is not set."""
    if data.corpus is None:
        return
    names = data.corpus_columns
    for row in rows.read(Path(data.corpus)):
        title = rows.text_of(row, names.title, required=False) if names.title else ""
        extra = rows.rest(row, set(names.model_dump().values()))
        yield RawPassage(rows.id_of(row, names.doc_id), title, rows.text_of(row, names.text), extra, row.place)
