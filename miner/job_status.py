"""The state of a job at one moment and, where it is watched, from look to look until its run ends."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from miner import engine, ledger_tail
from miner.config import Job
from miner.errors import UserError
from miner.job import JobFolder, Stamp
from miner.job_watch import RECENT_S, Holder, Lock, Tally, target
from miner.ledger_tail import Tail
from miner.steps import Context

Row = dict[str, Any]
RUNNING = "running"
BLOCKS = ("retrieved_", "teacher", "candidates")  # steps that write a file for each block of queries
TRIES, WAIT_S = 5, 0.3


def context_of(job: Job) -> Context:
    """A context to read with: it has no ledger, since opening one writes to it."""
    return Context(job, JobFolder(Path(job.job or "")), None)  # type: ignore[arg-type]


@dataclass
class Step:
    """why: it would run, "" where it is fresh. mark: of the stamp when that was found out."""

    name: str
    why: str
    stamp: Stamp | None
    mark: int

    def row(self) -> Row:
        return {"step": self.name, "state": self.why or "fresh", "counts": self.stamp.counts if self.stamp else {}}


@dataclass
class Watch:
    """Looks at a job again and again. Files are hashed when a run begins or ends, and not at every look."""

    job: Job
    every: float = 0.0
    _steps: list[Step] = field(default_factory=list)
    _holder: Holder | None = None
    _tally: tuple[str, Tally] | None = None

    def __post_init__(self) -> None:
        self.run = context_of(self.job)
        self.folder = self.run.folder
        self._lock = Lock(self.folder.root / ".lock")
        self._manifest = self._mark(self.folder.manifest)

    def look(self) -> Row:
        """job, at (seconds since 1970), run, steps, progress, budget.

        run: None, or pid, since and step (None between two steps). progress: of the step that runs, or else of the
        first LLM step that is not done; None where nothing is known of it.
        """
        holder = self._lock.holder()
        if not self._steps or holder != self._holder:
            self._steps, self._tally = self._hashed(holder is not None), None
        self._holder = holder
        self._renew()
        open_ = [step for step in self._steps if step.why]
        at_work = next((step for step in open_ if holder and self._work(step.name)), None)
        rows = [{**step.row(), **({"state": RUNNING} if step is at_work else {})} for step in self._steps]
        run = holder and {"pid": holder.pid, "since": holder.since, "step": at_work and at_work.name}
        shown = at_work or (open_[0] if open_ and not holder else None)
        progress = self._progress(shown.name) if shown else None
        return {
            "job": str(self.folder.root),
            "at": round(time.time(), 3),
            "run": run,
            "steps": rows,
            "progress": progress,
            "budget": self._budget(),
        }

    def _hashed(self, running: bool) -> list[Step]:
        """The steps by the hashes of their files. A run may move a file away meanwhile: then they are read again."""
        for _ in range(TRIES):
            try:
                marks = {step.name: self._stamp_mark(step.name) for step in engine.plan(self.job)}
                return [Step(name, why, stamp, marks[name]) for name, why, stamp in engine.states(self.run)]
            except (UserError, OSError):
                if not running:
                    raise
                time.sleep(WAIT_S)
        return [Step(name, "not known: its files change", None, 0) for name in marks]

    def _renew(self) -> None:
        """A step that was stamped since the files were hashed is done."""
        for step in self._steps:
            mark = self._stamp_mark(step.name)
            if mark and mark != step.mark:
                stamp = self.folder.stamp(step.name)
                if stamp is not None:
                    step.why, step.stamp, step.mark = "" if stamp.complete else "answers are missing", stamp, mark

    def _stamp_mark(self, name: str) -> int:
        return self._mark(self.folder.root / "stamps" / f"{name}.json")

    def _mark(self, path: Path) -> int:
        try:
            return path.stat().st_mtime_ns
        except OSError:
            return 0

    def _work(self, name: str) -> Path | None:
        found = (self.folder.root / ".work").glob(f"{name}-*")
        return next((path for path in found if path.name.rpartition("-")[0] == name), None)

    # ------------------------------------------------------------ how far

    def _progress(self, step: str) -> Row | None:
        if step.startswith(BLOCKS):
            work = self._work(step)
            stamp = self.folder.stamp("corpus")
            queries = (stamp.counts if stamp else {}).get("queries")
            if work is None or not isinstance(queries, int):
                return None
            expected = -(-queries // self.job.mining.block)
            return {"step": step, "unit": "files", "expected": expected, "done": len(list(work.glob("part-*.parquet")))}
        tally = self._tally_of(step)
        if tally is None:
            return None
        since, work = self._holder.since if self._holder else None, self._work(step)
        begun = self._mark(work) / 1e9 if work is not None else 0.0
        return {"step": step, "unit": "requests", **tally.count(since, begun, max(self.every, RECENT_S))}

    def _tally_of(self, step: str) -> Tally | None:
        if self._tally is not None and self._tally[0] == step:
            return self._tally[1]
        try:
            wanted = target(self.run, step)
        except (UserError, OSError):
            return None  # what it works on is not there yet
        if wanted is None:
            return None
        self._tally = step, Tally(wanted, Tail(self.folder.ledger))
        return self._tally[1]

    def _budget(self) -> Row:
        """Each limit of the job with what all its runs took, reservations included. {} where there is none."""
        limits = self.job.budget.model_dump(exclude_none=True)
        taken = ledger_tail.totals(self.folder.ledger) if limits else {}
        return {name: {"taken": taken[name.removeprefix("max_")], "limit": limit} for name, limit in limits.items()}

    # ------------------------------------------------------------ until it ends

    def follow(self, sleep: Callable[[float], None] = time.sleep) -> Iterator[Row]:
        """A look every `every` seconds with its `phase`: waiting for a run, running, and last of all ended."""
        begun = False
        while True:
            row = self.look()
            running = row["run"] is not None
            begun = begun or running
            passed = self._mark(self.folder.manifest) != self._manifest  # between two looks
            fresh = all(one["state"] == "fresh" for one in row["steps"])
            ended = not running and (begun or passed or fresh)
            yield {**row, "phase": RUNNING if running else "ended" if ended else "waiting"}
            if ended:
                ledger_tail.fold(self.folder.ledger)
                return
            sleep(self.every)
