"""Backend vllm on a Ray cluster: an engine on each actor. The engine is tests/fake_vllm, or a real one (marker vllm).

MINER_VLLM_MODEL=<folder of a small chat model> pytest -m vllm tests/test_ray_vllm.py
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import toy
from clusters import ROOT, Cluster

from miner import prompts
from miner.ledger import Ledger
from miner.store import tree_digest

pytestmark = pytest.mark.ray
pytest.importorskip("ray")
MODEL = os.environ.get("MINER_VLLM_MODEL", "")
ODD = {"cat-food": "POISON.", "dog-food": "LONG."}


class World:
    """A cluster whose processes find the engine, and the environment of a miner that does."""

    def __init__(self, folder: Path, environment: dict[str, str], **own: str) -> None:
        self.log = folder / "asked.jsonl"
        path = os.pathsep.join(map(str, (ROOT, ROOT / "tests", ROOT / "tests/fake_vllm")))
        own = own or {"PYTHONPATH": path, "FAKE_VLLM_LOG": str(self.log), "FAKE_VLLM_DELAY": "0.3"}
        self.cluster, self.environment = Cluster(**own), {**environment, **own}

    def asked(self) -> Counter[str]:
        return Counter(self.log.read_text().splitlines() if self.log.exists() else [])

    def start(self, job: Path) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "miner", "run", str(job)]
        with job.with_suffix(".log").open("w") as log:
            return subprocess.Popen(command, stdout=log, stderr=log, env=self.environment)

    def run(self, job: Path, code: int = 0) -> str:
        found = self.start(job).wait(500)
        said = job.with_suffix(".log").read_text()
        assert found == code, said
        return said

    def wait_for(self, count: int, process: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + 90
        while self.asked().total() < count:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)


@pytest.fixture(scope="module")
def world(tmp_path_factory, cluster_environment) -> Iterator[World]:
    made = World(tmp_path_factory.mktemp("world"), cluster_environment)
    try:
        yield made
    finally:
        made.cluster.close()


@pytest.fixture
def prepared(world) -> Callable[..., Path]:
    """A job with 48 pairs to judge, two of its passages odd; nothing was asked before."""

    def make(folder: Path, local: bool = False, odd: dict[str, str] = ODD, **vllm: Any) -> Path:
        world.log.unlink(missing_ok=True)
        toy.beir(folder / "data")
        corpus = folder / "data/corpus.jsonl"
        rows = [json.loads(line) for line in corpus.read_text().splitlines()]
        toy.write_jsonl(corpus, [{**row, "text": f"{row['text']} {odd.get(row['_id'], '')}"} for row in rows])
        llm = {"backend": "vllm", "model": "tiny", "identity": "vllm", "repair": False, "vllm": {"chunk": 3, **vllm}}
        engine = {} if local else {"engine": {"kind": "ray", "address": world.cluster.address, "workers": 2}}
        return toy.job(folder, judge={"enabled": True, "pool": 3}, llm=llm, **engine)

    return make


@pytest.fixture(scope="module")
def shared_cache(tmp_path_factory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(toy, "VECTORS", str(tmp_path_factory.mktemp("vectors")))
        yield


@pytest.fixture
def local(world, prepared, tmp_path, shared_cache) -> tuple[Path, Counter[str]]:
    job = prepared(tmp_path / "local", local=True)
    world.run(job, 3)
    return job, world.asked()


def files(job: Path) -> dict[str, dict[str, str]]:
    root = job.with_suffix(".job")
    return {name: tree_digest(root / name) for name in ("judgments", "export")}


def failures(job: Path) -> list[str]:
    ledger = Ledger(job.with_suffix(".job") / "ledger.sqlite")
    try:
        return sorted(row["reason"] for row in ledger.failures())
    finally:
        ledger.close()


def test_the_same_bytes_as_one_engine_and_an_odd_row_is_a_row_with_its_reason(world, prepared, tmp_path, local):
    job = prepared(tmp_path / "job")
    world.run(job, 3)
    assert files(job) == files(local[0])
    assert world.asked() == local[1]
    assert set(local[1].values()) == {1}
    rows = pq.read_table(job.with_suffix(".job") / "judgments/judgments.parquet").to_pylist()
    odd = {(row["doc_id"], row["status"]) for row in rows if row["doc_id"] in ODD}
    assert odd >= {("cat-food", "missing"), ("dog-food", "truncated")}
    assert failures(job) == failures(local[0])
    assert set(failures(job)) == {"vLLM refuses it: a poisoned passage"}
    assert not list(job.with_suffix(".job").glob("ledger_shards/*.jsonl"))


def test_a_driver_that_is_killed_pays_only_for_what_no_shard_holds(world, prepared, tmp_path, local):
    job = prepared(tmp_path / "job")
    process = world.start(job)
    world.wait_for(9, process)
    process.kill()
    process.wait(30)
    time.sleep(3)  # until Ray has ended the workers of the driver that is gone
    before = world.asked()
    assert before.total() < local[1].total()
    world.run(job, 3)
    assert files(job) == files(local[0])
    assert world.asked().keys() == local[1].keys()
    assert world.asked().total() - local[1].total() <= 2 * 3  # a chunk of each of two actors was in flight


def test_a_node_that_is_killed_costs_only_the_chunk_in_flight(world, prepared, tmp_path, local):
    world.cluster.add()
    doomed = world.cluster.workers.pop()
    job = prepared(tmp_path / "job")
    job.write_text(job.read_text().replace("workers: 2", "workers: 4"))
    process = world.start(job)
    world.wait_for(9, process)
    doomed.kill()
    assert process.wait(300) == 3, job.with_suffix(".log").read_text()
    assert files(job) == files(local[0])
    assert world.asked().total() - local[1].total() <= 3


def test_a_model_that_cannot_be_loaded_is_one_line(world, prepared, tmp_path, shared_cache):
    job = prepared(tmp_path / "job", engine={"model": "missing"})
    last = world.run(job, 2).splitlines()[-1]
    assert last.startswith("miner: llm.model missing: vLLM cannot load it (missing: no such model); check"), last


def test_a_row_that_ends_every_process_ends_the_run(world, prepared, tmp_path, shared_cache):
    job = prepared(tmp_path / "job", odd={"cat-food": "DEADLY"})
    last = world.run(job, 5).splitlines()[-1]
    assert re.match("miner: ray: a batch of .* ended 4 workers, .*; what is done is kept, run again", last), last
    assert world.asked().total() > 9, "those beside it were answered"


# ---------------------------------------------------------------- a real engine


def judged(folder: Path, address: str | None) -> Path:
    """As test_vllm.job: 48 judgments of a few words."""
    own = folder / "prompts/judge"
    own.mkdir(parents=True)
    text = (prompts.SHIPPED / "judge/graded.md").read_text(encoding="utf-8")
    (own / "short.md").write_text(text.replace("max_tokens: 160", "max_tokens: 48"), encoding="utf-8")
    # float32 in batches of any size gives the same words; bfloat16 may not.
    engine = {"dtype": "float32", "max_model_len": 2048, "enforce_eager": True, "max_num_seqs": 8, "model": MODEL}
    llm = {"backend": "vllm", "model": "tiny", "identity": "vllm", "repair": False}
    ray = {"engine": {"kind": "ray", "address": address, "workers": 2}} if address else {}
    told = {"llm": {**llm, "vllm": {"engine": engine, "chunk": 3}}, "prompts": "prompts", **ray}
    return toy.job(folder, judge={"enabled": True, "prompt": "short", "pool": 3}, **told)


@pytest.mark.vllm
@pytest.mark.skipif(
    not MODEL or importlib.util.find_spec("vllm") is None, reason="needs vllm, and a model in MINER_VLLM_MODEL"
)
def test_two_real_engines_give_the_words_of_one(tmp_path, cluster_environment, shared_cache):
    own = {name: value for name, value in os.environ.items() if name.startswith(("VLLM_", "OMP_"))}
    there = World(tmp_path, cluster_environment, PYTHONPATH=str(ROOT), **own)
    try:
        local, remote = judged(tmp_path / "local", None), judged(tmp_path / "remote", there.cluster.address)
        assert there.start(local).wait(900) in (0, 3), local.with_suffix(".log").read_text()
        assert there.start(remote).wait(900) in (0, 3), remote.with_suffix(".log").read_text()
        assert files(remote) == files(local)
        rows = pq.read_table(remote.with_suffix(".job") / "judgments/judgments.parquet").to_pylist()
        assert len(rows) == 48
        assert any(row["status"] == "ok" for row in rows)
    finally:
        there.cluster.close()
