"""Read a job file, with a one-line error for whatever is wrong in it."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from miner import yaml_file
from miner.config.base import ENV, Model
from miner.config.job import Job
from miner.config.llm import Endpoint, Generator, Judge, Rung
from miner.config.mining import Retriever
from miner.errors import UserError
from miner.yaml_file import Trail


def load(path: Path, overrides: list[str] | None = None) -> Job:
    """Read a job file. Paths inside come back absolute.

    overrides: `key.sub=value` items, the value read as YAML. Raises UserError.
    """
    raw, lines = yaml_file.read(path)
    given = dict(_override(raw, item) for item in overrides or [])
    places = {trail: f"{path}:{line}" for trail, line in lines.items()} | given
    _refuse_env(raw, str(path), places)
    try:
        job = Job.model_validate(raw)
    except ValidationError as error:
        raise UserError(_explain(error, str(path), places)) from None
    return _absolute(job, path)


def _override(raw: dict[str, Any], item: str) -> tuple[Trail, str]:
    """Put `key.sub=value` in; the key's path, and what to call the place. Never shows the value: it may be a key."""
    dotted, equals, value = item.partition("=")
    place = f"--set {re.match(r'[^=: ]*', item).group()}"  # type: ignore[union-attr]
    *parents, last = dotted.strip().split(".")
    if not equals or not all([*parents, last]):
        raise UserError(f"{place}: write key=value, for example mining.depth=200")
    node = raw
    for key in parents:
        if node.get(key) is None:
            node[key] = {}
        node = node[key]
        if not isinstance(node, dict):
            raise UserError(f"{place}: {key} is a value, not a section; name the key alone")
    try:
        node[last] = yaml.safe_load(value)
    except (yaml.YAMLError, ValueError):
        node[last] = value
    return (*parents, last), place


def _refuse_env(node: Any, file: str, places: dict[Trail, str], trail: Trail = ()) -> None:
    if isinstance(node, dict | list):
        for key, value in node.items() if isinstance(node, dict) else enumerate(node):
            _refuse_env(value, file, places, (*trail, str(key)))
    elif isinstance(node, str) and ENV.search(node) and trail[-1] != "api_key":
        raise UserError(
            f"{_place(trail, file, places)}: {'.'.join(trail)}: ${{NAME}} is for secrets (api_key) only;"
            " write the value"
        )


def _place(trail: Trail, file: str, places: dict[Trail, str]) -> str:
    """Where the key, or the nearest section around it, was written: a line of the file, or an option."""
    return next((places[trail[:n]] for n in range(len(trail), 0, -1) if trail[:n] in places), file)


def _explain(error: ValidationError, file: str, places: dict[Trail, str]) -> str:
    first = min(error.errors(), key=lambda e: e["type"] != "extra_forbidden")  # a slip may be why another key lacks
    trail = tuple(str(part) for part in first["loc"])
    place = _place(trail, file, places)
    if first["type"] == "extra_forbidden":
        known = _known_keys(trail[:-1])
        close = difflib.get_close_matches(trail[-1], known, n=1)
        hint = f"did you mean {close[0]}?" if close else f"the keys here are {', '.join(known)}"
        return f"{place}: unknown key {'.'.join(trail)}; {hint}"
    if first["type"] == "model_type":
        return f"{place}: {'.'.join(trail)}: a section, so keys with values go here, and not a value alone"
    message = first["msg"].removeprefix("Value error, ")
    value = first.get("input")
    given = f" (given: {value!r})" if isinstance(value, str | int | float | bool) and trail[-1:] != ("api_key",) else ""
    more = error.error_count() - 1
    return f"{place}: {'.'.join(trail) or 'job'}: {message}{given}" + (f" (and {more} more)" if more else "")


def _known_keys(trail: Trail) -> list[str]:
    model: type[BaseModel] = Job
    for part in trail:
        if part.isdigit():
            continue  # the place in a list, whose items are of one model
        annotation = model.model_fields[part].annotation
        options = getattr(annotation, "__args__", (annotation,))
        model = next((o for o in options if isinstance(o, type) and issubclass(o, BaseModel)), Job)
    return sorted(model.model_fields)


def _files(llm: Endpoint, local: Callable[..., str | None]) -> dict[str, str | None]:
    found = {name: local(getattr(llm, name), must_exist=False) for name in ("answers", "prices")}
    kept = ("tokenizer", "model") if llm.backend == "vllm" else ("tokenizer",)
    return found | {name: local(getattr(llm, name)) for name in kept}


def _absolute(job: Job, file: Path) -> Job:  # noqa: C901 - one small function for each kind of path
    """Resolve relative paths against the job file's folder; `package:` and hub ids stay as they are."""
    base = file.resolve().parent

    def local(value: str | None, must_exist: bool = True) -> str | None:
        if value is None or value.startswith("package:") or "://" in value:
            return value
        try:
            path = base / Path(value).expanduser()
        except RuntimeError:
            raise UserError(f"{file}: {value}: no such user's home; write the whole path") from None
        if path.exists() or not must_exist:
            return str(path)
        if Path(value).exists():
            raise UserError(f"{file}: {value} is in the working directory, but paths count from the job file: {path}")
        return value

    def stage(name: str) -> Model:
        """A prompt by name stays a name; one by file is looked for beside the job file first."""
        section: Judge | Generator = getattr(job, name)
        more = judge(section) if isinstance(section, Judge) else {}
        return section.model_copy(update={**asked(section), **more})

    def asked(section: Judge | Generator | Rung) -> dict[str, Any]:
        prompt = local(section.prompt) if section.prompt.endswith(".md") else section.prompt
        return {"prompt": prompt, "llm": endpoint(section.llm)}

    def judge(section: Judge) -> dict[str, Any]:
        canaries = section.canaries.model_copy(update={"golden": local(section.canaries.golden, must_exist=False)})
        return {"rungs": tuple(r.model_copy(update=asked(r)) for r in section.rungs), "canaries": canaries}

    def endpoint(llm: Endpoint | None) -> Endpoint | None:
        return llm and llm.model_copy(update=_files(llm, local))

    def retriever(one: Retriever) -> Retriever:
        return one.model_copy(update={"file": local(one.file, must_exist=False)})

    named = ("model", "onnx_file", "tokenizer_file") if not job.encoder.remote else ()
    encoder = {name: local(getattr(job.encoder, name)) for name in named}
    encoder |= {name: local(getattr(job.encoder, name)) for name in ("passages_file", "queries_file")}
    walls = tuple(w.model_copy(update={"path": local(w.path, must_exist=False)}) for w in job.data.firewall)
    data = {"path": local(job.data.path), "corpus": local(job.data.corpus, must_exist=False), "firewall": walls}
    own = local(job.prompts, must_exist=False)
    if own is not None and not Path(own).is_dir():
        raise UserError(f"{file}: prompts: {own}: no such folder; make it, or leave the key out")
    return job.model_copy(
        update={
            "data": job.data.model_copy(update=data),
            "encoder": job.encoder.model_copy(update=encoder),
            "llm": endpoint(job.llm),
            "judge": stage("judge"),
            "generator": stage("generator"),
            "job": local(job.job, must_exist=False) or str(base / f"{file.stem}.job"),
            "mining": job.mining.model_copy(update={"retrievers": tuple(map(retriever, job.mining.retrievers))}),
            "teacher": job.teacher and job.teacher.model_copy(update={"model": local(job.teacher.model)}),
            "previous": local(job.previous, must_exist=False),
            "vector_cache": local(job.vector_cache, must_exist=False),
            "prompts": own,
        }
    )
