"""The teacher: raw logits of a cross-encoder, cached by the content of each pair; a killed run loses one chunk."""

from __future__ import annotations

import hashlib
import importlib.util
import re
from pathlib import Path

import numpy as np
import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st

from miner import config, teachers
from miner.errors import UserError
from miner.stages import teacher as stage
from miner.store import tree_digest
from miner.vector_cache import VectorCache

QUERIES = [f"query {n}" for n in range(40)]
PASSAGES = [f"passage {n} of the corpus" for n in range(60)]


class Digests:
    """A teacher without a network: the score comes from the texts alone. It may be killed at its n-th call."""

    def __init__(self, dies_at: int | None = None) -> None:
        self.calls: list[list[tuple[str, str]]] = []
        self._dies_at = dies_at

    def score(self, pairs: list[tuple[str, str]]) -> teachers.Scores:
        if len(self.calls) == self._dies_at:
            raise KeyboardInterrupt
        self.calls.append(pairs)
        return np.array([true_score(*pair) for pair in pairs], np.float32)


def true_score(query: str, passage: str) -> float:
    return int(hashlib.sha256(f"{query}|{passage}".encode()).hexdigest()[:4], 16) / 1000 - 30


def queries(rows: list[int]) -> list[str]:
    return [QUERIES[row] for row in rows]


def passages(rows: list[int]) -> list[str]:
    return [PASSAGES[row] for row in rows]


def every_pair() -> np.ndarray:
    """40 x 60 pairs, the first hundred a second time."""
    pairs = np.stack(np.meshgrid(np.arange(40), np.arange(60), indexing="ij"), axis=2).reshape(-1, 2)
    return np.concatenate([pairs, pairs[:100]])


def go(pairs: np.ndarray, teacher: Digests, folder: Path, ticks: list[int] | None = None) -> int:
    folder.mkdir(exist_ok=True)
    tick = (ticks if ticks is not None else []).append
    keys = stage.keys(queries, passages, pairs)
    return stage.run(queries, passages, pairs, keys, teacher, VectorCache(folder), tick)


def test_every_pair_is_scored_once_and_gathered_in_order(tmp_path):
    pairs, teacher, ticks = every_pair(), Digests(), []
    assert go(pairs, teacher, tmp_path, ticks) == 2400
    assert [len(call) for call in teacher.calls] == ticks == [1024, 1024, 352]
    keys = stage.keys(queries, passages, pairs)
    found = stage.gather(keys, VectorCache(tmp_path))
    assert found.dtype == np.float32
    assert found.shape == (2500,)
    expected = [true_score(QUERIES[q], PASSAGES[p]) for q, p in pairs]
    assert found == pytest.approx(np.array(expected, np.float32), abs=0)


def test_a_second_run_scores_nothing(tmp_path):
    pairs, again = every_pair(), Digests()
    go(pairs, Digests(), tmp_path)
    before = tree_digest(tmp_path)
    assert go(pairs[::-1], again, tmp_path) == 0
    assert again.calls == []
    assert tree_digest(tmp_path) == before


