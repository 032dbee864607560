from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest

from miner import style

DOCS = Path(__file__).resolve().parents[1] / "examples" / "library-docs" / "data" / "corpus.jsonl"


def texts(count: int) -> list[str]:
    """Passages of the demo's corpus in an order of chance."""
    found = [json.loads(line)["text"] for line in DOCS.read_text(encoding="utf-8").splitlines()]
    found = list(dict.fromkeys(found))
    random.Random(5).shuffle(found)
    return found[:count]


def halves(count: int) -> list[bool]:
    return [bool(i % 2) for i in range(count)]


def pairs(count: int) -> list[str]:
    """Two texts a query."""
    return [f"q{i // 2}" for i in range(count)]


def test_two_random_halves_cannot_be_told_apart():
    found = style.audit(texts(160), halves(160), pairs(160), 3)
    assert found.low < 0.5 < found.high
    assert found.verdict == "ok"
    assert (found.rows, found.groups) == (160, 80)


def test_a_planted_template_is_told_and_named():
    marked = [
        f"It is worth noting that {t}" if second else t for t, second in zip(texts(160), halves(160), strict=True)
    ]
    found = style.audit(marked, halves(160), pairs(160), 3)
    assert found.auc > 0.9
    assert found.verdict == "refuse"
    assert any("noting" in name and weight > 0 for name, weight in found.features)


def test_a_difference_in_length_alone_is_told():
    cut = [t[:60] if second else t for t, second in zip(texts(160), halves(160), strict=True)]
    found = style.audit(cut, halves(160), pairs(160), 3)
    assert found.auc > 0.75
    assert any(name == "[length]" and weight < 0 for name, weight in found.features)


def test_the_same_input_gives_the_same_answer_and_the_seed_moves_only_the_folds():
    one, two = (style.audit(texts(120), halves(120), pairs(120), 3) for _ in range(2))
    assert one == two
    other = style.audit(texts(120), halves(120), pairs(120), 4)
    assert other.features == one.features
    assert other.auc != one.auc


@pytest.mark.parametrize(("count", "groups"), [(0, 1), (78, 39), (200, 24)])
def test_too_few_rows_get_no_verdict_but_the_number_that_is_needed(count, groups):
    found = style.audit(texts(count), halves(count), [f"q{i % groups}" for i in range(count)], 3)
    assert found.verdict == "too_few"
    assert np.isnan(found.auc)
    assert "needs 40 different texts of each kind from 25 queries" in found.needed


def test_a_text_that_stands_in_both_kinds_counts_once():
    """Else a model that knows the text by heart from one fold would be wrong, or right, about it in another."""
    some = texts(150)
    found = style.audit(some + some, [False] * 150 + [True] * 150, [f"q{i}" for i in range(160)], 3)
    assert found.verdict == "too_few"
    assert found.rows == 150


@pytest.mark.parametrize(
    ("auc", "low", "verdict"),
    [(0.59, 0.55, "ok"), (0.61, 0.49, "ok"), (0.61, 0.51, "warn"), (0.75, 0.6, "refuse"), (0.9, 0.5, "ok")],
)
def test_the_verdict_needs_an_interval_above_chance(auc, low, verdict):
    assert style._verdict(auc, low) == verdict


def test_ties_count_half_and_weights_count_texts():
    label = np.array([False, True, True, False])
    scores = np.array([0.0, 1.0, 0.0, 1.0])
    assert style._auc(scores, label, np.ones(4)) == pytest.approx((0.5 + 0 + 1 + 0.5) / 4)
    assert style._auc(scores, label, np.array([1.0, 1, 0, 0])) == 1.0
    assert np.isnan(style._auc(scores, label, np.array([1.0, 0, 0, 1])))
