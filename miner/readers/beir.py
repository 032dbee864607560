"""A BEIR folder: corpus.jsonl, queries.jsonl, qrels/<split>.tsv (.gz accepted)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

from miner.config import Data
from miner.errors import UserError
from miner.readers import RawPassage, RawQrel, RawQuery, Source, rows


def read(data: Data) -> Source:
    queries, qrels = judged(data)
    return Source(passages=_passages(_find(Path(data.path) / "corpus.jsonl", data)), queries=queries, qrels=qrels)


def judged(data: Data) -> tuple[Iterator[RawQuery], Iterator[RawQrel]]:
    """The queries and judgments alone, for a folder whose corpus lies elsewhere."""
    folder = Path(data.path)
    qrels = _find(folder / "qrels" / f"{data.split}.tsv", data)
    return _queries(_find(folder / "queries.jsonl", data)), _qrels(qrels)


def _find(path: Path, data: Data) -> Path:
    for candidate in (path, path.with_name(path.name + ".gz")):
        if candidate.is_file():
            return candidate
    splits = sorted({p.name.split(".tsv")[0] for p in (Path(data.path) / "qrels").glob("*.tsv*")})
    hint = f"; data.split may be {', '.join(splits)}" if path.parent.name == "qrels" and splits else ""
    raise UserError(f"{path}: a BEIR folder needs this file{hint}")


def _passages(path: Path) -> Iterator[RawPassage]:
    for row in rows.read(path):
        title = rows.text_of(row, "title", required=False)
        extra = rows.rest(row, {"_id", "title", "text"})
        doc_id = rows.id_of(row, "_id")
        yield RawPassage(doc_id, title, rows.text_of(row, "text"), extra, row.place)


def _queries(path: Path) -> Iterator[RawQuery]:
    for row in rows.read(path):
        extra = rows.rest(row, {"_id", "text"})
        yield RawQuery(rows.id_of(row, "_id"), rows.text_of(row, "text"), extra, row.place)


def _qrels(path: Path) -> Iterator[RawQrel]:
    """Tab-separated query-id, corpus-id, score; the header line is optional, as it is in the wild."""
    count, name = 0, str(path)
    for number, line in rows.text_lines(path):
        fields = line.rstrip("\r\n").split("\t")
        if fields == [""] or (number == 1 and fields[:2] == ["query-id", "corpus-id"]):
            continue
        if len(fields) == 4 and fields[1] in ("0", "Q0"):
            fields = [fields[0], *fields[2:]]
        if len(fields) != 3:
            raise UserError(
                f"{path}:{number}: {len(fields)} tab-separated fields, not query-id, corpus-id, score:"
                f" {rows.clip(line)}"
            )
        count += 1
        place = f"{name}:{number}"
        yield RawQrel(fields[0], fields[1], _relevance(fields[2], place), place)
    if not count:
        raise UserError(f"{path}: the file holds no judgments")


def _relevance(text: str, place: str) -> int:
    """A whole number, also in the form 1.0. Half grades are refused: cut to a whole one they would change sides."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not value.is_integer() or abs(value) >= 1 << 31:
        raise UserError(f"{place}: the score {rows.clip(text)!r} is not a whole number; write 0, 1, 2, …")
    return int(value)
