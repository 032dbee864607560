"""Prompts on disk: which there are, which versions were used and where their texts are kept, and what is odd in one.

OWN/judge/NAME.md, OWN/generate/NAME.md    a user's own prompts; they come before the shipped ones
OWN/prompts.lock, OWN/prompts/VERSION.md   versions that were promoted, and those that they replaced
JOB/prompts.lock, JOB/prompts/VERSION.md   versions that a job used, each with its full text
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

import yaml

from miner import prompts, store
from miner.errors import UserError
from miner.prompts import Prompt, Task

LOCK, COPIES = "prompts.lock", "prompts"
SENTENCE = re.compile(r"(?<=[.!?]) (?=\S)")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
# Static text shorter than this behind a variable is a fence or a heading, and worth no cache.
LONG_STATIC = 200
UNTRUSTED = ("query", "positive", "passage", "near_miss")


# ---------------------------------------------------------------- find and list


class Entry(NamedTuple):
    """A prompt file. origin: own or shipped; hidden: an own prompt of this name comes first; error: it is faulty."""

    task: Task
    name: str
    origin: str
    path: Path
    prompt: Prompt | None
    hidden: bool = False
    error: str = ""


def own_folder(given: Path | None) -> Path | None:
    """The folder named by the user, else `prompts` in the working directory where there is one."""
    if given is not None:
        return given
    here = Path(COPIES)
    return here if any((here / task).is_dir() for task in prompts.TASKS) else None


def listing(own: Path | None) -> list[Entry]:
    """Every prompt, judges first, by name; of one name the own one first."""
    found = []
    for task in prompts.TASKS:
        mine = _entries(own, task, "own") if own and own.resolve() != prompts.SHIPPED.resolve() else []
        names = {entry.name for entry in mine}
        shipped = [entry._replace(hidden=entry.name in names) for entry in _entries(prompts.SHIPPED, task, "shipped")]
        found += sorted(mine + shipped, key=lambda entry: (entry.name, entry.hidden))
    return found


def _entries(root: Path, task: Task, origin: str) -> list[Entry]:
    return [_entry(task, origin, path) for path in sorted((root / task).glob("*.md"))]


def _entry(task: Task, origin: str, path: Path) -> Entry:
    try:
        return Entry(task, path.stem, origin, path, prompts.parse_file(path, task))
    except UserError as error:
        return Entry(task, path.stem, origin, path, None, error=str(error))


def find(name: str, own: Path | None, task: Task | None = None) -> Prompt:
    """A prompt by name, by task/name where both tasks have the name, or by path. Raises UserError."""
    if name.endswith(".md"):
        return prompts.parse_file(Path(name), task)
    found = places(name, own, task)
    tasks = [one for one in prompts.TASKS if one in {path.parent.name for path in found}]
    if len(tasks) > 1:
        raise UserError(f"prompt {name}: there is a judge and a generator of that name; write judge/{name} or so")
    return prompts.load(tasks[0], found[0].stem, own)


def places(name: str, own: Path | None, task: Task | None = None) -> list[Path]:
    """The file of a prompt as `find` takes it, perhaps a faulty one; one of each task where both have the name.

    Raises UserError where there is none.
    """
    if name.endswith(".md"):
        if not Path(name).is_file():
            raise UserError(f"{name}: no such prompt file; check the path")
        return [Path(name)]
    head, slash, tail = name.partition("/")
    wanted = [one for one in prompts.TASKS if task in (None, one) and (not slash or one == head)]
    short = tail if slash else name
    roots = [root for root in (own, prompts.SHIPPED) if root]
    by_task = [[path for root in roots if (path := root / one / f"{short}.md").is_file()] for one in wanted]
    if found := [paths[0] for paths in by_task if paths]:
        return found
    known = sorted({entry.name for entry in listing(own) if entry.task in wanted})
    close = difflib.get_close_matches(short, known, n=1)
    raise UserError(
        f"prompt {name!r}: no such {' or '.join(wanted) or 'task'} prompt; "
        + (f"did you mean {close[0]}?" if close else f"there are {', '.join(known)}")
    )


# ---------------------------------------------------------------- write


def new(name: str, origin: Prompt, own: Path) -> Path:
    """Copy a prompt under a new name into the own folder, with where it came from as its parent. Raises UserError."""
    path = own / origin.front.task / f"{checked_name(name)}.md"
    if path.exists():
        raise UserError(f"{path}: exists already; take another name, or edit that file")
    text = renamed(origin.text, name, f"{origin.front.name}@{origin.version}")
    prompts.parse(text, path)
    store.write_text(path, text)
    return path


def checked_name(name: str) -> str:
    if not NAME.fullmatch(name) or name.endswith(".md"):
        raise UserError(f"prompt name {name!r}: a file name without .md: letters, digits, '-', '_', '.'")
    return name


def renamed(text: str, name: str, parent: str) -> str:
    """The text of a prompt with another name and parent in its front matter; all else stays to the letter."""
    opening, head, body = text.split("---\n", 2)
    lines = [line for line in head.splitlines() if not line.startswith("parent:")]
    place = next((at for at, line in enumerate(lines) if line.startswith("name:")), None)
    if place is None:
        raise UserError(f"prompt {name}: the front matter has no line `name: …` of its own; write one")
    written = name if yaml.safe_load(name) == name else json.dumps(name)  # true and null are words of YAML
    lines[place : place + 1] = [f"name: {written}"] + ([f'parent: "{parent}"'] if parent else [])
    return "---\n".join([opening, "\n".join(lines) + "\n", body])


def stem(prompt: Prompt) -> str:
    """The name that a prompt would take over: that of its parent, else its own."""
    return prompt.front.parent.partition("@")[0] or prompt.front.name


def promote(prompt: Prompt, name: str, own: Path) -> Path:
    """Make `prompt` what `name` means: write it there, pin it and the version that it replaces. Raises UserError."""
    task = prompt.front.task
    path = own / task / f"{checked_name(name)}.md"
    parent = prompt.front.parent
    if any((root / task / f"{name}.md").is_file() for root in (own, prompts.SHIPPED)):
        before = prompts.load(task, name, own)
        pin(own, before)
        parent = parent if before.version == prompt.version else f"{name}@{before.version}"
    text = prompt.text if prompt.front.name == name else renamed(prompt.text, name, parent)
    now = prompts.parse(text, path, task)
    if not path.is_file() or path.read_text(encoding="utf-8") != text:
        store.write_text(path, text)
    pin(own, prompt)
    pin(own, now)
    return path


# ---------------------------------------------------------------- the lock


def pin(folder: Path, prompt: Prompt) -> None:
    """Write down in folder/prompts.lock which version is used, with a copy of its text in folder/prompts/.

    The latest use of a name stands last. Pinning the same version again changes no byte.
    """
    entry = {
        "task": prompt.front.task,
        "name": prompt.front.name,
        "version": prompt.version,
        "label": prompt.front.version,
        "parent": prompt.front.parent,
        "path": _shown_path(prompt),
    }
    copy = folder / COPIES / f"{prompt.version}.md"
    if not copy.is_file():
        store.write_text(copy, prompt.text)
    before = read_lock(folder)
    named = [one for one in before if (one["task"], one["name"]) == (entry["task"], entry["name"])]
    if not named or named[-1] != entry:
        store.write_json(folder / LOCK, {"prompts": [one for one in before if one != entry] + [entry]})


def _shown_path(prompt: Prompt) -> str:
    """Shipped prompts by their place among the shipped ones, so that a lock says the same on every machine."""
    path = prompt.path
    if path is not None and path.resolve().is_relative_to(prompts.SHIPPED.resolve()):
        return f"shipped:{path.resolve().relative_to(prompts.SHIPPED.resolve()).as_posix()}"
    return str(path or "")


def read_lock(folder: Path) -> list[dict[str, Any]]:
    """The entries of folder/prompts.lock in the order of first use; [] where there is none. Raises UserError."""
    path = folder / LOCK
    if not path.is_file():
        return []
    try:
        entries: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))["prompts"]
        if all({"task", "name", "version", "parent"} <= entry.keys() for entry in entries):
            return entries
    except (ValueError, KeyError, TypeError, AttributeError):
        pass
    raise UserError(f"{path}: not a lock of prompts; restore it, or delete it: the next run writes it anew")


def pinned(folder: Path, version: str) -> Prompt | None:
    """The text kept under a version, or None."""
    path = folder / COPIES / f"{version}.md"
    return prompts.parse_file(path) if path.is_file() else None


# ---------------------------------------------------------------- history


class Version(NamedTuple):
    """A version of a prompt, and where its text is kept: own, shipped, or a folder with a lock or a run."""

    prompt: Prompt
    where: tuple[str, ...]


def history(name: str, own: Path | None, folders: Iterable[Path], task: Task | None = None) -> list[Version]:
    """The versions of a prompt whose texts are known: the present one, its parents, then the others of that name.

    folders: of jobs and runs; each may hold copies in prompts/ or a prompt.md.
    """
    now = find(name, own, task)
    known: dict[str, tuple[Prompt, dict[str, None]]] = {}
    for where, prompt in [("now", now), *_kept(now.front.task, own, folders)]:
        known.setdefault(prompt.version, (prompt, {}))[1][where] = None
    order = list(_line(now, {version: prompt for version, (prompt, _) in known.items()}))
    order += [v for v, (prompt, _) in known.items() if v not in order and prompt.front.name == now.front.name]
    return [Version(known[version][0], tuple(known[version][1])) for version in order]


def _kept(task: Task, own: Path | None, folders: Iterable[Path]) -> Iterator[tuple[str, Prompt]]:
    for entry in listing(own):
        if entry.prompt is not None and entry.task == task:
            yield entry.origin, entry.prompt
    for folder in [*([own] if own else []), *folders]:
        for path in [*sorted((folder / COPIES).glob("*.md")), folder / "prompt.md"]:
            if path.is_file() and (prompt := prompts.parse_file(path)).front.task == task:
                yield str(folder), prompt


def _line(prompt: Prompt, known: dict[str, Prompt]) -> Iterator[str]:
    """The versions from a prompt back through its parents, as far as their texts are known."""
    seen: dict[str, None] = {}
    at: Prompt | None = prompt
    while at is not None and at.version not in seen:
        seen[at.version] = None
        yield at.version
        at = known.get(at.front.parent.partition("@")[2])


def text_diff(first: Prompt, second: Prompt) -> list[str]:
    """A unified diff of two prompts' texts, sentence by sentence; [] where they are the same."""
    one, two = (f"{prompt.front.name}@{prompt.version}" for prompt in (first, second))
    return list(difflib.unified_diff(_sentences(first.text), _sentences(second.text), one, two, "", "", 1, ""))


