"""The work done by a Ray cluster: texts are encoded and pairs scored by tasks, the dense index is searched by actors.

Ray schedules, ships, and starts again what was lost with a worker or a node. This process cuts the work, and it alone
writes: a worker that dies leaves nothing half written, and no disk need be shared. The machines need this package with
the extras of the job, and a model that is a folder at the same path.
"""

from __future__ import annotations

import importlib
import logging
import os
import pickle
import socket
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from miner import config, encoders, teachers
from miner.encoders import Encoder, Kind, Vectors
from miner.errors import MinerError, ProviderStop, UserError
from miner.searchers import Searcher
from miner.teachers import Scores, Teacher
from miner.workers import Array

if TYPE_CHECKING:
    from miner.searchers.dense import Coder

log = logging.getLogger("miner")
RETRIES = 8  # of a task whose worker or node was lost; a text that kills every worker ends the run
AHEAD = 2  # tasks that wait for each one that runs
KNOCK_S = 10.0
PASSED_ON = ("HF_HUB_OFFLINE", "HF_HOME", "HF_TOKEN")


def load(engine: config.Engine) -> Cluster:
    try:
        import ray
    except ImportError:
        raise UserError("engine.kind ray needs the package ray; install it: pip install 'miner[ray]'") from None
    if not ray.is_initialized():
        _join(ray, engine)
    return Cluster(engine, ray)


def _join(ray: Any, engine: config.Engine) -> None:
    # What goes wrong comes as an exception; the core's own lines would run through the progress.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    _off_stdout()
    passed = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
    how = {"include_dashboard": False} if engine.address == "local" else {}
    try:
        _knock(engine.address)
        ray.init(
            address=engine.address,
            logging_level=logging.ERROR,
            log_to_driver=False,
            runtime_env={"env_vars": passed},
            **how,
        )
    except Exception as error:  # noqa: BLE001 - Ray raises bare ones, of a node that does not come up in time
        if "token" in str(error):
            raise UserError(
                f"engine.address {engine.address}: the cluster asks for a token; set RAY_AUTH_MODE=token, and"
                " RAY_AUTH_TOKEN to the one of its head (or copy its ~/.ray/auth_token)"
            ) from None
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"engine.address {engine.address}: no Ray cluster there ({reason[:160]}); start one with"
            " `ray start --head`, or set it to local"
        ) from None


def _off_stdout() -> None:
    """Ray tells of lost workers on stdout, where the command's result stands, and has no option against it."""
    inner: Any = importlib.import_module("ray._private.worker")
    inner.print_to_stdstream = lambda data, **_: log.debug("ray: %s", " ".join(map(str, data["lines"])))


