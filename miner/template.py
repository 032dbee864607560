"""The commented job file that `miner init` writes, made from the model so that it cannot lag behind."""

from __future__ import annotations

import json
import textwrap
from typing import Any

import yaml
from pydantic import BaseModel

from miner.config import Endpoint, Job

HEAD = """\
# A miner job. Relative paths count from this file. Run it with: miner run {name}
# Commented keys stand at their defaults. `miner schema` prints the JSON Schema for editors.

data:
  path: data            # BEIR folder, JSONL/CSV/Parquet file, saved data set or hub id
llm:
  model: gpt-4.1-mini   # any OpenAI-compatible server; see base_url below
"""


def job_file() -> str:
    lines = [HEAD.format(name="JOB.yaml")]
    for name, field in Job.model_fields.items():
        if name == "llm":
            lines += ["# llm:", *_section(Endpoint, 1, skip=("model",))]
        elif isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            lines += [f"# {name}:", *_section(field.annotation, 1, skip=("path",) if name == "data" else ())]
        else:
            lines += _key(name, field, 0)
    return "\n".join(lines) + "\n"


def _section(model: type[BaseModel], depth: int, skip: tuple[str, ...]) -> list[str]:
    lines: list[str] = []
    for name, field in model.model_fields.items():
        if name in skip or field.annotation == Endpoint | None:
            continue
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            lines += [f"# {'  ' * depth}{name}:", *_section(field.annotation, depth + 1, ())]
        else:
            lines += _key(name, field, depth)
    return lines


def _key(name: str, field: Any, depth: int) -> list[str]:
    pad = "  " * depth
    default = field.get_default(call_default_factory=True)
    value = json.dumps(list(default) if isinstance(default, tuple) else default, ensure_ascii=False)
    assert yaml.safe_load(value) is not None or value == "null", "JSON is YAML"
    note = textwrap.wrap(field.description or "", 100 - len(pad))
    return [*(f"# {pad}# {line}" for line in note), f"# {pad}{name}: {value}"]
