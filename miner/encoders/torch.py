"""torch encoder through sentence-transformers, on CPU or GPU; and the one-time conversion to ONNX."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from miner import config
from miner.encoders import Kind, Vectors, shape
from miner.encoders.files import FUSED, Files, onnx_files
from miner.errors import UserError
from miner.models import explained
from miner.store import digest, file_digest, made

BATCH = 32
OPSET = 18
ATTENTION = "eager"
FUSION = "gelu, bias, skip"
LARGE = 1_500_000_000  # above 2 GB a protobuf keeps its weights in a file of their own
OUTPUT = "last_hidden_state"
TOLERANCE = 1e-3

log = logging.getLogger("miner")


def load(settings: config.Encoder, files: Files) -> TorchEncoder:
    return TorchEncoder(settings, files)


class TorchEncoder:
    def __init__(self, settings: config.Encoder, files: Files) -> None:
        self._model = _model(settings, files)
        self._prefixes = {"query": files.query_prefix, "passage": files.passage_prefix}
        self._suffixes = {"query": files.query_suffix, "passage": ""}
        self._longest = files.max_length
        self._narrow = (files.dimensions, files.matryoshka)
        with explained(f"encoder.model {settings.model}", "torch cannot run it"):
            self.dimension = int(self.encode(["x", "two lengths, so one is padded"], "passage").shape[1])

    def encode(self, texts: list[str], kind: Kind) -> Vectors:
        """float32[n, d], L2-normalised, in the order of `texts`."""
        prefixed = [self._prefixes[kind] + text for text in texts]
        prefixed = shape.suffixed(prefixed, self._suffixes[kind], self._spans, self._longest)
        if not prefixed:
            return np.empty((0, self.dimension), np.float32)
        vectors = self._model.encode(
            prefixed, batch_size=BATCH, normalize_embeddings=True, convert_to_numpy=True, show_progress_bar=False
        )
        return shape.narrow(np.asarray(vectors, np.float32), *self._narrow)

    def _spans(self, texts: list[str]) -> list[list[tuple[int, int]]]:
        tokens = self._model.tokenizer(texts, return_offsets_mapping=True, truncation=False, verbose=False)
        return [list(map(tuple, row)) for row in tokens["offset_mapping"]]


def _model(settings: config.Encoder, files: Files) -> Any:
    """Every module of the model (Dense too), with the pooling and length that were resolved for both backends."""
    if files.tokenizer is None:
        raise UserError(f"encoder.model {settings.model}: no tokenizer in {files.folder}; not a whole model")
    with explained(f"encoder.model {settings.model}", "torch cannot load it"):
        from sentence_transformers import SentenceTransformer
        from transformers.utils.logging import disable_progress_bar

        disable_progress_bar()
        model = SentenceTransformer(
            str(files.folder), device=settings.device, trust_remote_code=settings.trust_remote_code
        )
        model.max_seq_length = files.max_length
    # The prefixes are put before the texts here: a default prompt of the model's own would come on top of them.
    model.default_prompt_name = None
    mode = {"last": "lasttoken"}.get(files.pooling, files.pooling)
    for place, module in enumerate(model):
        if type(module).__name__ == "Pooling":
            # Its class moved and its settings were renamed in sentence-transformers 5.4; this holds for both.
            width = getattr(module, "embedding_dimension", None) or module.word_embedding_dimension
            model[place] = type(module)(width, pooling_mode=mode)
    network = getattr(model[0], "auto_model", None)
    if network is not None and network.config.is_encoder_decoder and hasattr(network, "decoder"):
        raise UserError(f"encoder.model {settings.model}: {type(network).__name__} writes text, it is not an encoder")
    if model.device.type == "cpu":
        model.float()
    return model


def export_onnx(settings: config.Encoder, files: Files) -> Path:
    """Convert a torch model once; the file is kept under the user's cache, named by its source's content."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "miner" / "onnx"
    sources = [*files.weights, *([files.folder / "config.json"] if files.folder else [])]
    folder = cache / digest([OPSET, ATTENTION, FUSION, *(file_digest(path) for path in sources)])[:32]

    def convert(target: Path) -> None:
        told = "encoder.model %s has no ONNX file: converting it once, for ONNX Runtime is faster on a CPU"
        log.info(told, settings.model)
        with explained(f"encoder.model {settings.model}", "cannot be converted to ONNX; set encoder.backend: torch"):
            _convert(_model(settings, files), target)

    return made(folder, "model.onnx", convert)


