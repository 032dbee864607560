"""Prompt files: load, check, render. Pure but for reading the file.

A prompt is Markdown with YAML front matter, then a part under `# system` and one under `# user`, both Jinja2. Its
version is the hash of its text, so an edited prompt is another prompt. What comes back is read by miner.answers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml
from jinja2 import StrictUndefined, TemplateError, meta
from jinja2.sandbox import SandboxedEnvironment
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from miner.answers import Parsed as Parsed
from miner.answers import Status as Status
from miner.answers import broken_form as broken_form
from miner.answers import kinds, odd_rule
from miner.answers import quotes as quotes
from miner.answers import read_answer as read_answer
from miner.errors import UserError
from miner.store import digest

Task = Literal["judge", "generate"]
Mode = Literal["graded", "binary", "packed", "listwise"]
TASKS: tuple[Task, ...] = ("judge", "generate")

TEMPLATES = SandboxedEnvironment(undefined=StrictUndefined, autoescape=False, keep_trailing_newline=False)
PACKAGED = Path(__file__).parent / "_prompts"
SHIPPED = PACKAGED if PACKAGED.is_dir() else Path(__file__).parent.parent / "prompts"


class Front(BaseModel):
    """The front matter. An unknown key is an error.

    version: a label for people; what counts is the hash of the file. parent: the name, or name@version, that this one
    was made from. mode: of a judge; it says how the answer is read.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True, coerce_numbers_to_str=True)

    name: str
    version: str = ""
    task: Task
    mode: Mode | None = None
    parent: str = ""
    notes: str = ""
    inputs: tuple[str, ...]
    sampling: dict[str, Any] = {}
    answer_schema: dict[str, Any] = Field({}, alias="schema")


@dataclass(frozen=True)
class Prompt:
    """`version` is the hash of `text`, the whole file."""

    front: Front
    system: str
    user: str
    version: str
    text: str = field(default="", repr=False)
    path: Path | None = field(default=None, compare=False)

    @property
    def mode(self) -> Mode:
        """How a judge's answer is read; graded where the front matter does not say."""
        return self.front.mode or "graded"

    @property
    def orders(self) -> int:
        """In how many orders the prompt itself can show its texts. (Packs are shuffled, whatever the prompt.)"""
        return 2 if "order" in self.front.inputs else 1

    def messages(self, **values: Any) -> list[dict[str, str]]:
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


def parse_file(path: Path, task: Task | None = None) -> Prompt:
    """The prompt in a file; `task` None takes either. Raises UserError."""
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 ({error}); save the prompt as UTF-8") from None
    except OSError as error:
        raise UserError(f"{path}: cannot read ({error.strerror}); check the path") from None
    return parse(text, path, task)


def parse(text: str, path: Path, task: Task | None = None) -> Prompt:
    """The prompt in a text; `path` is where it stands, for messages. Raises UserError."""
    try:
        _, head, body = text.split("---\n", 2)
        system, user = body.split("# system\n", 1)[1].split("\n# user\n", 1)
        front = Front.model_validate(yaml.safe_load(head))
    except (ValueError, IndexError, yaml.YAMLError) as error:
        reason = _first_line(error)
        raise UserError(f"{path}: a prompt is front matter, then `# system` and `# user` parts ({reason})") from None
    if task is not None and front.task != task:
        raise UserError(f"{path}: task is {front.task}, wanted {task}")
    _check_inputs(path, front, system + user)
    _check_schema(path, front)
    return Prompt(front, system.strip("\n"), user.strip("\n"), digest(text)[:16], text, path)


