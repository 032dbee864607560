"""The training files: which formats, and how rows are made of queries, positives and negatives."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from miner.config.base import Model


class Export(Model):
    """The training files."""

    formats: tuple[Literal["flagembedding", "st-ntuple", "st-triplet"], ...] = Field(
        ("flagembedding", "st-ntuple", "st-triplet"), min_length=1, description="Training files to write."
    )
    min_negatives: int = Field(1, ge=1, description="Queries with fewer negatives are set aside.")
    ntuple_negatives: int | None = Field(
        None, ge=1, description="Negatives of an n-tuple row; null: mining.negatives, at most 4."
    )
    prompt: str = Field(
        "", description="FlagEmbedding's `prompt`: put before each query in training, in place of the trainer's option."
    )
    scores: bool = Field(True, description="Write the retriever's scores beside positives and negatives.")
