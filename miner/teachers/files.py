"""Find the files of a cross-encoder (local folder or hub) and refuse, before torch is loaded, what is none."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from miner import config, models
from miner.encoders.files import TOKENIZERS
from miner.errors import UserError
from miner.store import file_digest

# What besides the weights decides a score. Only those that a model has are fetched and fingerprinted.
OTHERS = ["config.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "merges.txt"]
OTHERS += TOKENIZERS
# What sentence-transformers says of a model; it can only lead to a refusal.
HINTS = ("modules.json", "config_sentence_transformers.json")
# The second is taken where the first finds nothing; both name files of the model's own folder only.
WEIGHTS = ("model*.safetensors", "pytorch_model*.bin")
HEAD = "ForSequenceClassification"
# Model types of decoders. Their rerankers score the answer to an instruction that each wants in words of its own;
# without those words they give numbers that mean nothing.
LLMS = ("gemma", "minicpm", "qwen", "llama", "mistral", "mixtral", "phi", "gpt", "olmo", "falcon", "deepseek")
SUPPORTED = (
    "supported are cross-encoders with one output, such as BAAI/bge-reranker-v2-m3, BAAI/bge-reranker-base and"
    " cross-encoder/ms-marco-MiniLM-L6-v2"
)
# Their positions start behind the padding index, so two of them are never used.
SHIFTED = ("roberta", "camembert", "mpnet", "longformer")


@dataclass(frozen=True)
class Files:
    """What was found. `max_length` is in tokens of the pair, special ones counted."""

    folder: Path
    weights: tuple[Path, ...]
    others: tuple[Path, ...]
    max_length: int


def find(settings: config.Teacher) -> Files:
    """Resolve the job file's teacher section. Raises UserError naming what is missing or does not fit.

    The small files of a hub model come first: a model that is refused is refused before its weights are fetched.
    """
    local = Path(settings.model).is_dir()
    small = [*OTHERS, *HINTS, *(["*.py"] if settings.trust_remote_code else [])]
    folder = Path(settings.model) if local else _from_hub(settings, small)
    _refuse_kind(settings, folder)
    if not all(importlib.util.find_spec(name) for name in ("torch", "transformers")):
        raise UserError(f"teacher.model {settings.model}: it runs through torch; pip install 'miner[local]'")
    for pattern in WEIGHTS:
        if not local and not _weights(folder):
            folder = _from_hub(settings, [*small, pattern, "*.index.json"])
    if not _weights(folder):
        raise UserError(f"teacher.model {settings.model}: no {' and no '.join(WEIGHTS)} in {folder}; not a whole model")
    if not any((folder / name).is_file() for name in TOKENIZERS):
        raise UserError(f"teacher.model {settings.model}: no tokenizer in {folder}; not a whole model")
    code = sorted(folder.glob("*.py")) if settings.trust_remote_code else []
    others = (*(folder / name for name in OTHERS if (folder / name).is_file()), *code)
    return Files(folder, tuple(_weights(folder)), others, min(settings.max_length, _limit(folder)))


def fingerprint(files: Files) -> dict[str, Any]:
    """All that decides a score besides the texts, by content and never by path: JSON-able."""
    named = (*files.weights, *files.others)
    return {
        "backend": "torch",
        "files": {path.relative_to(files.folder).as_posix(): file_digest(path) for path in named},
        "max_length": files.max_length,
    }


def _weights(folder: Path) -> list[Path]:
    return next((found for pattern in WEIGHTS if (found := sorted(folder.glob(pattern)))), [])


def _refuse_kind(settings: config.Teacher, folder: Path) -> None:
    """Anything that is not a cross-encoder of one output would load, with a head at random or words left out."""
    named = f"teacher.model {settings.model}"
    said = models.read_json(folder, "config.json")
    if not isinstance(said, dict):
        raise UserError(f"{named}: no config.json in {folder}; not a whole model")
    kind = str((said.get("architectures") or ["a model without a named architecture"])[0])
    if kind.endswith("ForCausalLM") or str(said.get("model_type")).startswith(LLMS):
        raise UserError(
            f"{named}: {kind} is a reranker made of an LLM, which needs instructions of its own; {SUPPORTED}"
        )
    if not kind.endswith(HEAD):
        raise UserError(f"{named}: {kind} has no trained score for a pair; {SUPPORTED}")
    # transformers leaves the number out of config.json where it is its default, 2.
    outputs = len(said.get("id2label") or "..") if said.get("num_labels") is None else int(said["num_labels"])
    if outputs != 1:
        raise UserError(f"{named}: {kind} has {outputs} outputs, so none of them is the score; {SUPPORTED}")
    _refuse_additions(named, folder)


def _refuse_additions(named: str, folder: Path) -> None:
    """What sentence-transformers would do around the network is not done here, so it must be nothing."""
    modules = models.read_json(folder, "modules.json")
    names = [str(module.get("type")).split(".")[-1] for module in modules or [] if isinstance(module, dict)]
    if further := [name for name in names if name != "Transformer"]:
        raise UserError(f"{named}: its {', '.join(further)} module would be left out; {SUPPORTED}")
    said = models.read_json(folder, "config_sentence_transformers.json") or {}
    prompt = said.get("default_prompt_name")
    if prompt and (said.get("prompts") or {}).get(prompt):
        raise UserError(f"{named}: its default prompt {prompt!r} would be left out; {SUPPORTED}")


def _limit(folder: Path) -> int:
    """The model's own longest input in tokens."""
    said = models.read_json(folder, "config.json")
    unused = 2 if any(name in str(said.get("model_type")) for name in SHIFTED) else 0
    positions = int(said.get("max_position_embeddings") or 0) - unused
    tokens = int((models.read_json(folder, "tokenizer_config.json") or {}).get("model_max_length") or 0)
    return min([limit for limit in (positions, tokens) if limit > 0], default=1 << 30)


def _from_hub(settings: config.Teacher, wanted: list[str]) -> Path:
    """The hub snapshot, with the wanted files that the model has."""
    return models.snapshot(f"teacher.model {settings.model}", settings.model, settings.revision)(wanted)
