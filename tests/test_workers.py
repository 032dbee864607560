"""What of the Ray engine needs no Ray: exact lists, shards and their merging, chunks that come in any order."""

from __future__ import annotations

import random
import shutil
import subprocess
import sys
from pathlib import Path

import faiss
import numpy as np
import pyarrow as pa
import pytest
import toy
from hypothesis import given, settings
from hypothesis import strategies as st

from miner import chunks, config, engine, workers
from miner.config.mining import Index
from miner.errors import UserError
from miner.searchers import dense, exact, ivf_files, sharded, tuning
from miner.stages import teacher, vectors
from miner.vector_cache import VectorCache, keys

K = 20


def normal(rows: int, width: int, seed: int) -> np.ndarray:
    drawn = np.random.default_rng(seed).normal(size=(rows, width)).astype(np.float32)
    return drawn / np.linalg.norm(drawn, axis=1, keepdims=True)


def near(rows: int, width: int, seed: int) -> np.ndarray:
    """Many vectors that are equal, and many whose scores differ in the last bits alone."""
    some = normal(rows, width, seed)
    some[::3] = some[0]
    some[1::3] = np.nextafter(some[0], np.float32(2))
    return some


# ---------------------------------------------------------------- exact search


@pytest.mark.parametrize("make", [normal, near])
def test_a_query_has_one_list_alone_or_in_a_block(make):
    passages, queries = make(3000, 48, 1), make(70, 48, 2)
    scores, rows = exact.nearest(queries, passages, K)
    for size in (1, 7, 33):  # faiss takes another way for few queries than for many
        parts = [exact.nearest(queries[at : at + size], passages, K) for at in range(0, len(queries), size)]
        assert np.array_equal(np.concatenate([part[0] for part in parts]), scores)
        assert np.array_equal(np.concatenate([part[1] for part in parts]), rows)


@settings(max_examples=40)
@given(st.integers(1, 60), st.integers(1, 25), st.integers(0, 9), st.booleans())
def test_exact_search_is_the_sorted_list_of_all_scores(rows, k, seed, ties):
    passages, queries = (near if ties else normal)(rows, 8, seed), normal(5, 8, seed + 50)
    every = np.tile(np.arange(rows), (5, 1))
    score = exact.rescored(queries, passages, every)
    order = np.lexsort((every, -score))[:, :k]
    found = exact.nearest(queries, passages, k)
    assert np.array_equal(found[1], order)
    assert np.array_equal(found[0], np.take_along_axis(score, order, 1))


# ---------------------------------------------------------------- shards


def merged(parts: list[sharded.Part], wanted: int, seed: int) -> sharded.Part:
    """By a tree of a shape that chance decides."""
    chance = random.Random(seed)
    parts = list(parts)
    chance.shuffle(parts)
    while len(parts) > 1:
        count = chance.randint(2, 4)
        parts = [*parts[count:], sharded.merged(wanted, *parts[:count])]
    return sharded.best(parts[0], wanted)


@settings(max_examples=40)
@given(st.integers(1, 70), st.integers(1, 9), st.integers(1, 25), st.integers(0, 9), st.booleans())
def test_the_sum_of_shards_is_the_one_search(rows, count, k, seed, ties):
    passages, queries = (near if ties else normal)(rows, 8, seed), normal(4, 8, seed + 50)
    whole = dense.open(passages, queries, Path("none"), dense.Choice("flat", ""), Index())
    parts = [
        sharded.Shard(low, np.ascontiguousarray(passages[low:high]), None, 0, 0, 1).search(queries, min(k, rows), True)
        for low, high in sharded.bounds(rows, count)
    ]
    found = sharded.final(merged(parts, min(k, rows), seed), k)
    for one, other in zip(found, whole.search(np.arange(4), k), strict=True):
        assert np.array_equal(one, other)


def test_shards_cover_every_row_once():
    for rows, shards in ((1, 1), (7, 3), (5, 9), (1000, 16)):
        bounds = list(sharded.bounds(rows, shards))
        assert [row for low, high in bounds for row in range(low, high)] == list(range(rows))
        assert len(bounds) == min(rows, shards)


