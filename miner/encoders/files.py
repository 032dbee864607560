"""Find the files of an encoder (local folder, Python package, hub) and what they say of pooling and length."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from miner import config
from miner.encoders import families
from miner.errors import UserError
from miner.store import file_digest

TORCH_FILES = ["*.safetensors", "*.safetensors.index.json", "tokenizer*", "special_tokens_map.json", "vocab.txt"]
ONNX_NAMES = ("onnx/model.onnx", "model.onnx")
SMALL_FILES = ("config.json", "modules.json", "1_Pooling/config.json", "sentence_bert_config.json", "tokenizer.json")
POOLINGS = {"pooling_mode_cls_token": "cls", "pooling_mode_mean_tokens": "mean", "pooling_mode_lasttoken": "last"}


@dataclass(frozen=True)
class Files:
    """What was found. `folder` is None for a hub model whose weights are not fetched yet."""

    model: str
    backend: str
    folder: Path | None
    onnx: Path | None
    tokenizer: Path | None
    weights: tuple[Path, ...]
    pooling: str
    query_prefix: str
    passage_prefix: str
    max_length: int


def find(settings: config.Encoder) -> Files:
    """Resolve the job file's encoder section. Raises UserError naming what is missing."""
    folder = _folder(settings)
    family = families.of(settings.model)
    onnx = _given(settings.onnx_file, "encoder.onnx_file") or _first(folder, ONNX_NAMES)
    tokenizer = _given(settings.tokenizer_file, "encoder.tokenizer_file") or _first(folder, ("tokenizer.json",))
    backend = _backend(settings, onnx)
    prompts = _json(folder, "config_sentence_transformers.json").get("prompts") or {}
    pooling = settings.pooling or (family.pooling if family else _pooling_of(folder))
    if pooling is None:
        raise UserError(
            f"encoder.model {settings.model}: unknown family and no pooling configuration; set encoder.pooling to"
            " cls, mean or last (and the prefixes, if the model has any)"
        )
    return Files(
        model=settings.model,
        backend=backend,
        folder=folder,
        onnx=onnx,
        tokenizer=tokenizer,
        weights=(onnx,) if onnx and backend == "onnx" else torch_weights(folder),
        pooling=pooling,
        query_prefix=_prefix(settings.query_prefix, family and family.query_prefix, prompts, "query"),
        passage_prefix=_prefix(settings.passage_prefix, family and family.passage_prefix, prompts, "passage"),
        max_length=min(settings.max_length, _limit(folder)),
    )


def fingerprint(files: Files) -> dict[str, Any]:
    """All that decides a vector besides the text, by content and never by path: JSON-able."""
    named = [*files.weights, *([files.tokenizer] if files.tokenizer else [])]
    return {
        "backend": files.backend,
        "files": {path.name: file_digest(path) for path in named},
        "query_prefix": files.query_prefix,
        "passage_prefix": files.passage_prefix,
        "pooling": files.pooling,
        "max_length": files.max_length,
    }


def torch_is_there() -> bool:
    return all(importlib.util.find_spec(name) for name in ("torch", "sentence_transformers"))


def _backend(settings: config.Encoder, onnx: Path | None) -> str:
    """The backend that `auto` stands for, checked against what is there."""
    backend = settings.backend
    if backend == "auto":
        backend = "onnx" if onnx else "torch"
    if (backend == "torch" or onnx is None) and not torch_is_there():
        raise UserError(
            f"encoder.model {settings.model}: "
            + ("" if settings.backend == "torch" else "no ONNX file found; set encoder.onnx_file, or ")
            + "pip install 'miner[local]' to run it through torch"
        )
    return backend


def torch_weights(folder: Path | None) -> tuple[Path, ...]:
    found = [] if folder is None else sorted(folder.glob("*.safetensors")) or sorted(folder.glob("pytorch_model*.bin"))
    return tuple(found)


def _prefix(chosen: str | None, family: str | None, prompts: dict[str, str], kind: str) -> str:
    if chosen is not None:
        return chosen
    if family is not None:
        return family
    return prompts.get(kind) or (prompts.get("document", "") if kind == "passage" else "")


def _given(value: str | None, key: str) -> Path | None:
    if value is None:
        return None
    path = package_path(value) if value.startswith("package:") else Path(value)
    if not path.is_file():
        raise UserError(f"{key} {value}: no such file")
    return path


def package_path(reference: str) -> Path:
    """package:NAME/inner/path -> the path inside the installed package, which is not imported."""
    name, _, inner = reference.removeprefix("package:").partition("/")
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise UserError(f"{reference}: the Python package {name} is not installed; pip install it first")
    return Path(spec.submodule_search_locations[0]) / inner


def _folder(settings: config.Encoder) -> Path | None:
    if settings.model.startswith("package:"):
        path = package_path(settings.model)
        if not path.exists():
            raise UserError(f"encoder.model {settings.model}: no such folder in the package")
        return path if path.is_dir() else None
    path = Path(settings.model)
    if path.is_dir():
        return path
    if settings.onnx_file and settings.tokenizer_file:
        return None
    if path.is_absolute() or settings.model.count("/") != 1:
        raise UserError(f"encoder.model {settings.model}: no such folder, and not a hub id (owner/name)")
    return _from_hub(settings)


def _from_hub(settings: config.Encoder) -> Path:
    """The hub snapshot with the small files and, where the model has one, the ONNX file."""
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    wanted = [*SMALL_FILES, "config_sentence_transformers.json"]
    wanted += ["onnx/model.onnx", "onnx/model.onnx_data"] if settings.backend != "torch" else TORCH_FILES
    try:
        fetch = partial(huggingface_hub.snapshot_download, settings.model, revision=settings.revision)
        found = fetch(allow_patterns=wanted)
        if settings.backend != "torch" and _first(Path(found), ONNX_NAMES) is None and torch_is_there():
            found = fetch(allow_patterns=[*wanted, *TORCH_FILES])
    except (OfflineModeIsEnabled, LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"encoder.model {settings.model}: not in the local hub cache and the hub did not answer ({reason[:120]});"
            " check the name and the network, or give a local folder"
        ) from None
    return Path(found)


def _first(folder: Path | None, names: tuple[str, ...]) -> Path | None:
    return next((folder / name for name in names if (folder / name).is_file()), None) if folder else None


def _json(folder: Path | None, name: str) -> dict[str, Any]:
    path = folder / name if folder else None
    if path is None or not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: broken JSON ({error}); fetch the model again") from None
    return value if isinstance(value, dict) else {}


def _pooling_of(folder: Path | None) -> str | None:
    modes = _json(folder, "1_Pooling/config.json")
    return next((name for key, name in POOLINGS.items() if modes.get(key)), None)


def _limit(folder: Path | None) -> int:
    """The model's own longest input; sentence-transformers' setting comes before the architecture's."""
    own = _json(folder, "sentence_bert_config.json").get("max_seq_length")
    if own:
        return int(own)
    architecture = _json(folder, "config.json")
    positions = architecture.get("max_position_embeddings")
    if not positions:
        return 1 << 30
    # RoBERTa's positions start behind the padding index, so two of them are never used.
    return int(positions) - (2 if "roberta" in str(architecture.get("model_type")) else 0)
