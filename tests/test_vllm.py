"""Backend vllm. The pure parts run anywhere; what is marked vllm runs a real engine on a real small model.

    MINER_VLLM_MODEL=<folder of a small chat model> pytest -m vllm tests/test_vllm.py

Without a GPU also VLLM_CPU_KVCACHE_SPACE=1 VLLM_CPU_OMP_THREADS_BIND=nobind OMP_NUM_THREADS=1.
"""

from __future__ import annotations

import importlib.util
import json
import math
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow.parquet as pq
import pytest
import toy

from miner import ledger_shards, llms, prompts
from miner.answers import label_probabilities
from miner.config import Budget, Endpoint, Engine
from miner.errors import BudgetReached, ProviderStop, UserError
from miner.ledger import Answer, Ledger, Request
from miner.llms import ray as over
from miner.llms import ray_actor
from miner.llms.vllm import Refused, Vllm, VllmBackend
from miner.llms.vllm_chat import LOWEST, chat_completion, in_order, sampling
from miner.meter import Meter
from miner.store import digest

MODEL = os.environ.get("MINER_VLLM_MODEL", "")
real = [
    pytest.mark.vllm,
    pytest.mark.skipif(
        not MODEL or importlib.util.find_spec("vllm") is None, reason="needs vllm, and a model in MINER_VLLM_MODEL"
    ),
    pytest.mark.filterwarnings("default"),
]
SCHEMA = {
    "type": "object",
    "properties": {"grade": {"type": "integer", "enum": [0, 1, 2, 3]}},
    "required": ["grade"],
}
# float32 in batches of any size gives the same words; bfloat16 may not.
ENGINE = {"dtype": "float32", "max_model_len": 2048, "enforce_eager": True, "max_num_seqs": 8}


def make(text: str, shorter: dict[str, Any] | None = None, **body: Any) -> Request:
    whole = {
        "model": "tiny",
        "messages": [{"role": "system", "content": "You judge."}, {"role": "user", "content": text}],
        **{"temperature": 0, "max_tokens": 8, **body},
    }
    return Request(digest(whole), whole, {"task": "judge"}, shorter)


# ---------------------------------------------------------------- a chat body as sampling parameters


def test_a_body_becomes_sampling_parameters():
    body = make("x", top_p=0.5, seed=13, stop=["\n"], n=2, presence_penalty=0.5, top_k=4, min_p=0.1).body
    assert sampling(body) == {
        **{"temperature": 0, "top_p": 0.5, "n": 2, "seed": 13, "stop": ["\n"], "presence_penalty": 0.5},
        **{"top_k": 4, "min_p": 0.1, "max_tokens": 8},
    }


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ({"max_tokens": None}, {"max_tokens": None}),
        ({"max_completion_tokens": 5}, {"max_tokens": 5}),
        ({"stop": None, "seed": None}, {"max_tokens": 8}),
        ({"logprobs": True}, {"max_tokens": 8, "logprobs": 0}),
        ({"logprobs": True, "top_logprobs": 10}, {"max_tokens": 8, "logprobs": 10}),
        ({"logprobs": False}, {"max_tokens": 8}),
        ({"logit_bias": {"7": -100}}, {"max_tokens": 8, "logit_bias": {7: -100}}),
    ],
)
def test_what_is_not_said_is_left_to_openais_default(more, expected):
    assert sampling(make("x", **more).body) == {"temperature": 0, **expected}


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ({"response_format": {"type": "text"}}, None),
        ({"response_format": {"type": "json_object"}}, {"json_object": True, "disable_any_whitespace": True}),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "judge", "schema": SCHEMA}}},
            {"json": SCHEMA, "disable_any_whitespace": True},
        ),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "judge", "schema": {}}}}, None),
        (
            {"response_format": {"type": "json_object"}, "structured_outputs": {"choice": ["Yes", "No"]}},
            {"choice": ["Yes", "No"]},
        ),
    ],
)
def test_the_form_of_an_answer(more, expected):
    assert sampling(make("x", **more).body).get("structured_outputs") == expected


def test_the_form_of_every_shipped_prompt_is_one_that_the_backend_takes():
    endpoint = Endpoint(model="m", backend="vllm", identity="vllm")
    for path in sorted((prompts.SHIPPED).glob("*/*.md")):
        prompt = prompts.parse_file(path)
        given = dict.fromkeys(prompt.front.inputs, "x")
        found = sampling(llms.request(endpoint, prompt, {}, **given).body)
        assert ("structured_outputs" in found) == bool(prompt.front.answer_schema), path
        assert found["max_tokens"] > 0


