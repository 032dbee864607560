"""How a job stands while a run may be going on: which step, how far, how fast. Only reads, and holds no lock."""

from __future__ import annotations

import fcntl
import os
import time
from collections import Counter, deque
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from miner import cascade, generate_steps, judge_steps, packs, prompts, store
from miner.config import Endpoint
from miner.ledger_tail import Seen, Tail
from miner.stages import judgments, synthetic
from miner.steps import Context

Row = dict[str, Any]
Ids = list[tuple[str, str]]
# The pace is that of the last so many seconds, or of the last interval where that is longer.
RECENT_S = 10.0


class Holder(NamedTuple):
    """Who runs the job. pid: None where it is not written yet; since: seconds since 1970."""

    pid: int | None
    since: float


@dataclass
class Lock:
    """Tells who holds a job's lock. It is tested only where a test cannot come in the way of a run that begins: a
    holder writes its number as soon as it has the lock, so a file that is as it was stands for no new one."""

    path: Path
    _free: tuple[bytes, int] | None = None

    def holder(self) -> Holder | None:
        try:
            with self.path.open("rb") as handle:
                text, changed = handle.read(20), os.fstat(handle.fileno()).st_mtime_ns
                alive = _alive(text)
                if not alive and (text, changed) == self._free:
                    return None
                try:
                    fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)  # fails, and takes nothing, while a run goes on
                except BlockingIOError:
                    handle.seek(0)
                    text = handle.read(20)
                    return Holder(int(text) if text.isdigit() else None, os.fstat(handle.fileno()).st_mtime)
        except FileNotFoundError:
            return None
        self._free = None if alive else (text, changed)
        return None


def _alive(text: bytes) -> bool:
    try:
        os.kill(int(text), 0)
    except PermissionError:
        return True
    except (ValueError, OSError):
        return False
    return True


# ---------------------------------------------------------------- what an LLM step is to ask


class Target(NamedTuple):
    """The requests of a step. pairs: what each is about; None where one is about several passages, or about none: then
    `queries`. versions: of the prompts, model: as requests name it. expected: how many requests. noted: the backend
    notes what it has sent, so that what is in flight can be told."""

    task: str
    model: str
    versions: frozenset[str]
    expected: int
    pairs: frozenset[tuple[str, str]] | None
    queries: frozenset[str]
    noted: bool

    def fits(self, seen: Seen) -> bool:
        about = seen.about
        if "repairs" in about:
            return False  # the same request once more
        if (about.get("task"), seen.model) != (self.task, self.model) or about.get("prompt_version") not in (
            self.versions
        ):
            return False
        if self.pairs is None:
            return about.get("query_id") in self.queries
        return (about.get("query_id"), about.get("doc_id")) in self.pairs


def target(run: Context, step: str) -> Target | None:
    """What a step asks an LLM; None for a step that asks none. Its inputs must be there. Canaries are not counted."""
    steps = judge_steps.rung_steps(run.job.judge)
    if step in steps:
        number = steps.index(step)
        here = judge_steps.at(run, number)
        return None if here is None else _judged(here, _open(run, steps[:number]))
    if step == "synthetic_judgments":
        written = run.table("synthetic", "synthetic").select(["query_id", "doc_id", "status", "copy_of", "reason"])
        rows = filter(synthetic.sound, written.to_pylist())
        return _judged(run, [(row["query_id"], row["doc_id"]) for row in rows])
    if step == "synthetic":
        loaded = generate_steps.strategy_prompts(run) or [run.prompt("generator")]
        # A query without a near-miss gets nothing from prompts that all show one.
        bound = all("near_miss" in prompt.front.inputs for prompt in loaded)
        short = (one for one in generate_steps.shortages(run) if not bound or any(fit for _, _, fit in one.pool))
        lacks = {one.query_id: one.lacks for one in short}
        expected = sum(lacks.values()) * run.job.generator.samples
        versions = frozenset(prompt.version for prompt in loaded)
        endpoint = run.endpoint("generator")
        return Target("generate", endpoint.model, versions, expected, None, frozenset(lacks), _notes(endpoint))
    return None


