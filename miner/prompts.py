"""Prompt files: load, render, and parse what comes back. Pure but for reading the file.

A prompt is Markdown with YAML front matter, then a part under `# system` and one under `# user`, both Jinja2. Its
version is the hash of its text, so an edited prompt is another prompt.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml
from jinja2 import StrictUndefined, TemplateError, meta
from jinja2.sandbox import SandboxedEnvironment
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from miner.errors import UserError
from miner.records import fold
from miner.store import digest

Status = Literal["ok", "refused", "truncated", "unparsable", "missing"]
Task = Literal["judge", "generate"]

TEMPLATES = SandboxedEnvironment(undefined=StrictUndefined, autoescape=False, keep_trailing_newline=False)
PACKAGED = Path(__file__).parent / "_prompts"
SHIPPED = PACKAGED if PACKAGED.is_dir() else Path(__file__).parent.parent / "prompts"


class Front(BaseModel):
    """The front matter. An unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    name: str
    task: Task
    notes: str = ""
    inputs: tuple[str, ...]
    sampling: dict[str, Any] = {}
    answer_schema: dict[str, Any] = Field(alias="schema")


@dataclass(frozen=True)
class Prompt:
    front: Front
    system: str
    user: str
    version: str

    def messages(self, **values: str) -> list[dict[str, str]]:
        """The chat messages. Values are text and never read as template code. Raises UserError."""
        try:
            return [
                {"role": role, "content": TEMPLATES.from_string(part).render(values)}
                for role, part in (("system", self.system), ("user", self.user))
            ]
        except (TemplateError, TypeError, ValueError, ArithmeticError) as error:
            raise UserError(
                f"prompt {self.front.name}: cannot render ({error}); its inputs are {self.front.inputs}"
            ) from None


def load(task: Task, name: str, own: Path | None) -> Prompt:
    """A prompt by name (own folder first, then the shipped one) or by path. Raises UserError."""
    if name.endswith(".md"):
        paths = [Path(name), *([own / name] if own else [])]
    else:
        paths = [root / task / f"{name}.md" for root in (own, SHIPPED) if root]
    for path in paths:
        if path.is_file():
            return parse_file(path, task)
    raise UserError(f"prompt {name!r} ({task}): no such file in {', '.join(str(p.parent) for p in paths)}")


def parse_file(path: Path, task: Task) -> Prompt:
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 ({error}); save the prompt as UTF-8") from None
    try:
        _, head, body = text.split("---\n", 2)
        system, user = body.split("# system\n", 1)[1].split("\n# user\n", 1)
        front = Front.model_validate(yaml.safe_load(head))
    except (ValueError, IndexError, yaml.YAMLError) as error:
        reason = _first_line(error)
        raise UserError(f"{path}: a prompt is front matter, then `# system` and `# user` parts ({reason})") from None
    if front.task != task:
        raise UserError(f"{path}: task is {front.task}, wanted {task}")
    _check_inputs(path, front, system + user)
    _check_schema(path, front)
    return Prompt(front, system.strip("\n"), user.strip("\n"), digest(text)[:16])


