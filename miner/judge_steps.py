"""The steps that ask the judge: of the pool, and of what the generator wrote."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from miner import store
from miner.records import JUDGMENTS
from miner.stages import judgments
from miner.steps import Context, Done

Array = np.ndarray[Any, Any]


def run_judgments(run: Context, work: Path) -> Done:
    total = sum(_pool(part).num_rows for part in run.parts("candidates", "part"))
    return _judge(run, work, lambda: pool_pairs(run), total, "judge")


def run_synthetic_judgments(run: Context, work: Path) -> Done:
    reference = references(run)
    rows = [
        row for row in run.table("synthetic", "synthetic").to_pylist() if row["status"] == "ok" and not row["copy_of"]
    ]

    def pairs() -> Iterator[judgments.Pair]:
        for row in rows:
            query_id = row["query_id"]
            positive = run.passages[reference[query_id]]
            yield judgments.Pair(query_id, row["doc_id"], run.queries[query_id], positive, row["text"])

    return _judge(run, work, pairs, len(rows), "judge synthetic")


def _pool(part: Path) -> pa.Table:
    table = store.read_table(part, ["query_id", "doc_id", "pool_rank"])
    return table.filter(table.column("pool_rank").is_valid())


def references(run: Context) -> dict[str, str]:
    """The positive that stands for each query in prompts: highest relevance, then lowest doc_id.

    No score decides, so the answers of one encoder's job serve the next one's.
    """
    best: dict[str, tuple[int, str]] = {}
    for part in run.parts("candidates", "positives"):
        for row in store.read_table(part).to_pylist():
            rank = (-row["relevance"], row["doc_id"])
            best[row["query_id"]] = min(best.get(row["query_id"], rank), rank)
    return {query_id: rank[1] for query_id, rank in best.items()}


def pool_pairs(run: Context) -> Iterator[judgments.Pair]:
    reference = references(run)
    for part in run.parts("candidates", "part"):
        pool = _pool(part)
        for query_id, doc_id in zip(
            pool.column("query_id").to_pylist(), pool.column("doc_id").to_pylist(), strict=True
        ):
            yield judgments.Pair(
                query_id, doc_id, run.queries[query_id], run.passages[reference[query_id]], run.passages[doc_id]
            )


def judged_parts(run: Context) -> Iterator[tuple[Path, pa.Table | None]]:
    """Each candidates file with the judgments of its pool rows; None where the judge is off."""
    judged = run.table("judgments", "judgments") if run.job.judge.enabled else None
    start = 0
    for part in run.parts("candidates", "part"):
        size = _pool(part).num_rows
        yield part, None if judged is None else judged.slice(start, size)
        start += size


def _judge(run: Context, work: Path, pairs: Callable[[], Iterator[judgments.Pair]], total: int, what: str) -> Done:
    counts: dict[str, Counter[str]] = {"status": Counter(), "verdict": Counter(), "tokens": Counter()}
    missing: Counter[str] = Counter()
    with run.asking("judge", what, total) as ask:
        tables = judgments.run(pairs, run.prompt("judge"), run.endpoint("judge"), run.job.judge, ask)
        rows = store.write_batches(work / "judgments.parquet", JUDGMENTS, counted(tables, counts, missing))
    write_failures(work)
    warn(run, what, missing)
    return Done({"rows": rows, **plain(counts)}, complete=not missing)


def counted(tables: Iterable[pa.Table], counts: dict[str, Counter[str]], missing: Counter[str]) -> Iterator[pa.Table]:
    for table in tables:
        for row in table.to_pylist():
            counts["status"][row["status"]] += 1
            for name in counts.keys() & row.keys() - {"status"}:
                counts[name].update([row[name]] if row[name] else [])
            counts["tokens"]["prompt"] += row["prompt_tokens"] or 0
            counts["tokens"]["completion"] += row["completion_tokens"] or 0
            if row["status"] == "missing":
                missing[row["detail"]] += 1
        yield table


FAILED = ("query_id", "doc_id", "status", "detail", "request_key")


def write_failures(work: Path) -> None:
    """failures.jsonl: the rows without a usable answer, each with its reason."""
    (path,) = work.glob("*.parquet")
    name = "positive_id" if path.stem == "synthetic" else "doc_id"
    table = store.read_table(path, ["query_id", name, *FAILED[2:]])
    failed = table.filter(pc.not_equal(table.column("status"), "ok")).rename_columns(list(FAILED))
    store.write_jsonl(work / "failures.jsonl", failed.to_pylist())


def plain(counts: dict[str, Counter[str]]) -> dict[str, dict[str, int]]:
    return {name: dict(sorted(counter.items())) for name, counter in counts.items() if counter}


def warn(run: Context, what: str, missing: Counter[str]) -> None:
    if missing:
        reason, count = missing.most_common(1)[0]
        others = f", and {len(missing) - 1} other reasons" if len(missing) > 1 else ""
        run.warnings.append(
            f"{what}: {missing.total()} answers are missing ({count} times: {reason}{others});"
            " those given up for good are asked again with --retry-failed"
        )
