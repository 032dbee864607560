"""A YAML file as a mapping, with the line of each key for error messages."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from miner.errors import UserError

Trail = tuple[str, ...]


def read(path: Path) -> tuple[dict[str, Any], dict[Trail, int]]:
    """The values, and the line of each key by its path from the root. Raises UserError, also for a key given twice."""
    text = _text(path)
    try:
        raw, lines = yaml.safe_load(text), _lines(text, path)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        raise UserError(f"{path}{line}: not valid YAML: {getattr(error, 'problem', None) or error}") from None
    except ValueError as error:
        raise UserError(f"{path}: a value is no date and no number ({error}); put it in quotes") from None
    except RecursionError:
        raise UserError(f"{path}: nested too deep, or an alias holds itself; write the values out") from None
    if not isinstance(raw, dict):
        raise UserError(f"{path}: a job file is a mapping of keys to values; `miner init` writes one")
    return raw, lines


def _text(path: Path) -> str:
    if path.is_dir():
        raise UserError(f"{path}: a folder, not a job file")
    try:
        content = path.read_bytes()
        return content.decode("utf-8-sig")
    except FileNotFoundError:
        raise UserError(f"{path}: no such job file; `miner init {path}` writes one") from None
    except OSError as error:
        raise UserError(f"{path}: cannot read ({error.strerror}); check the path and its permissions") from None
    except UnicodeDecodeError as error:
        line, byte = content[: error.start].count(b"\n") + 1, content[error.start]
        raise UserError(f"{path}:{line}: not UTF-8 (byte 0x{byte:02x}); save the job file as UTF-8") from None


def _lines(text: str, path: Path) -> dict[Trail, int]:
    found: dict[Trail, int] = {}

    def walk(node: Any, trail: Trail) -> None:
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                name, line = (*trail, key.value), key.start_mark.line + 1
                if name in found and key.value != "<<":
                    raise UserError(f"{path}:{line}: {'.'.join(name)} stands in line {found[name]} already; keep one")
                found[name] = line
                walk(value, name)

    walk(yaml.compose(text, Loader=yaml.SafeLoader), ())
    return found
