"""Token weights and token vectors: the searchers against plain Python."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from miner.ragged_cache import SPARSE, Ragged
from miner.searchers import multivector, sparse

# Halves and quarters: sums are exact, so ties are real ones.
WEIGHTS = st.dictionaries(st.integers(0, 6), st.sampled_from([0.25, 0.5, 1.0]), max_size=5)
TEXTS = st.lists(WEIGHTS, min_size=1, max_size=12)


def ragged(rows: list[dict[int, float]]) -> Ragged:
    pairs = [pair for row in rows for pair in sorted(row.items())]
    return Ragged(np.array(pairs, SPARSE), np.cumsum([0, *map(len, rows)]))


def naive(query: dict[int, float], passages: list[dict[int, float]], k: int) -> list[tuple[float, int]]:
    scored = [(sum(w * p[t] for t, w in query.items() if t in p), row) for row, p in enumerate(passages)]
    best = sorted(((score, row) for score, row in scored if score > 0), key=lambda pair: (-pair[0], pair[1]))[:k]
    return best + [(-math.inf, -1)] * (k - len(best))


@given(TEXTS, TEXTS, st.integers(1, 5), st.sampled_from([1, 3, 100]), st.integers(1, 12))
def test_the_best_of_plain_python(passages, queries, k, block, cut):
    parts = [ragged(passages[:cut]), ragged(passages[cut:])]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sparse, "BLOCK", block)
        searcher = sparse.build(parts, ragged(queries), len(passages))
    asked = np.arange(len(queries))[::-1]
    scores, rows = searcher.search(asked, k)
    assert scores.dtype == np.float32
    assert rows.dtype == np.int64
    for at, query in enumerate(asked.tolist()):
        want = naive(queries[query], passages, k)
        assert list(zip(scores[at].tolist(), rows[at].tolist(), strict=True)) == want


def test_many_random_weights(tmp_path):
    random = np.random.default_rng(0)
    texts = [
        {int(t): float(random.random(dtype=np.float32)) for t in random.choice(400, 40, replace=False)}
        for _ in range(500)
    ]
    searcher = sparse.build([ragged(texts)], ragged(texts[:20]), 500)
    scores, rows = searcher.search(np.arange(20), 50)
    for at in range(20):
        want = naive(texts[at], texts, 50)
        assert rows[at].tolist() == [row for _, row in want]
        assert np.allclose(scores[at], [score for score, _ in want], rtol=1e-6)


def test_no_query_no_passage_and_a_wrong_count():
    searcher = sparse.build([], ragged([{1: 1.0}]), 0)
    assert searcher.search(np.array([0]), 2)[1].tolist() == [[-1, -1]]
    assert searcher.search(np.array([], np.int64), 2)[0].shape == (0, 2)
    with pytest.raises(ValueError, match="1 passages in place of 2"):
        sparse.build([ragged([{1: 1.0}])], ragged([]), 2)


VECTORS = st.lists(st.lists(st.integers(-4, 4), min_size=3, max_size=3), max_size=4)


def tokens(rows: list[list[list[int]]]) -> Ragged:
    flat = np.array([vector for row in rows for vector in row], np.float16).reshape(-1, 3)
    return Ragged(flat, np.cumsum([0, *map(len, rows)]))


def naive_maxsim(query: list[list[int]], passage: list[list[int]]) -> float:
    if not query or not passage:
        return 0.0
    return sum(max(sum(a * b for a, b in zip(q, p, strict=True)) for p in passage) for q in query) / len(query)


def getter(rows: list[list[list[int]]], asked: list[int]) -> Callable[[np.ndarray], Ragged]:
    def get(some: np.ndarray) -> Ragged:
        assert some.tolist() == sorted(set(some.tolist()))
        asked.append(len(some))
        return tokens([rows[row] for row in some.tolist()])

    return get


@given(st.lists(VECTORS, min_size=1, max_size=4), st.lists(VECTORS, min_size=1, max_size=6), st.data())
def test_maxsim_is_the_mean_of_each_tokens_best(queries, passages, data):
    row = st.tuples(st.integers(0, len(queries) - 1), st.integers(0, len(passages) - 1))
    pairs = np.array(data.draw(st.lists(row, max_size=15)), np.int64).reshape(-1, 2)
    want = np.array([naive_maxsim(queries[q], passages[p]) for q, p in pairs.tolist()], np.float32)
    found = multivector.scores(tokens(queries), tokens(passages), pairs)
    assert found.dtype == np.float32
    assert np.allclose(found, want, atol=1e-6)
    asked: list[int] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(multivector, "PASSAGES", 4)
        again = multivector.rescore(pairs[:, 0], pairs[:, 1], getter(queries, asked), getter(passages, asked))
    assert again.tolist() == found.tolist()
    assert max(asked, default=0) <= 4


def test_a_score_does_not_depend_on_the_others_asked_for():
    random = np.random.default_rng(0)

    def some(n: int) -> Ragged:
        offsets = np.cumsum([0, *random.integers(1, 40, n)])
        return Ragged(random.normal(size=(offsets[-1], 64)).astype(np.float16), offsets)

    queries, passages = some(3), some(30)
    pairs = np.array([(q, p) for q in range(3) for p in range(30)])
    every = multivector.scores(queries, passages, pairs)
    shuffled = random.permutation(len(pairs))[:20]
    assert multivector.scores(queries, passages, pairs[shuffled]).tolist() == every[shuffled].tolist()
