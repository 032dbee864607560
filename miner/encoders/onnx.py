"""ONNX Runtime encoder: the fast one on CPU, no torch.

Texts are sorted by token count and cut into batches of `batch_tokens` tokens, padding counted, so that little is
padded and a batch stays in the processor's cache. On a CPU each core runs batches of its own, on one thread: cores that
share a batch wait for each other at every layer.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from miner import behind, config
from miner.encoders import Kind, Vectors, shape
from miner.encoders.files import Files
from miner.errors import UserError

KNOWN_INPUTS = {"input_ids", "attention_mask", "token_type_ids", "position_ids"}


def load(settings: config.Encoder, files: Files) -> OnnxEncoder:
    if files.tokenizer is None:
        raise UserError(f"encoder.model {settings.model}: no tokenizer.json; set encoder.tokenizer_file")
    onnx = files.onnx
    if onnx is None:
        from miner.encoders.torch import export_onnx

        onnx = export_onnx(settings, files)
    if files.precision == "int8":
        from miner.encoders.int8 import quantised

        onnx = quantised(onnx)
    return OnnxEncoder(onnx, files.tokenizer, files, settings)


class OnnxEncoder:
    def __init__(self, onnx: Path, tokenizer: Path, files: Files, settings: config.Encoder) -> None:
        self._files = f"{onnx} with {tokenizer}"
        self._session, self._at_once = _session(onnx, settings.threads or behind.cores())
        self._tokenizer = _tokenizer(tokenizer, files.max_length)
        self._inputs = {i.name for i in self._session.get_inputs()}
        if unknown := self._inputs - KNOWN_INPUTS:
            raise UserError(f"{onnx}: unknown model inputs {', '.join(sorted(unknown))}; not a text encoder's file")
        self._prefixes = {"query": files.query_prefix, "passage": files.passage_prefix}
        self._suffixes = {"query": files.query_suffix, "passage": ""}
        self._whole = _tokenizer(tokenizer, None) if files.query_suffix else None
        self._longest = files.max_length
        self._pooling = files.pooling
        self._narrow = (files.dimensions, files.matryoshka)
        self._budget = settings.batch_tokens
        self.dimension = int(self.encode(["x"], "passage").shape[1])

    def encode(self, texts: list[str], kind: Kind) -> Vectors:
        """float32[n, d], L2-normalised, in the order of `texts`. Raises UserError for a text of no tokens."""
        prefixed = [self._prefixes[kind] + text for text in texts]
        prefixed = shape.suffixed(prefixed, self._suffixes[kind], self._spans, self._longest)
        tokens = [e.ids for e in self._tokenizer.encode_batch(prefixed)]
        if [] in tokens:
            text = ascii(texts[tokens.index([])][:60])
            raise UserError(f"{self._files}: a {kind} has no tokens: {text}; take it out of the data")
        order = sorted(range(len(tokens)), key=lambda i: (len(tokens[i]), tokens[i]))
        # The largest batches first, so that the cores end together.
        runs = [[order[i] for i in rows] for rows in batches([len(tokens[i]) for i in order], self._budget)][::-1]
        out: Vectors | None = None
        found = behind.spread(lambda rows: self._run([tokens[i] for i in rows]), runs, self._at_once)
        for chosen, vectors in zip(runs, found, strict=True):
            if out is None:
                out = np.empty((len(texts), vectors.shape[1]), np.float32)
            out[chosen] = vectors
        return out if out is not None else np.empty((0, self.dimension), np.float32)

    def _spans(self, texts: list[str]) -> list[list[tuple[int, int]]]:
        assert self._whole is not None, "asked for only where there is a suffix"
        return [e.offsets for e in self._whole.encode_batch(texts)]

    def _run(self, tokens: list[list[int]]) -> Vectors:
        longest = max(map(len, tokens))
        ids = np.zeros((len(tokens), longest), np.int64)
        mask = np.zeros_like(ids)
        for row, t in enumerate(tokens):
            ids[row, : len(t)] = t
            mask[row, : len(t)] = 1
        feeds = {
            "input_ids": ids,
            "attention_mask": mask,
            "token_type_ids": np.zeros_like(ids),
            "position_ids": np.maximum(mask.cumsum(1) - 1, 0),
        }
        try:
            hidden = self._session.run(None, {k: v for k, v in feeds.items() if k in self._inputs})[0]
        except Exception as error:  # noqa: BLE001 - onnxruntime raises its own unrelated classes
            reason = str(error).split("Status Message: ")[-1].splitlines() or ["unknown reason"]
            raise UserError(f"{self._files}: cannot run ({reason[0][:160]}); do they belong together?") from None
        return shape.narrow(pool(hidden, mask, self._pooling), *self._narrow)


def _session(onnx: Path, threads: int) -> tuple[Any, int]:
    """The session, and how many batches it may run at once."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4  # what fails is raised, not logged
    wanted = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    providers = [p for p in wanted if p in onnxruntime.get_available_providers()]
    try:
        session = onnxruntime.InferenceSession(str(onnx), options, providers=providers)
    except Exception as error:  # noqa: BLE001 - onnxruntime raises its own unrelated classes for a bad file
        reason = (str(error).splitlines() or ["unknown reason"])[0]
        raise UserError(f"{onnx}: ONNX Runtime cannot load this file ({reason[:160]})") from None
    return session, threads if session.get_providers()[0] == "CPUExecutionProvider" else 1


def _tokenizer(path: Path, max_length: int | None) -> Any:
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # noqa: BLE001 - the tokenizers library raises a bare Exception
        raise UserError(f"{path}: not a tokenizer.json ({error})") from None
    tokenizer.no_padding()
    if max_length is None:
        tokenizer.no_truncation()
    else:
        tokenizer.enable_truncation(max_length)
    return tokenizer


def batches(lengths: list[int], budget: int) -> Iterator[range]:
    """Cut rows sorted by length (shortest first) into runs whose padded size stays within `budget` tokens."""
    start = 0
    for stop in range(1, len(lengths) + 1):
        if stop == len(lengths) or (stop + 1 - start) * lengths[stop] > budget:
            yield range(start, stop)
            start = stop


def pool(hidden: np.ndarray[Any, Any], mask: np.ndarray[Any, Any], how: str) -> Vectors:
    """float32[n, t, d] (or float32[n, d], pooled by the model itself) -> float32[n, d], L2-normalised."""
    hidden = hidden.astype(np.float32, copy=False)
    if hidden.ndim == 2:
        pooled = hidden
    elif how == "cls":
        pooled = hidden[:, 0]
    elif how == "last":
        # The last token of the text, on whichever side it is padded.
        pooled = hidden[np.arange(len(hidden)), mask.shape[1] - 1 - np.argmax(mask[:, ::-1] != 0, axis=1)]
    else:
        pooled = (hidden * mask[:, :, None]).sum(1) / np.maximum(mask.sum(1), 1)[:, None]
    pooled = pooled.astype(np.float32, copy=False)
    return np.asarray(pooled / np.maximum(np.linalg.norm(pooled, axis=1, keepdims=True), 1e-12), np.float32)
