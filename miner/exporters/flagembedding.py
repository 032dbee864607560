"""FlagEmbedding's embedder JSONL.

Its loader wants `prompt` (else the query may become "Nonequery"), floats for scores, lists of equal length, no
further columns, and at least one negative.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from miner.config import Export
from miner.exporters import Example, Examples, Item
from miner.store import write_jsonl

NAME = "flagembedding.jsonl"


def write(_: str, examples: Examples, folder: Path, settings: Export, __: int) -> dict[str, int]:
    rows: Iterator[dict[str, Any]] = (_row(example, settings) for example in examples())
    return {"rows": write_jsonl(folder / NAME, rows)}


def _row(example: Example, settings: Export) -> dict[str, Any]:
    row: dict[str, Any] = {
        "query": example.query,
        "pos": [item.text for item in example.positives],
        "neg": [item.text for item in example.negatives],
    }
    if settings.scores:
        row |= {"pos_scores": _scores(example.positives), "neg_scores": _scores(example.negatives)}
    return row | {"prompt": settings.prompt, "type": "normal"}


def _scores(items: list[Item]) -> list[float]:
    return [round(float(item.score), 6) for item in items]
