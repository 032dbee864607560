"""What an actor of a Ray cluster does with a batch of LLM requests (miner.llms.ray makes the batches).

It asks with the backend of the local engine, writes each answer to a ledger shard where it sees the driver's disk, and
gives a row back for every request.
"""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

from miner import ledger_shards, llms
from miner.config import Budget, Endpoint, Replica
from miner.errors import BudgetReached, MinerError
from miner.ledger import Answer, Charge, Ledger, Request
from miner.llms import openai
from miner.meter import Meter

Load = Callable[[Endpoint, Meter], llms.Backend]
TRIES = 4  # of a batch whose actor was lost, each with a model to load; what ends every process ends the run
ENDED = (
    "perhaps for want of memory; lower llm.vllm.chunk or llm.concurrency, or raise engine.cpus, so that fewer run"
    " beside each other; what is done is kept, run again"
)


class Hidden:
    """Keys on their way to the workers. Ray may write down what a worker is made of; it would write this."""

    def __init__(self, keys: list[tuple[Replica, str]]) -> None:
        self._keys = keys

    def __repr__(self) -> str:
        return "Hidden(***)"

    def keys(self) -> list[tuple[Replica, str]]:
        return self._keys


def client(hidden: Hidden, endpoint: Endpoint, meter: Meter) -> openai.OpenAIBackend:
    return openai.OpenAIBackend(endpoint, meter, hidden.keys())


class _OnWorker(Meter):
    """The meter of one batch: it spends what the driver reserved. became: what the last try of a key came to."""

    def begin(self, limited: bool, repeats_cost: bool) -> None:
        self.limited, self.repeats_cost = limited, repeats_cost
        self.became: dict[str, str] = {}
        self.spent = dict[str, float]()

    def reserve(self, request: Request, batched: bool = False) -> None:
        before = self.became.get(request.key)
        if self.limited and (before == "lost" or (before == "released" and self.repeats_cost)):
            raise BudgetReached("another try is for the driver to reserve")
        self.tries += 1
        self.became[request.key] = "sent"

    def release(self, request: Request) -> None:
        self.became[request.key] = "released"

    def lost(self, request: Request) -> None:
        self.became[request.key] = "lost"

    def settle(self, request: Request, answer: Answer) -> None:
        usage = self.usage(answer)
        self.became.pop(request.key, None)
        took = {"requests": 1, "tokens": usage.prompt + usage.completion, "cost": usage.cost or 0.0}
        self.spent = {name: self.spent.get(name, 0.0) + amount for name, amount in took.items()}

    @property
    def reserved(self) -> bool:
        return False


class Begun:
    """How often each batch was begun, by whichever actor. Ray itself would try for ever."""

    def __init__(self) -> None:
        self._count: Counter[str] = Counter()

    def begin(self, batch: str) -> int:
        self._count[batch] += 1
        return self._count[batch]


def begin(begun: Any, batch: str) -> int:
    import ray

    return int(ray.get(begun.begin.remote(batch)))


class Asker:
    """One actor. A call takes a batch {"batch", "request"} and gives {"row"}: JSON, one row a request, and one more for
    what befell the batch. begin: counts a batch; load: of the backend, called where something must be asked."""

    def __init__(
        self,
        begin: Callable[[str], int],
        endpoint: Endpoint,
        load: Load,
        budget: Budget,
        notes: dict[str, Any],
        folder: str,
        token: str,
    ) -> None:
        self._begin, self._load = begin, load
        self._endpoint, self._budget, self._notes = endpoint, budget, notes
        self._folder = Path(folder) if ledger_shards.shared(Path(folder), token) else None
        self._limited = any(v is not None for v in budget.model_dump().values())

    @cached_property
    def _meter(self) -> _OnWorker:
        """Made by the thread of the calls, which is not that of the constructor: SQLite takes no other."""
        self._scratch = tempfile.TemporaryDirectory()
        ledger = Ledger(Path(self._scratch.name) / "notes.sqlite")
        for name, value in self._notes.items():
            ledger.write_note(name, value)
        return _OnWorker(self._endpoint, ledger, self._budget)

    @cached_property
    def _backend(self) -> llms.Backend:
        return self._load(self._endpoint, self._meter)

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[str]]:
        rows = [json.loads(text) for text in batch["request"]]
        shard = self._folder / f"{rows[0]['batch']}.jsonl" if self._folder else None
        asked = {row["key"]: row for row in rows}
        before = {e.request.key: e for e in ledger_shards.read(shard)} if shard else {}
        self._meter.begin(self._limited, self._meter.budget.max_requests is not None)
        self._meter.tries = self._meter.throttled = 0
        found = {key: _told(key, entry.answer, "sent") for key, entry in before.items() if key in asked}
        if self._begin(rows[0]["batch"]) <= TRIES:
            stop = self._ask(asked, found, shard)
        else:
            stop = ["ProviderStop", f"ray: a batch of {len(rows)} requests ended {TRIES} workers, {ENDED}"]
        for key in asked:
            if key not in found:
                found[key] = _told(key, None, self._meter.became.get(key, "unsent"))
        meter = self._meter
        end = {"stop": stop, "tries": meter.tries, "throttled": meter.throttled, "spent": meter.spent}
        return {"row": [*(json.dumps(found[key]) for key in asked), json.dumps(end)]}

    def _ask(self, asked: dict[str, Any], found: dict[str, Any], shard: Path | None) -> list[str]:
        """Fill `found`. What ended the batch early: the name of the error and its text, or []."""

        def done(request: Request, answer: Answer) -> None:
            # A request that has no room in the model's context is done without a try.
            became = self._meter.became.get(request.key, "sent" if answer.response else "unsent")
            found[request.key] = _told(request.key, answer, became)
            if shard is not None and answer.response is not None:
                charge = asked[request.key]["reserved"]
                usage = self._meter.usage(answer)
                entry = ledger_shards.Entry(request, answer, usage, Charge(*charge) if charge else None)
                ledger_shards.append(shard, entry)

        lacking = [_request(row) for key, row in asked.items() if key not in found]
        try:
            if lacking:
                self._backend.answer(lacking, done)
        except BudgetReached:
            return []
        except MinerError as error:
            return [type(error).__name__, str(error)]
        return []


def _told(key: str, answer: Answer | None, became: str) -> dict[str, Any]:
    return {"key": key, "answer": vars(answer) if answer else None, "became": became}


def _request(row: dict[str, Any]) -> Request:
    return Request(row["key"], row["body"], row["about"], row["shorter"])
