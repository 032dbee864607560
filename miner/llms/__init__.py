"""LLM backends answer requests. Each answer goes to the ledger before anyone reads it."""

from __future__ import annotations

import importlib
import json
import os
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from typing import Any, Protocol
from urllib.parse import urlsplit

from miner.config import Endpoint, is_address
from miner.errors import UserError
from miner.ledger import Answer, Ledger, Request
from miner.prompts import Prompt
from miner.store import digest

BACKENDS = {"openai": "miner.llms.openai", "recorded": "miner.llms.recorded"}
Requests = Callable[[], Iterator[Request]]
Ask = Callable[[Requests], Iterator[tuple[Request, dict[str, Any] | None, str]]]


class Backend(Protocol):
    def answer(self, requests: Iterable[Request], done: Callable[[Request, Answer], None]) -> None:
        """Call `done` once per request, in any order, as soon as its answer is there. Pulls requests lazily.

        A request that found no answer is done too, with response None and the reason. Raises ProviderStop where
        every further request would fail; what was done stays done.
        """


def load(endpoint: Endpoint) -> Backend:
    backend: Backend = importlib.import_module(BACKENDS[endpoint.backend]).load(endpoint)
    return backend


def identity(endpoint: Endpoint) -> str:
    """What request keys call the endpoint: its given name, else host and path of its address."""
    if endpoint.identity:
        return endpoint.identity
    address = endpoint.base_url or os.environ.get("OPENAI_BASE_URL") or "https://api.openai.com/v1"
    if not is_address(address):
        raise UserError(f"OPENAI_BASE_URL is {address!r}, not a web address; export it as http(s)://host:port/v1")
    url = urlsplit(address)
    return f"{url.hostname or ''}{f':{url.port}' if url.port else ''}{url.path.rstrip('/')}"


def request(endpoint: Endpoint, prompt: Prompt, about: dict[str, str], **values: str) -> Request:
    """The chat completion request of a rendered prompt; its key hashes endpoint identity and body."""
    body: dict[str, Any] = {"model": endpoint.model, "messages": prompt.messages(**values), **prompt.front.sampling}
    if endpoint.structured == "json_schema":
        schema = {"name": prompt.front.task, "strict": True, "schema": prompt.front.answer_schema}
        body["response_format"] = {"type": "json_schema", "json_schema": schema}
    elif endpoint.structured == "json_object":
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


class Pending(Exception):
    """Raised in place of asking, by the asker of `miner requests`: what a step still needs."""

    def __init__(self, requests: list[Request]) -> None:
        self.requests = requests


def asker(backend: Callable[[], Backend], ledger: Ledger, tick: Callable[[int], None]) -> Ask:
    """Join a backend and a ledger: ask what is not in the ledger, then yield everything in request order.

    The backend is made only where something must be asked, so a finished job needs no key and no server. The requests
    are iterated twice and never gathered: what is kept is the key of each one asked, and the reason of each one that
    found no answer.
    """

    def ask(requests: Requests) -> Iterator[tuple[Request, dict[str, Any] | None, str]]:
        errors: dict[str, str] = {}

        def done(request: Request, answer: Answer) -> None:
            if answer.response is None:
                errors[request.key] = answer.error
            else:
                ledger.put(request, answer)
            tick(1)

        unanswered = _unanswered(requests(), ledger, tick)
        first = next(unanswered, None)
        if first is not None:
            backend().answer(chain([first], unanswered), done)
        for request in requests():
            yield request, ledger.get(request.key), errors.get(request.key, "")

    return ask


def _unanswered(requests: Iterator[Request], ledger: Ledger, tick: Callable[[int], None]) -> Iterator[Request]:
    asked: set[str] = set()
    for request in requests:
        if request.key in asked or ledger.has(request.key):
            tick(1)
        else:
            asked.add(request.key)
            yield request


def collector(ledger: Ledger) -> Ask:
    """An asker that sends nothing: it raises Pending where an answer is lacking."""

    def ask(requests: Requests) -> Iterator[tuple[Request, dict[str, Any] | None, str]]:
        lacking = list(_unanswered(requests(), ledger, lambda _: None))
        if lacking:
            raise Pending(lacking)
        for request in requests():
            yield request, ledger.get(request.key), ""

    return ask
