"""The cluster's dense searcher without Ray: who maps what, who is shipped what, and what is begun ahead of time."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from test_workers import normal

from miner import config, ledger_shards, numbering
from miner.config.mining import Index
from miner.errors import ProviderStop
from miner.numbering import Block
from miner.records import PASSAGES, QRELS, QUERIES
from miner.searchers import Elsewhere, dense, exact, tuning
from miner.stages import retrieved
from miner.workers import ray_search

K = 20


class Later:
    """A call that a fake cluster will make when its result is asked for."""

    def __init__(self, made: Any) -> None:
        self.made = made


class Fake:
    """Of Ray what Sharded uses. made: the actors; sent: megabytes put, and the searches in the order of submission."""

    def __init__(self) -> None:
        self.made: list[Any] = []
        self.put_bytes, self.searches = 0, 0

    def put(self, value: Any) -> Later:
        self.put_bytes += getattr(value, "nbytes", 0)
        return Later(lambda: value)

    def remote(self, what: Any) -> Any:
        return Options(self, what)

    def get(self, _: Any, what: Any) -> Any:
        return [self.get(_, one) for one in what] if isinstance(what, list) else what.made()


class Options:
    def __init__(self, ray: Fake, what: Any) -> None:
        self._ray, self._what = ray, what

    def options(self, **_: Any) -> Options:
        return self

    def remote(self, *arguments: Any) -> Any:
        def call() -> Any:
            return self._what(*(a.made() if isinstance(a, Later) else a for a in arguments))

        if isinstance(self._what, type):
            self._ray.made.append(Remote(self._ray, call()))
            return self._ray.made[-1]
        return Later(call)


class Remote:
    def __init__(self, ray: Fake, actor: Any) -> None:
        self._ray, self.actor = ray, actor

    def __getattr__(self, name: str) -> Any:
        self._ray.searches += name == "search"
        return Options(self._ray, lambda *arguments: getattr(self.actor, name)(*arguments))


@pytest.fixture(scope="module", params=["flat", "ivf-flat", "ivf-pq"])
def job(request, tmp_path_factory):
    """Vectors of 12,000 passages and 90 queries in a job's folder, and their index."""
    home = tmp_path_factory.mktemp(request.param)
    (home / "index").mkdir()
    for name, rows, seed in (("passages", 12_000, 5), ("queries", 90, 6)):
        np.save(home / f"{name}.npy", normal(rows, 16, seed))
    passages, queries = (np.load(home / f"{name}.npy", mmap_mode="r") for name in ("passages", "queries"))
    settings = Index(kind=request.param)
    choice = dense.choose(*passages.shape, len(queries), settings)
    dense.make(passages, choice, home / "index", 13)
    whole = dense.open(passages, queries, home / "index", choice, settings)
    tuning.tune(whole, home / "index", K, settings, 13)
    return passages, queries, home, settings, whole


def sharded(ray: Fake, passages: np.ndarray, job: Any) -> ray_search.Sharded:
    _, queries, home, settings, _ = job
    return ray_search.Sharded(ray, config.Engine(kind="ray"), ray.get, 3, passages, queries, home / "index", settings)


def same(searcher: Any, job: Any, k: int = K) -> None:
    for found, wanted in zip(searcher.search(np.arange(90), k), job[4].search(np.arange(90), k), strict=True):
        assert np.array_equal(found, wanted)


def test_an_actor_that_sees_the_folder_maps_and_nothing_is_shipped(job):
    ray = Fake()
    searcher = sharded(ray, job[0], job)
    assert ray.put_bytes == 0
    shards = [remote.actor._shard for remote in ray.made]
    assert all(isinstance(_base(shard._vectors), np.memmap) for shard in shards), "rows are pages of the file"
    assert [shard._index is None for shard in shards] == [job[3].kind == "flat"] * 3
    same(searcher, job)
    same(searcher, job, 4000)  # exactly
    report = searcher.report()
    assert (report["shards"], report["shipped"]) == (3, 0)
    assert 0 < report["own_mb"] < 4000
    assert (job[2] / ledger_shards.FOLDER / "token").is_file()


def _base(array: Any) -> Any:
    while array is not None and not isinstance(array, np.memmap):
        array = array.base
    return array


@pytest.mark.parametrize("why", ["another disk", "no file"])
def test_elsewhere_rows_and_index_are_shipped(job, monkeypatch, why):
    passages, ray = job[0], Fake()
    if why == "another disk":
        monkeypatch.setattr(ledger_shards, "shared", lambda folder, token: False)
    else:
        passages = np.array(passages)
    searcher = sharded(ray, passages, job)
    assert ray.put_bytes >= passages.nbytes
    same(searcher, job)
    assert searcher.report()["shipped"] == 3


