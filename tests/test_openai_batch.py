"""The Batch API against a loopback server: split, failed, expired, crashed, collected later; nothing is paid twice."""

from __future__ import annotations

import json
import logging
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import toy
from batches import BatchServer, Outcome, ask, completed, endpoint, good, late, refused, requests

from miner import provider
from miner.config import Budget
from miner.errors import BudgetReached, ProviderStop
from miner.ledger import Ledger, Request
from miner.llms import load
from miner.llms.openai_batch import NOT_COLLECTED
from miner.meter import Meter

PRICE = {"input": 1.0, "output": 10.0}  # a million tokens; half of it in a batch
CLIENT = Path(__file__).with_name("batches.py")


@pytest.fixture(autouse=True)
def _key(monkeypatch):
    monkeypatch.setenv("TOY_KEY", "sk-toy-secret")
    monkeypatch.setattr(provider, "FIRST_WAIT_S", 0.01)


def texts(replies) -> list[str]:
    return [r.response["choices"][0]["message"]["content"] if r.response else r.error for r in replies]


def echoes(count: int) -> list[str]:
    return [f"echo say {number}" for number in range(count)]


def read(path: Path, what: Callable[[Ledger], Any]) -> Any:
    ledger = Ledger(path)
    found = what(ledger)
    ledger.close()
    return found


def totals(path: Path) -> dict[str, float]:
    return read(path, Ledger.totals)


def notes(path: Path) -> dict[str, Any]:
    return read(path, lambda ledger: ledger.notes("batch "))


def submitted(server: BatchServer) -> dict[int, int]:
    """Number of the request -> how often the server got it."""
    return {int(key, 16): times for key, times in sorted(server.lines.items())}


def assert_clean(path: Path, server: BatchServer) -> None:
    """Nothing is left behind, here or there."""
    assert notes(path) == {}
    assert list((path.parent / "batches").iterdir()) == []
    assert {batch["input_file_id"] for batch in server.batches} <= set(server.deleted)


# ---------------------------------------------------------------- the straight way


def test_requests_are_split_answered_and_priced_at_the_batch_price(tmp_path):
    path = tmp_path / "ledger.sqlite"
    with BatchServer() as server:
        wanted = endpoint(server.url, batch={"lines": 4}, price=PRICE)
        replies = ask(path, lambda: requests(10), wanted)
        assert texts(replies) == echoes(10)
        assert server.sizes == [4, 4, 2]
        assert_clean(path, server)
        before = server.calls.copy()
        assert texts(ask(path, lambda: requests(10), wanted)) == echoes(10)
        assert server.calls == before, "a finished job asks nothing"
    (row,) = read(path, Ledger.stats)
    assert (row["requests"], row["state"], row["endpoint"], row["task"]) == (10, "done", "toy", "judge")
    assert row["cost"] == pytest.approx(10 * (100 * 1.0 + 10 * 10.0) / 1e6 * 0.5)
    metadata = server.batches[0]["metadata"]
    assert set(metadata) == {"miner_intent", "miner_ledger"}
    assert len({batch["metadata"]["miner_ledger"] for batch in server.batches}) == 1
    assert len({batch["metadata"]["miner_intent"] for batch in server.batches}) == 3


def test_a_file_of_requests_stays_below_its_size(tmp_path):
    path = tmp_path / "ledger.sqlite"
    with BatchServer() as server:
        wanted = endpoint(server.url, batch={"bytes": 1_000_000})
        assert texts(ask(path, lambda: requests(7, 300_000), wanted)) == echoes(7)
        assert server.sizes == [3, 3, 1]
        big = Request("f" * 64, next(requests(1, 1_000_000)).body, {})
        (reply,) = ask(path, lambda: iter([big]), wanted)
        assert reply.error == "larger than llm.batch.bytes (1000000)"
        assert len(server.batches) == 3
        assert read(path, lambda ledger: ledger.given_up("f" * 64)) == reply.error


# ---------------------------------------------------------------- failures of lines


def once(spoil):
    """The first batch has line 1 spoilt; later ones are fine."""

    def outcome(number, lines):
        if number:
            return completed(lines)
        return spoil(lines)

    return outcome


def with_second(bad):
    return lambda lines: Outcome("completed", [good(line) for line in lines if line is not lines[1]], bad(lines[1]))


