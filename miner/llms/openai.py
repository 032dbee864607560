"""Any OpenAI-compatible server through the openai client, a bounded number of requests in flight.

The client's own retries are off: what is tried again, and how often, is decided here, and counted.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import openai

from miner import provider
from miner.config import Endpoint, secret
from miner.errors import MinerError, ProviderStop, UserError
from miner.ledger import Answer, Request
from miner.llms import completion

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
                if failure.status_code not in provider.RETRY_STATUS:
                    return Answer(None, error, attempt)
                wait = provider.wait(attempt, failure)
            except (openai.APIError, ValueError, TimeoutError) as failure:
                error = provider.broken(failure, self._endpoint.timeout_s, self._api_key)
                wait = provider.wait(attempt)
            log.debug("%s: attempt %d failed: %s", request.key[:12], attempt, error)
            if attempt < self._endpoint.attempts:
                await asyncio.sleep(wait)
        return Answer(None, error, self._endpoint.attempts)

    def _judge_failure(self, failure: openai.APIStatusError) -> str:
        """What to write down of a refusal; raises ProviderStop where no further request can succeed."""
        reason = provider.refusal(failure, self._api_key)
        if provider.is_final(failure):
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


def load(endpoint: Endpoint, meter: Meter) -> OpenAIBackend:
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
