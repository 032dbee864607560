"""The README and the examples are run, so that they cannot lag behind."""

from __future__ import annotations

import ast
import importlib.util
import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from pydantic import BaseModel

from miner import config, errors, exporters
from miner.cli import app

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
# Every text for people: the manual, the examples, the benchmarks.
PAGES = {
    str(path.relative_to(ROOT)): path.read_text(encoding="utf-8")
    for path in sorted([ROOT / "README.md", *ROOT.glob("examples/*/README.md"), *ROOT.glob("tests/benchmarks/*.md")])
}


def walk(command, name=""):
    """Every command that does something, by its whole name."""
    for part, inner in getattr(command, "commands", {}).items():
        yield from walk(inner, f"{name} {part}".strip())
    if not hasattr(command, "commands"):
        yield name, command


COMMANDS = dict(walk(typer.main.get_command(app)))


def blocks(language: str, page: str = README) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page, re.DOTALL)


def table(start: str, page: str = README) -> list[list[str]]:
    """The rows of the table whose head begins so, as cells; the head and the line under it left out."""
    lines = page[page.index(f"\n{start}") + 1 :].split("\n\n")[0].splitlines()
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines[2:]]


def prose(page: str) -> str:
    """The page without its code blocks."""
    return re.sub(r"```.*?```", "", page, flags=re.DOTALL)


def test_the_manual_names_every_command_and_option():
    for name, command in COMMANDS.items():
        assert re.search(rf"`(miner )?{name}\b", README), name
        assert command.help, name
        for parameter in command.params:
            assert parameter.help or parameter.name == "help", (name, parameter.name)
            if parameter.opts[0].startswith("--") and parameter.name != "help":
                assert parameter.opts[0] in README, f"{name} {parameter.opts[0]}"


def merged(base: dict[str, Any], more: dict[str, Any]) -> dict[str, Any]:
    both = {name: merged(base[name], more[name]) for name in base.keys() & more.keys() if isinstance(more[name], dict)}
    return {**base, **more, **both}


SMALLEST = {"data": {"path": "faq.csv"}, "llm": {"model": "any"}}


@pytest.mark.parametrize("page", PAGES)
def test_every_yaml_block_is_a_job_file_or_a_part_of_one(page, tmp_path):
    (tmp_path / "faq.csv").write_text("query,positive\na,b\n")
    (tmp_path / "prompts").mkdir()
    found = blocks("yaml", PAGES[page])
    assert found or page != "README.md"
    for text in found:
        part = yaml.safe_load(text)
        whole = part if "data" in part else merged(SMALLEST, part)
        (tmp_path / "faq.yaml").write_text(yaml.safe_dump(whole))
        config.load(tmp_path / "faq.yaml")


def called(page: str) -> list[list[str]]:
    """The words behind `miner` of every command line of a page; continued lines in one, comments left out."""
    found = []
    for block in blocks("console", page):
        lines = re.sub(r"\\\n\s*", "", block).splitlines()
        for line in lines:
            words = shlex.split(line[2:], comments=True) if line.startswith("$ ") else []
            while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
                words = words[1:]
            if words and words[0].split("/")[-1] == "miner":
                found.append(words[1:])
    return found


def test_every_command_line_of_every_page_is_one():
    assert len(called(README)) >= 12
    for page, text in PAGES.items():
        for words in called(text):
            if not words or words[0].startswith("-"):
                continue
            name = " ".join(words[:2]) if " ".join(words[:2]) in COMMANDS else words[0]
            assert name in COMMANDS, (page, words)
            options = {o for p in COMMANDS[name].params for o in (*p.opts, *p.secondary_opts)} | {"--help"}
            given = {word for word in words[len(name.split()) :] if re.fullmatch(r"-[a-z]|--[a-z][a-z-]*", word)}
            assert given <= options, (page, words)


def unresolved(source: str) -> list[str]:
    """Names that a piece of Python imports and that are not there. Packages that are not installed are left out."""
    found = []
    for node in ast.walk(ast.parse(source)):
        names = {alias.name: [] for alias in node.names} if isinstance(node, ast.Import) else {}
        if isinstance(node, ast.ImportFrom) and node.module:
            names = {node.module: [alias.name for alias in node.names]}
        for module, wanted in names.items():
            if importlib.util.find_spec(module.split(".")[0]) is None:
                found += [module] if module.split(".")[0] == "miner" else []
                continue
            try:
                loaded = importlib.import_module(module)
            except ImportError:
                found.append(module)
                continue
            found += [f"{module}.{name}" for name in wanted if not _has(loaded, module, name)]
    return found


