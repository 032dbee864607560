"""BGE-M3's three outputs and a teacher through the command line, on tiny random checkpoints."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest
import tiny
import tiny_m3
import toy

from miner import store

pytestmark = pytest.mark.local
Miner = Callable[..., CompletedProcess[str]]
WAYS = [{"kind": "dense"}, {"kind": "sparse"}, {"kind": "multivector", "depth": 6}]


def encoder(folder: Path) -> dict[str, Any]:
    return {"model": str(folder), "onnx_file": None, "tokenizer_file": None}


def candidates(folder: Path) -> list[dict[str, Any]]:
    parts = sorted((folder / "job.job" / "candidates").glob("part-*.parquet"))
    return [row for part in parts for row in store.read_table(part).to_pylist()]


def scores_of(rows: list[dict[str, Any]]) -> dict[tuple[str, str, str], float]:
    return {(r["query_id"], r["doc_id"], one["retriever"]): one["score"] for r in rows for one in r["found_by"]}


def steps(miner: Miner, *arguments: object) -> dict[str, Any]:
    return json.loads(miner("mine", *arguments, "--json").stdout)["steps"]


@pytest.fixture(scope="module")
def m3(tmp_path_factory) -> Path:
    return tiny_m3.m3(tmp_path_factory.mktemp("m3"))


def test_the_three_outputs_of_bge_m3_find_candidates_from_one_pass(tmp_path, miner, m3):
    job = toy.job(tmp_path, encoder=encoder(m3), mining={"retrievers": WAYS, "depth": 8})
    found = steps(miner, job)
    assert found["vectors"]["passages"]["encoded"] == 25
    assert found["vectors"]["queries"]["encoded"] == 16
    assert found["retrieved_multivector"]["encoded"] == 0, "the pass that made the vectors made these too"
    rows = candidates(tmp_path)
    ways = {one["retriever"] for row in rows for one in row["found_by"]}
    assert ways == {"dense", "sparse", "multivector"}
    for row in rows:
        by = {one["retriever"] for one in row["found_by"]}
        assert by & {"dense", "sparse"}, "multivector ranks what others found"
    dense = {one["score"] for row in rows for one in row["found_by"] if one["retriever"] == "dense"}
    assert dense <= {row["score"] for row in rows}


def test_what_the_cache_lost_is_made_again(tmp_path, miner, m3):
    cache = tmp_path / "cache"
    job = toy.job(tmp_path, encoder=encoder(m3), mining={"retrievers": WAYS, "depth": 8}, vector_cache=str(cache))
    steps(miner, job)
    before = candidates(tmp_path)
    shutil.rmtree(cache)
    again = steps(miner, job, "--set", "mining.block=7")
    assert again["retrieved_multivector"]["encoded"] > 0
    # Other texts share a batch now, so scores may differ in the seventh digit, and so may the order of near ties.
    assert scores_of(candidates(tmp_path)) == pytest.approx(scores_of(before), abs=1e-5)


def test_the_margins_are_on_the_teacher_and_it_scores_nothing_twice(tmp_path, miner):
    teacher = {"model": str(tiny.cross_encoder(tmp_path / "teacher")), "depth": 6}
    mining = {"margin_on": "teacher", "margin_relative": None, "margin_absolute": 0.0, "depth": 8}
    job = toy.job(tmp_path, teacher=teacher, mining=mining)
    first = steps(miner, job)
    assert first["teacher"]["scored"] == first["teacher"]["pairs"] > 16 * 6
    rows = candidates(tmp_path)
    for row in rows:
        score, lowest = row["teacher_score"], row["positive_teacher_score"]
        assert (score is None) == (row["reason"] == "no_teacher_score") or row["reason"] in (
            "positive_copy",
            "copy_of_better",
        )
        if row["reason"] == "margin_absolute":
            assert score > lowest
        if not row["reason"]:
            assert score <= lowest
    assert {"margin_absolute", "no_teacher_score", ""} <= {row["reason"] for row in rows}
    # Another margin: the same scores. Another depth: the deeper ones alone.
    assert steps(miner, job, "--set", "mining.margin_absolute=0.1")["teacher"] == first["teacher"]
    deeper = steps(miner, job, "--set", "teacher.depth=7")["teacher"]
    assert deeper["scored"] == deeper["pairs"] - first["teacher"]["pairs"] > 0
