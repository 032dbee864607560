"""The last steps of a job: which candidates become negatives, and the training files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from miner import exporters, store
from miner.stages import decisions, export
from miner.steps import Context, Done, judged_parts, positives_of


def run_decisions(run: Context, work: Path) -> Done:
    written = _synthetic_rows(run)
    counts: Counter[str] = Counter()
    outcomes: Counter[str] = Counter()
    for part, judged in judged_parts(run):
        positives = positives_of(part).column("query_id").to_pylist()
        mine = {q: written[q] for q in set(positives) if q in written}
        decided, became = decisions.run(store.read_table(part), judged, mine, positives, run.job)
        number = part.stem.removeprefix("part-")
        store.write_table(work / f"outcomes-{number}.parquet", became)
        store.write_table(work / f"part-{number}.parquet", decided)
        for row in decided.group_by(["source", "reason"]).aggregate([([], "count_all")]).to_pylist():
            counts[f"{row['source']}.{row['reason'] or 'kept'}"] += row["count_all"]
        outcomes.update(reason or "exported" for reason in became.column("reason").to_pylist())
    return Done({"candidates": dict(sorted(counts.items())), "queries": dict(sorted(outcomes.items()))})


def _synthetic_rows(run: Context) -> dict[str, list[dict[str, Any]]]:
    if not run.job.generator.enabled:
        return {}
    judged = {(r["query_id"], r["doc_id"]): r for r in run.table("synthetic_judgments", "judgments").to_pylist()}
    rows: dict[str, list[dict[str, Any]]] = {}
    for row in run.table("synthetic", "synthetic").to_pylist():
        judgment = judged.get((row["query_id"], row["doc_id"]), {})
        rows.setdefault(row["query_id"], []).append({**row, "judgment": judgment})
    return rows


def run_export(run: Context, work: Path) -> Done:
    texts_ = export.Texts(run.queries, run.passages)
    keys_: dict[str, dict[tuple[str, str], str]] = {"judgments": {}, "synthetic": {}}
    if run.job.judge.enabled:
        keys_["judgments"] |= _request_keys(run.table("judgments", "judgments"))
    if run.job.generator.enabled:
        keys_["judgments"] |= _request_keys(run.table("synthetic_judgments", "judgments"))
        written = run.table("synthetic", "synthetic")
        keys_["synthetic"] |= _request_keys(written)
        for row in written.to_pylist():
            run.passages.add(row["doc_id"], row["text"] or "")
    counts: dict[str, Any] = {}
    for name in run.job.export.formats:
        write = exporters.get(name)
        counts[name] = write(
            name, lambda: export.run(_parts(run), texts_), work, run.job.export, run.job.mining.negatives
        )
    tables = export.provenance(_parts(run), keys_)
    counts["negatives"] = store.write_batches(work / "provenance.parquet", export.PROVENANCE, tables)
    return Done(counts)


def _request_keys(table: pa.Table) -> dict[tuple[str, str], str]:
    columns = [table.column(name).to_pylist() for name in ("query_id", "doc_id", "request_key")]
    return {(query_id, doc_id): key for query_id, doc_id, key in zip(*columns, strict=True)}


def _parts(run: Context) -> Iterator[export.Part]:
    for part in run.parts("decisions", "part"):
        number = part.stem.removeprefix("part-")
        positives = run.folder.step("candidates") / f"positives-{number}.parquet"
        yield export.Part(
            store.read_table(part),
            store.read_table(part.with_name(f"outcomes-{number}.parquet")),
            store.read_table(positives),
        )
