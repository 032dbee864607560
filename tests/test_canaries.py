"""Pairs whose answer is known, mixed into the judging: where they stand, and how a judge that goes blind is stopped."""

from __future__ import annotations

import json
import logging
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import judging
import numpy as np
import pyarrow.parquet as pq
import pytest
import toy
from judging import advance, by_hash, key, rows
from loopback import Loopback, failure
from pydantic import ValidationError

from miner import bounds, canaries, engine, judge_steps
from miner.canaries import JudgeDrift, Watch
from miner.config.llm import Canaries
from miner.errors import MinerError, ProviderStop, UserError
from miner.stages import judgments


@pytest.fixture(autouse=True)
def _key(monkeypatch):
    monkeypatch.setenv("TOY_KEY", "sk-toy-secret")


@pytest.fixture
def server():
    with Loopback(judging.judge(by_hash)) as one:
        yield one


def second(query: str, passage: str) -> bool:
    """Is it the positive that is not shown as reference? Of two the one with the lower doc_id is."""
    animal = passage.split()[0]
    return f"sound does a {animal} " in query and "wants attention" in passage


def blind(query: str, passage: str) -> int:
    return 0


def job(
    folder: Path, server: Loopback, rate: float = 0.25, more: dict[str, Any] | None = None, **sections: Any
) -> Path:
    """Every query about a sound has a second positive, the ones about food have none."""
    data = toy.beir(folder / "data")
    with (data / "qrels/train.tsv").open("a") as qrels:
        for name in toy.ANIMALS:
            qrels.write(f"q-{name}-voice\t{name}-sleep\t1\n")
    judge = {"canaries": {"rate": rate, "min": 5, "window": 8, **(more or {})}, **sections.pop("judge", {})}
    return judging.job(folder, server, judge=judge, **sections)


def golden(folder: Path, count: int = 30) -> Path:
    pairs = [
        {
            "query_id": f"g{i}",
            "query": f"golden question {i}",
            "positive": "",
            "doc_id": f"d{i}",
            "passage": f"golden passage {i}",
            "grade": 3 if i % 3 else 0,
        }
        for i in range(count)
    ]
    toy.write_jsonl(folder / "golden.jsonl", pairs)
    return folder / "golden.jsonl"


# ---------------------------------------------------------------- whole jobs


@pytest.mark.parametrize("mode", ["graded", "binary", "packed", "listwise"])
def test_canaries_have_a_table_of_their_own_and_enter_nothing(tmp_path, server, mode):
    path = job(tmp_path / "a", server, 0.05, judge={"prompt": mode, "pack": 4})
    stamps = advance(path)
    known = rows(path, "judgments", "canaries.parquet")
    pairs = rows(path, "judgments")
    wanted = round(0.05 * len(pairs))
    assert len(known) == wanted
    assert 0 < wanted < 8
    assert {row["source"] for row in known} == {"positive"}
    assert {row["doc_id"].split("-", 1)[1] for row in known} == {"voice"}
    assert {row["verdict"] for row in known} == {"relevant"}
    low, _ = bounds.exact_interval(wanted, wanted)
    counts = stamps["judgments"].counts["canaries"]
    assert counts == {
        **{"wanted": wanted, "asked": wanted, "readable": wanted, "recognised": wanted, "golden": 0},
        **{"queries without one of their own": 8, "recall": 1.0, "recall low": round(low, 4), "recall high": 1.0},
    }
    mine = {key(row) for row in known}
    assert not mine & {key(row) for row in pairs}
    assert not mine & {key(row) for row in rows(path, "decisions", "part-*") if row["status"]}
    exported = path.with_suffix(".job") / "export"
    assert not mine & {key(row) for row in pq.read_table(exported / "provenance.parquet").to_pylist()}
    assert stamps["judgments"].counts["rows"] == len(pairs)
    if mode == "packed":  # among the others, where the judge cannot tell
        assert any(len(judging.texts(body)[1]) > 1 for body in server.bodies if second_in(body))
        assert len({row["request_key"] for row in known} & {row["request_key"] for row in pairs}) > 0


def second_in(body: dict[str, Any]) -> bool:
    query, passages = judging.texts(body)
    return any(second(query, text) for _, text in passages)


def test_without_a_rate_nothing_changes(tmp_path, server):
    path = job(tmp_path / "a", server, 0.0)
    advance(path, "judge")
    assert not (path.with_suffix(".job") / "judgments/canaries.parquet").exists()
    assert not any(second_in(body) for body in server.bodies)


