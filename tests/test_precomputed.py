"""Vectors from files: their order, their norm, a whole job on them, and every way a file can be wrong."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import toy
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from miner import cli, config, encoders
from miner.encoders import precomputed
from miner.errors import UserError

IDS = ["b", "a", "ö 3", "7"]
ROWS = np.array([[3, 4], [0, -2], [1, 1], [5, 12]], np.float32)
UNIT = {"b": [0.6, 0.8], "a": [0, -1], "ö 3": [0.5**0.5, 0.5**0.5], "7": [5 / 13, 12 / 13]}


def npy(path: Path, ids=IDS, rows=ROWS, how: str = "txt") -> Path:
    np.save(path, rows)
    beside = path.with_suffix(f".ids.{how}")
    if how == "npy":
        np.save(beside, np.array(ids))
    else:
        beside.write_text(json.dumps(ids) if how == "json" else "".join(f"{i}\n" for i in ids), encoding="utf-8")
    return path


def parquet(path: Path, ids=IDS, rows=ROWS, column: str = "vector", fixed: bool = False, width: int = 2) -> Path:
    of = pa.list_(pa.float32(), width) if fixed else pa.list_(pa.float64())
    table = pa.table({"id": pa.array(ids), column: pa.array([list(map(float, row)) for row in rows], of)})
    pq.write_table(table, path, row_group_size=3)
    return path


FORMS = {
    "txt": lambda folder: npy(folder / "v.npy"),
    "json": lambda folder: npy(folder / "v.npy", how="json"),
    "ids.npy": lambda folder: npy(folder / "v.npy", how="npy"),
    "float16": lambda folder: npy(folder / "v.npy", rows=ROWS.astype(np.float16)),
    "float64": lambda folder: npy(folder / "v.npy", rows=ROWS.astype(float)),
    "fortran": lambda folder: npy(folder / "v.npy", rows=np.asfortranarray(ROWS)),
    "list": lambda folder: parquet(folder / "v.parquet"),
    "embedding": lambda folder: parquet(folder / "v.parquet", column="embedding"),
    "fixed": lambda folder: parquet(folder / "v.parquet", fixed=True),
}


@pytest.mark.parametrize("form", FORMS)
def test_rows_come_normalised_in_the_order_asked_for(tmp_path, form):
    for wanted in (IDS, IDS[::-1], ["7"], []):
        found = precomputed.read(FORMS[form](tmp_path), wanted)
        assert (found.dtype, found.shape) == (np.float32, (len(wanted), 2))
        assert found == pytest.approx(np.array([UNIT[i] for i in wanted]).reshape(-1, 2), abs=1e-6)


def test_numbers_as_ids_are_text(tmp_path):
    for path in (
        npy(tmp_path / "n.npy", [4, 5, 6, 7], how="npy"),
        npy(tmp_path / "j.npy", [4, 5, 6, 7], how="json"),
        parquet(tmp_path / "p.parquet", [4, 5, 6, 7]),
    ):
        assert precomputed.read(path, ["5", "7"]) == pytest.approx(np.array([[0, -1], UNIT["7"]]), abs=1e-6)


@settings(max_examples=25, deadline=None)
@given(st.permutations(range(23)), st.integers(1, 23), st.integers(16, 200))
def test_blocks_of_any_size_give_the_same(tmp_path_factory, order, take, size):
    folder = tmp_path_factory.mktemp("p")
    rows = np.random.default_rng(5).normal(size=(23, 2)).astype(np.float32)
    ids, wanted = [str(i) for i in range(23)], [str(i) for i in order[:take]]
    expected = (rows / np.linalg.norm(rows, axis=1, keepdims=True))[order[:take]]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(precomputed, "BLOCK_BYTES", size)
        for path in (npy(folder / "v.npy", ids, rows), parquet(folder / "v.parquet", ids, rows)):
            assert precomputed.read(path, wanted) == pytest.approx(expected, abs=1e-6)


def _with(value: float) -> np.ndarray:
    rows = ROWS.copy()
    rows[2] = value
    return rows


def _ragged(path: Path) -> Path:
    pq.write_table(pa.table({"id": IDS, "vector": [[1.0, 2.0], [1.0, 2.0], [1.0], [1.0, 2.0]]}), path)
    return path


def _text(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def _no_ids(path: Path) -> Path:
    np.save(path, ROWS)
    return path


def _table(path: Path, **columns) -> Path:
    pq.write_table(pa.table(columns), path)
    return path


WRONG = {
    "missing": (lambda f: npy(f / "v.npy", ["b", "a", "x", "7"]), "v.npy: no vector of id 'ö 3' .1 of 4 ids"),
    "doubled": (lambda f: npy(f / "v.npy", ["b", "a", "ö 3", "a"]), "row 3: id 'a' stands in row 1 too"),
    "doubled, Parquet": (lambda f: parquet(f / "v.parquet", ["b", "a", "ö 3", "a"]), "row 3: id 'a' stands in row 1"),
    "NaN": (lambda f: npy(f / "v.npy", rows=_with(np.nan)), "row 2, id 'ö 3': NaN or infinity"),
    "infinity": (lambda f: parquet(f / "v.parquet", rows=_with(np.inf)), "row 2, id 'ö 3': NaN or infinity"),
    "zero": (lambda f: npy(f / "v.npy", rows=_with(0)), "row 2, id 'ö 3': a zero vector"),
    "rows": (lambda f: npy(f / "v.npy", IDS[:3]), "4 rows, but v.ids.txt has 3 ids"),
    "no ids": (lambda f: _no_ids(f / "v.npy"), "no v.ids.txt .or .json, .npy. beside it"),
    "two ids files": (lambda f: (npy(f / "v.npy"), npy(f / "v.npy", how="json"))[1], "v.ids.txt, v.ids.json both"),
    "an empty id": (lambda f: npy(f / "v.npy", ["b", "", "c", "d"]), "v.ids.txt: row 1: '' is no id"),
    "ids of no list": (
        lambda f: (_no_ids(f / "v.npy"), _text(f / "v.ids.json", "{}"))[0],
        "v.ids.json: no list of ids",
    ),
    "broken ids": (lambda f: (_no_ids(f / "v.npy"), _text(f / "v.ids.json", "[1"))[0], "cannot read the ids"),
    "an id of true": (lambda f: npy(f / "v.npy", ["b", True, "c", "d"], how="json"), "row 1: True is no id"),
    "ragged": (lambda f: _ragged(f / "v.parquet"), "row 2, id 'ö 3': 1 dimensions, the rows before have 2"),
    "no vector": (
        lambda f: _table(f / "v.parquet", id=["a", "b"], vector=[[1.0], None]),
        "row 1, id 'b': no dimensions",
    ),
    "a null inside": (lambda f: _table(f / "v.parquet", id=["b"], vector=[[1.0, None]]), "row 0, id 'b': NaN"),
    "a null id": (lambda f: _table(f / "v.parquet", id=["a", None], vector=[[1.0], [1.0]]), "row 1: no id"),
    "columns": (lambda f: _table(f / "v.parquet", name=["a"], vector=[[1.0]]), "columns name, vector; it needs id"),
    "integers": (lambda f: _table(f / "v.parquet", id=["a"], vector=[[1]]), "column vector is list.*int64"),
    "no rows": (
        lambda f: _table(f / "v.parquet", id=pa.array([], pa.string()), vector=pa.array([], pa.list_(pa.float32()))),
        "no rows",
    ),
    "one axis": (lambda f: npy(f / "v.npy", rows=np.ones(4, np.float32)), r"float32\[4\], not floating point"),
    "whole numbers": (lambda f: npy(f / "v.npy", rows=np.ones((4, 2), int)), r"int64\[4, 2\], not floating point"),
    "no numpy file": (lambda f: _text(f / "v.npy", "x"), "not a .npy of vectors"),
    "no Parquet": (lambda f: _text(f / "v.parquet", "x"), "not a readable Parquet file"),
    "another form": (lambda f: _text(f / "v.csv", "x"), "vectors are read from .npy"),
    "no file": (lambda f: f / "v.npy", "v.npy: no such file"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_file_is_named_in_one_line(tmp_path, case):
    make, told = WRONG[case]
    with pytest.raises(UserError, match=told) as error:
        precomputed.read(make(tmp_path), IDS)
    assert str(error.value).startswith(str(tmp_path))
    assert "\n" not in str(error.value)


def test_a_pickle_is_not_opened(tmp_path):
    np.save(tmp_path / "v.npy", np.array([{"a": 1}], object), allow_pickle=True)
    with pytest.raises(UserError, match=r"not a \.npy of vectors"):
        precomputed.read(tmp_path / "v.npy", ["a"])


def given_files(folder: Path, **more) -> config.Encoder:
    paths = {"passages_file": str(folder / "p.npy"), "queries_file": str(folder / "q.parquet")}
    return config.Encoder(**{"backend": "precomputed", **paths, **more})


def test_both_files_have_one_width(tmp_path):
    npy(tmp_path / "p.npy", rows=np.ones((4, 3), np.float32))
    parquet(tmp_path / "q.parquet")
    with pytest.raises(UserError, match=r"q\.parquet: 2 dimensions, but passages_file has 3"):
        encoders.stored(given_files(tmp_path))


def test_a_fingerprint_is_of_the_contents(tmp_path):
    seen = []
    for folder, rows in (("one", ROWS), ("two", ROWS), ("three", ROWS[::-1])):
        (tmp_path / folder).mkdir()
        npy(tmp_path / folder / "p.npy", rows=rows)
        parquet(tmp_path / folder / "q.parquet")
        seen.append(encoders.fingerprint(given_files(tmp_path / folder)))
    assert seen[0] == seen[1] != seen[2]
    assert str(tmp_path) not in json.dumps(seen)
    npy(tmp_path / "one/p.npy", IDS[::-1])
    assert encoders.fingerprint(given_files(tmp_path / "one")) != seen[0], "the ids count too"


def test_new_texts_cannot_be_encoded(tmp_path):
    with pytest.raises(UserError, match=r"precomputed cannot encode new texts"):
        encoders.load(given_files(tmp_path))


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ({"queries_file": None}, "backend precomputed needs `queries_file`"),
        ({"passages_file": None}, "backend precomputed needs `passages_file`"),
        ({"query_prefix": "q: "}, "query_prefix is for the backends that encode texts"),
        ({"dimensions": 2}, "dimensions is for"),
        ({"backend": "auto"}, "passages_file is for backend precomputed, and backend is auto"),
    ],
)
def test_settings_without_effect_are_refused(tmp_path, more, told):
    with pytest.raises(ValueError, match=told):
        given_files(tmp_path, **more)


def test_memory_is_a_block_and_not_the_file(tmp_path):
    rows = np.random.default_rng(1).normal(size=(100_000, 64)).astype(np.float32)  # 25.6 MB
    ids = [str(i) for i in range(len(rows))]
    npy(tmp_path / "p.npy", ids, rows)
    npy(tmp_path / "q.npy", ids, rows)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(precomputed, "BLOCK_BYTES", 1 << 20)
        files = encoders.stored(given_files(tmp_path, queries_file=str(tmp_path / "q.npy")))
        tracemalloc.start()
        files.write("passages", ids, tmp_path / "out.npy")
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert np.load(tmp_path / "out.npy")[[0, -1]] == pytest.approx(
        rows[[0, -1]] / np.linalg.norm(rows[[0, -1]], axis=1, keepdims=True), abs=1e-6
    )
    assert peak < 35e6, "two dictionaries of ids and a block; the vectors alone would be 25.6 MB more"


def mine(job: Path) -> Path:
    """The vectors step of a job, run by the command line."""
    result = CliRunner().invoke(cli.app, ["run", str(job), "--until", "vectors"])
    assert result.exit_code == 0, result.output
    return job.with_suffix(".job")


def test_a_job_on_files_holds_the_vectors_that_the_encoder_gave(tmp_path):
    """The vectors of a first job, written out shuffled and scaled, are those of a second job."""
    first = mine(toy.job(tmp_path))
    rng = np.random.default_rng(3)
    for name, column in (("passages", "doc_id"), ("queries", "query_id")):
        rows = np.load(next(first.rglob(f"{name}.npy")))
        ids = pq.read_table(next(first.rglob(f"{name}.parquet"))).column(column).to_pylist()
        order = rng.permutation(len(ids))
        npy(tmp_path / f"{name}.npy", [ids[i] for i in order], rows[order] * 3, how="json")
    text = (tmp_path / "job.yaml").read_text()
    given_ = "encoder: {backend: precomputed, passages_file: passages.npy, queries_file: queries.npy}\n"
    job = tmp_path / "second.yaml"
    job.write_text(text[: text.index("encoder:")] + given_ + text[text.index("judge:") :])
    second = mine(job)
    for name in ("passages", "queries"):
        one, two = (np.load(next(folder.rglob(f"{name}.npy"))) for folder in (first, second))
        assert two == pytest.approx(one, abs=1e-6)
        assert two.dtype == np.float32
