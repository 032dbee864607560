"""The training files: which formats, and how rows are made of queries, positives and negatives."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from miner.config.base import Model

Format = Literal[
    "flagembedding",
    "flagembedding-reranker",
    "flagembedding-m3",
    "st-triplet",
    "st-ntuple",
    "st-labeled-pair",
    "st-labeled-list",
    "st-scored-pair",
    "st-scored-list",
    "tevatron",
    "tevatron-legacy",
    "beir",
    "parquet",
]
# Formats whose loaders open nothing but plain .jsonl.
PLAIN = frozenset(("flagembedding", "flagembedding-reranker", "flagembedding-m3", "beir"))


class Export(Model):
    """The training files."""

    formats: tuple[Format, ...] = Field(
        ("flagembedding", "st-ntuple", "st-triplet"), min_length=1, description="Training files to write."
    )
    min_negatives: int = Field(1, ge=1, description="Queries with fewer negatives are set aside.")
    max_negatives: int | None = Field(None, ge=1, description="Negatives of a query at most, best first; null: all.")
    ntuple_negatives: int | None = Field(
        None, ge=1, description="Negatives of an n-tuple row; null: mining.negatives, at most 4."
    )
    positives: Literal["together", "each", "sample"] = Field(
        "together",
        description="Several positives of a query. together: in one row where the format has lists, else a row each;"
        " each: a row each; sample: one, drawn by the seed.",
    )
    prompt: str = Field(
        "", description="FlagEmbedding's `prompt`: put before each query in training, in place of the trainer's option."
    )
    scores: bool = Field(
        True, description="Write scores beside positives and negatives where the format may lack them."
    )
    score_of: Literal["retriever", "teacher"] = Field(
        "retriever",
        description="Whose scores: the encoder's cosine, or the teacher's logit (passages without: left out).",
    )
    score_scale: Literal["raw", "sigmoid", "minmax"] = Field(
        "raw",
        description="sigmoid: of the teacher's logits; minmax: 0 and 1 are the lowest and highest exported score.",
    )
    rows_per_shard: int | None = Field(None, ge=1, description="Rows of one file; null: one file for all.")
    compression: Literal["none", "zstd", "gzip"] = Field(
        "none",
        description="zstd makes Parquet less than half as large and takes twice the time. What FlagEmbedding and BEIR"
        " read is always plain.",
    )
    dev_share: float = Field(
        0.0,
        ge=0,
        le=0.5,
        description="Queries held out in dev files, by clusters of like queries and shared positives.",
    )
    copy_to: str | None = Field(
        None, min_length=1, description="URL of a folder (s3://, gs://, file://, …) that the finished export goes to."
    )
    name: str | None = Field(None, description="Title of the data card; null: the name of the data.")
    license: str | None = Field(None, description="Licence identifier of the hub for the data card, such as cc-by-4.0.")
    license_note: str | None = Field(None, description="Sources and conditions, for the data card.")
    language: tuple[str, ...] = Field((), description="Language codes for the data card, such as en.")

    @model_validator(mode="after")
    def _contradictions(self) -> Export:
        if self.copy_to is not None and "://" not in self.copy_to:
            raise ValueError(f"copy_to {self.copy_to}: no URL; write s3://BUCKET/FOLDER, or file:///FOLDER")
        if self.max_negatives is not None:
            for name in ("min_negatives", "ntuple_negatives"):
                if (getattr(self, name) or 0) > self.max_negatives:
                    raise ValueError(
                        f"max_negatives {self.max_negatives} is below {name} {getattr(self, name)}: no row could be"
                        " so long; lower one or raise the other"
                    )
        if self.score_scale == "sigmoid" and self.score_of != "teacher":
            raise ValueError("score_scale: sigmoid is for a teacher's logits; set score_of: teacher, or minmax")
        if self.compression != "none" and set(self.formats) <= PLAIN:
            raise ValueError(
                f"compression: {self.compression} fits none of the formats: the loaders of FlagEmbedding and BEIR read"
                " plain .jsonl; leave it out"
            )
        return self
