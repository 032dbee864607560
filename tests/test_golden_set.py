"""The golden set of the graded judge: written for this project, well-formed, and hard.

Hard in both directions: what relevant and irrelevant passages share with the query is balanced, so neither a bag of
words nor its reverse, nor their length, nor a small encoder tells them apart.
"""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from typing import Any

import numpy as np
import pytest
import toy
from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS, TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GroupKFold, cross_val_predict
from sklearn.pipeline import make_pipeline

from miner import config, encoders, golden, prompts

GOLDEN = prompts.SHIPPED / "judge/graded.golden.jsonl"
KEYS = ["query_id", "query", "positive", "doc_id", "passage", "grade", "tag", "reason", "split"]
# What a careless judge would trip over. A swap is irrelevant where the passage holds only the other thing, and relevant
# where it holds both and answers the query among them.
TAGS = {
    "entity-swap": "another person, thing, place or product",
    "date-swap": "another date or period",
    "quantity-swap": "another number, or a number of something else",
    "condition-swap": "holds under another condition",
    "scope-swap": "a wider, narrower or neighbouring case",
    "negation": "the opposite case, or what does not work",
    "partial-answer": "a part of what the query asks",
    "wrong-question": "the right topic, another question",
    "paraphrase": "answers with no content word of the query",
    "multilingual": "the passage is in another language than the query",
    "hostile": "text that addresses the judge, in relevant and irrelevant passages",
    "full-answer": "control: answers plainly",
    "off-topic": "control: shares words only",
}
ROWS: list[dict[str, Any]] = [json.loads(line) for line in GOLDEN.read_text(encoding="utf-8").split("\n")[:-1]]
RELEVANT = np.array([row["grade"] >= 2 for row in ROWS])
DEV = np.array([row["split"] == "dev" for row in ROWS])
PARTS = {"all": np.ones(len(ROWS), bool), "dev": DEV, "test": ~DEV}
WIDE_SCRIPT = re.compile("[\u3040-\u30ff\u4e00-\u9fff]")  # Japanese and Chinese: no spaces between words


def column(name: str) -> list[str]:
    return [row[name] for row in ROWS]


def by_query() -> dict[str, list[dict[str, Any]]]:
    found = defaultdict(list)
    for row in ROWS:
        found[row["query_id"]].append(row)
    return found


# ---------------------------------------------------------------- form


def test_size_and_keys():
    assert len(ROWS) >= 220
    assert len(by_query()) >= 44
    assert len(golden.read(GOLDEN)) == len(ROWS)
    for row in ROWS:
        assert list(row) == KEYS
        assert all(isinstance(row[key], str) and row[key].strip() for key in KEYS if key != "grade")
        assert row["grade"] in range(4)
        assert type(row["grade"]) is int
        assert row["split"] in ("dev", "test")
        assert row["tag"] in TAGS
        assert "\n" not in row["reason"] + row["query"]
        assert 10 <= len(row["reason"]) <= 120


def test_the_rows_of_a_query_stand_together():
    assert [row for rows in by_query().values() for row in rows] == ROWS


def test_no_pair_and_no_id_comes_twice():
    assert len(set(column("doc_id"))) == len(ROWS)
    assert len(set(column("passage"))) == len(ROWS)
    groups = by_query().values()
    assert len({rows[0]["query"] for rows in groups}) == len(groups)
    for rows in groups:
        for key in ("query", "positive", "split"):
            assert len({row[key] for row in rows}) == 1
        assert rows[0]["positive"] not in [row["passage"] for row in rows]


def test_ids_and_order_do_not_tell_the_grade():
    for query_id, rows in by_query().items():
        assert [row["doc_id"] for row in rows] == [f"{query_id}-{n}" for n in range(1, len(rows) + 1)]
    place = np.array([int(name.rpartition("-")[2]) for name in column("doc_id")])
    assert abs(roc_auc_score(RELEVANT, place) - 0.5) < 0.1


def test_both_classes_in_nearly_every_query():
    both = [len({row["grade"] >= 2 for row in rows}) == 2 for rows in by_query().values()]
    assert np.mean(both) >= 0.8


def test_grades_are_spread():
    counts = Counter(row["grade"] for row in ROWS)
    assert all(counts[grade] >= 15 for grade in range(4))
    for rows in PARTS.values():
        assert 0.4 <= RELEVANT[rows].mean() <= 0.5


