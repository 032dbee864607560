"""A BEIR folder: corpus.jsonl, queries.jsonl, qrels/<split>.tsv (.gz accepted)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from miner.config import Data
from miner.errors import UserError
from miner.readers import RawPassage, RawQrel, RawQuery, Source, rows


def read(data: Data) -> Source:
    folder = Path(data.path)
    qrels = _find(folder / "qrels" / f"{data.split}.tsv", data)
    return Source(
        passages=_passages(_find(folder / "corpus.jsonl", data)),
        queries=_queries(_find(folder / "queries.jsonl", data)),
        qrels=_qrels(qrels),
    )


def _find(path: Path, data: Data) -> Path:
    for candidate in (path, path.with_name(path.name + ".gz")):
        if candidate.is_file():
            return candidate
    splits = sorted(p.name.split(".")[0] for p in (Path(data.path) / "qrels").glob("*.tsv*"))
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
    count = 0
    for number, line in rows.text_lines(path):
        fields = line.rstrip("\r\n").split("\t")
        if fields == [""] or (number == 1 and fields[:2] == ["query-id", "corpus-id"]):
            continue
        if len(fields) == 4 and fields[1] in ("0", "Q0"):
            fields = [fields[0], *fields[2:]]
        if len(fields) != 3:
            raise UserError(f"{path}:{number}: {len(fields)} tab-separated fields, not query-id, corpus-id, score")
        try:
            relevance = int(float(fields[2]))
        except ValueError:
            raise UserError(f"{path}:{number}: the score {rows.clip(fields[2])!r} is not a number") from None
        count += 1
        yield RawQrel(fields[0], fields[1], relevance, f"{path}:{number}")
    if not count:
        raise UserError(f"{path}: the file holds no judgments")
