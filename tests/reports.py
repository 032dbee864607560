"""A large job folder without any run: its tables are written straight in the schemas of the steps, and stamped."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import toy

from miner import config, engine, store
from miner.config import Job
from miner.job import JobFolder
from miner.ledger import Ledger
from miner.records import CANDIDATES, DECISIONS, FOUND_BY, JUDGMENTS, OUTCOMES, PASSAGES, POSITIVES, QUERIES

Tables = dict[str, pa.Table]
DEPTH, POOL, CHARS = 20, 8, 400
KEPT = 4


def words(count: int, seed: int, chars: int) -> list[str]:
    """Texts of about so many characters, of 4,000 invented words in the frequencies of a language."""
    generator = np.random.default_rng(seed)
    letters = np.array(list("etaoinshrdlucmfwypvbgk"))
    known = ["".join(generator.choice(letters, size)) for size in generator.integers(2, 10, 4000)]
    chance = 1 / np.arange(1, 4001)
    drawn = generator.choice(np.array(known), (count, chars // 6 + 1), p=chance / chance.sum())
    return [" ".join(row)[:chars].strip() for row in drawn]


def folder(root: Path, queries: int, answered: int = 0) -> Job:
    """A job of so many queries with DEPTH candidates each, POOL of them judged, KEPT kept. answered: how many queries
    have their requests in the ledger."""
    toy.job(root, llm={"model": "toy", "base_url": "http://127.0.0.1:9/v1"}, judge={"enabled": True})
    job = config.load(root / "job.yaml", [])
    tables = _tables(queries)
    stamps: dict[str, Any] = {}
    home = JobFolder(Path(job.job or ""))
    for step in engine.plan(job):
        inputs = {f"files of {name}": stamps[name].hash for name in step.needs}
        work = home.work(step.name, inputs)
        for name, table in tables.get(step.name, {}).items():
            store.write_table(work / f"{name}.parquet", table)
        stamps[step.name] = home.finish(step.name, inputs, work, counts(queries).get(step.name, {}), True)
    _ledger(home.ledger, tables, answered)
    return job


def counts(queries: int) -> dict[str, Any]:
    return {
        "corpus": {"passages": 5 * queries, "queries": queries},
        "decisions": {"candidates": {}, "queries": {"exported": queries}},
        "export": {"negatives": KEPT * queries},
    }


def _tables(queries: int) -> dict[str, Tables]:
    generator, size = np.random.default_rng(5), queries * DEPTH
    passages = 5 * queries
    names = [f"q{number:05}" for number in range(queries)]
    query_id = np.repeat(np.array(names, object), DEPTH)
    doc = np.array([f"d{number:06}" for number in range(passages)], object)
    first = generator.integers(0, passages, queries)
    doc_id = doc[(first[:, None] + 1 + np.arange(DEPTH) * 7) % passages].ravel()
    rank = np.tile(np.arange(1, DEPTH + 1), queries)
    score = (0.9 - 0.02 * rank + generator.normal(0, 0.03, size)).astype(np.float32)
    pool = (rank > 4) & (rank <= 4 + POOL)
    verdict = np.where(generator.random(size) < 0.2, "relevant", "irrelevant").astype(object)
    reason = np.where(rank <= 4, "margin_relative", np.where(pool, "", "not_sampled")).astype(object)
    found_by = pa.array(
        [[{"retriever": "dense", "rank": int(r), "score": float(s)}] for r, s in zip(rank, score, strict=True)],
        FOUND_BY,
    )
    candidates = {
        **{"query_id": query_id, "doc_id": doc_id, "retriever": np.full(size, "dense", object), "rank": rank},
        **{"score": score, "positive_score": np.full(size, 0.9), "found_by": found_by},
        **{"band": np.full(size, "", object), "reason": reason, "pool_rank": pa.array(rank - 4, mask=~pool)},
    }
    relevant = pool & (verdict == "relevant")
    decided = np.where(pool & relevant, "judged_relevant", reason).astype(object)
    place = np.cumsum((decided == "").reshape(queries, DEPTH), axis=1).ravel()
    kept = (decided == "") & (place <= KEPT)
    decided[(decided == "") & ~kept] = "surplus"
    judged = {"status": "ok", "rung": "judge", "prompt": "graded", "prompt_version": "v", "model": "toy"}
    keys = np.array([f"{number:064x}" for number in range(size)], object)
    said = {
        **{"query_id": query_id[pool], "doc_id": doc_id[pool], "verdict": verdict[pool], "request_key": keys[pool]},
        **{"grade": np.where(relevant, 3, 0)[pool], "evidence": np.full(int(pool.sum()), "some words", object)},
        **{name: np.full(int(pool.sum()), word, object) for name, word in judged.items()},
    }
    decisions = {
        **{name: candidates[name] for name in DECISIONS.names if name in candidates},
        **{"source": np.full(size, "mined", object), "kept": kept, "reason": decided},
        **{"slot": pa.array(place, mask=~kept), "grade": pa.array(np.where(relevant, 3, 0), mask=~pool)},
        **{"verdict": pa.array(verdict, mask=~pool), "status": pa.array(np.full(size, "ok", object), mask=~pool)},
    }
    positives = {
        "query_id": names,
        "doc_id": doc[first],
        "relevance": np.ones(queries, int),
        "score": np.full(queries, 0.9),
    }
    became = {
        **{
            "query_id": names,
            "positives": np.ones(queries, int),
            "negatives": kept.reshape(queries, DEPTH).sum(axis=1),
        },
        **{"false_negatives": relevant.reshape(queries, DEPTH).sum(axis=1), "reason": np.full(queries, "", object)},
    }
    corpus = {"doc_id": doc, "title": np.full(passages, "", object), "text": words(passages, 1, CHARS)}
    asked = {"query_id": names, "text": words(queries, 2, 60)}
    return {
        "corpus": {"passages": _table(PASSAGES, corpus), "queries": _table(QUERIES, asked)},
        "candidates": {"part-00000": _table(CANDIDATES, candidates), "positives-00000": _table(POSITIVES, positives)},
        "judgments": {"judgments": _table(JUDGMENTS, said)},
        "decisions": {"part-00000": _table(DECISIONS, decisions), "outcomes-00000": _table(OUTCOMES, became)},
    }


def _table(schema: pa.Schema, columns: dict[str, Any]) -> pa.Table:
    size = len(next(iter(columns.values())))
    arrays = [_column(columns.get(field.name), field.type, size) for field in schema]
    return pa.table(arrays, schema=schema)


def _column(values: Any, kind: Any, size: int) -> Any:
    if values is None:
        return pa.nulls(size, kind)
    found = values if isinstance(values, pa.Array) else pa.array(values)
    return found if found.type == kind else found.cast(kind)


def _ledger(path: Path, tables: dict[str, Tables], answered: int) -> None:
    Ledger(path).close()
    corpus = tables["corpus"]
    text = dict(zip(*(corpus["passages"].column(name).to_pylist() for name in ("doc_id", "text")), strict=True))
    query = dict(zip(*(corpus["queries"].column(name).to_pylist() for name in ("query_id", "text")), strict=True))
    system, rows = words(1, 3, 1500)[0], []
    for row in tables["judgments"]["judgments"].slice(0, answered * POOL).to_pylist():
        shown = f"\n{query[row['query_id']]}\n=== PASSAGE ===\n{text[row['doc_id']]}\n"
        user = f"=== QUERY {row['request_key'][-8:]} ==={shown}"
        messages = [{"role": "system", "content": system}, {"role": "user", "content": user}]
        answer = json.dumps({"evidence": row["evidence"], "grade": row["grade"]})
        response = {
            "choices": [{"message": {"content": answer}}],
            "usage": {"prompt_tokens": 500, "completion_tokens": 20},
        }
        about = {"task": "judge", "prompt": "graded", "prompt_version": "v", "query_id": row["query_id"]}
        body = json.dumps({"model": "toy", "messages": messages})
        rows.append(
            (row["request_key"], "done", body, json.dumps(about), json.dumps(response), 500, 20, len(rows) * 0.5)
        )
    db = sqlite3.connect(path)
    with db:
        names = "key, state, body, about, response, prompt_tokens, completion_tokens, changed_at"
        db.executemany(f"INSERT INTO requests ({names}) VALUES (?, ?, ?, ?, ?, ?, ?, ?)", rows)
    db.close()
