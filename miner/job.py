"""A job on disk: its folder, its lock, the stamp of each finished step, and the manifest.

    JOB/corpus/ vectors/ candidates/ judgments/ synthetic/ synthetic_judgments/ decisions/ export/
    JOB/stamps/STEP.json     written last: what the step was made from, and the hash of each file it wrote
    JOB/ledger.sqlite        every LLM answer
    JOB/manifest.json        all stamps in one, with the configuration and the versions

A step is fresh when its stamp names the same inputs and its files still have the stamped hashes.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from miner import store
from miner.errors import UserError


@dataclass(frozen=True)
class Stamp:
    """`inputs`: flat names to values or hashes; `outputs`: file name to hash; `complete` is false while LLM answers
    that a later run may get are missing."""

    step: str
    inputs: dict[str, Any]
    outputs: dict[str, str]
    counts: dict[str, Any]
    complete: bool

    @property
    def hash(self) -> str:
        return store.digest(self.outputs)


class JobFolder:
    def __init__(self, root: Path) -> None:
        self.root = root

    def step(self, name: str) -> Path:
        return self.root / name

    @property
    def ledger(self) -> Path:
        return self.root / "ledger.sqlite"

    @property
    def manifest(self) -> Path:
        return self.root / "manifest.json"

    def stamp(self, step: str) -> Stamp | None:
        path = self.root / "stamps" / f"{step}.json"
        if not path.is_file():
            return None
        try:
            stamp = Stamp(**json.loads(path.read_text(encoding="utf-8")))
            if all(isinstance(part, dict) for part in (stamp.inputs, stamp.outputs, stamp.counts)):
                return stamp
        except (ValueError, TypeError, RecursionError):
            pass
        raise UserError(f"{path}: not a stamp of this version of miner; delete the file to redo {step}") from None

    def staleness(self, step: str, inputs: dict[str, Any]) -> str:
        """Why the step must run, or "" where its files are fresh."""
        stamp = self.stamp(step)
        if stamp is None:
            return "not done yet"
        changed = sorted(k for k in inputs.keys() | stamp.inputs.keys() if inputs.get(k) != stamp.inputs.get(k))
        if changed:
            return "changed: " + ", ".join(changed)
        if store.tree_digest(self.step(step)) != stamp.outputs:
            return "its files are missing or were altered"
        return "" if stamp.complete else "answers are missing"

    def work(self, step: str, inputs: dict[str, Any]) -> Path:
        """The folder that the step fills. What an interrupted run with the same inputs left there is kept."""
        work = self.root / ".work" / f"{step}-{store.digest(inputs)[:16]}"
        for other in (self.root / ".work").glob(f"{step}-*"):
            if other != work:
                shutil.rmtree(other)
        work.mkdir(parents=True, exist_ok=True)
        return work

    def finish(self, step: str, inputs: dict[str, Any], work: Path, counts: dict[str, Any], complete: bool) -> Stamp:
        """Put the work folder in place, then stamp it."""
        (self.root / "stamps" / f"{step}.json").unlink(missing_ok=True)
        for part in work.rglob("*.part"):
            part.unlink()
        store.promote(work, self.step(step))
        outputs = store.tree_digest(self.step(step))
        stamp = Stamp(step, inputs, outputs, counts, complete)
        store.write_json(self.root / "stamps" / f"{step}.json", vars(stamp))
        return stamp

    def _prepare(self) -> None:
        """Make the folder. One that holds other things is refused: steps replace what has their names."""
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            there = {path.name for path in self.root.iterdir()}
        except OSError as error:
            raise UserError(
                f"{self.root}: cannot make the job folder ({error.strerror}); set `job` to a folder that can be written"
            ) from None
        foreign = sorted(name for name in there if not name.startswith("."))
        if foreign and not there & {".lock", "stamps", "manifest.json", "ledger.sqlite"}:
            raise UserError(
                f"{self.root}: not a job's folder, but it holds {foreign[0]}; set `job` to a new or empty folder"
            )

    @contextmanager
    def lock(self) -> Iterator[None]:
        """One writer per job. Raises UserError naming the process that holds it."""
        self._prepare()
        with (self.root / ".lock").open("a+") as handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                handle.seek(0)
                raise UserError(
                    f"{self.root}: process {handle.read().strip()} is running this job; wait for it"
                ) from None
            handle.truncate(0)
            handle.write(str(os.getpid()))
            handle.flush()
            yield