def test_golden_pairs_stand_in_where_queries_have_one_positive(tmp_path, server, caplog):
    server.reply = judging.judge(lambda q, p: 3 if p.startswith("golden") else by_hash(q, p))
    file = golden(tmp_path)
    with caplog.at_level(logging.INFO, "miner"):
        path = judging.job(tmp_path / "a", server, judge={"canaries": {"rate": 0.15, "golden": str(file), "min": 5}})
        counts = advance(path, "judge")["judgments"].counts
    wanted = round(0.15 * counts["rows"])
    assert counts["canaries"]["asked"] == counts["canaries"]["golden"] == wanted
    assert counts["canaries"]["queries without one of their own"] == 16
    asked = [judging.texts(body)[0] for body in server.bodies]
    assert sum(text.startswith("golden") for text in asked) == wanted
    assert not any(int(text.split()[-1]) % 3 == 0 for text in asked if text.startswith("golden")), "relevant ones only"
    lines = [record.getMessage() for record in caplog.records if "canaries recognised" in record.getMessage()]
    assert lines[0] == f"judge: {canaries.told(5, 5)}"
    assert len(lines) == wanted // 5


def test_too_few_canaries_are_told(tmp_path, server):
    path = judging.job(tmp_path / "a", server, judge={"canaries": {"rate": 0.1, "min": 5}})
    with judging.opened(path) as run:
        engine.advance(run, "judge")
        assert run.warnings[0].startswith("judge: only 0 canaries, and 5 are needed to tell drift")


class Drift:
    """A server that recognises what is relevant until it has answered so many requests."""

    def __init__(self, healthy: int) -> None:
        self.left, self.grade = healthy, by_hash

    def __call__(self, body: dict[str, Any]):
        self.left -= 1
        return judging.judge(self.grade if self.left >= 0 else blind)(body)


@pytest.mark.parametrize(("mode", "healthy"), [("graded", 30), ("packed", 8)])
def test_a_judge_that_drifts_halts_the_run_and_what_was_answered_is_kept(tmp_path, server, mode, healthy):
    server.reply = Drift(healthy)
    more = {"golden": str(golden(tmp_path, 60)), "halt_recall": 0.7}
    path = job(tmp_path / "a", server, 0.4, more, judge={"prompt": mode, "pack": 3}, llm={"concurrency": 1})
    server.reply.grade = lambda q, p: 3 if p.startswith("golden") else by_hash(q, p)
    with pytest.raises(JudgeDrift, match=r"judge: \d of 8 canaries recognised, recall .*: the judge no longer") as halt:
        advance(path)
    assert (halt.value.exit_code, isinstance(halt.value, MinerError)) == (6, True)
    folder = path.with_suffix(".job")
    assert not (folder / "judgments").exists()
    first = Counter(json.dumps(body, sort_keys=True) for body in server.bodies)
    with judging.opened(path) as run:
        assert len(run.ledger) == len(first), "what was answered is kept"
        lacking = len(set(judging_requests(run)) - set(run.ledger.keys()))
    assert lacking > 0, "it did not go on to the end"
    # Mended, and with leave to go on although what the blind judge said is still there.
    server.reply.left = 10_000
    advance(path, "judge", "judge.canaries.halt_recall=0")
    second = Counter(json.dumps(body, sort_keys=True) for body in server.bodies[len(server.bodies) - lacking :])
    assert not first.keys() & second.keys()
    assert len(server.bodies) == sum(first.values()) + lacking, "nothing is asked twice"
    # With the limit back it says so again, of all canaries together, and asks nothing.
    asked = len(server.bodies)
    share = rows(path, "judgments", "canaries.parquet")
    recall = sum(row["verdict"] == "relevant" for row in share) / len(share)
    assert 0.2 < recall < 0.9
    with pytest.raises(JudgeDrift, match=f"recall {recall:.2f}"):
        advance(path, "judge", "judge.canaries.halt_recall=0.99")
    assert len(server.bodies) == asked


def judging_requests(run: Any) -> list[str]:
    pairs = judge_steps.with_canaries(run, lambda: judge_steps.pool_pairs(run))
    prompt, endpoint = run.prompt("judge"), run.endpoint("judge")
    return [one.key for one in judgments.requests(pairs, prompt, endpoint, run.job.judge, run.job.seed)]


def test_a_judge_that_is_blind_from_the_start_is_stopped_soon(tmp_path, server):
    server.reply = judging.judge(blind)
    path = job(tmp_path / "a", server, 0.25)
    with pytest.raises(JudgeDrift, match="0 of 5 canaries recognised"):
        advance(path)
    assert 5 <= len(server.bodies) < 96