def _open(run: Context, before: list[str]) -> Ids:
    """The pairs of the pool that the steps `before` leave open."""
    found: Ids = []
    for part in run.parts("candidates", "part"):
        table = store.read_table(part, ["query_id", "doc_id", "pool_rank"])
        pool = table.filter(table.column("pool_rank").is_valid())
        found += zip(*(pool.column(name).to_pylist() for name in ("query_id", "doc_id")), strict=True)
    if not before:
        return found
    judged = [run.table(step, "judgments").select(["status", "verdict"]) for step in before]
    settles = [rung.settles for rung in run.job.judge.rungs[: len(before)]]
    rows, _ = cascade.left_open(judged, settles, len(found))
    return [found[row] for row in np.asarray(rows).tolist()]


def _judged(run: Context, ids: Ids) -> Target:
    prompt, judge, endpoint = run.prompt("judge"), run.job.judge, run.endpoint("judge")
    queries, versions = frozenset(query_id for query_id, _ in ids), frozenset([prompt.version])
    if prompt.mode not in prompts.MANY:
        orders = judgments.orders(prompt, judge)
        pairs = frozenset(ids) if orders == 1 else None
        return Target("judge", endpoint.model, versions, len(ids) * orders, pairs, queries, _notes(endpoint))
    groups = ([doc_id for _, doc_id in group] for _, group in groupby(ids, key=lambda pair: pair[0]))
    expected = sum(len(packs.shapes(group, judge.pack, judge.orders, run.job.seed)) for group in groups)
    return Target("judge", endpoint.model, versions, expected, None, queries, _notes(endpoint))


def _notes(endpoint: Endpoint) -> bool:
    return endpoint.backend in ("openai-batch", "vllm")


@dataclass
class Tally:
    """What the ledger holds of a target's requests, counted on at every look."""

    target: Target
    tail: Tail
    counts: Counter[str] = field(default_factory=Counter)
    cost: float | None = None
    recent: deque[float] = field(default_factory=deque)

    def count(self, since: float | None, begun: float, window: float) -> Row:
        """since: when the run began, None where none goes on; what was sent before it is lost, not in flight. begun:
        when the step was. window: seconds over which the pace is told."""
        anew, settled = self.tail.look()
        if anew:
            self.counts, self.cost = Counter(), None
            self.recent.clear()
        for seen in filter(self.target.fits, settled):
            self._add(seen)
        flying = [s for s in self.tail.open.values() if since is not None and s.changed_at >= since - 1]
        now, done = time.time(), min(self.counts["done"], self.target.expected)
        while self.recent and self.recent[0] < now - window:
            self.recent.popleft()
        span = max(min(window, now - max(since or 0.0, begun)), 0.5)
        rate = None if since is None else len([at for at in self.recent if at >= since - 1]) / span
        left = max(self.target.expected - done - self.counts["failed"], 0)
        return {
            "expected": self.target.expected,
            "done": done,
            "failed": self.counts["failed"],
            "in_flight": sum(map(self.target.fits, flying)) if self.target.noted else None,
            "prompt_tokens": self.counts["prompt"],
            "completion_tokens": self.counts["completion"],
            "cost": self.cost if self.counts["done"] else 0.0,
            "rate": None if rate is None else round(rate, 2),
            "left_s": round(left / rate) if rate else None,
        }

    def _add(self, seen: Seen) -> None:
        self.counts[seen.state] += 1
        if seen.state == "done":
            self.counts["prompt"] += seen.prompt_tokens
            self.counts["completion"] += seen.completion_tokens
            if seen.cost is not None:
                self.cost = (self.cost or 0.0) + seen.cost
            self.recent.append(seen.changed_at)
