"""The same mining job in one process and on Ray, by workers: time, and whether the bytes are the same.

    python tests/benchmarks/ray_scale.py --data BEIR_FOLDER [--split train]

Needs the extras `demo` and `ray`. Each run starts a cluster of its own (engine.address: local), so the start of
Ray is in its time. The cores are shared out: of C cores, W workers take C / W each. ray_scale.md has the
recorded table.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import subprocess
import tempfile
import time
from pathlib import Path

import common
from leaks import ENCODER

STEPS = ("vectors", "index", "retrieved_dense", "candidates")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--split", default="train")
    parser.add_argument("--workers", nargs="+", type=int, default=[1, 2, 4])
    args = parser.parse_args()
    cores = os.cpu_count() or 1
    with tempfile.TemporaryDirectory() as name:
        sides = {"local": {"kind": "local"}}
        for workers in args.workers:
            engine = {"kind": "ray", "address": "local", "workers": workers, "cpus": cores / workers}
            sides[f"ray, {workers} workers"] = engine
        found = {side: run(Path(name), args, number, engine) for number, (side, engine) in enumerate(sides.items())}
    base, digest = found["local"]
    rows = [
        [side, f"{seconds:.1f}", f"{seconds / base - 1:+.1%}", "yes" if told == digest else "NO"]
        for side, (seconds, told) in found.items()
    ]
    common.say(common.machine())
    common.say(common.table(["engine", "seconds", "beside local", "same bytes"], rows))


def run(work: Path, args: argparse.Namespace, number: int, engine: dict[str, object]) -> tuple[float, str]:
    """Seconds of `miner mine`, and a digest of what the steps wrote."""
    job = common.write_job(
        work / f"{number}.yaml",
        data={"path": str(args.data), "split": args.split},
        encoder=ENCODER,
        mining={"depth": 100},
        judge={"enabled": False},
        engine=engine,
    )
    start = time.monotonic()
    subprocess.run(common.miner("mine", job), check=True, capture_output=True)
    seconds = time.monotonic() - start
    digest = hashlib.blake2b()
    for step in STEPS:
        for path in sorted((work / f"{number}.job" / step).rglob("*")):
            digest.update(path.name.encode() + path.read_bytes())
    return seconds, digest.hexdigest()


if __name__ == "__main__":
    main()
