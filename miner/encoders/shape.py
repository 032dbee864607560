"""What the local backends share around a model: texts that fit with their suffix, vectors cut to fewer dimensions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from miner.encoders import Vectors
from miner.errors import UserError

# For each text the (start, end) of every token in its characters; (0, 0) for a token that the model adds.
Spans = Callable[[list[str]], list[list[tuple[int, int]]]]


def narrow(vectors: Vectors, dimensions: int | None, how: str) -> Vectors:
    """float32[n, d], L2-normalised -> float32[n, dimensions], L2-normalised anew. None: as they are.

    how: `layer_norm` takes each vector's mean away first, as nomic-embed-text-v1.5 was trained
    (https://huggingface.co/nomic-ai/nomic-embed-text-v1.5); what layer normalisation divides by is lost to the norm.
    """
    if dimensions is None:
        return vectors
    if dimensions > vectors.shape[1]:
        raise UserError(f"encoder.dimensions {dimensions}: the model's vectors have only {vectors.shape[1]}")
    wide: np.ndarray[Any, Any] = vectors.astype(np.float64)
    if how == "layer_norm":
        wide -= wide.mean(axis=1, keepdims=True)
    wide = wide[:, :dimensions]
    return np.asarray(wide / np.maximum(np.linalg.norm(wide, axis=1, keepdims=True), 1e-12), np.float32)


def suffixed(texts: list[str], suffix: str, spans: Spans, longest: int) -> list[str]:
    """Each text with the suffix. One above `longest` tokens loses its own end, and never the suffix."""
    if not suffix:
        return texts
    found = spans([text + suffix for text in texts])
    return [
        text + suffix if len(tokens) <= longest else _cut(text, tokens, suffix, spans, longest)
        for text, tokens in zip(texts, found, strict=True)
    ]


def _cut(text: str, tokens: list[tuple[int, int]], suffix: str, spans: Spans, longest: int) -> str:
    ends = [end for start, end in tokens if start < end and end <= len(text)]
    # The tokens at the seam may come out otherwise than in the whole text, so what was cut is counted again.
    for keep in range(max(len(ends) - (len(tokens) - longest), 0), 0, -1):
        candidate = text[: ends[keep - 1]] + suffix
        if len(spans([candidate])[0]) <= longest:
            return candidate
    return suffix