@pytest.fixture(scope="module", params=["ivf-flat", "ivf-pq"])
def index(request, tmp_path_factory):
    """12,000 passages, a third of them equal or all but equal, and the index that a job builds of them."""
    folder = tmp_path_factory.mktemp(request.param)
    passages, queries = normal(12_000, 16, 5), normal(90, 16, 6)
    passages[::6], passages[1::6] = passages[0], np.nextafter(passages[0], np.float32(2))
    queries[:20] = passages[:20]
    settings = Index(kind=request.param)
    choice = dense.choose(*passages.shape, len(queries), settings)
    dense.make(passages, choice, folder, 13)
    tuning.tune(dense.open(passages, queries, folder, choice, settings), folder, K, settings, 13)
    return passages, queries, folder, choice, settings


@pytest.mark.parametrize("shards", [1, 3, 8])
def test_shards_of_an_ivf_find_what_the_whole_finds(index, shards):
    passages, queries, folder, choice, settings = index
    wanted, exactly = sharded.wanted(K, len(passages), choice, settings)
    assert not exactly
    parts = [
        sharded.Shard(
            low,
            np.ascontiguousarray(passages[low:high]),
            sharded.cut(folder, choice, low, high),
            choice.width,
            dense.effort(folder),
            1,
        ).search(queries, wanted, exactly)
        for low, high in sharded.bounds(len(passages), shards)
    ]
    whole = dense.open(passages, queries, folder, choice, settings)
    found = sharded.final(merged(parts, wanted, shards), K)
    for one, other in zip(found, whole.indexed(queries, K), strict=True):
        assert np.array_equal(one, other)