AGAIN = {
    "a 500": with_second(lambda line: [refused(line, 500)]),
    "a 429": with_second(lambda line: [refused(line, 429)]),
    "expired": with_second(lambda line: [late(line)]),
    "cancelled line": with_second(lambda line: [late(line, "batch_cancelled")]),
    "timeout": with_second(lambda line: [late(line, "request_timeout")]),
    "missing in both files": with_second(lambda line: None),
    "no completion": with_second(lambda line: [{**good(line), "response": {"status_code": 200, "body": {}}}]),
    "unreadable": with_second(lambda line: [json.dumps(good(line))[:50]]),
    "a failed batch without a reason": lambda lines: Outcome(
        "failed", [good(line) for line in lines if line != lines[1]]
    ),
    "an expired batch, partial": lambda lines: Outcome(
        "expired", [good(line) for line in lines if line != lines[1]], [late(lines[1])]
    ),
    "a cancelled batch, rows missing": lambda lines: Outcome(
        "cancelled", [good(line) for line in lines if line != lines[1]], None
    ),
}


@pytest.mark.parametrize("what", AGAIN)
def test_what_came_back_without_an_answer_is_submitted_alone(tmp_path, what):
    path = tmp_path / "ledger.sqlite"
    with BatchServer(once(AGAIN[what])) as server:
        replies = ask(path, lambda: requests(4), endpoint(server.url))
    assert texts(replies) == echoes(4)
    assert submitted(server) == {0: 1, 1: 2, 2: 1, 3: 1}
    assert_clean(path, server)
    assert sum(row["attempts"] for row in read(path, Ledger.stats)) == 5


@pytest.mark.parametrize("status", ["expired", "cancelled", "completed"])
def test_a_batch_without_any_file_is_asked_again_whole(tmp_path, status):
    path = tmp_path / "ledger.sqlite"
    with BatchServer(once(lambda _: Outcome(status))) as server:
        assert texts(ask(path, lambda: requests(3), endpoint(server.url))) == echoes(3)
    assert server.sizes == [3, 3]


@pytest.mark.parametrize(
    ("bad", "told"),
    [
        (lambda line: refused(line, 400, "invalid_value", "bad temperature"), "HTTP 400: bad temperature"),
        (lambda line: refused(line, 400, "content_filter", "filtered"), "HTTP 400: filtered"),
        (lambda line: late(line, "content_filter"), "This request was not executed."),
        (lambda line: refused(line, 422), "HTTP 422: no luck"),
    ],
)
def test_a_line_that_is_refused_for_good_is_never_submitted_again(tmp_path, bad, told):
    path = tmp_path / "ledger.sqlite"
    with BatchServer(once(with_second(lambda line: [bad(line)]))) as server:
        wanted = endpoint(server.url)
        for _ in range(2):
            replies = ask(path, lambda: requests(3), wanted)
            assert texts(replies) == ["echo say 0", told, "echo say 2"]
    assert server.sizes == [3]
    assert_clean(path, server)


def test_tries_end(tmp_path):
    path = tmp_path / "ledger.sqlite"
    with BatchServer(lambda _, lines: Outcome("completed", None, [refused(line, 503) for line in lines])) as server:
        for _ in range(2):
            assert texts(ask(path, lambda: requests(2), endpoint(server.url, attempts=3))) == ["HTTP 503: no luck"] * 2
    assert server.sizes == [2, 2, 2]
    assert_clean(path, server)


def test_tries_are_counted_over_runs_that_do_not_wait(tmp_path):
    path = tmp_path / "ledger.sqlite"
    with BatchServer(
        lambda _, lines: Outcome("completed", None, [refused(line, 503) for line in lines], None, 0)
    ) as server:
        wanted = endpoint(server.url, attempts=3, batch={"wait": False})
        found = [texts(ask(path, lambda: requests(2), wanted))[0] for _ in range(5)]
    assert found == [NOT_COLLECTED] * 3 + ["HTTP 503: no luck"] * 2
    assert server.sizes == [2, 2, 2]
    assert_clean(path, server)


def test_doubled_foreign_and_unreadable_lines_are_counted_and_ignored(tmp_path, caplog):
    def outcome(_, lines):
        first = good(lines[0])
        other = json.loads(json.dumps(first).replace("echo", "other"))
        foreign = {**first, "custom_id": "f" * 64}
        rest = [good(line) for line in lines[1:]]
        return Outcome("completed", [first, other, foreign, "{", "[]", "", *rest], [refused(lines[0], 500)])

    path = tmp_path / "ledger.sqlite"
    with BatchServer(outcome) as server, caplog.at_level(logging.WARNING, "miner"):
        assert texts(ask(path, lambda: requests(3), endpoint(server.url))) == echoes(3)
    assert caplog.messages == ["batch batch_0: lines ignored: 2 doubled, 1 foreign, 2 unreadable"]
    assert server.sizes == [3]


