"""Any OpenAI-compatible server through the openai client, a bounded number of requests in flight.

The client's own retries are off: what is tried again, and how often, is decided here, and counted.
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
import random
import re
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import openai

from miner.config import Endpoint, secret
from miner.errors import MinerError, ProviderStop, UserError
from miner.ledger import Answer, Request
from miner.llms import completion

RETRY_STATUS = {408, 409, 429, 500, 502, 503, 504, 529}
STOP_STATUS = {401, 403, 404}
FIRST_WAIT_S, LONGEST_WAIT_S = 0.5, 60.0
log = logging.getLogger("miner")


class OpenAIBackend:
    def __init__(self, endpoint: Endpoint, api_key: str) -> None:
        self._endpoint = endpoint
        self._api_key = api_key

    def answer(self, requests: Iterable[Request], done: Callable[[Request, Answer], None]) -> None:
        try:
            asyncio.run(self._all(iter(requests), done))
        except ExceptionGroup as group:  # what the task group makes of the error that stopped it
            raise next((e for e in group.exceptions if isinstance(e, MinerError)), group.exceptions[0]) from None

    async def _all(self, requests: Iterator[Request], done: Callable[[Request, Answer], None]) -> None:
        client = openai.AsyncOpenAI(
            api_key=self._api_key,
            base_url=self._endpoint.base_url,
            max_retries=0,
            timeout=self._endpoint.timeout_s,
        )
        async with client, asyncio.TaskGroup() as group:
            for _ in range(self._endpoint.concurrency):
                group.create_task(self._worker(client, requests, done))

    async def _worker(
        self, client: openai.AsyncOpenAI, requests: Iterator[Request], done: Callable[[Request, Answer], None]
    ) -> None:
        for request in requests:
            done(request, await self._ask(client, request))

    async def _ask(self, client: openai.AsyncOpenAI, request: Request) -> Answer:
        """The answer of one request, tried `attempts` times; a request the server refuses for good is not repeated."""
        start, error = time.monotonic(), ""
        for attempt in range(1, self._endpoint.attempts + 1):
            try:
                async with asyncio.timeout(self._endpoint.timeout_s):  # the client's own counts from byte to byte
                    return Answer(await _create(client, request.body), "", attempt, time.monotonic() - start)
            except openai.APIStatusError as failure:
                error = self._judge_failure(failure)
                if failure.status_code not in RETRY_STATUS:
                    return Answer(None, error, attempt)
                wait = _wait(attempt, failure)
            except (openai.APIError, ValueError, TimeoutError) as failure:
                error = self._describe(failure)
                wait = _wait(attempt, None)
            log.debug("%s: attempt %d failed: %s", request.key[:12], attempt, error)
            if attempt < self._endpoint.attempts:
                await asyncio.sleep(wait)
        return Answer(None, error, self._endpoint.attempts)

    def _describe(self, failure: Exception) -> str:
        if isinstance(failure, TimeoutError | openai.APITimeoutError):
            return f"no answer within {self._endpoint.timeout_s:g} s"
        cause = f" ({type(failure.__cause__).__name__})" if failure.__cause__ else ""
        return f"{type(failure).__name__}: {_clean(str(failure), self._api_key)}{cause}"

    def _judge_failure(self, failure: openai.APIStatusError) -> str:
        """What to write down of a refusal; raises ProviderStop where no further request can succeed."""
        body: Any = failure.body
        message = body.get("message") if isinstance(body, dict) else body
        reason = f"HTTP {failure.status_code}: {_clean(str(message or body or failure), self._api_key)}"
        code = str(getattr(failure, "code", "") or "")
        if failure.status_code in STOP_STATUS or code == "insufficient_quota":
            raise ProviderStop(
                f"the provider refuses every request ({reason}); check key, quota and model, then run again"
            )
        return reason


async def _create(client: openai.AsyncOpenAI, body: dict[str, Any]) -> dict[str, Any]:
    """The raw chat completion. ValueError where the reply is cut or no completion, which is worth another try."""
    more = {name: value for name, value in body.items() if name not in ("model", "messages")}
    create = client.chat.completions.with_raw_response.create
    # extra_body: a prompt may set parameters that the client has no name for, as many servers take them.
    reply = await create(model=body["model"], messages=body["messages"], extra_body=more)
    try:
        return completion(json.loads(reply.content))
    except RecursionError:
        raise ValueError("the body is nested too deep") from None


def _clean(text: str, api_key: str) -> str:
    """One short line without the key, which is taken out before the cut: half a key would not be found."""
    return " ".join(text.replace(api_key, "***").encode("utf-8", "replace").decode().split())[:200]


def _wait(attempt: int, failure: openai.APIStatusError | None) -> float:
    """Seconds before the next try: the server's Retry-After, else exponential with full jitter."""
    given = failure.response.headers.get("retry-after") if failure is not None else None
    try:
        seconds = float(given or "nan")
    except ValueError:  # a date; none of the servers in view sends one
        seconds = math.nan
    return _jitter(attempt) if math.isnan(seconds) else min(max(seconds, 0.0), LONGEST_WAIT_S)


def _jitter(attempt: int) -> float:
    return random.uniform(0, min(LONGEST_WAIT_S, FIRST_WAIT_S * 2**attempt))


def load(endpoint: Endpoint) -> OpenAIBackend:
    name = endpoint.api_key or "OPENAI_API_KEY"
    api_key = secret(endpoint.api_key, "OPENAI_API_KEY")
    if not api_key:
        raise UserError(
            f"{name} is not set; export it (any word will do for a server that wants none), or name another"
            " variable in llm.api_key"
        )
    if not re.fullmatch(r"[!-~]+", api_key):
        raise UserError(f"{name} holds a character that no key has (a space, a line end, a letter beyond ASCII)")
    return OpenAIBackend(endpoint, api_key)
