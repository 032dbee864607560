"""Training files: which rows a job's decisions become, in which files, on which scale."""

from __future__ import annotations

import base64
import csv
import gzip
import json
import os
import subprocess
import sys
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from miner import exporters
from miner.config import Export
from miner.exporters import files, scores, split
from miner.records import DECISIONS, OUTCOMES, POSITIVES
from miner.stages import export


@dataclass
class World:
    """Passages (id, title, text), the corpus first; queries with (passage, score, teacher) of each side."""

    passages: list[tuple[str, str, str]]
    queries: list[tuple[str, str, list[tuple[int, float, float | None]], list[tuple[int, float, float | None]]]]
    written: int = 0  # of the passages, how many at the end were generated
    relevance: dict[tuple[int, int], int] = field(default_factory=dict)

    def text(self, row: int) -> str:
        _, title, text = self.passages[row]
        return f"{title} {text}" if title else text

    def parts(self, size: int = 2) -> list[export.Part]:
        return [self._part(range(a, min(a + size, len(self.queries)))) for a in range(0, len(self.queries), size)]

    def _part(self, numbers: range) -> export.Part:
        decided, positives, became = [], [], []
        for number in numbers:
            query_id, _, pos, neg = self.queries[number]
            for row, score, teacher in pos:
                grade = self.relevance.get((number, row), 1)
                known = {"query_id": query_id, "doc_id": self.passages[row][0], "relevance": grade}
                positives.append({**known, "score": score, "teacher_score": teacher})
            for slot, (row, score, teacher) in enumerate(neg, start=1):
                known = {"query_id": query_id, "doc_id": self.passages[row][0], "source": "mined", "slot": slot}
                decided.append(
                    {**known, "retriever": "dense", "rank": slot, "score": score, "teacher_score": teacher}
                    | {"kept": True, "reason": ""}
                )
            became.append({"query_id": query_id, "positives": len(pos), "negatives": len(neg), "reason": ""})
        decided.reverse()  # slots give the order, not the table
        return export.Part(
            pa.Table.from_pylist(decided, DECISIONS),
            pa.Table.from_pylist(became, OUTCOMES),
            pa.Table.from_pylist(positives, POSITIVES),
        )

    def texts(self) -> export.Texts:
        rows = [{"doc_id": i, "title": title, "text": text} for i, title, text in self.passages]
        schema = pa.schema([(name, pa.large_string()) for name in ("doc_id", "title", "text")])
        cut = len(rows) - self.written
        corpus, written = (pa.Table.from_pylist(some, schema) for some in (rows[:cut], rows[cut:]))
        return export.Texts({q[0]: q[1] for q in self.queries}, exporters.Passages(corpus, written))


KEYS: export.Keys = {"judgments": {}, "synthetic": {}}


def write(name: str, world: World, folder: Path, wanted: int = 7, dev: list[str] | None = None, **options: Any) -> dict:
    """The counts; like the export step, in a few lines."""
    settings, texts, parts = (
        Export(formats=[name], **options),
        world.texts(),
        world.parts(2 if len(world.queries) < 99 else 999),
    )
    rules = export.Rules(settings, keys=KEYS)
    found = scores.survey(export.run(parts, texts, rules))
    rules = rules._replace(
        scale=found.scale(settings.score_scale), dev=None if dev is None else pa.array(dev, "large_string")
    )
    splits = {"train": lambda: export.run(parts, texts, rules)}
    if dev is not None:
        splits["dev"] = lambda: export.run(parts, texts, rules._replace(held_out=True))
    plan = exporters.Plan(splits, texts.passages, folder, settings, wanted, found.taught)
    return exporters.get(name)(name, plan).counts


def jsonl(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1]]


def rows(path: Path) -> list[dict]:
    return pq.read_table(path).to_pylist()


