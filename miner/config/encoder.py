"""`encoder`: the model that turns texts into vectors, a server that does, or files of vectors made elsewhere."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from miner.config.base import Address, KeyName, Model

REMOTE = ("openai", "cohere")
# Keys that only some backends read; a value for another backend would have no effect, and is refused.
LOCAL_KEYS: tuple[str, ...] = ("revision", "onnx_file", "tokenizer_file", "pooling", "max_length", "batch_tokens")
LOCAL_KEYS += ("threads", "device", "trust_remote_code", "precision")
REMOTE_KEYS: tuple[str, ...] = ("base_url", "api_key", "identity", "batch_size", "request_tokens", "concurrency")
REMOTE_KEYS += ("timeout_s", "attempts", "max_chars")
FILE_KEYS = ("passages_file", "queries_file")
TEXT_KEYS = ("query_prefix", "passage_prefix", "query_suffix", "instruction", "dimensions")


class Encoder(Model):
    """The model that turns texts into vectors, and how it reads them."""

    model: str = Field(
        "BAAI/bge-small-en-v1.5",
        description="Hub id, local folder, package:NAME/FOLDER of a model inside a Python package; or the server's"
        " name for it.",
    )
    backend: Literal["auto", "onnx", "torch", "openai", "cohere", "precomputed"] = Field(
        "auto",
        description="auto: onnx where an ONNX file is found or, without a GPU, can be made, else torch; openai: any"
        " server with OpenAI's embeddings API; cohere: Cohere's; precomputed: vectors from files.",
    )
    revision: str | None = Field(None, description="Commit or tag on the hub.")
    onnx_file: str | None = Field(None, description="Local ONNX file (or package:NAME/FILE) in place of the model's.")
    tokenizer_file: str | None = Field(None, description="Local tokenizer.json (or package:NAME/FILE).")
    query_prefix: str | None = Field(None, description="Text before each query; null: the family's own.")
    passage_prefix: str | None = Field(None, description="Text before each passage; null: the family's own.")
    query_suffix: str | None = Field(None, description="Text behind each query; null: the family's own.")
    instruction: str | None = Field(None, description="The task in the prefix of an instruct model; null: its own.")
    pooling: Literal["cls", "mean", "last"] | None = Field(None, description="null: the model's own.")
    dimensions: int | None = Field(
        None, ge=1, description="Keep so many dimensions of a model trained for that (Matryoshka); null: all."
    )
    precision: Literal["fp32", "int8"] = Field(
        "fp32", description="fp32: the model's file as it is; int8: quantised once, for CPU (onnx)."
    )
    max_length: int = Field(512, ge=8, description="Longest input in tokens; longer texts are cut.")
    batch_tokens: int = Field(1500, ge=16, description="Token budget of an onnx batch, padding counted.")
    threads: int = Field(0, ge=0, le=4096, description="Threads of ONNX Runtime; 0: one a core.")
    device: str | None = Field(None, description="torch device, for example cuda:0; null: the best there is.")
    trust_remote_code: bool = Field(False, description="Run Python code that a hub model brings along.")
    base_url: Address = Field(None, description="Server; null: OPENAI_BASE_URL, the OpenAI API or the Cohere API.")
    api_key: KeyName = Field(None, description="Only as ${NAME}; null: OPENAI_API_KEY or CO_API_KEY.")
    identity: str | None = Field(
        None, description="Name of the server in the vectors' fingerprint; null: host and path of base_url."
    )
    batch_size: int = Field(64, ge=1, le=2048, description="Texts of one request (cohere: at most 96).")
    request_tokens: int = Field(
        32_000, ge=1, description="Tokens of one request, reckoned as a third of the UTF-8 bytes."
    )
    concurrency: int = Field(8, ge=1, description="Requests in flight.")
    timeout_s: float = Field(60.0, gt=0, description="Longest wait for one reply.")
    attempts: int = Field(6, ge=1, description="Tries of one request before the run stops.")
    max_chars: int | None = Field(
        None, ge=1, description="Characters of a text that a server is sent; null: the whole text."
    )
    passages_file: str | None = Field(
        None,
        description="precomputed: .npy with an ids file beside it, or Parquet with id and vector; in the corpus' ids.",
    )
    queries_file: str | None = Field(None, description="precomputed: the same for the queries.")

    @model_validator(mode="after")
    def _of_the_backend(self) -> Encoder:
        self._refuse_others()
        if self.remote and "model" not in self.model_fields_set:
            raise ValueError(f"backend {self.backend} needs `model`, the server's name for the model")
        if self.backend == "cohere" and self.batch_size > 96:
            raise ValueError(f"batch_size {self.batch_size}: a Cohere request takes at most 96 texts")
        if self.backend == "precomputed" and not (self.passages_file and self.queries_file):
            lacks = "passages_file" if not self.passages_file else "queries_file"
            raise ValueError(f"backend precomputed needs `{lacks}`, a .npy with an ids file beside it, or Parquet")
        if self.instruction is not None and self.query_prefix is not None:
            raise ValueError("instruction is a part of the query's prefix: set it or query_prefix, not both")
        return self

    def _refuse_others(self) -> None:
        if self.backend == "precomputed":
            refused: tuple[str, ...] = (*LOCAL_KEYS, *REMOTE_KEYS, *TEXT_KEYS)
            meant = "the backends that encode texts"
        elif self.remote:
            refused, meant = (*LOCAL_KEYS, *FILE_KEYS), "other backends"
        else:
            refused, meant = (*REMOTE_KEYS, *FILE_KEYS), "the backends openai and cohere"
        fields = type(self).model_fields
        for name in refused:
            if getattr(self, name) != fields[name].default:
                meant = "backend precomputed" if name in FILE_KEYS else meant
                more = "; a server cuts by max_chars" if name == "max_length" and self.remote else ""
                raise ValueError(f"{name} is for {meant}, and backend is {self.backend}; take it out{more}")

    @property
    def remote(self) -> bool:
        """Does a server encode?"""
        return self.backend in REMOTE
