"""A judge of every mode on the loopback server, and jobs that it judges, run in this process."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import toy
from loopback import Loopback, Reply, completion
from prompt_server import PASSAGE, yes_no

from miner import config, engine
from miner.job import Stamp
from miner.steps import Context

QUERY = re.compile(r"=== QUERY \w+ ===\n(.*?)\n=== ", re.DOTALL)
PROBABILITY = {0: 0.05, 1: 0.3, 2: 0.7, 3: 0.95}
RELATION = {0: "unrelated", 1: "worse", 2: "equal", 3: "better"}
Grade = Callable[[str, str], int]


def by_hash(query: str, passage: str) -> int:
    """0-3, the same in every mode; a known positive of the toy corpus is a 3."""
    if any(passage.startswith(name) and f" {name}" in query for name in toy.ANIMALS) and (
        ("sound" in query and "wants attention" in passage) or ("food" in query and "likes to eat" in passage)
    ):
        return 3
    return hashlib.sha256(f"{query}|{passage}".encode()).digest()[0] % 4


def texts(body: dict[str, Any]) -> tuple[str, list[tuple[str, str]]]:
    """The query, and (number, text) of each passage."""
    user = body["messages"][1]["content"]
    return QUERY.search(user)[1], PASSAGE.findall(user)  # type: ignore[index]


def mode(body: dict[str, Any]) -> str:
    form = json.dumps(body.get("response_format", {}))
    if "logprobs" in body:
        return "binary"
    return "listwise" if "relation" in form else "packed" if "answers" in form else "graded"


def entry(kind: str, number: str, passage: str, grade: int) -> dict[str, Any]:
    found: dict[str, Any] = {"evidence": passage[:20] if grade > 1 else ""}
    found |= {"relation": RELATION[grade]} if kind == "listwise" else {"grade": grade}
    return {"id": int(number), **found} if number else found


def judge(grade: Grade = by_hash) -> Callable[[dict[str, Any]], Reply]:
    def reply(body: dict[str, Any]) -> Reply:
        query, passages = texts(body)
        kind = mode(body)
        if kind == "binary":
            return 200, {}, yes_no(PROBABILITY[grade(query, passages[0][1])])
        entries = [entry(kind, number, text, grade(query, text)) for number, text in passages]
        return 200, {}, completion(json.dumps(entries[0] if kind == "graded" else {"answers": entries}))

    return reply


def job(folder: Path, server: Loopback, llm: dict[str, Any] | None = None, **sections: Any) -> Path:
    """A judged job on the toy corpus; its vectors are shared by all jobs of the test run."""
    folder.mkdir(parents=True, exist_ok=True)
    given = {"enabled": True, "pool": 6, "uncalibrated": True, **sections.pop("judge", {})}
    settings = toy.llm(server.url, **{"concurrency": 4, "attempts": 1, **(llm or {})})
    cache = str(folder.parent.parent / "judging-vectors")
    return toy.job(folder, llm=settings, judge=given, vector_cache=cache, **sections)


@contextmanager
def opened(path: Path, *overrides: str) -> Iterator[Context]:
    with engine.opened(config.load(path, list(overrides))) as run:
        yield run


def advance(path: Path, until: str | None = None, *overrides: str) -> dict[str, Stamp]:
    with opened(path, *overrides) as run:
        return {stamp.step: stamp for stamp in engine.advance(run, until)}


def rows(path: Path, step: str, pattern: str = "judgments.parquet") -> list[dict[str, Any]]:
    files = sorted((path.with_suffix(".job") / step).glob(pattern))
    return [row for file in files for row in pq.read_table(file).to_pylist()]


def truths(path: Path, grade: Grade = by_hash) -> dict[tuple[str, str], int]:
    """The grade that the server would give each pair of the pool."""
    passages = {row["doc_id"]: f"{row['title']} {row['text']}" for row in rows(path, "corpus", "passages.parquet")}
    queries = {row["query_id"]: row["text"] for row in rows(path, "corpus", "queries.parquet")}
    pool = [row for row in rows(path, "candidates", "part-*") if row["pool_rank"]]
    return {(r["query_id"], r["doc_id"]): grade(queries[r["query_id"]], passages[r["doc_id"]]) for r in pool}


def key(row: dict[str, Any]) -> tuple[str, str]:
    return row["query_id"], row["doc_id"]