def test_a_good_line_beats_a_failure_that_stands_before_it(tmp_path):
    def outcome(_, lines):
        return Outcome("completed", [refused(lines[0], 500), good(lines[0])])

    with BatchServer(outcome) as server:
        assert texts(ask(tmp_path / "ledger.sqlite", lambda: requests(1), endpoint(server.url))) == echoes(1)
    assert server.sizes == [1]


def test_a_request_too_long_is_asked_shorter_and_marked(tmp_path):
    def outcome(number, lines):
        if number == 0:
            bad = [
                refused(line, 400, "context_length_exceeded", "maximum context length is 8 tokens") for line in lines
            ]
            return Outcome("completed", None, bad)
        return completed(lines)

    def asked():
        for request in requests(2):
            short = {**request.body, "messages": [{"role": "user", "content": "short"}]}
            yield Request(request.key, request.body, request.about, short if request.key.endswith("1") else None)

    path = tmp_path / "ledger.sqlite"
    with BatchServer(outcome) as server:
        replies = ask(path, asked, endpoint(server.url))
    assert texts(replies) == ["HTTP 400: maximum context length is 8 tokens", "echo short"]
    assert [reply.note for reply in replies] == ["", "shortened"]
    assert server.sizes == [2, 1]


@pytest.mark.parametrize(("status", "code"), [(401, None), (404, "model_not_found"), (429, "insufficient_quota")])
def test_a_line_that_tells_that_nothing_will_succeed_stops_the_run(tmp_path, status, code):
    path = tmp_path / "ledger.sqlite"
    with BatchServer(once(with_second(lambda line: [refused(line, status, code)]))) as server:
        with pytest.raises(ProviderStop, match=f"HTTP {status}: no luck"):
            ask(path, lambda: requests(3), endpoint(server.url))
        assert texts(ask(path, lambda: requests(3), endpoint(server.url))) == echoes(3)
    assert submitted(server) == {0: 1, 1: 2, 2: 1}


# ---------------------------------------------------------------- failures of whole batches


BAD = {"code": "invalid_json_line", "line": 3, "message": "This line is not\nparseable as valid JSON."}


@pytest.mark.parametrize("wait", [True, False])
def test_a_batch_refused_as_a_whole_stops_the_run_and_frees_its_money(tmp_path, wait):
    path, budget = tmp_path / "ledger.sqlite", {"max_tokens": 100_000}
    with BatchServer(once(lambda _: Outcome("failed", refused=[BAD], looks=0))) as server:
        wanted = endpoint(server.url, batch={"wait": wait})
        if not wait:
            assert texts(ask(path, lambda: requests(3), wanted, budget)) == [NOT_COLLECTED] * 3
            assert totals(path)["tokens"] > 3 * 50
        told = r"batch batch_0 was refused as a whole \(line 3: This line is not parseable as valid JSON.\)"
        with pytest.raises(ProviderStop, match=told):
            ask(path, lambda: requests(3), wanted, budget)
        assert totals(path)["tokens"] == 0
        assert len(server.batches) == 1
        assert texts(ask(path, lambda: requests(3), endpoint(server.url), budget)) == echoes(3)
    assert totals(path)["tokens"] == 3 * 110


def test_a_batch_that_the_queue_has_no_room_for_waits_for_the_others(tmp_path):
    full = {"code": "token_limit_exceeded", "line": None, "message": "Enqueued token limit reached for toy."}

    def outcome(number, lines):
        if number == 1:
            return Outcome("failed", refused=[full])
        return completed(lines)._replace(looks=5)

    path = tmp_path / "ledger.sqlite"
    with BatchServer(outcome) as server:
        assert texts(ask(path, lambda: requests(4), endpoint(server.url, batch={"lines": 2}))) == echoes(4)
    assert server.sizes == [2, 2, 2]
    told = r"queue is too short for one batch; lower llm\.batch\.lines"
    with BatchServer(lambda *_: Outcome("failed", refused=[full])) as server, pytest.raises(ProviderStop, match=told):
        ask(tmp_path / "other.sqlite", lambda: requests(4), endpoint(server.url))


# ---------------------------------------------------------------- the server is out


