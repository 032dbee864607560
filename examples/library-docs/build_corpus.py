"""Write data/corpus.jsonl: the documentation of networkx 3.4.2, one passage per object.

    python examples/library-docs/build_corpus.py

Every public documented function, class, method and property of the installed package
gives one line {"_id", "title", "text"}: its shortest public dotted name, its short name
with the signature, and the prose of its docstring (summary, description, Returns, Yields
and Notes; no parameters, examples or references), at most 900 characters. None of that text
is stored with this example; the same version of networkx always gives the same bytes.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import inspect
import json
import os
import pkgutil
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

VERSION = "3.4.2"
OUTPUT = Path(__file__).resolve().parent / "data" / "corpus.jsonl"
MIN_DOC = 40  # characters; shorter docstrings say nothing that could answer a question
MAX_TEXT = 900  # characters
KEPT_SECTIONS = {"return": "Returns", "yield": "Yields", "note": "Notes"}
UNDERLINE = re.compile(r"\s*(-{3,}|={3,}|~{3,})\s*")


def load_networkx() -> ModuleType:
    """The networkx package in the version this example was written for, or exit code 2."""
    found = "none"
    if importlib.util.find_spec("networkx") is not None:
        package = importlib.import_module("networkx")
        found = str(getattr(package, "__version__", "unknown"))
        if found == VERSION:
            return package
    print(
        f"build_corpus: needs networkx {VERSION}, found {found}; run: pip install networkx=={VERSION}",
        file=sys.stderr,
    )
    raise SystemExit(2)


def modules(package: ModuleType) -> Iterator[ModuleType]:
    """The package and its public submodules, without the tests."""
    yield package
    for info in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        parts = info.name.split(".")
        if "tests" not in parts and "conftest" not in parts and not any(p.startswith("_") for p in parts):
            yield importlib.import_module(info.name)


def is_own(value: object) -> bool:
    """True for a function or class that networkx defines; its decorated functions count."""
    kind = inspect.isclass(value) or (callable(value) and hasattr(value, "__name__"))
    return kind and str(getattr(value, "__module__", "")).split(".")[0] == "networkx"


def public_objects(package: ModuleType) -> dict[str, Any]:
    """Shortest public name -> object, every object once; its own name goes before an alias."""
    best: dict[int, tuple[tuple[int, bool, int, str], Any]] = {}
    for module in modules(package):
        names = getattr(module, "__all__", None) or list(vars(module))
        for name in names:
            value = getattr(module, name, None)
            if name.startswith("_") or not is_own(value):
                continue
            path = f"{module.__name__}.{name}"
            rank = (path.count("."), name != getattr(value, "__name__", ""), len(path), path)
            if id(value) not in best or rank < best[id(value)][0]:
                best[id(value)] = (rank, value)
    return {rank[3]: value for rank, value in best.values()}


def docstring(value: Any) -> str | None:
    """The docstring as written in the source, without what a decorator may have added."""
    return getattr(inspect.unwrap(value), "__doc__", None) or getattr(value, "__doc__", None)


def default_text(value: object) -> str:
    """A default value as source text that never holds a memory address."""
    text = repr(value)
    return str(getattr(value, "__name__", "...")) if " at 0x" in text or text.startswith("<") else text


def signature_text(function: Any, bound: bool) -> str:
    """The parameter list without annotations; a bound function loses its first parameter."""
    try:
        parameters = list(inspect.signature(inspect.unwrap(function)).parameters.values())
    except (TypeError, ValueError):
        return ""
    words: list[str] = []
    starred = False
    for parameter in parameters[1:] if bound else parameters:
        word = parameter.name
        if parameter.kind is parameter.VAR_POSITIONAL:
            word, starred = "*" + word, True
        elif parameter.kind is parameter.VAR_KEYWORD:
            word = "**" + word
        elif parameter.kind is parameter.KEYWORD_ONLY and not starred:
            words.append("*")
            starred = True
        if parameter.default is not parameter.empty:
            word += "=" + default_text(parameter.default)
        words.append(word)
    return f"({', '.join(words)})"


def members(cls: type) -> Iterator[tuple[str, str | None, str]]:
    """Public methods and properties defined in the class itself: name, docstring, signature."""
    for name, value in vars(cls).items():
        if name.startswith("_"):
            continue
        if isinstance(value, (property, functools.cached_property)):
            yield name, value.__doc__, ""
        elif isinstance(value, staticmethod):
            yield name, docstring(value.__func__), signature_text(value.__func__, bound=False)
        elif isinstance(value, classmethod):
            yield name, docstring(value.__func__), signature_text(value.__func__, bound=True)
        elif inspect.isfunction(inspect.unwrap(value)):
            yield name, docstring(value), signature_text(value, bound=True)


def sections(doc: str) -> Iterator[tuple[str, list[str]]]:
    """The numpydoc sections of a docstring: heading (empty for the opening prose), lines."""
    lines = inspect.cleandoc(doc).split("\n")
    heading, body = "", list[str]()
    for number, line in enumerate(lines):
        following = lines[number + 1] if number + 1 < len(lines) else ""
        if line.strip() and not UNDERLINE.fullmatch(line) and UNDERLINE.fullmatch(following):
            yield heading, body
            heading, body = line.strip(), []
        elif not UNDERLINE.fullmatch(line):
            body.append(line)
    yield heading, body


def paragraphs(lines: list[str]) -> list[str]:
    """Paragraphs on one line each; a doctest goes, with all that follows it in its paragraph."""
    blocks = re.split(r"\n\s*\n", "\n".join(lines))
    prose = [re.split(r"^[\s#]*>>>", block, maxsplit=1, flags=re.MULTILINE)[0] for block in blocks]
    tidy = [" ".join(block.split()) for block in prose]
    return [block for block in tidy if block]


def capped(text: str) -> str:
    """The text, cut after the last paragraph or sentence that fits."""
    if len(text) <= MAX_TEXT:
        return text
    head = text[: MAX_TEXT + 1]
    ends = [match.start() for match in re.finditer(r"\n|(?<=[.!?]) ", head)]
    cut = ends[-1] if ends else head.rfind(" ")
    return text[: cut if cut > 0 else MAX_TEXT].rstrip()


def passage_text(doc: str) -> str:
    """What a docstring says the object does, gives back and should be known for."""
    parts: list[str] = []
    for heading, lines in sections(doc):
        label = KEPT_SECTIONS.get(heading.lower().rstrip(":").removesuffix("s"), "")
        found = paragraphs(lines)
        if found and label:
            found[0] = f"{label}: {found[0]}"
        if found and (label or not heading):
            parts.extend(found)
    return capped("\n".join(parts))


def passages(package: ModuleType) -> Iterator[dict[str, str]]:
    """One passage for every public object and every member of a public class."""

    def passage(path: str, title: str, doc: str | None) -> Iterator[dict[str, str]]:
        if doc and len(inspect.cleandoc(doc)) >= MIN_DOC:
            text = passage_text(doc)
            if text:
                yield {"_id": path, "title": title, "text": text}

    for path, value in public_objects(package).items():
        name = path.rsplit(".", 1)[1]
        if not inspect.isclass(value):
            signature = signature_text(value, bound=False)
            yield from passage(path, name + signature, docstring(value))
            continue
        init = vars(value).get("__init__")
        title = name + (signature_text(init, bound=True) if init else "")
        yield from passage(path, title, vars(value).get("__doc__"))
        for member, doc, signature in members(value):
            yield from passage(f"{path}.{member}", f"{name}.{member}{signature}", doc)


def main() -> None:
    """Write the corpus in one step, so that a reader never sees half a file."""
    rows = sorted(passages(load_networkx()), key=lambda row: row["_id"])
    OUTPUT.parent.mkdir(parents=True, exist_ok=True)
    temporary = OUTPUT.with_name(f".corpus-{os.getpid()}.tmp")
    try:
        with temporary.open("w", encoding="utf-8", newline="\n") as stream:
            for row in rows:
                stream.write(json.dumps(row, ensure_ascii=False) + "\n")
        temporary.replace(OUTPUT)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    print(f"{len(rows)} passages of networkx {VERSION} -> {OUTPUT}")


if __name__ == "__main__":
    main()