def test_a_key_that_means_nothing_here_is_named():
    with pytest.raises(UserError, match="reasoning_effort is no parameter of backend vllm"):
        sampling(make("x", reasoning_effort="low").body)


def test_an_answer_that_is_drawn_does_not_depend_on_its_neighbours():
    drawn = make("x", temperature=0.7)
    assert sampling(drawn.body, drawn.key)["seed"] == int(drawn.key[:8], 16)
    assert sampling({**drawn.body, "seed": 13}, drawn.key)["seed"] == 13
    assert "seed" not in sampling(make("x").body, "ff" * 32)


def test_shared_prefixes_are_neighbours():
    texts = [f"query {query} passage {passage}" for query in range(3) for passage in range(4)]
    mixed = [make(text) for text in texts]
    random.Random(7).shuffle(mixed)
    assert [request.body["messages"][1]["content"] for request in in_order(mixed)] == texts
    twins = [make("same", top_p=p) for p in (0.1, 0.2, 0.3)]
    assert in_order(twins) == in_order(twins[::-1]) == sorted(twins, key=lambda request: request.key)


# ---------------------------------------------------------------- an output as chat completion


def said(text: str, tokens: int = 3, finish: str | None = "stop", **more: Any) -> SimpleNamespace:
    """As vllm.RequestOutput."""
    one = SimpleNamespace(index=0, text=text, token_ids=list(range(tokens)), finish_reason=finish, logprobs=None)
    vars(one).update(more)
    return SimpleNamespace(outputs=[one], prompt_token_ids=[1] * 20, num_cached_tokens=16)


def test_an_output_becomes_a_chat_completion():
    request = make("x")
    found = chat_completion(said("Yes"), request, None, "0.32.0")
    assert llms.completion(found) == found == json.loads(json.dumps(found))
    assert found["choices"] == [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "Yes"},
            "logprobs": None,
            "finish_reason": "stop",
        }
    ]
    assert found["usage"] == {
        **{"prompt_tokens": 20, "completion_tokens": 3, "total_tokens": 20 + 3},
        "prompt_tokens_details": {"cached_tokens": 16},
    }
    assert (found["model"], found["system_fingerprint"], found["created"]) == ("tiny", "vllm-0.32.0", 0)


def test_log_probabilities_take_openais_form():
    def token(text: str, probability: float) -> SimpleNamespace:
        logprob = math.log(probability) if probability else -math.inf
        return SimpleNamespace(decoded_token=text, logprob=logprob, rank=1)

    # The engine gives the token that it took, and two alternatives; the token taken need not be among the likeliest.
    first = {5: token("Perhaps", 0.1), 9: token(" Yes", 0.3), 7: token("No", 0.5), 8: token("Yes", 0.3)}
    output = said("Perhaps", token_ids=[5, 6], logprobs=[first, {6: token("é", 0.0)}])
    content = chat_completion(output, make("x"), 2, "0")["choices"][0]["logprobs"]["content"]
    assert content[0]["token"] == "Perhaps"
    assert content[0]["logprob"] == pytest.approx(math.log(0.1))
    assert [entry["token"] for entry in content[0]["top_logprobs"]] == ["No", "Yes"]  # of equals, the lower number
    assert content[1]["bytes"] == [195, 169]
    assert content[1]["logprob"] == LOWEST
    json.dumps(content, allow_nan=False)


# ---------------------------------------------------------------- the backend on a plain object in the engine's place


class Words:
    """An engine whose tokens are words. It refuses calls with a request that says `poison`, and is lost at `death`."""

    version = "0"

    def __init__(self, limit: int = 4000) -> None:
        self.limit = limit
        self.calls: list[list[str]] = []

    def length(self, messages: list[dict[str, str]]) -> int:
        return sum(len(message["content"].split()) for message in messages)

    def chat(self, conversations: list[list[dict[str, str]]], parameters: list[dict[str, Any]]) -> list[Any]:
        texts = [messages[-1]["content"] for messages in conversations]
        self.calls.append(texts)
        if any("poison" in text for text in texts):
            raise Refused("poisoned")
        if any("death" in text for text in texts):
            raise ProviderStop("dead")
        return [said(text.upper(), finish="abort" if "torn" in text else "stop") for text in texts]

    def close(self) -> None:
        self.calls.append([])


