"""Readers turn a user's files into raw rows; `stages.corpus` normalises them.

A reader is a function (Data) -> Source. The registry names them as `data.format` does.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from miner.config import Data
from miner.errors import UserError


class RawPassage(NamedTuple):
    doc_id: str | None
    title: str
    text: str
    extra: dict[str, Any] | None
    place: str


class RawQuery(NamedTuple):
    query_id: str | None
    text: str
    extra: dict[str, Any] | None
    place: str


class RawQrel(NamedTuple):
    query_id: str
    doc_id: str
    relevance: int
    place: str


class RawPair(NamedTuple):
    """One query with the texts that belong to it, as pairs files hold them."""

    query: RawQuery
    positives: list[RawPassage]
    negatives: list[RawPassage]


@dataclass(frozen=True)
class Source:
    """Rows of each kind, read lazily and once; `files` are what the job's key hashes."""

    passages: Iterator[RawPassage] = field(default_factory=lambda: iter(()))
    queries: Iterator[RawQuery] = field(default_factory=lambda: iter(()))
    qrels: Iterator[RawQrel] = field(default_factory=lambda: iter(()))
    pairs: Iterator[RawPair] = field(default_factory=lambda: iter(()))


Reader = Callable[[Data], Source]
READERS = {
    "beir": "miner.readers.beir",
    "flagembedding": "miner.readers.flagembedding",
    "pairs": "miner.readers.pairs",
    "datasets": "miner.readers.hub",
}


def get(name: str) -> Reader:
    reader: Reader = importlib.import_module(READERS[name]).read
    return reader


def detect(data: Data) -> str:
    """The format that `auto` stands for. Raises UserError where nothing fits."""
    if data.format != "auto":
        return data.format
    path = Path(data.path)
    if path.is_dir():
        if any((path / name).exists() for name in ("corpus.jsonl", "corpus.jsonl.gz", "queries.jsonl", "qrels")):
            return "beir"
        return "datasets"
    if path.is_file():
        return _detect_file(path)
    if path.is_absolute() or data.path.startswith((".", "~")) or data.path.count("/") > 1:
        raise UserError(f"data.path {data.path}: no such file or folder")
    return "datasets"


def _detect_file(path: Path) -> str:
    from miner.readers import rows

    if rows.kind(path) != "jsonl":
        return "pairs"
    first = next(iter(rows.read(path)), None)
    return "flagembedding" if first is not None and {"query", "pos"} <= first.values.keys() else "pairs"


def local_files(data: Data) -> list[Path]:
    """Every local file that the input is read from, sorted; a hub id has none."""
    files: list[Path] = []
    for name in (data.path, data.corpus):
        path = Path(name) if name else None
        if path and path.is_dir():
            files += [p for p in path.rglob("*") if p.is_file() and not p.name.startswith(".")]
        elif path and path.is_file():
            files.append(path)
    return sorted(files)
