"""The engine finds what a server takes, keeps to it, and follows it; its memory does not grow with the requests."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import pytest
from fault_server import FaultServer, Spawned, Watched
from test_engine_kill import Run, done_keys, none_left_behind  # noqa: F401 - a fixture


class Watch:
    """Looks at a server's counts now and then."""

    def __init__(self, server: Watched) -> None:
        self.server = server
        self.last = server.counts()

    def lap(self, seconds: float) -> dict[str, float]:
        """What happened in so many seconds: answers a second (rate), wasted share, requests a second."""
        time.sleep(seconds)
        now = self.server.counts()
        span = now["now"] - self.last["now"]
        arrived, done, wasted = (now[n] - self.last[n] for n in ("arrivals", "completed", "wasted"))
        self.last = now
        return {"rate": done / span, "wasted": wasted / max(arrived, 1), "asked": arrived / span}


def endless(folder: Path, server: Watched, **llm: Any) -> Run:
    """A run that has more to do than the test waits for."""
    return Run(folder, server, 100_000, llm={"concurrency": 256, **llm})


def stop(run: Run) -> None:
    run.process.kill()
    run.end()


def assert_found_and_followed(
    tmp_path: Path, limit: dict[str, float], delay_s: float, expected: float, seconds: float, bounds: dict[str, float]
) -> None:
    """Found in `seconds`; kept with few refusals for as long; when all limits double, so does the throughput."""
    with Spawned(delay_s=delay_s, **limit) as server:
        run = endless(tmp_path, server)
        try:
            server.until(lambda counts: counts["completed"] > 0)
            watch = Watch(server)
            found = watch.lap(seconds)
            kept = watch.lap(seconds)
            server.change(**{name: 2 * value for name, value in limit.items()})
            following = watch.lap(seconds)
            followed = watch.lap(seconds)
        finally:
            stop(run)
    told = f"found {found}\nkept {kept}\nfollowing {following}\nfollowed {followed}, where {expected}/s is possible"
    print(told)  # noqa: T201 - shown where the test fails, and with -s
    assert kept["rate"] >= bounds["rate"] * expected, told
    assert kept["wasted"] < bounds["wasted"], told
    assert followed["rate"] >= bounds["followed"] * kept["rate"], told
    assert followed["wasted"] < bounds["wasted"], told


@pytest.mark.slow
def test_the_limit_is_found_and_followed_quickly(tmp_path):
    """Ten at once, 100 a second: looser bounds, as the machine may be busy; the half of the limit would fail."""
    bounds = {"rate": 0.65, "wasted": 0.06, "followed": 1.35}
    assert_found_and_followed(tmp_path, {"concurrent": 10}, 0.1, 100.0, 2.5, bounds)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("delay_s", "expected"), [(0.3, 50 / 0.3), (0.2, 200.0)], ids=["what it takes at once", "what it takes a second"]
)
def test_a_limit_of_50_at_once_and_200_a_second_is_found_in_20_s(tmp_path, delay_s, expected):
    bounds = {"rate": 0.85, "wasted": 0.02, "followed": 1.5}
    assert_found_and_followed(tmp_path, {"concurrent": 50, "rate": 200.0, "burst": 50}, delay_s, expected, 20.0, bounds)


@pytest.mark.slow
def test_only_refusals_for_the_rate_make_it_slower(tmp_path):
    """Errors of the server say nothing of its limit: a fifth of the tries fail, and the window stays open.

    A window that each of them cut like a 429 would stay below ten.
    """
    with Spawned(delay_s=0.3, share=0.2, faults=["500", "reset", "malformed"]) as server:
        run = endless(tmp_path, server, concurrency=40)
        try:
            server.until(lambda counts: counts["completed"] > 200)
            assert max(Watch(server).last["in_flight"] for _ in range(20) if not time.sleep(0.02)) >= 16
        finally:
            stop(run)


@pytest.mark.slow
def test_a_fixed_rate_is_never_passed(tmp_path):
    """rpm 1200 is 20 a second, evenly; refusals are none."""
    with FaultServer() as server:
        run = endless(tmp_path, server, rpm=1200)
        try:
            server.until(lambda counts: counts["completed"] > 0)
            lap = Watch(server).lap(3.0)
        finally:
            stop(run)
        arrived = sorted(seen["arrived"][0] for seen in server.stats()["keys"].values())
    assert 14 < lap["asked"] < 22
    assert len(arrived) - 1 <= 20 * (arrived[-1] - arrived[0]) + 3
    # A turn of the loop that comes late, on a busy machine, sends a few together.
    assert max(sum(at <= other < at + 1 for other in arrived) for at in arrived) <= 30


@pytest.mark.slow
def test_a_slow_server_is_not_taken_for_a_full_one(tmp_path):
    """One answer in ten takes long: the others are not held back by it."""
    with Spawned(delay_s=0.02, share=0.1, faults=["slow"], slow_s=1.0, most=1) as server:
        run = Run(tmp_path, server, 600, llm={"concurrency": 32})
        server.until(lambda counts: counts["completed"] > 0)
        start = time.monotonic()
        run.finish()
        # 60 slow ones, 32 at once at the best: two seconds; one by one they would take a minute.
        assert time.monotonic() - start < 20
        assert server.counts()["completed"] == 600


# ---------------------------------------------------------------- memory


def peak_kib(folder: Path, server: Watched, count: int, chars: int) -> int:
    folder.mkdir()
    run = Run(folder, server, count, llm={"concurrency": 64}, chars=chars)
    code, out = run.end(3000)
    assert code == 0, run.stderr
    assert len(done_keys(run.ledger)) == count
    return int(out)


@pytest.mark.slow
def test_memory_does_not_grow_with_the_requests(tmp_path):
    """Bodies of 16 KB: ten times as many would take 29 MB more if they were gathered."""
    with Spawned() as server:
        few = peak_kib(tmp_path / "few", server, 200, 16000)
        many = peak_kib(tmp_path / "many", server, 2000, 16000)
    assert many - few < 10_000, f"{few} KiB for 200 requests, {many} KiB for 2,000"


@pytest.mark.slow
def test_memory_is_flat_from_1000_to_200_000_requests(tmp_path):
    """What is kept of a request is its key (about 170 bytes with its place in a set): 34 MB of 200,000.

    Gathered, the bodies alone would take 400 MB.
    """
    with Spawned() as server:
        few = peak_kib(tmp_path / "few", server, 1000, 2000)
        many = peak_kib(tmp_path / "many", server, 200_000, 2000)
    print(f"{few} KiB for 1,000 requests, {many} KiB for 200,000")  # noqa: T201
    assert many - few < 50_000, f"{few} KiB for 1,000 requests, {many} KiB for 200,000"


def test_two_runs_share_a_ledger(tmp_path):
    """Two processes on one ledger at once: every answer is kept once, and what both asked at once is not many."""
    with Spawned(delay_s=0.02) as server:
        runs = [Run(tmp_path, server, 300, replies=str(tmp_path / f"{n}.jsonl")) for n in range(2)]
        threads = [threading.Thread(target=run.finish) for run in runs]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [run.process.returncode for run in runs] == [0, 0]
        assert 300 <= server.counts()["completed"] <= 600
    assert len(done_keys(runs[0].ledger)) == 300
    assert (tmp_path / "0.jsonl").read_bytes() == (tmp_path / "1.jsonl").read_bytes()
