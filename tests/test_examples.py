"""Every example is run as its README shows it: each `$ miner …` line in a copy of the folder, offline.

A line says its exit code as `# exit code N` where it is not 0. What is shown below a line must come out, words and
order; counts may differ, since another processor may round a score of the int8 encoder the other way. A line of `…`
stands for what is left out. `python tests/test_examples.py` writes what comes out now into the READMEs.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import pyarrow.parquet as pq
import pytest

from miner import config

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = sorted(path.parent for path in ROOT.glob("examples/*/README.md"))
LEFT_OUT = "…"
BLOCK = re.compile(r"```console\n(.*?)```", re.DOTALL)


class Call(NamedTuple):
    """A line of a README: the arguments of miner, the exit code, and the lines shown."""

    line: str
    arguments: list[str]
    code: int
    shown: list[str]


def calls(block: str) -> list[Call]:
    """The commands of a console block, those of miner with their arguments, others with none."""
    found: list[Call] = []
    for line in block.splitlines():
        if line.startswith("$ "):
            command, _, comment = line[2:].partition("#")
            words = shlex.split(command)
            code = re.search(r"exit code (\d+)", comment)
            found.append(Call(line, words[1:] if words[:1] == ["miner"] else [], int(code[1]) if code else 0, []))
        elif found:
            found[-1].shown.append(line)
    return found


def copied(example: Path, to: Path) -> Path:
    ignored = shutil.ignore_patterns("*.job", "prompt-runs", "__pycache__")
    return Path(shutil.copytree(example, to / example.name, ignore=ignored))


def run(call: Call, folder: Path, environment: dict[str, str]) -> str:
    """What the line prints, results and errors, progress left out."""
    path = os.pathsep.join(filter(None, [str(ROOT), environment.get("PYTHONPATH", "")]))
    done = subprocess.run(
        [sys.executable, "-m", "miner", *call.arguments],
        cwd=folder,
        env={**environment, "PYTHONPATH": path, "COLUMNS": "100"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == call.code, (call.line, done.stdout, done.stderr)
    errors = [line for line in done.stderr.splitlines() if line.startswith("miner: ")]
    lines = [*(line.rstrip() for line in done.stdout.splitlines()), *errors]
    return "\n".join(lines).replace(f"{folder}{os.sep}", "")


def words(text: str) -> str:
    return " ".join(re.findall(r"[^\W\d_]+", text))


# Every run of the tests takes two of them; all are in `make test-all`.
QUICK = ("faq-chatbot", "prompt-iteration")
TOLD = [
    pytest.param(path, marks=() if path.name in QUICK else pytest.mark.slow, id=path.name)
    for path in EXAMPLES
    if path.name != "library-docs"  # tests/test_docs.py runs the demo
]


@pytest.mark.parametrize("example", TOLD)
def test_an_example_does_what_its_readme_shows(example, tmp_path, environment):
    readme = (example / "README.md").read_text(encoding="utf-8")
    todo = [call for block in BLOCK.findall(readme) for call in calls(block) if call.arguments]
    assert len(todo) >= 2
    assert any(call.shown for call in todo)
    folder = copied(example, tmp_path)
    for call in todo:
        printed, at = words(run(call, folder, environment)), 0
        for line in call.shown:
            found = printed.find(words(line), at)
            assert found >= 0, (call.line, line, printed)
            at = found
    assert any(folder.glob("*.job/export/README.md")) or any(folder.glob("prompt-runs/*/summary.json"))
    if example.name == "chinese-hybrid":
        found_by_words(folder)


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.name)
def test_an_example_is_whole(example):
    """A README of one screen that names each of its files, a commented job file, and outputs that git leaves alone."""
    readme = (example / "README.md").read_text(encoding="utf-8")
    assert len(readme.splitlines()) <= 75
    for path in example.glob("*.yaml"):
        config.load(path)
        assert path.read_text(encoding="utf-8").count("#") >= 2
    for path in example.iterdir():
        if path.suffix != ".job" and path.name not in ("README.md", ".gitignore", "prompt-runs", "__pycache__"):
            assert f"`{path.name}" in readme, path.name
    assert "*.job/" in (example / ".gitignore").read_text(encoding="utf-8").split()


def test_the_examples_are_five_and_more():
    assert len(EXAMPLES) >= 6
    assert {path.parent for path in ROOT.glob("examples/*/job.yaml")} == set(EXAMPLES)


def positives(folder: Path, retriever: str) -> int:
    """Queries whose positive is the first of a retriever's list."""
    rows = [row for part in folder.glob("job.job/candidates/part-*") for row in pq.read_table(part).to_pylist()]
    firsts = [row["found_by"] for row in rows if row["reason"] == "positive"]
    return sum({"retriever": retriever, "rank": 1}.items() <= one.items() for found in firsts for one in found)


def found_by_words(folder: Path) -> None:
    """What the example says: the English encoder is of little use there, and words carry the search."""
    queries = len((folder / "data/queries.jsonl").read_text(encoding="utf-8").splitlines())
    assert positives(folder, "bm25") >= 0.8 * queries
    assert positives(folder, "dense") <= 0.4 * queries
    corpus = (folder / "data/corpus.jsonl").read_text(encoding="utf-8").splitlines()
    assert len({json.loads(line)["text"] for line in corpus}) >= 60


# ---------------------------------------------------------------- writing the READMEs anew


def refreshed(block: str, folder: Path, environment: dict[str, str]) -> str:
    """The block with what its lines print now; where `…` stands, as many lines before and behind it as there are."""
    lines: list[str] = []
    for call in calls(block):
        lines.append(call.line)
        shown = call.shown
        if call.arguments:
            printed = run(call, folder, environment).splitlines()
            if LEFT_OUT in shown:
                at = shown.index(LEFT_OUT)
                shown = [*printed[:at], LEFT_OUT, *printed[len(printed) - (len(shown) - at - 1) :]]
            elif shown:
                shown = printed
        lines += shown
    return "```console\n" + "".join(f"{line}\n" for line in lines) + "```"


def main() -> None:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    for example in EXAMPLES:
        if example.name in sys.argv[1:] or (len(sys.argv) == 1 and example.name != "library-docs"):
            with tempfile.TemporaryDirectory() as name:
                folder, path = copied(example, Path(name)), example / "README.md"
                text = path.read_text(encoding="utf-8")
                text = BLOCK.sub(lambda one, folder=folder: refreshed(one[1], folder, environment), text)
                path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