def _first_line(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
    return (str(error).splitlines() or [""])[0]


def _check_inputs(path: Path, front: Front, text: str) -> None:
    try:
        used = meta.find_undeclared_variables(TEMPLATES.parse(text))
    except TemplateError as error:
        raise UserError(f"{path}: not valid Jinja2 ({error})") from None
    if used != set(front.inputs):
        odd = ", ".join(sorted(used ^ set(front.inputs)))
        raise UserError(f"{path}: declared inputs and used variables differ: {odd}")
    if unknown := used - set(GIVEN[front.task]):
        raise UserError(
            f"{path}: unknown input {min(unknown)}; a {front.task} prompt gets {', '.join(GIVEN[front.task])}"
        )


GIVEN = {"judge": ("query", "positive", "passage", "nonce"), "generate": ("query", "positive", "facet", "nonce")}
NEEDED = {"judge": {"evidence": "string", "grade": "integer"}, "generate": {"passage": "string"}}


def _check_schema(path: Path, front: Front) -> None:
    """The answer is a flat object with the keys that its reader needs."""
    properties = front.answer_schema.get("properties")
    rules = properties if isinstance(properties, dict) else {}
    kinds = {name: str(rule.get("type") if isinstance(rule, dict) else rule) for name, rule in rules.items()}
    for name, wanted in NEEDED[front.task].items():
        if kinds.get(name) != wanted:
            raise UserError(f"{path}: the schema of a {front.task} prompt needs the property {name} of type {wanted}")
    for name, kind in kinds.items():
        if kind not in TYPES:
            raise UserError(f"{path}: schema: {name} is of type {kind}; known are {', '.join(TYPES)}")


def nonce(*texts: str) -> str:
    """Code of the fences around untrusted texts: their own hash, so no text can hold the code of its own fence."""
    return digest(list(texts))[:10]


@dataclass(frozen=True)
class Parsed:
    status: Status
    detail: str
    value: dict[str, Any]


def read_answer(response: dict[str, Any] | None, schema: dict[str, Any], error: str = "") -> Parsed:
    """Status and content of a chat completion. Only `ok` carries a value; nothing unreadable becomes a grade."""
    if response is None:
        return Parsed("missing", error, {})
    choice = (response.get("choices") or [{}])[0]
    message = choice.get("message") or {}
    if message.get("refusal") or choice.get("finish_reason") == "content_filter":
        return Parsed("refused", str(message.get("refusal") or "content_filter"), {})
    if choice.get("finish_reason") == "length":
        return Parsed("truncated", "the answer met max_tokens", {})
    content = message.get("content")
    value = _json_object(content) if isinstance(content, str) else None
    if value is None:
        return Parsed("unparsable", "no JSON object", {})
    wrong = _breaks(value, schema)
    return Parsed("unparsable", wrong, {}) if wrong else Parsed("ok", "", value)


def _json_object(content: str) -> dict[str, Any] | None:
    """The JSON object that the text is, or that stands alone between its first and last brace."""
    body = content[content.find("{") : content.rfind("}") + 1]
    try:
        value = json.loads(body)
        json.dumps(value, ensure_ascii=False).encode()  # a lone surrogate fits in no file
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


TYPES: dict[str, tuple[type, ...]] = {"string": (str,), "integer": (int,), "number": (int, float), "boolean": (bool,)}


def _breaks(value: dict[str, Any], schema: dict[str, Any]) -> str:
    """What is wrong with a flat object under its schema, or "". Booleans are not numbers here."""
    for name, rule in schema.get("properties", {}).items():
        if name not in value:
            return f"no {name}"
        item, kind = value[name], TYPES[rule["type"]]
        if not isinstance(item, kind) or (isinstance(item, bool) and bool not in kind):
            return f"{name} is not of type {rule['type']}"
        if "enum" in rule and item not in rule["enum"]:
            return f"{name} is {item!r}, not one of {rule['enum']}"
    return ""


def quotes(evidence: str, passage: str) -> bool:
    """Does the quote occur in the passage, case and white space folded, quote marks around it ignored?"""
    return fold(evidence).strip("\"'“”…. ") in fold(passage)


def answered(parsed: Parsed, key: str, model: str, prompt: Prompt, response: dict[str, Any] | None) -> dict[str, Any]:
    """The columns `records.ANSWERED` of a row that rests on this answer."""
    usage = (response or {}).get("usage")
    return {
        "status": parsed.status,
        "detail": parsed.detail,
        "prompt": prompt.front.name,
        "prompt_version": prompt.version,
        "model": model,
        "request_key": key,
        "prompt_tokens": _tokens(usage, "prompt_tokens"),
        "completion_tokens": _tokens(usage, "completion_tokens"),
    }


def _tokens(usage: Any, name: str) -> int | None:
    """A count out of what the server calls usage; None for whatever is no count."""
    count = usage.get(name) if isinstance(usage, dict) else None
    return count if type(count) is int and 0 <= count < 1 << 31 else None
