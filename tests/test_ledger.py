"""The ledger: shared by processes, first answer kept, spoilt files told."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from miner.errors import UserError
from miner.ledger import Answer, Ledger, Request

WRITER = """
import json, sys, time
from pathlib import Path
from miner.ledger import Answer, Ledger, Request
name, path, start = sys.argv[1], Path(sys.argv[2]), float(sys.argv[3])
time.sleep(max(0, start - time.time()))
ledger = Ledger(path)
for i in range(200):
    ledger.put(Request(f"{i:064x}", {"i": i}, {"by": name}), Answer({"by": name, "i": i, "pad": "x" * 2000}))
    assert ledger.has(f"{i:064x}") and ledger.get(f"{i:064x}")["i"] == i
ledger.put(Request(name, {}), Answer({"by": name}))
ledger.close()
"""


def test_processes_may_share_a_ledger(tmp_path):
    path, start = tmp_path / "new/ledger.sqlite", str(time.time() + 1)
    names = ["a", "b", "c"]
    running = [subprocess.Popen([sys.executable, "-c", WRITER, name, str(path), start]) for name in names]
    assert [process.wait(60) for process in running] == [0, 0, 0]
    ledger = Ledger(path)
    lines = list(ledger.lines())
    assert len(ledger) == len(lines) == 200 + len(names)
    assert [line["custom_id"] for line in lines] == sorted({line["custom_id"] for line in lines})
    for line in lines[:200]:
        body = line["response"]["body"]
        assert body["i"] == int(line["custom_id"], 16)
        assert line["miner"]["by"] == body["by"], "request and answer of a row come from one process"
    assert ledger.request(f"{7:064x}") == {"i": 7}
    ledger.close()


def test_the_first_answer_stays(tmp_path):
    ledger = Ledger(tmp_path / "ledger.sqlite")
    for text in ("first", "second"):
        ledger.put(Request("k", {}), Answer({"text": text}))
    assert ledger.get("k") == {"text": "first"}
    assert (ledger.get("other"), ledger.has("other"), ledger.request("other")) == (None, False, None)
    ledger.close()


def other_table(path: Path) -> None:
    with sqlite3.connect(path) as db:
        db.execute("CREATE TABLE answers (key TEXT PRIMARY KEY, text TEXT)")
    db.close()


def damaged(path: Path) -> None:
    ledger = Ledger(path)
    for i in range(200):
        ledger.put(Request(f"{i:064x}", {}), Answer({"pad": "x" * 500}))
    ledger.close()
    data = bytearray(path.read_bytes())
    data[4096:] = b"\xff" * (len(data) - 4096)
    path.write_bytes(data)


@pytest.mark.parametrize("spoil", [lambda path: path.write_bytes(b"garbage" * 100), Path.mkdir, other_table, damaged])
def test_a_ledger_that_cannot_be_read_is_told_with_its_name(tmp_path, spoil):
    path = tmp_path / "ledger.sqlite"
    spoil(path)
    with pytest.raises(
        UserError, match=r"ledger\.sqlite: cannot (open|read) the ledger \(.+\); restore it from a copy"
    ):
        Ledger(path)
