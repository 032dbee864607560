"""stages.filters and shingles against plain Python, on texts of few words, so that much is alike."""

from __future__ import annotations

import json
import math
import unicodedata
from itertools import groupby

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from miner import shingles
from miner.errors import UserError
from miner.records import PASSAGES, QUERIES
from miner.stages import filters

WORDS = st.sampled_from(["red", "fox", "runs", "Red,", "far", "away"])
TEXTS = st.lists(st.lists(WORDS, min_size=1, max_size=9).map(" ".join), min_size=1, max_size=14)
THRESHOLD = st.sampled_from([0.2, 0.5, 0.8, 1.0])


def triples(text: str) -> set[tuple[str, ...]]:
    words = [word.strip(",.") for word in text.casefold().split()]
    return {tuple(words[i : i + 3]) for i in range(len(words) - 2)} or {tuple(words)}


def jaccard(a: str, b: str) -> float:
    return len(triples(a) & triples(b)) / len(triples(a) | triples(b))


@st.composite
def lists(draw: st.DrawFn, rows: int, owners: int = 3) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(query, row) of ranked lists, then (query, row) of positives, some queries without either."""
    parts = []
    for size in (rows, 4):
        lists_ = [draw(st.lists(st.integers(0, rows - 1), unique=True, max_size=size)) for _ in range(owners)]
        pairs = [(q, r) for q, found in enumerate(lists_) for r in found]
        parts += [np.array([p[i] for p in pairs], np.int64) for i in (0, 1)]
    return tuple(parts)


# ---------------------------------------------------------------- shingles


@given(TEXTS)
def test_shingles_are_the_distinct_word_triples(texts):
    found = shingles.shingle_hashes(texts)
    assert found.sizes.tolist() == [len(triples(text)) for text in texts]
    for i, text in enumerate(texts):
        row = found.values[found.offsets[i] : found.offsets[i + 1]]
        assert (row[1:] > row[:-1]).all()
        assert row.tolist() == shingles.shingle_hashes([text]).values.tolist(), "the others do not matter"


@given(TEXTS, st.data())
def test_the_similarity_of_pairs_is_exact(texts, data):
    pair = st.tuples(*[st.integers(0, len(texts) - 1)] * 2)
    pairs = np.array(data.draw(st.lists(pair, max_size=20)), np.int64).reshape(-1, 2)
    sets = shingles.shingle_hashes(texts)
    found = shingles.pair_jaccard(sets, pairs[:, 0], sets, pairs[:, 1])
    assert found.tolist() == [jaccard(texts[a], texts[b]) for a, b in pairs]


def test_the_size_of_batches_changes_nothing(monkeypatch):
    texts = [f"a text of {i} and {i // 2} words {'and more ' * (i % 5)}" for i in range(50)]
    pairs = np.arange(50), np.arange(50)[::-1]
    one = shingles.shingle_hashes(texts)
    same = shingles.pair_jaccard(one, pairs[0], one, pairs[1])
    for name, value in (("BATCH", 7), ("ELEMENTS", 10)):
        monkeypatch.setattr(shingles, name, value)
    two = shingles.shingle_hashes(iter(texts))
    assert [a.tolist() for a in one] == [a.tolist() for a in two]
    assert shingles.pair_jaccard(two, pairs[0], two, pairs[1]).tolist() == same.tolist()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("The  “Fox”, ran.", ["the", "fox", "ran"]),
        ("a state-of-the-art C++", ["a", "state-of-the-art", "c"]),
        ("東京タワー。高い", ["東京タ", "京タワ", "タワー", "高い"]),
        ("新iPhone 発", ["新", "iphone", "発"]),
        ("हिन्दी में", ["हिन्दी", "में"]),
        ("?!", []),
    ],
)
def test_words(text, words):
    assert shingles.words(text) == words


def test_short_texts_are_one_shingle_and_never_none():
    found = shingles.shingle_hashes(["a b", "b a", "A, b", "a", "?!", "…", "a b a"])
    assert found.sizes.tolist() == [1] * 7
    assert len(set(found.values.tolist())) == 6
    assert shingles.shingle_hashes([]).offsets.tolist() == [0]


# ---------------------------------------------------------------- near-duplicates


def greedy(query, row, pos_query, pos_row, like) -> tuple[list[bool], list[bool]]:
    of_positive, of_better, kept = [], [], []
    for q, r in zip(query.tolist(), row.tolist(), strict=True):
        known = [p for own, p in zip(pos_query.tolist(), pos_row.tolist(), strict=True) if own == q]
        of_positive.append(any(like(r, p) for p in known))
        of_better.append(not of_positive[-1] and any(like(r, k) for own, k in kept if own == q))
        if not of_positive[-1] and not of_better[-1]:
            kept.append((q, r))
    return of_positive, of_better


@given(TEXTS, THRESHOLD, st.data())
def test_near_duplicates_by_words(texts, threshold, data):
    parts = data.draw(lists(len(texts)))
    measure = filters.jaccard(lambda rows: [texts[r] for r in rows], threshold)
    found = filters.near_duplicates(*parts, measure, threshold)
    expected = greedy(*parts, lambda a, b: jaccard(texts[a], texts[b]) >= threshold)
    assert tuple(part.tolist() for part in found) == expected


@given(st.lists(st.tuples(*[st.integers(-2, 2)] * 3), min_size=1, max_size=12), st.sampled_from([0.5, 1.0]), st.data())
def test_near_duplicates_by_vectors(vectors, threshold, data):
    def like(a: int, b: int) -> bool:
        u, v = vectors[a], vectors[b]
        norm = math.hypot(*u) * math.hypot(*v)
        return norm > 0 and round(sum(x * y for x, y in zip(u, v, strict=True)) / norm, 5) >= threshold

    parts = data.draw(lists(len(vectors)))
    found = filters.near_duplicates(*parts, filters.cosine(np.array(vectors, np.float32)), threshold)
    assert tuple(part.tolist() for part in found) == greedy(*parts, like)


def test_blocks_of_rows_change_nothing(monkeypatch):
    rng = np.random.default_rng(3)
    texts = [" ".join(rng.choice(["a", "b", "c"], 6)) for _ in range(60)]
    query, row = np.repeat(np.arange(5), 60), np.concatenate([rng.permutation(60) for _ in range(5)])
    pos_query, pos_row = np.repeat(np.arange(5), 9)[::-1], np.concatenate([rng.permutation(60)[:9] for _ in range(5)])
    measure = filters.jaccard(lambda rows: [texts[r] for r in rows], 0.5)
    whole = filters.near_duplicates(query, row, pos_query, pos_row, measure, 0.5)
    assert whole[0].any()
    assert whole[1].any()
    monkeypatch.setattr(filters, "ROWS", 70)
    monkeypatch.setattr(filters, "SIDE", 7)
    small = filters.near_duplicates(query, row, pos_query, pos_row, measure, 0.5)
    assert [part.tolist() for part in small] == [part.tolist() for part in whole]


def test_of_a_chain_only_the_middle_is_refused():
    texts = ["a b c d e", "b c d e f", "c d e f g"]
    none = np.empty(0, np.int64)
    measure = filters.jaccard(lambda rows: [texts[r] for r in rows], 0.5)
    found = filters.near_duplicates(np.zeros(3, np.int64), np.arange(3), none, none, measure, 0.5)
    assert found[1].tolist() == [False, True, False]


# ---------------------------------------------------------------- twins and siblings


@given(st.data())
def test_positives_of_twins(data):
    vectors = data.draw(st.lists(st.tuples(*[st.integers(-2, 2)] * 2), min_size=3, max_size=3))
    query, row, pos_query, pos_row = data.draw(lists(5))
    threshold = data.draw(st.sampled_from([0.5, 1.0]))
    positives = np.stack([pos_query, pos_row, np.ones_like(pos_row)], axis=1).reshape(-1, 3)
    found = filters.positive_of_twin(query, row, positives, np.array(vectors, np.float32), threshold)

    def like(a: int, b: int) -> bool:
        norm = math.hypot(*vectors[a]) * math.hypot(*vectors[b])
        return norm > 0 and round(np.dot(vectors[a], vectors[b]) / norm, 5) >= threshold

    owners = list(zip(pos_query.tolist(), pos_row.tolist(), strict=True))
    expected = [
        any(owned == r and o != q and like(q, o) for o, owned in owners)
        for q, r in zip(query.tolist(), row.tolist(), strict=True)
    ]
    assert found.tolist() == expected


def test_a_passage_that_is_everybodys_positive_is_no_burden(monkeypatch):
    monkeypatch.setattr(filters, "PAIRS", 64)
    size = 1000
    vectors = np.eye(2, dtype=np.float32)[np.arange(size) % 2]
    positives = np.stack([np.arange(size), np.zeros(size, np.int64), np.ones(size, np.int64)], axis=1)
    alone = np.array([[0, 0, 1], [1, 1, 1]])
    query, row = np.array([0, 1, 2]), np.array([0, 0, 1])
    assert filters.positive_of_twin(query, row, positives, vectors, 0.9).tolist() == [True, True, False]
    assert filters.positive_of_twin(query, row, alone, vectors, 0.9).tolist() == [False, False, False]


@given(st.lists(st.sampled_from([None, "", "x", "y", 3]), min_size=5, max_size=5), st.data())
def test_siblings(values, data):
    query, row, pos_query, pos_row = data.draw(lists(5))
    found = filters.sibling(query, row, pos_query, pos_row, filters.group_codes(values))
    owners = list(zip(pos_query.tolist(), pos_row.tolist(), strict=True))
    expected = [
        values[r] not in (None, "") and any(o == q and values[p] == values[r] for o, p in owners)
        for q, r in zip(query.tolist(), row.tolist(), strict=True)
    ]
    assert found.tolist() == expected


# ---------------------------------------------------------------- answers


@pytest.mark.parametrize(
    ("text", "answer", "held"),
    [
        ("It was Paris.", "paris", True),
        ("Parisian cafés", "Paris", False),
        ("of the CAFÉ", "Café", True),
        ("ﬁve ways", "five", True),
        ("the U.S. Army", "US army", True),
        ("the us army", "U.S. Army", True),
        ("They don't know", "dont", True),
        ("from 1990-1995", "1995", True),
        ("version 3.5", "35", False),
        ("it costs $50", "50", True),
        ("it costs 50", "$50", False),
        ("written in C#", "C", True),
        ("written in C", "C#", False),
        ("Beatles fans", "The Beatles", True),
        ("vitamin B", "Vitamin A", False),
        ("they are the best", "The", True),
        ("well known man", "well-known", True),
        ("東京は日本の首都です", "日本", True),
        ("新しいiPhoneです", "iPhone", True),
        ("हिन्दी", "हिन", False),
        ("anything?", "?!", False),
        ("anything", "", False),
        ("a bab ab", "ab", True),
    ],
)
def test_answers(text, answer, held):
    one = np.zeros(1, np.int64)
    assert filters.has_answer(one, one, [[answer]], lambda rows: [text]).tolist() == [held]


@given(TEXTS, st.lists(st.lists(st.sampled_from(["fox", "red fox", "away", "!"]), max_size=2), min_size=3), st.data())
def test_each_query_has_its_own_answers_and_each_passage_is_read_once(texts, answers, data):
    query, row, _, _ = data.draw(lists(len(texts)))
    read: list[int] = []

    def text_of(rows: np.ndarray) -> list[str]:
        read.extend(rows.tolist())
        return [texts[r] for r in rows]

    def holds(text: str, answer: str) -> bool:
        bare = "".join(c for c in text if unicodedata.category(c)[0] != "P").lower()
        return answer != "!" and f" {answer} " in f" {bare} "

    found = filters.has_answer(query, row, answers, text_of)
    assert found.tolist() == [
        any(holds(texts[r], a) for a in answers[q]) for q, r in zip(query.tolist(), row.tolist(), strict=True)
    ]
    assert [key for key, same in groupby(sorted(read)) if len(list(same)) > 1] == []


# ---------------------------------------------------------------- fields


def queries(*extras: object) -> pa.Table:
    rows = [
        {"query_id": f"q{i}", "text": "t", "extra": None if extra is None else json.dumps(extra)}
        for i, extra in enumerate(extras)
    ]
    return pa.Table.from_pylist(rows, QUERIES)


def test_answers_come_in_the_forms_that_are_about():
    table = queries(
        {"a": "x"}, {"a": ["x", 7]}, {"a": 1.5}, {"a": {"text": ["x"], "answer_start": [3]}}, {"b": 1}, None
    )
    assert filters.answer_texts(table, "a") == [["x"], ["x", "7"], ["1.5"], ["x"], [], []]


@pytest.mark.parametrize("value", [True, {"b": 1}, [None], [["x"]]])
def test_what_is_no_answer_is_told(value):
    with pytest.raises(UserError, match=r"filters\.answers a: query 'q1': .* is no answer text; write"):
        filters.answer_texts(queries(None, {"a": value}), "a")


def test_a_field_that_no_row_has_is_told_with_those_there_are():
    with pytest.raises(UserError, match=r"filters\.answers c: no query has this field; the fields are a, b$"):
        filters.answer_texts(queries({"b": 1}, None, {"a": 1}), "c")
    passages = pa.Table.from_pylist([{"doc_id": "d", "title": "T", "text": "x", "extra": None}], PASSAGES)
    with pytest.raises(UserError, match=r"filters\.group c: no passage has this field; the fields are none$"):
        filters.extra_field(passages, "c")
    assert filters.extra_field(passages, "title") == ["T"]
