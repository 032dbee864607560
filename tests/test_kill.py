"""A job that is killed at any moment and started again ends with the same bytes, and nothing is paid for twice."""

from __future__ import annotations

import json
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import toy
from loopback import Loopback, parts

from miner.store import tree_digest

CONCURRENCY = 4
ROCKS = ("granite", "basalt", "quartz", "marble", "slate", "shale")


def rocks(folder: Path) -> None:
    """A dozen texts so long that the passages of the toy corpus make three shards of vectors and not one."""
    rng = random.Random(5)
    with (folder / "corpus.jsonl").open("a", encoding="utf-8") as corpus:
        for number in range(12):
            text = " ".join(rng.choices(ROCKS, k=27_000))
            corpus.write(json.dumps({"_id": f"rock-{number}", "title": "rock", "text": text}) + "\n")


def kill_job(folder: Path, url: str, **more: Any) -> Path:
    folder.mkdir()
    rocks(toy.beir(folder / "data"))
    return toy.job(
        folder,
        llm=toy.llm(url, concurrency=CONCURRENCY),
        judge={"enabled": True, "pool": 4},
        generator={"enabled": True, "max_share": 0.4},
        mining={"depth": 10, "negatives": 4, "margin_relative": None, "block": 2},
        **more,
    )


@pytest.fixture(scope="module")
def server() -> Iterator[Loopback]:
    with Loopback(delay_s=0.03) as running:
        yield running


@pytest.fixture(scope="module")
def finished(tmp_path_factory, miner, server) -> Path:
    """A job that nobody disturbed."""
    job = kill_job(tmp_path_factory.mktemp("kill") / "finished", server.url)
    miner("run", job, fresh=True)
    return job


@pytest.fixture(scope="module")
def reference(finished) -> dict[str, str]:
    return tree_digest(finished.with_suffix(".job") / "export")


class Run:
    """A miner process whose stderr goes to a file, so that a test can watch and strike it."""

    def __init__(self, job: Path, environment: dict[str, str]) -> None:
        self.log = job.with_suffix(".log")
        # A shell's background job ignores Ctrl-C, and its children would too.
        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        with self.log.open("w") as log:
            command = [sys.executable, "-m", "miner", "run", str(job)]
            self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=log, env=environment)
        signal.signal(signal.SIGINT, before)

    @property
    def stderr(self) -> str:
        return self.log.read_text()

    def strike(self, when: Callable[[str], bool], wait_s: float, how: signal.Signals = signal.SIGKILL) -> int:
        """Send the signal `wait_s` after `when` became true of the log; the exit code."""
        try:
            self._wait_for(when)
            time.sleep(wait_s)
        finally:
            self.process.send_signal(how)
            code = self.process.wait(60)
        return code

    def _wait_for(self, when: Callable[[str], bool]) -> None:
        deadline = time.monotonic() + 60
        while not when(self.stderr):
            assert self.process.poll() is None, f"the run ended before the moment came:\n{self.stderr}"
            assert time.monotonic() < deadline, f"the moment never came:\n{self.stderr}"
            time.sleep(0.002)


def answered(job: Path, scratch: Path) -> set[str]:
    """The bodies that the ledger of a killed job has answers for. Reads a copy, so that nothing is repaired early."""
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    for file in job.with_suffix(".job").glob("ledger.sqlite*"):
        if not file.name.endswith("-shm"):
            shutil.copy(file, scratch)
    if not (scratch / "ledger.sqlite").exists():
        return set()
    with sqlite3.connect(scratch / "ledger.sqlite") as db:
        there = db.execute("SELECT COUNT(*) FROM sqlite_master").fetchone()[0]
        rows = db.execute("SELECT body FROM requests WHERE state = 'done'").fetchall() if there else []
        found = {plain(json.loads(body)) for (body,) in rows}
    db.close()
    return found


def plain(body: dict) -> str:
    return json.dumps(body, sort_keys=True)


class Kill(NamedTuple):
    """What was there when the process had died: requests the server had seen, bodies answered, files finished."""

    seen: int
    answered: set[str]
    shards: dict[str, int]
    parts: dict[str, int]


def inodes(folder: Path, pattern: str) -> dict[str, int]:
    return {path.name: path.stat().st_ino for path in folder.glob(pattern)}


