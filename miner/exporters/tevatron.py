"""Tevatron's training files, older and current.

    tevatron-legacy  {query_id, query, positive_passages: [{docid, title, text}], negative_passages: […]}
    tevatron         tevatron/train.jsonl {query_id, query_text, positive_document_ids, negative_document_ids} beside
                     tevatron-corpus/ {docid, text}: the passages that the ids name

Current Tevatron trains on `text` alone but encodes title and text, so the corpus has the title in `text` and no
`title`. In the older form all passages have a `title` or none has: a missing one among others would be null, and null
plus text is an error. A query without a negative breaks both (`random.choices` of nothing) and is counted.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from miner.exporters import Array, Block, Blocks, File, Plan, Side, Written, files, lines

Row = dict[str, Any]
BATCH = 1 << 13


def write(name: str, plan: Plan) -> Written:
    counts, written = {"rows": 0}, []
    skipped: list[int] = []
    for split, blocks in plan.splits.items():
        stem = f"{name}/{split}" if name == "tevatron" else files.place(name, split)
        rows = (_current if name == "tevatron" else _legacy)(blocks, plan, skipped)
        count, pattern = files.lines(plan.folder, stem, rows, plan.settings)
        counts["rows" if split == "train" else f"{split}_rows"] = count
        written.append(File(name, split, pattern, count))
    if name == "tevatron":
        counts["passages"], pattern = files.lines(plan.folder, "tevatron-corpus/corpus", _corpus(plan), plan.settings)
        written.append(File("tevatron-corpus", "train", pattern, counts["passages"]))
    return Written(counts | ({"queries_without_negatives": len(skipped)} if skipped else {}), written)


def _current(blocks: Blocks, plan: Plan, skipped: list[int]) -> Iterator[Row]:
    for block in blocks():
        positives, negatives = (block.passages.ids(s.row).to_pylist() for s in (block.positives, block.negatives))
        for line in lines(block, plan.settings):
            found = {"query_id": line.query_id, "query_text": line.query}
            found["positive_document_ids"] = positives[line.positives]
            found["negative_document_ids"] = negatives[line.negatives]
            if negatives[line.negatives]:
                yield found
            else:
                skipped.append(1)


def _legacy(blocks: Blocks, plan: Plan, skipped: list[int]) -> Iterator[Row]:
    for block in blocks():
        positives, negatives = (_passages(block, side) for side in (block.positives, block.negatives))
        for line in lines(block, plan.settings):
            found: Row = {"query_id": line.query_id, "query": line.query}
            found["positive_passages"] = positives[line.positives]
            found["negative_passages"] = negatives[line.negatives]
            if negatives[line.negatives]:
                yield found
            else:
                skipped.append(1)


def _passages(block: Block, side: Side) -> list[Row]:
    known = block.passages
    ids, bodies = known.ids(side.row).to_pylist(), known.bodies(side.row).to_pylist()
    if not known.titled:
        return [{"docid": i, "text": text} for i, text in zip(ids, bodies, strict=True)]
    titles = known.titles(side.row).to_pylist()
    return [{"docid": i, "title": t, "text": text} for i, t, text in zip(ids, titles, bodies, strict=True)]


def _corpus(plan: Plan) -> Iterator[Row]:
    used: Array = np.zeros(len(plan.passages), bool)
    for blocks in plan.splits.values():
        for block in blocks():
            used[block.positives.row] = used[block.negatives.row] = True
    rows = np.flatnonzero(used)
    for start in range(0, len(rows), BATCH):
        some = rows[start : start + BATCH]
        texts = plan.passages.texts(some).to_pylist()
        for doc_id, text in zip(plan.passages.ids(some).to_pylist(), texts, strict=True):
            yield {"docid": doc_id, "text": text}
