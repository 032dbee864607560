"""`encoder`: the model that turns texts into vectors."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from miner.config.base import Model


class Encoder(Model):
    """The model that turns texts into vectors, and how it reads them."""

    model: str = Field(
        "BAAI/bge-small-en-v1.5",
        description="Hub id, local folder, or package:NAME/FOLDER of a model inside a Python package.",
    )
    backend: Literal["auto", "onnx", "torch"] = Field(
        "auto", description="auto: onnx where an ONNX file is found, else torch."
    )
    revision: str | None = Field(None, description="Commit or tag on the hub.")
    onnx_file: str | None = Field(None, description="Local ONNX file (or package:NAME/FILE) in place of the model's.")
    tokenizer_file: str | None = Field(None, description="Local tokenizer.json (or package:NAME/FILE).")
    query_prefix: str | None = Field(None, description="Text before each query; null: the family's own.")
    passage_prefix: str | None = Field(None, description="Text before each passage; null: the family's own.")
    pooling: Literal["cls", "mean", "last"] | None = Field(None, description="null: the model's own.")
    max_length: int = Field(512, ge=8, description="Longest input in tokens; longer texts are cut.")
    batch_tokens: int = Field(1500, ge=16, description="Token budget of an onnx batch, padding counted.")
    threads: int = Field(0, ge=0, le=4096, description="Threads of ONNX Runtime; 0: one a core.")
    device: str | None = Field(None, description="torch device, for example cuda:0; null: the best there is.")
    trust_remote_code: bool = Field(False, description="Run Python code that a hub model brings along.")
