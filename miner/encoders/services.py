"""The two embedding APIs: address, key, form of a request, and what a reply must hold."""

from __future__ import annotations

import base64
import os
from abc import ABC, abstractmethod
from typing import Any

import numpy as np

from miner import config, provider
from miner.config import is_address, secret
from miner.encoders import Kind, Vectors
from miner.errors import UserError

COHERE = "https://api.cohere.com"
INPUT_TYPES: dict[Kind, str] = {"query": "search_query", "passage": "search_document"}


class Service(ABC):
    path: str
    key_name: str

    def __init__(self, settings: config.Encoder) -> None:
        self._settings = settings
        self.address = address(settings)
        self.host = provider.host(self.address)

    def key(self) -> str:
        """The API key. Raises UserError where there is none, or none that a header could carry."""
        name = self._settings.api_key or self.key_name
        value = secret(self._settings.api_key, self.key_name)
        if not value:
            raise UserError(
                f"{name} is not set; export it (any word will do for a server that wants none), or name another"
                " variable in encoder.api_key"
            )
        return provider.checked_key(name, value)

    @abstractmethod
    def body(self, texts: list[str], kind: Kind) -> dict[str, Any]:
        """The request of these texts, JSON-able."""

    @abstractmethod
    def parts(self, reply: dict[str, Any], count: int) -> tuple[list[Any], Any]:
        """The embeddings in the order of the texts, and the tokens that the server counted."""

    def read(self, reply: Any, count: int) -> tuple[Vectors, int]:
        """float32[count, d], L2-normalised, and tokens. ValueError for a reply that is not one vector per text."""
        try:
            found, tokens = self.parts(reply, count)
            rows = [_vector(value) for value in found]
        except (KeyError, TypeError, AttributeError, IndexError):
            raise ValueError("the reply has not the form of embeddings") from None
        if len(rows) != count:
            raise ValueError(f"{len(rows)} embeddings for {count} texts")
        if len({len(row) for row in rows}) != 1 or not len(rows[0]):
            raise ValueError("embeddings of different lengths, or of none")
        wide = np.stack(rows)
        norms = np.linalg.norm(wide, axis=1, keepdims=True)
        if not np.isfinite(norms).all() or not norms.all():
            raise ValueError("an embedding that is zero, or no number")
        return np.asarray(wide / norms, np.float32), tokens if isinstance(tokens, int) else 0


def _vector(value: Any) -> np.ndarray[Any, Any]:
    """A list of numbers, or the base64 of little-endian float32."""
    if isinstance(value, str):
        return np.frombuffer(base64.b64decode(value, validate=True), "<f4").astype(np.float64)
    row = np.asarray(value, np.float64)
    if row.ndim != 1:
        raise ValueError("an embedding that is no list of numbers")
    return row


class OpenAI(Service):
    path = "/embeddings"
    key_name = "OPENAI_API_KEY"

    def body(self, texts: list[str], kind: Kind) -> dict[str, Any]:
        body = {"model": self._settings.model, "input": texts, "encoding_format": "base64"}
        return body | ({"dimensions": self._settings.dimensions} if self._settings.dimensions else {})

    def parts(self, reply: dict[str, Any], count: int) -> tuple[list[Any], Any]:
        placed = {entry["index"]: entry["embedding"] for entry in reply["data"]}
        if len(reply["data"]) != count or placed.keys() != set(range(count)):
            raise ValueError(f"{len(reply['data'])} embeddings for {count} texts, or wrong indexes")
        return [placed[index] for index in range(count)], (reply.get("usage") or {}).get("prompt_tokens")


class Cohere(Service):
    path = "/v2/embed"
    key_name = "CO_API_KEY"

    def body(self, texts: list[str], kind: Kind) -> dict[str, Any]:
        body = {"model": self._settings.model, "texts": texts, "input_type": INPUT_TYPES[kind]}
        body |= {"embedding_types": ["float"], "truncate": "END"}
        return body | ({"output_dimension": self._settings.dimensions} if self._settings.dimensions else {})

    def parts(self, reply: dict[str, Any], count: int) -> tuple[list[Any], Any]:
        tokens = ((reply.get("meta") or {}).get("billed_units") or {}).get("input_tokens")
        return reply["embeddings"]["float"], int(tokens or 0)


def of(settings: config.Encoder) -> Service:
    return {"openai": OpenAI, "cohere": Cohere}[settings.backend](settings)


def inputs(settings: config.Encoder) -> dict[str, str]:
    """What Cohere is told of queries and passages, as a fingerprint holds it."""
    return {f"{kind}_input_type": name for kind, name in INPUT_TYPES.items()} if settings.backend == "cohere" else {}


def address(settings: config.Encoder) -> str:
    if settings.base_url or settings.backend == "cohere":
        return (settings.base_url or COHERE).rstrip("/")
    given = os.environ.get("OPENAI_BASE_URL") or provider.OPENAI
    if not is_address(given):
        raise UserError(f"OPENAI_BASE_URL is {given!r}, not a web address; export it as http(s)://host:port/v1")
    return given.rstrip("/")


def identity(settings: config.Encoder) -> str:
    """What fingerprints call the server: its given name, else host and path of its address."""
    return settings.identity or provider.place(address(settings))
