"""The README and the examples are run, so that they cannot lag behind."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import typer
import yaml

from miner import config
from miner.cli import app

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def walk(command, name=""):
    """Every command that does something, by its whole name."""
    for part, inner in getattr(command, "commands", {}).items():
        yield from walk(inner, f"{name} {part}".strip())
    if not hasattr(command, "commands"):
        yield name, command


COMMANDS = dict(walk(typer.main.get_command(app)))


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_the_manual_names_every_command_and_option():
    for name, command in COMMANDS.items():
        assert re.search(rf"`(miner )?{name}\b", README), name
        assert command.help, name
        for parameter in command.params:
            assert parameter.help or parameter.name == "help", (name, parameter.name)
            if parameter.opts[0].startswith("--") and parameter.name != "help":
                assert parameter.opts[0] in README, f"{name} {parameter.opts[0]}"


def test_every_job_file_in_the_manual_loads(tmp_path):
    (tmp_path / "faq.csv").write_text("query,positive\na,b\n")
    found = [block for block in blocks("yaml") if "data:" in block]
    assert found
    for text in found:
        (tmp_path / "faq.yaml").write_text(text)
        config.load(tmp_path / "faq.yaml")


def test_every_command_line_in_the_manual_is_one():
    lines = [line[2:].split("#")[0].split() for block in blocks("console") for line in block.splitlines()]
    called = [words[1:] for words in lines if words[:1] == ["miner"]]
    assert len(called) >= 6
    for words in called:
        name = " ".join(words[:2]) if " ".join(words[:2]) in COMMANDS else words[0]
        arguments = words[len(name.split()) :]
        options = {option for parameter in COMMANDS[name].params for option in parameter.opts}
        assert {a for a in arguments if a.startswith("-")} <= options, (name, arguments)


def test_the_mining_table_states_the_defaults():
    rows = dict(re.findall(r"^\| (`.*?`) \| (.*?) \|", README.split("| key of `mining`")[1], re.MULTILINE))
    told = {}
    for names, values in rows.items():
        for name, value in zip(names.split(", "), values.split(", "), strict=False):
            told[name.strip("`")] = value.strip("`")
    for name, field in config.Mining.model_fields.items():
        if name not in ("block", "index"):
            default = field.default[0].kind if name == "retrievers" else field.default
            shown = "none" if default is None else str(default)
            assert told[name] == shown, name


def test_the_demo_runs_offline_as_the_manual_shows(tmp_path, environment):
    folder = tmp_path / "library-docs"
    shutil.copytree(ROOT / "examples/library-docs", folder, ignore=shutil.ignore_patterns("*.job", "corpus.jsonl"))

    def call(*command: object) -> str:
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True, env=environment, timeout=400)
        assert done.returncode == 0, done.stderr
        return done.stdout

    call(sys.executable, folder / "build_corpus.py")
    summary = json.loads(call(sys.executable, "-m", "miner", "run", folder / "job.yaml", "--json"))
    assert summary["complete"]
    assert summary["warnings"] == []
    shown = call(sys.executable, folder / "measure.py")
    for line in shown.splitlines():
        # Another processor may round a score the other way, so the words are compared and not the counts.
        words = re.split(r"\d", line.rstrip())[0].strip()
        assert words in README, line
    counts = summary["steps"]["judgments"]
    assert counts["rows"] == sum(counts["status"].values())


def test_every_example_has_a_job_file_that_loads():
    jobs = sorted(ROOT.glob("examples/*/job.yaml"))
    assert jobs
    for path in jobs:
        yaml.safe_load(path.read_text(encoding="utf-8"))
        config.load(path)