# Query a: two positives, three negatives; b: one of each. Scores are halves and quarters: exact in float32.
SMALL = World(
    [
        ("p1", "T", "one"),
        ("p2", "", "two"),
        ("n1", "", "\u2028 \x00 \U0001f600"),
        ("n2", "U", "x\ny\r"),
        ("n3", "", "word " * 200_000),
        ("s1", "", "written"),
    ],
    [
        ("a", "query a", [(0, 0.75, 4.0), (1, 0.5, 2.0)], [(2, 0.5, 1.0), (3, 0.25, -1.0), (5, 0.125, -2.0)]),
        ("b", "query b", [(1, 0.5, 3.0)], [(4, 0.25, 0.0)]),
    ],
    written=1,
)
ONE, TWO, N1, N2, N3, S1 = (SMALL.text(i) for i in range(6))
ALL = list(exporters.FORMATS)


@pytest.fixture(autouse=True)
def quiet():
    datasets.disable_progress_bars()


# ---------------------------------------------------------------- FlagEmbedding


def test_flagembedding_rows_have_exactly_the_keys_that_its_loader_knows(tmp_path):
    assert write("flagembedding", SMALL, tmp_path, prompt="p: ") == {"rows": 2}
    first, second = jsonl(tmp_path / "flagembedding.jsonl")
    expected = {"query": "query a", "pos": [ONE, TWO], "neg": [N1, N2, S1]}
    expected |= {"pos_scores": [0.75, 0.5], "neg_scores": [0.5, 0.25, 0.125], "prompt": "p: ", "type": "normal"}
    assert first == expected
    assert list(first) == list(expected)
    assert second["neg"] == [N3]


def test_scores_of_one_and_zero_are_floats(tmp_path):
    """1 and 0 would be integers to the loader, and files of different types cannot be put together."""
    world = World(SMALL.passages, [("q", "?", [(0, 1.0, None)], [(1, 0.0, None)])])
    write("flagembedding", world, tmp_path)
    assert '"pos_scores":[1.0],"neg_scores":[0.0]' in (tmp_path / "flagembedding.jsonl").read_text()


def test_the_reranker_file_has_no_prompt(tmp_path):
    """FlagEmbedding's LLM reranker would take an empty one in place of its question."""
    write("flagembedding-reranker", SMALL, tmp_path)
    row = jsonl(tmp_path / "flagembedding-reranker.jsonl")[0]
    assert list(row) == ["query", "pos", "neg", "pos_scores", "neg_scores"]


@pytest.mark.parametrize("taught", [True, False])
def test_m3_has_the_teachers_logits_where_all_have_one(tmp_path, taught):
    world = SMALL if taught else World(SMALL.passages, [(*SMALL.queries[0][:3], [(2, 0.5, None)])])
    write("flagembedding-m3", world, tmp_path, scores=False)
    row = jsonl(tmp_path / "flagembedding-m3.jsonl")[0]
    assert row["pos_scores"] == ([4.0, 2.0] if taught else [0.75, 0.5])
    assert row["neg_scores"] == ([1.0, -1.0, -2.0] if taught else [0.5])


# ---------------------------------------------------------------- sentence-transformers


def test_triplets_are_all_pairs_of_positives_and_negatives(tmp_path):
    assert write("st-triplet", SMALL, tmp_path) == {"rows": 2 * 3 + 1}
    found = rows(tmp_path / "st-triplet.parquet")
    assert [(r["positive"], r["negative"]) for r in found[:6]] == [(p, n) for p in (ONE, TWO) for n in (N1, N2, S1)]
    assert found[4]["scores"] == [0.5, 0.25]
    write("st-triplet", SMALL, tmp_path, scores=False)
    assert list(rows(tmp_path / "st-triplet.parquet")[0]) == ["anchor", "positive", "negative"]


def test_ntuples_have_one_width_and_count_the_queries_that_fall_short(tmp_path):
    counts = write("st-ntuple", SMALL, tmp_path, ntuple_negatives=2)
    assert counts == {"rows": 2, "queries_with_too_few_negatives": 1}
    common = {"anchor": "query a", "negative_1": N1, "negative_2": N2}
    assert rows(tmp_path / "st-ntuple.parquet") == [
        common | {"positive": ONE, "scores": [0.75, 0.5, 0.25]},
        common | {"positive": TWO, "scores": [0.5, 0.5, 0.25]},
    ]