def _has(loaded: Any, module: str, name: str) -> bool:
    return hasattr(loaded, name) or importlib.util.find_spec(f"{module}.{name}") is not None


@pytest.mark.parametrize("page", PAGES)
def test_every_python_block_compiles_and_imports_what_is_there(page):
    for text in blocks("python", PAGES[page]):
        compile(text, page, "exec")
        assert unresolved(text) == []


def test_what_a_python_block_may_get_wrong_is_seen():
    assert unresolved("from miner import config, nothing") == ["miner.nothing"]
    assert unresolved("import miner.nowhere\nimport not_installed_here") == ["miner.nowhere"]
    with pytest.raises(SyntaxError):
        unresolved("for")


# What a page may name in backticks that is a path of the repository.
PATH = re.compile(r"`((?:tests|miner|examples|prompts)/[\w./*-]+)`")
LINK = re.compile(r"\]\((?!https?://|#)([^)\s]+)\)")
# Paths that stand for something of the user's own.
OWN = {"prompts/judge", "prompts/generate"}


@pytest.mark.parametrize("page", PAGES)
def test_every_path_and_relative_link_leads_somewhere(page):
    text = prose(PAGES[page])
    for name in PATH.findall(text):
        assert name in OWN or list(ROOT.glob(name.rstrip("/"))), name
    for name in LINK.findall(text):
        assert ((ROOT / page).parent / name.partition("#")[0]).exists(), name


def test_the_table_of_exit_codes_is_that_of_the_errors():
    told = {int(code): meaning for code, meaning in table("| exit code | meaning |")}
    raised = {0, 1, 3, 130}
    for path in sorted((ROOT / "miner").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "exit_code":
                raised.add(ast.literal_eval(node.value))
    assert set(told) == raised
    assert "budget" in told[errors.BudgetReached.exit_code]
    assert "provider" in told[errors.ProviderStop.exit_code]
    assert "mistake" in told[errors.UserError.exit_code]


def test_the_table_of_commands_says_what_the_help_says():
    rows = {re.match(r"`miner ([a-z ]+?)`", cells[0])[1].strip(): cells for cells in table("| command | what it does")}
    assert set(rows) == set(COMMANDS)
    for name, cells in rows.items():
        command = COMMANDS[name]
        assert cells[1] == " ".join(command.help.split("\n\n")[0].split()), name
        own = {p.opts[0] for p in command.params if p.opts[0].startswith("--")} - {"--set", "--json", "--help"}
        assert set(re.findall(r"`(--[a-z-]+)`", cells[2] if len(cells) > 2 else "")) == own, name


def test_the_table_of_formats_names_those_that_are_registered():
    named = [re.findall(r"`([^`]+)`", cells[0]) for cells in table("| format | file | form |") if "`" in cells[0]]
    assert sorted(name for names in named for name in names) == sorted(exporters.FORMATS)
    assert set(config.Export.model_fields["formats"].annotation.__args__[0].__args__) == set(exporters.FORMATS)


def is_key(trail: list[str], model: type[BaseModel] = config.Job) -> bool:
    """Does a key of the job file stand there? Numbers are places in lists."""
    for part in trail:
        if part.isdigit():
            continue
        if not isinstance(model, type) or not issubclass(model, BaseModel) or part not in model.model_fields:
            return False
        kinds = _models(model.model_fields[part].annotation)
        model = kinds[0] if kinds else str  # type: ignore[assignment]
    return True


def _models(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for one in getattr(annotation, "__args__", ()) for model in _models(one)]


@pytest.mark.parametrize("page", PAGES)
def test_every_key_that_a_page_names_is_one(page):
    """`mining.depth` and the like, with or without a value; and what `--set` sets."""
    sections = "|".join(config.Job.model_fields)
    text = PAGES[page]
    named = re.findall(rf"`((?:{sections})(?:\.[a-z_0-9]+)+)[`:=]", text)
    named += re.findall(r"--set ([a-z_.0-9]+)=", text)
    files = ("yaml", "jsonl", "parquet", "md", "json", "npy", "csv", "job", "lock", "sqlite", "faiss", "tsv", "py")
    for name in named:
        if name.rpartition(".")[2] not in files and name != "key.sub":
            assert is_key(name.split(".")), (page, name)
    assert not is_key(["mining", "deep"])
    assert is_key(["judge", "rungs", "0", "prompt"])


def test_keys_of_the_tables_are_those_of_the_sections():
    for section in ("mining", "filters"):
        found = {name for cells in table(f"| key of `{section}`") for name in re.findall(r"`([a-z_]+)`", cells[0])}
        assert found
        assert found <= set(getattr(config, section.title()).model_fields), section


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
