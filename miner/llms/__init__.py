"""LLM backends answer requests. Each answer goes to the ledger before anyone reads it."""

from __future__ import annotations

import importlib
import json
import os
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from itertools import chain
from typing import Any, NamedTuple, Protocol

from miner import provider
from miner.config import Endpoint, Engine, is_address
from miner.errors import UserError
from miner.ledger import Answer, Ledger, Request
from miner.meter import Meter
from miner.prompts import Prompt, read_answer
from miner.store import digest

BACKENDS = {
    "openai": "miner.llms.openai",
    "openai-batch": "miner.llms.openai_batch",
    "vllm": "miner.llms.vllm",
    "recorded": "miner.llms.recorded",
}
Requests = Callable[[], Iterator[Request]]
# Tells what breaks the form of an answer, so that it can be repaired, or "".
Check = Callable[[dict[str, Any]], str]


class Reply(NamedTuple):
    """What became of a request: a chat completion object, or None and the error. note: what is odd about it."""

    request: Request
    response: dict[str, Any] | None
    error: str
    note: str = ""


Ask = Callable[[Requests, Check], Iterator[Reply]]


class Backend(Protocol):
    def answer(self, requests: Iterable[Request], done: Callable[[Request, Answer], None]) -> None:
        """Call `done` once per request, in any order, as soon as its answer is there. Pulls requests lazily.

        A request that found no answer is done too, with response None and the reason; `final` where asking again
        would be in vain. Raises ProviderStop where every further request would fail, BudgetReached where the next one
        would pass the budget; requests in flight are awaited first, and what was done stays done.
        """


def load(endpoint: Endpoint, meter: Meter, engine: Engine | None = None) -> Backend:
    """The backend of an endpoint. It reserves each try with the meter; `done` commits and settles.

    engine: of the job; on Ray, which must be joined, the cluster's workers ask in place of this process.
    """
    if engine is not None and engine.kind == "ray" and endpoint.backend in ("openai", "vllm"):
        asked_by_workers: Backend = importlib.import_module("miner.llms.ray").load(endpoint, meter, engine)
        return asked_by_workers
    backend: Backend = importlib.import_module(BACKENDS[endpoint.backend]).load(endpoint, meter)
    return backend


# Engine arguments that change how fast an answer comes or where the model lies, not what is said.
SPEED = frozenset(
    [
        "model",
        "tensor_parallel_size",
        "pipeline_parallel_size",
        "gpu_memory_utilization",
        "max_num_seqs",
        "max_num_batched_tokens",
        "max_model_len",
        "enforce_eager",
        "enable_prefix_caching",
        "cpu_offload_gb",
        "kv_cache_memory_bytes",
        "use_tqdm_on_load",
        "disable_log_stats",
        "download_dir",
        "distributed_executor_backend",
    ]
)


def _in_process(endpoint: Endpoint) -> str:
    told = {name: value for name, value in endpoint.vllm.engine.items() if name not in SPEED}
    how = {"engine": told, "chat_template_kwargs": endpoint.vllm.chat_template_kwargs}
    return f"vllm:{digest(how)[:12]}" if any(how.values()) else "vllm"


def identity(endpoint: Endpoint) -> str:
    """What request keys call the endpoint: its given name, else host and path of its address."""
    if endpoint.identity:
        return endpoint.identity
    if endpoint.backend == "vllm":
        return _in_process(endpoint)
    address = endpoint.base_url or os.environ.get("OPENAI_BASE_URL") or provider.OPENAI
    if not is_address(address):
        raise UserError(f"OPENAI_BASE_URL is {address!r}, not a web address; export it as http(s)://host:port/v1")
    return provider.place(address)


def request(endpoint: Endpoint, prompt: Prompt, about: dict[str, str], **values: str) -> Request:
    """The chat completion request of a rendered prompt; its key hashes endpoint identity and body.

    `structured: auto` asks for a JSON schema like json_schema, and has the same keys: the backend says it to its server
    in the strongest form that the server takes.
    """
    body: dict[str, Any] = {"model": endpoint.model, "messages": prompt.messages(**values), **prompt.front.sampling}
    if prompt.front.answer_schema and endpoint.structured in ("auto", "json_schema"):
        schema = {"name": prompt.front.task, "strict": True, "schema": prompt.front.answer_schema}
        body["response_format"] = {"type": "json_schema", "json_schema": schema}
    elif prompt.front.answer_schema and endpoint.structured == "json_object":
        body["response_format"] = {"type": "json_object"}
    named = {"task": prompt.front.task, "prompt": prompt.front.name, "prompt_version": prompt.version, **about}
    return Request(digest({"endpoint": identity(endpoint), "body": body}), body, named)


