"""What the shell offers at TAB: stages, prompts, job files, query ids, forms of training files.

It runs at every TAB, so it imports nothing heavy: typer, which is there already, and YAML where a job file must be
read. An empty list leaves the word to the shell, which completes file names.
"""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import typer

STAGES = ("mine", "judge", "generate", "export")
SEVERITIES = ("error", "warning")
SPLITS = ("dev", "test", "all")
# The forms that `miner audit --format` knows.
FORMS = (
    *("flagembedding", "st-triplet", "st-ntuple", "st-pair", "st-list"),
    *("tevatron-legacy", "tevatron", "beir"),
)
PACKAGE = Path(__file__).resolve().parents[1]
MOST, MOST_BYTES = 200, 20_000_000


def stages(incomplete: str) -> list[str]:
    return _beginning(STAGES, incomplete)


def severities(incomplete: str) -> list[str]:
    return _beginning(SEVERITIES, incomplete)


def splits(incomplete: str) -> list[str]:
    return _beginning(SPLITS, incomplete)


def forms(incomplete: str) -> list[str]:
    return _beginning(FORMS, incomplete)


def _beginning(words: Iterable[str], incomplete: str) -> list[str]:
    return [word for word in words if word.startswith(incomplete)]


def job_files(incomplete: str) -> list[str]:
    """YAML files of the folder that the word names; [] where there is none, so that the shell offers folders."""
    head = incomplete[: len(incomplete) - len(os.path.basename(incomplete))]  # noqa: PTH119 - Path drops a last slash
    try:
        names = sorted(one.name for one in Path(head or ".").expanduser().iterdir() if one.suffix in (".yaml", ".yml"))
    except (OSError, RuntimeError):
        return []
    return _beginning((f"{head}{name}" for name in names if not name.startswith(".")), incomplete)


def prompts(incomplete: str) -> list[str]:
    """Own prompts and shipped ones: by name, and by task/name once the word has begun so."""
    shipped = PACKAGE / "_prompts"
    roots = (Path("prompts"), shipped if shipped.is_dir() else PACKAGE.parent / "prompts")
    found = sorted(
        {(task, one.stem) for root in roots for task in ("judge", "generate") for one in _files(root / task)}
    )
    whole = [f"{task}/{name}" for task, name in found]
    return _beginning(whole if "/" in incomplete else [name for _, name in found], incomplete)


def _files(folder: Path) -> list[Path]:
    return [one for one in folder.glob("*.md") if one.is_file()]


def runs(incomplete: str) -> list[str]:
    """Names of evaluated prompts, and the folders of their evaluations."""
    folders = sorted(one.parent for one in Path("prompt-runs").glob("*/summary.json"))
    return _beginning(dict.fromkeys([*prompts(incomplete), *map(str, folders)]), incomplete)


def query_ids(context: typer.Context, incomplete: str) -> list[str]:
    """Ids of the data of the job file on the line, where a text file names them; at most 200."""
    given = context.params.get("job_file")
    try:
        ids = _ids(Path(given)) if given else iter(())
        return list(islice((one for one in ids if one.startswith(incomplete)), MOST))
    except (OSError, ValueError, AttributeError, TypeError, csv.Error):
        return []  # a broken file is told of when the command runs, not at TAB


def _ids(job_file: Path) -> Iterator[str]:
    import yaml

    try:
        data = yaml.safe_load(job_file.read_text(encoding="utf-8"))["data"]
    except (yaml.YAMLError, KeyError):
        return
    path = job_file.parent / Path(data["path"]).expanduser()
    column = (data.get("columns") or {}).get("query_id")
    if path.is_dir():
        path, column = path / "queries.jsonl", "_id"
    if column is None or not path.is_file() or path.stat().st_size > MOST_BYTES:
        return
    yield from dict.fromkeys(str(row[column]) for row in _rows(path) if column in row)


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8", newline="") as handle:
        if path.suffix == ".jsonl":
            yield from (json.loads(line) for line in handle if line.strip())
        elif path.suffix in (".csv", ".tsv"):
            yield from csv.DictReader(handle, delimiter="\t" if path.suffix == ".tsv" else ",")
