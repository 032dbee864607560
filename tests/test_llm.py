"""What servers do to a client, and what becomes of it: tried again, given up, stopped, written down."""

from __future__ import annotations

import json
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable
from itertools import chain, repeat
from pathlib import Path
from typing import Any

import pytest
from loopback import SOON, Loopback, Reply, close_midway, completion, drip, failure, raw, reset_midway

from miner import llms, provider
from miner.config import Endpoint, Replica
from miner.errors import ProviderStop, UserError
from miner.ledger import Answer, Ledger, Request
from miner.llms import openai
from miner.meter import Meter

KEY = "sk-toy-secret"  # the key of conftest's environment
GOOD: Reply = (200, {}, completion("fine"))


def script(*replies: Reply) -> Callable[[dict[str, Any]], Reply]:
    """One reply after the other, the last one for ever."""
    left = chain(replies, repeat(replies[-1]))
    return lambda body: next(left)


def requests(count: int) -> list[Request]:
    return [
        Request(f"{i:04d}", {"model": "toy", "messages": [{"role": "user", "content": str(i)}]}) for i in range(count)
    ]


def answer(rows: Iterable[Request], done: Callable[[Request, Answer], None], url: str, **settings: Any) -> None:
    endpoint = Endpoint(model="toy", base_url=url, **{"attempts": 3, "structured": "json_schema", **settings})
    with tempfile.TemporaryDirectory() as folder:
        ledger = Ledger(Path(folder) / "ledger.sqlite")
        openai.OpenAIBackend(endpoint, Meter(endpoint, ledger), [(Replica(), KEY)]).answer(rows, done)
        ledger.close()


def ask(server: Loopback, count: int = 1, **settings: Any) -> dict[str, Answer]:
    found: dict[str, Answer] = {}

    def done(request: Request, answer: Answer) -> None:
        assert request.key not in found
        found[request.key] = answer

    answer(requests(count), done, server.url, **settings)
    return found


@pytest.fixture
def hurry(monkeypatch):
    monkeypatch.setattr(provider, "FIRST_WAIT_S", 0.001)


# ---------------------------------------------------------------- one request


@pytest.mark.usefixtures("hurry")
@pytest.mark.parametrize(
    ("first", "tries"),
    [
        ([failure(429, headers={"retry-after": "0.01"})], 2),
        ([failure(500), failure(502)], 3),
        ([failure(503), failure(504)], 3),
        ([failure(408), failure(409)], 3),
        ([failure(503, headers={"retry-after": "Wed, 21 Oct 2026 07:28:00 GMT"})], 2),
        ([failure(503, headers={"retry-after": "-1"})], 2),
        ([failure(503, headers={"retry-after": "nan"})], 2),
        ([(503, SOON, b"<html>come back later</html>")], 2),
        ([reset_midway], 2),
        ([close_midway], 2),
        ([raw(completion("fine")[:-20])], 2),
        ([raw("<html>welcome</html>"), raw("")], 3),
        ([raw(b"\xff\xfe\x00")], 2),
        ([raw("[" * 200_000)], 2),
        ([raw("null"), raw('{"error": {"message": "overloaded"}}')], 3),
        ([raw('{"choices": []}'), raw('{"choices": null}')], 3),
        ([raw('{"choices": ["a"]}'), raw('{"choices": [{"message": "a"}]}')], 3),
        ([raw('{"choices": {"0": {}}}')], 2),
    ],
)
def test_what_passes_is_tried_again(first, tries):
    with Loopback(script(*first, GOOD)) as server:
        found = ask(server)["0000"]
    assert found.error == ""
    assert found.response == json.loads(completion("fine"))
    assert tries == len(server.bodies)
    throttled = sum(callable(one) is False and one[0] == 429 for one in first)  # no try is lost to a rate limit
    assert found.attempts == tries - throttled


def test_a_server_that_names_its_time_is_waited_for():
    with Loopback(script(failure(429, headers={"retry-after": "0.3"}), GOOD)) as server:
        start = time.monotonic()
        assert ask(server)["0000"].error == ""
    assert len(server.bodies) == 2
    assert time.monotonic() - start >= 0.3


@pytest.mark.parametrize(
    ("given", "low", "high"),
    [
        ("7", 7, 7),
        ("3600", provider.LONGEST_WAIT_S, provider.LONGEST_WAIT_S),
        ("inf", provider.LONGEST_WAIT_S, provider.LONGEST_WAIT_S),
        ("-3", 0, 0),
        ("soon", 0, provider.FIRST_WAIT_S * 2),
        ("nan", 0, provider.FIRST_WAIT_S * 2),
        (None, 0, provider.FIRST_WAIT_S * 2),
    ],
)
def test_the_wait_is_bounded(given, low, high):
    import httpx2

    reply = httpx2.Response(
        429, headers={"retry-after": given} if given else {}, request=httpx2.Request("POST", "http://x")
    )
    failed = openai.openai.APIStatusError("no", response=reply, body=None)
    assert low <= provider.wait(1, failed) <= high


