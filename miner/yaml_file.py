"""A YAML file as a mapping, with the line of each key for error messages."""

from __future__ import annotations

from pathlib import Path
from pprint import pformat
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


def set_values(text: str, values: dict[str, Any]) -> str:
    """The same YAML with keys set, {"mining.depth": 200, …}; comments and all other lines stay byte for byte.

    A missing key goes to the top of its section, so that comments on other keys stay beside them; a missing section to
    the end of the file. A value that is there already keeps its spelling. values: what YAML has a word for (None, bool,
    int, float, str, lists). Raises UserError where it cannot be done without losing something: where the value is a
    section, a longer list or an alias now, and where a section should be and a value is.
    """
    for dotted, value in values.items():
        before = _load(text, dotted)
        wanted = _with(before, dotted.split("."), value, dotted)
        if pformat(before) != pformat(wanted):  # in words, since True == 1 and nan != nan
            text = _set(text, dotted.split("."), value, dotted)
        if pformat(_load(text, dotted)) != pformat(wanted):
            raise _by_hand(dotted, "it is written in an unusual way")
    return text


def _by_hand(dotted: str, why: str) -> UserError:
    return UserError(f"{dotted}: {why}; set it by hand")


def _load(text: str, dotted: str) -> Any:
    try:
        return yaml.safe_load(text) or {}
    except (yaml.YAMLError, ValueError, RecursionError):
        raise _by_hand(dotted, "the file cannot be read as YAML, or not with the new value in it") from None


def _with(raw: Any, trail: list[str], value: Any, dotted: str) -> dict[str, Any]:
    if raw is not None and not isinstance(raw, dict):
        raise _by_hand(dotted, "a value or list stands where a section should")
    raw, key = raw or {}, trail[0]
    return {**raw, key: _with(raw.get(key), trail[1:], value, dotted) if len(trail) > 1 else value}


def _set(text: str, trail: list[str], value: Any, dotted: str) -> str:
    node, header, flow = yaml.compose(text, Loader=yaml.SafeLoader), None, False
    for depth, name in enumerate(trail):
        if not isinstance(node, yaml.MappingNode):
            return _fill(text, node, header, trail[depth:], value, flow)
        flow = flow or bool(node.flow_style)
        entry = next(((key, item) for key, item in reversed(node.value) if key.value == name), None)
        if entry is None:
            return _insert(text, node, header, trail[depth:], value, flow)
        header, node = entry
        if node.start_mark.index < header.end_mark.index:
            raise _by_hand(dotted, "an alias stands there")
    assert node is not None, "the trail is not empty"
    return _replace(text, node, value, dotted)


def _replace(text: str, node: yaml.Node, value: Any, dotted: str) -> str:
    start, end = _span(text, node)
    if isinstance(node, yaml.CollectionNode) and (not node.flow_style or "\n" in text[start:end]):
        raise _by_hand(dotted, "a section or list stands there")
    return text[:start] + _gap(text, start) + _plain(value) + text[end:]


def _fill(text: str, node: yaml.Node | None, header: yaml.Node | None, trail: list[str], value: Any, flow: bool) -> str:
    """Put the first keys into a section that is empty: no value at all, or null."""
    start, end = _span(text, node) if node is not None else (0, 0)
    if flow:
        return text[:start] + _gap(text, start) + "{" + _flow(trail, value) + "}" + text[end:]
    head = text[:start].rstrip(" ") if end > start else text[:start]
    text = head + text[end:]
    indent = header.start_mark.column + 2 if header else 0
    return _new_lines(text, len(head) if header else len(text), trail, value, indent)


def _insert(
    text: str, node: yaml.MappingNode, header: yaml.Node | None, trail: list[str], value: Any, flow: bool
) -> str:
    """Put the first of several keys into a section, or the last into the file."""
    if flow:
        at = text.index("{", node.start_mark.index) + 1
        return text[:at] + _flow(trail, value) + (", " if node.value else "") + text[at:]
    end = node.end_mark.index
    last = len(text) if end >= len(text) else end - 1  # the file may close with "..."
    return _new_lines(text, header.end_mark.index if header else last, trail, value, node.value[0][0].start_mark.column)


def _new_lines(text: str, at: int, trail: list[str], value: Any, indent: int) -> str:
    """New lines below the one of `at`, which may end in a comment."""
    newline = "\r\n" if "\r\n" in text else "\n"
    lines = [" " * (indent + 2 * depth) + f"{_plain(key)}:" for depth, key in enumerate(trail)]
    block = newline.join(lines) + f" {_plain(value)}" + newline
    end = text.find("\n", at)
    if end >= 0:
        return text[: end + 1] + block + text[end + 1 :]
    return text + (newline if text[-1:] not in ("", "\n", "\ufeff") else "") + block


def _span(text: str, node: yaml.Node) -> tuple[int, int]:
    """From the value's first to behind its last character; a block of text would otherwise take the next line along."""
    start = node.start_mark.index
    return start, start + len(text[start : node.end_mark.index].rstrip())


def _gap(text: str, start: int) -> str:
    return "" if text[:start][-1:] in ("", " ", "\t", "\n", "[", "{") else " "


def _flow(trail: list[str], value: Any) -> str:
    first, *rest = trail
    return f"{_plain(first)}: " + ("{" + _flow(rest, value) + "}" if rest else _plain(value))


def _plain(value: Any) -> str:
    """On one line and fit for `[…]` and `{…}`, hence dumped as the item of a list."""
    style = '"' if isinstance(value, str) and len(value.splitlines()) > 1 else None
    dumped = yaml.safe_dump([value], default_flow_style=True, default_style=style, width=10**9, allow_unicode=True)
    return dumped.strip()[1:-1]
