"""Encoders turn texts into L2-normalised vectors. One module per backend, imported only when used.

A backend `precomputed` encodes nothing: `stored` gives its files, and `load` refuses it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np

from miner import config
from miner.errors import UserError

if TYPE_CHECKING:
    from miner.encoders.precomputed import Precomputed

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

    if settings.backend == "precomputed":
        raise UserError("encoder.backend precomputed cannot encode new texts (generated ones); name a model for that")
    found = files.find(settings)
    encoder: Encoder = importlib.import_module(BACKENDS[found.backend]).load(settings, found)
    return encoder


def stored(settings: config.Encoder) -> Precomputed | None:
    """The files of backend precomputed; None where a model encodes. Raises UserError for files of a wrong form."""
    if settings.backend != "precomputed":
        return None
    from miner.encoders import precomputed

    return precomputed.load(settings)


def fingerprint(settings: config.Encoder) -> dict[str, Any]:
    """All that decides a vector besides the text, found without loading the model.

    Keys that begin with `query_` or `passage_` count for that kind of text alone.
    """
    from miner.encoders import files, precomputed

    if settings.backend == "precomputed":
        return precomputed.fingerprint(settings)
    return files.fingerprint(files.find(settings))


def space(identity: dict[str, Any], kind: Kind) -> dict[str, Any]:
    """What of a fingerprint decides the vectors of one kind: texts of both share a cache where it is the same."""
    others = {k: v for k, v in identity.items() if not k.startswith(("query_", "passage_"))}
    return others | {k.removeprefix(f"{kind}_"): v for k, v in identity.items() if k.startswith(f"{kind}_")}