@pytest.mark.parametrize(("wanted", "width"), [(2, 2), (4, 4), (7, 4)])
def test_ntuples_are_as_wide_as_mining_wants_but_at_most_four(tmp_path, wanted, width):
    write("st-ntuple", SMALL, tmp_path, wanted)
    names = pq.read_schema(tmp_path / "st-ntuple.parquet").names
    assert names == ["anchor", "positive", *[f"negative_{i + 1}" for i in range(width)], "scores"]


def test_labelled_forms_have_labels_and_scored_forms_scores(tmp_path):
    for name in ("st-labeled-pair", "st-labeled-list", "st-scored-pair", "st-scored-list"):
        write(name, SMALL, tmp_path)
    items = [ONE, TWO, N1, N2, S1]
    pairs = rows(tmp_path / "st-labeled-pair.parquet")
    assert [(r["anchor"], r["positive"], r["label"]) for r in pairs[:5]] == [
        ("query a", text, int(text in (ONE, TWO))) for text in items
    ]
    assert rows(tmp_path / "st-labeled-list.parquet")[0] == {
        "anchor": "query a",
        "positive": items,
        "labels": [1, 1, 0, 0, 0],
    }
    assert [r["score"] for r in rows(tmp_path / "st-scored-pair.parquet")] == [0.75, 0.5, 0.5, 0.25, 0.125, 0.5, 0.25]
    assert rows(tmp_path / "st-scored-list.parquet")[1] == {
        "anchor": "query b",
        "positive": [TWO, N3],
        "scores": [0.5, 0.25],
    }


# ---------------------------------------------------------------- several positives


@pytest.mark.parametrize(("policy", "expected"), [("together", [2, 1]), ("each", [1, 1, 1]), ("sample", [1, 1])])
def test_positives_stand_together_or_apart(tmp_path, policy, expected):
    for name in ("flagembedding", "tevatron-legacy", "st-labeled-list"):
        write(name, SMALL, tmp_path, positives=policy)
    assert [len(row["pos"]) for row in jsonl(tmp_path / "flagembedding.jsonl")] == expected
    assert [len(r["positive_passages"]) for r in jsonl(tmp_path / "tevatron-legacy.jsonl")] == expected
    assert [sum(r["labels"]) for r in rows(tmp_path / "st-labeled-list.parquet")] == expected


def test_a_sampled_positive_depends_on_the_query_and_the_seed_alone(tmp_path):
    world = World(SMALL.passages, [(f"q{i}", "?", [(0, 0.5, 0.0), (1, 0.5, 0.0)], [(2, 0.5, 0.0)]) for i in range(200)])

    def drawn(world: World, seed: int) -> dict[str, int]:
        rules = export.Rules(Export(positives="sample"), seed)
        found = {}
        for block in export.run(world.parts(), world.texts(), rules):
            found |= zip(block.ids.to_pylist(), block.positives.row.tolist(), strict=True)
        return found

    one = drawn(world, 1)
    assert 60 < sum(one.values()) < 140
    assert drawn(World(world.passages, world.queries[100:]), 1).items() <= one.items()
    assert drawn(world, 2) != one


def test_positives_come_best_first_and_negatives_by_slot(tmp_path):
    world = World(SMALL.passages, [("q", "?", [(i, s, 0.0) for i, s in enumerate((0.75, 0.5, 0.5))], [(3, 0.1, 0.0)])])
    world.relevance = {(0, 2): 2}
    write("flagembedding", world, tmp_path)
    assert jsonl(tmp_path / "flagembedding.jsonl")[0]["pos"] == [N1, ONE, TWO], "by relevance, then score"


def test_max_negatives_keeps_the_first_slots(tmp_path):
    write("flagembedding", SMALL, tmp_path, max_negatives=2)
    assert jsonl(tmp_path / "flagembedding.jsonl")[0]["neg"] == [N1, N2]


# ---------------------------------------------------------------- scales


