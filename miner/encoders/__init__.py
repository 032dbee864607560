"""Encoders turn texts into L2-normalised vectors. One module per backend, imported only when used."""

from __future__ import annotations

import importlib
from typing import Any, Literal, Protocol

import numpy as np

from miner import config

Kind = Literal["query", "passage"]
Vectors = np.ndarray[Any, np.dtype[np.float32]]

BACKENDS = {"onnx": "miner.encoders.onnx", "torch": "miner.encoders.torch"}


class Encoder(Protocol):
    @property
    def dimension(self) -> int: ...

    def encode(self, texts: list[str], kind: Kind) -> Vectors:
        """float32[len(texts), dimension], each row L2-normalised, in the order of `texts`; no text: zero rows."""


def load(settings: config.Encoder) -> Encoder:
    """The encoder that the job file names. Raises UserError where files or packages are missing."""
    from miner.encoders import files

    found = files.find(settings)
    encoder: Encoder = importlib.import_module(BACKENDS[found.backend]).load(settings, found)
    return encoder


def fingerprint(settings: config.Encoder) -> dict[str, Any]:
    """All that decides a vector besides the text, found without loading the model."""
    from miner.encoders import files

    return files.fingerprint(files.find(settings))
