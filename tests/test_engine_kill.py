"""The LLM engine killed, interrupted and stopped: nothing that was answered is lost, nothing is paid for twice.

As a program, this file is the run that is killed: `python tests/test_engine_kill.py '{"ledger": …, "url": …}'`.
"""

from __future__ import annotations

import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import toy
from fault_server import Spawned, Watched, check, clean, digest, requests

from miner import llms
from miner.config import Budget, Endpoint
from miner.errors import MinerError
from miner.ledger import Ledger
from miner.meter import Meter

# An answer that the client has received and not yet committed when it dies: one turn of its loop, on a busy machine.
LATE_S = 1.0


@dataclass(frozen=True)
class Work:
    """What the program does. replies: file for the replies, or none. llm, budget: settings."""

    ledger: str
    url: str
    count: int
    llm: dict[str, Any]
    budget: dict[str, Any]
    chars: int = 200
    replies: str = ""


def work(given: Work) -> int:
    """Ask all requests. Writes the replies, one a line; prints the peak memory in KiB. Returns the exit code."""
    endpoint = Endpoint(model="toy", base_url=given.url, **{"structured": "none", "attempts": 4, **given.llm})
    ledger = Ledger(Path(given.ledger))
    meter = Meter(endpoint, ledger, Budget(**given.budget))
    ask = llms.asker(lambda: llms.load(endpoint, meter), meter, lambda _: None)
    try:
        with Path(given.replies or os.devnull).open("w", encoding="utf-8") as out:
            for reply in ask(lambda: requests(given.count, given.chars), check):
                out.write(json.dumps([reply.request.key, *reply[1:]]) + "\n")
    except MinerError as error:
        print(error, file=sys.stderr)  # noqa: T201
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    finally:
        ledger.close()
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)  # noqa: T201
    return 0


class Run:
    """`work` in a process of its own. started: those of this test, for the fixture below."""

    started: ClassVar[list[Run]] = []

    def __init__(self, folder: Path, server: Watched, count: int, **more: Any) -> None:
        self.ledger, self.replies = folder / "ledger.sqlite", folder / "replies.jsonl"
        llm = {"concurrency": 16, **more.pop("llm", {})}
        settings = {"count": count, "llm": llm, "budget": more.pop("budget", {}), **more}
        given = {"ledger": str(self.ledger), "url": server.url, "replies": str(self.replies)} | settings
        before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job would ignore Ctrl-C
        self.process = subprocess.Popen(
            [sys.executable, __file__, json.dumps(given)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "OPENAI_API_KEY": "sk-toy", "PYTHONWARNINGS": "error"},
        )
        signal.signal(signal.SIGINT, before)
        self.started.append(self)

    def end(self, timeout_s: float = 120) -> tuple[int, str]:
        """Exit code and stdout."""
        try:
            out, self.stderr = self.process.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            _, self.stderr = self.process.communicate()
            raise AssertionError(f"it did not end within {timeout_s} s\n{self.stderr}") from None
        return self.process.returncode, out

    def finish(self, timeout_s: float = 120) -> None:
        code, _ = self.end(timeout_s)
        assert code == 0, self.stderr


@pytest.fixture(autouse=True)
def none_left_behind():
    """A test that fails leaves no process running."""
    yield
    for run in Run.started:
        if run.process.poll() is None:
            run.process.kill()
            run.process.communicate()
    Run.started.clear()


def settled(server: Watched) -> dict[str, Any]:
    """What the server saw, when the last connection of a dead client is gone."""
    server.until(lambda counts: counts["in_flight"] == 0)
    return server.stats()


def done_keys(path: Path) -> set[str]:
    ledger = Ledger(path)
    try:
        return set(ledger.keys())
    finally:
        ledger.close()


def lines(path: Path) -> list[dict[str, Any]]:
    ledger = Ledger(path)
    try:
        return list(ledger.lines())
    finally:
        ledger.close()


# ---------------------------------------------------------------- kill -9


def assert_killed_is_the_same(tmp_path: Path, count: int, kills: int, seed: int) -> None:
    """Struck at `kills` moments: the answers and the replies of an undisturbed run, and what was asked again.

    In flight at a kill, as the server sees it: what it was working on, and what it had answered less than LATE_S before
    on a connection that asked nothing after it. Nothing else is completed a second time.
    """
    rng = random.Random(seed)
    for name in ("calm", "killed"):
        (tmp_path / name).mkdir()
    with Spawned(delay_s=0.02) as server:
        calm = Run(tmp_path / "calm", server, count)
        calm.finish()
        assert server.counts()["completed"] == count
    with Spawned(delay_s=0.02) as server:
        strikes = []
        for moment in sorted(rng.sample(range(1, count - 2 * kills), kills)):
            run = Run(tmp_path / "killed", server, count)
            server.until(lambda counts, moment=moment: counts["completed"] >= moment)
            time.sleep(rng.uniform(0, 0.02))
            run.process.kill()
            assert run.end()[0] == -signal.SIGKILL, "it ended before it was struck"
            stats = settled(server)
            kept = done_keys(run.ledger)
            strikes.append((stats, kept))
        run = Run(tmp_path / "killed", server, count)
        run.finish()
        final = server.stats()
    assert lines(run.ledger) == lines(calm.ledger)
    assert run.replies.read_bytes() == calm.replies.read_bytes()
    assert_paid_once(strikes, final, count)