def exported(world: World, tmp_path: Path, **options: Any) -> list[list[float]]:
    write("flagembedding", world, tmp_path, **options)
    return [row["pos_scores"] + row["neg_scores"] for row in jsonl(tmp_path / "flagembedding.jsonl")]


def test_scores_are_the_retrievers_or_the_teachers_on_a_chosen_scale(tmp_path):
    assert exported(SMALL, tmp_path)[0] == [0.75, 0.5, 0.5, 0.25, 0.125]
    assert exported(SMALL, tmp_path, score_of="teacher")[0] == [4.0, 2.0, 1.0, -1.0, -2.0]
    logistic = [1 / (1 + np.exp(-x)) for x in (4.0, 2.0, 1.0, -1.0, -2.0)]
    found = exported(SMALL, tmp_path, score_of="teacher", score_scale="sigmoid")[0]
    assert found == pytest.approx(logistic, abs=1e-6)
    span = 0.75 - 0.125
    expected = [1.0, (0.5 - 0.125) / span, (0.5 - 0.125) / span, (0.25 - 0.125) / span, 0.0]
    assert exported(SMALL, tmp_path, score_scale="minmax")[0] == pytest.approx(expected, abs=1e-6)


def test_a_scale_bears_extreme_and_equal_scores():
    with np.errstate(all="raise"):
        assert scores.Scale("sigmoid").apply(np.array([-1e4, 0.0, 1e4])).tolist() == [0.0, 0.5, 1.0]
    assert scores.Scale("minmax", 0.5, 0.5).apply(np.array([0.5])).tolist() == [0.0]


def test_a_passage_without_teacher_score_is_left_out_and_counted(tmp_path):
    pos, neg = [(0, 0.5, 1.0)], [(2, 0.5, None), (3, 0.5, 2.0)]
    world = World(SMALL.passages, [("a", "?", pos, neg), ("b", "?", pos, neg[:1]), ("c", "?", [(0, 0.5, None)], neg)])
    rules = export.Rules(Export(score_of="teacher"))
    found = scores.survey(export.run(world.parts(), world.texts(), rules))
    # The second of a's negatives stays; b has none left, c no positive.
    assert (found.queries, found.positives, found.negatives, found.taught) == (1, 1, 1, True)
    assert found.lost == {"passages_without_teacher_score": 4, "queries_without_teacher_scores": 2}
    assert exported(world, tmp_path, score_of="teacher") == [[1.0, 2.0]]


def test_the_survey_says_how_flat_a_softmax_is():
    world = World(SMALL.passages, [("a", "?", [(0, 0.75, None)], [(1, 0.25, None)])])
    found = scores.survey(export.run(world.parts(), world.texts(), export.Rules(Export())))
    # Two scores half a unit apart: standard deviation 0.25, weights 1 / (1 + e^-0.5) and 1 / (1 + e^-(0.5 / 0.25)).
    assert (found.spread, found.low, found.high) == (0.25, 0.25, 0.75)
    assert found.top == pytest.approx(1 / (1 + np.exp(-0.5)))
    assert found.top_advised == pytest.approx(1 / (1 + np.exp(-0.5 / 0.25)))
    assert not found.taught


# ---------------------------------------------------------------- files


@pytest.mark.parametrize("size", [1, 2, 3, 100])
def test_batches_do_not_show_in_the_rows(tmp_path, monkeypatch, size):
    monkeypatch.setattr(files, "BATCH", size)
    monkeypatch.setattr(exporters, "ITEMS", size)
    for name in ("st-triplet", "st-ntuple", "st-labeled-pair", "st-labeled-list", "parquet"):
        write(name, SMALL, tmp_path / "cut", ntuple_negatives=1)
    monkeypatch.undo()
    for name in ("st-triplet", "st-ntuple", "st-labeled-pair", "st-labeled-list", "parquet"):
        write(name, SMALL, tmp_path / "whole", ntuple_negatives=1)
    for path in (tmp_path / "whole").iterdir():
        assert rows(tmp_path / "cut" / path.name) == rows(path)