def _convert(model: Any, path: Path) -> None:
    """Write the transformer without its pooling, and check the file against torch on another batch."""
    import torch

    try:
        import onnxscript  # noqa: F401 - torch.onnx needs it
    except ImportError:
        raise UserError("onnxscript is missing; pip install 'miner[local]' to convert a model to ONNX") from None
    network = model[0].auto_model.cpu().float().eval()
    if hasattr(network, "set_attn_implementation"):
        # Plain products and a softmax, which ONNX Runtime fuses. torch's own attention stays in pieces: a fifth slower.
        network.set_attn_implementation(ATTENTION)
    names = ["input_ids", "attention_mask"]
    if getattr(network.config, "type_vocab_size", 0) > 1:
        names.append("token_type_ids")

    class Hidden(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, *inputs: Any) -> Any:
            return self.network(**dict(zip(names, inputs, strict=True)), return_dict=False)[0]

    hidden, fused = Hidden().eval(), str(network.config.model_type) in FUSED
    first = path.with_name("plain.onnx") if fused else path  # which names the file that its weights may lie in
    axes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("sequence")}
    with torch.no_grad(), _quiet():
        torch.onnx.export(
            hidden,
            _sample(2, 6, len(names)),
            str(first),
            input_names=names,
            output_names=[OUTPUT],
            dynamic_shapes=(tuple(axes for _ in names),),
            opset_version=OPSET,
            external_data=True,
            dynamo=True,
            verbose=False,
        )
        if fused:
            _fuse(first, path)
        _check(hidden, path, names)


def _fuse(plain: Path, path: Path) -> None:
    """Bias, GELU, sum and layer norm in one pass over memory each, which ONNX Runtime itself does in part only."""
    from onnxruntime.transformers import optimizer
    from onnxruntime.transformers.fusion_options import FusionOptions

    wanted = FusionOptions("bert")
    wanted.enable_attention = False  # its pattern is that of an older exporter
    fused = optimizer.optimize_model(str(plain), "bert", optimization_options=wanted, opt_level=0)
    sources = onnx_files(plain)
    large = sum(source.stat().st_size for source in sources) > LARGE
    fused.save_model_to_file(str(path), use_external_data_format=large)
    for source in sources:
        source.unlink()


def _sample(rows: int, length: int, inputs: int) -> tuple[Any, ...]:
    """Token ids, a mask under which every row but the first is padded, and where wanted the token types."""
    import torch

    ids = torch.arange(rows * length).reshape(rows, length) % 50 + 1
    mask = torch.ones_like(ids)
    mask[1:, length // 2 :] = 0
    return (ids, mask, torch.zeros_like(ids))[:inputs]


def _check(hidden: Any, path: Path, names: list[str]) -> None:
    import onnxruntime

    batch = _sample(3, 11, len(names))
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    found = session.run([OUTPUT], {name: value.numpy() for name, value in zip(names, batch, strict=True)})[0]
    seen = batch[1].numpy().astype(bool)
    if not np.allclose(found[seen], hidden(*batch).numpy()[seen], rtol=TOLERANCE, atol=TOLERANCE):
        raise ValueError("the converted model gives other vectors")


@contextmanager
def _quiet() -> Iterator[None]:
    """torch's exporter and the fusion speak of their own internals; none of it is for the user."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