class Bench:
    """A backend, its ledger, and the answers by text."""

    def __init__(self, folder: Path, chunk: int = 4, limit: int = 4000, **budget: Any) -> None:
        self.endpoint = Endpoint(model="tiny", backend="vllm", vllm={"chunk": chunk})
        self.ledger = Ledger(folder / "ledger.sqlite")
        self.meter = Meter(self.endpoint, self.ledger, Budget(**budget))
        self.engine = Words(limit)
        self.answers: dict[str, Answer] = {}

    def run(self, requests: list[Request]) -> dict[str, str]:
        VllmBackend(self.engine, self.endpoint, self.meter).answer(iter(requests), self.done)
        return self.said()

    def done(self, request: Request, answer: Answer) -> None:
        text = request.body["messages"][-1]["content"]
        assert text not in self.answers
        self.answers[text] = answer
        self.meter.put(request, answer)

    def said(self) -> dict[str, str]:
        """Text to content, or to the error."""
        return {
            text: answer.error or (answer.response or {})["choices"][0]["message"]["content"]
            for text, answer in self.answers.items()
        }


@pytest.mark.parametrize("chunk", [1, 3, 64])
def test_chunks_of_any_size_give_the_same_answers(tmp_path, chunk):
    bench = Bench(tmp_path, chunk)
    texts = [f"text {number:02}" for number in range(20)]
    assert bench.run([make(text) for text in texts[::-1]]) == {text: text.upper() for text in texts}
    assert [len(call) for call in bench.engine.calls] == [chunk] * (20 // chunk) + [20 % chunk] * (20 % chunk > 0)
    assert len(bench.ledger) == 20


def test_requests_are_pulled_a_few_chunks_ahead_and_put_in_order(tmp_path):
    bench, pulled = Bench(tmp_path, chunk=2), []

    def stream():
        for number in range(40, 0, -1):
            pulled.append(number)
            yield make(f"text {number:02}")

    calls = []
    backend = VllmBackend(bench.engine, bench.endpoint, bench.meter)
    backend.answer(stream(), lambda request, answer: calls.append(len(pulled)))
    assert calls[0] == 16 == 8 * 2
    assert bench.engine.calls[:2] == [["text 25", "text 26"], ["text 27", "text 28"]]


def test_one_bad_row_does_not_take_its_chunk_with_it(tmp_path):
    bench = Bench(tmp_path, chunk=8)
    texts = [f"text {number}" for number in range(7)]
    found = bench.run([make(text) for text in [*texts, "poison"]])
    assert found == {**{text: text.upper() for text in texts}, "poison": "vLLM refuses it: poisoned"}
    # 8 are refused, 4, 2, 1: halved until the bad row is alone.
    assert [len(call) for call in bench.engine.calls] == [8, 4, 2, 1, 1, 2, 4]
    assert bench.ledger.given_up(make("poison").key) == "vLLM refuses it: poisoned"


def test_where_every_row_is_refused_none_is_written_off(tmp_path):
    bench = Bench(tmp_path, max_requests=10)
    with pytest.raises(ProviderStop, match=r"refuses every request .*poisoned"):
        bench.run([make(f"poison {number}") for number in range(3)])
    assert not bench.answers
    assert not list(bench.ledger.keys("failed"))


def test_a_request_that_was_broken_off_is_asked_again_by_the_next_run(tmp_path):
    bench = Bench(tmp_path)
    found = bench.run([make("torn"), make("whole")])
    assert found == {"torn": "vLLM broke it off (abort)", "whole": "WHOLE"}
    assert not bench.answers["torn"].final
    assert not bench.ledger.given_up(make("torn").key)


def test_a_lost_engine_stops_the_run_and_keeps_every_earlier_chunk(tmp_path):
    bench = Bench(tmp_path, chunk=2, max_tokens=100_000)
    with pytest.raises(ProviderStop, match="dead"):
        bench.run([make(text) for text in ("a", "b", "death", "later")])
    assert bench.said() == {"a": "A", "b": "B"}
    # Settled at 20 + 3 tokens each; what the lost chunk had reserved is given back.
    assert bench.ledger.totals()["tokens"] == 2 * (20 + 3)


def test_a_prompt_without_room_is_told_before_it_is_asked(tmp_path):
    bench = Bench(tmp_path, limit=1000)
    short = {**make("word " * 10).body}
    rows = [
        make("fits"),
        make("word " * 991),  # with 2 words of the system message and 8 of the answer: 1001
        make("word " * 990),
        make("long " * 2000, shorter=short),
        make("huge " * 2000, shorter=make("huge " * 1500).body),
    ]
    bench.run(rows)
    reasons = {text[:4]: answer.error for text, answer in bench.answers.items() if answer.error}
    assert reasons == {
        "word": "too long: prompt and answer can take 1001 tokens, the model has 1000",
        "huge": "too long: prompt and answer can take 2010 tokens, the model has 1000",
    }
    assert all(answer.final for answer in bench.answers.values() if answer.error)
    assert [len(call) for call in bench.engine.calls] == [3]
    assert bench.ledger.mark(rows[3].key) == "shortened"
    assert bench.ledger.mark(rows[2].key) == ""


def test_an_answer_as_long_as_the_context_is_an_error_of_the_prompt(tmp_path):
    with pytest.raises(UserError, match="max_tokens 50 leaves no room for a prompt, the model has 50 tokens"):
        Bench(tmp_path, limit=50).run([make("x", max_tokens=50)])


def test_the_budget_ends_the_run_behind_what_it_paid_for(tmp_path):
    bench = Bench(tmp_path, chunk=4, max_requests=6)
    with pytest.raises(BudgetReached, match="max_requests"):
        bench.run([make(f"text {number}") for number in range(9)])
    assert len(bench.ledger) == 6
    assert [len(call) for call in bench.engine.calls] == [4, 2]


def test_ctrl_c_ends_the_run_behind_the_chunk(tmp_path):
    bench = Bench(tmp_path, chunk=2)
    inner = bench.engine.chat

    def pressed(*call: Any) -> list[Any]:
        if len(bench.engine.calls) == 1:
            signal.raise_signal(signal.SIGINT)
        return inner(*call)

    bench.engine.chat = pressed
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        bench.run([make(f"text {number}") for number in range(8)])
    assert len(bench.ledger) == 4
    assert signal.getsignal(signal.SIGINT) is before


def test_a_second_ctrl_c_ends_it_at_once(tmp_path):
    bench = Bench(tmp_path, chunk=2)

    def pressed(*_: Any) -> list[Any]:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        raise AssertionError("not reached")

    bench.engine.chat = pressed
    with pytest.raises(KeyboardInterrupt):
        bench.run([make("a"), make("b")])
    assert len(bench.ledger) == 0


# ---------------------------------------------------------------- on a cluster, without the cluster


def ended(actor: ray_actor.Asker) -> None:
    """As the end of its process."""
    actor._meter.ledger.close()
    actor._scratch.cleanup()


def test_a_driver_and_an_actor_settle_every_row_once(tmp_path):
    texts = ("a cat", "poison", "word " * 100, "torn", "a dog")
    engine, endpoint = Words(limit=60), Endpoint(model="tiny", backend="vllm", vllm={"chunk": 4})
    meter = Meter(endpoint, Ledger(tmp_path / "ledger.sqlite"), Budget(max_requests=10))
    driver = over.RayBackend(over.Engines(endpoint, Engine(kind="ray")), endpoint, meter, Engine(kind="ray"))
    _, _, *more = driver._made_of(2)
    actor = ray_actor.Asker(ray_actor.Begun().begin, endpoint, lambda own, its: VllmBackend(engine, own, its), *more)
    batches: list[dict[str, Any]] = []

    def rows(wave: list[Request]) -> Iterator[dict[str, Any]]:
        batches.append({"request": [driver._line(request, "batch") for request in wave]})
        return map(json.loads, actor(batches[-1])["row"])

    driver._rows = rows  # type: ignore[method-assign]
    found: dict[str, Answer] = {}

    def done(request: Request, answer: Answer) -> None:
        text = request.body["messages"][-1]["content"]
        assert text not in found
        found[text] = answer
        meter.put(request, answer)

    driver.answer(iter(make(text) for text in texts), done)
    said = {text: answer.error or "answered" for text, answer in found.items()}
    assert said == {
        "a cat": "answered",
        "poison": "vLLM refuses it: poisoned",
        texts[2]: "too long: prompt and answer can take 110 tokens, the model has 60",
        "torn": "vLLM broke it off (abort)",
        "a dog": "answered",
    }
    assert [found[text].final for text in texts] == [False, True, True, False, False]
    ended(actor)
    # What was refused counts as a request that cost nothing, what was too long as none.
    assert meter.ledger.totals()["requests"] == 4
    assert not meter.reserved
    assert not list((tmp_path / "ledger_shards").glob("*.jsonl"))


def test_an_actor_that_starts_anew_asks_only_what_its_shard_lacks(tmp_path):
    endpoint, folder = Endpoint(model="tiny", backend="vllm", vllm={"chunk": 2}), tmp_path / "shards"
    token = ledger_shards.share(folder)
    wave = [make(text) for text in ("ant", "bee", "cow", "death")]
    batch = {"request": [json.dumps({**vars(one), "batch": "b", "reserved": None}) for one in wave]}
    asked, begun = [], ray_actor.Begun()
    for _ in range(2):
        engine = Words()
        load = partial(lambda engine, own, its: VllmBackend(engine, own, its), engine)
        actor = ray_actor.Asker(begun.begin, endpoint, load, Budget(), {}, str(folder), token)
        *rows, end = map(json.loads, actor(batch)["row"])
        asked.append(engine.calls)
        ended(actor)
        assert end["stop"] == ["ProviderStop", "dead"]
        answered = [bool(row["answer"]) for row in rows]
        assert answered == [True, True, False, False]
        assert [row["became"] for row in rows] == ["sent", "sent", "released", "released"]
    assert asked == [[["ant", "bee"], ["cow", "death"]], [["cow", "death"]]]
    for _ in range(ray_actor.TRIES - 2):
        begun.begin("b")
    actor = ray_actor.Asker(begun.begin, endpoint, load, Budget(), {}, str(folder), token)
    *rows, end = map(json.loads, actor(batch)["row"])
    ended(actor)
    assert end["stop"][0] == "ProviderStop"
    assert end["stop"][1].startswith("ray: a batch of 4 requests ended 4 workers, perhaps for want of memory; lower")
    assert [bool(row["answer"]) for row in rows] == [True, True, False, False]


def test_fewer_gpus_than_the_engine_wants_are_told_before_the_model_is_loaded():
    endpoint = Endpoint(model="tiny", backend="vllm", vllm={"engine": {"tensor_parallel_size": 4}})
    with pytest.raises(UserError, match=r"a worker has 1 GPUs, .*tensor_parallel_size wants 4; set engine.gpus: 4"):
        over.Engines(endpoint, Engine(kind="ray", gpus=1))
    assert over.Engines(endpoint, Engine(kind="ray", gpus=0)).gpus == 0  # a CPU build


@pytest.mark.skipif(importlib.util.find_spec("vllm") is not None, reason="vllm is installed")
def test_without_the_package_the_message_says_how_to_get_it(tmp_path):
    bench = Bench(tmp_path)
    with pytest.raises(UserError, match=r"pip install 'miner\[vllm\]'"):
        llms.load(bench.endpoint, bench.meter)


# ---------------------------------------------------------------- a real engine


def endpoint(**more: Any) -> Endpoint:
    engine = {**ENGINE, "model": MODEL, **more.pop("engine", {})}
    options = {"engine": engine, "chunk": more.pop("chunk", 8), **more}
    return Endpoint(model="tiny", backend="vllm", identity="vllm", vllm=options)


class Loaded:
    """One engine for all tests here; each has a ledger and a chunk size of its own."""

    def __init__(self, folder: Path) -> None:
        self.backend: VllmBackend = llms.load(endpoint(), Meter(endpoint(), Ledger(folder / "first.sqlite")))

    def ask(self, ledger: Path, requests: list[Request], chunk: int = 8) -> dict[str, Answer]:
        meter = Meter(endpoint(chunk=chunk), Ledger(ledger))
        found: dict[str, Answer] = {}

        def done(request: Request, answer: Answer) -> None:
            meter.put(request, answer)
            found[request.key] = answer

        VllmBackend(self.backend._engine, meter.endpoint, meter).answer(iter(requests), done)
        meter.ledger.close()
        return found


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory):
    one = Loaded(tmp_path_factory.mktemp("engine"))
    yield one
    one.backend.close()


