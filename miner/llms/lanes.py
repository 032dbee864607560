"""Lanes and the gate before them. A lane is one server or key: its client, its window, its breaker, its fixed rates.
The gate lets a request into the lane that has most room for its weight, and holds it back where none has any."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from dataclasses import dataclass, field
from typing import Any

import openai

from miner import provider
from miner.config import Endpoint, Replica
from miner.ledger import Request
from miner.llms.structured import Form
from miner.meter import Meter
from miner.pace import Breaker, Rate, Window, exhausted


@dataclass
class Lane:
    client: openai.AsyncOpenAI
    key: str
    address: str
    weight: float
    window: Window
    breaker: Breaker
    requests: Rate
    tokens: Rate
    form: Form = "json_schema"
    in_flight: int = 0
    paused_until: float = 0.0
    answered_at: float = field(default_factory=time.monotonic)
    silent_at: float = -1.0
    sent: int = 0
    alive: bool = True
    greeting: asyncio.Lock = field(default_factory=asyncio.Lock)

    @classmethod
    def of(cls, endpoint: Endpoint, replica: Replica, key: str, heaviest: float) -> Lane:
        """heaviest: the largest weight beside it, whose lane may take `concurrency` at once."""
        address = replica.base_url or endpoint.base_url
        client = openai.AsyncOpenAI(api_key=key, base_url=address, max_retries=0, timeout=endpoint.timeout_s)
        return cls(
            client,
            key,
            str(client.base_url).rstrip("/"),
            replica.weight,
            Window(max(1, round(endpoint.concurrency * replica.weight / heaviest))),
            Breaker(endpoint.outage_s),
            Rate(replica.rpm or endpoint.rpm),
            Rate(replica.tpm or endpoint.tpm),
        )

    @property
    def host(self) -> str:
        return provider.host(self.address)

    def has_room(self, now: float) -> bool:
        if not self.alive or now < self.paused_until or not self.breaker.lets_through(now):
            return False
        return not self.breaker.closed or self.in_flight < self.window.slots

    @property
    def turn(self) -> tuple[bool, float]:
        """Whose turn it is, least first: one that fails comes last, else each in proportion to its weight."""
        return self.breaker.failures > 0, (self.sent + 1) / self.weight

    def answered(self, now: float, headers: Any) -> None:
        self.answered_at = now
        self.breaker.answered()
        self.window.answered(now, self.in_flight)
        self._heed(now, headers)

    def refused(self, now: float, sent_at: float, headers: Any) -> bool:
        """A 429. True where nothing but refusals has come for as long as an outage may last."""
        self.breaker.answered()
        if self.window.refused(now, sent_at, self.in_flight):
            self.paused_until = max(self.paused_until, now + min(self.window.refusals / self.window.slots, 30.0))
        self._heed(now, headers)
        return now - self.answered_at >= self.breaker.outage_s

    def _heed(self, now: float, headers: Any) -> None:
        pause = exhausted(headers)
        if pause:
            self.paused_until = max(self.paused_until, now + min(pause, 120.0))


class Gate:
    def __init__(self, lanes: list[Lane]) -> None:
        self.lanes = lanes
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._closed = False

    @property
    def in_flight(self) -> int:
        return sum(lane.in_flight for lane in self.lanes)

    async def enter(self, request: Request, meter: Meter) -> Lane | None:
        """A slot in a lane, at its rate; None where the gate is closed. The caller must leave."""
        while not self._closed:
            now = time.monotonic()
            lane = min((one for one in self.lanes if one.has_room(now)), key=lambda one: one.turn, default=None)
            if lane is not None:
                lane.in_flight += 1
                lane.sent += 1
                lane.breaker.probing = not lane.breaker.closed
                if await self._at_its_rate(lane, request, meter):
                    return lane
                self.leave(lane)
            else:
                await self._wait()
        return None

    async def _at_its_rate(self, lane: Lane, request: Request, meter: Meter) -> bool:
        """Wait until the lane's fixed rates let the request go. False where the gate was closed meanwhile."""
        now = time.monotonic()
        wait = lane.requests.wait(now, 1)
        if lane.tokens.a_minute is not None:
            wait = max(wait, lane.tokens.wait(now, meter.expected_tokens(request.body)))
        while wait > 0 and not self._closed:
            await asyncio.sleep(min(wait, 0.5))
            wait -= 0.5
        return not self._closed

    async def _wait(self) -> None:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(future)
        try:
            await future
        finally:
            if not future.done() and future in self._waiting:
                self._waiting.remove(future)

    def leave(self, lane: Lane) -> None:
        lane.in_flight -= 1
        self.wake()

    def wake(self) -> None:
        """Let as many look again as there is room for."""
        now = time.monotonic()
        room = sum(max(1, lane.window.slots - lane.in_flight) for lane in self.lanes if lane.has_room(now))
        while self._waiting and (room > 0 or self._closed):
            future = self._waiting.popleft()
            if not future.done():
                future.set_result(None)
                room -= 1

    def wake_at(self, when: float) -> None:
        """Look again at a time of the monotonic clock."""
        asyncio.get_running_loop().call_later(max(0.0, when - time.monotonic()) + 0.001, self.wake)

    def close(self) -> None:
        self._closed = True
        self.wake()
