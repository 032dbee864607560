"""BGE-M3's three outputs and a teacher on a Ray cluster, on tiny random checkpoints: the bytes of one process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import tiny
import tiny_m3
import toy

from miner.store import tree_digest

pytestmark = pytest.mark.ray
for package in ("ray", "torch", "transformers"):
    pytest.importorskip(package)
WAYS = [{"kind": kind} for kind in ("dense", "sparse", "multivector")]
STEPS = ("vectors", "index", "retrieved_dense", "retrieved_sparse", "retrieved_multivector", "teacher", "candidates")


def job(folder: Path, models: Path, address: str | None) -> Path:
    encoder = {"model": str(models / "bge-m3"), "batch_tokens": 100, "device": "cpu", "max_length": 64}
    for name in ("onnx_file", "tokenizer_file"):  # of toy.job's own encoder
        encoder[name] = None
    mining = {"retrievers": WAYS, "depth": 8, "margin_on": "teacher", "margin_absolute": 0.0}
    ray = {"engine": {"kind": "ray", "address": address, "workers": 2}} if address else {}
    teacher = {"model": str(models / "teacher"), "depth": 6}
    return toy.job(folder, encoder=encoder, mining=mining, teacher=teacher, **ray)


def digests(done: Path) -> dict[str, str]:
    home = done.with_suffix(".job")
    return {
        f"{part}/{name}": digest
        for part in (*STEPS, "export", "vector_cache")
        for name, digest in tree_digest(home / part).items()
    }


def test_the_teacher_and_the_three_outputs_of_bge_m3(tmp_path, cluster, cluster_environment):
    tiny_m3.m3(tmp_path / "bge-m3")
    tiny.cross_encoder(tmp_path / "teacher")
    found = {}
    for name, address in (("local", None), ("remote", cluster.address)):
        own = job(tmp_path / name, tmp_path, address)
        command = [sys.executable, "-m", "miner", "run", str(own)]
        done = subprocess.run(command, env=cluster_environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        found[name] = digests(own)
    assert found["remote"] == found["local"]
    parts = {name.partition("/")[0] for name in found["local"]}
    assert parts == {*STEPS, "export", "vector_cache"}