def content(answer: Answer) -> str:
    assert answer.response is not None, answer.error
    return str(answer.response["choices"][0]["message"]["content"])


class TestRealEngine:
    pytestmark = real

    def test_a_schema_is_kept(self, loaded, tmp_path):
        form = {"type": "json_schema", "json_schema": {"name": "judge", "strict": True, "schema": SCHEMA}}
        rows = [make(f"Grade passage {number} as JSON.", max_tokens=40, response_format=form) for number in range(4)]
        for answer in loaded.ask(tmp_path / "l.sqlite", rows).values():
            value = json.loads(content(answer))
            assert list(value) == ["grade"]
            assert value["grade"] in range(4)
            assert answer.response["choices"][0]["finish_reason"] == "stop"

    def test_a_choice_and_any_json(self, loaded, tmp_path):
        choice = make("Is Paris in France?", structured_outputs={"choice": ["Yes", "No"]})
        free = make("Name a city, as JSON.", max_tokens=60, response_format={"type": "json_object"})
        found = loaded.ask(tmp_path / "l.sqlite", [choice, free])
        assert content(found[choice.key]) in ("Yes", "No")
        assert content(found[free.key]).startswith("{")

    def test_yes_or_no_by_log_probabilities(self, loaded, tmp_path):
        row = make("Is Paris in France? Answer Yes or No.", max_tokens=1, logprobs=True, top_logprobs=20)
        answer = loaded.ask(tmp_path / "l.sqlite", [row])[row.key]
        (first,) = answer.response["choices"][0]["logprobs"]["content"]
        assert first["token"] == content(answer)
        values = [entry["logprob"] for entry in first["top_logprobs"]]
        assert len(values) == 20
        assert values == sorted(values, reverse=True)
        assert first["logprob"] == values[0]  # temperature 0 takes the likeliest
        assert 0 < math.fsum(map(math.exp, values)) <= 1 + 1e-6
        shares = label_probabilities(answer.response, {"Yes": ("Yes", " Yes"), "No": ("No", " No")})
        assert math.fsum(shares.values()) == pytest.approx(1)
        assert all(0 < share < 1 for share in shares.values())

    def test_tokens_are_counted_and_prefixes_read_from_the_cache(self, loaded, tmp_path):
        rows = [make("The same long beginning of a text. " * 20 + str(number), max_tokens=5) for number in range(3)]
        usages = [answer.response["usage"] for answer in loaded.ask(tmp_path / "l.sqlite", rows, chunk=1).values()]
        assert all(usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"] for usage in usages)
        assert {usage["completion_tokens"] for usage in usages} == {5}
        cached = [usage["prompt_tokens_details"]["cached_tokens"] for usage in usages]
        assert cached[0] < 0.2 * usages[0]["prompt_tokens"]
        assert min(cached[1:]) > 0.5 * usages[0]["prompt_tokens"]  # whole blocks are kept, of 128 tokens on a CPU

    def test_rows_without_room_and_rows_that_the_engine_refuses(self, loaded, tmp_path):
        long = make("word " * 3000)
        half = make("text " * 3000, shorter=make("text " * 1000).body)
        bad = make("Say.", structured_outputs={"regex": "(["})
        well = [make(f"Say {number}.") for number in range(5)]
        found = loaded.ask(tmp_path / "l.sqlite", [long, half, bad, *well])
        assert found[long.key].error.startswith("too long: prompt and answer can take 30")
        assert found[half.key].mark == "shortened"
        assert 1000 <= found[half.key].response["usage"]["prompt_tokens"] < 1100
        assert found[bad.key].error.startswith("vLLM refuses it: ")
        assert found[long.key].final
        assert found[bad.key].final
        assert all(content(found[row.key]) for row in well)

    def test_the_length_is_told_as_the_engine_counts_it(self, loaded, tmp_path):
        rows = [make("The cat meows. " * count) for count in (1, 7, 60)]
        for row in rows:
            answer = loaded.ask(tmp_path / "l.sqlite", [row])[row.key]
            usage = answer.response["usage"]
            assert loaded.backend._engine.length(row.body["messages"]) == usage["prompt_tokens"]

    def test_a_drawn_answer_does_not_depend_on_its_chunk(self, loaded, tmp_path):
        rows = [make(f"Tell a story about animal {number}.", temperature=0.9, max_tokens=12) for number in range(6)]
        together = loaded.ask(tmp_path / "a.sqlite", rows, chunk=6)
        alone = loaded.ask(tmp_path / "b.sqlite", rows[::-1], chunk=1)
        assert {key: content(answer) for key, answer in together.items()} == {
            key: content(answer) for key, answer in alone.items()
        }
        two = make("Tell a story.", temperature=0.9, n=2)
        assert len(loaded.ask(tmp_path / "c.sqlite", [two])[two.key].response["choices"]) == 2

    @pytest.mark.parametrize(
        ("more", "message"),
        [
            ({"top_p": 7}, "prompt sampling: vLLM does not take it"),
            ({"structured_outputs": {"json_schema": {}}}, "prompt sampling: vLLM does not take it"),
        ],
    )
    def test_a_value_that_vllm_does_not_take_is_an_error_of_the_prompt(self, loaded, tmp_path, more, message):
        with pytest.raises(UserError, match=message):
            loaded.ask(tmp_path / "l.sqlite", [make("x", **more)])

    def test_a_model_without_chat_template_is_told_before_anything_is_asked(self):
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(MODEL)
        tokenizer.chat_template = None
        llm = SimpleNamespace(
            get_tokenizer=lambda: tokenizer,
            llm_engine=SimpleNamespace(model_config=SimpleNamespace(max_model_len=100)),
        )
        with pytest.raises(UserError, match="chat template cannot be used"):
            Vllm(llm, "0", {}).length(make("x").body["messages"])
        given = Vllm(llm, "0", {"chat_template": "{{ messages[1].content }}{% if loud %}!{% endif %}", "loud": True})
        assert given.length(make("cat").body["messages"]) == len(tokenizer.encode("cat!"))

    def test_an_unknown_engine_argument_is_named(self, tmp_path):
        one = endpoint(engine={"tensor_paralel_size": 2})
        with pytest.raises(UserError, match=r"engine.tensor_paralel_size: .* did you mean tensor_parallel_size\?"):
            llms.load(one, Meter(one, Ledger(tmp_path / "l.sqlite")))

    def test_a_model_that_is_not_there_is_told_in_one_line(self, tmp_path):
        one = endpoint(engine={"model": str(tmp_path / "nothing")})
        with pytest.raises(UserError, match="vLLM cannot load it") as caught:
            llms.load(one, Meter(one, Ledger(tmp_path / "l.sqlite")))
        assert "\n" not in str(caught.value)


# ---------------------------------------------------------------- a whole job


def job(folder: Path, **vllm: Any) -> Path:
    folder.mkdir(exist_ok=True)
    own = Path(folder / "prompts/judge")
    own.mkdir(parents=True)
    # The shipped judge, with room for few words: the model is small, and the answer's end is a matter of luck.
    text = (
        (prompts.SHIPPED / "judge/graded.md").read_text(encoding="utf-8").replace("max_tokens: 160", "max_tokens: 48")
    )
    assert "max_tokens: 48" in text
    (own / "short.md").write_text(text, encoding="utf-8")
    settings = {"engine": {**ENGINE, "model": MODEL}, "chunk": 3, **vllm}
    llm = {"backend": "vllm", "model": "tiny", "identity": "vllm", "repair": False, "vllm": settings}
    judge = {"enabled": True, "prompt": "short", "pool": 3}
    return toy.job(folder, llm=llm, judge=judge, prompts="prompts")


def start(job: Path, environment: dict[str, str]) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "miner", "run", str(job)]
    clean = {name: value for name, value in environment.items() if name != "PYTHONWARNINGS"}
    with (job.parent / "out").open("w") as out, (job.parent / "err").open("w") as err:  # no pipe that a child holds
        return subprocess.Popen(command, env=clean, stdout=out, stderr=err, start_new_session=True)


