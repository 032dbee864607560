"""Training files: what goes in comes back out, through the readers that the trainers use."""

from __future__ import annotations

import json
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.json
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from miner import exporters
from miner.config import Export
from miner.exporters import Example, Item
from miner.records import DECISIONS, OUTCOMES, POSITIVES
from miner.stages import export

# Any text but half surrogates, which the corpus stage refuses: control characters, line separators, NUL, other scripts.
TEXT = st.text() | st.sampled_from(
    ["\u2028", "a\u2029b\x85c", "\x00\x1b[31m", "\r\n\t", '"\\/', "日本語 \U0001f600", "\ufeff"]
)
ITEMS = st.lists(st.builds(Item, st.uuids().map(str), TEXT, st.floats(-1, 1, width=32)), min_size=1, max_size=6)
EXAMPLES = st.lists(st.builds(Example, st.uuids().map(str), TEXT, ITEMS, ITEMS), min_size=1, max_size=6)
SCORES = st.booleans()


@pytest.fixture(autouse=True)
def quiet():
    datasets.disable_progress_bars()


def write(name: str, examples: list[Example], folder: Path, wanted: int = 7, **options) -> dict[str, int]:
    return exporters.get(name)(name, lambda: iter(examples), folder, Export(**options), wanted)


def texts(items: list[Item]) -> list[str]:
    return [item.text for item in items]


def scores(items: list[Item]) -> list[float]:
    return [item.score for item in items]


# ---------------------------------------------------------------- FlagEmbedding


@given(EXAMPLES, SCORES, TEXT)
def test_flagembedding_lines_come_back_equal(tmp_path_factory, examples, with_scores, prompt):
    folder = tmp_path_factory.mktemp("export")
    assert write("flagembedding", examples, folder, scores=with_scores, prompt=prompt) == {"rows": len(examples)}
    raw = (folder / "flagembedding.jsonl").read_bytes()
    assert raw.count(b"\n") == len(examples), "one line a row, whatever the texts hold"
    rows = [json.loads(line) for line in raw.split(b"\n")[:-1]]
    for row, example in zip(rows, examples, strict=True):
        numbers = [row.pop("pos_scores"), row.pop("neg_scores")] if with_scores else []
        assert row == {
            "query": example.query,
            "pos": texts(example.positives),
            "neg": texts(example.negatives),
            "prompt": prompt,
            "type": "normal",
        }
        for found, items in zip(numbers, (example.positives, example.negatives), strict=False):
            assert found == pytest.approx(scores(items), abs=1e-6)
            assert all(type(number) is float for number in found)


def test_flagembedding_rows_have_exactly_the_keys_that_its_loader_knows(tmp_path):
    """Scores of 1 and 0 are written 1.0 and 0.0: the loader's file types must not differ."""
    write("flagembedding", [Example("q", "query", [Item("p", "pos", 1)], [Item("n", "neg", 0)])], tmp_path)
    line = (tmp_path / "flagembedding.jsonl").read_text()
    assert list(json.loads(line)) == ["query", "pos", "neg", "pos_scores", "neg_scores", "prompt", "type"]
    assert '"pos_scores":[1.0],"neg_scores":[0.0]' in line


HARD = [
    Example("q1", "\u2028 \x00 \U0001f600", [Item("p", "x\ny\r", 0.5)], [Item("n", "\x85", 0.25), Item("m", "", -1.0)]),
    Example("q2", "query", [Item("p", "a", 0.5), Item("r", "b", 0.125)], [Item("n", "word " * 200_000, 0.25)]),
]


def loaded(kind: str, path: Path, cache: Path) -> list[dict]:
    return datasets.load_dataset(kind, data_files=str(path), split="train", cache_dir=str(cache)).to_list()


def test_flagembedding_opens_in_arrow_and_datasets(tmp_path):
    """With a passage of a megabyte, which does not fit into a block of the JSON reader by itself."""
    write("flagembedding", HARD, tmp_path)
    path = tmp_path / "flagembedding.jsonl"
    expected = [json.loads(line) for line in path.read_bytes().splitlines()]
    assert [row["neg"][-1] for row in expected] == ["", "word " * 200_000]
    options = pa.json.ReadOptions(block_size=4 << 20)
    assert pa.json.read_json(path, options).to_pylist() == expected
    assert loaded("json", path, tmp_path / "cache") == expected


# ---------------------------------------------------------------- sentence-transformers


@given(EXAMPLES, SCORES)
def test_triplets_are_all_pairs_of_positives_and_negatives(tmp_path_factory, examples, with_scores):
    folder = tmp_path_factory.mktemp("export")
    expected = [
        {"anchor": e.query, "positive": p.text, "negative": n.text, "scores": [p.score, n.score]}
        for e in examples
        for p in e.positives
        for n in e.negatives
    ]
    if not with_scores:
        expected = [{name: row[name] for name in ("anchor", "positive", "negative")} for row in expected]
    counts = write("st-triplet", examples, folder, scores=with_scores)
    assert counts == {"rows": sum(len(e.positives) * len(e.negatives) for e in examples)}
    assert pq.read_table(folder / "st-triplet.parquet").to_pylist() == expected