@pytest.mark.parametrize("operation", ["upload", "create", "look", "content"])
def test_429_500_garbage_and_a_lost_reply_are_tried_again(tmp_path, operation):
    path = tmp_path / "ledger.sqlite"
    with BatchServer() as server:
        server.faults[operation] = [429, 500, *(["garbage"] if operation != "content" else []), "lost"]
        assert texts(ask(path, lambda: requests(3), endpoint(server.url, attempts=6))) == echoes(3)
        assert server.faults[operation] == []
    assert server.sizes == [3], "a create whose reply was lost is found again"


@pytest.mark.parametrize("operation", ["upload", "create", "look", "content"])
def test_401_stops_the_run_and_the_next_one_goes_on(tmp_path, operation):
    path = tmp_path / "ledger.sqlite"
    with BatchServer() as server:
        server.faults[operation] = [401]
        with pytest.raises(ProviderStop, match=r"^the provider refuses the batch \(HTTP 401: scripted\); check key"):
            ask(path, lambda: requests(3), endpoint(server.url))
        assert texts(ask(path, lambda: requests(3), endpoint(server.url))) == echoes(3)
    assert len(server.batches) == 1
    assert_clean(path, server)


def test_a_wrong_key_is_not_told_even_where_the_server_echoes_it(tmp_path):
    with BatchServer() as server:
        server.key = "sk-right"
        with pytest.raises(ProviderStop, match=re.escape("Incorrect API key provided: Bearer ***")):
            ask(tmp_path / "ledger.sqlite", lambda: requests(1), endpoint(server.url))


def test_a_server_that_stays_out_stops_the_run(tmp_path):
    with BatchServer() as server:
        server.faults["upload"] = [500] * 9
        with pytest.raises(ProviderStop, match=r"the provider gives no answer \(HTTP 500: scripted\)"):
            ask(tmp_path / "ledger.sqlite", lambda: requests(1), endpoint(server.url, attempts=3))
        assert server.calls["upload"] == 3


def test_an_unknown_batch_is_told_and_can_be_forgotten(tmp_path):
    path = tmp_path / "ledger.sqlite"
    with BatchServer() as server:
        wanted = endpoint(server.url, batch={"wait": False})
        ask(path, lambda: requests(2), wanted)
        lost = server.batches.pop()
        with pytest.raises(ProviderStop, match="batch batch_0 is not there; use the key that") as caught:
            ask(path, lambda: requests(2), wanted)
        pattern = re.search(r"delete (\S+) to submit", str(caught.value))[1]
        for file in Path(pattern).parent.glob(Path(pattern).name):
            file.unlink()
        assert texts(ask(path, lambda: requests(2), endpoint(server.url))) == echoes(2)
        assert lost["metadata"] != server.batches[0]["metadata"]


def test_results_that_are_gone_are_asked_again(tmp_path, caplog):
    path = tmp_path / "ledger.sqlite"
    with BatchServer() as server, caplog.at_level(logging.WARNING, "miner"):
        server.faults["content"] = [404]
        assert texts(ask(path, lambda: requests(2), endpoint(server.url))) == echoes(2)
    assert server.sizes == [2, 2]
    assert "is gone at the provider" in caplog.messages[0]


# ---------------------------------------------------------------- runs that end early


def test_a_run_need_not_wait(tmp_path):
    path = tmp_path / "ledger.sqlite"
    with BatchServer(lambda _, lines: completed(lines)._replace(looks=10**6)) as server:
        wanted = endpoint(server.url, batch={"wait": False, "lines": 3})
        for count in (4, 4, 6):  # the third run asks for two more
            replies = ask(path, lambda count=count: requests(count), wanted)
            assert texts(replies) == [NOT_COLLECTED] * count
        assert submitted(server) == dict.fromkeys(range(6), 1)
        assert server.sizes == [3, 1, 2]
        server.release()
        assert texts(ask(path, lambda: requests(6), wanted)) == echoes(6)
        assert len(server.batches) == 3
        assert_clean(path, server)


def test_what_nobody_asks_for_any_more_is_collected_but_not_waited_for(tmp_path):
    path = tmp_path / "ledger.sqlite"
    with BatchServer(lambda n, lines: completed(lines)._replace(looks=1 if n else 10**6)) as server:
        ask(path, lambda: requests(2), endpoint(server.url, batch={"wait": False}))
        others = [request for request in requests(4) if int(request.key, 16) > 1]
        assert texts(ask(path, lambda: iter(others), endpoint(server.url))) == echoes(4)[2:]
        assert len(notes(path)) == 1
        server.release()
        more = list(requests(5))[4:]
        ask(path, lambda: iter(more), endpoint(server.url))
        calls = server.calls.copy()
        assert texts(ask(path, lambda: requests(5), endpoint(server.url))) == echoes(5)
        assert server.calls == calls
    assert_clean(path, server)