def assert_paid_once(strikes: list[tuple[dict[str, Any], set[str]]], final: dict[str, Any], count: int) -> None:
    keys = final["keys"]
    assert len(keys) == count
    for stats, kept in strikes:  # what the ledger had is never asked again
        for key in kept:
            assert keys[key]["arrived"] == stats["keys"][key]["arrived"]
    in_flight = [{key for key, age, _ in stats["drops"] if age < LATE_S} for stats, _ in strikes]
    twice = {key: seen["completed"] for key, seen in keys.items() if seen["completed"] > 1}
    for key, times in twice.items():
        assert times - 1 <= sum(key in each for each in in_flight), "completed twice, and not in flight at a kill"
    bound = sum(len(each) for each in in_flight)
    assert final["completed"] - count <= bound
    assert all(len(each) <= 16 * (nth + 1) for nth, each in enumerate(in_flight))  # drops are counted from the start
    asked_again = sum(len(seen["arrived"]) - 1 for seen in keys.values())
    assert asked_again <= 16 * len(strikes)


def test_killed_four_times_it_ends_the_same(tmp_path):
    assert_killed_is_the_same(tmp_path, count=300, kills=4, seed=4)


@pytest.mark.slow
def test_killed_twenty_times_in_2000_requests_it_ends_the_same(tmp_path):
    assert_killed_is_the_same(tmp_path, count=2000, kills=20, seed=20)


@pytest.mark.slow
def test_a_budget_holds_over_kills(tmp_path):
    """What was in flight at a kill may have been charged: with it, the server's bill stays within the budget."""
    price = {"input": 100.0, "output": 200.0}
    with Spawned(delay_s=0.02) as server:
        for moment in (40, 90):
            run = Run(tmp_path, server, 2000, llm={"price": price}, budget={"max_cost": 2.0})
            server.until(lambda counts, moment=moment: counts["completed"] >= moment)
            run.process.kill()
            assert run.end()[0] == -signal.SIGKILL
        run = Run(tmp_path, server, 2000, llm={"price": price}, budget={"max_cost": 2.0})
        assert run.end()[0] == 4
        counts = server.counts()
    bill = (counts["prompt_tokens"] * price["input"] + counts["completion_tokens"] * price["output"]) / 1e6
    assert 0.5 < bill <= 2.0


# ---------------------------------------------------------------- Ctrl-C and SIGTERM


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_awaits_what_is_in_flight(tmp_path, how):
    """Nothing new is sent after the signal; everything that the server completes is in the ledger; then it goes on."""
    with Spawned(delay_s=0.8) as server:
        run = Run(tmp_path, server, 200)
        server.until(lambda counts: counts["in_flight"] >= 6 and counts["completed"] > 0)
        run.process.send_signal(how)
        time.sleep(0.3)
        seen = server.counts()
        assert seen["in_flight"] >= 6, "the drain has something to wait for"
        code, _ = run.end(20)
        assert code == 130, run.stderr
        stats = settled(server)
        assert stats["arrivals"] == seen["arrivals"]
        assert stats["completed"] == stats["arrivals"] == len(done_keys(run.ledger))
        server.change(delay_s=0.0)
        again = Run(tmp_path, server, 200)
        again.finish()
        assert server.counts()["completed"] == 200


@pytest.mark.slow
def test_a_second_interrupt_ends_at_once(tmp_path):
    with Spawned(delay_s=30.0) as server:
        run = Run(tmp_path, server, 50)
        server.until(lambda counts: counts["in_flight"] >= 6)
        run.process.send_signal(signal.SIGINT)
        time.sleep(0.5)
        assert run.process.poll() is None
        start = time.monotonic()
        run.process.send_signal(signal.SIGINT)
        assert run.end(20)[0] in (130, -signal.SIGINT), run.stderr
        assert time.monotonic() - start < 5
        assert "Traceback" not in run.stderr, run.stderr


@pytest.mark.slow
def test_an_interrupt_ends_the_wait_for_another_try(tmp_path):
    """A run that only waits (Retry-After: 30) has nothing in flight to await."""
    plans = [{"replies": ["429_seconds"], "forever": True}]
    with Spawned(plans=plans, retry_after_s=30) as server:
        run = Run(tmp_path, server, 50)
        server.until(lambda counts: counts["wasted"] >= 6)
        start = time.monotonic()
        run.process.send_signal(signal.SIGTERM)
        assert run.end(20)[0] == 130, run.stderr
        assert time.monotonic() - start < 5


