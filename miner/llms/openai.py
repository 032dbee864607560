"""Any OpenAI-compatible server through the openai client, a bounded number of requests in flight.

The client's own retries are off: what is tried again, and how often, is decided here, and counted.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import openai

from miner.config import Endpoint, secret
from miner.errors import ProviderStop, UserError
from miner.ledger import Answer, Request

RETRY_STATUS = {408, 409, 429, 500, 502, 503, 504, 529}
STOP_STATUS = {401, 403, 404}
FIRST_WAIT_S, LONGEST_WAIT_S = 0.5, 60.0
log = logging.getLogger("miner")


class OpenAIBackend:
    def __init__(self, endpoint: Endpoint, api_key: str) -> None:
        self._endpoint = endpoint
        self._api_key = api_key

    def answer(self, requests: Iterable[Request], done: Callable[[Request, Answer], None]) -> None:
        asyncio.run(self._all(iter(requests), done))

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
                reply = await client.chat.completions.with_raw_response.create(**request.body)
                return Answer(_body(reply), "", attempt, time.monotonic() - start)
            except openai.APIStatusError as failure:
                error = self._judge_failure(failure)
                if failure.status_code not in RETRY_STATUS:
                    return Answer(None, error, attempt)
                wait = _wait(attempt, failure)
            except (openai.APIConnectionError, openai.APIError, ValueError) as failure:
                error = f"{type(failure).__name__}: {_clean(failure, self._api_key)}"
                wait = _wait(attempt, None)
            log.debug("%s: attempt %d failed: %s", request.key[:12], attempt, error)
            if attempt < self._endpoint.attempts:
                await asyncio.sleep(wait)
        return Answer(None, error, self._endpoint.attempts)

    def _judge_failure(self, failure: openai.APIStatusError) -> str:
        """What to write down of a refusal; raises ProviderStop where no further request can succeed."""
        reason = f"HTTP {failure.status_code}: {_clean(failure, self._api_key)}"
        code = str(getattr(failure, "code", "") or "")
        if failure.status_code in STOP_STATUS or code == "insufficient_quota":
            raise ProviderStop(
                f"the provider refuses every request ({reason}); check key, quota and model, then run again"
            )
        return reason


def _body(reply: Any) -> dict[str, Any]:
    """The raw chat completion. ValueError where the body is cut or no completion, which is worth another try."""
    import json

    body = json.loads(reply.content if isinstance(reply.content, bytes) else reply.text)
    if not isinstance(body, dict) or not body.get("choices"):
        raise ValueError("the body is no chat completion")
    return body


def _clean(failure: Exception, api_key: str) -> str:
    text = " ".join(str(failure).split())[:200]
    return text.replace(api_key, "***") if api_key else text


def _wait(attempt: int, failure: openai.APIStatusError | None) -> float:
    """Seconds before the next try: the server's Retry-After, else exponential with full jitter."""
    given = failure.response.headers.get("retry-after") if failure is not None else None
    try:
        return min(float(given), LONGEST_WAIT_S) if given else _jitter(attempt)
    except ValueError:
        return _jitter(attempt)


def _jitter(attempt: int) -> float:
    return random.uniform(0, min(LONGEST_WAIT_S, FIRST_WAIT_S * 2**attempt))


def load(endpoint: Endpoint) -> OpenAIBackend:
    api_key = secret(endpoint.api_key, "OPENAI_API_KEY")
    if not api_key:
        raise UserError(
            "OPENAI_API_KEY is not set; export it (any word will do for a server that wants none), or name another"
            " variable in llm.api_key"
        )
    return OpenAIBackend(endpoint, api_key)
