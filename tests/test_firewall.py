"""firewall: nothing of an evaluation set is trained on, whatever form it comes in; and nothing else is lost."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import toy
from hypothesis import given
from hypothesis import strategies as st

from miner import config, firewall, shingles
from miner.config import Data, Firewall
from miner.errors import UserError
from miner.readers import RawPassage, RawQrel, RawQuery, Source
from miner.stages import corpus

WORDS = st.sampled_from(["red", "fox", "runs", "Red", "far", "away"])
TEXTS = st.lists(WORDS, min_size=1, max_size=8).map(" ".join)


def wall(*barred: tuple[str, str, str], **options: Any) -> firewall.Wall:
    """Of (kind, id, text) rows."""
    entry, found = Firewall(path="x", **options), firewall.Wall()
    for number, (kind, name, text) in enumerate(barred):
        found.add(firewall.Barred(((kind, name),), text, f"eval:{number}"), entry)
    return found


def refused(found: firewall.Wall, kind: str, rows: dict[str, str]) -> dict[str, tuple[str, str]]:
    told = list(firewall.Screen(found).refuse(kind, rows.keys(), rows.values()))
    assert [row.id for row in told] == [name for name in rows if name in {row.id for row in told}], "in order, once"
    return {row.id: (row.reason, row.place) for row in told}


def triples(text: str) -> set[tuple[str, ...]]:
    words = text.casefold().split()
    return {tuple(words[i : i + 3]) for i in range(len(words) - 2)} or {tuple(words)}


# ---------------------------------------------------------------- what is barred


@given(
    st.lists(st.tuples(st.sampled_from(["passage", "query"]), st.sampled_from("abcd"), TEXTS), max_size=6),
    st.dictionaries(st.sampled_from("abcdefgh"), TEXTS, max_size=8),
    st.sampled_from([None, 0.3, 0.5, 0.8, 1.0]),
    st.booleans(),
    st.sampled_from(["passage", "query"]),
)
def test_the_definitions(barred, rows, near, ids, kind):
    def reason(name: str, text: str) -> tuple[str, str] | None:
        places = {f"eval:{i}": row for i, row in enumerate(barred)}
        tests = {
            "firewall_id": lambda k, n, t: ids and (k, n) == (kind, name),
            "firewall_copy": lambda k, n, t: t.lower() == text.lower(),
            "firewall_near_duplicate": lambda k, n, t: (
                near is not None and len(triples(t) & triples(text)) / len(triples(t) | triples(text)) >= near
            ),
        }
        return next(((why, p) for why, test in tests.items() for p, row in places.items() if test(*row)), None)

    expected = {name: told for name, text in rows.items() if (told := reason(name, text))}
    assert refused(wall(*barred, near=near, ids=ids), kind, rows) == expected


def test_the_size_of_batches_changes_nothing(monkeypatch):
    barred = [("passage", f"e{i}", f"number {i} of the same words and {i % 3} others") for i in range(30)]
    rows = {f"d{i}": f"Number {i // 2} of the same words and {i % 5} others" for i in range(50)}
    whole = refused(wall(*barred, near=0.5), "passage", rows)
    assert {reason for reason, _ in whole.values()} == {"firewall_copy", "firewall_near_duplicate"}
    monkeypatch.setattr(firewall, "BATCH", 7)
    monkeypatch.setattr(firewall, "ELEMENTS", 5)
    monkeypatch.setattr(shingles, "ELEMENTS", 5)
    assert refused(wall(*barred, near=0.5), "passage", rows) == whole


def test_several_sets_each_with_its_own_threshold():
    found = wall(("passage", "a", "one two three four five six"), near=0.5)
    found.add(firewall.Barred((), "uno dos tres cuatro cinco seis", "other"), Firewall(path="x", near=1.0))
    rows = {"x": "one two three four five", "y": "uno dos tres cuatro cinco"}
    assert refused(found, "passage", rows) == {"x": ("firewall_near_duplicate", "eval:0")}


# ---------------------------------------------------------------- forms of an evaluation set


def evaluation(folder: Path) -> Path:
    """Split test judges q1 and q2; q3 is of the training split. Only d1 is relevant; d9 is in no file."""
    toy.write_jsonl(folder / "corpus.jsonl", [{"_id": f"d{i}", "title": "T", "text": f"text {i}"} for i in range(4)])
    toy.write_jsonl(folder / "queries.jsonl", [{"_id": f"q{i}", "text": f"query {i}"} for i in range(4)])
    (folder / "qrels").mkdir()
    (folder / "qrels/test.tsv").write_text("q1\td1\t1\nq1\td2\t0\nq2\td9\t2\n")
    (folder / "qrels/train.tsv").write_text("q3\td3\t1\n")
    return folder


def read(path: Path, **options: Any) -> dict[str, dict[str, str]]:
    """kind -> id -> text of all that is barred."""
    found = firewall.read([Firewall(path=str(path), **options)])
    return {kind: {name: text for name, (_, text) in ids.items()} for kind, ids in found.ids.items()}


def test_of_a_beir_folder_the_queries_of_the_split_and_what_is_relevant_to_them(tmp_path):
    folder = evaluation(tmp_path / "eval")
    expected = {"passage": {"d1": "T text 1", "d9": ""}, "query": {"q1": "query 1", "q2": "query 2"}}
    assert read(folder) == expected
    assert read(folder, split="train") == {"passage": {"d3": "T text 3"}, "query": {"q3": "query 3"}}
    for path in (folder / "corpus.jsonl", folder / "qrels/test.tsv"):
        path.with_name(path.name + ".gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()
    assert read(folder) == expected


def test_rows_of_a_file_name_what_they_have(tmp_path):
    path = tmp_path / "eval.jsonl"
    rows = [{"_id": "a", "text": "x"}, {"query_id": 7}, {"doc_id": "d", "title": "t", "text": "u"}, {"text": "only"}]
    toy.write_jsonl(path, rows)
    assert read(path) == {"passage": {"a": "x", "d": "t u"}, "query": {"a": "x", "7": ""}}
    texts = {"p": "ONLY", "q": "t u", "r": "other"}
    assert refused(firewall.read([Firewall(path=str(path))]), "passage", texts) == {
        "p": ("firewall_copy", f"{path}:4"),
        "q": ("firewall_copy", f"{path}:3"),
    }


def test_half_a_surrogate_pair_in_a_set_is_no_crash(tmp_path):
    (tmp_path / "eval.jsonl").write_text('{"text": "half \\ud83d of a pair is here"}\n')
    found = firewall.read([Firewall(path=str(tmp_path / "eval.jsonl"))])
    assert refused(found, "passage", {"a": "half \ufffd of a pair is here"}) == {}


def test_a_text_file_holds_ids_of_either_kind(tmp_path):
    (tmp_path / "ids.txt").write_text("a\n\n b c \r\n")
    assert read(tmp_path / "ids.txt") == {kind: {"a": "", "b c": ""} for kind in ("passage", "query")}


BROKEN = {
    "nothing there": (lambda f: None, {}, r"data\.firewall\.0\.path .*eval: no such file or folder"),
    "no BEIR folder": (lambda f: f.mkdir(), {}, r"data\.firewall\.0\.path .*: no folder qrels in it"),
    "no such split": (evaluation, {"split": "dev"}, r"firewall\.0\.split dev: .* the splits are test, train$"),
    "no corpus": (lambda f: (evaluation(f) / "corpus.jsonl").unlink(), {}, r"firewall\.0\.path .*: no corpus\.jsonl"),
    "no relevance": (lambda f: (evaluation(f) / "qrels/test.tsv").write_text("q1\td1\t0\n"), {}, "hold no relevance"),
    "no judgments": (lambda f: (evaluation(f) / "qrels/test.tsv").write_text(""), {}, r"test\.tsv: .* no judgments"),
    "no ids in the text": (lambda f: f.write_text("\n"), {}, "the file holds no ids"),
    "ids alone": (lambda f: f.write_text("a\n"), {"ids": False}, r"firewall\.0\.ids: false, but .* ids alone"),
}


@pytest.mark.parametrize(("make", "options", "told"), BROKEN.values(), ids=BROKEN)
def test_a_broken_set_is_told_with_its_key(tmp_path, make, options, told):
    make(tmp_path / "eval")
    with pytest.raises(UserError, match=told):
        read(tmp_path / "eval", **options)


def test_a_row_that_names_nothing_is_told(tmp_path):
    toy.write_jsonl(tmp_path / "eval.jsonl", [{"_id": "a"}, {"body": "b"}])
    with pytest.raises(UserError, match=r"eval\.jsonl:2: no _id, query_id, doc_id or text; data\.firewall\.0 needs"):
        read(tmp_path / "eval.jsonl")


# ---------------------------------------------------------------- in the corpus


def source(texts: dict[str, str], queries: dict[str, str], qrels: list) -> Source:
    return Source(
        passages=iter([RawPassage(name, "", text, None, "p") for name, text in texts.items()]),
        queries=iter([RawQuery(name, text, None, "q") for name, text in queries.items()]),
        qrels=iter([RawQrel(*key, 1, "r") for key in qrels]),
    )


def taken(found: corpus.Corpus) -> list[tuple[str, ...]]:
    return [(row["kind"], row["id"], row["reason"]) for row in found.drops.to_pylist()]


def test_what_is_barred_is_neither_passage_nor_query_nor_positive():
    rows = source({"a": "one", "b": "two", "c": "Eval  text"}, {"q": "x", "r": "y", "s": "z"}, ["qa", "qc", "rb", "sc"])
    found = corpus.run(rows, 1, firewall.Screen(wall(("query", "r", "why"), ("passage", "n", "eval text"))).refuse)
    assert found.passages.column("doc_id").to_pylist() == ["a", "b"]
    assert found.queries.column("query_id").to_pylist() == ["q"]
    assert [(row["query_id"], row["doc_id"]) for row in found.qrels.to_pylist()] == [("q", "a")]
    assert taken(found) == [
        ("passage", "c", "firewall_copy"),
        ("query", "r", "firewall_id"),
        ("qrel", "q c", "firewall_passage"),
        ("qrel", "r b", "firewall_query"),
        ("qrel", "s c", "firewall_passage"),
        ("query", "s", "no_positive"),
    ]


@given(
    st.dictionaries(st.sampled_from("abcd"), TEXTS),
    st.dictionaries(st.sampled_from("qrst"), TEXTS),
    st.lists(st.tuples(st.sampled_from("qrst"), st.sampled_from("abcd")), unique=True),
    st.lists(st.tuples(st.sampled_from(["passage", "query"]), st.sampled_from("abqr"), TEXTS), max_size=3),
)
def test_every_row_is_kept_or_dropped_with_a_reason(texts, queries, qrels, barred):
    texts, queries = {**texts, "z": "never met elsewhere"}, {**queries, "z": "nor is this one"}
    qrels = [*((q, d) for q, d in qrels if q in queries and d in texts), ("z", "z")]
    found = corpus.run(source(texts, queries, qrels), 1, firewall.Screen(wall(*barred)).refuse)
    for kind, table, before in (
        ("passage", found.passages, texts),
        ("query", found.queries, queries),
        ("qrel", found.qrels, qrels),
    ):
        assert table.num_rows + found.drops.column("kind").to_pylist().count(kind) == len(before)
    ids = {kind: {n for k, n, _ in barred if k == kind} for kind in ("passage", "query")}
    assert not ids["passage"] & {*found.passages.column("doc_id").to_pylist()}
    assert not ids["query"] & {*found.queries.column("query_id").to_pylist()}
    assert not {t.lower() for *_, t in barred} & {t.lower() for t in found.passages.column("text").to_pylist()}


@pytest.mark.parametrize(
    ("barred", "told"),
    [
        ([("passage", "a", ""), ("passage", "b", "")], "all passages of data are in the evaluation sets"),
        ([("query", "q", ""), ("query", "r", "")], "all queries of data are in the evaluation sets"),
        ([("query", "q", ""), ("passage", "b", "")], r"no query has a positive; data\.firewall took 2 qrels away"),
    ],
)
def test_a_wall_around_everything_is_told(barred, told):
    rows = source({"a": "one", "b": "two"}, {"q": "x", "r": "y"}, [("q", "a"), ("r", "b")])
    with pytest.raises(UserError, match=told):
        corpus.run(rows, 1, firewall.Screen(wall(*barred)).refuse)


def test_ids_that_stand_for_other_texts_are_doubted():
    screen = firewall.Screen(
        wall(("query", "1", "how tall is it"), ("query", "2", "who was that"), ("passage", "1", ""))
    )
    list(screen.refuse("query", ["1", "3"], ["where do they live", "what"]))
    list(screen.refuse("passage", ["1"], ["anything"]))
    assert [line.split(";")[0] for line in screen.warnings()] == [
        "data.firewall: 1 query ids of the evaluation are in data with other texts, '1' for one, and none with the same"
    ]
    list(screen.refuse("query", ["2"], ["Who was that?"]))
    assert screen.warnings() == []


# ---------------------------------------------------------------- in a job


def test_a_slip_in_a_set_is_told_and_its_path_counts_from_the_job_file(tmp_path):
    job = toy.job(tmp_path, data={"path": "data", "firewall": [{"path": "eval", "near": None}]})
    assert config.load(job).data.firewall == (Firewall(path=str(tmp_path / "eval"), near=None),)
    job = toy.job(tmp_path, data={"path": "data", "firewall": [{"path": "eval", "spilt": "dev"}]})
    with pytest.raises(UserError, match=r"unknown key data\.firewall\.0\.spilt; did you mean split\?"):
        config.load(job)


def test_no_set_leaves_the_inputs_of_the_step_as_they_were():
    assert firewall.fingerprint(Data(path="x").firewall) == {}


def test_mining_behind_a_firewall(tmp_path, miner):
    """Of the data itself two queries are the test split; another set bars a passage by its text alone."""
    job = toy.job(tmp_path, data={"path": "data", "firewall": [{"path": "data"}, {"path": "other.jsonl"}]})
    (tmp_path / "data/qrels/test.tsv").write_text("q-cat-food\tcat-food\t1\nq-owl-voice\towl-voice\t1\n")
    toy.write_jsonl(tmp_path / "other.jsonl", [{"text": "dog the DOG likes to eat meat most of all."}])
    miner("mine", job)
    dropped = json.loads((tmp_path / "job.job/stamps/corpus.json").read_text())["counts"]["dropped"]
    barred = {"cat-food", "owl-voice", "dog-food"}
    assert dropped["passage.firewall_id"] == dropped["query.firewall_id"] == 2
    assert dropped["passage.firewall_copy"] == dropped["qrel.firewall_passage"] == dropped["query.no_positive"] == 1
    for path in sorted((tmp_path / "job.job/candidates").glob("*.parquet")):
        rows = pq.read_table(path).to_pylist()
        assert not barred & {row["doc_id"] for row in rows}
        assert not {"q-cat-food", "q-owl-voice", "q-dog-food"} & {row["query_id"] for row in rows}
    assert "corpus: fresh" in miner("mine", job).stderr
    toy.write_jsonl(tmp_path / "other.jsonl", [{"text": "something else"}])
    assert "corpus: changed: data.firewall.1.files" in miner("mine", job).stderr
    (tmp_path / "other.jsonl").unlink()
    gone = miner("mine", job, check=False)
    assert gone.returncode == 2
    assert "data.firewall.1.path" in gone.stderr