def survey(job: Path, server: Loopback) -> Kill:
    folder = job.with_suffix(".job")
    while server.in_flight:
        time.sleep(0.005)
    return Kill(
        len(server.bodies),
        answered(job, job.parent / "scratch"),
        inodes(folder, "vector_cache/*/*.keys.npy"),
        inodes(folder, "candidates/part-*") | inodes(folder, ".work/candidates-*/part-*"),
    )


def stage(name: str) -> Callable[[str], bool]:
    return lambda log: f"{name}: not done yet" in log


def moments(job: Path, server: Loopback) -> Iterator[tuple[str, Callable[[str], bool], float]]:
    """(what it is, when it comes, seconds that may pass after it): made one by one, as each run starts."""
    folder = job.with_suffix(".job")

    def asked(count: int, kind: str = "PASSAGE") -> Callable[[str], bool]:
        start = len(server.bodies)
        return lambda log: sum(kind in parts(body) for body in server.bodies[start:]) >= count

    def there(pattern: str, count: int = 1) -> Callable[[str], bool]:
        return lambda log: len(list(folder.glob(pattern))) >= count

    yield "reading", stage("corpus"), 0.1
    yield "encoding, before the first shard", stage("vectors"), 0.2
    yield "encoding, one shard done", there("vector_cache/*/*.keys.npy", 1), 0.2
    yield "encoding, two shards done", there("vector_cache/*/*.keys.npy", 2), 0.02
    yield "searching", there(".work/candidates-*/part-*", 2), 0.01
    yield "judging", asked(5), 0.03
    yield "judging further", asked(20), 0.03
    yield "generating", asked(2, "FACET"), 0.03
    yield "encoding what was generated", lambda log: stage("synthetic")(log) and not server.in_flight, 0.5
    yield "judging what was generated", lambda log: stage("synthetic_judgments")(log) and server.in_flight > 0, 0.02
    yield "deciding", stage("decisions"), 0.02
    yield "exporting, begun", there(".work/export-*"), 0.01
    yield "exporting, one file written", there(".work/export-*/flagembedding.jsonl"), 0.01


def test_killed_at_every_stage_it_ends_with_the_same_bytes(tmp_path, environment, server, reference):
    job = kill_job(tmp_path / "killed", server.url)
    rng = random.Random(20)
    before = survey(job, server)
    kills = {}
    for what, when, spread in moments(job, server):
        code = Run(job, environment).strike(when, rng.uniform(0, spread))
        assert code == -signal.SIGKILL, f"{what}: the run ended by itself with {code}"
        kills[what] = survey(job, server)
    last = Run(job, environment)
    assert last.process.wait(120) == 0, last.stderr
    assert tree_digest(job.with_suffix(".job") / "export") == reference
    assert_asked_once(server, before.seen, list(kills.values()))
    assert_nothing_redone(job, kills)
    assert "vectors: fresh" in last.stderr
    assert "judgments: fresh" in last.stderr


def assert_asked_once(server: Loopback, start: int, kills: list[Kill]) -> None:
    """Nothing that the ledger had at a kill is asked after it; what is asked again was in flight at a kill."""
    bodies = [plain(body) for body in server.bodies]
    for kill in kills:
        assert not kill.answered & set(bodies[kill.seen :])
    ends = [kill.seen for kill in kills] + [len(bodies)]
    for kill, end in zip(kills, ends[1:], strict=True):
        again = set(bodies[start : kill.seen]) & set(bodies[kill.seen : end])
        assert len(again) <= CONCURRENCY
    within = [bodies[low:high] for low, high in zip([start, *ends], ends, strict=False)]
    assert all(len(run) == len(set(run)) for run in within), "no run asks anything twice"


def assert_nothing_redone(job: Path, kills: dict[str, Kill]) -> None:
    """Shards and candidate files that were there at a kill are the very files of the end."""
    folder = job.with_suffix(".job")
    shards, candidates = inodes(folder, "vector_cache/*/*.keys.npy"), inodes(folder, "candidates/part-*")
    assert all(kill.shards.items() <= shards.items() for kill in kills.values())
    found = kills["searching"].parts
    assert len(found) >= 2
    assert found.items() <= candidates.items()
    kept = kills["encoding, two shards done"].shards
    assert 2 <= len(kept) < len(shards)
    sizes = {path.name: len(np.load(path)) for path in folder.glob("vector_cache/*/*.keys.npy")}
    counts = json.loads((folder / "stamps/vectors.json").read_text())["counts"]
    encoded = counts["passages"]["encoded"] + counts["queries"]["encoded"]
    assert encoded == sum(size for name, size in sizes.items() if name not in kept)


