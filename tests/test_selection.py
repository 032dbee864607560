"""The order in which candidates enter a pool, against slow plain-Python definitions."""

from __future__ import annotations

import time
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from miner import ranking, selection

# Flat lists of (query, allowed, number), by query; the number serves as score, ticket or passage.
ROWS = st.lists(st.tuples(st.integers(0, 3), st.booleans(), st.integers(0, 12)), max_size=40).map(
    lambda rows: sorted(rows, key=lambda row: row[0])
)
UNIQUE = ROWS.map(lambda rows: list({(query, number): (query, ok, number) for query, ok, number in rows}.values()))


def columns(rows: list[tuple]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    kinds = (np.int64, bool, np.int64)
    groups, allowed, number = (np.array([row[i] for row in rows], kind) for i, kind in enumerate(kinds))
    return groups, allowed, number


def members(rows: list[tuple]) -> list[list[int]]:
    """The allowed places of each query, by rank."""
    return [[i for i, row in enumerate(rows) if row[0] == query and row[1]] for query in range(4)]


def numbered(orders: list[list[int]], size: int) -> list[int]:
    order = [0] * size
    for places in orders:
        for number, place in enumerate(places, 1):
            order[place] = number
    return order


@given(ROWS)
def test_by_rank_and_by_ticket(rows):
    groups, allowed, number = columns(rows)
    assert selection.by_rank(groups, allowed).tolist() == numbered(members(rows), len(rows))
    drawn = [sorted(places, key=lambda i: (rows[i][2], i)) for places in members(rows)]
    order = selection.by_ticket(groups, allowed, number.astype(np.uint64))
    assert order.tolist() == numbered(drawn, len(rows))


@given(ROWS, st.floats(0.01, 10), st.integers(0, 99))
def test_softmax_is_score_by_temperature_and_gumbel_noise(rows, temperature, seed):
    groups, allowed, number = columns(rows)
    tickets = ranking.mix(np.arange(len(rows), dtype=np.uint64) + np.uint64(seed))
    noise = [-np.log(-np.log(((int(ticket) >> 12) + 0.5) / 2**52)) for ticket in tickets]
    drawn = [sorted(places, key=lambda i: (-(rows[i][2] / temperature + noise[i]), i)) for places in members(rows)]
    order = selection.by_softmax(groups, allowed, number.astype(np.float32), tickets, temperature)
    assert order.tolist() == numbered(drawn, len(rows))


def test_softmax_noise_is_finite_for_every_ticket():
    """Warnings are errors here, so a logarithm of 0 would show."""
    tickets = np.array([0, 2**12, 2**63, 2**64 - 1], np.uint64)
    order = selection.by_softmax(np.zeros(4, int), np.ones(4, bool), np.zeros(4, np.float32), tickets, 1.0)
    assert order.tolist() == [4, 3, 2, 1]


def test_softmax_draws_by_exp_of_score_over_temperature():
    """Of 20,000 first draws, each passage's share is its softmax; five standard deviations are allowed."""
    queries, score = 20_000, np.array([0.9, 0.85, 0.8, 0.6], np.float32)
    groups = np.repeat(np.arange(queries), 4)
    hashes = ranking.mix(groups.astype(np.uint64)), np.tile(np.arange(4, dtype=np.uint64), queries)
    tickets = ranking.lottery(*hashes, 13)
    order = selection.by_softmax(groups, np.ones(len(groups), bool), np.tile(score, queries), tickets, 0.1)
    share = np.exp(score / 0.1) / np.exp(score / 0.1).sum()
    first = (order.reshape(queries, 4) == 1).mean(axis=0)
    assert (np.abs(first - share) < 5 * np.sqrt(share * (1 - share) / queries)).all()


@given(ROWS, st.integers(2, 5))
def test_bands_are_equal_parts_by_rank_taken_by_turns(rows, bands):
    groups, allowed, _ = columns(rows)
    expected, drawn = [-1] * len(rows), []
    for places in members(rows):
        parts: list[list[int]] = [[] for _ in range(bands)]
        for i, place in enumerate(places):
            expected[place] = i * bands // len(places)
            parts[expected[place]].append(place)
        assert max(map(len, parts)) - min(map(len, parts)) <= 1
        drawn.append([part[i] for i in range(len(places)) for part in parts if i < len(part)])
    order, band = selection.by_bands(groups, allowed, bands)
    assert band.tolist() == expected
    assert order.tolist() == numbered(drawn, len(rows))


@given(st.integers(1, 60), st.integers(2, 5), st.integers(1, 20))
def test_a_pool_has_as_many_of_each_band(rows, bands, size):
    order, band = selection.by_bands(np.zeros(rows, int), np.ones(rows, bool), bands)
    taken = np.bincount(band[order <= size], minlength=bands)
    there = np.bincount(band, minlength=bands)
    assert taken.sum() == min(size, rows)
    short = (size + bands - 1) // bands
    assert all(taken[i] in (size // bands, short) or there.min() < short for i in range(bands))


def test_bands_have_names():
    assert selection.band_names(np.array([0, 1, 2, -1]), 3).to_pylist() == ["hard", "medium", "easy", None]
    assert selection.band_names(np.array([1, 0]), 2).to_pylist() == ["band2", "band1"]


def mmr(places: list[int], score: dict[int, float], near: np.ndarray, balance: float) -> list[int]:
    """Places in the order that Carbonell & Goldstein's formula gives, the better ranked of equals first."""
    low, high = min(score.values()), max(score.values())
    relevance = {i: (score[i] - low) / (high - low) if high > low else 1.0 for i in places}
    taken: list[int] = []
    while len(taken) < len(places):
        value = {
            i: balance * relevance[i] - (1 - balance) * max((near[i, j] for j in taken), default=-1.0)
            for i in places
            if i not in taken
        }
        taken.append(max(value, key=lambda i: (value[i], -i)))
    return taken


@given(ROWS, st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0]), st.integers(1, 6), st.data())
def test_mmr_is_greedy(rows, balance, size, data):
    groups, allowed, number = columns(rows)
    signs = np.array(data.draw(st.lists(st.integers(0, 15), min_size=13, max_size=13)))
    vectors = (((signs[:, None] >> np.arange(4)) & 1) - 0.5).astype(np.float32)  # unit vectors, cosines exact
    score = np.array([data.draw(st.sampled_from([0.0, 0.25, 0.5, 1.0])) for _ in rows], np.float32)
    near = vectors[number] @ vectors[number].T
    drawn = []
    for places in members(rows):
        head = places[: 2 * size]
        scores = {i: float(score[i]) for i in head}
        drawn.append((mmr(head, scores, near, balance) if head else []) + places[2 * size :])
    order = selection.by_mmr(groups, number, allowed, score, vectors, balance, size)
    assert order.tolist() == numbered(drawn, len(rows))


def test_mmr_by_arithmetic():
    """0 and 1 are twins, 2 is another thing: 0.5 * 0.5 - 0.5 * 0 beats 0.5 * 0.9 - 0.5 * 1."""
    vectors = np.array([[1, 0], [1, 0], [0, 1], [0, 1]], np.float32)
    score = np.array([1.0, 0.9, 0.5, 0.0], np.float32)
    arguments = (np.zeros(4, int), np.arange(4), np.ones(4, bool), score, vectors)
    assert selection.by_mmr(*arguments, 0.5, 3).tolist() == [1, 3, 2, 4]
    assert selection.by_mmr(*arguments, 1.0, 3).tolist() == [1, 2, 3, 4]


@given(ROWS, st.integers(0, 99), st.sampled_from(["ticket", "softmax", "bands", "mmr"]))
def test_an_order_does_not_depend_on_other_queries(rows, seed, how):
    groups, allowed, number = columns(rows)
    vectors = np.eye(13, dtype=np.float32)
    tickets = ranking.lottery(ranking.mix(groups.astype(np.uint64)), number.astype(np.uint64), seed)

    def order(own: np.ndarray) -> list[int]:
        lists, score = (groups[own], allowed[own]), number[own].astype(np.float32)
        if how == "ticket":
            return selection.by_ticket(*lists, tickets[own]).tolist()
        if how == "softmax":
            return selection.by_softmax(*lists, score, tickets[own], 0.5).tolist()
        if how == "bands":
            return selection.by_bands(*lists, 3)[0].tolist()
        return selection.by_mmr(groups[own], number[own], allowed[own], score, vectors, 0.5, 2).tolist()

    whole = np.array(order(np.ones(len(rows), bool)), int)
    for query in range(4):
        assert order(groups == query) == whole[groups == query].tolist()


@given(ROWS, st.lists(st.none() | st.integers(1, 3), min_size=3, max_size=3), st.randoms())
def test_quotas_count_in_order(rows, quotas, random):
    groups, _, number = columns(rows)
    drawn = [random.sample(places, len(places)) for places in members(rows)]
    expected = [False] * len(rows)
    for places in drawn:
        seen: Counter[int] = Counter()
        for place in places:
            retriever = rows[place][2] % 3
            seen[retriever] += 1
            expected[place] = quotas[retriever] is not None and seen[retriever] > quotas[retriever]
    order = np.array(numbered(drawn, len(rows)), int)
    assert selection.over_quota(groups, order, number % 3, quotas).tolist() == expected


@given(UNIQUE, st.integers(1, 4), st.integers(1, 3), st.randoms())
def test_a_worn_passage_gives_its_place_to_the_next(rows, size, most, random):
    groups, _, passage = columns(rows)
    before = np.array([random.randint(0, most) for _ in range(13)])
    drawn = [random.sample(places, len(places)) for places in members(rows)]
    used, skipped, pools = before.tolist(), set(), []
    for places in drawn:
        pool: list[int] = []
        for place in places:
            if len(pool) == size:
                break
            if used[rows[place][2]] >= most:
                skipped.add(place)
            else:
                pool.append(place)
                used[rows[place][2]] += 1
        pools.append(pool)
    counted, order = before.copy(), np.array(numbered(drawn, len(rows)), int)
    worn = selection.cap(counted, groups, passage, order, size, most)
    assert set(np.flatnonzero(worn).tolist()) == skipped
    assert counted.tolist() == used
    assert max(used, default=0) <= most
    left = np.where(worn, 0, order)
    assert ranking.renumber(groups, left, size).tolist() == numbered(pools, len(rows))


def test_nothing_is_ordered_of_nothing():
    none, no = np.empty(0, np.int64), np.empty(0, bool)
    empty = np.empty(0, np.float32)
    vectors = np.zeros((0, 4), np.float32)
    assert selection.by_rank(none, no).size == selection.by_bands(none, no, 3)[0].size == 0
    assert selection.by_softmax(none, no, empty, none.astype(np.uint64), 1.0).size == 0
    assert selection.by_mmr(none, none, no, empty, vectors, 0.5, 3).size == 0
    assert selection.cap(np.zeros(0, np.int64), none, none, none, 3, 1).size == 0
    assert selection.over_quota(none, none, none, [None, 1]).size == 0


@pytest.mark.slow
def test_a_million_candidates_are_ordered_in_seconds():
    groups = np.repeat(np.arange(10_000), 100)
    allowed = np.ones(len(groups), bool)
    rows = np.tile(np.arange(100), 10_000)
    vectors = np.random.default_rng(0).standard_normal((100, 64)).astype(np.float32)
    score = np.tile(np.linspace(1, 0, 100, dtype=np.float32), 10_000)
    start = time.perf_counter()
    order, _ = selection.by_bands(groups, allowed, 3)
    selection.cap(np.zeros(100, np.int64), groups, rows, order, 14, 2000)
    selection.by_mmr(groups, rows, allowed, score, vectors, 0.7, 14)
    assert time.perf_counter() - start < 30


def test_a_worn_passage_leaves_its_place_in_the_quota_to_the_next():
    """Two of retriever 0 may enter: row 0 is worn, so rows 1 and 2 do, and row 3 of retriever 1 makes three."""
    used = np.array([5, 0, 0, 0, 0])
    groups, rows, order = np.zeros(5, np.int64), np.arange(5), np.array([1, 2, 3, 5, 4])
    retriever, quotas = np.array([0, 0, 0, 1, 0]), [2, None]
    worn = selection.cap(used, groups, rows, order, 3, 5, retriever, quotas)
    assert worn.tolist() == [True, False, False, False, False]
    assert used.tolist() == [5, 1, 1, 1, 0]
    left = np.where(worn, 0, order)
    assert selection.over_quota(groups, left, retriever, quotas).tolist() == [False, False, False, False, True]
