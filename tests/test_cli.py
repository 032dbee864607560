"""The command line as a process: help, output for people and for programs, exit codes.

At least one run of each kind is a fresh interpreter; what only looks at a finished job is forked (forker.py).
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time

import pyarrow.parquet as pq
import pytest
import toy
import typer
import yaml
from loopback import Loopback

import miner as package
from miner.cli import app

COMMANDS = typer.main.get_command(app).commands
ESCAPE = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e]")
HOSTILE = "\x1b[31mred\x1b[2J \x9b5m \x07 \u202e txt\r \x1b]0;title\x07"


# ---------------------------------------------------------------- help


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_and_parameter_has_a_help_text(name):
    command = COMMANDS[name]
    assert command.help.rstrip().endswith(".")
    for parameter in command.params:
        assert (parameter.help or "").endswith((".", ").")), parameter.name


def test_the_help_lists_every_command(miner):
    shown = miner("--help", fresh=True).stdout
    for name in COMMANDS:
        assert re.search(rf"^  {name} +\w", shown, re.MULTILINE), name
    assert "--set" in miner("run", "--help").stdout


HEAVY = ("numpy", "pyarrow", "faiss", "onnxruntime", "tokenizers", "datasets", "openai", "torch", "pydantic", "rich")
HELP = """
import sys
sys.argv = ["miner", "--help"]
try:
    from miner.cli import main
    main()
finally:
    print("LOADED", *sorted(sys.modules))