@pytest.mark.parametrize("step", ["vectors", "candidates", "judgments", "export"])
def test_killed_between_promotion_and_stamp(finished, tmp_path, miner, server, reference, step):
    job = copy_of(finished, tmp_path)
    folder = job.with_suffix(".job")
    (folder / "stamps" / f"{step}.json").unlink()
    asked, before = len(server.bodies), inodes(folder, "vector_cache/*/*.npy")
    again = miner("run", job)
    assert f"{step}: not done yet" in again.stderr
    assert again.stderr.count(": fresh") == 9
    assert tree_digest(folder / "export") == reference
    assert len(server.bodies) == asked
    assert inodes(folder, "vector_cache/*/*.npy") == before
    if step == "vectors":
        counts = json.loads((folder / "stamps/vectors.json").read_text())["counts"]
        assert counts["passages"]["encoded"] == counts["queries"]["encoded"] == 0


def copy_of(job: Path, folder: Path) -> Path:
    shutil.copytree(job.parent, folder, dirs_exist_ok=True)
    return folder / job.name


def test_what_dead_processes_left_about_does_no_harm(finished, tmp_path, miner, server, reference):
    job = copy_of(finished, tmp_path)
    folder = job.with_suffix(".job")
    (folder / "stamps/judgments.json").unlink()
    (folder / "judgments").rename(folder / ".judgments.old")  # killed inside the promotion
    (folder / "stamps/candidates.json").unlink()
    shutil.copytree(folder / "export", folder / ".export.old")
    for stray in (".work/judgments-0123456789abcdef/junk.parquet", ".work/export-0123456789abcdef/.x.99.part"):
        (folder / stray).parent.mkdir(parents=True, exist_ok=True)
        (folder / stray).write_bytes(b"half a fi")
    for stray in ("stamps/.export.json.99.part", "export/.flagembedding.jsonl.99.part", ".manifest.json.99.part"):
        (folder / stray).write_bytes(b"half a fi")
    cache = next(folder.glob("vector_cache/*"))
    (cache / ".0123.npy.99.part").write_bytes(b"half a fi")
    (cache / "0123.npy").write_bytes(b"a shard without its keys")
    asked = len(server.bodies)
    again = miner("run", job)
    assert again.stderr.count(": fresh") == 8
    assert tree_digest(folder / "export") == reference
    assert len(server.bodies) == asked
    assert not (folder / ".judgments.old").exists()
    assert not list(folder.glob(".work/judgments-*"))


def test_interrupted_it_says_how_to_go_on(tmp_path, environment, server, reference):
    """Ctrl-C or SIGTERM while it imports, encodes, asks and exports: exit code 130, one line, no traceback."""
    job = kill_job(tmp_path / "stopped", server.url)
    folder = job.with_suffix(".job")
    # An exception that a signal throws between opening a file and `with` leaves it to the garbage collector.
    calm = environment | {"PYTHONWARNINGS": "error,ignore::ResourceWarning"}
    rng = random.Random(3)
    line = f"interrupted; what is done is kept. Go on with: miner run {job}"
    start = len(server.bodies)
    kills = []
    for how, when in (
        (signal.SIGTERM, stage("vectors")),
        (signal.SIGINT, lambda log: any(folder.glob("vector_cache/*/*.keys.npy"))),
        (signal.SIGTERM, lambda log: len(server.bodies) > start + 5),
        (signal.SIGINT, lambda log: len(server.bodies) > start + 40),
        (signal.SIGTERM, lambda log: any(folder.glob(".work/export-*"))),
    ):
        run = Run(job, calm)
        # An interrupt inside some C libraries has Python end itself by the signal, which a shell calls 130 too.
        assert run.strike(when, rng.uniform(0, 0.02), how) in (130, -signal.SIGINT), run.stderr
        assert run.stderr.splitlines()[-1] == line
        assert all(":" in text[:9] for text in run.stderr.splitlines()[:-1]), run.stderr
        kills.append(survey(job, server))
    last = Run(job, environment)
    assert last.process.wait(120) == 0, last.stderr
    assert tree_digest(folder / "export") == reference
    assert_asked_once(server, start, kills)
