"""Any OpenAI-compatible server through the openai client: as many requests in flight as the server takes.

The client's own retries are off: what is tried again, and how often, is decided here, and counted. A run that must end
(no quota, no budget, Ctrl-C) sends nothing more, awaits what is in flight and keeps it.
"""

from __future__ import annotations

import asyncio
import json
import logging
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

import openai

from miner import provider
from miner.config import Endpoint, Replica, secret
from miner.errors import BudgetReached, MinerError, ProviderStop, UserError
from miner.ledger import Answer, Request
from miner.llms import completion, structured
from miner.llms.lanes import Gate, Lane
from miner.meter import Meter

log = logging.getLogger("miner")
UNREACHED = ("ConnectError", "ConnectTimeout")
PROBE = "probe"
GREETING = [{"role": "user", "content": "Say hello."}]
Done = Callable[[Request, Answer], None]


class Again(Exception):
    """The try gave nothing; another one may. failure: the server's refusal, whose Retry-After is heeded. counts: as one
    of the request's tries, which a refusal for the rate and an outage of the server do not. unreached: the server was
    not reached at all, so nothing is known of the request."""

    def __init__(
        self,
        reason: str,
        failure: openai.APIStatusError | None = None,
        counts: bool = True,
        unreached: bool = False,
    ) -> None:
        super().__init__(reason)
        self.failure, self.counts, self.unreached = failure, counts, unreached


class OpenAIBackend:
    def __init__(self, endpoint: Endpoint, meter: Meter, keys: list[tuple[Replica, str]]) -> None:
        self._endpoint = endpoint
        self._meter = meter
        self.keys = keys

    def answer(self, requests: Iterable[Request], done: Done) -> None:
        run = _Run(self._endpoint, self._meter, iter(requests), done)
        asyncio.run(run.all(self.keys))
        if run.stop is not None:
            raise run.stop