class Client:
    """A run in a process of its own."""

    def __init__(self, path: Path, url: str, count: int, environment: dict[str, str], **options: Any) -> None:
        command = [sys.executable, str(CLIENT), str(path), url, str(count), json.dumps(options)]
        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
        )
        signal.signal(signal.SIGINT, before)

    def end(self, timeout_s: float = 60) -> tuple[int, str, str]:
        out, error = self.process.communicate(timeout=timeout_s)
        return self.process.returncode, out, error


@pytest.fixture
def at(environment, tmp_path):
    """Run a client that gets a signal when the server is asked for an operation: before it is carried out."""

    def run(server: BatchServer, operation: str, how: int, skip: int = 0, **options: Any) -> tuple[int, str, str]:
        clients: list[Client] = []

        def strike() -> None:
            os.kill(clients[0].process.pid, how)

        server.faults[operation] = [*[lambda: None] * skip, strike]
        with server._lock:
            clients.append(Client(tmp_path / "ledger.sqlite", server.url, 6, environment, **options))
        return clients[0].end()

    return run


@pytest.mark.parametrize(
    ("operation", "skip"), [("upload", 0), ("upload", 1), ("create", 0), ("create", 1), ("look", 1), ("content", 1)]
)
def test_killed_at_any_call_nothing_is_submitted_twice(tmp_path, at, operation, skip):
    """The server carries out what it was asked for in the moment of the kill; so `create` is a crash after submit."""
    path, budget = tmp_path / "ledger.sqlite", {"max_tokens": 100_000}
    with BatchServer() as server:
        batch = {"lines": 3, "poll_s": 0.01}
        code, _, error = at(server, operation, signal.SIGKILL, skip, batch=batch, budget=budget)
        assert code == -signal.SIGKILL, error
        assert texts(ask(path, lambda: requests(6), endpoint(server.url, batch=batch), budget)) == echoes(6)
        assert submitted(server) == dict.fromkeys(range(6), 1)
        assert_clean(path, server)
    assert totals(path)["tokens"] == 6 * 110, "what was reserved for the killed run is settled or given back"


def test_killed_again_and_again_it_ends_with_each_request_submitted_once(tmp_path, at):
    path = tmp_path / "ledger.sqlite"
    with BatchServer() as server:
        for operation, skip in (("upload", 1), ("create", 0), ("look", 1), ("content", 0)):
            code, _, error = at(server, operation, signal.SIGKILL, skip, batch={"lines": 2, "poll_s": 0.01})
            assert code == -signal.SIGKILL, error
        assert texts(ask(path, lambda: requests(6), endpoint(server.url))) == echoes(6)
        assert submitted(server) == dict.fromkeys(range(6), 1)


def test_ctrl_c_leaves_the_batches_at_the_provider(tmp_path, at):
    path = tmp_path / "ledger.sqlite"
    with BatchServer(lambda _, lines: completed(lines)._replace(looks=10**6)) as server:
        code, _, error = at(server, "look", signal.SIGINT, 2)
        assert "KeyboardInterrupt" in error
        assert code
        assert [batch["status"] for batch in server.batches] == ["in_progress"]
        server.release()
        assert texts(ask(path, lambda: requests(6), endpoint(server.url))) == echoes(6)
        assert submitted(server) == dict.fromkeys(range(6), 1)


def test_a_kill_while_the_file_is_written_gives_the_money_back(tmp_path):
    path, budget = tmp_path / "ledger.sqlite", {"max_tokens": 100_000}

    def stream():
        yield from requests(3)
        raise KeyboardInterrupt

    with BatchServer() as server:
        wanted = endpoint(server.url)
        ledger = Ledger(path)
        meter = Meter(wanted, ledger, Budget(**budget))
        with pytest.raises(KeyboardInterrupt):
            load(wanted, meter).answer(stream(), lambda *_: None)
        ledger.close()
        assert totals(path)["tokens"] > 3 * 50
        assert server.calls == {}
        (torn,) = (tmp_path / "batches").glob("*.rows-0.jsonl")
        torn.write_bytes(torn.read_bytes() + b'{"key": "half')
        assert texts(ask(path, lambda: requests(3), wanted, budget)) == echoes(3)
        assert submitted(server) == {0: 1, 1: 1, 2: 1}
    assert totals(path)["tokens"] == 3 * 110