@given(EXAMPLES, st.integers(1, 6), SCORES)
def test_ntuples_have_one_width_and_count_the_queries_that_fall_short(tmp_path_factory, examples, size, with_scores):
    folder = tmp_path_factory.mktemp("export")
    wide = [e for e in examples if len(e.negatives) >= size]
    expected = [
        {"anchor": e.query, "positive": p.text}
        | {f"negative_{i}": e.negatives[i - 1].text for i in range(1, size + 1)}
        | ({"scores": [p.score, *scores(e.negatives[:size])]} if with_scores else {})
        for e in wide
        for p in e.positives
    ]
    counts = write("st-ntuple", examples, folder, ntuple_negatives=size, scores=with_scores)
    assert counts == {"rows": len(expected), "queries_with_too_few_negatives": len(examples) - len(wide)}
    assert pq.read_table(folder / "st-ntuple.parquet").to_pylist() == expected


@pytest.mark.parametrize(("wanted", "width"), [(2, 2), (4, 4), (7, 4)])
def test_ntuples_are_as_wide_as_mining_wants_but_at_most_four(tmp_path, wanted, width):
    write("st-ntuple", HARD, tmp_path, wanted)
    names = pq.read_schema(tmp_path / "st-ntuple.parquet").names
    assert names == ["anchor", "positive", *[f"negative_{i + 1}" for i in range(width)], "scores"]


def test_sentence_transformers_files_open_in_datasets_without_ids(tmp_path):
    """Every column becomes a model input, so an id among them would be trained on."""
    for name in ("st-triplet", "st-ntuple"):
        write(name, HARD, tmp_path, wanted=1)
        rows = loaded("parquet", tmp_path / f"{name}.parquet", tmp_path / "cache")
        assert rows == pq.read_table(tmp_path / f"{name}.parquet").to_pylist()
        negative = "negative" if name == "st-triplet" else "negative_1"
        assert {frozenset(row) for row in rows} == {frozenset({"anchor", "positive", negative, "scores"})}
        assert max(len(row[negative]) for row in rows) == len("word ") * 200_000


@pytest.mark.parametrize("size", [1, 2, 3, 100])
def test_batches_do_not_show_in_the_file(tmp_path, monkeypatch, size):
    monkeypatch.setattr("miner.exporters.sentence_transformers.BATCH", size)
    examples = [Example(f"q{i}", f"query {i}", [Item("p", "p", 0.5)], [Item("n", str(i), 0.5)] * 2) for i in range(5)]
    write("st-triplet", examples, tmp_path)
    rows = pq.read_table(tmp_path / "st-triplet.parquet").column("negative").to_pylist()
    assert rows == [str(i) for i in range(5) for _ in range(2)]


@pytest.mark.parametrize("name", exporters.FORMATS)
def test_the_same_examples_give_the_same_bytes(tmp_path, name):
    for folder in ("1", "2"):
        write(name, HARD, tmp_path / folder)
    one, two = (next((tmp_path / folder).iterdir()) for folder in ("1", "2"))
    assert one.read_bytes() == two.read_bytes()


# ---------------------------------------------------------------- from decisions to examples


def decision(query_id: str, doc_id: str, slot: int | None) -> dict:
    kept = {"kept": slot is not None, "reason": "" if slot else "surplus", "slot": slot}
    return {
        "query_id": query_id,
        "doc_id": doc_id,
        "source": "mined",
        "retriever": "dense",
        "rank": 1,
        "score": 0.5,
    } | kept


PART = export.Part(
    pa.Table.from_pylist(
        [decision("a", "n3", 2), decision("a", "n1", None), decision("a", "n2", 1), decision("b", "n1", 1)], DECISIONS
    ),
    pa.Table.from_pylist(
        [
            {"query_id": "a", "positives": 3, "negatives": 2, "reason": ""},
            {"query_id": "b", "positives": 1, "negatives": 1, "reason": "too_few_negatives"},
        ],
        OUTCOMES,
    ),
    pa.Table.from_pylist(
        [
            {"query_id": "a", "doc_id": "p1", "relevance": 1, "score": 0.75},
            {"query_id": "a", "doc_id": "p2", "relevance": 2, "score": 0.25},
            {"query_id": "a", "doc_id": "p3", "relevance": 2, "score": 0.5},
            {"query_id": "b", "doc_id": "p1", "relevance": 1, "score": 0.5},
        ],
        POSITIVES,
    ),
)


def test_an_example_has_negatives_by_slot_and_the_best_positive_first():
    passages = {doc_id: f"text of {doc_id}" for doc_id in ("n1", "n2", "n3", "p1", "p2", "p3")}
    (example,) = export.run([PART], export.Texts({"a": "query a", "b": "query b"}, passages))
    assert (example.query_id, example.query) == ("a", "query a")
    assert [item.doc_id for item in example.negatives] == ["n2", "n3"]
    assert [item.doc_id for item in example.positives] == ["p3", "p2", "p1"], "by relevance, then score"
    assert texts(example.negatives) == ["text of n2", "text of n3"]


def test_provenance_names_the_line_and_the_answer_behind_each_negative():
    keys = {"judgments": {("a", "n2"): "key-1"}, "synthetic": {("a", "n3"): "key-2"}}
    rows = [row for table in export.provenance([PART, PART], keys) for row in table.to_pylist()]
    assert [(row["row"], row["slot"], row["doc_id"]) for row in rows] == [
        (0, 1, "n2"),
        (0, 2, "n3"),
        (1, 1, "n2"),
        (1, 2, "n3"),
    ]
    assert [row["judgment_key"] for row in rows[:2]] == ["key-1", None]
    assert [row["generation_key"] for row in rows[:2]] == [None, "key-2"]