def completion(body: Any) -> dict[str, Any]:
    """The body of a reply, checked for the form that every reader relies on. ValueError where it is no chat completion.

    A lone surrogate, which no file can hold, becomes a question mark.
    """
    choices = body.get("choices") if isinstance(body, dict) else None
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        raise ValueError("no choices")
    if not isinstance(choices[0].get("message"), dict):
        raise ValueError("no message")
    text = json.dumps(body, ensure_ascii=False)
    whole: dict[str, Any] = json.loads(text.encode("utf-8", "replace"))
    return whole


def form_check(prompt: Prompt) -> Check:
    """Whether an answer has the form that the prompt asks for; a prompt without a schema asks for none."""

    def check(response: dict[str, Any]) -> str:
        parsed = read_answer(response, prompt.front.answer_schema)
        return parsed.detail if parsed.status == "unparsable" else ""

    return check if prompt.front.answer_schema else lambda _: ""


class Pending(Exception):
    """Raised in place of asking, by the asker of `miner requests`: what a step still needs."""

    def __init__(self, requests: list[Request]) -> None:
        self.requests = requests


def asker(backend: Callable[[], Backend], meter: Meter, tick: Callable[[int], None]) -> Ask:
    """Join a backend and a ledger: ask what is not in the ledger, then yield everything in request order.

    The backend is made only where something must be asked, so a finished job needs no key and no server. The requests
    are iterated several times and never gathered: what is kept is the key of each one asked, and the reason of each one
    that found no answer. An answer whose form is broken is asked for once more, with the error.
    """
    ledger = meter.ledger

    def ask(requests: Requests, check: Check) -> Iterator[Reply]:
        errors: dict[str, str] = {}

        def done(request: Request, answer: Answer) -> None:
            meter.put(request, answer)
            if answer.response is None:
                errors[request.key] = answer.error
            tick(0 if "repairs" in request.about else 1)

        loaded = lru_cache(backend)
        for number, wave in enumerate(_waves(requests, check, meter.endpoint, ledger)):
            unanswered = _unanswered(wave, ledger, _silent if number else tick)
            first = next(unanswered, None)
            if first is not None:
                loaded().answer(chain([first], unanswered), done)
        for request in requests():
            yield _reply(request, check, ledger, errors.get(request.key, ""))

    return ask


def _silent(_: int) -> None:
    """Counts nothing: the repair of an answer is no further row."""


def _waves(requests: Requests, check: Check, endpoint: Endpoint, ledger: Ledger) -> Iterator[Iterator[Request]]:
    """The requests, and, when they are answered, the repairs of those whose form is broken."""
    yield requests()
    if endpoint.repair:
        yield (fix for fix in (_repair(request, check, ledger) for request in requests()) if fix)


def _repair(request: Request, check: Check, ledger: Ledger) -> Request | None:
    """The request that shows a model its own broken answer and the error; None for an answer that has the form."""
    response = ledger.get(request.key)
    broken = check(response) if response else ""
    if not response or not broken:
        return None
    said = {"role": "assistant", "content": str(response["choices"][0]["message"].get("content") or "")}
    asked = {"role": "user", "content": f"{REPAIR} {broken}"}
    body = {**request.body, "messages": [*request.body["messages"], said, asked]}
    return Request(digest({"repairs": request.key, "body": body}), body, {**request.about, "repairs": request.key})


REPAIR = "That answer does not have the form asked for. Reply again with the JSON object alone. The error:"


def _reply(request: Request, check: Check, ledger: Ledger, error: str) -> Reply:
    response, note = ledger.get(request.key), ledger.mark(request.key)
    if response is None:
        return Reply(request, None, error or ledger.given_up(request.key))
    fix = _repair(request, check, ledger)
    repaired = ledger.get(fix.key) if fix else None
    if repaired is not None and not check(repaired):
        return Reply(request, repaired, "", "repaired")
    return Reply(request, response, "", note)


def _unanswered(requests: Iterator[Request], ledger: Ledger, tick: Callable[[int], None]) -> Iterator[Request]:
    asked: set[str] = set()
    for request in requests:
        if request.key in asked or ledger.has(request.key) or ledger.given_up(request.key):
            tick(1)
        else:
            asked.add(request.key)
            yield request


def collector(meter: Meter) -> Ask:
    """An asker that sends nothing: it raises Pending where an answer is lacking."""

    def ask(requests: Requests, check: Check) -> Iterator[Reply]:
        for wave in _waves(requests, check, meter.endpoint, meter.ledger):
            lacking = list(_unanswered(wave, meter.ledger, _silent))
            if lacking:
                raise Pending(lacking)
        for request in requests():
            yield _reply(request, check, meter.ledger, "")

    return ask
