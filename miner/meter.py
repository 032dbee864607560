"""What requests cost: prices, token counts, the budget of the job, and the running totals that progress shows.

A request is reserved at the most that it can cost before it is sent, and settled at what the server says it took. So
the budget holds with any number of requests in flight, and over restarts.
"""

from __future__ import annotations

import importlib.resources
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from miner import yaml_file
from miner.config import Budget, Endpoint, Price
from miner.errors import BudgetReached, UserError
from miner.ledger import Answer, Charge, Ledger, Request, Usage

INFINITE = float("inf")
MILLION = 1_000_000
# What a chat template puts around each message, and around all: more than any known one.
TOKENS_A_MESSAGE, TOKENS_A_CHAT = 8, 16
# Where no tokenizer is known: English has four to five bytes a token, CJK scripts about three.
BYTES_A_TOKEN = 3.5
RECENT_S = 30.0


class Prices(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    read_on: Any = None
    models: dict[str, Price]


def price(endpoint: Endpoint) -> Price | None:
    """The endpoint's own price, else that of the longest name in the price file that the model begins with."""
    if endpoint.price is not None:
        return endpoint.price
    path = Path(endpoint.prices) if endpoint.prices else Path(str(importlib.resources.files("miner"))) / "prices.yaml"
    raw, _ = yaml_file.read(path)
    try:
        known = Prices.model_validate(raw).models
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise UserError(f"{path}: {place}: {first['msg']}; write input and output in dollars a million") from None
    fitting = [name for name in known if endpoint.model == name or endpoint.model.startswith(f"{name}-")]
    return known[max(fitting, key=len)] if fitting else None


def dollars(price: Price, prompt: int, completion: int, cached: int = 0, batched: bool = False) -> float:
    """The cost of one answer. Of `prompt` tokens, `cached` were read from the provider's cache."""
    of_cached = price.input if price.cached_input is None else price.cached_input
    cost = ((prompt - cached) * price.input + cached * of_cached + completion * price.output) / MILLION
    return cost * (1 - price.batch_discount) if batched else cost


def completion_limit(body: dict[str, Any]) -> int | None:
    """The most tokens that the answers of a request can have, or None where it sets no limit."""
    limit = body.get("max_completion_tokens") or body.get("max_tokens")
    return None if limit is None else int(limit) * int(body.get("n") or 1)


def used(response: dict[str, Any] | None) -> tuple[int, int, int]:
    """prompt, completion and cached tokens as a server counts them; 0 for whatever is no count."""
    usage = (response or {}).get("usage")
    usage = usage if isinstance(usage, dict) else {}
    details = usage.get("prompt_tokens_details")
    cached = _count(details, "cached_tokens")
    prompt = _count(usage, "prompt_tokens")
    return prompt, _count(usage, "completion_tokens"), min(cached, prompt)


def _count(counts: Any, name: str) -> int:
    value = counts.get(name) if isinstance(counts, dict) else None
    return value if type(value) is int and 0 <= value < 1 << 31 else 0


@dataclass
class Meter:
    """The money and the pace of one endpoint in one run. Shared by the backend, the ledger and the progress line.

    done, failed, throttled: requests answered, given up, and tries refused with 429. cost: dollars of this run's
    answers, None where no price is known.
    """

    endpoint: Endpoint
    ledger: Ledger
    budget: Budget = field(default_factory=lambda: Budget())  # type: ignore[call-arg]
    clock: Callable[[], float] = time.monotonic
    done: int = 0
    failed: int = 0
    tries: int = 0
    throttled: int = 0
    tokens: int = 0
    cost: float = 0.0
    _reserved: dict[str, list[Charge]] = field(default_factory=dict)
    _recent: deque[tuple[float, int]] = field(default_factory=deque)
    _bytes: int = 0
    _prompt_tokens: int = 0
    _completion_tokens: int = 0

    @cached_property
    def price(self) -> Price | None:
        found = price(self.endpoint)
        if found is None and self.budget.max_cost is not None:
            raise UserError(
                f"budget.max_cost: no price is known for {self.endpoint.model}; set llm.price, or budget.max_tokens"
            )
        return found

    @cached_property
    def _count(self) -> Callable[[str], int] | None:
        """Exact tokens of a text, or None where the job names no tokenizer."""
        if self.endpoint.tokenizer is None:
            return None
        from tokenizers import Tokenizer

        name = self.endpoint.tokenizer
        path = Path(name) / "tokenizer.json" if Path(name).is_dir() else Path(name)
        try:
            tokenizer = Tokenizer.from_file(str(path)) if path.is_file() else Tokenizer.from_pretrained(name)
        except Exception as error:  # noqa: BLE001 - the library raises nothing narrower
            reason = " ".join(str(error).split())[:120]
            raise UserError(f"llm.tokenizer {name}: cannot be loaded ({reason}); name a tokenizer.json") from None
        tokenizer.no_padding()
        tokenizer.no_truncation()
        return lambda text: len(tokenizer.encode(text, add_special_tokens=False).ids)

    def prompt_tokens(self, body: dict[str, Any], at_most: bool = False) -> int:
        """Tokens of a request's prompt: exact with a tokenizer, else estimated, from the server's counts so far.

        at_most: where no tokenizer is known, no less than it can have (a token has at least one byte).
        """
        texts = [str(message.get("content") or "") for message in body["messages"]]
        around = TOKENS_A_CHAT + TOKENS_A_MESSAGE * len(texts)
        if "response_format" in body:
            texts.append(str(body["response_format"]))  # some servers count the schema
        if self._count is not None:
            return sum(map(self._count, texts)) + around
        size = sum(len(text.encode("utf-8", "replace")) for text in texts)
        if at_most:
            return size + around
        rate = self._bytes / self._prompt_tokens if self._prompt_tokens else BYTES_A_TOKEN
        return int(size / rate) + (0 if self._prompt_tokens else around)

    def expected_tokens(self, body: dict[str, Any]) -> int:
        """What a request will take of a limit on tokens: its prompt, and as much answer as the others had."""
        limit = completion_limit(body) or 0
        return self.prompt_tokens(body) + (self._completion_tokens // self.done if self.done else limit)

    def charge(self, body: dict[str, Any], batched: bool = False) -> Charge:
        """The most that a request can take. Raises UserError where it has no bound and the budget needs one."""
        limit = completion_limit(body)
        if limit is None and (self.budget.max_cost or self.budget.max_tokens):
            raise UserError(
                "budget: a request without max_tokens has no largest cost; set max_tokens in the prompt's sampling"
            )
        prompt = self.prompt_tokens(body, at_most=True)
        cost = None if self.price is None else dollars(self.price, prompt, limit or 0, batched=batched)
        return Charge(prompt + (limit or 0), cost)

    @cached_property
    def _limits(self) -> Charge:
        wanted = (self.budget.max_tokens, self.budget.max_cost, self.budget.max_requests)
        return Charge(*(INFINITE if limit is None else limit for limit in wanted))  # type: ignore[arg-type]

    @property
    def _limited(self) -> bool:
        return any(limit < INFINITE for limit in self._limits if limit is not None)

    def reserve(self, request: Request, batched: bool = False) -> None:
        """Take one try of a request out of the budget, before it is sent. Raises BudgetReached, with nothing taken."""
        self.tries += 1
        if not self._limited:
            return
        charge = self.charge(request.body, batched)
        passed = self.ledger.reserve(charge, self._limits)
        if passed:
            self.tries -= 1
            limit, spent = getattr(self._limits, passed), self.ledger.totals()[passed]
            sign = "$" if passed == "cost" else ""
            raise BudgetReached(
                f"budget.max_{passed}: {sign}{spent:.10g} of {sign}{limit:.10g} are taken and the next request could"
                " pass it; what was answered is kept. Raise the budget and run again"
            )
        self._reserved.setdefault(request.key, []).append(charge)

    def release(self, request: Request) -> None:
        """The last try of the request was refused before it cost anything (429, 5xx, no connection)."""
        charge = self._taken(request)
        if charge is not None:
            self.ledger.release(charge)

    def lost(self, request: Request) -> None:
        """The last try may have been charged though no answer came (a timeout, a broken reply): it stays spent."""
        self._taken(request)

    def unsent(self, request: Request) -> None:
        """The last try was reserved and never made: it counts as no request either."""
        charge = self._taken(request)
        self.tries -= 1
        if charge is not None:
            self.ledger.release(charge, sent=False)

    def taken(self, request: Request) -> Charge | None:
        """What the last try of a request took out of the budget; None where there is no budget."""
        return next(reversed(self._reserved.get(request.key, [])), None)

    def _taken(self, request: Request) -> Charge | None:
        charges = self._reserved.get(request.key, [])
        charge = charges.pop() if charges else None
        if not charges:
            self._reserved.pop(request.key, None)
        return charge

    def usage(self, answer: Answer) -> Usage:
        """What an answer took, at the endpoint's price."""
        prompt, completion, cached = used(answer.response)
        known = self.price is not None and answer.response is not None
        cost = dollars(self.price, prompt, completion, cached, answer.batched) if known and self.price else None
        return Usage(prompt, completion, cached, cost)

    def settle(self, request: Request, answer: Answer) -> None:
        """Settle a request that is no work of the job, such as a probe: it costs, and its answer is not kept."""
        self.ledger.settle(self._taken(request), self.usage(answer))

    def put(self, request: Request, answer: Answer) -> None:
        """Commit an answer or a tombstone to the ledger, settled at its true cost."""
        usage = self.usage(answer)
        prompt, completion = usage.prompt, usage.completion
        self.ledger.put(request, answer, usage, self._taken(request))
        if answer.response is None:
            self.failed += 1
            return
        self.done += 1
        self.tokens += prompt + completion
        self.cost += usage.cost or 0.0
        self._completion_tokens += completion
        if prompt:
            self._prompt_tokens += prompt
            self._bytes += sum(
                len(str(m.get("content") or "").encode("utf-8", "replace")) for m in request.body["messages"]
            )
        self._recent.append((self.clock(), prompt + completion))
        self._forget(self.clock())

    @property
    def reserved(self) -> bool:
        """Is anything in flight that the budget was asked for?"""
        return bool(self._reserved)

    def _forget(self, now: float) -> None:
        while self._recent and self._recent[0][0] < now - RECENT_S:
            self._recent.popleft()

    def line(self, left: int) -> str:
        """What the progress line says beside its count: pace of the last 30 s, cost so far and at the end, refusals."""
        now = self.clock()
        self._forget(now)
        span = max(now - self._recent[0][0], 1.0) if self._recent else 1.0
        parts = [f"{len(self._recent) / span:.1f} req/s", f"{sum(t for _, t in self._recent) / span:.0f} tok/s"]
        if self.price is None:
            parts.append("cost unknown")
        elif self.done:
            parts.append(f"${self.cost:.4g} of ${self.cost + self.cost / self.done * left:.4g}")
        parts.append(f"{self.throttled / max(self.tries, 1):.1%} 429")
        return ", ".join(parts)
