"""BGE-M3's three outputs: equal to FlagEmbedding's on a tiny checkpoint, and one pass fills the three caches."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import tiny
import tiny_m3

from miner import config
from miner.encoders import m3
from miner.errors import UserError
from miner.ragged_cache import SPARSE, Ragged, RaggedCache
from miner.searchers import multivector, sparse
from miner.stages import m3_vectors
from miner.vector_cache import VectorCache
from miner.vector_cache import keys as keys_of

local = [
    pytest.mark.local,
    pytest.mark.skipif(importlib.util.find_spec("transformers") is None, reason="extra local not installed"),
]
interop = [
    pytest.mark.interop,
    pytest.mark.skipif(importlib.util.find_spec("FlagEmbedding") is None, reason="extra interop not installed"),
]
CLOSE = {"rtol": 0, "atol": 1e-5}
# Words unknown to the tiny vocabulary, a text cut at max_length, one of nothing, a text twice.
TEXTS = [*tiny.TEXTS, "猫は眠る cat 犬", "cat " * 300, "", "owl", "owl owl owl bat"]


def marked(*marks: list[Any]) -> Any:
    def put(function: Any) -> Any:
        for mark in [one for some in marks for one in some]:
            function = mark(function)
        return function

    return put


def settings(folder: Path, **more: Any) -> config.Encoder:
    return config.Encoder.model_validate({"model": str(folder), "batch_tokens": 100, "device": "cpu", **more})


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tiny_m3.m3(tmp_path_factory.mktemp("m3") / "bge-m3")


def exact(folder: Path, **more: Any) -> m3.M3:
    """Token vectors as float32, so that they can be compared as closely as the others."""
    made = m3.load(settings(folder, **more), folder)
    made.multi_dtype = np.float32  # type: ignore[assignment]
    return made


def split(found: Ragged) -> list[np.ndarray[Any, Any]]:
    return np.split(found.values, found.offsets[1:-1])


@marked(interop)
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("max_length", [16, 512])
def test_the_three_outputs_and_scores_of_flagembedding(folder, max_length):
    from FlagEmbedding import BGEM3FlagModel

    peer = BGEM3FlagModel(str(folder), use_fp16=False, devices="cpu")
    wanted = {"return_dense": True, "return_sparse": True, "return_colbert_vecs": True}
    want = peer.encode(TEXTS, batch_size=4, max_length=max_length, **wanted)
    found = exact(folder, max_length=max_length).encode_all(TEXTS)
    np.testing.assert_allclose(found.dense, want["dense_vecs"], **CLOSE)
    weights = [{str(token): weight for token, weight in row.tolist()} for row in split(found.sparse)]
    assert sum(map(bool, weights)) > len(TEXTS) / 2, "the tiny model has weights to compare"
    for mine, theirs in zip(weights, want["lexical_weights"], strict=True):
        assert mine == pytest.approx(dict(theirs), abs=1e-5)
    for mine, theirs in zip(split(found.multi), want["colbert_vecs"], strict=True):
        np.testing.assert_allclose(mine, theirs, **CLOSE)
    scores_as_flagembeddings(peer, found, want)


def scores_as_flagembeddings(peer: Any, found: m3.Outputs, want: dict[str, Any]) -> None:
    count = len(TEXTS)
    pairs = np.array([(q, p) for q in range(count) for p in range(count)])
    theirs = [float(peer.colbert_score(want["colbert_vecs"][q], want["colbert_vecs"][p])) for q, p in pairs]
    np.testing.assert_allclose(multivector.scores(found.multi, found.multi, pairs), theirs, **CLOSE)
    scores, rows = sparse.build([found.sparse], found.sparse, count).search(np.arange(count), count)
    lexical = peer.compute_lexical_matching_score(want["lexical_weights"], want["lexical_weights"])
    for query in range(count):
        shared = rows[query] >= 0
        assert set(rows[query][shared]) == set(np.flatnonzero(lexical[query] > 0))
        np.testing.assert_allclose(scores[query][shared], lexical[query][rows[query][shared]], **CLOSE)


@marked(local)
def test_form_of_the_outputs(folder):
    found = m3.load(settings(folder), folder).encode_all(TEXTS)
    assert found.dense.dtype == np.float32
    assert np.allclose(np.linalg.norm(found.dense, axis=1), 1)
    assert found.multi.values.dtype == np.float16
    assert np.allclose(np.linalg.norm(found.multi.values.astype(np.float32), axis=1), 1, atol=2e-3)
    assert found.sparse.values.dtype == SPARSE
    assert (found.sparse.values["weight"] > 0).all()
    assert not set(found.sparse.values["token"].tolist()) & {0, 1, 2, 3}
    for row in split(found.sparse):
        assert (np.diff(row["token"]) > 0).all()
    assert len(split(found.multi)[TEXTS.index("")]) == 1
    assert len(split(found.sparse)[TEXTS.index("")]) == 0


@marked(local)
def test_batches_change_nothing_but_the_last_bits(folder):
    one, many = (exact(folder, batch_tokens=size).encode_all(TEXTS) for size in (16, 100_000))
    np.testing.assert_allclose(one.dense, many.dense, **CLOSE)
    np.testing.assert_allclose(one.multi.values, many.multi.values, **CLOSE)
    assert one.sparse.values["token"].tolist() == many.sparse.values["token"].tolist()
    np.testing.assert_allclose(one.sparse.values["weight"], many.sparse.values["weight"], **CLOSE)


@marked(local)
def test_without_token_vectors_prefixes_and_no_text(folder):
    encoder = m3.load(settings(folder, query_prefix="owl "), folder)
    plain = encoder.encode_all(["owl cat"], "passage", multi=False)
    asked = encoder.encode_all(["cat"], "query")
    assert plain.multi is None
    assert plain.dense.tolist() == asked.dense.tolist() == encoder.encode(["cat"], "query").tolist()
    none = encoder.encode_all([])
    assert none.dense.shape == (0, 32)
    assert none.multi.values.shape == (0, 32)
    assert none.sparse.offsets.tolist() == none.multi.offsets.tolist() == [0]


@marked(local)
def test_dense_is_the_torch_encoders(folder):
    from miner.encoders import files, torch

    how = settings(folder, backend="torch", pooling="cls")
    np.testing.assert_allclose(
        m3.load(how, folder).encode(TEXTS, "passage"),
        torch.load(how, files.find(how)).encode(TEXTS, "passage"),
        **CLOSE,
    )


@marked(local)
def test_fingerprint_is_of_content(folder, tmp_path):
    import torch

    other = shutil.copytree(folder, tmp_path / "bge-m3")
    assert m3.fingerprint(settings(folder), folder) == m3.fingerprint(settings(other), other)
    torch.save(torch.nn.Linear(32, 1).state_dict(), other / "sparse_linear.pt")
    assert m3.fingerprint(settings(folder), folder) != m3.fingerprint(settings(other), other)


@pytest.mark.parametrize(
    ("key", "value"), [("backend", "onnx"), ("query_suffix", "x"), ("dimensions", 8), ("precision", "int8")]
)
def test_settings_without_effect_are_refused(tmp_path, key, value):
    with pytest.raises(UserError, match=rf"^encoder\.{key} {value}: .+; (set|take) it"):
        m3.load(settings(tmp_path, **{key: value}), tmp_path)


@pytest.mark.parametrize("name", m3.HEADS)
def test_a_model_without_heads_is_refused(tmp_path, name):
    (tmp_path / name).touch()
    lacking = next(head for head in m3.HEADS if head != name)
    with pytest.raises(UserError, match=f"no sparse and multi-vector heads .no {lacking}") as error:
        m3.load(settings(tmp_path), tmp_path)
    assert "\n" not in str(error.value)


@marked(local)
@pytest.mark.parametrize("content", [b"", b"no pickle", None])
def test_a_broken_head_is_one_line(folder, tmp_path, content):
    import torch

    other = shutil.copytree(folder, tmp_path / "bge-m3")
    if content is None:
        torch.save(torch.nn.Linear(31, 1).state_dict(), other / m3.HEADS[0])
    else:
        (other / m3.HEADS[0]).write_bytes(content)
    with pytest.raises(UserError, match=r"^encoder.model .*: torch cannot load it \(.+\)$"):
        m3.load(settings(other), other)


def test_a_name_that_is_nowhere(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UserError, match=r"^encoder\.model no-such-folder: no such folder"):
        m3.find(settings(Path("no-such-folder")))


class Fake:
    """Outputs that tell their text; dies at the text `stop`."""

    def __init__(self, stop: str | None = None) -> None:
        self.stop = stop
        self.seen: list[list[str]] = []

    def encode_all(self, texts: list[str], kind: str, multi: bool) -> m3.Outputs:
        if self.stop in texts:
            raise KeyboardInterrupt
        self.seen.append(texts)
        offsets = np.cumsum([0, *map(len, texts)])
        codes = np.array([ord(letter) for text in texts for letter in text], np.int64)
        values = np.empty(len(codes), SPARSE)
        values["token"], values["weight"] = codes, 1
        vectors = Ragged(codes.astype(np.float16)[:, None], offsets) if multi else None
        return m3.Outputs(np.array([[len(text)] for text in texts], np.float32), Ragged(values, offsets), vectors)


WORDS = ["cat", "a", "dogs", "bb", "cat", "ccc", "", "horses"]
TABLE = pa.table({"text": pa.array(WORDS, pa.large_string())})
KEYS = keys_of(WORDS, len(WORDS))


class Caches:
    def __init__(self, folder: Path) -> None:
        self.dense = VectorCache(folder / "dense")
        self.sparse = RaggedCache(folder / "sparse")
        self.multi = RaggedCache(folder / "multi")

    def run(self, encoder: Fake, *, multi: bool = True) -> int:
        ticks: list[int] = []
        wanted = self.multi if multi else None
        done = m3_vectors.run(TABLE, KEYS, "passage", encoder, self.dense, self.sparse, wanted, ticks.append)
        assert sum(ticks) == len(set(WORDS))
        return done

    def content(self) -> list[tuple[float, str, str]]:
        dense = np.empty((len(KEYS), 1), np.float32)
        self.dense.gather(KEYS, dense)
        tokens, vectors = split(self.sparse.gather(KEYS)), split(self.multi.gather(KEYS))
        spelled = ["".join(map(chr, row["token"])) for row in tokens]
        again = ["".join(map(chr, row[:, 0].astype(int))) for row in vectors]
        return list(zip(dense[:, 0].tolist(), spelled, again, strict=True))


WANT = [(len(word), word, word) for word in WORDS]


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(m3_vectors, "PIECE_CHARS", 6)


@pytest.mark.usefixtures("small")
def test_one_pass_fills_three_caches(tmp_path):
    caches, encoder = Caches(tmp_path), Fake()
    assert caches.run(encoder) == 7
    assert caches.content() == WANT
    assert sorted(text for some in encoder.seen for text in some) == sorted(set(WORDS))
    again = Fake()
    assert Caches(tmp_path).run(again) == 0
    assert again.seen == []


@pytest.mark.usefixtures("small")
def test_a_killed_run_goes_on_with_the_same_batches(tmp_path):
    whole, first, second = Fake(), Fake("bb"), Fake()
    Caches(tmp_path / "whole").run(whole)
    with pytest.raises(KeyboardInterrupt):
        Caches(tmp_path / "killed").run(first)
    assert first.seen
    caches = Caches(tmp_path / "killed")
    caches.run(second)
    assert first.seen + second.seen == whole.seen
    assert caches.content() == WANT


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("writes", range(1, 9))
def test_killed_between_any_two_files(tmp_path, monkeypatch, writes):
    """The second piece's dense shard may be there without its sparse one: the piece is encoded again, whole."""
    from miner import ragged_cache, vector_cache
    from miner.store import save_array

    left = [8 + writes]

    def dying(path: Path, array: Any) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        save_array(path, array)

    with monkeypatch.context() as patch:
        for module in (ragged_cache, vector_cache):
            patch.setattr(module, "save_array", dying)
        first = Fake()
        with pytest.raises(KeyboardInterrupt):
            Caches(tmp_path / "killed").run(first)
    whole, second, caches = Fake(), Fake(), Caches(tmp_path / "killed")
    Caches(tmp_path / "whole").run(whole)
    caches.run(second)
    assert caches.content() == WANT
    assert first.seen[: len(whole.seen) - len(second.seen)] + second.seen == whole.seen
    assert len(first.seen) + len(second.seen) <= len(whole.seen) + 1


def test_a_cache_wanted_later_is_filled_for_all(tmp_path):
    caches = Caches(tmp_path)
    assert caches.run(Fake(), multi=False) == 7
    assert caches.multi.missing(KEYS).all()
    assert Caches(tmp_path).run(Fake()) == 7
    assert Caches(tmp_path).content() == WANT
    names = sorted(path.name for path in (tmp_path / "dense").iterdir())
    assert len(names) == 2, "the vectors that were there are not written again"