def _sentences(text: str) -> list[str]:
    """Paragraphs of prompts are long lines; each sentence gets its own, so that a diff shows the one that changed."""
    return [part for line in text.splitlines() for part in SENTENCE.split(line)]


# ---------------------------------------------------------------- lint


class Finding(NamedTuple):
    level: Literal["error", "warning"]
    message: str


def lint(path: Path) -> list[Finding]:
    """What is wrong or unwise in a prompt file, errors first."""
    try:
        prompt = prompts.parse_file(path)
    except UserError as error:
        return [Finding("error", str(error).removeprefix(f"{path}: "))]
    found = [*_fence_findings(prompt), *_order_findings(prompt), *_sampling_findings(prompt), *_schema_findings(prompt)]
    if prompt.front.name != path.stem and path.parent.name != COPIES:
        found.append(Finding("warning", f"the file is {path.stem}.md, but the name is {prompt.front.name}"))
    return sorted(found, key=lambda one: one.level)


def _fence_findings(prompt: Prompt) -> Iterator[Finding]:
    """Each untrusted text must stand between two lines that hold the code which it cannot know."""
    for order in range(1, prompt.orders + 1):
        yield from _fences_of(prompt, order)


def _fences_of(prompt: Prompt, order: int) -> Iterator[Finding]:
    code = "0123abcdef"
    values: dict[str, Any] = {name: f"<<{name}>>" for name in prompt.front.inputs}
    values |= dict.fromkeys(prompts.CODES, code) | {"order": order}
    if "passages" in values:
        values["passages"] = f"=== PASSAGE 1 {code} ===\n<<passage>>"
    try:
        system, user = (message["content"] for message in prompt.messages(**values))
    except UserError as error:
        yield Finding("error", str(error))
        return
    for name in UNTRUSTED:
        mark = f"<<{name}>>"
        if mark in system:
            yield Finding("error", f"{name} stands in the system part, where a text can give orders; move it to # user")
        first, last = user.find(mark), user.rfind(mark)
        if first >= 0 and not (code in user[:first] and code in user[last:]):
            yield Finding("error", f"{name} has no fence: put a line with {{{{ nonce }}}} before it and one behind it")


