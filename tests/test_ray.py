"""A job on a Ray cluster of real processes: a head and two worker nodes, each with one core, on loopback.

What is compared is bytes: the same job done in one process and on the cluster, undisturbed and with nodes killed.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import clusters
import pexpect
import pytest
import toy
import yaml

from miner.store import tree_digest

pytestmark = pytest.mark.ray
DEMO = clusters.ROOT / "examples/library-docs"
MINED = ("vectors", "index", "retrieved_dense", "candidates", "export")


@pytest.fixture(scope="module")
def call(cluster_environment: dict[str, str]) -> Callable[..., subprocess.CompletedProcess[str]]:
    def run(job: Path, address: str | None, *more: str) -> subprocess.CompletedProcess[str]:
        with started(job, address, cluster_environment, *more) as process:
            out, err = process.communicate(timeout=400)
        assert process.returncode == 0, err
        return subprocess.CompletedProcess(process.args, 0, out, err)

    return run


def started(job: Path, address: str | None, environment: dict[str, str], *more: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "miner", "run", str(job), *more]
    command += ["--engine", "ray", "--set", f"engine.address={address}"] if address else []
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def demo(folder: Path) -> Path:
    if not (DEMO / "data/corpus.jsonl").is_file():
        subprocess.run([sys.executable, str(DEMO / "build_corpus.py")], check=True)
    shutil.copytree(DEMO, folder, ignore=shutil.ignore_patterns("*.job"))
    return folder / "job.yaml"


def large(folder: Path) -> Path:
    """A dozen chunks of texts and 300 blocks of queries, cheap to encode: texts so long that most of each is cut."""
    chance = random.Random(5)
    words = ["granite", "basalt", "quartz", "marble", "slate", "shale", "flint", "chalk", "gneiss", "tuff"]
    docs = [{"_id": f"d{n:04}", "title": "", "text": " ".join(chance.choices(words, k=12))} for n in range(900)]
    docs += [{"_id": f"r{n:04}", "title": "rock", "text": " ".join(chance.choices(words, k=70_000))} for n in range(24)]
    queries = [{"_id": f"q{n:04}", "text": " ".join(chance.choices(words, k=4))} for n in range(300)]
    data = folder / "data"
    toy.write_jsonl(data / "corpus.jsonl", docs)
    toy.write_jsonl(data / "queries.jsonl", queries)
    (data / "qrels").mkdir()
    lines = ["query-id\tcorpus-id\tscore", *(f"q{n:04}\td{n:04}\t1" for n in range(300))]
    (data / "qrels/train.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return toy.job(folder, mining={"depth": 20, "negatives": 3, "margin_relative": None, "block": 1})


def digests(job: Path) -> dict[str, str]:
    """Of every file that is compared, the cache's vectors and keys too, but not of what tells the time."""
    home = job.with_suffix(".job")
    return {
        f"{part}/{name}": digest
        for part in (*MINED, "vector_cache")
        for name, digest in tree_digest(home / part).items()
        if not name.endswith("stamp.json")
    }


@pytest.fixture(scope="module")
def large_done(tmp_path_factory, call) -> Path:
    job = large(tmp_path_factory.mktemp("large"))
    call(job, None)
    return job


def twin(job: Path, folder: Path) -> Path:
    """The same job, not begun."""
    shutil.copytree(job.parent, folder, ignore=shutil.ignore_patterns("*.job"))
    return folder / job.name


