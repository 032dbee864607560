"""Readers and the corpus stage: every form of input gives the same corpus, and no row vanishes."""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import toy
from hypothesis import given
from hypothesis import strategies as st

from miner import readers
from miner.config import Columns, CorpusColumns, Data
from miner.errors import UserError
from miner.readers import RawPair, RawPassage, RawQrel, RawQuery, Source
from miner.stages import corpus


def read(path: Path, **options: Any) -> corpus.Corpus:
    data = Data(path=str(path), **options)
    return corpus.run(readers.get(readers.detect(data))(data), data.relevant_from)


def content_id(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def judgments(found: corpus.Corpus) -> list[tuple[str, str, int]]:
    """(query text, passage text, relevance), whatever the ids."""
    queries = {row["query_id"]: row["text"] for row in found.queries.to_pylist()}
    passages = {row["doc_id"]: row["text"] for row in found.passages.to_pylist()}
    return [(queries[r["query_id"]], passages[r["doc_id"]], r["relevance"]) for r in found.qrels.to_pylist()]


def drops(found: corpus.Corpus) -> list[tuple[str, str, str]]:
    return [(row["kind"], row["id"], row["reason"]) for row in found.drops.to_pylist()]


# ---------------------------------------------------------------- BEIR


def test_a_beir_folder_plain_and_packed(tmp_path):
    plain, packed = toy.beir(tmp_path / "plain"), toy.beir(tmp_path / "packed")
    for path in [*packed.glob("*.jsonl"), packed / "qrels/train.tsv"]:
        path.with_name(path.name + ".gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()
    one, two = read(plain), read(packed)
    assert one.passages.num_rows == 3 * len(toy.ANIMALS) + 1
    assert one.queries.num_rows == one.qrels.num_rows == 2 * len(toy.ANIMALS)
    assert one.passages.equals(two.passages)
    assert one.qrels.equals(two.qrels)
    assert one.passages.column("doc_id").to_pylist() == sorted(one.passages.column("doc_id").to_pylist())
    sleep = next(row for row in one.passages.to_pylist() if row["doc_id"] == "cat-sleep")
    assert sleep == {
        "doc_id": "cat-sleep",
        "title": "cat",
        "text": "The cat sleeps 16 hours a day.",
        "extra": '{"source": "zoo"}',
    }


def beir(folder: Path, qrels: str, split: str = "train") -> Path:
    toy.write_jsonl(folder / "corpus.jsonl", [{"_id": d, "text": f"passage {d}"} for d in "abc"])
    toy.write_jsonl(folder / "queries.jsonl", [{"_id": q, "text": f"query {q}"} for q in "xy"])
    (folder / "qrels").mkdir()
    (folder / f"qrels/{split}.tsv").write_text(qrels)
    return folder


@pytest.mark.parametrize(
    "qrels",
    [
        "query-id\tcorpus-id\tscore\nx\ta\t1\ny\tb\t2\n",
        "x\ta\t1\r\n\ny\tb\t2.0\n",
        "x\t0\ta\t1\ny\t0\tb\t2",
        "y\tQ0\tb\t2\nx\tQ0\ta\t1\n",
    ],
    ids=["header", "no header", "trec", "trec unsorted"],
)
def test_qrels_in_the_forms_that_are_about(tmp_path, qrels):
    found = read(beir(tmp_path / "data", qrels))
    assert [tuple(row.values()) for row in found.qrels.to_pylist()] == [("x", "a", 1), ("y", "b", 2)]


def test_the_split_picks_the_qrels_and_a_wrong_one_names_the_others(tmp_path):
    folder = beir(tmp_path / "data", "x\ta\t1\n", split="dev")
    assert read(folder, split="dev").qrels.num_rows == 1
    with pytest.raises(UserError, match=r"train\.tsv: .* data\.split may be dev"):
        read(folder)


def test_a_higher_threshold_leaves_fewer_queries(tmp_path):
    folder = beir(tmp_path / "data", "x\ta\t1\nx\tb\t2\ny\tc\t1\n")
    found = read(folder, relevant_from=2)
    assert found.queries.column("query_id").to_pylist() == ["x"]
    assert found.qrels.num_rows == 2, "the lower grade stays known"
    assert drops(found) == [("query", "y", "no_positive"), ("qrel", "y c", "no_positive")]


# ---------------------------------------------------------------- pairs in files

ROWS = [
    {"frage": "wie spät", "text": "Es ist zehn.", "falsch": "Es regnet.", "quelle": "a"},
    {"frage": "wie spät", "text": 'Zehn, Uhr "genau"', "falsch": "Es ist zehn.", "quelle": "b"},
    {"frage": "wo", "text": "hier\nund dort", "falsch": "", "quelle": ""},
]
COLUMNS = Columns(query="frage", positive="text", negative="falsch")


def write(path: Path, rows: list[dict]) -> Path:
    name = path.name.removesuffix(".gz")
    if name.endswith(".parquet"):
        pq.write_table(pa.Table.from_pylist(rows), path)
        return path
    out = io.StringIO()
    if name.endswith("jsonl"):
        out.write("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    else:
        table = csv.DictWriter(out, list(rows[0]), delimiter="\t" if name.endswith("tsv") else ",")
        table.writeheader()
        table.writerows(rows)
    content = out.getvalue().encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


@pytest.mark.parametrize("name", ["p.jsonl", "p.csv", "p.tsv", "p.parquet", "p.jsonl.gz", "p.csv.gz", "p.tsv.gz"])
def test_pairs_in_every_kind_of_file_are_the_same(tmp_path, name):
    found = read(write(tmp_path / name, ROWS), columns=COLUMNS)
    assert sorted(judgments(found)) == [
        ("wie spät", "Es ist zehn.", 1),
        ("wie spät", "Es regnet.", 0),
        ("wie spät", 'Zehn, Uhr "genau"', 1),
        ("wo", "hier\nund dort", 1),
    ]
    assert [json.loads(row["extra"]) for row in found.queries.to_pylist() if row["text"] == "wo"] == [{"quelle": ""}]
    assert {reason for _, _, reason in drops(found)} == {"negative_is_positive", "empty_text", "empty_passage"}


def test_a_positive_may_be_a_list_and_named_ids_are_kept(tmp_path):
    rows = [
        {"query": "a", "positive": ["one", "two"], "qid": 7, "did": "d1"},
        {"query": "b", "positive": ["three"], "qid": 8, "did": "d3"},
        {"query": "c", "positive": "four", "qid": 9, "did": "d4"},
    ]
    columns = Columns(query_id="qid", doc_id="did")
    found = read(write(tmp_path / "p.jsonl", rows), columns=columns)
    assert {(r["query_id"], r["doc_id"]) for r in found.qrels.to_pylist()} == {
        ("7", content_id("one")),
        ("7", content_id("two")),
        ("8", "d3"),
        ("9", "d4"),
    }


def test_a_title_is_part_of_the_passage(tmp_path):
    rows = [{"query": "q", "positive": "meows", "head": "cat", "neg": ["cat meows", "barks"]}]
    found = read(write(tmp_path / "p.jsonl", rows), columns=Columns(title="head", negative="neg"))
    assert [(row["doc_id"], row["title"]) for row in found.passages.to_pylist()] == sorted(
        [(content_id("cat meows"), "cat"), (content_id("barks"), "")]
    )
    assert [reason for *_, reason in drops(found)] == ["negative_is_positive"]


def test_ids_come_from_the_texts_and_do_not_change_with_the_order(tmp_path):
    one = read(write(tmp_path / "1.jsonl", ROWS), columns=COLUMNS)
    two = read(write(tmp_path / "2.csv", ROWS[::-1]), columns=COLUMNS)
    assert one.qrels.equals(two.qrels)
    assert one.passages.equals(two.passages)
    assert content_id("wo") in one.queries.column("query_id").to_pylist()


def test_flagembedding_lines_are_known_by_their_keys(tmp_path):
    rows = [
        {"query": "a", "pos": ["one"], "neg": ["two", "three"], "prompt": "", "type": "normal", "pos_scores": [1.0]},
        {"query": "b", "pos": ["two"], "lang": "en"},
    ]
    path = write(tmp_path / "train.jsonl", rows)
    assert readers.detect(Data(path=str(path))) == "flagembedding"
    found = read(path)
    assert sorted(judgments(found)) == [("a", "one", 1), ("a", "three", 0), ("a", "two", 0), ("b", "two", 1)]
    assert {row["text"]: row["extra"] for row in found.queries.to_pylist()} == {"a": None, "b": '{"lang": "en"}'}


def test_a_corpus_file_adds_passages(tmp_path):
    pairs = write(tmp_path / "p.jsonl", [{"query": "q", "positive": "one"}])
    more = write(
        tmp_path / "more.csv", [{"key": k, "body": t, "tag": "x"} for k, t in (("k1", "two"), ("k2", "three"))]
    )
    columns = CorpusColumns(doc_id="key", title=None, text="body")
    found = read(pairs, corpus=str(more), corpus_columns=columns)
    assert [(r["doc_id"], r["text"], r["extra"]) for r in found.passages.to_pylist()] == sorted(
        [(content_id("one"), "one", None), ("k1", "two", '{"tag": "x"}'), ("k2", "three", '{"tag": "x"}')]
    )
    named = read(pairs, corpus=str(more), corpus_columns=CorpusColumns(doc_id=None, title="tag", text="body"))
    assert content_id("x two") in named.passages.column("doc_id").to_pylist()


# ---------------------------------------------------------------- data sets


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()


@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize("kind", ["saved", "saved splits", "folder of files"])
def test_data_sets_on_disk(tmp_path, kind):
    rows, folder = datasets.Dataset.from_list(ROWS), tmp_path / "set"
    if kind == "saved":
        rows.save_to_disk(folder)
    elif kind == "saved splits":
        datasets.DatasetDict({"train": rows, "test": rows.select([2])}).save_to_disk(folder)
    else:
        for name, part in (("train", ROWS), ("test", ROWS[2:])):
            folder.mkdir(exist_ok=True)
            write(folder / f"{name}.jsonl", part)
    found = read(folder, columns=COLUMNS)
    assert sorted(judgments(found)) == sorted(judgments(read(write(tmp_path / "p.jsonl", ROWS), columns=COLUMNS)))
    if kind != "saved":
        assert judgments(read(folder, columns=COLUMNS, split="test")) == [("wo", "hier\nund dort", 1)]
        with pytest.raises(UserError, match="split dev: cannot load"):
            read(folder, columns=COLUMNS, split="dev")


# ---------------------------------------------------------------- rows in = kept + dropped

KEY = st.sampled_from("abcde")
PASSAGE = KEY.map(lambda key: RawPassage(key, "", "" if key == "e" else f"text {key}", None, f"p:{key}"))
QUERY = KEY.map(lambda key: RawQuery(key, " " if key == "e" else f"text {key}", None, f"q:{key}"))
QREL = st.tuples(st.sampled_from("abcdef"), st.sampled_from("abcdef")).map(
    lambda key: RawQrel(*key, (ord(key[0]) + ord(key[1])) % 3, "r")
)

# One row of each kind that is surely kept, since a job of nothing is an error.
GOOD = (RawPassage("z", "", "z", None, "p"), RawQuery("z", "z", None, "q"), RawQrel("z", "z", 2, "r"))
PAIRS = st.lists(
    st.builds(RawPair, QUERY, st.lists(PASSAGE, max_size=3), st.lists(PASSAGE, max_size=3)), max_size=12
).map(lambda pairs: [*pairs, RawPair(GOOD[1], [GOOD[0]], [])])


def counted(source: Source, relevant_from: int = 1) -> dict[str, tuple[int, int]]:
    """Rows kept and rows dropped of each kind."""
    found = corpus.run(source, relevant_from)
    kept = {"passage": found.passages, "query": found.queries, "qrel": found.qrels}
    kinds = found.drops.column("kind").to_pylist()
    assert all(found.drops.column("reason").to_pylist())
    assert sum(corpus.count(found)["dropped"].values()) == len(kinds)
    return {kind: (table.num_rows, kinds.count(kind)) for kind, table in kept.items()}


@given(st.lists(PASSAGE, max_size=12), st.lists(QUERY, max_size=12), st.lists(QREL, max_size=30), st.integers(1, 2))
def test_no_row_of_a_beir_folder_vanishes(passages, queries, qrels, relevant_from):
    passages, queries, qrels = ([*rows, good] for rows, good in zip((passages, queries, qrels), GOOD, strict=True))
    source = Source(passages=iter(passages), queries=iter(queries), qrels=iter(qrels))
    found = counted(source, relevant_from)
    assert {kind: sum(both) for kind, both in found.items()} == {
        "passage": len(passages),
        "query": len(queries),
        "qrel": len(qrels),
    }


@given(PAIRS)
def test_no_judgment_of_a_pairs_file_vanishes(pairs):
    kept, dropped = counted(Source(pairs=iter(pairs)))["qrel"]
    assert kept + dropped == sum(len(pair.positives) + len(pair.negatives) for pair in pairs)


@given(PAIRS)
def test_a_pair_named_as_positive_anywhere_is_positive(pairs):
    said = {(p.query.query_id, d.doc_id) for p in pairs for d in p.positives if p.query.text.strip() and d.text}
    found = corpus.run(Source(pairs=iter(pairs)), 1)
    assert {(r["query_id"], r["doc_id"]) for r in found.qrels.to_pylist() if r["relevance"] == 1} == said