def test_a_run_that_was_stopped_for_another_reason_goes_on_with_its_canaries(tmp_path, server):
    server.reply = judging.judge(by_hash)
    whole, path = (job(tmp_path / name, server, 0.25) for name in ("whole", "part"))
    advance(whole, "judge")
    served = iter(range(40))
    server.reply = lambda body: judging.judge(by_hash)(body) if next(served, None) is not None else failure(401)
    with pytest.raises(ProviderStop):
        advance(path, "judge")
    server.reply = judging.judge(by_hash)
    start = server.completed.total()
    advance(path, "judge")
    assert server.completed.total() - start == len(set(server.completed)) - 40
    for name in ("judgments", "canaries"):
        files = [one.with_suffix(".job") / f"judgments/{name}.parquet" for one in (whole, path)]
        assert files[0].read_bytes() == files[1].read_bytes()


# ---------------------------------------------------------------- pure


class Item(NamedTuple):
    query_id: str
    doc_id: str


def test_canaries_stand_among_the_pairs_of_their_query_and_others_between_queries():
    pairs = [Item(f"q{q}", f"d{d}") for q in range(10) for d in range(4)]
    own = {"q3": [Item("q3", "own1"), Item("q3", "own2")], "q7": [Item("q7", "own3")]}
    foreign = [Item(f"g{i}", "d") for i in range(4)]
    found = list(canaries.mixed(pairs, own, foreign, 10, 13))
    assert [one for one in found if one in pairs] == pairs
    assert sorted(one for one in found if one not in pairs) == sorted([*own["q3"], own["q7"][0], *foreign])
    for query, mine in own.items():
        places = [place for place, one in enumerate(found) if one.query_id == query]
        assert places == list(range(places[0], places[0] + 4 + len(mine))), "neighbours by query, packs stay whole"
    gaps = [found.index(one) for one in foreign]
    assert gaps == sorted(gaps)
    assert gaps[-1] - gaps[0] > 20, "over the whole stream"
    assert found == list(canaries.mixed(pairs, own, foreign, 10, 13))
    assert found != list(canaries.mixed(pairs, own, foreign, 10, 14))


def test_a_draw_depends_on_ids_and_seed_alone():
    items = [Item(f"q{i}", "d") for i in range(50)]
    drawn = canaries.drawn(items, 10, 13)
    assert drawn == canaries.drawn(items[::-1], 10, 13) != canaries.drawn(items, 10, 14)
    assert canaries.drawn(items[:5], 10, 13) == canaries.drawn(items[:5], 5, 13)


def test_drift_is_what_the_bound_says():
    # Of 0 in n the one-sided bound is 1 - 0.05**(1/n): below .7 from the third on.
    assert bounds.upper_bound(0, 3) == pytest.approx(1 - 0.05 ** (1 / 3))
    assert [canaries.drifted(0, n, 1, 0.7) for n in range(5)] == [False, False, False, True, True]
    assert not canaries.drifted(0, 4, 5, 0.7), "too few to say"
    assert not canaries.drifted(0, 100, 5, 0.0), "0: never"
    watch = Watch(window=10, least=5, limit=0.7)
    for _ in range(100):
        watch.add(True)
    assert not watch.drifted
    blind_for = 0
    while not watch.drifted:
        watch.add(False)
        blind_for += 1
    hits = 10 - blind_for
    assert bounds.upper_bound(hits, 10) < 0.7 <= bounds.upper_bound(hits + 1, 10)
    assert watch.seen == 100 + blind_for


def test_a_healthy_judge_is_seldom_halted():
    """A judge at the limit itself is halted by one look in twenty at most; one well above it hardly ever."""
    rng = np.random.default_rng(3)
    looks = {recall: np.mean([canaries.drifted(int(h), 100, 20, 0.7) for h in rng.binomial(100, recall, 2000)])
             for recall in (0.7, 0.8, 0.4)}  # fmt: skip
    assert looks[0.7] <= 0.05
    assert looks[0.8] == 0.0
    assert looks[0.4] > 0.99


def test_settings_that_could_never_halt_are_refused():
    with pytest.raises(ValidationError, match="window 5 is below min 20"):
        Canaries(window=5)


def test_a_golden_file_that_is_not_there_is_told_with_its_name(tmp_path, server):
    path = job(tmp_path / "a", server, 0.1, {"golden": str(tmp_path / "none.jsonl")})
    with pytest.raises(UserError, match=r"none\.jsonl"):
        advance(path)