def wait_for(process: subprocess.Popen[str], there: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 120
    while not there():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize("kind", ["flat", "ivf-flat"])
def test_the_demo_is_the_same_to_the_byte(tmp_path, cluster, call, kind):
    local, remote = demo(tmp_path / "local"), demo(tmp_path / "remote")
    index = ("--set", f"mining.index.kind={kind}")
    if kind != "flat":  # other candidates than those whose answers were recorded
        index += ("--until", "mine")
    call(local, None, *index)
    done = call(remote, cluster.address, *index)
    assert digests(remote) == digests(local)
    assert "ray: 3 nodes, 3 CPU cores, 0 GPUs" in done.stderr
    assert "ray" not in done.stdout.lower()
    again = call(remote, None, *index)
    assert again.stderr.count(": fresh") >= (8 if kind == "flat" else 5), "what was begun on one goes on on the other"


def test_a_node_is_killed_in_the_encoding(tmp_path, own_cluster, cluster_environment, large_done):
    job = twin(large_done, tmp_path / "killed")
    with started(job, own_cluster.address, cluster_environment) as process:
        cache = job.with_suffix(".job") / "vector_cache"
        wait_for(process, lambda: len(list(cache.rglob("*.keys.npy"))) >= 2)
        own_cluster.workers[0].kill()
        _, err = process.communicate(timeout=400)
    assert process.returncode == 0, err
    assert digests(job) == digests(large_done)


def test_a_node_is_killed_in_the_search(tmp_path, own_cluster, cluster_environment, large_done):
    job = twin(large_done, tmp_path / "killed")
    with started(job, own_cluster.address, cluster_environment) as process:
        home = job.with_suffix(".job")
        wait_for(process, lambda: [p for p in home.rglob("part-00020.parquet") if "retrieved" in str(p)])
        own_cluster.workers[0].kill()
        lists = sum("retrieved" in str(part) for part in home.rglob("part-*.parquet"))
        _, err = process.communicate(timeout=400)
    assert lists < 300, "it was killed in the search"
    assert process.returncode == 0, err
    assert digests(job) == digests(large_done)


def test_the_head_is_killed_and_the_next_run_goes_on(tmp_path, own_cluster, cluster_environment, call, large_done):
    job = twin(large_done, tmp_path / "killed")
    with started(job, own_cluster.address, cluster_environment) as process:
        cache = job.with_suffix(".job") / "vector_cache"
        wait_for(process, lambda: len(list(cache.rglob("*.keys.npy"))) >= 2)
        own_cluster.head.kill()
        out, err = process.communicate(timeout=200)
    assert process.returncode == 5, (out, err)
    assert out == ""
    last = err.splitlines()[-1]
    assert last.startswith("miner: "), err
    assert "what is done is kept" in last
    if "the process that did the work was ended" in last:  # Ray's core tells of it by an exception, or ends its process
        assert f"the Ray cluster at engine.address {own_cluster.address} is gone" in last
        assert f"Go on with: miner run {job} --engine ray" in last
    call(job, None)
    assert digests(job) == digests(large_done)
    stamp = json.loads((job.with_suffix(".job") / "manifest.json").read_text())["steps"]["vectors"]
    assert stamp["counts"]["passages"]["encoded"] < 924, "what was encoded before is not encoded again"


@pytest.mark.parametrize("where", ["cluster", "local"])
def test_ctrl_c_in_the_encoding_stops_all_and_the_next_run_goes_on(
    tmp_path, request, cluster_environment, call, large_done, where
):
    """On a terminal, which sends the signal to every process of the group: `local` has Ray's own among them."""
    job, address = twin(large_done, tmp_path / "stopped"), "local"
    if where == "cluster":
        address = request.getfixturevalue("cluster").address
    arguments = ["-m", "miner", "run", str(job), "--engine", "ray", "--set", f"engine.address={address}"]
    child = pexpect.spawn(sys.executable, arguments, env=cluster_environment, encoding="utf-8", dimensions=(50, 500))
    cache = job.with_suffix(".job") / "vector_cache"
    deadline = time.monotonic() + 120
    while len(list(cache.rglob("*.keys.npy"))) < 2:
        assert child.isalive()
        assert time.monotonic() < deadline
        with contextlib.suppress(pexpect.TIMEOUT):
            child.expect("\0", timeout=0.02)  # reads what it says, or it would wait for room
    below = clusters.family(child.pid)
    assert len(below) > (2 if where == "local" else 1)
    child.sendintr()
    child.expect("interrupted; what is done is kept. Go on with: miner run .*--engine ray", timeout=60)
    child.expect(pexpect.EOF, timeout=60)
    said = child.before
    child.close()
    assert child.exitstatus == 130
    assert "Traceback" not in said
    deadline = time.monotonic() + 30
    while left := [pid for pid in below if clusters.alive(pid)]:
        assert time.monotonic() < deadline, left
        time.sleep(0.1)
    call(job, address)
    assert digests(job) == digests(large_done)
    stamp = json.loads((job.with_suffix(".job") / "manifest.json").read_text())["steps"]["vectors"]
    assert stamp["counts"]["passages"]["encoded"] < 924


SCRIPT = """
import os, sys, time
from miner import config
from miner.errors import MinerError, UserError
from miner.workers import ray as over

def odd(number):
    if number == 7: raise UserError("row 7 is poisoned; take it out")
    return number

def broken(number):
    raise ZeroDivisionError("no such thing")

def deadly(number):
    if number == 3: os._exit(1)
    return number

def uneven(number):
    time.sleep(4 if number == 0 else 0.2)
    return number

cluster = over.load(config.Engine(kind="ray", address=sys.argv[1]))
for function in (odd, broken, deadly):
    try:
        print(list(cluster.tasks(function, ((n,) for n in range(12)))))
    except MinerError as error:
        print(type(error).__name__, error.exit_code, str(error))
found = [number for number, _ in cluster.tasks(uneven, ((n,) for n in range(30)))]
print("slow one at", found.index(0), sorted(found) == list(range(30)))
cluster.close()
"""


def test_a_poisoned_row_is_told_and_a_slow_one_holds_nobody_up(cluster):
    env = {**os.environ, **clusters.TOKEN, "PYTHONPATH": str(clusters.ROOT)}
    command = [sys.executable, "-c", SCRIPT, cluster.address]
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=300)
    lines = done.stdout.splitlines()
    assert lines[0] == "UserError 2 row 7 is poisoned; take it out", done.stderr
    assert lines[1].startswith("ProviderStop 5 ray: a worker failed: ZeroDivisionError: no such thing")
    assert lines[2].startswith("ProviderStop 5 ray: ")
    assert "\n" not in lines[2]
    place = int(lines[3].split()[3])
    assert place >= 15, "those beside it went on"
    assert lines[3].endswith("True")


def test_no_cluster_is_one_line(tmp_path, cluster_environment):
    job = toy.job(tmp_path)
    config = yaml.safe_load(job.read_text())
    job.write_text(yaml.safe_dump({**config, "engine": {"kind": "ray", "address": "127.0.0.1:9"}}))
    with started(job, None, cluster_environment) as process:
        out, err = process.communicate(timeout=120)
    assert process.returncode == 2
    assert err.splitlines()[-1].startswith("miner: engine.address 127.0.0.1:9: no Ray cluster there")
    assert out == ""