@pytest.mark.parametrize("size", [1, 30_000, 200_000])  # a file for each block, for some blocks, one for all
def test_an_ivf_in_many_files_finds_what_one_file_finds(index, tmp_path, monkeypatch, size):
    passages, queries, folder, choice, settings = index
    monkeypatch.setattr(dense, "ADD", 700)
    monkeypatch.setattr(ivf_files, "PART", size)
    (tmp_path / "dense-900.faiss").write_text("of an interrupted run with smaller parts")
    report = dense.make(passages, choice, tmp_path, 13)
    shutil.copy(folder / tuning.TUNED, tmp_path)
    files = ivf_files.files(tmp_path / dense.FILE)
    rows = max(700, 700 * -(-size // (700 * bytes_a_row(choice))))
    assert len(files) == -(-12_000 // rows)
    assert sorted(tmp_path.glob("*.faiss")) == sorted(files)
    assert report["bytes"] == sum(path.stat().st_size for path in files)
    assert _lists(tmp_path, choice) == _lists(folder, choice)
    many, one = (dense.open(passages, queries, at, choice, settings) for at in (tmp_path, folder))
    for found, wanted in zip(many.indexed(queries, K), one.indexed(queries, K), strict=True):
        assert np.array_equal(found, wanted)


def bytes_a_row(choice: dense.Choice) -> int:
    return 8 + (choice.code or 4 * 16)


def _lists(folder: Path, choice: dense.Choice) -> list[tuple[bytes, bytes]]:
    """Row numbers and codes of every list of the index of `folder`."""
    index = sharded.cut(folder, choice, 0, 12_000)  # which owns its lists
    lists = index.invlists
    sizes = [lists.list_size(n) for n in range(lists.nlist)]
    return [
        tuple(
            faiss.rev_swig_ptr(column, size * width).tobytes()
            for column, width in ((lists.get_ids(n), 1), (lists.get_codes(n), lists.code_size))
        )
        for n, size in enumerate(sizes)
        if size
    ]


def test_an_index_that_lacks_one_of_its_files_is_refused(index, tmp_path, monkeypatch):
    passages, queries, _, choice, settings = index
    monkeypatch.setattr(dense, "ADD", 700)
    monkeypatch.setattr(ivf_files, "PART", 1)
    dense.make(passages, choice, tmp_path, 13)
    (tmp_path / "dense-003.faiss").unlink()
    with pytest.raises(UserError, match=r"holds 11300 vectors, the corpus 12000; run the job"):
        dense.open(passages, queries, tmp_path, choice, settings)


def test_files_read_into_memory_are_one_index(index, tmp_path, monkeypatch):
    """As for a GPU."""
    passages, queries, folder, choice, _ = index
    monkeypatch.setattr(dense, "ADD", 700)
    monkeypatch.setattr(ivf_files, "PART", 1)
    dense.make(passages, choice, tmp_path, 13)
    many, one = ivf_files.read(tmp_path / dense.FILE, False), ivf_files.read(folder / dense.FILE, True)
    assert many.ntotal == one.ntotal == len(passages)
    for found, wanted in zip(exact.listed(many, queries, K), exact.listed(one, queries, K), strict=True):
        assert np.array_equal(found, wanted)


def test_a_query_has_one_list_of_an_ivf_alone_or_in_a_block(index):
    passages, queries, folder, choice, settings = index
    whole = dense.open(passages, queries, folder, choice, settings)
    scores, rows = whole.search(np.arange(len(queries)), K)
    for at in range(0, len(queries), 7):
        some = np.arange(at, min(at + 7, len(queries)))
        assert np.array_equal(whole.search(some, K)[0], scores[some])
        assert np.array_equal(whole.search(some, K)[1], rows[some])


class Backwards:
    """Many workers whose results come in the wrong order."""

    def __init__(self, one):
        self._one = one

    def each(self, method, calls):
        done = [(number, getattr(self._one, method)(*call)) for number, call in enumerate(calls)]
        return iter(done[::-1])

    def __getattr__(self, name):
        return getattr(self._one, name)


def test_an_ivf_that_many_workers_fill_is_the_same_file(index, tmp_path, monkeypatch):
    passages, _, folder, choice, _ = index
    monkeypatch.setattr(dense, "ADD", 700)
    dense.make(passages, choice, tmp_path, 13, lambda trained: Backwards(dense.Coder(trained)))
    assert (tmp_path / dense.FILE).read_bytes() == (folder / dense.FILE).read_bytes()


# ---------------------------------------------------------------- chunks


class Counting:
    dimension = 3

    def encode(self, texts, kind):
        return np.array([[len(text), text.count("a"), kind == "query"] for text in texts], np.float32)

    def score(self, pairs):
        return np.array([len(query) - len(passage) for query, passage in pairs], np.float32)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*.npy"))}


def test_chunks_that_come_in_any_order_fill_the_same_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(chunks, "CHUNK_TEXTS", 4)
    words = [f"{'a' * (n % 7)} word {n}" for n in range(30)]
    table, ticks = pa.table({"text": words}), {}
    for name, encoder in (("one", Counting()), ("many", Backwards(Counting()))):
        counts = ticks.setdefault(name, [])
        cache = VectorCache(tmp_path / name)
        assert vectors.run(table, keys(words, 30), "passage", encoder, cache, counts.append) == 30
        assert vectors.run(table, keys(words, 30), "passage", encoder, cache, lambda _: None) == 0
    assert contents(tmp_path / "one") == contents(tmp_path / "many")
    assert sum(ticks["one"]) == sum(ticks["many"]) == 30


def test_scores_that_come_in_any_order_fill_the_same_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(teacher, "CHUNK_PAIRS", 5)
    words = [f"{'a' * (n % 7)} word {n}" for n in range(12)]
    pairs = np.array([[query, passage] for query in range(4) for passage in range(12)])

    def read(rows):
        return [words[row] for row in rows]

    named = teacher.keys(read, read, pairs)
    for name, model in (("one", Counting()), ("many", Backwards(Counting()))):
        assert teacher.run(read, read, pairs, named, model, VectorCache(tmp_path / name), lambda _: None) == 48
    assert contents(tmp_path / "one") == contents(tmp_path / "many")


# ---------------------------------------------------------------- without Ray


def test_nothing_of_ray_is_loaded_by_a_local_job():
    code = "import sys; from miner import config, engine, workers; workers.load(config.Engine())"
    code += "; print('ray' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_the_missing_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r"pip install 'miner\[ray\]'"):
        workers.load(config.Engine(kind="ray"))


@pytest.mark.parametrize(("gpus", "device"), [(1, "cuda"), (0, None)])
def test_auto_is_decided_for_workers_that_have_a_gpu(tmp_path, gpus, device):
    path = toy.job(tmp_path, engine={"kind": "ray", "gpus": gpus})
    with engine.opened(config.load(path, [])) as run:
        assert run.job.encoder.device == device
