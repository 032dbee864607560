"""The commented job file that `miner init` writes, made from the model so that it cannot lag behind."""

from __future__ import annotations

import json
import textwrap
from typing import Any

import yaml
from pydantic import BaseModel

from miner.config import Data, Endpoint, Job

HEAD = """\
## A miner job. Relative paths count from this file. Run it with: miner run JOB.yaml
## Keys behind "# " stand at their defaults; take the two characters away (of the section's name too) to change one.
## `miner schema` prints the JSON Schema for editors.
"""
DATA = """
data:
  path: data            # BEIR folder, JSONL/CSV/Parquet file, saved data set or hub id"""
LLM = """
llm:
  model: gpt-4.1-mini   # any OpenAI-compatible server; see base_url below"""


def job_file() -> str:
    lines = [HEAD.rstrip(), DATA, *_section(Data, 1, skip="path"), LLM, *_section(Endpoint, 1, skip="model")]
    return "\n".join([*lines, "", *_section(Job, 0, skip="data llm")]) + "\n"


def _section(model: type[BaseModel], depth: int, skip: str = "") -> list[str]:
    lines: list[str] = []
    for name, field in model.model_fields.items():
        if name in skip.split():
            continue
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            lines += [*([] if depth else [""]), f"# {'  ' * depth}{name}:", *_section(field.annotation, depth + 1)]
        else:
            lines += _key(name, field, depth)
    return lines


def _key(name: str, field: Any, depth: int) -> list[str]:
    pad = "  " * depth
    default = _plain(field.get_default(call_default_factory=True))
    value = json.dumps(default, ensure_ascii=False)
    assert yaml.safe_load(value) is not None or value == "null", "JSON is YAML"
    note = textwrap.wrap(field.description or "", 100 - len(pad))
    return [*(f"# {pad}# {line}" for line in note), f"# {pad}{name}: {value}"]


def _plain(default: Any) -> Any:
    """A default as JSON can say it: of a list of sections, what was given."""
    if isinstance(default, tuple):
        return [_plain(item) for item in default]
    return default.model_dump(exclude_unset=True) if isinstance(default, BaseModel) else default