def test_a_group_of_rows_has_the_size_that_bounds_memory(tmp_path):
    many = World(SMALL.passages[:2], [(f"q{i:05}", "?", [(0, 0.5, 0.0)], [(1, 0.5, 0.0)]) for i in range(5000)])
    write("st-triplet", many, tmp_path)
    file = pq.ParquetFile(tmp_path / "st-triplet.parquet")
    assert [file.metadata.row_group(i).num_rows for i in range(2)] == [4096, 5000 - 4096]


@pytest.mark.parametrize("limit", [1, 2, 3, 7, 50])
def test_shards_hold_all_rows_in_order(tmp_path, limit):
    for name, kind in (("st-triplet", "parquet"), ("flagembedding", "jsonl")):
        write(name, SMALL, tmp_path / "one")
        counts = write(name, SMALL, tmp_path / "many", rows_per_shard=limit)
        read = rows if kind == "parquet" else jsonl
        parts = [read(path) for path in sorted((tmp_path / "many" / name).glob(f"*.{kind}"))]
        assert [row for part in parts for row in part] == read(tmp_path / "one" / f"{name}.{kind}")
        assert {len(part) for part in parts[:-1]} <= {limit}
        assert len(parts) == -(-counts["rows"] // limit)


@pytest.mark.parametrize("packed", ["none", "zstd", "gzip"])
def test_what_a_loader_can_unpack_is_packed(tmp_path, packed):
    for name in ("tevatron-legacy", "st-triplet"):
        write(name, SMALL, tmp_path, compression=packed)
    (path,) = tmp_path.glob("tevatron-legacy*")
    assert path.name == "tevatron-legacy.jsonl" + {"zstd": ".zst", "gzip": ".gz"}.get(packed, "")
    raw = path.read_bytes()
    text = {"none": bytes, "gzip": gzip.decompress}.get(
        packed, lambda b: pa.input_stream(path, compression="zstd").read()
    )
    write("tevatron-legacy", SMALL, tmp_path / "plain")
    assert text(raw) == (tmp_path / "plain/tevatron-legacy.jsonl").read_bytes()
    codec = pq.ParquetFile(tmp_path / "st-triplet.parquet").metadata.row_group(0).column(0).compression
    assert codec == {"none": "UNCOMPRESSED"}.get(packed, packed.upper())


@pytest.mark.parametrize("options", [{}, {"rows_per_shard": 1}, {"dev": ["b"]}])
@pytest.mark.parametrize("name", ALL)
def test_the_same_examples_give_the_same_bytes(tmp_path, name, options):
    found = []
    for folder in (tmp_path / "1", tmp_path / "2"):
        write(name, SMALL, folder, **options)
        found.append({p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()})
    assert found[0] == found[1]
    assert found[0]


@pytest.mark.parametrize("name", ALL)
def test_no_query_makes_files_without_rows(tmp_path, name):
    write(name, World(SMALL.passages, []), tmp_path)
    assert [p for p in tmp_path.rglob("*") if p.is_file()]


@pytest.mark.parametrize("name", ALL)
def test_held_out_queries_are_in_dev_files_alone(tmp_path, name):
    counts = write(name, SMALL, tmp_path, dev=["b"], ntuple_negatives=1)
    assert counts["rows"] > 0
    assert counts["dev_rows"] > 0
    places = {"tevatron": ("tevatron/train.jsonl", "tevatron/dev.jsonl")}
    places["beir"] = ("beir/qrels/train.tsv", "beir/qrels/dev.tsv")
    stem = {"parquet": "examples"}.get(name, name)
    ending = "jsonl" if name.startswith(("flag", "tev")) else "parquet"
    train, dev = (tmp_path / p for p in places.get(name, (f"{stem}.{ending}", f"dev/{stem}.{ending}")))
    read = rows if ending == "parquet" and name != "beir" else lambda path: path.read_text().split("\n")[:-1]
    if name == "beir":
        assert {line.split("\t")[0] for line in read(train)[1:]} == {"a"}
        assert {line.split("\t")[0] for line in read(dev)[1:]} == {"b"}
    else:
        assert not any("query b" in str(row) for row in read(train))
        assert not any("query a" in str(row) for row in read(dev))


# ---------------------------------------------------------------- Tevatron, BEIR, plain


def test_tevatron_has_ids_and_the_passages_that_they_name(tmp_path):
    assert write("tevatron", SMALL, tmp_path) == {"rows": 2, "passages": 6}
    assert jsonl(tmp_path / "tevatron/train.jsonl")[0] == {
        "query_id": "a",
        "query_text": "query a",
        "positive_document_ids": ["p1", "p2"],
        "negative_document_ids": ["n1", "n2", "s1"],
    }
    corpus = {row["docid"]: row["text"] for row in jsonl(tmp_path / "tevatron-corpus/corpus.jsonl")}
    assert corpus == {SMALL.passages[i][0]: SMALL.text(i) for i in range(6)}, "title in text: it trains on text alone"


def test_older_tevatron_passages_all_have_a_title_or_none_has(tmp_path):
    write("tevatron-legacy", SMALL, tmp_path)
    row = jsonl(tmp_path / "tevatron-legacy.jsonl")[0]
    assert row["positive_passages"] == [
        {"docid": "p1", "title": "T", "text": "one"},
        {"docid": "p2", "title": "", "text": "two"},
    ]
    untitled = World([(i, "", text) for i, _, text in SMALL.passages], SMALL.queries, written=1)
    write("tevatron-legacy", untitled, tmp_path)
    assert jsonl(tmp_path / "tevatron-legacy.jsonl")[0]["positive_passages"][0] == {"docid": "p1", "text": "one"}


def test_a_beir_folder_has_the_corpus_and_no_generated_passage(tmp_path):
    counts = write("beir", SMALL, tmp_path)
    assert counts == {"passages": 5, "queries": 2, "rows": 2 + 2 + 1 + 1, "synthetic_left_out": 1}
    assert jsonl(tmp_path / "beir/corpus.jsonl")[0] == {"_id": "p1", "title": "T", "text": "one"}
    with (tmp_path / "beir/qrels/train.tsv").open(newline="") as handle:
        table = list(csv.reader(handle, delimiter="\t"))
    assert table[0] == ["query-id", "corpus-id", "score"]
    assert table[1:] == [
        ["a", "p1", "1"],
        ["a", "p2", "1"],
        ["a", "n1", "0"],
        ["a", "n2", "0"],
        ["b", "p2", "1"],
        ["b", "n3", "0"],
    ]


def test_the_plain_form_says_where_each_row_comes_from(tmp_path):
    assert write("parquet", SMALL, tmp_path, score_scale="minmax") == {"rows": 7}
    found = rows(tmp_path / "examples.parquet")
    assert [(r["doc_id"], r["label"], r["slot"], r["source"]) for r in found[:3]] == [
        ("p1", 1, None, "positive"),
        ("p2", 1, None, "positive"),
        ("n1", 0, 1, "mined"),
    ]
    assert (found[0]["score"], found[0]["exported_score"], found[0]["teacher_score"]) == (0.75, 1.0, 4.0)
    assert (found[2]["retriever"], found[2]["rank"]) == ("dense", 1)


# ---------------------------------------------------------------- held-out clusters


def test_like_queries_and_shared_positives_are_one_cluster():
    texts = [
        "what is the capital city of the french republic today",
        "What is the capital city of the French Republic, today?",  # the same words
        "what is the capital city of the french republic right today",  # 8 shared of 9: 0.89
        "how do i bake bread",
        "bread, how do i bake?",  # the same set
        "who wrote faust",
        "which poet wrote faust",  # shares a positive with the last
        "???",
        "!!!",
    ]
    owner, positive = np.arange(9), np.array([0, 1, 2, 3, 4, 5, 5, 7, 8])
    found = split.clusters(texts, owner, positive).tolist()
    groups = {frozenset(i for i, c in enumerate(found) if c == name) for name in found}
    assert groups == {frozenset(g) for g in ((0, 1, 2), (3, 4), (5, 6), (7,), (8,))}


def test_like_sets_are_found_as_by_comparing_all():
    rng = np.random.default_rng(3)
    vocabulary = [f"w{i}" for i in range(14)]
    texts = [" ".join(rng.choice(vocabulary, rng.integers(1, 11), replace=False)) for _ in range(250)]
    sets = [set(text.split()) for text in texts]
    found = split.clusters(texts, np.arange(250), np.arange(250))
    parent = list(range(250))

    def root(i: int) -> int:
        while parent[i] != i:
            i = parent[i]
        return i

    for i, a in enumerate(sets):
        for j, b in enumerate(sets[:i]):
            if len(a & b) >= 0.8 * len(a | b):
                parent[root(i)] = root(j)
    roots = np.array([root(i) for i in range(250)])
    assert ((found[:, None] == found) == (roots[:, None] == roots)).all()
    assert 1 < len(set(roots.tolist())) < 250


def test_whole_clusters_are_held_out_up_to_the_share():
    ids = [f"q{i}" for i in range(100)]
    cluster = np.repeat(np.arange(40), [30, *[2] * 31, *[1] * 8])
    out = split.held_out(ids, cluster, 0.2, 1)
    assert out.sum() == 20
    assert not out[:30].any(), "a cluster above the share stays"
    assert len(set(cluster[out]) & set(cluster[~out])) == 0
    assert (split.held_out(ids, cluster, 0.2, 2) != out).any()
    assert not split.held_out(ids, np.zeros(100, np.int64), 0.5, 1).any()
    assert split.held_out([], np.empty(0, np.int64), 0.5, 1).tolist() == []


# ---------------------------------------------------------------- settings, provenance


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"max_negatives": 2, "ntuple_negatives": 3}, "max_negatives 2 is below ntuple_negatives 3"),
        ({"score_scale": "sigmoid"}, "set score_of: teacher"),
        ({"formats": ["flagembedding", "beir"], "compression": "gzip"}, "fits none of the formats"),
    ],
)
def test_contradictions_are_told(options, words):
    with pytest.raises(ValidationError, match=words):
        Export(**options)


