"""torch encoder through sentence-transformers, on CPU or GPU; and the one-time conversion to ONNX."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import numpy as np

from miner import config
from miner.encoders import Kind, Vectors
from miner.encoders.files import Files, torch_weights
from miner.errors import UserError
from miner.store import replace

BATCH = 32


def load(settings: config.Encoder, files: Files) -> TorchEncoder:
    return TorchEncoder(settings, files)


class TorchEncoder:
    def __init__(self, settings: config.Encoder, files: Files) -> None:
        self._model = _model(settings, files)
        self._prefixes = {"query": files.query_prefix, "passage": files.passage_prefix}
        self.dimension = int(np.asarray(self._model.encode(["x"], show_progress_bar=False)).shape[1])

    def encode(self, texts: list[str], kind: Kind) -> Vectors:
        prefixed = [self._prefixes[kind] + text for text in texts]
        if not prefixed:
            return np.empty((0, self.dimension), np.float32)
        vectors = self._model.encode(
            prefixed, batch_size=BATCH, normalize_embeddings=True, convert_to_numpy=True, show_progress_bar=False
        )
        return np.asarray(vectors, np.float32)


def _model(settings: config.Encoder, files: Files) -> Any:
    """The model with the pooling that was resolved, whatever its own configuration says."""
    from sentence_transformers import SentenceTransformer, models

    source = str(files.folder) if files.folder and torch_weights(files.folder) else settings.model
    remote = {"trust_remote_code": settings.trust_remote_code}
    shared = {**remote, "revision": settings.revision}
    try:
        transformer = models.Transformer(
            source, max_seq_length=files.max_length, model_args=shared, config_args=shared, tokenizer_args=shared
        )
    except (OSError, ValueError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"encoder.model {settings.model}: torch cannot load it ({reason[:160]})") from None
    pooling = {"last": "lasttoken"}.get(files.pooling, files.pooling)
    head = models.Pooling(transformer.get_word_embedding_dimension(), pooling_mode=pooling)
    return SentenceTransformer(modules=[transformer, head], device=settings.device)


def _weights_digest(model: Any) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().float().numpy().tobytes())
    return digest.hexdigest()


def export_onnx(settings: config.Encoder, files: Files) -> Path:
    """Convert a torch model once; the file is kept under the user's cache, named by its source's content."""
    import torch

    model = _model(settings, files)
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "miner" / "onnx"
    target = cache / f"{_weights_digest(model)}.onnx"
    if target.is_file():
        return target
    network = model[0].auto_model.cpu().eval()
    network.config.return_dict = False
    names = ["input_ids", "attention_mask"]
    if getattr(network.config, "type_vocab_size", 0) > 1:
        names.append("token_type_ids")
    sample = tuple(torch.ones((1, 4), dtype=torch.int64) for _ in names)
    axes = {name: {0: "batch", 1: "sequence"} for name in [*names, "last_hidden_state"]}

    def write(part: Path) -> None:
        with torch.no_grad():
            torch.onnx.export(
                network,
                sample,
                str(part),
                input_names=names,
                output_names=["last_hidden_state"],
                dynamic_axes=axes,
                opset_version=17,
                dynamo=False,
            )

    replace(target, write)
    return target