def test_a_killed_run_loses_one_chunk_and_resumed_writes_the_same_bytes(tmp_path):
    pairs = every_pair()
    go(pairs, Digests(), tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        go(pairs, Digests(dies_at=1), tmp_path / "killed")
    resumed = Digests()
    assert go(pairs, resumed, tmp_path / "killed") == 2400 - 1024
    assert [len(call) for call in resumed.calls] == [1024, 352]
    assert tree_digest(tmp_path / "killed") == tree_digest(tmp_path / "whole")


def test_rows_do_not_matter_but_texts(tmp_path):
    """The same pairs under other row numbers, as after another corpus was read, are found again."""
    go(np.array([[3, 4], [5, 6]]), Digests(), tmp_path)
    moved = stage.keys(lambda rows: ["query 5"] * len(rows), lambda rows: [PASSAGES[6]] * len(rows), np.array([[0, 0]]))
    assert stage.gather(moved, VectorCache(tmp_path)) == pytest.approx([true_score("query 5", PASSAGES[6])], abs=1e-5)


def test_no_pair_is_no_work(tmp_path):
    none = np.empty((0, 2), np.int64)
    assert go(none, Digests(), tmp_path) == 0
    assert stage.gather(stage.keys(queries, passages, none), VectorCache(tmp_path)).shape == (0,)


def test_scores_that_are_gone_are_one_line(tmp_path):
    keys = stage.keys(queries, passages, every_pair()[:7])
    with pytest.raises(UserError, match="7 of 7 teacher scores are no longer in the cache; start the run again"):
        stage.gather(keys, VectorCache(tmp_path))


def test_a_large_run_has_few_shards():
    """300 000 pairs make 256 chunks, not 293."""
    keys = np.arange(300_000).astype("S16")
    sizes = [len(rows) for rows in stage.chunks(keys)]
    assert sum(sizes) == 300_000
    assert len(sizes) <= stage.MOST_CHUNKS
    assert max(sizes) == -(-300_000 // stage.MOST_CHUNKS)


def test_a_text_that_many_pairs_share_is_read_once():
    asked: list[int] = []

    def read(rows: list[int]) -> list[str]:
        asked.extend(rows)
        return queries(rows)

    stage.keys(read, passages, every_pair()[:2400])
    assert sorted(asked) == list(range(40))


@given(st.lists(st.text(max_size=4), min_size=4, max_size=4))
def test_the_key_tells_where_the_query_ends(texts):
    one, two = tuple(texts[:2]), tuple(texts[2:])
    assert (stage.key(*one) == stage.key(*two)) == (one == two)
    assert stage.key("ab", "c") != stage.key("a", "bc")


def refused(folder: Path, said: dict, **files: dict) -> str:
    for name, value in {"config": said, **files}.items():
        tiny.put(folder / f"{name}.json", value)
    with pytest.raises(UserError) as caught:
        teachers.fingerprint(config.Teacher(model=str(folder)))
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(f"teacher.model {folder}: ")
    return str(caught.value)


XLMR = {"architectures": ["XLMRobertaForSequenceClassification"], "model_type": "xlm-roberta"}
WRONG = [
    ({"architectures": ["GemmaForCausalLM"], "model_type": "gemma"}, "GemmaForCausalLM is a reranker made of an LLM"),
    ({"architectures": ["LayerWiseMiniCPMForCausalLM"]}, "made of an LLM, .*supported are .*bge-reranker-v2-m3"),
    ({"architectures": ["Qwen3ForSequenceClassification"], "model_type": "qwen3"}, "made of an LLM"),
    ({"architectures": ["XLMRobertaModel"], "model_type": "xlm-roberta"}, "has no trained score for a pair"),
    ({"model_type": "bert"}, "without a named architecture has no trained score"),
    (XLMR, "has 2 outputs, so none of them is the score"),
    ({**XLMR, "id2label": {"0": "a", "1": "b", "2": "c"}}, "has 3 outputs"),
]


@pytest.mark.parametrize(("said", "message"), WRONG)
def test_what_is_no_cross_encoder_of_one_output_is_refused_without_torch(tmp_path, said, message):
    assert re.search(message, refused(tmp_path / "model", said))


def test_what_sentence_transformers_would_add_is_refused(tmp_path):
    one = {**XLMR, "id2label": {"0": "LABEL_0"}}
    modules = [{"idx": 0, "path": "", "type": "a.Transformer"}, {"idx": 1, "path": "1", "type": "a.LogitScore"}]
    assert "its LogitScore module would be left out" in refused(tmp_path / "more", one, modules=modules)
    prompt = {"default_prompt_name": "query", "prompts": {"query": "find: "}}
    said = refused(tmp_path / "prompt", one, config_sentence_transformers=prompt)
    assert "its default prompt 'query' would be left out" in said


def test_a_missing_torch_is_one_line(tmp_path, monkeypatch):
    there = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "torch" else there(name))
    assert "pip install 'miner[local]'" in refused(tmp_path / "model", {**XLMR, "id2label": {"0": "LABEL_0"}})


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("/no/such/folder", "no such folder, and not a hub id"),
        ("reranker", "no such folder, and not a hub id"),
        ("a b/c", "no such folder, and not a hub id"),
        ("nobody/nothing", "not in the local hub cache and the hub did not answer .* give a local folder"),
    ],
)
def test_a_model_that_is_nowhere_is_one_line(model, message, monkeypatch, tmp_path):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UserError, match=message) as caught:
        teachers.load(config.Teacher(model=model))
    assert "\n" not in str(caught.value)


def test_a_broken_configuration_is_one_line(tmp_path):
    (tmp_path / "config.json").write_text("{", encoding="utf-8")
    with pytest.raises(UserError, match=r"config\.json: broken JSON"):
        teachers.load(config.Teacher(model=str(tmp_path)))
    (tmp_path / "config.json").unlink()
    with pytest.raises(UserError, match=r"no config\.json in .*; not a whole model"):
        teachers.load(config.Teacher(model=str(tmp_path)))
