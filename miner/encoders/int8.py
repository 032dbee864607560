"""int8 weights for the CPU: an fp32 ONNX file is quantised once, and what that changes is measured."""

from __future__ import annotations

import importlib
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from miner.encoders.files import onnx_files
from miner.errors import UserError
from miner.store import digest, file_digest, made

RECIPE = "dynamic, per channel, QInt8, 1"
WEIGHTS_OF_8_BITS = {2, 3}  # uint8 and int8 in https://github.com/onnx/onnx/blob/main/onnx/onnx.proto, DataType
LARGE = 1_500_000_000  # above 2 GB a protobuf keeps its weights in a file of their own
SAMPLE = 300
NEAREST = 10


class Encoder(Protocol):
    """As miner.encoders.Encoder, which imports this module."""

    def encode(self, texts: list[str], kind: Any) -> Any: ...


def quantised(source: Path) -> Path:
    """The int8 twin of an fp32 file, under the user's cache, named by the content of its source.

    Raises UserError where the package onnx is missing, the file is int8 already, or it cannot be quantised.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "miner" / "int8"
    folder = cache / digest([RECIPE, *(file_digest(path) for path in onnx_files(source))])[:32]
    return made(folder, "model.onnx", partial(_quantise, source))


def _quantise(source: Path, target: Path) -> None:
    try:
        importlib.import_module("onnx")
        from onnxruntime.quantization import QuantType, quantize_dynamic
    except ImportError:
        raise UserError("encoder.precision int8 needs the package onnx; pip install 'miner[local]'") from None
    try:
        if _has_8_bit_weights(source):
            raise UserError(f"{source}: int8 already; take encoder.precision out")
        large = sum(path.stat().st_size for path in onnx_files(source)) > LARGE
        with _quiet():
            quantize_dynamic(
                source, target, per_channel=True, weight_type=QuantType.QInt8, use_external_data_format=large
            )
        if not _has_8_bit_weights(target):
            raise UserError(f"{source}: holds no float32 weights to quantise; take encoder.precision out")
    except (UserError, OSError):
        raise
    except Exception as error:  # noqa: BLE001 - onnx and onnxruntime raise their own unrelated classes
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"{source}: cannot be quantised ({reason[:160]}); take encoder.precision out") from None


def _has_8_bit_weights(path: Path) -> bool:
    graph = importlib.import_module("onnx").load(str(path), load_external_data=False).graph
    return any(weight.data_type in WEIGHTS_OF_8_BITS for weight in graph.initializer)


@contextmanager
def _quiet() -> Iterator[None]:
    """The quantiser advises on its own steps through the root logger; none of it is for the user."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


def effect(fp32: Encoder, int8: Encoder, texts: list[str]) -> dict[str, Any]:
    """What int8 changes on at most 300 texts, encoded as passages by both.

    texts: how many were compared. cosine, cosine_min: mean and least similarity of a text's two vectors.
    top10_overlap: share of a text's 10 nearest other texts that are the same, in the mean; 1.0: none changed.
    """
    chosen = texts[:SAMPLE]
    if len(chosen) < 2:
        return {"texts": len(chosen)}
    one, two = (encoder.encode(chosen, "passage") for encoder in (fp32, int8))
    cosine = (one * two).sum(axis=1)
    near, other = _nearest(one), _nearest(two)
    shared = [len(set(a) & set(b)) / len(a) for a, b in zip(near.tolist(), other.tolist(), strict=True)]
    return {
        "texts": len(chosen),
        "cosine": round(float(cosine.mean()), 4),
        "cosine_min": round(float(cosine.min()), 4),
        "top10_overlap": round(float(np.mean(shared)), 4),
    }


def _nearest(vectors: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """int64[n, 10]: the nearest other rows of each, fewer where there are not so many."""
    scores = vectors @ vectors.T
    np.fill_diagonal(scores, -np.inf)
    return np.argsort(-scores, axis=1, kind="stable")[:, : min(NEAREST, len(vectors) - 1)]
