"""What the benchmarks share: jobs, child processes with their time and memory, tables."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import yaml


class Child(NamedTuple):
    """One finished process: seconds, processor seconds, peak resident MiB of it alone, what it printed."""

    wall: float
    cpu: float
    peak: float
    out: str


def child(argv: Sequence[str | Path], log: Path) -> Child:
    """Run a fresh process. The caller must be small: Linux counts its memory into the child's peak."""
    start = time.perf_counter()
    with log.open("w") as errors, log.with_suffix(".out").open("w+") as out:
        process = subprocess.Popen([str(a) for a in argv], stdout=out, stderr=errors)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        wall = time.perf_counter() - start
        out.seek(0)
        printed = out.read()
    if process.returncode:
        raise SystemExit(f"{' '.join(map(str, argv))}: exit status {process.returncode}\n{log.read_text()[-3000:]}")
    return Child(wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024, printed)


def family(pid: int) -> dict[int, float]:
    """A process and all below it, and the processor seconds that each of them had."""
    children: dict[int, list[int]] = {}
    used: dict[int, float] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = stat.read_text().rpartition(")")[2].split()
            children.setdefault(int(fields[1]), []).append(int(stat.parent.name))
            used[int(stat.parent.name)] = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    found = [pid]
    for one in found:
        found += children.get(one, [])
    return {one: used.get(one, 0.0) for one in found}


def say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def miner(*words: str | Path) -> list[str]:
    return [sys.executable, "-m", "miner", *map(str, words)]


def write_job(path: Path, **sections: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(sections, sort_keys=False), encoding="utf-8")
    return path


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line]


def write_jsonl(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as out:
        out.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def read_qrels(path: Path) -> list[tuple[str, str, int]]:
    lines = path.read_text(encoding="utf-8").splitlines()[1:]
    return [(q, d, int(r)) for q, d, r in (line.split("\t") for line in lines)]


def write_qrels(path: Path, rows: Iterable[tuple[str, str, int]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = ["query-id\tcorpus-id\tscore", *("\t".join(map(str, row)) for row in rows)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def passage(row: dict[str, Any]) -> str:
    """The text as miner gives it to the encoder."""
    return f"{row['title']} {row['text']}" if row.get("title") else row["text"]


def rows_with(folder: Path, columns: list[str]) -> pa.Table:
    """The rows of all Parquet files in `folder` that have these columns."""
    files = sorted(folder.glob("*.parquet"))
    tables = [pq.read_table(f, columns=columns) for f in files if set(columns) <= set(pq.read_schema(f).names)]
    return pa.concat_tables([pa.table({c: plain(t.column(c)) for c in columns}) for t in tables])


def plain(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """A dictionary column as strings, so that tables of different files can be joined."""
    return column.cast(pa.large_string()) if pa.types.is_dictionary(column.type) else column


def table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    lines += ["| " + " | ".join(map(str, row)) + " |" for row in rows]
    return "\n".join(lines)


def ratio_table(times: dict[str, list[Child]], mine: str) -> str:
    """Seconds, memory, and how many times as long as `mine` each took. Processor seconds bear a busy machine better."""
    wall, cpu = ({name: _middle([getattr(c, kind) for c in runs]) for name, runs in times.items()} for kind in _KINDS)
    rows = []
    for name, runs in times.items():
        spread = f"{min(c.wall for c in runs):.1f}-{max(c.wall for c in runs):.1f}"
        cells = [name, len(runs), f"{wall[name]:.1f}", spread, f"{wall[name] / wall[mine]:.2f}"]
        rows.append([*cells, f"{cpu[name]:.1f}", f"{cpu[name] / cpu[mine]:.2f}", f"{max(c.peak for c in runs):.0f}"])
    head = ["side", "runs", "wall s", "range s", f"wall / {mine}", "CPU s", f"CPU / {mine}", "peak MiB"]
    return table(head, rows)


_KINDS = ("wall", "cpu")


def _middle(values: list[float]) -> float:
    return sorted(values)[len(values) // 2]


def machine() -> str:
    """Processor, cores and load, for the tables' caption."""
    names = [line.split(":")[1].strip() for line in _cpuinfo() if line.startswith("model name")]
    name = names[0] if names else platform.machine()
    cores, load = len(os.sched_getaffinity(0)), os.getloadavg()[0]
    return f"{name}, {cores} cores, load {load:.1f} at the end, Python {platform.python_version()}"


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.is_file() else []


def encoded(printed: str) -> list[int]:
    """The counts `encoded` of passages and queries, wherever they stand in what `miner mine --json` printed."""
    found: list[int] = []

    def walk(node: Any) -> None:
        for key, value in node.items() if isinstance(node, dict) else enumerate(node):
            if key == "encoded":
                found.append(value)
            elif isinstance(value, dict | list):
                walk(value)

    walk(json.loads(printed))
    return found