def test_the_settings_name_every_exporter():
    assert set(Export(formats=ALL).formats) == set(ALL)


def test_provenance_names_the_line_and_the_answer_behind_each_negative():
    keys = {"judgments": {("a", "n1"): "key-1"}, "synthetic": {("a", "s1"): "key-2"}}
    blocks = export.run(SMALL.parts(1), SMALL.texts(), export.Rules(Export(), keys=keys))
    found = [row for table in export.provenance(blocks, "train") for row in table.to_pylist()]
    assert [(r["row"], r["query_id"], r["slot"], r["doc_id"]) for r in found] == [
        (0, "a", 1, "n1"),
        (0, "a", 2, "n2"),
        (0, "a", 3, "s1"),
        (1, "b", 1, "n3"),
    ]
    assert [r["judgment_key"] for r in found] == ["key-1", None, None, None]
    assert [r["generation_key"] for r in found] == [None, None, "key-2", None]
    assert {r["split"] for r in found} == {"train"}


def test_queries_set_aside_are_in_no_block():
    part = SMALL.parts(2)[0]
    became = part.outcomes.to_pylist()
    became[0]["reason"] = "too_few_negatives"
    part = part._replace(outcomes=pa.Table.from_pylist(became, OUTCOMES))
    (block,) = export.run([part], SMALL.texts(), export.Rules(Export()))
    assert block.ids.to_pylist() == ["b"]
    assert block.negatives.row.tolist() == [4]


