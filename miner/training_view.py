"""The rows of a training file one after the other, for people and programs that look at them. Nothing is held."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from miner.defects import DEFECTS
from miner.forms import ROLES, Example, Trouble
from miner.readers import training
from miner.readers.training import Entry, Source

Row = dict[str, Any]


@dataclass(frozen=True)
class Wanted:
    """first and last: rows from 1, last None for all. text: in any text of the row; query: in its query; both in any
    case, "" for all. A row that cannot be read fits neither."""

    first: int = 1
    last: int | None = None
    text: str = ""
    query: str = ""

    def fits(self, example: Example | None) -> bool:
        if not self.text and not self.query:
            return True
        if example is None:
            return False
        asked = self.query.casefold() in (example.query or "").casefold()
        return asked and any(self.text.casefold() in text.casefold() for _, _, text in example.texts())


def open_files(path: Path, form: str | None, corpus: Path | None) -> list[Source]:
    """One source, or one a split. Raises UserError as the audit does: no such file, no form that can be told."""
    return training.open_file(path, form, training.open_corpus(corpus) if corpus is not None else None)


def rows(sources: list[Source], wanted: Wanted) -> Iterator[Row]:
    """row (counted from 1 over all sources), place, form; then query, positives and negatives, each with text,
    characters, score and id (None where the file has none), and troubles as [code, what is wrong]. A row that cannot be
    read has `broken` in their place. A passage that is no text has text None."""
    entries = ((source, entry) for source in sources for entry in source)
    chosen = itertools.islice(entries, wanted.first - 1, wanted.last)
    for number, (source, entry) in enumerate(chosen, wanted.first):
        if wanted.fits(entry.example):
            yield {"row": number, "place": source.place(entry.number), "form": source.form, **_told(entry)}


def _told(entry: Entry) -> Row:
    example = entry.example
    if example is None:
        code, reason = entry.broken or ("F01", "")
        return {"broken": [code, reason]}
    count = len(example.positives)
    ids: list[Any] = example.ids or [None] * (1 + count + len(example.negatives))
    return {
        "query": example.query,
        "query_id": ids[0],
        "positives": _side(example.positives, example.positive_scores, ids[1 : 1 + count]),
        "negatives": _side(example.negatives, example.negative_scores, ids[1 + count :]),
        "troubles": [[trouble.code, _what(trouble)] for trouble in example.troubles],
    }


def _what(trouble: Trouble) -> str:
    what = DEFECTS[trouble.code].what
    return what if trouble.slot < 0 else f"{what} ({ROLES[trouble.role]} {trouble.slot + 1})"


def _side(texts: list[str | None], scores: Any, ids: list[Any]) -> list[Row]:
    given = scores if isinstance(scores, list) and len(scores) == len(texts) else [None] * len(texts)
    return [
        {"text": text, "characters": len(text or ""), "score": _score(score), "id": id_}
        for text, score, id_ in itertools.zip_longest(texts, given, ids[: len(texts)])
    ]


def _score(value: Any) -> float | int | None:
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None
