"""Prefixes, suffixes and pooling of the encoder families, from their model cards.

A prefix that a model was trained with is part of the model: left out, retrieval gets worse without any error.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from miner import config
from miner.errors import UserError

TASK = "Given a web search query, retrieve relevant passages that answer the query"
BGE_EN = "Represent this sentence for searching relevant passages: "
BGE_ZH = "为这个句子生成表示以用于检索相关文章："
GEMMA = ("task: {task} | query: ", "title: none | text: ", "mean", "", "search result")
BGE_LLM = "<instruct>{task}\n<query>"
INSTRUCT = "Instruct: {task}\nQuery: "


class Family(NamedTuple):
    """`query`: the prefix, in which {task} stands for an instruction, `task` where the job file gives none.

    matryoshka: "" for a model that was not trained to be cut to fewer dimensions; else what comes before the cut,
    "cut" (nothing) or "layer_norm".
    """

    name: str
    pattern: str
    query: str
    passage_prefix: str
    pooling: str
    query_suffix: str = ""
    task: str = ""
    matryoshka: str = ""

    @property
    def query_prefix(self) -> str:
        return self.query.replace("{task}", self.task)


# First match wins; patterns are searched in the lower-cased last part of the model's name.
FAMILIES = (
    Family("bge-m3", r"^bge-m3", "", "", "cls"),
    Family("bge-gemma2", r"^bge-multilingual-gemma2", BGE_LLM, "", "last", "", TASK),
    Family("bge-code", r"^bge-code-v1", BGE_LLM, "", "last", "", TASK),
    Family("bge-en-icl", r"^bge-en-icl", BGE_LLM, "", "last", "\n<response>", TASK),
    Family("bge-en", r"^bge-(small|base|large)-en", BGE_EN, "", "cls"),
    Family("bge-zh", r"^bge-(small|base|large)-zh", BGE_ZH, "", "cls"),
    Family("e5-mistral", r"^e5-mistral", INSTRUCT, "", "last", "", TASK),
    Family("e5-instruct", r"e5-.*-instruct", INSTRUCT, "", "mean", "", TASK),
    Family("e5", r"(^|-)e5-(small|base|large)", "query: ", "passage: ", "mean"),
    Family("gte-qwen2", r"^gte-qwen2", INSTRUCT, "", "last", "", TASK),
    Family("qwen3-embedding", r"^qwen3-embedding", "Instruct: {task}\nQuery:", "", "last", "", TASK, "cut"),
    Family("gte-v1.5", r"^gte-(.*-en-v1\.5|multilingual)", "", "", "cls"),
    Family("gte", r"^gte-(small|base|large)", "", "", "mean"),
    Family(
        "nomic-v1.5", r"^nomic-embed-text-v1\.5", "search_query: ", "search_document: ", "mean", "", "", "layer_norm"
    ),
    Family("nomic", r"^nomic-embed-text", "search_query: ", "search_document: ", "mean"),
    Family("arctic-v2", r"^snowflake-arctic-embed-.*v2", "query: ", "", "cls", "", "", "cut"),
    Family("arctic-m-v1.5", r"^snowflake-arctic-embed-m-v1\.5", BGE_EN, "", "cls", "", "", "cut"),
    Family("arctic", r"^snowflake-arctic-embed", BGE_EN, "", "cls"),
    Family("embeddinggemma", r"^embeddinggemma", *GEMMA, "cut"),
    Family("minilm", r"minilm", "", "", "mean"),
    Family("mpnet", r"^(all|multi-qa)-mpnet", "", "", "mean"),
)


class Surround(NamedTuple):
    """What is put around the texts before a model reads them."""

    query_prefix: str
    passage_prefix: str
    query_suffix: str


def of(model: str) -> Family | None:
    """The family of a model by its name (hub id, folder or package path), or None."""
    name = model.rstrip("/").split("/")[-1].lower()
    return next((family for family in FAMILIES if re.search(family.pattern, name)), None)


def surround(settings: config.Encoder, prompts: dict[str, str] | None = None) -> Surround:
    """What stands around the texts: the job file's, else the family's, else the model's own `prompts`."""
    family = of(settings.model)
    if settings.instruction is not None and "{task}" not in (family.query if family else ""):
        which = f"the family {family.name} takes no instruction" if family else "no known family"
        raise UserError(f"encoder.instruction: {settings.model}: {which}; write encoder.query_prefix instead")
    own = prompts or {}
    query = family.query.replace("{task}", settings.instruction or family.task) if family else own.get("query", "")
    passage = family.passage_prefix if family else own.get("passage") or own.get("document", "")
    suffix = family.query_suffix if family else ""
    chosen = (settings.query_prefix, settings.passage_prefix, settings.query_suffix)
    return Surround(*(o if c is None else c for c, o in zip(chosen, (query, passage, suffix), strict=True)))


def matryoshka(settings: config.Encoder) -> str:
    """What comes before the cut to `dimensions`; "" where there is no cut. UserError for a model not trained for it."""
    if settings.dimensions is None:
        return ""
    family = of(settings.model)
    if family is None or not family.matryoshka:
        able = ", ".join(f.name for f in FAMILIES if f.matryoshka)
        raise UserError(
            f"encoder.dimensions {settings.dimensions}: {settings.model} is not known to be trained for fewer"
            f" dimensions (known: {able}); leave the key out"
        )
    return family.matryoshka
