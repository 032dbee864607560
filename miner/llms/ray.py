"""Backends openai and vllm on a Ray cluster (`engine.kind: ray`): batches of requests through Ray Data, on actors.

Each actor runs what the local engine runs: the same client (miner.llms.openai), so pace, retries, outages and what is
final are the same, or the same vLLM engine (miner.llms.vllm), which it loads once. `ray.data.llm` was read for this
(2.60, HttpRequestProcessorConfig) and is not used, for four things that would lose rows or money. It has no
should_continue_on_error: one row that times out, has no JSON or runs out of retries raises in its batch and ends the
whole data set, with the row's payload in the error text. It gives the body of a reply without its status, so a 400
looks like an answer. It awaits each request before it sends the next. And an answer is seen by nobody before its whole
batch is there. Failed rows here are rows too: with a reason, and no response.

Money: the driver reserves each request once before it is sent, and settles it with its answer. A worker never spends a
second reservation: under a budget it hands back what needs another try, which the driver reserves anew. Requests that
are in flight on a worker that dies may be charged twice by the server. Of these, none are counted twice. A greeting
of a failing server (4 tokens) is counted after it.

Nor is its vLLMEngineProcessorConfig used: its rows carry no finish_reason (2.60), so an answer that was cut off could
not be told from a whole one.
"""

from __future__ import annotations

import json
import logging
import math
import secrets
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property, partial
from itertools import islice
from pathlib import Path
from typing import Any

from miner import ledger_shards, llms
from miner.config import Budget, Endpoint, Engine, Replica
from miner.errors import BudgetReached, MinerError, ProviderStop, UserError
from miner.ledger import Answer, Charge, Ledger, Request
from miner.llms import openai, vllm
from miner.llms.vllm_chat import in_order
from miner.meter import Meter

log = logging.getLogger("miner")
TRIES = 4  # of a batch whose actor was lost, each with a model to load; what ends every process ends the run
Done = Callable[[Request, Answer], None]
Load = Callable[[Endpoint, Meter], llms.Backend]
ENDED = (
    "perhaps for want of memory; lower llm.vllm.chunk or llm.concurrency, or raise engine.cpus, so that fewer run"
    " beside each other; what is done is kept, run again"
)
STOPS = {"ProviderStop": ProviderStop, "UserError": UserError}


class Hidden:
    """Keys on their way to the workers. Ray may write down what a worker is made of; it would write this."""

    def __init__(self, keys: list[tuple[Replica, str]]) -> None:
        self._keys = keys

    def __repr__(self) -> str:
        return "Hidden(***)"

    def keys(self) -> list[tuple[Replica, str]]:
        return self._keys


def _client(hidden: Hidden, endpoint: Endpoint, meter: Meter) -> openai.OpenAIBackend:
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


def _begin(begun: Any, batch: str) -> int:
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


