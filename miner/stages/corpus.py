"""Normalise raw rows into passages, queries and qrels, sorted by key; what is refused is listed with its reason."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

import pyarrow as pa

from miner.errors import UserError
from miner.readers import RawPair, RawPassage, RawQrel, RawQuery, Source
from miner.records import DROPS, PASSAGES, QRELS, QUERIES, content_id, passage_text, texts

CHUNK = 50_000
# (kind, ids, texts) -> (id, reason, place) of the rows that must not be trained on.
Refuse = Callable[[Literal["passage", "query"], Iterable[str], Iterable[str]], Iterable[tuple[str, str, str]]]


@dataclass(frozen=True)
class Corpus:
    """passages sorted by doc_id; queries that have a positive, by query_id; qrels by both; drops in input order."""

    passages: pa.Table
    queries: pa.Table
    qrels: pa.Table
    drops: pa.Table


class _Rows:
    """Collects rows column by column, in Arrow chunks, so that Python objects never pile up."""

    def __init__(self, schema: pa.Schema) -> None:
        self.schema = schema
        self._chunks: list[pa.RecordBatch] = []
        self._rows: list[tuple[Any, ...]] = []

    def add(self, *row: Any) -> None:
        self._rows.append(row)
        if len(self._rows) >= CHUNK:
            self._flush()

    def _flush(self) -> None:
        columns = list(zip(*self._rows, strict=True)) or [()] * len(self.schema)
        arrays = [pa.array(c, f.type) for c, f in zip(columns, self.schema, strict=True)]
        self._chunks.append(pa.record_batch(arrays, schema=self.schema))
        self._rows = []

    def table(self) -> pa.Table:
        self._flush()
        return pa.Table.from_batches(self._chunks, schema=self.schema)


@dataclass
class _Intake:
    """What has been seen so far. Texts are compared by digest: the chunks keep them, this does not."""

    passages: _Rows = field(default_factory=lambda: _Rows(PASSAGES))
    queries: dict[str, tuple[str, str | None]] = field(default_factory=dict)
    drops: _Rows = field(default_factory=lambda: _Rows(DROPS))
    docs: dict[str, str] = field(default_factory=dict)
    qrels: dict[tuple[str, str], int] = field(default_factory=dict)
    refused: set[str] = field(default_factory=set)

    def drop(self, kind: Literal["passage", "query", "qrel"], key: str, place: str, reason: str) -> None:
        self.drops.add(kind, key, place, reason)

    def passage(self, raw: RawPassage, merge: bool) -> str | None:
        """Take a passage in; its id, or None where it is refused. merge: repeats are expected, not counted."""
        whole, extra = passage_text(raw.title, raw.text), _json(raw.extra)
        _check_text(raw.place, raw.doc_id, whole, extra)
        doc_id = raw.doc_id if raw.doc_id is not None else content_id(whole)
        if not whole.strip():
            self.drop("passage", doc_id, raw.place, "empty_text")
            self.refused.add(doc_id)
            return None
        known = self.docs.setdefault(doc_id, content := content_id(whole))
        if known != content:
            raise UserError(f"{raw.place}: duplicate doc_id {doc_id!r} with another text; make the ids unique")
        if len(self.docs) == self._seen:
            if not merge:
                self.drop("passage", doc_id, raw.place, "duplicate_row")
            return doc_id
        self._seen = len(self.docs)
        self.passages.add(doc_id, raw.title, raw.text, extra)
        return doc_id

    _seen: int = 0

    def query(self, raw: RawQuery, merge: bool) -> str | None:
        extra = _json(raw.extra)
        _check_text(raw.place, raw.query_id, raw.text, extra)
        query_id = raw.query_id if raw.query_id is not None else content_id(raw.text)
        if not raw.text.strip():
            self.drop("query", query_id, raw.place, "empty_text")
            self.refused.add(query_id)
            return None
        known = self.queries.get(query_id)
        if known is None:
            self.queries[query_id] = (raw.text, extra)
        elif known[0] != raw.text:
            raise UserError(f"{raw.place}: duplicate query_id {query_id!r} with another text; make the ids unique")
        elif not merge:
            self.drop("query", query_id, raw.place, "duplicate_row")
        return query_id

    def qrel(self, raw: RawQrel) -> None:
        known = self.qrels.setdefault((raw.query_id, raw.doc_id), raw.relevance)
        if known != raw.relevance:
            raise UserError(
                f"{raw.place}: query {raw.query_id!r} and passage {raw.doc_id!r} were judged {known} before and"
                f" {raw.relevance} here; keep one"
            )

    def pair(self, raw: RawPair, relevance: int) -> None:
        query_id = self.query(raw.query, merge=True)
        for passages, grade in ((raw.positives, relevance), (raw.negatives, 0)):
            for passage in passages:
                self._link(query_id, self.passage(passage, merge=True), grade, raw.query.place)

    def _link(self, query_id: str | None, doc_id: str | None, relevance: int, place: str) -> None:
        """One judgment of a pairs file. A positive stays one; whatever adds nothing is counted."""
        key = f"{query_id or ''} {doc_id or ''}".strip()
        if query_id is None or doc_id is None:
            self.drop("qrel", key, place, "empty_query" if query_id is None else "empty_passage")
            return
        known = self.qrels.get((query_id, doc_id))
        if known is not None:
            self.drop("qrel", key, place, "duplicate_row" if known == relevance else "negative_is_positive")
        self.qrels[query_id, doc_id] = relevance if known is None else max(known, relevance)


def run(source: Source, relevant_from: int, refuse: Refuse | None = None) -> Corpus:
    """Read a source to its end; pairs files know no grades, so every pair counts as a positive.

    refuse: the evaluation firewall; what it refuses is dropped with its reason, and the qrels of it with
    firewall_query or firewall_passage.

    Raises UserError where nothing could be mined from what is left.
    """
    intake = _Intake()
    for passage in source.passages:
        intake.passage(passage, merge=False)
    for query in source.queries:
        intake.query(query, merge=False)
    seen: set[tuple[str, str]] = set()
    for qrel in source.qrels:
        if _qrel_fits(intake, qrel, seen):
            intake.qrel(qrel)
    for pair in source.pairs:
        intake.pair(pair, max(relevant_from, 1))
    passages = intake.passages.table()
    if refuse is not None:
        passages = _screened(intake, passages, refuse)
    return _finish(intake, passages, relevant_from)


def _screened(intake: _Intake, passages: pa.Table, refuse: Refuse) -> pa.Table:
    """Take out of the intake what must not be trained on; the passages that are left."""
    gone: dict[str, set[str]] = {"passage": set(), "query": set()}
    rows: dict[Literal["passage", "query"], tuple[list[str], Iterable[str]]] = {
        "passage": (passages.column("doc_id").to_pylist(), texts(passages)),
        "query": (list(intake.queries), (text for text, _ in intake.queries.values())),
    }
    for kind, (ids, words) in rows.items():
        for key, reason, place in refuse(kind, ids, words):
            intake.drop(kind, key, place, reason)
            gone[kind].add(key)
    for name in gone["query"]:
        del intake.queries[name]
    for query_id, doc_id in list(intake.qrels):
        if query_id in gone["query"] or doc_id in gone["passage"]:
            reason = "firewall_query" if query_id in gone["query"] else "firewall_passage"
            intake.drop("qrel", f"{query_id} {doc_id}", "", reason)
            del intake.qrels[query_id, doc_id]
    if len(gone["passage"]) == passages.num_rows or not intake.queries:
        all_of = "queries" if len(gone["passage"]) < passages.num_rows else "passages"
        raise UserError(
            f"data.firewall: all {all_of} of data are in the evaluation sets; train on others, or mend split"
        )
    return passages.filter(pa.array([doc_id not in gone["passage"] for doc_id in rows["passage"][0]]))


def _qrel_fits(intake: _Intake, qrel: RawQrel, seen: set[tuple[str, str]]) -> bool:
    key = (qrel.query_id, qrel.doc_id)
    reason = ""
    if qrel.query_id not in intake.queries:
        reason = "empty_query" if qrel.query_id in intake.refused else "missing_query"
    elif qrel.doc_id not in intake.docs:
        reason = "empty_passage" if qrel.doc_id in intake.refused else "missing_passage"
    elif key in seen and intake.qrels[key] == qrel.relevance:
        reason = "duplicate_row"
    if reason:
        intake.drop("qrel", " ".join(key), qrel.place, reason)
    seen.add(key)
    return not reason


def _finish(intake: _Intake, passages: pa.Table, relevant_from: int) -> Corpus:
    positive = {query_id for (query_id, _), relevance in intake.qrels.items() if relevance >= relevant_from}
    if not intake.docs:
        raise UserError("data: no passage has a text; check data.path and the column names")
    if not positive:
        raise UserError(_no_positive(intake, relevant_from))
    for query_id in intake.queries:
        if query_id not in positive:
            intake.drop("query", query_id, "", "no_positive")
    for query_id, doc_id in intake.qrels:
        if query_id not in positive:
            intake.drop("qrel", f"{query_id} {doc_id}", "", "no_positive")
    qrels = [(q, d, r) for (q, d), r in sorted(intake.qrels.items()) if q in positive]
    queries = [(q, *intake.queries[q]) for q in sorted(positive)]
    return Corpus(
        passages=passages.sort_by("doc_id"),
        queries=_table(queries, QUERIES),
        qrels=_table(qrels, QRELS),
        drops=intake.drops.table(),
    )


def _no_positive(intake: _Intake, relevant_from: int) -> str:
    drops = intake.drops.table().to_pylist()
    lost = next((d for d in drops if d["kind"] == "qrel"), None)
    hint = f"; first dropped: {lost['place']}: {lost['id']} ({lost['reason']})" if lost else ""
    barred = sum(d["kind"] == "qrel" and d["reason"].startswith("firewall_") for d in drops)
    if barred:
        return f"data: no query has a positive; data.firewall took {barred} qrels away; train on others, or mend split"
    return (
        f"data: no query has a positive (qrels at or above relevance {relevant_from}: 0 of {len(intake.qrels)}){hint};"
        " check that the ids of the files agree, and data.relevant_from"
    )


def _table(rows: list[tuple[Any, ...]], schema: pa.Schema) -> pa.Table:
    collected = _Rows(schema)
    for row in rows:
        collected.add(*row)
    return collected.table()


def _check_text(place: str, *texts: str | None) -> None:
    try:
        for text in texts:
            (text or "").encode()
    except UnicodeEncodeError as error:
        bad = f"\\u{ord(error.object[error.start]):04x}"
        raise UserError(f"{place}: the text holds half a surrogate pair ({bad}); repair the encoding") from None


def _json(extra: dict[str, Any] | None) -> str | None:
    return None if extra is None else json.dumps(extra, ensure_ascii=False, sort_keys=True, default=str)


def count(corpus: Corpus) -> dict[str, Any]:
    """Rows kept of each kind, and drops by kind and reason."""
    drops: dict[str, int] = {}
    for row in corpus.drops.select(["kind", "reason"]).to_pylist():
        key = f"{row['kind']}.{row['reason']}"
        drops[key] = drops.get(key, 0) + 1
    return {
        "passages": corpus.passages.num_rows,
        "queries": corpus.queries.num_rows,
        "qrels": corpus.qrels.num_rows,
        "dropped": dict(sorted(drops.items())),
    }
