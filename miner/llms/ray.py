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
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import islice
from typing import Any

from miner import ledger_shards
from miner.config import Endpoint, Engine, Replica
from miner.errors import BudgetReached, MinerError, ProviderStop, UserError
from miner.ledger import Answer, Request
from miner.llms import openai, vllm
from miner.llms.ray_actor import Asker, Begun, Hidden, Load, begin, client
from miner.llms.vllm_chat import in_order
from miner.meter import Meter

log = logging.getLogger("miner")
Done = Callable[[Request, Answer], None]
STOPS = {"ProviderStop": ProviderStop, "UserError": UserError}


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
        return self._endpoint.model_copy(update={**own, "replicas": replicas}), partial(client, Hidden(keys))

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
            fn_constructor_args=(partial(begin, begun), *self._made_of(workers)),
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
