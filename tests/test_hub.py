"""A model named by its hub id, the job file's default: what is fetched, and what is said when it cannot be."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import tiny
import toy
from hub import Hub

from miner.encoders.files import package_path

BGE = "BAAI/bge-small-en-v1.5"
needs_torch = [
    pytest.mark.local,
    pytest.mark.skipif(importlib.util.find_spec("sentence_transformers") is None, reason="extra local not installed"),
]


def online(hub: Hub, tmp_path: Path) -> dict[str, str]:
    """The environment of a process that knows this hub only, with a cache of its own."""
    names = ("HF_HOME", "XDG_CACHE_HOME")
    return {"HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0", **{name: str(tmp_path / name) for name in names}}


def published(folder: Path) -> Path:
    """The packaged int8 MiniLM in the layout of a BGE repository, with files that no backend needs."""
    (folder / "onnx").mkdir(parents=True)
    shutil.copy(package_path(toy.MINILM["onnx_file"]), folder / "onnx/model.onnx")
    shutil.copy(package_path(toy.MINILM["tokenizer_file"]), folder / "tokenizer.json")
    tiny.put(folder / "config.json", {"architectures": ["BertModel"], "max_position_embeddings": 512})
    tiny.put(folder / "1_Pooling/config.json", {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False})
    for name in ("README.md", "pytorch_model.bin", "model.safetensors", "openvino/model.bin"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"not needed")
    return folder


def job(tmp_path: Path, **encoder: object) -> Path:
    plain = dict.fromkeys(("onnx_file", "tokenizer_file"))
    return toy.job(tmp_path, encoder={**plain, "model": BGE, **encoder})


def candidates(tmp_path: Path) -> list[dict]:
    parts = sorted((tmp_path / "job.job/candidates").glob("part-*"))
    return [row for part in parts for row in pq.read_table(part).to_pylist()]


def test_the_onnx_file_of_a_hub_model_is_fetched_once_and_works_without_the_hub(tmp_path, miner):
    with Hub({BGE: published(tmp_path / "hub")}) as hub:
        env = online(hub, tmp_path)
        miner("run", job(tmp_path), **env)
        wanted = ["1_Pooling/config.json", "config.json", "onnx/model.onnx", "tokenizer.json"]
        assert sorted(set(hub.sent)) == wanted
        assert len(hub.sent) == len(wanted)
    assert len(candidates(tmp_path)) > 100
    again = miner("run", tmp_path / "job.yaml", **{**env, "HF_HUB_OFFLINE": "1"})
    assert "vectors: fresh" in again.stderr


def test_a_model_that_the_hub_has_not_is_one_line(tmp_path, miner):
    with Hub({}) as hub:
        done = miner("run", job(tmp_path), check=False, **online(hub, tmp_path))
    assert done.returncode == 2
    assert f"encoder.model {BGE}: not in the local hub cache and the hub did not answer" in done.stderr.replace(
        "\n", " "
    )
    assert "Traceback" not in done.stderr


FORMS = [("auto", "safetensors"), ("onnx", "safetensors"), ("torch", "bin")]


@pytest.mark.parametrize(("backend", "form"), [pytest.param(*form, marks=needs_torch) for form in FORMS])
def test_torch_weights_of_a_hub_model_are_fetched(tmp_path, miner, backend, form):
    import torch
    from safetensors.torch import load_file

    folder = tiny.bert(tmp_path / "hub")
    tiny.modules(folder)
    if form == "bin":
        torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
        (folder / "model.safetensors").unlink()
    with Hub({BGE: folder}) as hub:
        miner("run", job(tmp_path, backend=backend), **online(hub, tmp_path))
        assert len(hub.sent) == len(set(hub.sent)) == 6
    assert len(candidates(tmp_path)) > 100