@pytest.mark.usefixtures("hurry")
@pytest.mark.parametrize("slow", [drip, lambda handler: time.sleep(0.6)])
def test_a_slow_answer_is_no_answer(slow):
    with Loopback(script(slow)) as server:
        start = time.monotonic()
        found = ask(server, attempts=2, timeout_s=0.2)["0000"]
        assert time.monotonic() - start < 2
    assert (found.response, found.error, found.attempts, found.final) == (None, "no answer within 0.2 s", 2, True)


@pytest.mark.usefixtures("hurry")
@pytest.mark.parametrize(
    ("reply", "told"),
    [
        (failure(503, "busy"), "HTTP 503: busy"),
        ((500, SOON, b"Oops"), "HTTP 500: Oops"),
        ((502, SOON, b'{"detail": "upstream"}'), "HTTP 502: {'detail': 'upstream'}"),
        (reset_midway, "APIConnectionError: Connection error. (ReadError)"),
        (raw("<html>"), "JSONDecodeError: Expecting value: line 1 column 1 (char 0)"),
        (raw('{"choices": []}'), "ValueError: no choices"),
    ],
)
def test_it_gives_up_after_attempts_and_says_why(reply, told):
    with Loopback(script(reply)) as server:
        found = ask(server)["0000"]
    assert (found.response, found.error, found.attempts, found.final) == (None, told, 3, True)
    assert len(server.bodies) == 3


@pytest.mark.usefixtures("hurry")
def test_a_dead_server_ends_the_run_and_costs_no_row():
    with Loopback() as server:
        url = server.url
    server.url = url
    found = {}
    with pytest.raises(ProviderStop, match=r"gives no answers .*ConnectError.*run again when it is back") as caught:
        answer(requests(40), lambda request, got: found.update({request.key: got}), url, attempts=6, outage_s=0)
    assert caught.value.exit_code == 5
    assert not found


@pytest.mark.parametrize("status", [400, 413, 422])
def test_a_request_refused_for_itself_is_not_repeated(status):
    """Final for this row alone."""
    with Loopback(
        lambda body: failure(status, "too long") if body["messages"][0]["content"] == "1" else GOOD
    ) as server:
        found = ask(server, 3)
    assert [found[key].error for key in sorted(found)] == ["", f"HTTP {status}: too long", ""]
    assert [found[key].final for key in sorted(found)] == [False, True, False]
    assert len(server.bodies) == 3


@pytest.mark.parametrize(
    "reply",
    [
        failure(401, f"Incorrect API key provided: {KEY}."),
        failure(403, "not for you"),
        failure(404, "no such model"),
        failure(429, "You exceeded your current quota", code="insufficient_quota"),
    ],
)
def test_a_provider_that_refuses_all_is_asked_no_more(reply):
    with Loopback(script(GOOD, GOOD, reply), delay_s=0.01) as server, pytest.raises(ProviderStop) as caught:
        ask(server, 100, concurrency=4)
    assert caught.value.exit_code == 5
    assert "the provider refuses every request (HTTP 4" in str(caught.value)
    assert KEY not in str(caught.value)
    assert len(server.bodies) <= 2 + 4


def test_the_key_is_taken_out_before_the_text_is_cut():
    for place in range(185, 202):
        assert "toy" not in provider.clean("x" * place + KEY, KEY)


def test_what_stops_a_worker_comes_out_as_itself():
    def rows():
        yield from requests(2)
        raise UserError("the disk is full")

    with Loopback(script(GOOD)) as server, pytest.raises(UserError, match="the disk is full"):
        answer(rows(), lambda *_: None, server.url)


@pytest.mark.parametrize("key", ["two words", "sk-ключ", "sk-toy\n", "sk-\x7f"])
def test_a_key_that_no_header_can_hold_is_told_by_name(tmp_path, monkeypatch, key):
    monkeypatch.setenv("TOY_KEY", key)
    endpoint = Endpoint(model="toy", api_key="${TOY_KEY}")
    meter = Meter(endpoint, Ledger(tmp_path / "ledger.sqlite"))
    with pytest.raises(UserError, match=r"\$\{TOY_KEY\} holds a character that no key has") as caught:
        llms.load(endpoint, meter)
    assert key.strip() not in str(caught.value)


def test_parameters_beyond_the_clients_own_reach_the_server():
    body = {"model": "toy", "messages": [], "top_k": 1, "seed": 3, "chat_template_kwargs": {"enable_thinking": False}}
    with Loopback(script(GOOD)) as server:
        answer([Request("a", body)], lambda *_: None, server.url)
    assert server.bodies == [body]
    assert server.headers[0]["authorization"] == f"Bearer {KEY}"


def test_never_more_in_flight_than_allowed():
    with Loopback(script(GOOD), delay_s=0.02) as server:
        ask(server, 40, concurrency=5)
    assert server.peak == 5


def test_requests_are_pulled_as_they_are_needed():
    ahead = Counter()

    def rows():
        for request in requests(50):
            ahead["pulled"] += 1
            assert ahead["pulled"] - ahead["done"] <= 4
            yield request

    def done(request: Request, answer: Answer) -> None:
        ahead["done"] += 1

    with Loopback(script(GOOD)) as server:
        answer(rows(), done, server.url, concurrency=3)
    assert ahead == {"pulled": 50, "done": 50}
