"""sentence-transformers' mine_hard_negatives on vectors that are there already."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
from leaks_data import Data, Kept
from leaks_settings import NEGATIVES


class _Stub:
    """What mine_hard_negatives asks of a model, the encoding looked up."""

    def __init__(self, data: Data, texts: dict[str, str]) -> None:
        import torch
        from sentence_transformers import util

        self.device = torch.device("cpu")
        self.similarity, self.similarity_pairwise = util.cos_sim, util.pairwise_cos_sim
        self._vectors, self._texts = data.vectors, texts

    def encode_document(self, words: list[str], **_: Any) -> Any:
        return np.stack([self._vectors["p:" + self._texts["p:" + word]] for word in words])

    def encode_query(self, words: list[str], **_: Any) -> Any:
        return np.stack([self._vectors["q:" + self._texts["q:" + word]] for word in words])


def mine(data: Data, settings: dict[str, Any], seed: int) -> Kept:
    from datasets import Dataset
    from sentence_transformers.util import mine_hard_negatives

    there = [doc for doc in data.passages if "p:" + doc in data.vectors]
    texts = {"p:" + data.passages[doc]: doc for doc in there} | {"q:" + text: q for q, text in data.queries.items()}
    random.seed(seed)
    asked = list(data.queries)
    mined = mine_hard_negatives(
        Dataset.from_dict(
            {
                "query": [data.queries[query] for query in asked],
                "positive": [data.passages[data.shown[query]] for query in asked],
            }
        ),
        _Stub(data, texts),
        corpus=[data.passages[doc] for doc in there],
        num_negatives=NEGATIVES,
        output_format="triplet",  # keeps the queries that have fewer negatives than wanted
        verbose=False,
        **settings,
    )
    found: dict[str, dict[str, None]] = {}  # a query text that stands for several queries is mined once, there
    for query, negative in zip(mined["query"], mined["negative"], strict=True):
        found.setdefault(query, {})[texts["p:" + negative]] = None
    return {query: list(found.get(text, ())) for query, text in data.queries.items()}
