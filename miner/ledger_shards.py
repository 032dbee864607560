"""Answers on their way into the ledger: what workers of a cluster write down themselves, so that the end of the driver
loses nothing that was paid for.

    JOB/ledger_shards/NAME.jsonl    one answer a line, appended as it comes; the name is the batch of requests
    JOB/ledger_shards/token         what the driver wrote; a worker that reads the same shares the driver's disk

A line counts when its end is there: a torn one is an answer that never came. The driver alone merges shards, into the
one ledger, and then deletes them. The answer that the ledger has first stays.
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from miner import store
from miner.errors import UserError
from miner.ledger import Answer, Charge, Ledger, Request, Usage

FOLDER = "ledger_shards"


class Entry(NamedTuple):
    """reserved: what the driver took out of the budget for it, None where there is no budget."""

    request: Request
    answer: Answer
    usage: Usage
    reserved: Charge | None


def share(folder: Path) -> str:
    """Write a new token; the workers that find it may write shards there."""
    token = secrets.token_hex(16)
    store.write_text(folder / "token", token)
    return token


def shared(folder: Path, token: str) -> bool:
    """Does this process see the folder in which the driver wrote its token?"""
    try:
        return (folder / "token").read_text(encoding="utf-8") == token
    except OSError:
        return False


def append(path: Path, entry: Entry) -> None:
    """Opened anew for each answer: a shard that is merged meanwhile takes no later line along."""
    request, answer = entry.request, entry.answer
    value = {
        "request": {"key": request.key, "body": request.body, "about": request.about},
        "answer": vars(answer),
        "usage": entry.usage,
        "reserved": entry.reserved,
    }
    line = json.dumps(value, ensure_ascii=False).encode("utf-8", "replace") + b"\n"
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        rest = memoryview(line)
        while rest:
            rest = rest[os.write(handle, rest) :]
        os.fsync(handle)
    finally:
        os.close(handle)


def read(path: Path) -> Iterator[Entry]:
    """The whole lines of a shard; none where it is not there."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return
    except OSError as error:
        raise UserError(f"{path}: cannot read ({error.strerror}); check the disk and its permissions") from None
    for line in content.split(b"\n")[:-1]:
        try:
            yield _entry(json.loads(line))
        except (ValueError, TypeError, KeyError):  # torn by a full disk or a lost node, and appended to after that
            continue


def _entry(value: dict[str, Any]) -> Entry:
    reserved = Charge(*value["reserved"]) if value["reserved"] else None
    return Entry(Request(**value["request"]), Answer(**value["answer"]), Usage(*value["usage"]), reserved)


def merge(folder: Path, ledger: Ledger) -> int:
    """Take over every answer that the ledger lacks, then delete the shards. Returns the number of answers."""
    count = 0
    for path in sorted(folder.glob("*.jsonl")):
        for request, answer, usage, reserved in read(path):
            if not ledger.has(request.key):
                ledger.put(request, answer, usage, reserved)
                count += 1
        path.unlink(missing_ok=True)
    return count
