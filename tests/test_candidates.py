"""stages.candidates against a brute-force search in plain Python, on small whole-number vectors full of ties.

Whole numbers make every score exact, so a tie in the reference is a tie in the searcher.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from miner import numbering, ranking
from miner.config import Mining
from miner.numbering import Block
from miner.records import PASSAGES, QRELS, QUERIES
from miner.stages import candidates, retrieved

TEXTS = ("apple", "Apple ", "  APPLE", "pear", "plum", "fig", "kiwi", "lime", "date", "nut")
VECTOR = st.tuples(*[st.integers(-2, 2)] * 3)


@dataclass(frozen=True)
class World:
    """Passage i has the id d00i, query i q00i. positives: for each query the numbers of its passages."""

    passages: list[tuple[str, tuple[int, ...]]]
    queries: list[tuple[str, tuple[int, ...]]]
    positives: list[list[int]]

    def run(self, mining: Mining, pool: int, seed: int = 13, block: int = 1000) -> tuple[list[dict], list[dict]]:
        """Candidates and positives as the stage gives them, block by block; the other margins: test_rocchio."""
        mining = mining.model_copy(update={"margin_on": "dense"})
        doc_ids, query_ids = ids("d", self.passages), ids("q", self.queries)
        passages = [
            {"doc_id": d, "title": "", "text": text} for d, (text, _) in zip(doc_ids, self.passages, strict=True)
        ]
        queries = [{"query_id": q, "text": text} for q, (text, _) in zip(query_ids, self.queries, strict=True)]
        qrels = [
            {"query_id": q, "doc_id": doc_ids[p], "relevance": 1}
            for q, known in zip(query_ids, self.positives, strict=True)
            for p in known
        ]
        vectors = [np.array([vector for _, vector in rows], np.float32) for rows in (self.passages, self.queries)]
        tables = (
            pa.Table.from_pylist(rows, s) for rows, s in ((passages, PASSAGES), (queries, QUERIES), (qrels, QRELS))
        )
        world = numbering.number(*tables, 1)
        lists = [retrieved.run(world, b, Exact(*vectors), mining.depth) for b in blocks(len(queries), block)]
        used = np.zeros(len(passages), np.int64)
        draw = candidates.Draw(pool, seed, used, vectors[0])
        found: tuple[list[dict], list[dict]] = [], []
        for where, table in zip(blocks(len(queries), block), lists, strict=True):
            fused = candidates.fused(where, [table], mining)
            pairs = world.positives_of(where)
            shown = np.einsum("ij,ij->i", vectors[1][where.low + pairs[:, 0]], vectors[0][pairs[:, 1]])
            scores = candidates.Scores(
                fused.scores[:, 0], shown, *(np.full(len(x), np.nan) for x in (fused.row, fused.row, shown))
            )
            for rows, part in zip(found, candidates.run(world, where, fused, scores, [], mining, draw), strict=True):
                rows += [{k: v for k, v in row.items() if k not in NEW} for row in part.to_pylist()]
        return found


NEW = {"to_positive", "teacher_score", "positive_teacher_score", "found_by", "band"}


class Exact:
    """The plainest searcher: every product, the best k; ties as argsort likes them, here the highest row first."""

    def __init__(self, passages: np.ndarray, queries: np.ndarray) -> None:
        self.scores = queries @ passages.T

    def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        rows = np.argsort(self.scores[queries], axis=1, kind="stable")[:, ::-1][:, :k]
        return np.take_along_axis(self.scores[queries], rows, 1).astype(np.float32), rows.astype(np.int64)


def blocks(total: int, size: int) -> list[Block]:
    return [Block(low, min(low + size, total)) for low in range(0, total, size)]


def ids(letter: str, rows: list) -> list[str]:
    return [f"{letter}{number:03d}" for number in range(len(rows))]


def fold(text: str) -> str:
    return " ".join(text.lower().split())


def dot(a: tuple[int, ...], b: tuple[int, ...]) -> int:
    return sum(x * y for x, y in zip(a, b, strict=True))


def hash64(word: str) -> np.ndarray:
    return np.array([int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest(), "little")], np.uint64)


def reference(world: World, number: int, mining: Mining, pool: int, seed: int) -> list[dict[str, Any]]:
    """What the stage should say of one query, by the definitions of the README."""
    text, vector = world.queries[number]
    known = world.positives[number]
    copies = {fold(world.passages[p][0]) for p in known}
    lowest = min(dot(vector, world.passages[p][1]) for p in known)
    order = sorted(range(len(world.passages)), key=lambda p: (-dot(vector, world.passages[p][1]), p))
    rows, looked_at, seen = [], 0, set()
    for rank, p in enumerate(order, 1):
        passage, score = fold(world.passages[p][0]), dot(vector, world.passages[p][1])
        looked_at += p not in known and passage not in copies
        if looked_at > mining.depth:
            break
        tests = {
            "positive": p in known,
            "positive_copy": passage in copies,
            "query_copy": passage == fold(text),
            "copy_of_better": passage in seen,
            "rank_min": rank < mining.rank_min,
            "rank_max": mining.rank_max is not None and rank > mining.rank_max,
            "score_max": mining.score_max is not None and score > mining.score_max,
            "margin_absolute": mining.margin_absolute is not None and score > lowest - mining.margin_absolute,
            "margin_relative": mining.margin_relative is not None
            and score > lowest - mining.margin_relative * abs(lowest),
            "score_min": mining.score_min is not None and score < mining.score_min,
        }
        seen.add(passage)
        reason = next((name for name, refused in tests.items() if refused), "")
        row = {"query_id": f"q{number:03d}", "doc_id": f"d{p:03d}", "retriever": "dense", "rank": rank}
        rows.append(row | {"score": score, "positive_score": lowest, "reason": reason, "pool_rank": None})
    left = [row for row in rows if not row["reason"]]
    if mining.sample == "random":
        left.sort(key=lambda row: ranking.lottery(hash64(row["query_id"]), hash64(row["doc_id"]), seed)[0])
    for place, row in enumerate(left, 1):
        row |= {"pool_rank": place} if place <= pool else {"reason": "not_sampled"}
    return rows


@st.composite
def worlds(draw: st.DrawFn) -> World:
    text = st.sampled_from(TEXTS)
    passages = draw(st.lists(st.tuples(text, VECTOR), min_size=1, max_size=60))
    queries = draw(st.lists(st.tuples(text, VECTOR), min_size=1, max_size=6))
    known = st.lists(st.integers(0, len(passages) - 1), min_size=1, max_size=len(passages), unique=True).map(sorted)
    return World(passages, queries, [draw(known) for _ in queries])


SETTINGS = st.builds(
    Mining,
    depth=st.integers(3, 30),
    rank_min=st.integers(1, 3),
    rank_max=st.none() | st.integers(3, 9),
    margin_absolute=st.sampled_from([None, 0, 1]),
    margin_relative=st.sampled_from([None, 0, 0.5]),
    score_min=st.sampled_from([None, -2]),
    score_max=st.sampled_from([None, 2]),
    sample=st.sampled_from(["top", "random"]),
)


@given(worlds(), SETTINGS, st.integers(1, 8), st.integers(0, 99))
def test_the_stage_does_what_the_definitions_say(world, mining, pool, seed):
    found, positives = world.run(mining, pool, seed)
    assert found == [row for q in range(len(world.queries)) for row in reference(world, q, mining, pool, seed)]
    assert positives == [
        {"query_id": f"q{q:03d}", "doc_id": f"d{p:03d}", "relevance": 1, "score": dot(vector, world.passages[p][1])}
        for q, (_, vector) in enumerate(world.queries)
        for p in world.positives[q]
    ]


@given(worlds(), SETTINGS, st.integers(1, 3))
def test_the_size_of_a_block_changes_nothing(world, mining, block):
    assert world.run(mining, 4, block=block) == world.run(mining, 4)


@given(worlds(), SETTINGS)
def test_a_query_is_the_same_without_the_others(world, mining):
    """The last query alone, under its own id, gets the rows that it has among all: a random draw too."""
    alone = replace(world, positives=[[0]] * (len(world.queries) - 1) + world.positives[-1:])
    last = f"q{len(world.queries) - 1:03d}"
    assert [r for r in alone.run(mining, 4)[0] if r["query_id"] == last] == [
        r for r in world.run(mining, 4)[0] if r["query_id"] == last
    ]


def many(count: int, query: tuple[int, ...] = (1, 0)) -> World:
    """`count` different passages, all at the same score 1 of one query whose positive is the last of them."""
    return World([(f"text {i}", (1, 0)) for i in range(count)], [("what", query)], [[count - 1]])


@pytest.mark.parametrize("depth", [1, 5, 100, 199, 5000])
def test_ties_break_by_doc_id_however_many_there_are(depth):
    found, _ = many(200).run(Mining(depth=depth, margin_relative=None), pool=3)
    expected = ids("d", [None] * 200)[: min(depth, 199)] + (["d199"] if depth >= 199 else [])
    assert [row["doc_id"] for row in found] == expected
    assert [row["rank"] for row in found] == list(range(1, len(expected) + 1))


def test_one_query_with_very_many_positives_changes_nothing_for_the_others():
    rng = np.random.default_rng(1)
    passages = [(f"text {i}", tuple(map(int, rng.integers(-9, 10, 4)))) for i in range(3000)]
    queries = [(f"query {i}", tuple(map(int, rng.integers(-9, 10, 4)))) for i in range(20)]
    few = World(passages, queries, [[i] for i in range(20)])
    crowd = replace(few, positives=[*few.positives[:-1], list(range(100, 2900))])
    mining = Mining(depth=10, margin_relative=None)
    (calm, _), (full, _) = few.run(mining, 4), crowd.run(mining, 4)
    assert [r for r in full if r["query_id"] != "q019"] == [r for r in calm if r["query_id"] != "q019"]
    assert sum(r["reason"] != "positive" for r in full if r["query_id"] == "q019") == 10


def test_one_query_with_very_many_positives_asks_the_searcher_for_no_more_on_behalf_of_the_others():
    wanted = np.array([10 + 1] * 20 + [10 + 2800])
    sizes = {k: rows.tolist() for k, rows in retrieved._by_size(wanted, 3000)}
    assert sizes == {11 + retrieved.SPARE: list(range(20)), 3000: [20]}


def test_a_corpus_of_one_passage_has_no_candidates_but_the_positive():
    found, positives = World([("a", (1, 0))], [("b", (2, 0))], [[0]]).run(Mining(), pool=3)
    assert [(row["rank"], row["score"], row["reason"]) for row in found] == [(1, 2 * 1, "positive")]
    assert [row["score"] for row in positives] == [2 * 1]


def test_the_margin_counts_from_the_lowest_positive():
    """Positives score 10 and 8: the relative ceiling is 8 - 0.25 * 8 = 6, the absolute one 8 - 1 = 7."""
    passages = [(f"text {s}", (s,)) for s in (10, 8, 7, 6, 5)]
    world = World(passages, [("query", (1,))], [[0, 1]])
    relative = world.run(Mining(margin_relative=0.25), 9)[0]
    assert [row["score"] for row in relative if row["reason"] == ""] == [6, 5]
    absolute = world.run(Mining(margin_relative=None, margin_absolute=1), 9)[0]
    assert [row["score"] for row in absolute if row["reason"] == ""] == [7, 6, 5]


def test_grades_below_the_threshold_are_no_positives():
    passages = pa.Table.from_pylist([{"doc_id": d, "title": "", "text": d} for d in "abc"], PASSAGES)
    queries = pa.Table.from_pylist([{"query_id": "q", "text": "q"}], QUERIES)
    qrels = pa.Table.from_pylist(
        [{"query_id": "q", "doc_id": d, "relevance": r} for d, r in zip("abc", (1, 2, 3), strict=True)], QRELS
    )
    assert numbering.number(passages, queries, qrels, 2).positives.tolist() == [[0, 1, 2], [0, 2, 3]]
