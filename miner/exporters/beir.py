"""A BEIR folder: corpus.jsonl, queries.jsonl, qrels/train.tsv and, where queries are held out, qrels/dev.tsv.

The corpus is the job's whole corpus, so the folder can be searched, evaluated and mined again. A positive keeps its
relevance; a negative stands in the qrels with score 0, "judged, not relevant", as TREC writes it: measures count it as
not relevant, and BEIR's own training code takes positives from score 1 on. Generated passages belong to no corpus; they
and their qrels are left out and counted. Shards and packing are not read by its loader, so both are ignored here.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from miner.exporters import Block, Blocks, File, Plan, Written, files
from miner.store import replace

BATCH = 1 << 13
Row = dict[str, Any]


def write(name: str, plan: Plan) -> Written:
    settings = plan.settings.model_copy(update={"rows_per_shard": None})
    counts, written = {"rows": 0}, []
    for what, rows in (("corpus", _corpus(plan)), ("queries", _queries(plan))):
        count, pattern = files.lines(plan.folder, f"{name}/{what}", rows, settings, name)
        counts["passages" if what == "corpus" else what] = count
        written.append(File(f"{name}-{what}", "train", pattern, count))
    for split, blocks in plan.splits.items():
        path = f"{name}/qrels/{split}.tsv"
        count, left_out = _qrels(plan.folder / path, blocks)
        counts["rows" if split == "train" else f"{split}_rows"] = count
        if left_out:
            counts["synthetic_left_out"] = counts.get("synthetic_left_out", 0) + left_out
        written.append(File(f"{name}-qrels", split, path, count))
    return Written(counts, written)


def _corpus(plan: Plan) -> Iterator[Row]:
    known = plan.passages
    for start in range(0, known.corpus_size, BATCH):
        some = np.arange(start, min(start + BATCH, known.corpus_size))
        columns = [column.to_pylist() for column in (known.ids(some), known.titles(some), known.bodies(some))]
        for doc_id, title, text in zip(*columns, strict=True):
            yield {"_id": doc_id, "title": title, "text": text}


def _queries(plan: Plan) -> Iterator[Row]:
    for blocks in plan.splits.values():
        for block in blocks():
            for query_id, text in zip(block.ids.to_pylist(), block.queries.to_pylist(), strict=True):
                yield {"_id": query_id, "text": text}


def _qrels(path: Path, blocks: Blocks) -> tuple[int, int]:
    """Rows written, and generated passages left out."""
    count = left_out = 0

    def fill(part: Path) -> None:
        nonlocal count, left_out
        with part.open("w", encoding="utf-8", newline="") as out:
            out.write("query-id\tcorpus-id\tscore\n")
            for block in blocks():
                rows, without = _judged(block)
                out.writelines(f"{_cell(query)}\t{_cell(passage)}\t{grade}\n" for query, passage, grade in rows)
                count, left_out = count + len(rows), left_out + without

    replace(path, fill)
    return count, left_out


def _cell(value: str) -> str:
    """BEIR reads the quotes of Python's csv, so an id may hold a tab; csv's own writer forgets carriage returns."""
    return f'"{value.replace(chr(34), chr(34) * 2)}"' if not {*'\t\r\n"'}.isdisjoint(value) else value


def _judged(block: Block) -> tuple[list[tuple[str, str, int]], int]:
    sides = (block.positives, block.negatives)
    grades = [block.positives.info.column("relevance").to_numpy(), np.zeros(len(block.negatives.row), np.int64)]
    query, row, grade = (np.concatenate(parts) for parts in ([s.query for s in sides], [s.row for s in sides], grades))
    order = np.argsort(query, kind="stable")
    real = order[row[order] < block.passages.corpus_size]
    names, ids = block.ids.to_pylist(), block.passages.ids(row[real]).to_pylist()
    rows = [(names[q], d, g) for q, d, g in zip(query[real].tolist(), ids, grade[real].tolist(), strict=True)]
    return rows, len(order) - len(real)