"""


def test_the_help_loads_nothing_heavy_and_is_quick(environment):
    """The best of five; the bound is wide, since the machine may be busy. Measured alone: 0.1 s."""
    best = float("inf")
    for _ in range(5):
        start = time.perf_counter()
        done = subprocess.run([sys.executable, "-c", HELP], capture_output=True, text=True, env=environment, check=True)
        best = min(best, time.perf_counter() - start)
    sys.stdout.write(f"miner --help: {best:.2f} s\n")
    assert "Commands" in done.stdout
    loaded = done.stdout.split("LOADED ")[1].split()
    assert not {name.split(".")[0] for name in loaded} & set(HEAVY)
    assert best < 1.0


def test_the_version_needs_no_command(miner):
    assert miner("--version", fresh=True).stdout == f"{package.__version__}\n"


# ---------------------------------------------------------------- init and schema


def test_init_writes_a_job_file_and_never_over_another(tmp_path, miner):
    path = tmp_path / "job.yaml"
    assert miner("init", path).stdout == f"{path}\n"
    path.write_text("mine")
    refused = miner("init", path, check=False)
    assert (refused.returncode, path.read_text()) == (2, "mine")
    assert "exists already" in refused.stderr
    miner("init", path, "--force")
    assert yaml.safe_load(path.read_text())["data"] == {"path": "data"}


def test_schema_is_json(miner):
    assert json.loads(miner("schema").stdout)["properties"].keys() >= {"data", "mining", "judge"}


# ---------------------------------------------------------------- a finished job


@pytest.fixture(scope="module")
def job(tmp_path_factory, miner):
    """A mined job in a folder whose name looks like markup, with a passage full of terminal escapes."""
    folder = tmp_path_factory.mktemp("jobs") / "[red] :smile:"
    data = toy.beir(folder / "data")
    with (data / "corpus.jsonl").open("a") as corpus:
        text = f"The cat meows {HOSTILE}"
        corpus.write(json.dumps({"_id": "hostile\x1b[31m", "title": HOSTILE, "text": text}) + "\n")
    path = toy.job(folder)
    done = miner("run", path, fresh=True)
    return path, done


def test_results_go_to_stdout_and_progress_to_stderr(job):
    path, done = job
    assert f"{path.parent}/job.job/export/flagembedding.jsonl" in done.stdout.splitlines()
    assert "corpus: done in" in done.stderr
    assert "corpus: done in" not in done.stdout


def test_run_and_status_tell_the_counts(job, miner):
    path, done = job
    shown = miner("status", path).stdout
    for text in (done.stdout, shown):
        assert re.search(r"^corpus +.*passages 26, queries 16, qrels 16", text, re.MULTILINE)
        assert re.search(r"^export +", text, re.MULTILINE)
    assert shown.count("fresh") == 7
    assert f"job: {path.parent}/job.job" in shown.splitlines()


def test_a_dry_run_says_what_would_run_and_runs_nothing(job, miner):
    path, _ = job
    before = sorted(path.parent.rglob("*"))
    shown = json.loads(miner("run", path, "--dry-run", "--json", "--set", "mining.depth=5").stdout)
    assert [(s["step"], s["state"]) for s in shown["steps"]] == [
        ("corpus", "fresh"),
        ("vectors", "fresh"),
        ("index", "changed: depth"),
        ("retrieved_dense", "follows index"),
        ("candidates", "follows index"),
        ("decisions", "follows index"),
        ("export", "follows index"),
    ]
    assert shown["judge requests"] == 0
    assert sorted(path.parent.rglob("*")) == before


def test_a_dry_run_of_a_new_job_makes_no_folder(tmp_path, miner):
    path = toy.job(tmp_path, judge={"enabled": True}, llm={"model": "toy"})
    shown = json.loads(miner("run", path, "--dry-run", "--json").stdout)
    assert {s["state"] for s in shown["steps"]} == {"not done yet"}
    assert shown["judge requests"] == "unknown until the data is read"
    assert not (tmp_path / "job.job").exists()


def test_inspect_shows_a_query_with_all_that_is_known(job, miner):
    path, _ = job
    found = json.loads(miner("inspect", path, "q-cat-voice", "--json").stdout)
    assert (found["query_id"], found["text"]) == ("q-cat-voice", "what sound does a cat make")
    assert [p["doc_id"] for p in found["positives"]] == ["cat-voice"]
    assert [c["rank"] for c in found["candidates"]] == list(range(1, len(found["candidates"]) + 1))
    copy = next(c for c in found["candidates"] if c["doc_id"] == "cat-voice-copy")
    assert (copy["kept"], copy["reason"]) == (False, "positive_copy")
    shown = miner("inspect", path, "q-cat-voice").stdout
    for candidate in found["candidates"]:
        assert f"{candidate['score']:.4f}" in shown
    assert "positive_copy" in shown
    assert "The cat meows when it wants attention." in shown


def test_no_terminal_escape_reaches_the_terminal(job, miner):
    shown = miner("inspect", job[0], "q-cat-voice", COLUMNS="300").stdout
    assert "hostile?[31m" in shown
    assert "?[31mred?[2J ?5m ?" in shown
    assert not ESCAPE.search(shown)
    coloured = miner("inspect", job[0], "q-cat-voice", COLUMNS="300", FORCE_COLOR="1").stdout
    assert "\x1b[1m" in coloured
    assert "?[31mred?[2J ?5m ?" in coloured


def test_piped_output_has_no_colours(job, miner):
    for shown in (job[1], miner("run", job[0]), miner("--help")):
        assert "\x1b" not in shown.stdout + shown.stderr


@pytest.mark.parametrize("command", ["run", "status", "mine"])
def test_json_on_stdout_parses(job, miner, command):
    path, _ = job
    assert json.loads(miner(command, path, "--json").stdout)["job"] == f"{path.parent}/job.job"


def test_a_broken_pipe_is_no_traceback(job, environment):
    path, _ = job
    command = f"{sys.executable} -m miner inspect {str(path)!r} q-cat-voice --json | head -c 10"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, env=environment, timeout=60)
    assert "Traceback" not in done.stderr


def test_inspect_shows_judgments_and_what_was_generated(tmp_path, miner):
    with Loopback() as server:
        judged = {"judge": {"enabled": True, "pool": 3}, "generator": {"enabled": True, "max_share": 1.0}}
        path = toy.job(tmp_path, llm=toy.llm(server.url), **judged)
        miner("run", path)
    written = pq.read_table(tmp_path / "job.job/synthetic/synthetic.parquet").to_pylist()[0]
    rows = json.loads(miner("inspect", path, written["query_id"], "--json").stdout)["candidates"]
    one = next(row for row in rows if row["doc_id"] == written["doc_id"])
    assert {name: one[name] for name in ("facet", "change", "text")} == {
        name: written[name] for name in ("facet", "change", "text")
    }
    pooled = [row for row in rows if row["source"] == "mined" and row["status"]]
    assert len(pooled) == 3
    for row in pooled:
        assert row["text"].startswith(row["evidence"])
        assert (row["reason"] == "judged_relevant") == (row["grade"] >= 2)


# ---------------------------------------------------------------- exit codes


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["run", "no.yaml"], "no.yaml: no such job file"),
        (["run"], "Missing argument"),
        (["rum"], "No such command"),
        (["run", "x.yaml", "--sett", "a=b"], "No such option"),
        (["answers", "x.yaml"], "name either a file to take in, or --export FILE"),
        (["--vershun"], "No such option"),
    ],
)
def test_a_users_mistake_is_one_line_and_exit_code_2(miner, arguments, told):
    done = miner(*arguments, check=False, fresh=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert told in done.stderr
    assert done.stderr.count("\n") == 1


def test_mistakes_about_a_job_are_exit_code_2(job, miner, tmp_path):
    path, _ = job
    for arguments, told in (
        (("inspect", path, "q-nobody"), "query 'q-nobody' is not in this job, which has 16: q-bat-food"),
        (("inspect", toy.job(tmp_path), "q"), "nothing is mined yet; run `miner mine` first"),
        (("run", path, "--until", "dinner"), "stage dinner is no stage; the stages are mine, judge"),
        (("run", path, "--until", "judge"), "stage judge is switched off in the job file"),
    ):
        done = miner(*arguments, check=False)
        assert (done.returncode, told in done.stderr) == (2, True), done.stderr


def test_missing_answers_are_exit_code_3_and_a_warning(tmp_path, miner):
    (tmp_path / "answers.jsonl").write_text('{"custom_id": "none", "error": "x"}\n')
    llm = {"model": "toy", "backend": "recorded", "answers": "answers.jsonl"}
    path = toy.job(tmp_path, llm=llm, judge={"enabled": True, "pool": 3})
    done = miner("run", path, "--json", check=False)
    assert done.returncode == 3
    summary = json.loads(done.stdout)
    assert summary["complete"] is False
    assert re.fullmatch(r"judge: \d+ answers are missing .*", summary["warnings"][0])
    assert summary["steps"]["judgments"]["status"] == {"missing": summary["steps"]["judgments"]["rows"]}