class Servers:
    """The actors are clients of the job's servers. Rates and places are those of the whole job: each has its part."""

    name, wave, batch, gpus = "", 2048, 256, 0.0

    def __init__(self, endpoint: Endpoint, meter: Meter) -> None:
        self._endpoint = endpoint
        self._local = openai.load(endpoint, meter)

    def greet(self, done: Done) -> None:
        """Ask once for the form that the server takes; tells of a dead one early."""
        self._local.answer(iter(()), done)

    def ordered(self, wave: list[Request]) -> list[Request]:
        return wave

    def part(self, workers: int) -> tuple[Endpoint, Load]:
        """What each of so many actors has of the endpoint, and the backend that it asks."""
        own = {name: max(1, value // workers) for name in RATES if (value := getattr(self._endpoint, name))}
        replicas = tuple(self._replica(replica, workers) for replica in self._endpoint.replicas)
        keys = [(self._replica(replica, workers), key) for replica, key in self._local.keys]
        return self._endpoint.model_copy(update={**own, "replicas": replicas}), partial(_client, Hidden(keys))

    @staticmethod
    def _replica(replica: Replica, workers: int) -> Replica:
        own = {name: max(1, value // workers) for name in ("rpm", "tpm") if (value := getattr(replica, name))}
        return replica.model_copy(update=own)


class Engines:
    """The actors have a vLLM engine each, on engine.gpus GPUs. Waves are long: each loads the model anew."""

    name, wave = "vllm", 1 << 15

    def __init__(self, endpoint: Endpoint, engine: Engine) -> None:
        self._endpoint, self.batch, self.gpus = endpoint, endpoint.vllm.chunk, engine.gpus
        wanted = endpoint.vllm.engine.get("tensor_parallel_size", 1)
        if 0 < engine.gpus < wanted:
            raise UserError(
                f"engine.gpus: a worker has {engine.gpus:g} GPUs, llm.vllm.engine.tensor_parallel_size wants {wanted};"
                f" set engine.gpus: {wanted}"
            )

    def greet(self, done: Done) -> None:
        """The model is loaded by the actors alone."""

    def ordered(self, wave: list[Request]) -> list[Request]:
        return in_order(wave)  # those that share a prefix go to one engine

    def part(self, workers: int) -> tuple[Endpoint, Load]:
        return self._endpoint, vllm.load


class RayBackend:
    def __init__(self, asked: Servers | Engines, endpoint: Endpoint, meter: Meter, engine: Engine) -> None:
        self._asked, self._endpoint, self._meter, self._engine = asked, endpoint, meter, engine
        self._folder = meter.ledger.path.parent / ledger_shards.FOLDER
        self._tries: Counter[str] = Counter()

    def answer(self, requests: Iterable[Request], done: Done) -> None:
        self._asked.greet(done)
        coming, again = iter(requests), list[Request]()
        try:
            while wave := [*again, *islice(coming, max(0, self._asked.wave - len(again)))]:
                wave, stop = self._reserve(wave)
                again = self._wave(wave, done) if wave else []
                if stop is not None and not again:
                    raise stop
        finally:
            ledger_shards.merge(self._folder, self._meter.ledger)

    def _reserve(self, wave: list[Request]) -> tuple[list[Request], BudgetReached | None]:
        """The requests that the budget has room for, and what to raise when they are answered."""
        for number, request in enumerate(wave):
            try:
                self._meter.reserve(request)
            except BudgetReached as stop:
                return wave[:number], stop
            self._meter.ledger.sent(request, self._asked.name)
        self._meter.ledger.flush()
        return wave, None

    def _wave(self, wave: list[Request], done: Done) -> list[Request]:
        """Ask; what must be asked again. Raises what the workers stopped for, when all of them are home."""
        waiting = {request.key: request for request in wave}
        stops: list[list[str]] = []
        again: list[Request] = []
        try:
            for row in self._rows(wave):
                if "stop" in row:
                    self._count(row, stops)
                elif row["key"] in waiting:
                    again += self._take(waiting.pop(row["key"]), row, done)
        except (MinerError, KeyboardInterrupt):
            for request in waiting.values():
                self._meter.lost(request)
            raise
        if stops:
            name, reason = stops[0]
            raise STOPS.get(name, MinerError)(reason)
        return again

    def _take(self, request: Request, row: dict[str, Any], done: Done) -> list[Request]:
        """Settle a row; [] where it is done, else the request, to be asked again."""
        answer = Answer(**row["answer"]) if row["answer"] else None
        if row["became"] == "released" and (answer is None or answer.response is None):
            self._meter.release(request)
        elif answer is None or row["became"] == "unsent":
            (self._meter.lost if row["became"] == "lost" else self._meter.unsent)(request)
        if answer is not None:
            done(request, answer)
            return []
        self._tries[request.key] += row["became"] != "unsent"
        if self._tries[request.key] < self._endpoint.attempts:
            return [request]
        done(request, Answer(None, "no answer in any try", self._tries[request.key], final=True))
        return []

    def _count(self, row: dict[str, Any], stops: list[list[str]]) -> None:
        self._meter.throttled += row["throttled"]
        if row["spent"]:
            self._meter.ledger.add_spent(row["spent"])
        if row["stop"]:
            stops.append(row["stop"])

    # ------------------------------------------------------------ Ray Data

    def _rows(self, wave: list[Request]) -> Iterator[dict[str, Any]]:
        """What the workers say, as it comes. Raises ProviderStop for what befell the cluster."""
        import ray
        import ray.data

        _quiet(ray)
        workers = self._workers(ray)
        size = min(self._asked.batch, max(1, math.ceil(len(wave) / (2 * workers))))
        wave_id, count = secrets.token_hex(8), math.ceil(len(wave) / size)
        texts = [self._line(request, f"{wave_id}-{n // size}") for n, request in enumerate(self._asked.ordered(wave))]
        data = ray.data.from_blocks([_block(texts[at : at + size]) for at in range(0, len(texts), size)])
        begun = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(Begun).remote()
        asked = data.map_batches(
            Asker,
            fn_constructor_args=(partial(_begin, begun), *self._made_of(workers)),
            batch_size=None,
            num_cpus=self._engine.cpus,
            num_gpus=self._asked.gpus,
            compute=ray.data.ActorPoolStrategy(size=min(workers, count), max_tasks_in_flight_per_actor=1),
        )
        try:
            for row in asked.iter_rows():
                yield json.loads(row["row"])
        except ray.exceptions.RayError as error:
            reason = " ".join(str(error).split())[:200]
            raise ProviderStop(f"ray: {type(error).__name__}: {reason}; what is done is kept, run again") from None

    def _workers(self, ray: Any) -> int:
        there, wanted = ray.cluster_resources(), {"CPU": self._engine.cpus, "GPU": self._asked.gpus}
        room = min(max(1, int(there.get(kind, 0) / of_one)) for kind, of_one in wanted.items() if of_one)
        return min(self._engine.workers or room, room)

    def _line(self, request: Request, batch: str) -> str:
        value = {**vars(request), "batch": batch, "reserved": self._meter.taken(request)}
        return json.dumps(value, ensure_ascii=False)

    def _made_of(self, workers: int) -> tuple[Any, ...]:
        notes = self._meter.ledger.notes("structured ")
        folder = str(self._folder.absolute())
        return *self._asked.part(workers), self._meter.budget, notes, folder, ledger_shards.share(self._folder)


RATES = ("concurrency", "rpm", "tpm")


def _block(texts: list[str]) -> Any:
    import pyarrow

    return pyarrow.table({"request": pyarrow.array(texts, pyarrow.large_string())})


def _quiet(ray: Any) -> None:
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)


def load(endpoint: Endpoint, meter: Meter, engine: Engine) -> RayBackend:
    """The cluster is joined already (miner.workers). Raises UserError where a key is not set, or GPUs lack."""
    asked = Engines(endpoint, engine) if endpoint.backend == "vllm" else Servers(endpoint, meter)
    return RayBackend(asked, endpoint, meter, engine)
