"""Fusion of several retrievers' lists against slow plain-Python definitions."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from miner import fusion

# One retriever: passage -> score, per query; whole scores so that equal ones are common and sums are exact.
FOUND = st.dictionaries(
    st.integers(0, 3), st.dictionaries(st.integers(0, 6), st.integers(-3, 3), max_size=6), max_size=4
)
RETRIEVERS = st.lists(st.tuples(FOUND, st.sampled_from([0.5, 1.0, 3.0])), min_size=1, max_size=4)


def ranked(found: dict[int, dict[int, int]]) -> fusion.Ranked:
    """A retriever's flat list: by query, score downwards, passage."""
    flat = [
        (query, passage, rank, score)
        for query, scores in sorted(found.items())
        for rank, (passage, score) in enumerate(sorted(scores.items(), key=lambda item: (-item[1], item[0])), 1)
    ]
    kinds = (np.int64, np.int64, np.int32, np.float32)
    return tuple(np.array([row[i] for row in flat], kind) for i, kind in enumerate(kinds))  # type: ignore[return-value]


def scaled(scores: dict[int, int], passage: int) -> float:
    low, high = min(scores.values()), max(scores.values())
    return (scores[passage] - low) / (high - low) if high > low else 1.0


def value(retrievers, query: int, passage: int, method: str, k: int) -> float | tuple[int, int]:
    """What decides the place of a passage, the largest first."""
    has = [(i, found[query], weight) for i, (found, weight) in enumerate(retrievers) if passage in found.get(query, {})]
    ranks = {i: 1 + sorted(s, key=lambda p: (-s[p], p)).index(passage) for i, s, _ in has}
    if method == "union":
        best = min(has, key=lambda one: (ranks[one[0]], one[0]))[0]
        return -ranks[best], -best
    if method == "rrf":
        return sum(weight / (k + ranks[i]) for i, _, weight in has)
    return sum(weight * scaled(scores, passage) for _, scores, weight in has)


@given(RETRIEVERS, st.sampled_from(["rrf", "weighted", "union"]), st.integers(1, 60))
@example([({}, 1.0), ({}, 1.0)], "rrf", 60)
@example([({2: {0: 1}}, 1.0), ({}, 1.0)], "weighted", 60)
def test_order_is_by_query_then_value_then_passage(retrievers, method, k):
    found = fusion.fuse([ranked(one) for one, _ in retrievers], [w for _, w in retrievers], method, k)
    pairs = {(query, passage) for one, _ in retrievers for query, scores in one.items() for passage in scores}
    keys = list(zip(found.query.tolist(), found.row.tolist(), strict=True))
    assert sorted(keys) == sorted(pairs)
    assert keys == [keys[i] for i in np.lexsort((found.row, -found.fused, found.query))]
    if len(retrievers) == 1:
        return  # its own order, whatever the method; see the next tests
    expected = [value(retrievers, *key, method, k) for key in keys]
    for place in range(1, len(keys)):
        if keys[place][0] == keys[place - 1][0]:
            near = method != "union" and np.isclose(expected[place - 1], expected[place], rtol=1e-12)
            assert near or expected[place - 1] > expected[place]
    if method != "union":
        np.testing.assert_allclose(found.fused, expected, rtol=1e-12)


@given(RETRIEVERS, st.sampled_from(["rrf", "weighted", "union"]))
def test_ranks_and_scores_are_those_of_each_retriever(retrievers, method):
    lists = [ranked(found) for found, _ in retrievers]
    found = fusion.fuse(lists, [weight for _, weight in retrievers], method, 60)
    assert (found.ranks.dtype, found.scores.dtype, found.fused.dtype) == (np.int32, np.float32, np.float64)
    assert found.ranks.shape == found.scores.shape == (len(found.query), len(lists))
    for i, (query, row, rank, score) in enumerate(lists):
        given_ = dict(zip(zip(query, row, strict=True), zip(rank, score, strict=True), strict=True))
        for place, key in enumerate(zip(found.query, found.row, strict=True)):
            there = given_.pop(key, None)
            assert found.ranks[place, i] == (there[0] if there else 0)
            assert found.scores[place, i] == there[1] if there else np.isnan(found.scores[place, i])
        assert not given_


@given(FOUND, st.sampled_from(["rrf", "weighted", "union"]), st.floats(0.1, 10))
def test_one_retriever_alone_keeps_its_order(found, method, weight):
    query, row, rank, _ = ranked(found)
    fused = fusion.fuse([ranked(found)], [weight], method, 60)
    assert fused.query.tolist() == query.tolist()
    assert fused.row.tolist() == row.tolist()
    assert fused.ranks[:, 0].tolist() == rank.tolist()


def two(method: str, *weights: float) -> list[int]:
    """Dense finds 0, 1, 2 with 0.9, 0.5, 0.4; words find 2, 3 with 20, 10."""
    dense, words = ranked({0: {0: 9, 1: 5, 2: 4}}), ranked({0: {2: 20, 3: 10}})
    return fusion.fuse([dense, words], list(weights), method, 60).row.tolist()


@pytest.mark.parametrize(
    ("method", "weights", "rows"),
    [
        ("rrf", (1, 1), [2, 0, 1, 3]),  # 1/63 + 1/61, 1/61, 1/62 and 1/62, of which the lower row first
        ("rrf", (1, 9), [2, 3, 0, 1]),  # 1/63 + 9/61, 9/62, 1/61, 1/62
        ("weighted", (1, 1), [0, 2, 1, 3]),  # 1, 0 + 1, 0.2, 0
        ("weighted", (1, 2), [2, 0, 1, 3]),  # 0 + 2, 1, 0.2, 0
        ("union", (1, 1), [0, 2, 1, 3]),  # first of dense, first of words, second of dense, second of words
    ],
)
def test_orders_by_arithmetic(method, weights, rows):
    assert two(method, *weights) == rows


@pytest.mark.parametrize("k", range(1, 100))
def test_equal_ranks_in_any_retrievers_are_a_tie(k):
    """0 has the ranks 1, 2, 3 and 4, 1 and 2 and 3 the same in other orders."""
    orders = ([0, 1, 2, 3], [3, 0, 1, 2], [2, 3, 0, 1], [1, 2, 3, 0])
    lists = [ranked({0: {row: -rank for rank, row in enumerate(order)}}) for order in orders]
    found = fusion.fuse(lists, [1.0] * 4, "rrf", k)
    assert len(set(found.fused.tolist())) == 1
    assert found.row.tolist() == [0, 1, 2, 3]


def test_a_flat_list_counts_in_full():
    flat, single = ranked({0: {0: 3, 1: 3}}), ranked({0: {2: -7}})
    assert fusion.fuse([flat, single], [1.0, 0.5], "weighted", 60).fused.tolist() == [1.0, 1.0, 0.5]


@pytest.mark.slow
@pytest.mark.parametrize("method", ["rrf", "weighted", "union"])
def test_ten_million_rows(method):
    queries, depth = 50_000, 100
    query, rank = np.repeat(np.arange(queries), depth), np.tile(np.arange(1, depth + 1, dtype=np.int32), queries)
    score = (1 - rank / depth).astype(np.float32)
    lists = [(query, query % 1000 * 997 + step * rank.astype(np.int64), rank, score) for step in (1, 2)]
    start = time.perf_counter()
    found = fusion.fuse(lists, [1.0, 1.0], method, 60)
    assert len(found.query) == queries * 150
    assert time.perf_counter() - start < 60