def _first_line(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
    return (str(error).splitlines() or [""])[0]


# In this order the fences' code is made from them. Of the judge, `passages` are the fenced passages of one call.
# query_nonce is a code too, made without the passages: requests about one query then begin alike, which servers reuse.
# order: of a binary judge that can show the texts in two orders, 1 or 2.
CODES = ("nonce", "query_nonce")
NO_TEXT = (*CODES, "order")
GIVEN = {
    "judge": ("query", "positive", "passage", "passages", *NO_TEXT),
    "generate": ("query", "positive", "facet", "near_miss", "words", "k", "language", "nonce"),
}
MANY = ("packed", "listwise")


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
    if front.task == "generate":
        if front.mode is not None:
            raise UserError(f"{path}: mode {front.mode} is for judges; take the key out of this generator")
        return
    if "order" in used and front.mode != "binary":
        raise UserError(f"{path}: order is for binary judges; a judge of mode {front.mode or 'graded'} takes it out")
    wanted, other = ("passages", "passage") if front.mode in MANY else ("passage", "passages")
    if wanted not in used or other in used:
        raise UserError(f"{path}: a judge of mode {front.mode or 'graded'} shows {wanted}, and never {other}")


NEEDED = {
    "graded": {"evidence": "string", "grade": "integer"},
    "binary": {},
    "packed": {"answers": "array"},
    "listwise": {"answers": "array"},
    "generate": {"passage": "string"},
}
NEEDED_ENTRY = {
    "packed": {"evidence": "string", "grade": "integer"},
    "listwise": {"evidence": "string", "relation": "string"},
}


def _check_schema(path: Path, front: Front) -> None:
    """The answer is an object with the keys that its reader needs; of a Yes/No judge it is no object at all."""
    what = "generate" if front.task == "generate" else front.mode or "graded"
    if what == "binary" and front.answer_schema:
        raise UserError(f"{path}: a binary judge has no schema: it answers one word; take the key out")
    found = kinds(front.answer_schema)
    for name, wanted in NEEDED[what].items():
        if found.get(name) != wanted:
            raise UserError(f"{path}: the schema of a {front.task} prompt needs the property {name} of type {wanted}")
    if wrong := odd_rule(front.answer_schema):
        raise UserError(f"{path}: schema: {wrong}")
    if what in NEEDED_ENTRY:
        entry = kinds(front.answer_schema["properties"]["answers"]["items"])  # of plain values: none has a name
        for name, kind in {"id": entry.get("id", "integer"), **NEEDED_ENTRY[what]}.items():
            if entry.get(name) != kind:
                raise UserError(f"{path}: the entries of `answers` need the property {name} of type {kind}")


def nonce(*texts: str, others: Sequence[str] = ()) -> str:
    """Code of the fences around untrusted texts: the hash of `texts`, and never one that stands in them or `others`."""
    code = digest(list(texts))[:10]
    while any(code in text for text in (*texts, *others)):
        code = digest([code, *texts])[:10]
    return code


def _codes(inputs: Sequence[str], shared: Sequence[str], passages: Sequence[str]) -> dict[str, str]:
    """The codes that a prompt uses. shared: the texts that all requests about one query show."""
    codes = {"nonce": nonce(*shared, *passages), "query_nonce": nonce(*shared, others=passages)}
    return {name: code for name, code in codes.items() if name in inputs}


def fill(prompt: Prompt, order: int = 1, /, **texts: str) -> dict[str, Any]:
    """The values of the prompt's inputs, the code of the fences among them. Raises UserError where one is lacking."""
    names = [name for name in GIVEN[prompt.front.task] if name in prompt.front.inputs and name not in NO_TEXT]
    for name in names:
        if name not in texts:
            raise UserError(f"prompt {prompt.front.name}: no {name} is given, which it shows")
    values = {name: texts[name] for name in names}
    shared, own = ([text for name, text in values.items() if (name == "passage") == way] for way in (False, True))
    codes = _codes(prompt.front.inputs, shared, own)
    return values | codes | ({"order": order} if prompt.orders > 1 else {})


def fill_many(prompt: Prompt, query: str, positive: str, passages: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """The values of a packed or listwise judge's inputs, and the ids by which it is asked about each passage.

    The fences of the passages are made here: a template cannot leave one out.
    """
    ids = [str(number) for number in range(1, len(passages) + 1)]
    codes = _codes(prompt.front.inputs, [query, positive], passages)
    code = next(iter(codes.values()), "") or nonce(query, positive, *passages)
    fenced = [f"=== PASSAGE {id_} {code} ===\n{text}" for id_, text in zip(ids, passages, strict=True)]
    values = {"query": query, "positive": positive, "passages": "\n".join(fenced), **codes}
    return {name: value for name, value in values.items() if name in prompt.front.inputs}, ids


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
