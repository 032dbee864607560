"""Encoders turn texts into L2-normalised vectors. One module per backend, imported only when used.

A backend `precomputed` encodes nothing: `stored` gives its files, and `load` refuses it.
"""

from __future__ import annotations

import importlib
import logging
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

import numpy as np

from miner import config
from miner.errors import UserError

if TYPE_CHECKING:
    from miner.encoders.precomputed import Precomputed

Kind = Literal["query", "passage"]
Vectors = np.ndarray[Any, np.dtype[np.float32]]

log = logging.getLogger("miner")
BACKENDS = {"onnx": "miner.encoders.onnx", "torch": "miner.encoders.torch"}
REMOTE = "miner.encoders.remote"
M3 = "miner.encoders.m3"


class Encoder(Protocol):
    @property
    def dimension(self) -> int: ...

    def encode(self, texts: list[str], kind: Kind) -> Vectors:
        """float32[len(texts), dimension], each row L2-normalised, in the order of `texts`; no text: zero rows."""


@runtime_checkable
class Paid(Protocol):
    """An encoder whose every reply costs money, so each is handed on as soon as it is there.

    chunk_texts: texts of one shard of the cache. usage: counts of requests, attempts and tokens so far.
    """

    chunk_texts: int
    usage: Counter[str]

    def encode_each(self, texts: list[str], kind: Kind, done: Callable[[list[int], Vectors], None]) -> None:
        """Call `done` with row numbers and float32[rows, d], L2-normalised, once per reply, in any order."""


def load(settings: config.Encoder, token_outputs: bool = False) -> Encoder:
    """The encoder that the job file names. Raises UserError where files or packages are missing.

    token_outputs: it is a BGE-M3, of whatever name, and its two other outputs are used too (`miner.encoders.m3`).
    """
    from miner.encoders import files

    if settings.backend == "precomputed":
        raise UserError("encoder.backend precomputed cannot encode new texts (generated ones); name a model for that")
    if token_outputs:
        m3 = importlib.import_module(M3)
        both: Encoder = m3.load(settings, m3.find(settings))
        return both
    if settings.remote:
        chosen: Encoder = importlib.import_module(REMOTE).load(settings)
        return chosen
    found = files.find(settings)
    encoder: Encoder = importlib.import_module(BACKENDS[found.backend]).load(settings, found)
    return encoder


def stored(settings: config.Encoder) -> Precomputed | None:
    """The files of backend precomputed; None where a model encodes. Raises UserError for files of a wrong form."""
    if settings.backend != "precomputed":
        return None
    from miner.encoders import precomputed

    return precomputed.load(settings)


def fingerprint(settings: config.Encoder, token_outputs: bool = False) -> dict[str, Any]:
    """All that decides a vector besides the text, found without loading the model.

    Keys that begin with `query_` or `passage_` count for that kind of text alone.
    """
    from miner.encoders import files, precomputed

    if token_outputs:
        m3 = importlib.import_module(M3)
        of_both: dict[str, Any] = m3.fingerprint(settings, m3.find(settings))
        return of_both
    if settings.remote:
        found: dict[str, Any] = importlib.import_module(REMOTE).fingerprint(settings)
        return found
    if settings.backend == "precomputed":
        return precomputed.fingerprint(settings)
    return files.fingerprint(files.find(settings))


def space(identity: dict[str, Any], kind: Kind) -> dict[str, Any]:
    """What of a fingerprint decides the vectors of one kind: texts of both share a cache where it is the same."""
    others = {k: v for k, v in identity.items() if not k.startswith(("query_", "passage_"))}
    return others | {k.removeprefix(f"{kind}_"): v for k, v in identity.items() if k.startswith(f"{kind}_")}


def report(
    settings: config.Encoder, encoder: Callable[[], Encoder], sample: Callable[[int], list[str]]
) -> dict[str, Any]:
    """What a step's counts say of the encoder besides its vectors.

    usage: requests, attempts and tokens of this run, where they are paid for. int8: see `int8.effect`.
    encoder: loads it, where that was not needed yet. sample: at most so many passages, spread over all.
    """
    if settings.remote:
        paid = encoder()
        assert isinstance(paid, Paid), "what is remote counts its requests"
        return {"usage": dict(sorted(paid.usage.items()))}
    if settings.precision != "int8":
        return {}
    from miner.encoders import int8

    fp32 = load(settings.model_copy(update={"precision": "fp32"}))
    effect = int8.effect(fp32, encoder(), sample(int8.SAMPLE))
    log.info("encoder.precision int8 beside fp32: %s", ", ".join(f"{k} {v}" for k, v in effect.items()))
    return {"int8": effect}