def shown(job: Path) -> str:
    return "".join((job.parent / name).read_text(encoding="utf-8") for name in ("out", "err"))


def states(job: Path) -> dict[str, str]:
    """Key to state in the ledger, read beside the running job."""
    path = job.with_suffix(".job") / "ledger.sqlite"
    if not path.exists():
        return {}
    with sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=30) as db:
        return dict(db.execute("SELECT key, state FROM requests"))


def wait_for_answers(job: Path, process: subprocess.Popen[bytes], count: int) -> None:
    deadline = time.monotonic() + 600
    while list(states(job).values()).count("done") < count:
        assert process.poll() is None, shown(job)
        assert time.monotonic() < deadline
        time.sleep(0.1)


def family(root: int) -> set[int]:
    """The processes under `root`."""
    parents = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        parents[int(path.parent.name)] = int(fields[1])
    found, new = set(), {root}
    while new:
        new = {child for child, parent in parents.items() if parent in new}
        found |= new
    return found


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def assert_gone(processes: set[int]) -> None:
    deadline = time.monotonic() + 60
    while any(map(alive, processes)):
        assert time.monotonic() < deadline, "the engine's processes outlive miner, and hold its memory"
        time.sleep(0.2)


class TestRealJob:
    pytestmark = real

    def test_killed_between_two_chunks_it_asks_only_what_is_missing(self, tmp_path, environment, loaded):
        whole = job(tmp_path / "killed")
        process = start(whole, environment)
        wait_for_answers(whole, process, 6)
        children = family(process.pid)
        process.kill()
        process.wait()
        before = states(whole)
        answered = {key for key, state in before.items() if state == "done"}
        assert_gone(children)
        assert 6 <= len(answered) < 48

        resumed = start(whole, environment)
        assert resumed.wait(timeout=500) == 0, shown(whole)
        assert "vllm" not in (whole.parent / "out").read_text(encoding="utf-8").lower(), "the engine's log is no output"
        after = states(whole)
        assert set(after.values()) == {"done"}
        with sqlite3.connect(whole.with_suffix(".job") / "ledger.sqlite") as db:
            lines = db.execute("SELECT key, body, response, attempts, seconds, changed_at FROM requests").fetchall()
        first_run = max(line[5] for line in lines if line[0] in answered)
        again = [line for line in lines if line[5] > first_run]
        assert {line[0] for line in again} == set(after) - answered

        rows = pq.read_table(whole.with_suffix(".job") / "judgments/judgments.parquet").to_pylist()
        assert len(rows) == len(lines) == 48 == 16 * 3
        kinds = Counter(row["status"] for row in rows)
        assert set(kinds) <= {"ok", "truncated", "unparsable"}, kinds
        assert all((row["grade"] in range(4)) == (row["status"] == "ok") for row in rows)

        # In other company, with another chunk size and without a kill the answers are the same, word for word.
        requests = [Request(line[0], json.loads(line[1]), {"task": "judge"}) for line in lines]
        found = loaded.ask(tmp_path / "other.sqlite", requests, chunk=32)
        for key, _, response, *_ in lines:
            assert json.loads(response)["choices"] == found[key].response["choices"]

    def test_ctrl_c_ends_it_behind_the_chunk(self, tmp_path, environment):
        whole = job(tmp_path / "stopped")
        process = start(whole, environment)
        wait_for_answers(whole, process, 1)
        children = family(process.pid)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: every process of the group gets it
        assert process.wait(timeout=120) == 130, shown(whole)
        assert "Traceback" not in shown(whole)
        found = list(states(whole).values())
        assert set(found) == {"done"}, "the chunk in flight was answered"
        assert 0 < len(found) < 48
        assert len(found) % 3 == 0
        assert_gone(children)


class TestRealLoss:
    """Last, for it takes the engine away."""

    pytestmark = real

    def test_an_engine_that_fails_stops_the_run_and_keeps_what_was_answered(self, loaded, tmp_path):
        rows = in_order(make(f"Name animal {number}.") for number in range(6))
        meter = Meter(endpoint(chunk=2), Ledger(tmp_path / "l.sqlite"))
        executor = loaded.backend._engine._llm.llm_engine.engine_core.engine_core.model_executor

        def broken(*_: Any, **__: Any) -> None:
            raise RuntimeError("out of memory:\nall of it")

        def done(request: Request, answer: Answer) -> None:
            meter.put(request, answer)
            if len(meter.ledger) == 2:
                executor.execute_model = broken

        with pytest.raises(ProviderStop, match=r"the vLLM engine stopped \(out of memory: all of it\)"):
            VllmBackend(loaded.backend._engine, meter.endpoint, meter).answer(iter(rows), done)
        assert set(meter.ledger.keys()) == {request.key for request in rows[:2]}
        assert not list(meter.ledger.keys("failed"))