def test_an_interrupted_job_loses_nothing(tmp_path, environment):
    """Through the command line: exit code 130, one line, every answer of the server in the ledger."""
    with Spawned(delay_s=0.5) as server:
        folder = tmp_path / "job"
        folder.mkdir()
        job = toy.job(folder, llm=toy.llm(server.url, structured="none"), judge={"enabled": True, "pool": 5})
        with (tmp_path / "log").open("w") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "miner", "run", str(job)], stdout=log, stderr=log, env=environment
            )
        server.until(lambda counts: counts["in_flight"] >= 6, 60)
        process.send_signal(signal.SIGTERM)
        shown = (tmp_path / "log").read_text
        try:
            assert process.wait(60) == 130, shown()
        finally:
            process.kill()
        stats = settled(server)
        answered = {digest(json.loads(body)) for body in _bodies(job.with_suffix(".job") / "ledger.sqlite")}
        assert answered == {key for key, seen in stats["keys"].items() if seen["completed"]}
        assert 0 < len(answered) == stats["arrivals"] < 80
    assert "interrupted; what is done is kept" in shown()


def _bodies(path: Path) -> list[str]:
    ledger = Ledger(path)
    try:
        return [json.dumps(ledger.request(key)) for key in ledger.keys()]  # noqa: SIM118 - a method of Ledger
    finally:
        ledger.close()


# ---------------------------------------------------------------- money, and a provider that stops


@pytest.mark.slow
@pytest.mark.parametrize("limit", ["max_cost", "max_tokens", "max_requests"])
def test_a_budget_is_kept_with_64_in_flight_and_over_a_restart(tmp_path, limit):
    """$1.00, or the same in tokens or requests: the server's own bill is the judge. A restart spends nothing more."""
    price = {"input": 20.0, "output": 40.0}  # a request of 72 and 10 tokens: 0.00184
    amount = {"max_cost": 1.0, "max_tokens": 45_000, "max_requests": 500}[limit]
    with Spawned(delay_s=0.5) as server:
        bills = []
        for _ in range(2):
            run = Run(tmp_path, server, 2000, llm={"concurrency": 64, "price": price}, budget={limit: amount})
            assert run.end()[0] == 4, run.stderr
            counts = settled(server)
            tokens = counts["prompt_tokens"], counts["completion_tokens"]
            spent = {
                "max_cost": (tokens[0] * price["input"] + tokens[1] * price["output"]) / 1e6,
                "max_tokens": sum(tokens),
                "max_requests": counts["arrivals"],
            }
            bills.append(spent[limit])
            assert len(done_keys(run.ledger)) == counts["completed"] == counts["arrivals"]
    assert counts["peak"] >= 16  # many at once; how many depends on the machine
    assert bills[0] <= amount
    assert bills[1] == bills[0], "the restart spent more"
    assert bills[0] > 0.95 * amount, "it stopped too early"


@pytest.mark.slow
def test_a_budget_is_kept_where_answers_are_paid_for_and_lost(tmp_path):
    """Cut replies and timeouts were worked for: they count as spent at the most that they can cost."""
    price = {"input": 10.0, "output": 20.0}
    faults = ["reset", "close", "truncated", "hang", "429", "503"]
    with Spawned(delay_s=0.02, share=0.4, faults=faults, most=2) as server:
        llm = {"concurrency": 64, "price": price, "timeout_s": 0.5}
        for _ in range(2):
            run = Run(tmp_path, server, 2000, llm=llm, budget={"max_cost": 0.5})
            assert run.end()[0] == 4, run.stderr
            counts = settled_or_hanging(server)
            bill = (counts["prompt_tokens"] * price["input"] + counts["completion_tokens"] * price["output"]) / 1e6
            assert 0.15 < bill <= 0.5


def settled_or_hanging(server: Watched) -> dict[str, Any]:
    time.sleep(0.2)
    return server.counts()


def test_what_was_answered_can_be_read_by_anyone(tmp_path):
    """The ledger of a killed run is sound: every answer in it is the server's own."""
    with Spawned(delay_s=0.02) as server:
        run = Run(tmp_path, server, 500)
        server.until(lambda counts: counts["completed"] >= 100)
        run.process.kill()
        run.end()
    found = {line["custom_id"]: line["response"]["body"] for line in lines(run.ledger)}
    expected = {request.key: clean(request.body) for request in requests(500)}
    assert len(found) > 50
    assert found.items() <= expected.items()


if __name__ == "__main__":
    sys.exit(work(Work(**json.loads(sys.argv[1]))))