def _order_findings(prompt: Prompt) -> Iterator[Finding]:
    """Servers reuse what they computed for the same beginning, so what never changes comes first."""
    if any(kind != "data" for _, kind, _ in prompts.TEMPLATES.lex(prompt.system)):
        yield Finding("warning", "a variable in the system part: no two requests begin alike, and no cache helps")
    variable, static = False, 0
    for _, kind, value in prompts.TEMPLATES.lex(prompt.user):
        variable |= kind == "variable_begin"
        static += len(value.strip()) if kind == "data" and variable and len(value) >= LONG_STATIC else 0
    if static:
        yield Finding("warning", f"{static} characters of fixed text stand behind a variable; move them to # system")
    last = "passages" if "passages" in prompt.front.inputs else "passage"
    if prompt.front.task == "judge":
        used = dict.fromkeys(re.findall(r"{{\s*(\w+)\s*}}", prompt.user))  # a text may stand behind it once more
        if [name for name in used if name not in prompts.NO_TEXT][-1:] != [last]:
            yield Finding("warning", f"{last} does not come last; requests of one query then share less")


def _sampling_findings(prompt: Prompt) -> Iterator[Finding]:
    sampling, judge = prompt.front.sampling, prompt.front.task == "judge"
    if judge and sampling.get("temperature") != 0:
        yield Finding("warning", "temperature is not 0: the judge will not answer the same twice")
    limit = sampling.get("max_tokens") or sampling.get("max_completion_tokens")
    if limit is None:
        yield Finding("warning", "no max_tokens: an answer has no largest cost, and a budget refuses the prompt")
    if judge and prompt.mode == "binary":
        if not sampling.get("logprobs") or not sampling.get("top_logprobs"):
            yield Finding("error", "a binary judge is read by log probabilities; set logprobs: true, top_logprobs: 10")
        if limit is not None and limit > 2:
            yield Finding("warning", f"max_tokens is {limit}, but only the first token is read")


def _schema_findings(prompt: Prompt) -> Iterator[Finding]:
    schema = prompt.front.answer_schema
    if not schema:
        return
    items = (schema["properties"].get("answers") or {}).get("items")
    for where, rules in (("the schema", schema), *([("an entry", items)] if isinstance(items, dict) else [])):
        names = list(rules.get("properties", {}))
        if list(rules.get("required", [])) != names or rules.get("additionalProperties") is not False:
            yield Finding(
                "warning", f"{where}: strict servers want every property in `required` and additionalProperties: false"
            )
        graded = next((name for name in ("grade", "relation") if name in names), None)
        if graded and "evidence" in names and names.index("evidence") > names.index(graded):
            yield Finding("warning", f"{where}: evidence comes behind {graded}, so it cannot inform it; put it first")
