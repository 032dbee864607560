"""Can a simple classifier tell two kinds of text apart? Then so can the model that is trained on them.

TF-IDF of word 1-2-grams and character 2-4-grams, and length features, into a logistic regression; scores out of fold,
folds never splitting a group (GroupKFold). The AUC's interval is a bootstrap over groups. A text that occurs more than
once counts once, where it comes first: else the classifier could know it by heart from another fold.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from miner.records import fold

Array = np.ndarray[Any, Any]
Verdict = Literal["ok", "warn", "refuse", "too_few"]
WARN, REFUSE = 0.6, 0.75
NEEDED_ROWS, NEEDED_GROUPS = 40, 25  # of each kind; below, the interval is wider than the way from .5 to WARN
FOLDS, DRAWS, SHOWN, MAX_CHARS, MAX_FEATURES = 5, 400, 12, 2000, 20_000
LENGTHS = ("[length]", "[words]", "[word length]", "[sentence length]", "[upper case]", "[digits]", "[punctuation]")


@dataclass(frozen=True)
class Style:
    """auc: out of fold, with its 95% interval; NaN where nothing was measured. features: the most telling first, each
    with a weight above 0 where it speaks for the second kind. needed: in words, what lacks for a verdict."""

    auc: float
    low: float
    high: float
    rows: int
    groups: int
    verdict: Verdict
    features: list[tuple[str, float]] = field(default_factory=list)
    needed: str = ""


def audit(texts: Sequence[str], is_second: Sequence[bool], groups: Sequence[str], seed: int) -> Style:
    """Measure how well the second kind of text is told from the first.

    groups: the query of each text. The verdict goes by the AUC itself (warn from .6, refuse from .75), once the
    interval lies above .5: chance alone never warns. The same input gives the same answer.
    """
    keep = _first_of_each(texts)
    label = np.array([bool(is_second[i]) for i in keep], bool)
    group = np.unique(np.array([groups[i] for i in keep], dtype=object).astype(str), return_inverse=True)[1]
    kinds = (int((~label).sum()), int(label.sum()))
    count = int(group.max()) + 1 if len(group) else 0
    if min(kinds) < NEEDED_ROWS or count < NEEDED_GROUPS:
        needed = (
            f"needs {NEEDED_ROWS} different texts of each kind from {NEEDED_GROUPS} queries;"
            f" there are {kinds[0]} and {kinds[1]} from {count}"
        )
        return Style(math.nan, math.nan, math.nan, len(keep), count, "too_few", needed=needed)
    features, names = _features([texts[i][:MAX_CHARS] for i in keep])
    scores = _out_of_fold(features, label, group, seed)
    auc = _auc(scores, label, np.ones(len(label)))
    low, high = _interval(scores, label, group, seed)
    return Style(auc, low, high, len(keep), count, _verdict(auc, low), _telling(features, label, names, seed))


def _first_of_each(texts: Sequence[str]) -> list[int]:
    seen: dict[bytes, int] = {}
    for row, text in enumerate(texts):
        key = hashlib.blake2b(fold(text).encode("utf-8", "surrogatepass"), digest_size=16).digest()
        seen.setdefault(key, row)
    return list(seen.values())


def _verdict(auc: float, low: float) -> Verdict:
    if low <= 0.5 or auc < WARN:
        return "ok"
    return "refuse" if auc >= REFUSE else "warn"


def _features(texts: list[str]) -> tuple[Any, list[str]]:
    """A sparse matrix float64[n, f] and the names of its columns. Nothing here sees a label."""
    from scipy.sparse import csr_matrix, hstack
    from sklearn.feature_extraction.text import TfidfVectorizer

    least = 2 if len(texts) >= 100 else 1
    words = TfidfVectorizer(
        ngram_range=(1, 2), min_df=least, sublinear_tf=True, max_features=MAX_FEATURES, token_pattern=r"\S+"
    )
    chars = TfidfVectorizer(
        analyzer="char_wb", ngram_range=(2, 4), min_df=least, sublinear_tf=True, max_features=MAX_FEATURES
    )
    plain = [text.encode("utf-8", "replace").decode() for text in texts]
    lengths = _lengths(plain)
    matrix = hstack([words.fit_transform(plain), chars.fit_transform(plain), csr_matrix(lengths)]).tocsr()
    shown = [f"word {name!r}" for name in words.get_feature_names_out()]
    return matrix, [*shown, *(f"chars {name!r}" for name in chars.get_feature_names_out()), *LENGTHS]


def _lengths(texts: list[str]) -> Array:
    """float64[n, 7], standardised and scaled to the size of the other features."""
    rows = []
    for text in texts:
        size, words = max(1, len(text)), text.split()
        count = max(1, len(words))
        ends = max(1, sum(text.count(end) for end in ".!?。！？"))
        shares = [sum(map(test, text)) / size for test in (str.isupper, str.isdigit, _is_mark)]
        rows.append([math.log(size), math.log(count), size / count, math.log(count / ends + 1), *shares])
    found = np.array(rows)
    return np.asarray(0.3 * (found - found.mean(axis=0)) / np.maximum(found.std(axis=0), 1e-9))


def _is_mark(letter: str) -> bool:
    return not letter.isalnum() and not letter.isspace()


def _model(seed: int) -> Any:
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(C=10.0, solver="liblinear", class_weight="balanced", random_state=seed, max_iter=1000)


def _out_of_fold(features: Any, label: Array, group: Array, seed: int) -> Array:
    """float64[n]: the decision value of each text from the model of the folds that it is not in."""
    from sklearn.model_selection import GroupKFold

    shuffled = np.random.default_rng(seed).permutation(int(group.max()) + 1)[group]
    scores = np.zeros(len(label))
    for train, test in GroupKFold(n_splits=FOLDS).split(features, label, shuffled):
        if len(np.unique(label[train])) < 2:
            scores[test] = 0.5
            continue
        found = _model(seed).fit(features[train], label[train]).decision_function(features[test])
        scores[test] = found
    return scores


def _auc(scores: Array, label: Array, weight: Array) -> float:
    """The chance that a text of the second kind scores above one of the first; ties count half."""
    _, place = np.unique(scores, return_inverse=True)
    size = int(place.max()) + 1
    second = np.bincount(place, weight * label, size)
    first = np.bincount(place, weight * ~label, size)
    pairs = first.sum() * second.sum()
    below = np.cumsum(first) - first
    return float((second * (below + first / 2)).sum() / pairs) if pairs else math.nan


def _interval(scores: Array, label: Array, group: Array, seed: int) -> tuple[float, float]:
    """The 95% percentile interval over draws of whole groups."""
    generator = np.random.default_rng(seed)
    count = int(group.max()) + 1
    drawn = [np.bincount(generator.integers(0, count, count), minlength=count)[group] for _ in range(DRAWS)]
    found = np.array([_auc(scores, label, weight.astype(float)) for weight in drawn])
    low, high = np.nanquantile(found, [0.025, 0.975])
    return float(low), float(high)


def _telling(features: Any, label: Array, names: list[str], seed: int) -> list[tuple[str, float]]:
    """The features whose weight times spread is largest, of one fit on all rows."""
    weights = _model(seed).fit(features, label).coef_[0]
    squares = features.multiply(features).mean(axis=0)
    spread = np.sqrt(np.maximum(np.asarray(squares).ravel() - np.asarray(features.mean(axis=0)).ravel() ** 2, 0))
    effect = weights * spread
    order = np.lexsort((np.arange(len(names)), -np.abs(effect)))[:SHOWN]
    return [(names[i], round(float(effect[i]), 4)) for i in order]