# ---------------------------------------------------------------- pushed to a hub


class PushHub:
    """A hub on the loopback interface that takes data sets: enough of its API for `upload_folder` of small files."""

    def __init__(self, status: int = 200) -> None:
        self.files: dict[str, bytes] = {}
        self.asked: list[str] = []
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                hub.asked.append(f"{self.path} {self.headers.get('Authorization')}")
                self._answer(status, hub.answer(self.path, body) if status == 200 else {"error": "no right to write"})

            def do_GET(self) -> None:
                self._answer(200, {"id": "me/toys", "sha": "0" * 40, "siblings": []})

            def _answer(self, code: int, value: Any) -> None:
                content = json.dumps(value).encode()
                self.send_response(code)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def answer(self, path: str, body: bytes) -> Any:
        if path == "/api/repos/create":
            return {"url": f"{self.url}/datasets/me/toys", "name": "me/toys", "id": "1"}
        if path.endswith("/preupload/main"):
            asked = json.loads(body)["files"]
            return {"files": [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in asked]}
        if "/commit/" in path:
            for line in body.splitlines():
                found = json.loads(line)
                if found["key"] == "file":
                    self.files[found["value"]["path"]] = base64.b64decode(found["value"]["content"])
            return {"commitUrl": f"{self.url}/datasets/me/toys/commit/0", "commitOid": "0" * 40, "commitMessage": ""}
        return {}

    def __enter__(self) -> PushHub:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


