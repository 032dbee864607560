"""The demo's judge and generator against a real LLM: OPENAI_BASE_URL (and OPENAI_MODEL, where the server has several).

llama-server -m MODEL.gguf --port 8080 &
OPENAI_BASE_URL=http://127.0.0.1:8080/v1 OPENAI_API_KEY=none pytest -m live
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

DEMO = Path(__file__).resolve().parents[1] / "examples/library-docs"
QUERIES = 2

pytestmark = [
    pytest.mark.live,
    pytest.mark.skipif("OPENAI_BASE_URL" not in os.environ, reason="OPENAI_BASE_URL names no server"),
]


def test_a_real_llm_judges_and_generates(tmp_path, miner):
    folder = tmp_path / "demo"
    shutil.copytree(DEMO, folder, ignore=shutil.ignore_patterns("*.job"))
    subprocess.run([sys.executable, folder / "build_corpus.py"], check=True)
    qrels = folder / "data/qrels/train.tsv"
    qrels.write_text("".join(qrels.read_text().splitlines(keepends=True)[: QUERIES + 1]))
    live = ["--set", "llm.backend=openai", "--set", "llm.timeout_s=600", "--set", "judge.pool=4"]
    live += ["--set", f"llm.model={os.environ.get('OPENAI_MODEL', 'local')}"]
    own = {name: os.environ[name] for name in ("OPENAI_BASE_URL", "OPENAI_API_KEY") if name in os.environ}
    own.setdefault("OPENAI_API_KEY", "none")
    summary = json.loads(miner("run", folder / "job.yaml", "--json", *live, timeout=3600, **own).stdout)
    assert summary["complete"], summary["warnings"]
    judged = pq.read_table(folder / "job.job/judgments/judgments.parquet").to_pylist()
    assert judged
    assert sum(row["status"] == "ok" for row in judged) >= len(judged) / 2
    assert all(row["completion_tokens"] > 0 for row in judged)
    written = pq.read_table(folder / "job.job/synthetic/synthetic.parquet").to_pylist()
    assert all(row["text"] for row in written if row["status"] == "ok")
