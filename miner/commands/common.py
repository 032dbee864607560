"""What the commands share: their arguments, the job file, JSON on stdout, and how they are interrupted."""

from __future__ import annotations

import contextlib
import json
import shlex
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from miner.commands import complete

JobFile = Annotated[
    Path, typer.Argument(help="The job file (YAML).", metavar="JOB.yaml", autocompletion=complete.job_files)
]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", help="Override a value of the job file: key.sub=value. Repeatable.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def load(job_file: Path, overrides: list[str] | None) -> Any:
    from miner import config

    return config.load(job_file, overrides)


def load_to_work(job_file: Path, overrides: list[str] | None) -> Any:
    """Load a job whose steps may run. On a cluster, what follows is done in a child: see apart."""
    job = load(job_file, overrides)
    if job.engine.kind == "ray":
        from miner import apart

        apart.fork(f"the Ray cluster at engine.address {job.engine.address}", f"Go on with: {_again()}")
    return job


def _again() -> str:
    return shlex.join(["miner", *sys.argv[1:]])


def print_json(value: Any) -> None:
    print(json.dumps(value, ensure_ascii=False, indent=2))


@contextlib.contextmanager
def resumable() -> Iterator[None]:
    """Ctrl-C and SIGTERM stop cleanly and say how to go on."""

    def stop(*_: object) -> None:
        interrupt = signal.getsignal(signal.SIGINT)
        if not callable(interrupt):  # SIGINT is ignored: a shell's background job
            raise KeyboardInterrupt
        interrupt(signal.SIGINT, None)  # asyncio has put its own there while it runs, which ends the tasks in order

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    except BaseException as error:
        if not _interrupted(error):
            raise
        print(f"interrupted; what is done is kept. Go on with: {_again()}", file=sys.stderr)
        raise typer.Exit(130) from None
    finally:
        signal.signal(signal.SIGTERM, before)


def _interrupted(error: BaseException | None) -> bool:
    """Is it a KeyboardInterrupt, or made from one? A C library that is being loaded turns it into an ImportError."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    return error is not None
