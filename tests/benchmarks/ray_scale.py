"""The same job in one process and on Ray, by workers: time, and whether the bytes are the same.

    apt-get -o Acquire::Languages=en update
    python tests/benchmarks/ray_scale.py --core 1 --workers 1 2 4

Needs the extras `demo` and `ray`. The data are Debian's package descriptions (debian_data.py), or --data BEIR_FOLDER.
Each run starts a cluster of its own (engine.address: local), so the start of Ray is in its time. With --core every
process of each side runs on that one core: what is more than the local time is overhead. Else the machine's cores are
shared out: of C cores, W workers take C / W each. ray_scale.md has recorded tables.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import common
import debian_data
from leaks import ENCODER

STEPS = ("vectors", "index", "retrieved_dense", "candidates", "decisions", "export")
HEAD = ("engine", "seconds", "beside local", "CPU s", "load", "mined and exported bytes the same")


class Run(NamedTuple):
    """seconds on the wall and of the processor (workers too), the machine's load at the end, bytes of all steps."""

    wall: float
    cpu: float
    load: float
    digest: str


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="a BEIR folder; else Debian's descriptions")
    parser.add_argument("--split", default="train")
    parser.add_argument("--passages", type=int, default=60_000)
    parser.add_argument("--queries", type=int, default=2_000)
    parser.add_argument("--max-length", type=int, default=64)
    parser.add_argument("--core", type=int, help="the one core of every process")
    parser.add_argument("--workers", nargs="*", type=int, default=[1, 2, 4])
    parser.add_argument("--keep", type=Path, help="a folder for jobs, kept")
    args = parser.parse_args()
    cores = 1 if args.core is not None else os.cpu_count() or 1
    with tempfile.TemporaryDirectory() as name:
        work = args.keep or Path(name)
        if args.data is None:
            args.data = work / "data"
            debian_data.write(args.data, args.passages, args.queries)
        sides: dict[str, dict[str, object]] = {"local": {"kind": "local"}}
        for workers in args.workers:
            engine = {"kind": "ray", "address": "local", "workers": workers, "cpus": cores / workers}
            sides[f"Ray, {workers} workers"] = engine
        found: dict[str, Run] = {}
        for number, (side, engine) in enumerate(sides.items()):
            found[side] = run(work, args, number, engine)
            common.say(json.dumps({"engine": side, **found[side]._asdict()}))
    common.say(common.machine())
    common.say(table(found))


def table(found: dict[str, Run]) -> str:
    base = found["local"]
    rows = [
        [
            side,
            f"{one.wall:.1f}",
            f"{one.wall / base.wall - 1:+.1%}",
            f"{one.cpu:.1f}",
            f"{one.load:.1f}",
            "yes" if one.digest == base.digest else "NO",
        ]
        for side, one in found.items()
    ]
    return common.table(HEAD, rows)


def run(work: Path, args: argparse.Namespace, number: int, engine: dict[str, object]) -> Run:
    """`miner run` of one job, to the export."""
    job = common.write_job(
        work / f"{number}.yaml",
        data={"path": str(args.data), "split": args.split},
        encoder=ENCODER | {"max_length": args.max_length, **({"threads": 1} if args.core is not None else {})},
        mining={"depth": 100, "index": {"kind": "flat"}},
        judge={"enabled": False},
        engine=engine,
    )
    command: list[Any] = ["taskset", "-c", str(args.core)] if args.core is not None else []
    start = time.monotonic()
    with (work / f"{number}.log").open("w+") as log:
        process = subprocess.Popen([*command, *common.miner("run", job)], stdout=log, stderr=log)
        cpu = _cpu(process)
        wall = time.monotonic() - start
        log.seek(0)
        if process.returncode:
            raise SystemExit(f"{job}: exit status {process.returncode}\n{log.read()[-3000:]}")
    digest = hashlib.blake2b()
    for step in STEPS:
        for path in sorted((work / f"{number}.job" / step).rglob("*")):
            if path.is_file():
                digest.update(path.name.encode() + path.read_bytes())
    return Run(wall, cpu, os.getloadavg()[0], digest.hexdigest()[:16])


def _cpu(process: subprocess.Popen[bytes]) -> float:
    """Processor seconds of it and all below it, when it has ended; looked at meanwhile, for nobody waits for Ray's."""
    used: dict[int, float] = {}
    while process.poll() is None:
        used |= common.family(process.pid)
        time.sleep(0.3)
    return sum(used.values())


if __name__ == "__main__":
    main()
