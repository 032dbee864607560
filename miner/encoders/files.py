"""Find the files of an encoder (local folder, Python package, hub) and what they say of pooling and length."""

from __future__ import annotations

import importlib.util
import os
import platform
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from miner import config, models
from miner.encoders import families
from miner.errors import UserError
from miner.store import file_digest

# The onnx backend reads the first of these only.
TOKENIZERS = ("tokenizer.json", "vocab.txt", "vocab.json", "sentencepiece.bpe.model", "spiece.model", "tokenizer.model")
# Folders such as 2_Dense hold further modules of a sentence-transformers model.
TORCH_FILES = ["*.safetensors", "*.safetensors.index.json", "special_tokens_map.json", "merges.txt", "[0-9]*_*/*"]
TORCH_FILES += TOKENIZERS
OLD_TORCH_FILES = ["pytorch_model*.bin", "pytorch_model.bin.index.json"]
ONNX_NAMES = ("onnx/model.onnx", "model.onnx")
SMALL_FILES = ["config.json", "modules.json", "1_Pooling/config.json", "sentence_bert_config.json", "tokenizer.json"]
SMALL_FILES += ["tokenizer_config.json", "config_sentence_transformers.json"]
# sentence-transformers' names of the poolings, before version 5.4 and since.
POOLINGS = {"cls_token": "cls", "mean_tokens": "mean", "cls": "cls", "mean": "mean", "lasttoken": "last"}
# What the onnx backend does itself; any other module of a model (Dense, for example) needs torch.
PLAIN_MODULES = {"Transformer", "Pooling", "Normalize"}
# Architectures, as config.json names them, of which the conversion to ONNX and its fusion were tested.
FUSED = ("bert", "roberta", "xlm-roberta", "distilbert", "mpnet")
HEADS = ("ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering")


@dataclass(frozen=True)
class Files:
    """What was found. `folder` is None where the job file names an ONNX file and a tokenizer, and nothing else."""

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
    query_suffix: str = ""
    dimensions: int | None = None
    matryoshka: str = ""
    precision: str = "fp32"


def find(settings: config.Encoder) -> Files:
    """Resolve the job file's encoder section. Raises UserError naming what is missing."""
    folder = _folder(settings)
    family = families.of(settings.model)
    onnx = _given(settings.onnx_file, "encoder.onnx_file") or _first(folder, ONNX_NAMES)
    _refuse_heads(settings, folder)
    backend = _backend(settings, onnx, folder)
    tokenizer = _given(settings.tokenizer_file, "encoder.tokenizer_file")
    tokenizer = tokenizer or _first(folder, TOKENIZERS if backend == "torch" else TOKENIZERS[:1])
    around = families.surround(settings, _json(folder, "config_sentence_transformers.json").get("prompts"))
    pooling = settings.pooling or _pooling_of(folder) or (family and family.pooling)
    if pooling is None:
        raise UserError(
            f"encoder.model {settings.model}: unknown family and no pooling known for it; set encoder.pooling to"
            " cls, mean or last (and the prefixes, if the model has any)"
        )
    return Files(
        model=settings.model,
        backend=backend,
        folder=folder,
        onnx=onnx,
        tokenizer=tokenizer,
        weights=onnx_files(onnx) if onnx and backend == "onnx" else _torch_weights(settings, folder),
        pooling=pooling,
        query_prefix=around.query_prefix,
        passage_prefix=around.passage_prefix,
        max_length=min(settings.max_length, _limit(folder)),
        query_suffix=around.query_suffix,
        dimensions=settings.dimensions,
        matryoshka=families.matryoshka(settings),
        precision=settings.precision,
    )


def fingerprint(files: Files) -> dict[str, Any]:
    """All that decides a vector besides the text, by content and never by path: JSON-able."""
    named = [*files.weights, *([files.tokenizer] if files.tokenizer else [])]
    return {
        "backend": files.backend,
        "files": {_label(path, files.folder): file_digest(path) for path in named},
        "query_prefix": files.query_prefix,
        "passage_prefix": files.passage_prefix,
        "pooling": files.pooling,
        "max_length": files.max_length,
        # Only where set: what was encoded before there were these keys keeps its place in the cache.
        **({"query_suffix": files.query_suffix} if files.query_suffix else {}),
        **({"dimensions": files.dimensions} if files.dimensions else {}),
        **({"precision": files.precision} if files.precision != "fp32" else {}),
    }


def _label(path: Path, folder: Path | None) -> str:
    return path.relative_to(folder).as_posix() if folder and path.is_relative_to(folder) else path.name


def torch_is_there() -> bool:
    return all(importlib.util.find_spec(name) for name in ("torch", "sentence_transformers"))


def _refuse_heads(settings: config.Encoder, folder: Path | None) -> None:
    """A reranker or classifier would encode without an error, and its vectors would mean nothing."""
    for name in _json(folder, "config.json").get("architectures") or []:
        if name.endswith(HEADS):
            raise UserError(f"encoder.model {settings.model}: {name} is a reranker or classifier, not an encoder")