class _Run:
    """One call of `answer`. stop: what ends the run early; nothing new is sent from then on."""

    def __init__(self, endpoint: Endpoint, meter: Meter, requests: Iterator[Request], done: Done) -> None:
        self.endpoint, self.meter, self.requests, self.done = endpoint, meter, requests, done
        self.stop: BaseException | None = None
        self.stopped = asyncio.Event()
        self.gate = Gate([])
        self.purse, self.settled = asyncio.Lock(), asyncio.Event()

    async def all(self, keys: list[tuple[Replica, str]]) -> None:
        heaviest = max(replica.weight for replica, _ in keys)
        lanes = [Lane.of(self.endpoint, replica, key, heaviest) for replica, key in keys]
        self.gate = Gate(lanes)
        try:
            with self._signals():
                await self._find_forms(lanes)
                count = min(len(lanes) * self.endpoint.concurrency, 4096)
                await asyncio.gather(*(self._worker() for _ in range(count)))
        except MinerError as error:  # of a probe; a worker tells of its own
            self.halt(error)
        except asyncio.CancelledError:
            self.stop = KeyboardInterrupt()
        finally:
            for lane in lanes:
                await lane.client.close()

    def halt(self, why: BaseException) -> None:
        self.stop = self.stop or why
        self.stopped.set()
        self.settled.set()
        self.gate.close()

    # ------------------------------------------------------------ Ctrl-C

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """The first Ctrl-C or SIGTERM lets what is in flight come home; the second one ends at once."""
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

        def interrupted() -> None:
            if isinstance(self.stop, KeyboardInterrupt) and task is not None:
                task.cancel()
            elif self.gate.in_flight:
                log.info("stopping: %d answers are awaited; again to stop at once", self.gate.in_flight)
            self.halt(KeyboardInterrupt())

        try:
            for number in before:
                loop.add_signal_handler(number, interrupted)
        except (ValueError, RuntimeError):  # not in the main thread: then there is nothing to catch
            before = {}
        try:
            yield
        finally:
            for number, handler in before.items():
                loop.remove_signal_handler(number)
                signal.signal(number, handler)

    # ------------------------------------------------------------ what form the server takes

    async def _find_forms(self, lanes: list[Lane]) -> None:
        if self.endpoint.structured != "auto":
            return
        for lane in lanes:
            name = f"structured {lane.address} {self.endpoint.model}"
            known = self.meter.ledger.note(name)
            if known is None and lane.host != "api.openai.com":
                known = await structured.probe(self.endpoint.model, partial(self._probe, lane))
                if not lane.alive:
                    continue
                if self.stop is not None:
                    return
                self.meter.ledger.write_note(name, known)
                log.info("%s: the form of answers is asked for as %s", lane.host, known)
            lane.form = known or "json_schema"

    async def _probe(self, lane: Lane, body: dict[str, Any]) -> dict[str, Any] | None:
        """The completion of a probe; None where it is refused: with a 4xx, or three times with HTTP 500 or 501."""
        request, broken = Request(PROBE, body), 0
        while self.stop is None and broken < 3:
            lane.breaker.probing = not lane.breaker.closed
            try:
                answer = await self._try(lane, request, body)
            except Again as again:
                broken += getattr(again.failure, "status_code", 0) in (500, 501)
                await self._pause(max(provider.wait(1, again.failure), lane.breaker.probe_at - time.monotonic()))
                if not lane.alive:
                    return None
                continue
            self.meter.settle(request, answer)
            return answer.response
        return None

    # ------------------------------------------------------------ one request

    async def _worker(self) -> None:
        try:
            for request in self.requests:
                if self.stop is not None:
                    return
                answer = await self._ask(request)
                if answer is not None:
                    self.done(request, answer)
                    self.settled.set()
        except MinerError as error:
            self.halt(error)

    async def _ask(self, request: Request) -> Answer | None:
        """The answer or the tombstone of a request; None where the run was stopped before it had one."""
        start, attempt, body, mark = time.monotonic(), 1, request.body, ""
        while True:
            lane = await self.gate.enter(request, self.meter)
            if lane is None:
                return None
            sent_at = time.monotonic()
            try:
                answer = await self._hedged(lane, request, body)
            except Again as again:
                again.counts = again.counts and await self._alive(lane, sent_at)
                log.debug("%s: try %d failed: %s", request.key[:12], attempt, again)
                if again.counts and attempt >= self.endpoint.attempts:
                    return Answer(None, str(again), attempt, final=not again.unreached)
                attempt += again.counts
                await self._pause(provider.wait(attempt, again.failure))
                continue
            if answer.response is None and not mark and request.shorter and provider.TOO_LONG.search(answer.error):
                body, mark = request.shorter, "shortened"
                continue
            seconds = time.monotonic() - start
            return Answer(answer.response, answer.error, attempt, seconds, answer.final, mark, lane.host)

    async def _pause(self, seconds: float) -> None:
        """Wait, but not beyond the end of the run."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self.stopped.wait(), seconds)

    async def _hedged(self, lane: Lane, request: Request, body: dict[str, Any]) -> Answer:
        """One try, and a second one beside it where `hedge_s` passes without an answer. Leaves the slot in any case."""
        tries: set[asyncio.Task[Answer]] = set()
        try:
            if lane.breaker.probing:
                await self._greet(lane)
            if self.endpoint.hedge_s is None:
                return await self._try(lane, request, body)
            tries.add(asyncio.create_task(self._try(lane, request, body)))
            over, _ = await asyncio.wait(tries, timeout=self.endpoint.hedge_s)
            if not over and self.stop is None:
                tries.add(asyncio.create_task(self._try(lane, request, body)))
            return await _first_good(tries)
        finally:
            for other in tries:
                other.cancel()
            await asyncio.gather(*tries, return_exceptions=True)
            self.gate.leave(lane)
            self.settled.set()

    async def _alive(self, lane: Lane, since: float) -> bool:
        """Has the server answered anyone since then? Else a greeting tells. No request is given up for an outage."""
        async with lane.greeting:
            if self.stop is None and lane.answered_at < since and lane.silent_at < since:
                try:
                    await self._greet(lane)
                except Again:
                    lane.silent_at = time.monotonic()
        return lane.answered_at >= since

    async def _greet(self, lane: Lane) -> None:
        """Is a server alive that has failed many requests? A greeting tells: the requests may be to blame."""
        greeting = Request("greeting", {"model": self.endpoint.model, "messages": GREETING, "max_tokens": 4})
        try:
            self.meter.settle(greeting, await self._try(lane, greeting, greeting.body))
        finally:
            self.settled.set()  # what it had reserved may be room for another

    async def _reserve(self, request: Request) -> None:
        """Take the try out of the budget. What is in flight is reserved at its most, so where the budget is short, what
        comes home may make room; the run ends only where nothing is in flight any more."""
        try:
            self.meter.reserve(request)
        except BudgetReached:
            async with self.purse:
                while self.stop is None and self.meter.reserved:
                    self.settled.clear()
                    await self.settled.wait()
                    with suppress(BudgetReached):
                        return self.meter.reserve(request)
            raise

    async def _try(self, lane: Lane, request: Request, body: dict[str, Any]) -> Answer:
        """One request on the wire. Raises Again, or BudgetReached before anything is sent."""
        await self._reserve(request)
        sent_at, probing = time.monotonic(), lane.breaker.probing
        try:
            async with asyncio.timeout(self.endpoint.timeout_s):  # the client's own counts from byte to byte
                response, headers = await _create(lane.client, structured.wire(body, lane.form))
        except openai.APIStatusError as failure:
            return self._refused(lane, request, failure, probing, sent_at)
        except openai.APIConnectionError as failure:
            reached = type(failure.__cause__).__name__ not in UNREACHED
            raise self._no_answer(lane, request, failure, reached, probing) from None
        except (openai.APIError, ValueError, TimeoutError) as failure:
            raise self._no_answer(lane, request, failure, True, probing) from None
        except asyncio.CancelledError:
            self.meter.lost(request)
            raise
        lane.answered(time.monotonic(), headers)
        self.gate.wake()
        if lane.paused_until > time.monotonic():
            self.gate.wake_at(lane.paused_until)
        return Answer(response)

    def _refused(
        self, lane: Lane, request: Request, failure: openai.APIStatusError, probing: bool, sent_at: float
    ) -> Answer:
        """The answer of a request that is refused for good. Raises Again where it is worth another try."""
        self.meter.release(request)
        reason = provider.refusal(failure, lane.key)
        if provider.is_final(failure):
            log.warning("%s: refuses every request (%s)", lane.host, reason)
            self._give_up(
                lane, f"the provider refuses every request ({reason}); check key, quota and model, then run again"
            )
            raise Again(reason, counts=False)
        if failure.status_code == 429:
            self.meter.throttled += 1
            if lane.refused(time.monotonic(), sent_at, failure.response.headers):
                self._give_up(lane, f"{lane.host} only refuses for the rate ({reason}); run again later")
            self.gate.wake_at(lane.paused_until)
            raise Again(reason, failure, counts=False)
        if failure.status_code >= 500:
            if request.key != PROBE:  # a form that is not taken is no outage
                self._down(lane, reason)
            raise Again(reason, failure, counts=not probing)
        lane.breaker.answered()
        if failure.status_code in provider.RETRY_STATUS:
            raise Again(reason, failure)
        code = getattr(failure, "code", None) or ""
        return Answer(None, reason if code in reason else f"{reason} ({code})", final=True)

    def _no_answer(self, lane: Lane, request: Request, failure: Exception, reached: bool, probing: bool) -> Again:
        """reached: the server may have worked, and may want to be paid for it."""
        (self.meter.lost if reached else self.meter.release)(request)
        reason = provider.broken(failure, self.endpoint.timeout_s, lane.key)
        self._down(lane, reason)
        return Again(reason, counts=not probing, unreached=not reached)

    def _down(self, lane: Lane, reason: str) -> None:
        """Tell the breaker, and end the run where no server is left."""
        was_closed = lane.breaker.closed
        if lane.breaker.failed(time.monotonic()):
            self._give_up(
                lane, f"{lane.host} gives no answers ({reason}); what was answered is kept, run again when it is back"
            )
        elif not lane.breaker.closed:
            if was_closed:
                log.warning("%s: gives no answers (%s); it is tried now and then", lane.host, reason)
            self.gate.wake_at(lane.breaker.probe_at)

    def _give_up(self, lane: Lane, reason: str) -> None:
        """Ask this server no more; where none is left, the run ends."""
        lane.alive = False
        if not any(other.alive for other in self.gate.lanes):
            self.halt(ProviderStop(reason))


async def _first_good(tries: set[asyncio.Task[Answer]]) -> Answer:
    """The answer of the first try that has one; else what the last one raised."""
    while True:
        over, tries = await asyncio.wait(tries, return_when=asyncio.FIRST_COMPLETED)
        for task in over:
            if task.exception() is None or not tries:
                return task.result()


async def _create(client: openai.AsyncOpenAI, body: dict[str, Any]) -> tuple[dict[str, Any], Any]:
    """The raw chat completion and the headers. ValueError where the reply is cut or none: worth another try."""
    # extra_body: a prompt may set parameters that the client has no name for, as many servers take them; and the client
    # takes a fifth of its time to look through what it does know.
    create = client.chat.completions.with_raw_response.create
    reply = await create(model=body["model"], messages=[], extra_body=body)
    try:
        return completion(json.loads(reply.content)), reply.headers
    except RecursionError:
        raise ValueError("the body is nested too deep") from None


def load(endpoint: Endpoint, meter: Meter) -> OpenAIBackend:
    replicas = endpoint.replicas or (Replica(),)  # type: ignore[call-arg]
    return OpenAIBackend(endpoint, meter, [(replica, _key(endpoint, replica)) for replica in replicas])


def _key(endpoint: Endpoint, replica: Replica) -> str:
    reference = replica.api_key or endpoint.api_key
    name, key = reference or "OPENAI_API_KEY", secret(reference, "OPENAI_API_KEY")
    if not key:
        raise UserError(
            f"{name} is not set; export it (any word will do for a server that wants none), or name another"
            " variable in llm.api_key"
        )
    return provider.checked_key(name, key)
