"""Ways to break a toy job, and the check of the one line that must say so."""

from __future__ import annotations

import gzip
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

LOG = re.compile(r"\d\d:\d\d:\d\d ")
NO_SERVER = {"model": "toy", "base_url": "http://127.0.0.1:9/v1", "api_key": "${TOY_KEY}", "identity": "toy"}
JUDGED: dict[str, Any] = {"llm": NO_SERVER, "judge": {"enabled": True, "pool": 3}}
Damage = Callable[[Path], object]
Miner = Callable[..., Any]


def complaint(done: Any) -> str:
    """The one line that a failed process wrote, log lines aside."""
    assert done.returncode == 2, (done.returncode, done.stdout, done.stderr)
    lines = [line for line in done.stderr.splitlines() if not LOG.match(line)]
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("miner: "), done.stderr
    assert "Traceback" not in done.stderr
    return lines[0]


def check(miner: Miner, folder: Path, does: str, says: str, **env: str) -> None:
    """`does`: the command line, split at spaces; JOB and FOLDER stand for paths."""
    words = [word.replace("JOB", f"{folder}/job.yaml").replace("FOLDER", str(folder)) for word in does.split()]
    line = complaint(miner(*words, check=False, **env))
    message_fits(line, says)


def message_fits(line: str, says: str) -> None:
    """Do the pieces of `says`, split at " … ", stand in the line in their order?"""
    position = 0
    for piece in says.split(" … "):
        assert piece in line[position:], line
        position = line.index(piece, position) + len(piece)


def case(name: str, damage: Damage, says: str, does: str = "mine JOB", **job: Any) -> Any:
    return pytest.param(damage, says, does, job, id=name)


def settings(name: str, options: str, says: str, damage: Damage | None = None, **job: Any) -> Any:
    """Values of the job file overridden: `options` are key=value, split at spaces."""
    return case(name, damage or nothing, says, "mine JOB " + " ".join(f"--set {o}" for o in options.split()), **job)


def pairs(name: str, file: str, content: str | bytes, says: str, **data: Any) -> Any:
    """A pairs file in place of the BEIR folder."""
    return case(name, write(file, content), says, data={"path": file, **data})


def job_file(name: str, content: str | bytes, says: str) -> Any:
    return case(name, write("job.yaml", content), says)


def prompt(name: str, front: str, user: str, says: str) -> Any:
    text = f"---\n{front}\n---\n# system\nYou judge.\n# user\n{user}\n"
    return case(name, write("own.md", text), says, **{**JUDGED, "judge": {"enabled": True, "prompt": "own.md"}})


# ---------------------------------------------------------------- ways to break a job


def nothing(_: Path) -> None:
    pass


def write(name: str, content: str | bytes) -> Damage:
    def damage(folder: Path) -> None:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)

    return damage


def append(name: str, content: str | bytes) -> Damage:
    more = content.encode() if isinstance(content, str) else content
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes() + more)


def corpus(content: str | bytes) -> Damage:
    """Line 26 of the toy corpus."""
    return append("data/corpus.jsonl", content)


def queries(content: str) -> Damage:
    """Line 17 of the toy queries."""
    return append("data/queries.jsonl", content)


def qrels(content: str | bytes) -> Damage:
    """Line 18 of the toy qrels."""
    return append("data/qrels/train.tsv", content)


def remove(name: str) -> Damage:
    return lambda folder: (folder / name).unlink()


def both(*damages: Damage) -> Damage:
    return lambda folder: [damage(folder) for damage in damages]


def packed(content: bytes, cut: int = 0, spoil: int = 0) -> bytes:
    """Gzip of some bytes, with the last `cut` bytes lost, or with 40 bytes overwritten from `spoil` on."""
    whole = bytearray(gzip.compress(content, mtime=0))
    whole[spoil : spoil + 40 * bool(spoil)] = b"\xff" * 40 * bool(spoil)
    return bytes(whole[: len(whole) - cut])
