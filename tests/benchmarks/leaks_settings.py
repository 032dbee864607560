"""The settings that leaks.py compares. A new filter is a new line in OURS; --also adds one for a single run."""

from __future__ import annotations

from typing import Any

NEGATIVES = 7
BASE: dict[str, Any] = {"depth": 100, "negatives": NEGATIVES, "margin_relative": None, "margin_on": "dense"}
# The first ranks, and windows further down: how leaks fall when negatives simply get easier.
WINDOWS = {f"ranks from {first}": [f"mining.rank_min={first}"] for first in (3, 6, 10, 15, 20, 30, 45, 60)}
NAIVE: dict[str, list[str]] = {"naive top-k": [], **WINDOWS}

BOTH = "mining.retrievers=[{kind: dense}, {kind: bm25, language: en}]"
MARGIN = "mining.margin_relative=0.05"
ROCCHIO = "mining.margin_on=rocchio"
OURS: dict[str, list[str]] = {
    "margin .05": [MARGIN],
    "margin .1": ["mining.margin_relative=0.1"],
    "rocchio .05": [ROCCHIO, MARGIN],
    "rocchio .1": [ROCCHIO, "mining.margin_relative=0.1"],
    "rocchio 0": [ROCCHIO, "mining.margin_relative=0"],
    "margin absolute .05": ["mining.margin_absolute=0.05"],
    "score_max .6": ["mining.score_max=0.6"],
    "random": ["mining.sample=random"],
    "margin .05, random": [MARGIN, "mining.sample=random"],
    "margin .05, softmax": [MARGIN, "mining.sample=softmax"],
    "margin .05, bands": [MARGIN, "mining.sample=bands"],
    "margin .05, mmr": [MARGIN, "mining.sample=mmr"],
    "bm25 alone": ["mining.retrievers=[{kind: bm25, language: en}]"],
    "dense + bm25, rrf": [BOTH],
    "dense + bm25, union": [BOTH, "mining.fusion=union"],
    "dense + bm25, rrf, margin .05": [BOTH, MARGIN],
    "near-duplicate words .8": ["filters.near_duplicate_jaccard=0.8"],
    "near-duplicate cosine .95": ["filters.near_duplicate_cosine=0.95"],
    "near-duplicate cosine .8": ["filters.near_duplicate_cosine=0.8"],
    "twin queries .9": ["filters.twin_queries=0.9"],
    "twin queries .7": ["filters.twin_queries=0.7"],
    "max_uses 3": ["mining.max_uses=3"],
    "rocchio .05, cosine .8, twins .7": [
        ROCCHIO,
        MARGIN,
        "filters.near_duplicate_cosine=0.8",
        "filters.twin_queries=0.7",
    ],
    "margin .05, cosine .8, twins .7": [MARGIN, "filters.near_duplicate_cosine=0.8", "filters.twin_queries=0.7"],
}

# sentence-transformers: keyword arguments of mine_hard_negatives.
PEER: dict[str, dict[str, Any]] = {
    "ST top-k": {"range_max": 100},
    "ST margin .05": {"range_max": 100, "relative_margin": 0.05},
    "ST margin .1": {"range_max": 100, "relative_margin": 0.1},
    "ST margin .2": {"range_max": 100, "relative_margin": 0.2},
    "ST absolute margin .05": {"range_max": 100, "absolute_margin": 0.05},
    "ST absolute margin .1": {"range_max": 100, "absolute_margin": 0.1},
    "ST max_score .6": {"range_max": 100, "max_score": 0.6},
    "ST ranks 10-60": {"range_min": 10, "range_max": 60},
    "ST ranks 10-60, random": {"range_min": 10, "range_max": 60, "sampling_strategy": "random"},
    "ST ranks 10-60, margin .05": {"range_min": 10, "range_max": 60, "relative_margin": 0.05},
    "ST ranks 10-50, max .8, margin .05, random": {
        "range_min": 10,
        "range_max": 50,
        "max_score": 0.8,
        "relative_margin": 0.05,
        "sampling_strategy": "random",
    },
    "ST ranks 10-210, random (FlagEmbedding's way)": {
        "range_min": 10,
        "range_max": 210,
        "sampling_strategy": "random",
    },
}
REFERENCE = "ST margin .05"
