"""The margin on the query and its nearest positive together, on vectors given as files: a whole `miner mine`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import toy
from typer.testing import CliRunner

from miner import cli

QUERY = {"q": [1, 0, 0]}
SHOWN = {"p": [0.8, 0.6, 0]}  # cosine .8, so that a relative margin of .05 lies at .76
OTHERS = {
    "beside": [0.70, 0.65, 0.2958],  # cosines .70 and .95: their mean is above .76
    "far": [0.74, -0.6533, 0.16],  # .74 and .20
    "nearer": [0.79, -0.5533, 0.264],  # .79 and .30: above the margin of the query alone
}
SECOND = {"p2": [0.9, -0.4359, 0]}  # `far` and `nearer` lie beside this one


def job(folder: Path, passages: dict[str, Any], queries: dict[str, Any], qrels: list[str], **mining: Any) -> Path:
    data = folder / "data"
    (data / "qrels").mkdir(parents=True)
    toy.write_jsonl(data / "corpus.jsonl", [{"_id": name, "text": f"passage {name}"} for name in passages])
    toy.write_jsonl(data / "queries.jsonl", [{"_id": name, "text": f"query {name}"} for name in queries])
    (data / "qrels/train.tsv").write_text("\n".join(["query-id\tcorpus-id\tscore", *qrels]) + "\n")
    for name, vectors in (("passages", passages), ("queries", queries)):
        np.save(folder / f"{name}.npy", np.array(list(vectors.values()), np.float32))
        (folder / f"{name}.ids.json").write_text(json.dumps(list(vectors)))
    given = {"passages_file": "passages.npy", "queries_file": "queries.npy"}
    settings = {
        "data": {"path": "data"},
        "encoder": {"backend": "precomputed", **given},
        "mining": {"margin_relative": 0.05, **mining},
        "judge": {"enabled": False},
    }
    path = folder / "job.yaml"
    path.write_text(json.dumps(settings))  # which is YAML too
    return path


def mined(path: Path) -> dict[tuple[str, str], dict[str, Any]]:
    done = CliRunner().invoke(cli.app, ["mine", str(path)])
    assert done.exit_code == 0, done.output
    tables = [pq.read_table(part) for part in sorted((path.parent / "job.job/candidates").glob("part-*.parquet"))]
    return {(row["query_id"], row["doc_id"]): row for table in tables for row in table.to_pylist()}


def reasons(rows: dict[tuple[str, str], dict[str, Any]]) -> dict[str, str]:
    return {doc: row["reason"] for (_, doc), row in rows.items()}


@pytest.mark.parametrize(
    ("margin_on", "positives", "kept"),
    [
        ("rocchio", SHOWN, {"far", "nearer"}),
        ("dense", SHOWN, {"beside", "far"}),
        ("rocchio", SHOWN | SECOND, set()),
    ],
)
def test_what_lies_beside_a_positive_is_refused(tmp_path, margin_on, positives, kept):
    qrels = [f"q\t{name}\t1" for name in positives]
    rows = mined(job(tmp_path, positives | OTHERS, QUERY, qrels, margin_on=margin_on))
    found = reasons(rows)
    assert {name for name in OTHERS if found[name] == ""} == kept
    assert {found[name] for name in OTHERS if name not in kept} <= {"margin_relative"}
    near = {doc: row["to_positive"] for (_, doc), row in rows.items()}
    if margin_on == "dense":
        assert near["beside"] is None
    else:
        assert near["beside"] == pytest.approx(0.95, abs=1e-3)


def test_it_is_the_default(tmp_path):
    rows = mined(job(tmp_path, SHOWN | OTHERS, QUERY, ["q\tp\t1"]))
    assert reasons(rows)["beside"] == "margin_relative"


@pytest.mark.parametrize("margin", [{"margin_relative": 0.05}, {"margin_relative": None, "margin_absolute": 0.1}])
def test_random_vectors_agree_with_the_definition(tmp_path, margin):
    rng = np.random.default_rng(4)
    passages = {f"d{i:02d}": rng.normal(size=6) + 1.5 for i in range(40)}
    queries = {f"q{i:02d}": rng.normal(size=6) + 1.5 for i in range(25)}
    shown = {name: rng.choice(list(passages), size=rng.integers(1, 6), replace=False) for name in queries}
    qrels = [f"{query}\t{doc}\t1" for query, docs in shown.items() for doc in docs]
    rows = mined(job(tmp_path, passages, queries, qrels, depth=40, block=7, **margin))

    def cosine(a: Any, b: Any) -> float:
        return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))

    refused = 0
    for (query, doc), row in rows.items():
        near = max(cosine(passages[doc], passages[name]) for name in shown[query])
        assert row["to_positive"] == pytest.approx(near, abs=1e-5)
        if row["reason"] in ("", "not_sampled") or row["reason"].startswith("margin"):
            lowest = min(cosine(queries[query], passages[name]) for name in shown[query])
            ceiling = 0.95 * lowest if margin["margin_relative"] else lowest - 0.1
            mean = (cosine(queries[query], passages[doc]) + near) / 2
            assert row["reason"].startswith("margin") == (mean > ceiling)
            refused += mean > ceiling
    assert 50 < refused < 900
