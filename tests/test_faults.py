"""Every fault that a server can have, one by one and mixed: what is asked again, given up, stopped, and kept.

The judge of each test is the server's own count (tests/fault_server.py) beside the ledger's.
"""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import fault_server
import pyarrow.parquet as pq
import pytest
import toy
from fault_server import NATURES, STOPS, TRANSIENT, FaultServer, Watched, check, clean, digest, no_longer_than, requests

from miner import llms, provider
from miner.config import Budget, Endpoint
from miner.errors import MinerError, ProviderStop
from miner.ledger import Ledger, Request
from miner.meter import Meter
from miner.store import tree_digest

KEY = "sk-toy-secret"
ONE = "<1>"  # in the question of the second request, and in no other


@dataclass
class Outcome:
    """What a run left: its replies by key, the error that stopped it, the ledger."""

    replies: dict[str, llms.Reply]
    stopped: MinerError | None
    ledger: Ledger
    seconds: float

    def answers(self) -> dict[str, Any]:
        return {line["custom_id"]: line["response"]["body"] for line in self.ledger.lines()}


@pytest.fixture
def engine(tmp_path, monkeypatch):
    """engine(server, requests, **llm settings): a run on the ledger of this test. Waits between tries are short."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setattr(provider, "FIRST_WAIT_S", 0.01)
    with ExitStack() as stack:

        def run(server: Watched | str, asked: list[Request], ledger: str = "ledger", **settings: Any) -> Outcome:
            address = server if isinstance(server, str) else server.url
            budget = Budget(**settings.pop("budget", {}))
            plain = {"structured": "none", "attempts": 4, "concurrency": 8, "timeout_s": 10, "outage_s": 20}
            endpoint = Endpoint(model="toy", base_url=address, **{**plain, **settings})
            book = Ledger(tmp_path / f"{ledger}.sqlite")
            stack.callback(book.close)
            meter = Meter(endpoint, book, budget)
            ask = llms.asker(lambda: llms.load(endpoint, meter), meter, lambda _: None)
            replies, stopped, start = {}, None, time.monotonic()
            try:
                with no_longer_than(10 + len(asked) / 20):
                    replies = {reply.request.key: reply for reply in ask(lambda: iter(asked), check)}
            except MinerError as error:
                stopped = error
            return Outcome(replies, stopped, book, time.monotonic() - start)

        yield run


def plan(*replies: str, where: str = ONE, **more: Any) -> dict[str, Any]:
    return {"where": where, "replies": list(replies), **more}


def assert_all_answered(outcome: Outcome, asked: list[Request]) -> None:
    """Each request has the answer of a server without faults, in the ledger as in the reply; nothing was given up."""
    assert outcome.stopped is None
    assert outcome.answers() == {request.key: clean(request.body) for request in asked}
    assert {key: reply.response for key, reply in outcome.replies.items()} == outcome.answers()
    assert {reply.error for reply in outcome.replies.values()} == {""}
    assert list(outcome.ledger.failures()) == []


def tries(server: Watched, request: Request) -> int:
    return len(server.stats()["keys"].get(request.key, {"arrived": []})["arrived"])


# ---------------------------------------------------------------- the server itself


def test_the_same_request_meets_the_same_faults():
    script = fault_server.Script(seed=3, share=0.3, nature_share=0.1)
    asked = list(requests(400))
    first = [[script.choice(r.key, nth, r.body, 0) for nth in range(5)] for r in asked]
    assert first == [[script.choice(r.key, nth, r.body, 0) for nth in range(5)] for r in reversed(asked)][::-1]
    flat = Counter(kind for kinds in first for kind in kinds[:3])
    share = sum(flat[kind] for kind in TRANSIENT) / flat.total()
    assert abs(share - 0.3) < 0.04
    assert set(TRANSIENT) < set(flat)
    assert all(kind in ("ok", *NATURES) for kinds in first for kind in kinds[3:])
    other = replace(script, seed=4)
    assert first != [[other.choice(r.key, nth, r.body, 0) for nth in range(5)] for r in asked]


def test_a_server_without_faults(engine):
    asked = list(requests(30))
    with FaultServer(delay_s=0.01) as server:
        assert_all_answered(engine(server, asked), asked)
        counts = server.counts()
        assert (counts["arrivals"], counts["completed"], counts["wasted"]) == (30, 30, 0)
        assert 1 < counts["peak"] <= 8
        assert_all_answered(engine(server, asked), asked)
        assert server.counts()["arrivals"] == 30


# ---------------------------------------------------------------- what passes


@pytest.mark.parametrize("fault", TRANSIENT)
def test_a_fault_that_passes_costs_one_more_try(engine, fault):
    asked = list(requests(3))
    with FaultServer(plans=[plan(fault)]) as server:
        outcome = engine(server, asked, timeout_s=0.4 if fault == "hang" else 10)
        assert_all_answered(outcome, asked)
        assert server.stats()["kinds"] == {"ok": 3, fault: 1}
        assert [tries(server, request) for request in asked] == [1, 2, 1]


def test_a_fault_before_any_answer_is_followed_by_one_greeting(engine):
    asked = list(requests(3))
    with FaultServer(plans=[plan("502")], delay_s=0.3) as server:  # the 502 comes at once
        assert_all_answered(engine(server, asked), asked)
        assert server.stats()["kinds"] == {"ok": 3, "502": 1}
        assert server.counts()["probes"] == 1


def test_faults_in_a_row_are_outlived(engine):
    asked = list(requests(3))
    with FaultServer(plans=[plan("500", "reset", "malformed")]) as server:
        assert_all_answered(engine(server, asked, attempts=4), asked)
        assert tries(server, asked[1]) == 4


@pytest.mark.parametrize(("fault", "wait_s"), [("429_seconds", 0.5), ("429_reset", 0.5), ("429_date", 0.0)])
def test_the_time_that_a_server_names_is_waited_for(engine, fault, wait_s):
    """429_date names the second after the next full one at most: so the wait is at most 1 s, and may be short."""
    asked = list(requests(1))
    with FaultServer(plans=[plan(fault, where="")], retry_after_s=0.5) as server:
        start = time.time()
        assert_all_answered(engine(server, asked), asked)
        first, second = server.stats()["keys"][asked[0].key]["arrived"]
    assert second - first >= wait_s
    if fault == "429_date":
        assert time.time() >= int(start + 1)
    assert second - first < 1.5


def test_an_answer_that_says_the_window_is_empty_is_heeded(engine):
    """x-ratelimit-remaining-requests: 0 beside a good answer: the next request comes when the window is new."""
    asked = list(requests(2))
    with FaultServer(plans=[plan("last_in_window", where="<0>")], slow_s=0.5) as server:
        assert_all_answered(engine(server, asked, concurrency=1), asked)
        keys = server.stats()["keys"]
    assert keys[asked[1].key]["arrived"][0] - keys[asked[0].key]["arrived"][0] >= 0.5


def test_a_slow_first_byte_is_waited_for(engine):
    asked = list(requests(3))
    with FaultServer(plans=[plan("slow")], slow_s=0.4) as server:
        assert_all_answered(engine(server, asked, timeout_s=5), asked)
        assert tries(server, asked[1]) == 1


def test_a_refusal_for_the_rate_never_loses_a_row(engine):
    """64 workers against a server that takes two at once: more refusals than `attempts`, and no tombstone."""
    asked = list(requests(150))
    with FaultServer(delay_s=0.01, concurrent=2) as server:
        assert_all_answered(engine(server, asked, concurrency=64, attempts=2), asked)
        assert server.counts()["completed"] == 150


def test_jitter_spreads_what_is_asked_again(engine, monkeypatch):
    """Twenty requests that fail together do not come back together: full jitter over one second."""
    monkeypatch.setattr(provider, "FIRST_WAIT_S", 0.5)
    asked = list(requests(20))
    with FaultServer(plans=[plan("409", where="")]) as server:
        assert_all_answered(engine(server, asked, concurrency=20), asked)
        waits = sorted(second - first for first, second in (k["arrived"] for k in server.stats()["keys"].values()))
    assert waits[-1] - waits[0] > 0.2
    assert waits[-1] < 3


# ---------------------------------------------------------------- what is given up


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        ("500", "HTTP 500: HTTP 500 by script"),
        ("409", "HTTP 409: HTTP 409 by script"),
        ("hang", "no answer within 0.2 s"),
        ("reset", "APIConnectionError"),
        ("close", "APIConnectionError"),
        ("malformed", "JSONDecodeError"),
        ("empty_choices", "ValueError: no choices"),
    ],
)
def test_a_fault_that_never_passes_ends_in_a_tombstone(engine, fault, told):
    """After `attempts` tries; not paid for again by the next run; asked again when somebody says so."""
    asked = list(requests(12))
    ill = asked[1]
    with FaultServer(plans=[plan(fault, forever=True)], delay_s=0.005) as server:
        outcome = engine(server, asked, attempts=3, timeout_s=0.2 if fault == "hang" else 10)
        assert outcome.stopped is None
        assert outcome.replies[ill.key].response is None
        assert outcome.replies[ill.key].error.startswith(told)
        assert tries(server, ill) == 3
        assert set(outcome.answers()) == {request.key for request in asked} - {ill.key}
        assert [(row["key"], row["attempts"]) for row in outcome.ledger.failures()] == [(ill.key, 3)]
        assert outcome.ledger.given_up(ill.key).startswith(told)
        again = engine(server, asked)
        assert again.replies[ill.key].error == outcome.replies[ill.key].error
        assert tries(server, ill) == 3
        server.change(plans=[])
        assert outcome.ledger.forget_failures() == 1
        assert_all_answered(engine(server, asked), asked)
        assert server.counts()["arrivals"] == 11 + 3 + 1


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        ("400", "HTTP 400: HTTP 400 by script"),
        ("422", "HTTP 422: HTTP 422 by script"),
        ("filter_400", "HTTP 400: blocked by the content filter (content_filter)"),
        ("too_long", "HTTP 400: the model's context has 4096 tokens, the request more (context_length_exceeded)"),
    ],
)
def test_a_request_refused_for_itself_is_asked_once_in_its_life(engine, fault, told):
    asked = list(requests(5))
    ill = asked[1]
    with FaultServer(plans=[plan(fault, forever=True)]) as server:
        outcome = engine(server, asked)
        again = engine(server, asked)
        for each in (outcome, again):
            assert (each.stopped, each.replies[ill.key].response, each.replies[ill.key].error) == (None, None, told)
        assert tries(server, ill) == 1
        assert outcome.ledger.given_up(ill.key) == told
        assert server.counts()["arrivals"] == len(asked)
        assert len(outcome.ledger) == 4


def shorter(request: Request) -> Request:
    system, user = request.body["messages"]
    half = {**user, "content": user["content"].replace("<", "<short ", 1)[:80]}
    return replace(request, shorter={**request.body, "messages": [system, half]})


@pytest.mark.parametrize("fault", ["too_long", *fault_server.TOO_LONG])
@pytest.mark.parametrize("fits", [True, False])
def test_a_request_that_is_too_long_is_shortened_once(engine, fault, fits):
    """Told by the code, or by the words of a known server."""
    asked = [shorter(request) for request in requests(3)]
    long, short = asked[1], Request(digest(asked[1].shorter), asked[1].shorter)
    plans = [plan(fault, forever=True)] + ([] if fits else [plan(fault, where="<short 1>", forever=True)])
    with FaultServer(plans=plans) as server:
        outcome = engine(server, asked)
        assert (tries(server, long), tries(server, short)) == (1, 1)
        assert server.counts()["arrivals"] == 4
        reply = outcome.replies[long.key]
        if fits:
            assert (reply.response, reply.error) == (clean(short.body), "")
            assert reply.note == outcome.ledger.mark(long.key) == "shortened"
        else:
            assert reply.response is None
            assert reply.error == outcome.ledger.given_up(long.key) != ""
        assert {outcome.replies[r.key].note for r in asked if r is not long} == {""}
        engine(server, asked)
        assert server.counts()["arrivals"] == 4


@pytest.mark.parametrize("fault", ["refusal", "filter_finish", "length", "wrong_model"])
def test_what_a_model_answered_is_kept_as_it_is(engine, fault):
    """A refusal and a cut answer are answers: paid for once, kept raw, told from others by the reader."""
    asked = list(requests(3))
    with FaultServer(plans=[plan(fault, forever=True)]) as server:
        outcome = engine(server, asked)
        assert tries(server, asked[1]) == 1
        assert server.counts()["arrivals"] == 3
    assert outcome.answers()[asked[1].key] == json.loads(fault_server.answers(asked[1].body)[fault]())
    assert outcome.replies[asked[1].key].error == ""
    assert [outcome.answers()[r.key] for r in (asked[0], asked[2])] == [clean(asked[0].body), clean(asked[2].body)]


# ---------------------------------------------------------------- answers that break the form


@pytest.mark.parametrize("fault", ["broken", "broken_always"])
@pytest.mark.parametrize("repair", [True, False])
def test_an_answer_that_breaks_the_form_is_repaired_once(engine, fault, repair):
    asked = list(requests(3))
    always = fault == "broken_always"
    plans = [plan(fault, forever=always, repairs=always)]
    with FaultServer(plans=plans) as server:
        outcome = engine(server, asked, repair=repair)
        assert server.counts()["arrivals"] == 3 + repair
        engine(server, asked, repair=repair)
        assert server.counts()["arrivals"] == 3 + repair
    reply, bad = outcome.replies[asked[1].key], json.loads(fault_server.answers(asked[1].body)[fault]())
    assert outcome.answers()[asked[1].key] == bad
    if repair and fault == "broken":
        assert reply.note == "repaired"
        assert reply.response["choices"] == clean(asked[1].body)["choices"]
    else:
        assert (reply.response, reply.note) == (bad, "")


def test_a_repair_shows_the_model_its_answer_and_the_error(engine):
    asked = list(requests(1))
    with FaultServer(plans=[plan("broken", where="")]) as server:
        outcome = engine(server, asked)
        (fixed,) = [key for key in outcome.ledger.keys() if key != asked[0].key]  # noqa: SIM118 - a method of Ledger
        body = outcome.ledger.request(fixed)
        assert server.stats()["keys"][digest(body)]["completed"] == 1
    *first, said, then = body["messages"]
    assert first == asked[0].body["messages"]
    assert said == {"role": "assistant", "content": '{"evidence": "", "grade": "high"}'}
    assert then["role"] == "user"
    assert "grade is not from 0 to 3" in then["content"]


# ---------------------------------------------------------------- what stops the run


@pytest.mark.parametrize("fault", STOPS)
def test_a_provider_that_refuses_everything_stops_the_run_and_loses_nothing(engine, fault):
    """What was in flight at the refusal is awaited and kept; nothing more is sent; no tombstone; then it goes on."""
    asked = list(requests(60))
    with FaultServer(delay_s=0.3, plans=[plan(fault, where="", after=20, forever=True)]) as server:
        outcome = engine(server, asked, concurrency=16)
        assert isinstance(outcome.stopped, ProviderStop)
        assert outcome.stopped.exit_code == 5
        assert KEY not in str(outcome.stopped)
        stats = server.stats()
        assert stats["completed"] == len(outcome.ledger) == 20
        assert stats["in_flight"] == 0
        assert stats["arrivals"] <= 20 + 16
        assert list(outcome.ledger.failures()) == []
        server.change(plans=[], delay_s=0.0)
        assert_all_answered(engine(server, asked), asked)
        assert server.counts()["completed"] == 60


# ---------------------------------------------------------------- several servers


def addresses(*servers: Watched, weights: tuple[float, ...] = ()) -> list[dict[str, Any]]:
    given = weights or (1.0,) * len(servers)
    return [{"base_url": server.url, "weight": weight} for server, weight in zip(servers, given, strict=True)]


def test_servers_share_the_requests_by_weight(engine):
    asked = list(requests(200))
    with FaultServer(delay_s=0.02) as one, FaultServer(delay_s=0.02) as two:
        outcome = engine(one, asked, replicas=addresses(one, two, weights=(3, 1)), concurrency=8)
        assert_all_answered(outcome, asked)
        counts = one.counts()["completed"], two.counts()["completed"]
    assert sum(counts) == 200
    assert 1.7 < counts[0] / counts[1] < 5


@pytest.mark.parametrize("fault", ["503", "hang_up", "hang", "401"])
def test_the_other_server_takes_the_share_of_a_dead_one(engine, fault):
    """The dead one is probed now and then, and not asked with every request; no row is lost to it."""
    asked = list(requests(200))
    with FaultServer(delay_s=0.01) as well, FaultServer(plans=[plan(fault, where="", forever=True)]) as ill:
        outcome = engine(well, asked, replicas=addresses(well, ill), timeout_s=0.3)
        assert_all_answered(outcome, asked)
        assert well.counts()["completed"] == 200
        assert 1 <= ill.counts()["arrivals"] + ill.counts()["probes"] <= 40


def test_a_server_that_comes_back_gets_its_share_again(engine):
    asked = list(requests(600))
    with FaultServer(delay_s=0.04) as well, FaultServer(delay_s=0.04) as ill:
        ill.change(plans=[{**plan("503", where="", forever=True), "after": 0}])

        def mend() -> None:
            well.until(lambda counts: counts["completed"] >= 100)
            ill.change(plans=[])

        mending = threading.Thread(target=mend)
        mending.start()
        outcome = engine(well, asked, replicas=addresses(well, ill), concurrency=4)
        mending.join()
        assert_all_answered(outcome, asked)
        assert ill.counts()["completed"] >= 50
        assert well.counts()["completed"] + ill.counts()["completed"] == 600


@pytest.mark.parametrize("fault", ["503", "hang_up"])
def test_when_all_are_dead_for_too_long_the_run_stops_without_a_tombstone(engine, fault):
    asked = list(requests(40))
    dead = [plan(fault, where="", after=10, forever=True)]
    with FaultServer(plans=dead, delay_s=0.02) as one, FaultServer(plans=dead, delay_s=0.02) as two:
        outcome = engine(one, asked, replicas=addresses(one, two), outage_s=1.0, attempts=3, concurrency=4)
        assert isinstance(outcome.stopped, ProviderStop)
        assert 1.0 <= outcome.seconds < 15
        assert list(outcome.ledger.failures()) == []
        assert len(outcome.ledger) == one.counts()["completed"] + two.counts()["completed"] == 20
        for server in (one, two):
            server.change(plans=[])
        assert_all_answered(engine(one, asked, replicas=addresses(one, two)), asked)


def test_nobody_listens(engine):
    with FaultServer() as gone:
        pass
    outcome = engine(gone, list(requests(4)), outage_s=0.5)
    assert isinstance(outcome.stopped, ProviderStop)
    assert list(outcome.ledger.failures()) == []


def test_a_short_outage_is_outlived_without_a_tombstone(engine):
    """Longer than all tries of one request, shorter than outage_s."""
    asked = list(requests(40))
    with FaultServer(plans=[plan("503", where="", after=10, forever=True)], delay_s=0.02) as server:

        def mend() -> None:
            server.until(lambda counts: counts["arrivals"] > 10)
            time.sleep(1.0)
            server.change(plans=[])

        mending = threading.Thread(target=mend)
        mending.start()
        outcome = engine(server, asked, attempts=3, concurrency=4)
        mending.join()
        assert_all_answered(outcome, asked)
        assert server.stats()["kinds"]["503"] < 60


def test_a_second_try_beside_a_slow_one(engine):
    asked = list(requests(6))
    with FaultServer(plans=[plan("slow")], slow_s=6.0, delay_s=0.01) as server:
        outcome = engine(server, asked, hedge_s=1.0)
        assert_all_answered(outcome, asked)
        assert outcome.seconds < 5
        assert tries(server, asked[1]) == 2
        assert server.counts()["completed"] == 6


# ---------------------------------------------------------------- the form that a server takes

SCHEMAS = ("json_schema", "structured_outputs", "json_object_schema")
# What the server takes (null: all), what it takes and ignores, the status for the rest; the form that is to be found.
FORMS = {
    "all": (None, (), 400, "json_schema"),
    "an option of vLLM": (("none", "structured_outputs"), (), 400, "structured_outputs"),
    "an older schema": (("none", "json_object", "json_object_schema"), (), 500, "json_object_schema"),
    "json mode": (("none", "json_object"), (), 400, "json_object"),
    "nothing": (("none",), (), 422, "none"),
    "nothing, with HTTP 500": (("none",), (), 500, "none"),
    "a schema that is ignored": (None, ("json_schema", "structured_outputs"), 400, "json_object_schema"),
    "json mode, schemas are ignored": (None, SCHEMAS, 400, "json_object"),
}


@pytest.mark.parametrize("name", FORMS)
def test_the_strongest_form_that_the_server_takes_is_found(engine, name):
    """By tiny requests before the first real one, which no row pays for; written down for the next run."""
    takes, ignores, status, expected = FORMS[name]
    asked = list(requests(20, form=True))
    with FaultServer(takes=takes, ignores=ignores, refuses_with=status) as server:
        assert_all_answered(engine(server, asked[:10], structured="auto"), asked[:10])
        stats = server.stats()
        assert [len(stats["keys"][r.key]["arrived"]) for r in asked[:10]] == [1] * 10
        assert stats["forms"] == {expected: 10}
        assert 1 <= stats["probes"] <= 16
        assert_all_answered(engine(server, asked, structured="auto"), asked)
        counts = server.counts()
        assert (counts["arrivals"], counts["probes"]) == (20, stats["probes"])


def test_a_probe_that_fails_by_accident_decides_nothing(engine):
    """A 503, a reset and a 429 in the way of the probe say nothing about forms."""
    asked = list(requests(5, form=True))
    with FaultServer(plans=[plan("503", "reset", "429", where="")]) as server:
        assert_all_answered(engine(server, asked, structured="auto"), asked)
        assert set(server.stats()["forms"]) == {"json_schema"}


# ---------------------------------------------------------------- all at once

# Those that take long get a small share: the others are what tries the logic.
QUICK = tuple(fault for fault in TRANSIENT if fault not in ("hang", "429_date"))
MIXED = (*TRANSIENT, *QUICK, *QUICK, *QUICK, "slow", "slow")


def assert_mixed_ends_alike(engine: Any, count: int, **settings: Any) -> None:
    """30% of all tries fail, and 10% of the requests have odd answers for ever: the ledgers and replies are equal."""
    asked = [shorter(request) for request in requests(count)]
    nature = {"seed": 0, "nature_share": 0.1, "delay_s": 0.002}
    with FaultServer(**nature) as calm:
        expected = engine(calm, asked, "calm", attempts=5, concurrency=64, **settings)
        assert calm.counts()["wasted"] == 0
    with FaultServer(**nature, share=0.3, faults=MIXED, slow_s=0.2) as wild:
        found = engine(wild, asked, "wild", attempts=5, concurrency=64, timeout_s=1.0, **settings)
        stats = wild.stats()
    faults = sum(stats["kinds"].get(fault, 0) for fault in {*TRANSIENT, "slow"})
    assert faults > 0.25 * stats["arrivals"]
    assert {*TRANSIENT, *NATURES} <= {*stats["kinds"]}
    assert expected.stopped is None
    assert found.stopped is None
    assert found.answers() == expected.answers()
    tombstones = [sorted((row["key"], row["reason"]) for row in each.ledger.failures()) for each in (expected, found)]
    assert tombstones[0] == tombstones[1]
    assert {key: reply[1:] for key, reply in found.replies.items()} == {
        key: reply[1:] for key, reply in expected.replies.items()
    }
    assert len(found.replies) == count
    assert any(reply.note == "repaired" for reply in found.replies.values())


def test_with_a_third_of_all_tries_failing_the_results_are_the_same(engine):
    assert_mixed_ends_alike(engine, 400)


@pytest.mark.slow
def test_with_a_third_of_5000_failing_the_results_are_the_same(engine):
    assert_mixed_ends_alike(engine, 5000)


def test_a_whole_job_ends_with_the_same_bytes(tmp_path, miner):
    """Through the command line: every judgment and every training file, faults or none."""
    tables, trees = [], []
    for name, script in (("calm", {}), ("wild", {"share": 0.3, "faults": MIXED, "slow_s": 0.2, "retry_after_s": 0})):
        with FaultServer(seed=2, delay_s=0.01, **script) as server:
            settings = toy.llm(server.url, concurrency=16, timeout_s=1.0)
            folder = tmp_path / name
            folder.mkdir()
            job = toy.job(folder, llm=settings, judge={"enabled": True, "pool": 5})
            miner("run", job, fresh=True)
            stats = server.stats()
        work: Path = job.with_suffix(".job")
        tables.append(pq.read_table(work / "judgments" / "judgments.parquet").to_pylist())
        trees.append(tree_digest(work / "export"))
        assert (sum(stats["kinds"].get(fault, 0) for fault in TRANSIENT) > 15) == (name == "wild")
    assert len(tables[0]) == 80
    assert tables[0] == tables[1]
    assert trees[0] == trees[1]
