"""`data`: where queries, passages and judgments come from."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from miner.config.base import Model


class Columns(Model):
    """Which columns of a pairs file (or of a data set) hold what."""

    query: str = Field("query", description="Column of the query text.")
    positive: str = Field("positive", description="Column of the positive passage, or of a list of them.")
    negative: str | None = Field(None, description="Column of passages known as not relevant (text or list).")
    query_id: str | None = Field(None, description="Column of query ids; ids come from content hashes without.")
    doc_id: str | None = Field(None, description="Column of the positive's id; content hashes without.")
    title: str | None = Field(None, description="Column of the positive's title.")


class CorpusColumns(Model):
    """Columns of `data.corpus`."""

    doc_id: str | None = Field("_id", description="Column of the passage id; null: ids from content hashes.")
    title: str | None = Field("title", description="Column of the title; may be absent from the file.")
    text: str = Field("text", description="Column of the passage text.")


class Firewall(Model):
    """An evaluation set; its queries, and the passages relevant to them, are kept out of corpus and queries."""

    path: str = Field(
        min_length=1,
        description="BEIR folder; or a JSONL/CSV/Parquet file with _id, query_id, doc_id or text; or a text file of"
        " ids, one a line.",
    )
    split: str = Field("test", min_length=1, description="qrels/<split>.tsv of a BEIR folder.")
    near: float | None = Field(
        0.8,
        gt=0,
        le=1,
        description="A text is one of theirs too where it shares so much of its word 3-shingles (Jaccard); null: exact"
        " copies alone, case and white space apart.",
    )
    ids: bool = Field(
        True,
        description="The same id means the same row; false where the two number their rows on their own, and the texts"
        " alone decide.",
    )


class Data(Model):
    """Where queries, passages and judgments come from."""

    path: str = Field(
        min_length=1,
        description="BEIR folder, JSONL/CSV/Parquet file (.gz accepted), saved data set or hub id; or the URL of a"
        " folder or file (s3://, gs://, …).",
    )
    format: Literal["auto", "beir", "flagembedding", "pairs", "datasets"] = Field(
        "auto", description="How to read `path`; auto decides by what lies there."
    )
    split: str = Field("train", description="qrels/<split>.tsv of a BEIR folder, or the split of a data set.")
    subset: str | None = Field(None, description="Configuration name of a hub data set.")
    revision: str | None = Field(None, description="Commit or tag of a hub data set.")
    corpus: str | None = Field(None, description="JSONL/CSV/Parquet file, or its URL, of further passages.")
    columns: Columns = Columns()  # type: ignore[call-arg]
    corpus_columns: CorpusColumns = CorpusColumns()  # type: ignore[call-arg]
    relevant_from: int = Field(1, description="Qrels at or above this relevance are positives.")
    firewall: tuple[Firewall, ...] = Field((), description="Evaluation sets that nothing may be trained on.")