def _backend(settings: config.Encoder, onnx: Path | None, folder: Path | None) -> str:
    """The backend that `auto` stands for, checked against what is there."""
    backend = settings.backend
    further = [] if settings.onnx_file else _further_modules(folder)
    if backend == "auto":
        through_onnx = onnx or settings.precision == "int8" or _converts(settings, folder)
        backend = "onnx" if through_onnx and not further else "torch"
    if backend == "torch" and settings.precision == "int8":
        raise UserError(f"encoder.precision int8 is for the onnx backend, and {settings.model} runs through torch")
    if backend == "torch" and (settings.onnx_file or settings.tokenizer_file):
        key = "onnx_file" if settings.onnx_file else "tokenizer_file"
        raise UserError(f"encoder.{key} is for the onnx backend, and this model runs through torch; take it out")
    if backend == "onnx" and further:
        raise UserError(
            f"encoder.model {settings.model}: its {', '.join(further)} module would be left out by the onnx backend;"
            " set encoder.backend: torch"
        )
    if (backend == "torch" or onnx is None) and not torch_is_there():
        raise UserError(
            f"encoder.model {settings.model}: "
            + ("" if onnx or settings.backend == "torch" else "no ONNX file found; set encoder.onnx_file, or ")
            + "pip install 'miner[local]' to run it through torch"
        )
    return backend


def _converts(settings: config.Encoder, folder: Path | None) -> bool:
    """On a CPU, ONNX Runtime is faster: is this a model without an ONNX file that `auto` converts for that?"""
    able = all(importlib.util.find_spec(name) for name in ("torch", "sentence_transformers", "onnxscript"))
    plain = _json(folder, "config.json").get("model_type") in FUSED and _first(folder, TOKENIZERS[:1]) is not None
    on_cpu = settings.device == "cpu" or (settings.device is None and not gpu_is_there())
    return able and plain and on_cpu and not settings.trust_remote_code


def gpu_is_there() -> bool:
    """Would torch compute on a GPU here? Told from the system's device files, since to ask torch takes seconds."""
    if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return False
    apple = (sys.platform, platform.machine()) == ("darwin", "arm64")
    return apple or any(Path("/dev", name).exists() for name in ("nvidiactl", "kfd", "dxg"))  # CUDA, ROCm, WSL


def onnx_files(onnx: Path) -> tuple[Path, ...]:
    """The file and the weights that a model above 2 GB keeps beside it (model.onnx_data, model.onnx.data)."""
    return (onnx, *sorted(onnx.parent.glob(onnx.name + "?data")))


def _further_modules(folder: Path | None) -> list[str]:
    """Names of the modules that the onnx backend would leave out."""
    names = [str(module.get("type")).split(".")[-1] for module in _modules(folder)]
    return [name for name in names if name not in PLAIN_MODULES]


def _torch_weights(settings: config.Encoder, folder: Path | None) -> tuple[Path, ...]:
    """The weight files of every module of a model."""
    homes = dict.fromkeys([folder / str(m.get("path", "")) for m in _modules(folder)] + [folder]) if folder else {}
    found = [path for home in homes for path in _weights(home)]
    if not found:
        raise UserError(
            f"encoder.model {settings.model}: no *.safetensors and no pytorch_model*.bin in {folder}; not a whole model"
        )
    return tuple(found)


def _weights(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors")) or sorted(folder.glob("pytorch_model*.bin"))


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
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):  # no parent package, or no name at all
        spec = None
    if spec is None or not spec.submodule_search_locations:
        raise UserError(f"{reference}: the Python package {name!r} is not installed; pip install it first")
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
    return _from_hub(settings)


def _from_hub(settings: config.Encoder) -> Path:
    """The hub snapshot with the small files and, where the model has one, the ONNX file."""
    wanted = [*SMALL_FILES, *(["*.py"] if settings.trust_remote_code else [])]
    wanted += [*ONNX_NAMES, "onnx/model.onnx_data"] if settings.backend != "torch" else TORCH_FILES
    fetch = models.snapshot(f"encoder.model {settings.model}", settings.model, settings.revision)
    found = fetch(wanted)
    through_torch = _first(found, ONNX_NAMES) is None or _further_modules(found)
    if settings.backend != "torch" and through_torch and torch_is_there():
        wanted += TORCH_FILES
        found = fetch(wanted)
    if TORCH_FILES[0] in wanted and not _weights(found):
        found = fetch([*wanted, *OLD_TORCH_FILES])
    return found


def _first(folder: Path | None, names: tuple[str, ...]) -> Path | None:
    return next((folder / name for name in names if (folder / name).is_file()), None) if folder else None


def _json(folder: Path | None, name: str) -> dict[str, Any]:
    value = models.read_json(folder, name)
    return value if isinstance(value, dict) else {}


def _modules(folder: Path | None) -> list[dict[str, Any]]:
    """The entries of modules.json; none for a plain transformers model."""
    value = models.read_json(folder, "modules.json")
    return [entry for entry in value if isinstance(entry, dict)] if isinstance(value, list) else []


def _pooling_of(folder: Path | None) -> str | None:
    """The model's own pooling, if it is a single one that miner has."""
    modes = _json(folder, "1_Pooling/config.json")
    mode = modes.get("pooling_mode") or [k.removeprefix("pooling_mode_") for k, v in modes.items() if v is True]
    named = [mode] if isinstance(mode, str) else [m for m in mode if m != "include_prompt"]
    return POOLINGS.get(named[0]) if len(named) == 1 else None


def _limit(folder: Path | None) -> int:
    """The model's own longest input; sentence-transformers' setting comes before the architecture's."""
    own = _json(folder, "sentence_bert_config.json").get("max_seq_length")
    if own:
        return int(own)
    architecture = _json(folder, "config.json")
    # RoBERTa's positions start behind the padding index, so two of them are never used.
    unused = 2 if "roberta" in str(architecture.get("model_type")) else 0
    positions = int(architecture.get("max_position_embeddings") or 0) - unused
    tokens = int(_json(folder, "tokenizer_config.json").get("model_max_length") or 0)
    return min([limit for limit in (positions, tokens) if limit > 0], default=1 << 30)