def test_an_actor_that_starts_anew_where_nothing_is_seen_is_shipped_its_shard(job, monkeypatch):
    ray = Fake()
    searcher = sharded(ray, job[0], job)
    searcher.expect(np.arange(90), K)
    monkeypatch.setattr(ledger_shards, "shared", lambda folder, token: False)
    blank = ray_search.Actor(4000, 8000, searcher._choice.width, 1, 1, None)
    assert not blank.ready()
    blank._how = ray.made[1].actor._how
    ray.made[1].actor = blank
    same(searcher, job)
    assert searcher.report()["shipped"] == 1
    assert 4000 * 16 * 4 <= ray.put_bytes < 2 * 4000 * 16 * 4 + 5 * 90 * 16 * 4 + 500_000


def test_actors_that_are_lost_each_time_end_the_search(job, monkeypatch):
    ray = Fake()
    searcher = sharded(ray, job[0], job)
    ray.made[2].actor = ray_search.Actor(8000, 12_000, 0, 1, 1, None)
    monkeypatch.setattr(searcher, "_ship", lambda: None)
    with pytest.raises(ProviderStop, match=r"lost again and again; run again"):
        searcher.search(np.arange(9), K)


def test_a_stale_token_is_not_the_same_folder(job, tmp_path):
    shutil.copytree(job[2], tmp_path / "copy")
    files = ray_search._files(job[0], job[2] / "index")
    assert files is not None
    copied = files._replace(home=str(tmp_path / "copy" / ledger_shards.FOLDER))
    how = (dense.chosen(job[2] / "index").width, 1, 1)
    assert ray_search.Actor(0, 10, *how, files).ready()
    assert not ray_search.Actor(0, 10, *how, copied).ready()


# ---------------------------------------------------------------- ahead of time


def world(passages: int, queries: int, positives: dict[int, list[int]]) -> numbering.Numbered:
    rows = [{"doc_id": f"d{n:05}", "title": "", "text": f"text {n}"} for n in range(passages)]
    asked = [{"query_id": f"q{n:05}", "text": f"query {n}"} for n in range(queries)]
    known = [
        {"query_id": f"q{q:05}", "doc_id": f"d{d:05}", "relevance": 1} for q, found in positives.items() for d in found
    ]
    tables = ((rows, PASSAGES), (asked, QUERIES), (known, QRELS))
    return numbering.number(*(pa.Table.from_pylist(table, schema) for table, schema in tables), 1)


class Noting:
    """A searcher that notes what is begun and what is asked."""

    def __init__(self, of: Any) -> None:
        self._of = of
        self.begun: list[tuple[list[int], int]] = []
        self.asked: list[tuple[list[int], int]] = []

    def expect(self, queries, k):
        if (queries.tolist(), k) not in self.begun:
            self.begun.append((queries.tolist(), k))

    def search(self, queries, k):
        self.asked.append((queries.tolist(), k))
        return self._of.search(queries, k)

    def report(self):
        return {}


def test_what_is_begun_is_what_will_be_asked(job, monkeypatch):
    whole = world(12_000, 90, {q: [q] if q % 7 else list(range(100, 160)) for q in range(90)})
    searcher = Noting(job[4])
    assert isinstance(searcher, Elsewhere)
    blocks = [Block(low, low + 30) for low in range(0, 90, 30)]
    plain = [retrieved.run(whole, block, job[4], K) for block in blocks]
    for at, block in enumerate(blocks):
        retrieved.expect(whole, blocks[at : at + 2], searcher, K)
        assert retrieved.run(whole, block, searcher, K).equals(plain[at])
    assert searcher.begun == searcher.asked
    assert len(searcher.asked) == 6, "queries with many positives are asked apart"
    monkeypatch.setattr(retrieved, "LONGEST", 60 * (K + 9))
    searcher = Noting(job[4])
    retrieved.expect(whole, blocks, searcher, K)
    assert sum(k * len(queries) for queries, k in searcher.begun) <= retrieved.LONGEST, "no more than one search"


def test_a_search_that_is_begun_is_not_made_twice(job):
    ray = Fake()
    searcher = sharded(ray, job[0], job)
    searcher.expect(np.arange(90), K)
    searcher.expect(np.arange(90), K)
    assert ray.searches == 3
    same(searcher, job)
    assert ray.searches == 3
    same(searcher, job)
    assert ray.searches == 6, "asked again it is made again"


def test_the_benchmark_knows_the_recall_of_its_vectors(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(Path(__file__).parent / "benchmarks")
    import ray_index

    np.lib.format.open_memmap(tmp_path / "p.npy", "w+", np.float32, (5000, ray_index.DIMENSION)).flush()
    assert ray_index.write(str(tmp_path / "p.npy"), 5000, 0, 3000) == 3000
    assert ray_index.write(str(tmp_path / "p.npy"), 5000, 3000, 5000) == 2000
    vectors, queries = np.load(tmp_path / "p.npy"), ray_index.drawn(5000, 7, [1, 2])
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert np.array_equal(vectors[3000:], ray_index.drawn(5000, 2000, [ray_index.SEED, 1, 3000]))
    rows = exact.nearest(queries, vectors, ray_index.K)[1]
    assert ray_index.recalled(vectors, queries, rows) == 1.0
    rows[:, ::4] = -1
    assert ray_index.recalled(vectors, queries, rows) == 0.75
