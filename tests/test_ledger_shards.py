"""Shards of answers: whole lines count, the ledger's own answer stays, and money is settled once."""

from __future__ import annotations

from pathlib import Path

import pytest

from miner import ledger_shards
from miner.ledger import Answer, Charge, Ledger, Request, Usage
from miner.ledger_shards import Entry

USED = Usage(100, 10, 0, 0.5)


def entry(key: str, said: str = "yes", reserved: Charge | None = None) -> Entry:
    response = {"choices": [{"message": {"content": said}}]}
    return Entry(Request(key, {"model": "m", "messages": []}, {"task": "judge"}), Answer(response), USED, reserved)


@pytest.fixture
def ledger(tmp_path):
    with_file = Ledger(tmp_path / "ledger.sqlite")
    yield with_file
    with_file.close()


def said(ledger: Ledger, key: str) -> str | None:
    response = ledger.get(key)
    return response and response["choices"][0]["message"]["content"]


def test_a_shard_reads_back_as_it_was_written(tmp_path):
    written = [entry("a", "ja \U0001f600"), entry("b", reserved=Charge(300, 2.0))]
    for one in written:
        ledger_shards.append(tmp_path / "s.jsonl", one)
    assert list(ledger_shards.read(tmp_path / "s.jsonl")) == written
    assert list(ledger_shards.read(tmp_path / "none.jsonl")) == []


@pytest.mark.parametrize("cut", [1, 40])
def test_a_torn_line_is_an_answer_that_never_came_and_hides_no_other(tmp_path, cut):
    shard = tmp_path / "s.jsonl"
    ledger_shards.append(shard, entry("a"))
    whole = shard.stat().st_size
    ledger_shards.append(shard, entry("b"))
    shard.write_bytes(shard.read_bytes()[:-cut])
    assert [e.request.key for e in ledger_shards.read(shard)] == ["a"]
    shard.write_bytes(shard.read_bytes()[: whole + 30] + b"\n")
    ledger_shards.append(shard, entry("c"))
    assert [e.request.key for e in ledger_shards.read(shard)] == ["a", "c"]


def test_merging_takes_what_is_lacking_and_the_first_answer_stays(tmp_path, ledger):
    ledger.put(entry("a").request, entry("a", "first").answer, USED)
    for shard, key, text in [("1", "a", "second"), ("1", "b", "one"), ("2", "b", "two"), ("2", "c", "three")]:
        ledger_shards.append(tmp_path / f"{shard}.jsonl", entry(key, text))
    assert ledger_shards.merge(tmp_path, ledger) == 2
    assert [said(ledger, key) for key in "abc"] == ["first", "one", "three"]
    assert not list(tmp_path.glob("*.jsonl"))
    assert ledger_shards.merge(tmp_path, ledger) == 0
    assert ledger_shards.merge(tmp_path / "nowhere", ledger) == 0


def test_merging_settles_what_the_dead_driver_had_reserved_once(tmp_path, ledger):
    reserved = Charge(300, 2.0)
    for _ in "ab":
        assert ledger.reserve(reserved, Charge(10_000, 100.0, 100)) == ""
    for name in ("1", "2"):
        ledger_shards.append(tmp_path / f"{name}.jsonl", entry("a", reserved=reserved))
    ledger_shards.merge(tmp_path, ledger)
    # a is settled at what it took, b was in flight and stays spent
    assert ledger.totals() == {"tokens": 110 + 300, "cost": 0.5 + 2.0, "requests": 2}


def test_only_who_reads_the_newest_token_shares_the_disk(tmp_path):
    old = ledger_shards.share(tmp_path)
    new = ledger_shards.share(tmp_path)
    assert ledger_shards.shared(tmp_path, new)
    assert not ledger_shards.shared(tmp_path, old)
    assert not ledger_shards.shared(Path("/nowhere"), new)
