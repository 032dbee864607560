"""FlagEmbedding's JSONL: {"query": text, "pos": [texts], "neg": [texts, optional]}, one object a line."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from miner.config import Data
from miner.errors import UserError
from miner.readers import RawPair, RawPassage, RawQuery, Source, rows
from miner.readers.pairs import corpus_file

OWN = {"query", "pos", "neg", "pos_scores", "neg_scores", "prompt", "type"}


def read(data: Data) -> Source:
    return Source(passages=corpus_file(data), pairs=_pairs(Path(data.path)))


def _pairs(path: Path) -> Iterator[RawPair]:
    for row in rows.read(path):
        query = RawQuery(None, rows.text_of(row, "query"), rows.rest(row, {*OWN}), row.place)
        yield RawPair(query, _texts(row, "pos"), _texts(row, "neg") if "neg" in row.values else [])


def _texts(row: rows.Row, name: str) -> list[RawPassage]:
    value = row.values.get(name)
    if not isinstance(value, list):
        raise UserError(f"{row.place}: {name} is {rows.sort_of(value)}, not a list of texts: {rows.shown(value)}")
    return [RawPassage(None, "", text, None, row.place) for text in rows.texts_of(row, name)]
