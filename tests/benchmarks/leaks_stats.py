"""Numbers of leaks.py: leak rate, yield, hardness, and comparisons at equal counts."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from leaks_data import Data, Kept

Array = np.ndarray[Any, Any]
DRAWS = 2000


@dataclass(frozen=True)
class Result:
    """Per query with a hidden positive, in the order of Data.hidden: arrays of equal length."""

    leaks: Array
    counts: Array
    hardness: float
    lexical: float

    @property
    def rate(self) -> float:
        return float(self.leaks.sum() / max(self.counts.sum(), 1))

    @property
    def mean(self) -> float:
        return float(self.counts.mean())


class Paired(NamedTuple):
    """A against B with the same number of negatives of each query."""

    leaks: float
    low: float
    high: float
    hardness: float


def measure(data: Data, kept: Kept, words: Callable[[str, str], float]) -> Result:
    lists = [kept.get(query, []) for query in data.hidden]
    pairs = [(query, doc) for query, docs in zip(data.hidden, lists, strict=True) for doc in docs]
    return Result(
        np.array([sum(d in data.hidden[q] for d in docs) for q, docs in zip(data.hidden, lists, strict=True)]),
        np.array([len(docs) for docs in lists]),
        float(np.mean([data.cosine(*pair) for pair in pairs])) if pairs else math.nan,
        float(np.mean([words(*pair) for pair in pairs])) if pairs else math.nan,
    )


def interval(leaks: Array, counts: Array) -> tuple[float, float]:
    """95% bootstrap interval of the leak rate, whole queries drawn."""
    draws = np.random.default_rng(13).integers(len(counts), size=(DRAWS, len(counts)))
    low, high = np.quantile(leaks[draws].sum(1) / np.maximum(counts[draws].sum(1), 1), [0.025, 0.975])
    return float(low), float(high)


def paired(data: Data, a: Kept, b: Kept) -> Paired:
    """Differences A - B after cutting both to the same count per query, best ranks first."""
    leaks, counts, cosines = [], [], []
    for query, hidden in data.hidden.items():
        size = min(len(a.get(query, [])), len(b.get(query, [])))
        ours, theirs = a.get(query, [])[:size], b.get(query, [])[:size]
        leaks.append(sum(d in hidden for d in ours) - sum(d in hidden for d in theirs))
        counts.append(size)
        cosines.append(sum(data.cosine(query, d) for d in ours) - sum(data.cosine(query, d) for d in theirs))
    total = max(sum(counts), 1)
    return Paired(sum(leaks) / total, *interval(np.array(leaks), np.array(counts)), sum(cosines) / total)


def at_hardness(curve: list[tuple[float, float]], hardness: float) -> float:
    """The curve's leak rate at this hardness, linear between its points; nan outside of it."""
    points = sorted(curve)
    x, y = zip(*points, strict=True)
    return float(np.interp(hardness, x, y)) if x[0] - 1e-9 <= hardness <= x[-1] + 1e-9 else math.nan


def lexical(data: Data) -> Callable[[str, str], float]:
    """A second scorer, which knows no vectors: the share of the query's words, by idf, that the passage has."""
    sets = {doc: set(_words(text)) for doc, text in data.passages.items()}
    seen = Counter(word for words in sets.values() for word in words)

    def idf(word: str) -> float:
        return math.log((len(sets) + 1) / (seen[word] + 0.5))

    asked = {query: {word: idf(word) for word in _words(text)} for query, text in data.queries.items()}

    def score(query: str, doc: str) -> float:
        weights = asked[query]
        return sum(w for word, w in weights.items() if word in sets[doc]) / (sum(weights.values()) or 1)

    return score


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.casefold())
