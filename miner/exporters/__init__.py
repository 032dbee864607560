"""Exporters write training examples in one trainer's form, streaming, whole or not at all."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from miner.config import Export

FORMATS = {
    "flagembedding": "miner.exporters.flagembedding",
    "st-ntuple": "miner.exporters.sentence_transformers",
    "st-triplet": "miner.exporters.sentence_transformers",
}


@dataclass(frozen=True)
class Item:
    doc_id: str
    text: str
    score: float


@dataclass(frozen=True)
class Example:
    """One query with its positives (best first) and its hard negatives (in slot order), at least one of each."""

    query_id: str
    query: str
    positives: list[Item]
    negatives: list[Item]


Examples = Callable[[], Iterator[Example]]
# The exporter of a format: (format, examples, folder, settings, negatives wanted) -> counts for the manifest.
Exporter = Callable[[str, Examples, Path, Export, int], dict[str, int]]


def get(name: str) -> Exporter:
    exporter: Exporter = importlib.import_module(FORMATS[name]).write
    return exporter