# ---------------------------------------------------------------- budget


def most_tokens(number: int) -> int:
    """Reserved for a request: a token a byte, what a chat template may add, and the longest answer."""
    return len(f"say {number} ") + 16 + 8 + 50


@pytest.mark.parametrize("wait", [True, False])
def test_the_budget_in_dollars_holds_at_the_batch_price(tmp_path, wait):
    path = tmp_path / "ledger.sqlite"
    one = (most_tokens(0) - 50 + 50 * 10.0) / 1e6 * 0.5
    budget = {"max_cost": 3.5 * one}
    with BatchServer() as server:
        wanted = endpoint(server.url, price=PRICE, batch={"wait": wait})
        with pytest.raises(BudgetReached, match=r"budget\.max_cost"):
            ask(path, lambda: requests(9), wanted, budget)
        assert server.sizes == [3]
        if not wait:
            assert totals(path)["cost"] == pytest.approx(3 * one)
            server.release()
            with pytest.raises(BudgetReached):
                ask(path, lambda: requests(9), wanted, budget)
        else:
            assert totals(path)["cost"] == pytest.approx(3 * (100 + 10 * 10.0) / 1e6 * 0.5)
        assert read(path, len) == 3
    assert totals(path)["cost"] <= budget["max_cost"]


def test_the_budget_in_requests_counts_each_try(tmp_path):
    path, budget = tmp_path / "ledger.sqlite", {"max_requests": 5}
    with BatchServer(once(with_second(lambda line: [late(line)]))) as server:
        assert texts(ask(path, lambda: requests(4), endpoint(server.url), budget)) == echoes(4)
        assert totals(path)["requests"] == 4 + 1
        with pytest.raises(BudgetReached, match=r"budget\.max_requests"):
            ask(path, lambda: requests(5), endpoint(server.url), budget)
        assert server.sizes == [4, 1]


def test_a_try_again_beyond_the_budget_ends_the_run_and_is_kept_for_the_next(tmp_path):
    path = tmp_path / "ledger.sqlite"
    with BatchServer(once(with_second(lambda line: [late(line)]))) as server:
        with pytest.raises(BudgetReached):
            ask(path, lambda: requests(3), endpoint(server.url), {"max_requests": 3})
        assert len(notes(path)) == 1
        assert texts(ask(path, lambda: requests(3), endpoint(server.url), {"max_requests": 4})) == echoes(3)
    assert submitted(server) == {0: 1, 1: 2, 2: 1}
    assert_clean(path, server)


# ---------------------------------------------------------------- whole jobs


STAGES = {"judge": {"enabled": True, "pool": 4}, "generator": {"enabled": True, "max_share": 0.4}}


@pytest.mark.parametrize("stages", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_job_submits_ends_with_3_and_collects_in_later_runs(tmp_path, miner, stages):
    with BatchServer(lambda _, lines: completed(lines)._replace(looks=0)) as server:
        llm = toy.llm(server.url, backend="openai-batch", batch={"wait": False})
        job = toy.job(tmp_path, llm=llm, mining={"negatives": 4}, **dict(list(STAGES.items())[:stages]))
        codes = []
        while not codes or codes[-1] == 3:
            done = miner("run", job, check=False)
            codes.append(done.returncode)
            assert len(codes) < 6, done.stderr
        assert codes == [3] * (len(codes) - 1) + [0], done.stderr
        assert len(codes) > stages
        assert set(server.lines.values()) == {1}
    assert list((tmp_path / "job.job" / "batches").iterdir()) == []


@pytest.mark.slow
def test_memory_stays_flat(tmp_path, environment):
    """The peak of a client that submits and collects 200,000 requests, and of one that does so with 20,000."""
    peaks = {}
    with BatchServer(lambda _, lines: completed(lines)._replace(looks=0)) as server:
        for count in (20_000, 200_000):
            options = {"batch": {"lines": 10_000, "poll_s": 0.01}, "size": 200}
            client = Client(tmp_path / str(count) / "ledger.sqlite", server.url, count, environment, **options)
            code, out, error = client.end(900)
            assert code == 0, error
            found = json.loads(out)
            assert found["answered"] == count
            peaks[count] = found["peak_mb"]
    assert peaks[200_000] < peaks[20_000] + 50, peaks
