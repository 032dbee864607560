"""Encoders behind a server: OpenAI's embeddings API, which many servers speak, and Cohere's.

The client's own retries are off: what is tried again, and how often, is decided here, and counted. A reply is handed
on as soon as it is there, so that what was paid for is kept whatever happens to the rest.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import openai

from miner import config, provider
from miner.encoders import Kind, Vectors, families, services
from miner.errors import MinerError, ProviderStop, UserError

TOO_LONG = re.compile(r"too (long|large|many tokens)|maximum (context|input|sequence|number)|max\w*.{0,20}token", re.I)
# English has four to five bytes a token, CJK scripts about three: three asks for no more than a server takes.
BYTES_A_TOKEN = 3
CHUNK_TEXTS = 2048
Done = Callable[[list[int], Vectors], None]
log = logging.getLogger("miner")


class Refused(Exception):
    """The server will not take this request, whole as it is."""


@dataclass
class _Run:
    """One call of `encode_each`: what is still to be asked, and the error that ends it."""

    batches: Iterator[list[int]]
    failure: MinerError | None = None


@dataclass
class RemoteEncoder:
    """usage: requests answered, attempts made, tokens counted by the server. chunk_texts: texts of one shard."""

    settings: config.Encoder
    service: services.Service
    usage: Counter[str] = field(default_factory=Counter)
    _width: int | None = None

    def __post_init__(self) -> None:
        self._around = families.surround(self.settings)
        self._width = self.settings.dimensions
        self.chunk_texts = min(self.settings.batch_size * self.settings.concurrency, CHUNK_TEXTS)

    @property
    def dimension(self) -> int:
        """Asks the server about one word where nothing was encoded yet."""
        if self._width is None:
            self.encode(["x"], "passage")
        assert self._width is not None, "a reply has a width"
        return self._width

    def encode(self, texts: list[str], kind: Kind) -> Vectors:
        """float32[n, d], L2-normalised, in the order of `texts`. Raises as `encode_each` does."""
        found: dict[int, Any] = {}
        self.encode_each(texts, kind, lambda rows, vectors: found.update(zip(rows, vectors, strict=True)))
        return np.stack([found[row] for row in range(len(texts))]) if texts else np.empty((0, self.dimension), "f4")

    def encode_each(self, texts: list[str], kind: Kind, done: Done) -> None:
        """Call `done` with row numbers and float32[rows, d], L2-normalised, once per reply, in any order.

        Raises ProviderStop where no further request can succeed, or one was tried in vain; UserError for a text that
        the server refuses. Requests in flight are awaited first, and every reply has been handed on by then.
        """
        before, after = self._around.passage_prefix, ""
        if kind == "query":
            before, after = self._around.query_prefix, self._around.query_suffix
        sent = [before + text[: self.settings.max_chars] + after for text in texts]
        batches = cut([len(text.encode()) for text in sent], self.settings.batch_size, self.settings.request_tokens)
        if not batches:
            return
        run = _Run(iter(batches))
        asyncio.run(self._all(run, sent, kind, done, min(self.settings.concurrency, len(batches))))
        if run.failure:
            raise run.failure

    async def _all(self, run: _Run, texts: list[str], kind: Kind, done: Done, workers: int) -> None:
        client = openai.AsyncOpenAI(
            api_key=self.service.key(),
            base_url=self.service.address,
            max_retries=0,
            timeout=self.settings.timeout_s,
        )
        async with client:
            await asyncio.gather(*(self._worker(run, client, texts, kind, done) for _ in range(workers)))

    async def _worker(self, run: _Run, client: openai.AsyncOpenAI, texts: list[str], kind: Kind, done: Done) -> None:
        for rows in run.batches:
            if run.failure:
                return
            try:
                await self._embed(run, client, rows, texts, kind, done)
            except MinerError as failure:
                run.failure = run.failure or failure

    async def _embed(
        self, run: _Run, client: openai.AsyncOpenAI, rows: list[int], texts: list[str], kind: Kind, done: Done
    ) -> None:
        """One request; where the server refuses it for its content, its halves, down to the text to blame."""
        try:
            vectors = await self._ask(run, client, [texts[row] for row in rows], kind)
        except Refused as refusal:
            if len(rows) == 1:
                raise self._blame(texts[rows[0]], str(refusal)) from None
            for half in (rows[: len(rows) // 2], rows[len(rows) // 2 :]):
                await self._embed(run, client, half, texts, kind, done)
        else:
            done(rows, self._checked(vectors))

    def _blame(self, text: str, reason: str) -> UserError:
        remedy = (
            "set encoder.max_chars lower"
            if TOO_LONG.search(reason)
            else "check encoder.model and dimensions, or take the text out of the data"
        )
        return UserError(
            f"encoder: {self.service.host} refuses the text {text[:60]!a} ({len(text)} characters; {reason}); {remedy}"
        )

    def _checked(self, vectors: Vectors) -> Vectors:
        width = vectors.shape[1]
        if self._width is None:
            self._width = width
        if width != self._width:
            asked = f"encoder.dimensions {self._width}: " if self.settings.dimensions else ""
            raise UserError(
                f"{asked}{self.service.host} gave {width} dimensions for {self.settings.model}, not {self._width};"
                " leave encoder.dimensions out, or name a model that has them"
            )
        return vectors

    async def _ask(self, run: _Run, client: openai.AsyncOpenAI, texts: list[str], kind: Kind) -> Vectors:
        """The vectors of one request, tried `attempts` times. Raises Refused, or ProviderStop."""
        error = ""
        for attempt in range(1, self.settings.attempts + 1):
            self.usage["attempts"] += 1
            try:
                async with asyncio.timeout(self.settings.timeout_s):  # the client's own counts from byte to byte
                    body = self.service.body(texts, kind)
                    reply = await client.post(self.service.path, cast_to=object, body=body)
                vectors, tokens = self.service.read(reply, len(texts))
                self.usage.update({"requests": 1, "tokens": tokens})
                return vectors
            except openai.APIStatusError as failure:
                error, pause = self._judge_failure(failure), provider.wait(attempt, failure)
            except (openai.APIError, ValueError, TimeoutError, RecursionError) as failure:
                error = provider.broken(failure, self.settings.timeout_s, self.service.key())
                pause = provider.wait(attempt)
            log.debug("encoder: attempt %d failed: %s", attempt, error)
            if run.failure:  # another request was refused for good: this one is not worth waiting for
                break
            if attempt < self.settings.attempts:
                await asyncio.sleep(pause)
        raise ProviderStop(
            f"encoder: no vectors from {self.service.host} in {self.settings.attempts} attempts ({error});"
            " what was encoded is kept, run again"
        )

    def _judge_failure(self, failure: openai.APIStatusError) -> str:
        """What a refusal says, where it is worth another try; raises Refused or ProviderStop where it is not."""
        reason = provider.refusal(failure, self.service.key())
        if provider.is_final(failure):
            raise ProviderStop(
                f"encoder: {self.service.host} refuses every request ({reason}); check key, quota and encoder.model,"
                " then run again"
            )
        if failure.status_code not in provider.RETRY_STATUS and failure.status_code < 500:
            raise Refused(reason)
        return reason


def load(settings: config.Encoder) -> RemoteEncoder:
    """Asks for no key before the first request, so that a job whose vectors are all there needs none."""
    return RemoteEncoder(settings, services.of(settings))


def fingerprint(settings: config.Encoder) -> dict[str, Any]:
    """Server, model and all that is put around the texts; never the key."""
    around = families.surround(settings)
    more = {"dimensions": settings.dimensions, "max_chars": settings.max_chars, "query_suffix": around.query_suffix}
    return {
        "backend": settings.backend,
        "server": services.identity(settings),
        "model": settings.model,
        "query_prefix": around.query_prefix,
        "passage_prefix": around.passage_prefix,
        **services.inputs(settings),
        **{name: value for name, value in more.items() if value},
    }


def cut(sizes: list[int], count: int, tokens: int) -> list[list[int]]:
    """Row numbers in order, in requests of at most `count` texts and about `tokens` tokens; sizes: UTF-8 bytes."""
    batches: list[list[int]] = []
    filled = 0
    for row, size in enumerate(sizes):
        if not batches or len(batches[-1]) == count or filled + size > tokens * BYTES_A_TOKEN:
            batches.append([])
            filled = 0
        batches[-1].append(row)
        filled += size
    return batches
