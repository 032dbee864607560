"""Shell completion: the protocol as a shell speaks it, a real bash, and nothing heavy at TAB."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pexpect
import pytest
from test_floors import HEAVY

from miner import defects, engine, forms, golden, prompt_files
from miner.commands import complete

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def tab(environment, tmp_path):
    """tab("miner run --until ") -> the words that bash is offered, in a folder with a job and an own prompt."""
    (tmp_path / "jobs").mkdir()
    (tmp_path / "faq.yaml").write_text("data: {path: faq.csv, columns: {query_id: id}}\n")
    (tmp_path / "faq.csv").write_text("id,query,positive\nq-1,a,b\nq-2,c,d\nr-1,e,f\n")
    (tmp_path / "prompts" / "judge").mkdir(parents=True)
    (tmp_path / "prompts" / "judge" / "grave.md").write_text("")
    (tmp_path / "prompt-runs" / "a-b").mkdir(parents=True)
    (tmp_path / "prompt-runs" / "a-b" / "summary.json").write_text("{}")

    def call(line: str, shell: str = "bash", code: tuple[str, ...] = ("-m", "miner")) -> list[str]:
        words = line.split(" ")
        env = {"COMP_WORDS": line, "COMP_CWORD": str(len(words) - 1), "_TYPER_COMPLETE_ARGS": line}
        env |= {"_MINER_COMPLETE": f"complete_{shell}", "_TYPER_COMPLETE_FISH_ACTION": "get-args"}
        path = os.pathsep.join(filter(None, [str(ROOT), environment.get("PYTHONPATH", "")]))
        done = subprocess.run(
            [sys.executable, *code],
            env={**environment, **env, "PYTHONPATH": path},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
        assert done.stderr == ""
        return done.stdout.split()

    return call


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("miner ru", ["run"]),
        ("miner run --unt", ["--until"]),
        ("miner run --until ", ["mine", "judge", "generate", "export"]),
        ("miner run ", ["faq.yaml"]),
        ("miner run fa", ["faq.yaml"]),
        ("miner run jo", []),
        ("miner prompt show gra", ["graded", "grave"]),
        ("miner prompt show judge/b", ["judge/binary"]),
        ("miner prompt new x --from count", ["counterfactual"]),
        ("miner prompt diff graded prompt-", ["prompt-runs/a-b"]),
        ("miner prompt eval graded --split d", ["dev"]),
        ("miner audit --format st-", ["st-triplet", "st-ntuple", "st-pair", "st-list"]),
        ("miner audit --fail-on ", ["error", "warning"]),
        ("miner inspect faq.yaml q", ["q-1", "q-2"]),
        ("miner inspect none.yaml q", []),
        ("miner doctor f", ["faq.yaml"]),
    ],
)
def test_bash_is_offered(tab, line, offered):
    assert tab(line) == offered


def test_zsh_and_fish_are_offered_the_same(tab):
    assert tab("miner run --until ", "fish") == ["mine", "judge", "generate", "export"]
    assert '"graded"' in " ".join(tab("miner prompt show grad", "zsh"))


def test_nothing_heavy_is_imported_at_tab(tab):
    """And so it is quick. Processor time counts: the machine may be busy."""
    ask = "import atexit, sys, miner.cli; atexit.register(lambda: print('LOADED', *sys.modules)); miner.cli.main()"
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    words = tab("miner prompt show ", code=("-c", ask))
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    loaded = {name.split(".")[0] for name in words[words.index("LOADED") + 1 :]}
    assert "graded" in words
    # pydantic is not among them: typer's newer versions read arguments with it.
    assert not loaded & (HEAVY | {"pyarrow", "numpy", "scipy", "sklearn", "jinja2", "yaml"})
    assert (after.ru_utime + after.ru_stime) - (before.ru_utime + before.ru_stime) < 0.6


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash here")
def test_a_real_bash_completes(environment, tmp_path):
    (tmp_path / "harbour.yaml").write_text("")
    script = tmp_path / "bin" / "miner"
    script.parent.mkdir()
    script.write_text(f'#!/bin/sh\nexec {sys.executable} -m miner "$@"\n')
    script.chmod(0o755)
    env = {**environment, "PATH": f"{script.parent}:{os.environ['PATH']}", "TERM": "dumb"}
    env["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), environment.get("PYTHONPATH", "")]))
    shell = pexpect.spawn(
        "bash", ["--norc", "--noprofile", "-i"], env=env, cwd=str(tmp_path), encoding="utf-8", timeout=60
    )
    try:
        shell.sendline("PS1='READY> '; bind 'set bell-style none'; bind 'set enable-bracketed-paste off'")
        shell.sendline('eval "$(miner --show-completion bash)"; echo D""ONE')
        shell.expect("DONE\r\n")
        for typed, completed in (("miner run --unt\tmi\t", "--until mine "), ("miner status har\t", "harbour.yaml ")):
            shell.send(f"{typed}\x01echo '\x05' END\n")
            shell.expect_exact(completed)
            shell.expect("END")
    finally:
        shell.close(force=True)


def test_forms_stages_splits_and_severities_are_those_of_the_program():
    assert complete.FORMS == forms.FORMS
    assert tuple(engine.LAST) == complete.STAGES
    assert (*golden.SPLITS, "all") == complete.SPLITS
    assert set(complete.SEVERITIES) == set(defects.SEVERITIES) - {"info"}


def test_prompts_are_those_that_are_listed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prompts" / "judge").mkdir(parents=True)
    (tmp_path / "prompts" / "judge" / "grave.md").write_text("")
    listed = {f"{one.task}/{one.name}" for one in prompt_files.listing(prompt_files.own_folder(None))}
    assert "judge/grave" in listed
    assert {one for task in ("judge/", "generate/") for one in complete.prompts(task)} == listed


def test_query_ids_of_every_text_file_and_of_broken_ones(tmp_path):
    def ids(data: object, incomplete: str = "") -> list[str]:
        path = tmp_path / "job.yaml"
        path.write_text(json.dumps({"data": data}) if not isinstance(data, str) else data)
        return complete.query_ids(SimpleNamespace(params={"job_file": path}), incomplete)  # type: ignore[arg-type]

    (tmp_path / "beir").mkdir()
    (tmp_path / "beir" / "queries.jsonl").write_text('{"_id": "a1"}\n\n{"_id": "b2"}\n{"_id": "a1"}\n')
    (tmp_path / "pairs.tsv").write_text("id\tquery\nx1\ty\n")
    assert ids({"path": "beir"}) == ["a1", "b2"]
    assert ids({"path": "beir"}, "a") == ["a1"]
    assert ids({"path": "pairs.tsv", "columns": {"query_id": "id"}}) == ["x1"]
    assert ids({"path": "pairs.tsv"}) == []
    assert ids({"path": "none.jsonl", "columns": {"query_id": "id"}}) == []
    (tmp_path / "broken.jsonl").write_text("{")
    for broken in ({"path": "broken.jsonl", "columns": {"query_id": "id"}}, "data: [", "- 1", "x: 1", {"path": 3}):
        assert ids(broken) == []
    assert complete.query_ids(SimpleNamespace(params={}), "") == []  # type: ignore[arg-type]
    many = "".join(f'{{"_id": "{n}"}}\n' for n in range(500))
    (tmp_path / "beir" / "queries.jsonl").write_text(many)
    assert len(ids({"path": "beir"})) == complete.MOST
