"""The LLM stage on a real Ray cluster of processes: same bytes as the local engine, and nothing lost with a node, a
driver or a row.

A head and two worker nodes are started on loopback; the server of loopback.py answers from the request alone.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import toy
from clusters import Cluster
from loopback import Loopback, Reply, failure, raw, sensible

from miner.ledger import Ledger
from miner.store import tree_digest

pytestmark = pytest.mark.ray
pytest.importorskip("ray")


@pytest.fixture(scope="module")
def miner(cluster_environment: dict[str, str]) -> Callable[..., subprocess.CompletedProcess[str]]:
    def run(*arguments: object, check: bool = True) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "miner", *map(str, arguments)]
        done = subprocess.run(command, env=cluster_environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0 or not check, done.stderr
        return done

    return run


@pytest.fixture(scope="module")
def mined(tmp_path_factory, miner) -> Path:
    """A job folder in which all but the LLM work is done."""
    folder = tmp_path_factory.mktemp("mined")
    job = toy.job(folder, judge={"enabled": True, "pool": 6}, llm=toy.llm("http://127.0.0.1:9/v1"))
    miner("run", job, "--until", "candidates")
    return folder


def prepared(mined: Path, folder: Path, url: str, cluster: Cluster | None, **more: Any) -> Path:
    shutil.copytree(mined, folder)
    ray = {"engine": {"kind": "ray", "address": cluster.address}} if cluster else {}
    told = {"llm": toy.llm(url, concurrency=4, attempts=2), **more}
    return toy.job(folder, judge={"enabled": True, "pool": 6}, **told, **ray)


def files(job: Path) -> dict[str, dict[str, str]]:
    root = job.with_suffix(".job")
    return {name: tree_digest(root / name) for name in ("judgments", "export")}


def asked(server: Loopback) -> Counter[str]:
    """How often each request of the job came; the probe of the form is none."""
    return Counter(json.dumps(body, sort_keys=True) for body in server.bodies if "=== END" in json.dumps(body))


def answers(job: Path) -> int:
    ledger = Ledger(job.with_suffix(".job") / "ledger.sqlite")
    try:
        return len(ledger)
    finally:
        ledger.close()


@pytest.fixture(scope="module")
def local(mined, tmp_path_factory, miner) -> tuple[dict[str, dict[str, str]], Counter[str]]:
    with Loopback() as server:
        job = prepared(mined, tmp_path_factory.mktemp("local") / "job", server.url, None)
        miner("run", job)
        return files(job), asked(server)


class Started:
    """`miner run` as a process beside the test."""

    def __init__(self, job: Path, environment: dict[str, str]) -> None:
        self.log = job.with_suffix(".log")
        with self.log.open("w") as log:
            command = [sys.executable, "-m", "miner", "run", str(job)]
            self.process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)

    def wait_for(self, server: Loopback, count: int) -> None:
        deadline = time.monotonic() + 90
        while sum(server.completed.values()) < count:
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.02)


def test_the_same_bytes_as_the_local_engine_and_no_key_anywhere(mined, tmp_path, miner, cluster, local):
    with Loopback() as server:
        job = prepared(mined, tmp_path / "job", server.url, cluster)
        done = miner("run", job)
        assert files(job) == local[0]
        assert asked(server) == local[1]
        assert {h["authorization"] for h in server.headers} == {"Bearer sk-toy-secret"}
    assert not list(job.with_suffix(".job").glob("ledger_shards/*.jsonl"))
    assert "sk-toy" not in done.stdout + done.stderr
    places = [p for root in (cluster.folder, tmp_path) for p in root.rglob("*") if p.is_file()]
    assert len(places) > 20
    assert [p for p in places if b"sk-toy-secret" in p.read_bytes()] == []


def test_a_node_that_is_killed_in_the_llm_stage_costs_only_what_was_in_flight(
    mined, tmp_path, cluster_environment, cluster, local
):
    cluster.add()
    doomed = cluster.workers.pop()
    with Loopback(delay_s=0.3) as server:
        job = prepared(mined, tmp_path / "job", server.url, cluster)
        run = Started(job, cluster_environment)
        run.wait_for(server, 10)
        doomed.kill()
        assert run.process.wait(300) == 0, run.log.read_text()
        assert files(job) == local[0]
        counts = asked(server)
    assert counts.keys() == local[1].keys()
    assert sum(counts.values()) - len(counts) <= 4  # the node had one worker, with its part of the concurrency


def test_a_driver_that_is_killed_pays_only_for_what_no_shard_holds(
    mined, tmp_path, cluster_environment, miner, cluster, local
):
    with Loopback(delay_s=0.3) as server:
        job = prepared(mined, tmp_path / "job", server.url, cluster)
        run = Started(job, cluster_environment)
        run.wait_for(server, 10)
        run.process.kill()
        run.process.wait(30)
        time.sleep(3)  # until Ray has ended the workers of the driver that is gone
        shards = list(job.with_suffix(".job").glob("ledger_shards/*.jsonl"))
        held = sum(path.read_bytes().count(b"\n") for path in shards)
        assert held >= 10 - answers(job)
        before = sum(asked(server).values())
        miner("run", job)
        assert files(job) == local[0]
        counts = asked(server)
    assert counts.keys() == local[1].keys()
    assert sum(counts.values()) - before <= len(local[1]) - held
    assert sum(counts.values()) - len(counts) <= 4


def test_poisoned_rows_stay_apart_and_the_rest_is_answered(mined, tmp_path, miner, cluster, local):
    """400 for one, garbage for another, 429 and then 200 for a third."""
    seen: Counter[str] = Counter()
    lock = threading.Lock()

    def reply(body: dict[str, Any]) -> Reply:
        text = json.dumps(body, sort_keys=True)
        hit = next((n for n, key in enumerate(sorted(local[1])[:3]) if key == text), None)
        with lock:
            seen[text] += 1
            again = seen[text] > 1
        if hit == 0:
            return failure(400, "poison")
        if hit == 1:
            return raw("no json")
        return failure(429) if hit == 2 and not again else sensible(body)

    with Loopback(reply) as server:
        job = prepared(mined, tmp_path / "job", server.url, cluster)
        done = miner("run", job, check=False)
        assert done.returncode in (0, 3), done.stderr
        counts = asked(server)
        three = sorted(local[1])[:3]
        assert [counts[key] for key in three] == [1, 2, 2]  # attempts: 2
        assert answers(job) == len(local[1]) - 2
        failed = Ledger(job.with_suffix(".job") / "ledger.sqlite")
        reasons = sorted(row["reason"] for row in failed.failures())
        failed.close()
        assert len(reasons) == 2
        assert any("400" in reason and "poison" in reason for reason in reasons)


def test_a_server_that_wants_another_key_stops_the_run(mined, tmp_path, miner, cluster):
    def reply(body: dict[str, Any]) -> Reply:
        return sensible(body) if "=== END" not in json.dumps(body) else failure(401, "bad key sk-toy-secret")

    with Loopback(reply) as server:
        job = prepared(mined, tmp_path / "job", server.url, cluster)
        done = miner("run", job, check=False)
    assert done.returncode == 5
    assert "check key, quota and model" in done.stderr
    assert "sk-toy" not in done.stderr
    assert answers(job) == 0


def test_the_budget_is_kept_and_a_raised_one_goes_on(mined, tmp_path, miner, cluster, local):
    with Loopback() as server:
        told = {"structured": "json_schema"}
        llm = toy.llm(server.url, concurrency=4, attempts=2, **told)
        job = prepared(mined, tmp_path / "job", server.url, cluster, llm=llm, budget={"max_requests": 12})
        assert miner("run", job, check=False).returncode == 4
        assert sum(asked(server).values()) == answers(job) == 12
        job.write_text(job.read_text().replace("max_requests: 12", "max_requests: 1000"))
        miner("run", job)
        assert asked(server) == local[1]
    assert files(job)["export"].keys() == local[0]["export"].keys()
