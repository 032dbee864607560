"""Prefixes and pooling of the encoder families, from their model cards.

A prefix that a model was trained with is part of the model: left out, retrieval gets worse without any error.
"""

from __future__ import annotations

import re
from typing import NamedTuple

TASK = "Given a web search query, retrieve relevant passages that answer the query"
BGE_EN = "Represent this sentence for searching relevant passages: "
BGE_ZH = "为这个句子生成表示以用于检索相关文章："


class Family(NamedTuple):
    name: str
    pattern: str
    query_prefix: str
    passage_prefix: str
    pooling: str


# First match wins; patterns are searched in the lower-cased last part of the model's name.
FAMILIES = (
    Family("bge-m3", r"^bge-m3", "", "", "cls"),
    Family("bge-gemma2", r"^bge-multilingual-gemma2", f"<instruct>{TASK}\n<query>", "", "last"),
    Family("bge-code", r"^bge-code-v1", f"<instruct>{TASK}\n<query>", "", "last"),
    Family("bge-en", r"^bge-(small|base|large)-en", BGE_EN, "", "cls"),
    Family("bge-zh", r"^bge-(small|base|large)-zh", BGE_ZH, "", "cls"),
    Family("e5-mistral", r"^e5-mistral", f"Instruct: {TASK}\nQuery: ", "", "last"),
    Family("e5-instruct", r"e5-.*-instruct", f"Instruct: {TASK}\nQuery: ", "", "mean"),
    Family("e5", r"(^|-)e5-(small|base|large)", "query: ", "passage: ", "mean"),
    Family("gte-qwen2", r"^gte-qwen2", f"Instruct: {TASK}\nQuery: ", "", "last"),
    Family("qwen3-embedding", r"^qwen3-embedding", f"Instruct: {TASK}\nQuery:", "", "last"),
    Family("gte-v1.5", r"^gte-(.*-en-v1\.5|multilingual)", "", "", "cls"),
    Family("gte", r"^gte-(small|base|large)", "", "", "mean"),
    Family("nomic", r"^nomic-embed-text", "search_query: ", "search_document: ", "mean"),
    Family("arctic-v2", r"^snowflake-arctic-embed-.*v2", "query: ", "", "cls"),
    Family("arctic", r"^snowflake-arctic-embed", BGE_EN, "", "cls"),
    Family("minilm", r"minilm", "", "", "mean"),
    Family("mpnet", r"^(all|multi-qa)-mpnet", "", "", "mean"),
)


def of(model: str) -> Family | None:
    """The family of a model by its name (hub id, folder or package path), or None."""
    name = model.rstrip("/").split("/")[-1].lower()
    return next((family for family in FAMILIES if re.search(family.pattern, name)), None)