def test_every_tag_in_both_splits():
    counts = Counter((row["tag"], row["split"]) for row in ROWS)
    for tag in TAGS:
        assert counts[tag, "dev"] + counts[tag, "test"] >= 10, tag
        assert min(counts[tag, "dev"], counts[tag, "test"]) >= 3, tag
    assert 0.4 <= DEV.mean() <= 0.6


@pytest.mark.parametrize("tag", sorted(set(TAGS) - {"paraphrase", "partial-answer", "full-answer", "off-topic"}))
def test_a_tag_does_not_tell_the_verdict(tag):
    verdicts = Counter(row["grade"] >= 2 for row in ROWS if row["tag"] == tag)
    assert min(verdicts[True], verdicts[False]) >= 3


def test_lengths():
    for row in ROWS:
        if WIDE_SCRIPT.search(row["passage"]):
            assert 70 <= len(row["passage"]) <= 300, row["doc_id"]
        else:
            assert 25 <= len(row["passage"].split()) <= 120, row["doc_id"]


def test_several_languages():
    queries = {rows[0]["query_id"].partition("-")[0] for rows in by_query().values()}
    assert len(queries - {"en"}) >= 10


def test_paraphrases_share_no_content_word_with_an_english_query():
    words = TfidfVectorizer(token_pattern=r"(?u)\b\w+\b", stop_words=list(ENGLISH_STOP_WORDS)).build_analyzer()
    rows = [row for row in ROWS if row["tag"] == "paraphrase" and row["query_id"].startswith("en-")]
    assert len(rows) >= 30
    for row in rows:
        assert not set(words(row["query"])) & set(words(row["passage"])), row["doc_id"]


# ---------------------------------------------------------------- hard


def auc(score: np.ndarray, part: str) -> float:
    return float(roc_auc_score(RELEVANT[PARTS[part]], score[PARTS[part]]))


def cosine(against: list[str], **settings: Any) -> np.ndarray:
    """TF-IDF cosine of each passage with its text of `against`: float64[n]."""
    bag = TfidfVectorizer(**settings).fit([*column("query"), *column("positive"), *column("passage")])
    return np.asarray(bag.transform(against).multiply(bag.transform(column("passage"))).sum(1)).ravel()


BAGS = {
    "words": {},
    "content-words": {"stop_words": "english"},
    "letters": {"analyzer": "char_wb", "ngram_range": (2, 3), "min_df": 2},
}


@pytest.mark.parametrize("bag", BAGS)
def test_a_bag_of_words_cannot_tell(bag):
    queries, positives = column("query"), column("positive")
    both = [f"{query} {positive}" for query, positive in zip(queries, positives, strict=True)]
    for against in (queries, positives, both):
        score = cosine(against, **BAGS[bag])
        for part in PARTS:
            assert 0.35 < auc(score, part) < 0.65, part


@pytest.mark.parametrize("bag", ["words", "letters"])
def test_the_words_of_a_passage_alone_cannot_tell(bag):
    """Nothing in the style gives the grade away: a classifier that never saw the query."""
    model = make_pipeline(TfidfVectorizer(**BAGS[bag]), LogisticRegression(max_iter=2000, class_weight="balanced"))
    found = cross_val_predict(
        model, column("passage"), RELEVANT, groups=column("query_id"), cv=GroupKFold(5), method="predict_proba"
    )
    assert 0.35 < auc(found[:, 1], "all") < 0.65


def test_length_cannot_tell():
    assert 0.4 < auc(np.array([len(passage) for passage in column("passage")]), "all") < 0.6


def test_the_packaged_encoder_cannot_tell():
    encoder = encoders.load(config.Encoder(**{**toy.MINILM, "max_length": 128}))
    passages = encoder.encode(column("passage"), "passage")
    groups = by_query().values()
    for name, kind in (("query", "query"), ("positive", "passage")):
        vectors = encoder.encode([rows[0][name] for rows in groups], kind)
        score = (np.repeat(vectors, [len(rows) for rows in groups], axis=0) * passages).sum(1)
        for part in PARTS:
            assert 0.3 < auc(score, part) < 0.7, (name, part)
