"""ranking's array functions against slow plain-Python definitions."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from miner import ranking

# Flat lists: rows of (query, class, allowed, ticket), sorted by query as all ranked lists are.
ROWS = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 3), st.booleans(), st.integers(0, 9)), max_size=40).map(
    lambda rows: sorted(rows, key=lambda row: row[0])
)


def column(rows: list[tuple], number: int, kind: type = int) -> np.ndarray:
    return np.array([row[number] for row in rows], kind)


@given(ROWS)
def test_position_counts_within_each_query(rows):
    seen: dict[int, int] = defaultdict(int)
    expected = []
    for query, *_ in rows:
        expected.append(seen[query])
        seen[query] += 1
    assert ranking.position(column(rows, 0)).tolist() == expected


@given(ROWS)
def test_a_repeat_is_a_later_row_of_the_same_query_and_class(rows):
    keys = [row[:2] for row in rows]
    expected = [key in keys[:place] for place, key in enumerate(keys)]
    assert ranking.is_repeat(column(rows, 0), column(rows, 1)).tolist() == expected


@pytest.mark.parametrize("lowest", [0.8, 0.0, -0.4])
def test_ceilings_by_arithmetic(lowest):
    absolute, relative = ranking.ceiling(np.array([lowest]), 0.1, 0.05)
    assert absolute[0] == pytest.approx(lowest - 0.1)
    assert relative[0] == pytest.approx({0.8: 0.76, 0.0: 0.0, -0.4: -0.42}[lowest])


@given(st.floats(-1, 1, width=32), st.floats(-1, 1, width=32), st.floats(0, 1, width=32))
def test_a_margin_never_lets_a_better_score_than_the_positive_pass(lowest, score, margin):
    for limit in ranking.ceiling(np.array([lowest]), margin, margin):
        assert limit[0] <= lowest
    absolute, relative = ranking.ceiling(np.array([lowest]), margin, margin)
    assert (score <= absolute[0]) == (score <= lowest - margin)
    assert (score <= relative[0]) == (score <= lowest - margin * abs(lowest))


def test_a_margin_that_is_not_set_lets_everything_pass():
    absolute, relative = ranking.ceiling(np.array([0.5, -0.5]), None, None)
    assert absolute.tolist() == relative.tolist() == [np.inf, np.inf]


@given(ROWS)
def test_the_first_true_test_names_the_reason(rows):
    odd, big = column(rows, 1) % 2 == 1, column(rows, 3) > 5
    expected = ["odd" if row[1] % 2 else "big" if row[3] > 5 else "" for row in rows]
    found = ranking.words(ranking.first_true([odd, big], len(rows)), ["", "odd", "big"])
    assert found.to_pylist() == expected
    assert sorted(found.dictionary.to_pylist()) == sorted(set(expected))


def test_names_that_occur_twice_are_one_word():
    assert ranking.words(np.array([2, 0, 1]), ["a", "b", "a"]).dictionary.to_pylist() == ["a", "b"]


@given(st.lists(st.lists(st.tuples(st.integers(-2, 2), st.integers(-1, 4)), min_size=4, max_size=4), max_size=5))
def test_lists_are_put_best_first_with_ties_by_row(lists):
    scores, rows = (np.array([[pair[i] for pair in one] for one in lists]).reshape(-1, 4) for i in (0, 1))
    found = ranking.best_first(scores.astype(np.float32), rows.astype(np.int64))
    expected = [sorted(one, key=lambda pair: (-pair[0], pair[1])) for one in lists]
    assert [list(zip(*one, strict=True)) for one in zip(*(a.tolist() for a in found), strict=True)] == expected


@given(st.lists(st.integers(0, 9)), st.sets(st.integers(0, 9)))
def test_among_is_membership(values, known):
    found = ranking.among(np.array(values, np.int64), np.array(sorted(known), np.int64))
    assert found.tolist() == [value in known for value in values]


@given(ROWS, st.integers(1, 5), st.booleans())
def test_the_pool_takes_the_first_allowed_rows_or_the_smallest_tickets(rows, size, by_ticket):
    expected = [0] * len(rows)
    for query in {row[0] for row in rows}:
        places = [i for i, row in enumerate(rows) if row[0] == query and row[2]]
        if by_ticket:
            places.sort(key=lambda i: rows[i][3])
        for rank, place in enumerate(places[:size], 1):
            expected[place] = rank
    tickets = column(rows, 3).astype(np.uint64) if by_ticket else None
    found = ranking.pool_ranks(column(rows, 0), column(rows, 2, bool), tickets, size)
    assert found.tolist() == expected


HASHES = st.lists(st.integers(0, 2**64 - 1), min_size=2, max_size=20, unique=True)


@given(HASHES, st.integers(0, 2**63 - 1))
def test_a_ticket_depends_on_its_pair_and_the_seed_alone(hashes, seed):
    docs = np.array(hashes, np.uint64)
    whole = ranking.lottery(docs[::-1], docs, seed)
    for row in range(len(docs)):
        alone = ranking.lottery(docs[::-1][row : row + 1], docs[row : row + 1], seed)
        assert alone[0] == whole[row]
    assert (ranking.lottery(docs[::-1], docs, seed + 1) != whole).all()


def test_draws_are_even():
    """Each of 50 passages is drawn into 5 places about 2000 * 5/50 times; five standard deviations are allowed."""
    queries, docs = 2000, 50
    query = np.repeat(np.arange(queries), docs)
    hashes = ranking.mix(np.arange(queries, dtype=np.uint64))[query], np.tile(np.arange(docs, dtype=np.uint64), queries)
    drawn = ranking.pool_ranks(query, np.ones(len(query), bool), ranking.lottery(*hashes, 13), 5) > 0
    expected = queries * 5 / docs
    deviation = np.sqrt(queries * (5 / docs) * (1 - 5 / docs))
    assert np.abs(drawn.reshape(queries, docs).sum(axis=0) - expected).max() < 5 * deviation


def test_mix_is_splitmix64():
    """The first outputs of SplitMix64 from state 0, as published with the generator (Vigna, splitmix64.c)."""
    states = np.array([0, 0x9E3779B97F4A7C15], np.uint64)
    assert [hex(value) for value in ranking.mix(states)] == ["0xe220a8397b1dcdaf", "0x6e789e6aa1b965f4"]


POOL = st.lists(st.tuples(st.integers(0, 3), st.booleans(), st.sampled_from(["irrelevant", "relevant", "failed"])))


@given(POOL, st.booleans(), st.integers(1, 4))
def test_slots_go_to_the_first_irrelevant_rows_of_each_pool(rows, judged, wanted):
    rows = sorted(rows, key=lambda row: row[0])
    pool_rank, expected, verdicts = [], [], []
    pooled: dict[int, int] = defaultdict(int)
    taken: dict[int, int] = defaultdict(int)
    for query, in_pool, verdict in rows:
        pooled[query] += in_pool
        pool_rank.append(pooled[query] if in_pool else None)
        verdicts += [verdict] if in_pool else []
        take = in_pool and (not judged or verdict == "irrelevant") and taken[query] < wanted
        taken[query] += take
        expected.append(taken[query] if take else 0)
    candidates = pa.table(
        {"query_id": pa.array([str(row[0]) for row in rows], pa.string()), "pool_rank": pa.array(pool_rank, pa.int32())}
    )
    judgments = pa.table({"verdict": pa.array(verdicts, pa.string())}) if judged else None
    assert ranking.slots(candidates, judgments, wanted).tolist() == expected


def test_slots_follow_the_draw_and_not_the_rank():
    candidates = pa.table({"query_id": ["q"] * 3, "pool_rank": pa.array([3, 1, 2], pa.int32())})
    assert ranking.slots(candidates, None, 2).tolist() == [0, 1, 2]