PUSH = """
import sys
from pathlib import Path
from miner.errors import UserError
from miner.exporters.hub import push
try:
    print(push(Path(sys.argv[1]), sys.argv[2], "MY_TOKEN"))
except UserError as error:
    print("UserError:", error)
"""


def pushed(folder: Path, repo: str, home: Path, **env: str) -> str:
    """What push says, in a process of its own: the library reads its environment once."""
    base = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING"))}
    base |= {"HF_HOME": str(home), "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_XET": "1", **env}
    command = [sys.executable, "-c", PUSH, str(folder), repo]
    done = subprocess.run(command, capture_output=True, text=True, env=base, timeout=100)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture
def pushable(tmp_path) -> Path:
    folder = tmp_path / "export"
    write("flagembedding", SMALL, folder)
    (folder / "README.md").write_text("# card\n")
    (folder / ".x.1.part").write_text("left over")
    return folder


def test_push_uploads_the_folder_with_its_card(tmp_path, pushable):
    with PushHub() as hub:
        assert (
            pushed(pushable, "me/toys", tmp_path, HF_ENDPOINT=hub.url, MY_TOKEN="hf_x") == f"{hub.url}/datasets/me/toys"
        )
        assert hub.files == {p.name: p.read_bytes() for p in pushable.iterdir() if p.suffix != ".part"}
        assert all(line.endswith("Bearer hf_x") for line in hub.asked)


@pytest.mark.parametrize(
    ("env", "repo", "words"),
    [
        ({}, "me/toys", "me/toys: not logged in; export MY_TOKEN, or run `hf auth login`"),
        ({"MY_TOKEN": "hf_x", "HF_HUB_OFFLINE": "1"}, "me/toys", "me/toys: HF_HUB_OFFLINE is set"),
        (
            {"MY_TOKEN": "hf_x", "HF_ENDPOINT": "http://127.0.0.1:9"},
            "me/toys",
            "me/toys: cannot reach http://127.0.0.1:9",
        ),
        ({"MY_TOKEN": "hf_x", "HF_ENDPOINT": "http://127.0.0.1:9"}, "a/b/c", "a/b/c: no repository name"),
    ],
    ids=["no login", "offline", "no network", "bad name"],
)
def test_push_says_what_is_wrong_in_one_line(tmp_path, pushable, env, repo, words):
    said = pushed(pushable, repo, tmp_path, **env)
    assert said.startswith(f"UserError: {words}")
    assert "\n" not in said


def test_push_says_what_the_hub_refused(tmp_path, pushable):
    with PushHub(403) as hub:
        said = pushed(pushable, "me/toys", tmp_path, HF_ENDPOINT=hub.url, MY_TOKEN="hf_x")
    assert said.startswith("UserError: me/toys: the hub refused (")
    assert "\n" not in said
    assert "hf_x" not in said
    (pushable / "README.md").unlink()
    assert "no export with a data card there" in pushed(pushable, "me/toys", tmp_path, MY_TOKEN="hf_x")