def _knock(address: str) -> None:
    """Ray itself asks for minutes. Raises OSError where nobody listens at HOST:PORT."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host, int(port)), timeout=KNOCK_S).close()


class Cluster:
    def __init__(self, engine: config.Engine, ray: Any) -> None:
        self._engine, self._ray = engine, ray
        there = ray.cluster_resources()
        nodes = sum(node["Alive"] for node in ray.nodes())
        cores, gpus = int(there.get("CPU", 0)), int(there.get("GPU", 0))
        log.info("ray: %d nodes, %d CPU cores, %d GPUs", nodes, cores, gpus)
        self._room = int(min(cores / engine.cpus, gpus / engine.gpus if engine.gpus else np.inf))
        if not self._room:
            raise UserError(
                f"engine: a worker of {engine.cpus:g} CPU cores and {engine.gpus:g} GPUs has no room in a cluster of"
                f" {cores} cores and {gpus} GPUs; lower engine.cpus or engine.gpus, or add machines"
            )

    def encoder(self, settings: config.Encoder, token_outputs: bool = False) -> Encoder:
        if settings.remote:  # a server does the work
            return encoders.load(settings, token_outputs)
        own = settings.model_copy(update={"threads": max(1, int(self._engine.cpus))})
        return _Encoders(self, encoders.load, (own, token_outputs))

    def teacher(self, settings: config.Teacher) -> Teacher:
        return _Teachers(self, teachers.load, (settings,))

    def coder(self, trained: Array) -> Coder:
        from miner.searchers import dense

        return cast("Coder", _Many(self, dense.Coder, (trained,)))

    def dense(self, passages: Array, queries: Array, folder: Path, settings: config.Index) -> Searcher:
        from miner.searchers import dense, sharded
        from miner.workers import ray_search

        choice = dense.chosen(folder)
        if choice.kind not in sharded.KINDS:
            log.info("ray: an index of kind %s is not cut; it is searched here", choice.kind)
            return dense.open(passages, queries, folder, choice, settings)
        shards = self._engine.shards or self.most
        return ray_search.Sharded(self._ray, self._engine, get, shards, passages, queries, folder, settings)

    def put(self, value: Any) -> Any:
        """Ship it once for all tasks."""
        return self._ray.put(value)

    @property
    def most(self) -> int:
        """Workers at once."""
        return min(self._engine.workers or self._room, self._room)

    def tasks(self, function: Callable[..., Any], calls: Iterable[tuple[Any, ...]]) -> Iterator[tuple[int, Any]]:
        """The number and the result of each call, in the order of arrival."""
        how = {"num_cpus": self._engine.cpus, "num_gpus": self._engine.gpus, "scheduling_strategy": "SPREAD"}
        # max_calls=0: a process keeps its model for the next task, on a GPU too.
        remote = self._ray.remote(max_retries=RETRIES, max_calls=0, **how)(function)
        bound = self.most if self._engine.workers else AHEAD * self.most
        waiting: dict[Any, int] = {}
        for number, arguments in enumerate(calls):
            waiting[remote.remote(*arguments)] = number
            if len(waiting) >= bound:
                yield self._first(waiting)
        while waiting:
            yield self._first(waiting)

    def _first(self, waiting: dict[Any, int]) -> tuple[int, Any]:
        done, _ = self._ray.wait(list(waiting), num_returns=1)
        return waiting.pop(done[0]), get(self._ray, done[0])

    def close(self) -> None:
        self._ray.shutdown()


def get(ray: Any, what: Any) -> Any:
    """ray.get; what a worker raised comes out as it was raised there, what befell the cluster as ProviderStop."""
    try:
        return ray.get(what)
    except ray.exceptions.RayTaskError as error:
        cause = error.cause
        if isinstance(cause, MinerError):
            raise cause from None
        raise ProviderStop(f"ray: a worker failed: {type(cause).__name__}: {_line(cause)}; run again") from None
    except ray.exceptions.RayError as error:
        raise ProviderStop(f"ray: {type(error).__name__}: {_line(error)}; what is done is kept, run again") from None


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]


# ---------------------------------------------------------------- encoders and teachers


@lru_cache(maxsize=2)
def _held(made: bytes) -> Any:
    """What this worker process works with, loaded once."""
    make, arguments = pickle.loads(made)
    return make(*arguments)


def _call(made: bytes, method: str, arguments: tuple[Any, ...]) -> Any:
    return getattr(_held(made), method)(*arguments)


class _Many:
    def __init__(self, cluster: Cluster, make: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
        self._cluster, self._made = cluster, cluster.put(pickle.dumps((make, arguments)))

    def each(self, method: str, calls: Iterable[tuple[Any, ...]]) -> Iterator[tuple[int, Any]]:
        return self._cluster.tasks(_call, ((self._made, method, arguments) for arguments in calls))

    def _one(self, method: str, *arguments: Any) -> Any:
        return next(self.each(method, [arguments]))[1]


class _Encoders(_Many):
    @property
    def dimension(self) -> int:
        return int(self.encode(["x"], "passage").shape[1])

    def encode(self, texts: list[str], kind: Kind) -> Vectors:
        found: Vectors = self._one("encode", texts, kind)
        return found

    def encode_all(self, texts: list[str], kind: Kind, multi: bool) -> Any:
        return self._one("encode_all", texts, kind, multi)


class _Teachers(_Many):
    def score(self, pairs: list[tuple[str, str]]) -> Scores:
        found: Scores = self._one("score", pairs)
        return found
