"""FlagEmbedding's JSON lines: for embedders, rerankers and BGE-M3.

What its loaders (1.4.2) want: floats for scores, lists of equal length, at least one negative, no further columns. The
embedder's must have `prompt`, else the query may become "Nonequery". The rerankers' must not: the LLM reranker would
take an empty one in place of its own question. M3's always has scores, for --knowledge_distillation: the teacher's
logits where every passage has one, since its target is the softmax of what stands there.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from miner.exporters import Array, Blocks, File, Plan, Side, Written, files, lines

Row = dict[str, Any]


def write(name: str, plan: Plan) -> Written:
    counts, written = {"rows": 0}, []
    for split, blocks in plan.splits.items():
        skipped: list[int] = []
        rows = _rows(name, blocks, plan, skipped)
        count, pattern = files.lines(plan.folder, files.place(name, split), rows, plan.settings)
        written.append(File(name, split, pattern, count))
        counts["rows" if split == "train" else f"{split}_rows"] = count
        if skipped:
            counts["queries_without_negatives"] = counts.get("queries_without_negatives", 0) + sum(skipped)
    return Written(counts, written)


def _rows(name: str, blocks: Blocks, plan: Plan, skipped: list[int]) -> Iterator[Row]:
    """skipped: the queries without a negative, over which the loader divides by zero, are counted there."""
    scored = plan.settings.scores or name == "flagembedding-m3"
    more: Row = {} if name == "flagembedding-reranker" else {"prompt": plan.settings.prompt, "type": "normal"}
    taught = name == "flagembedding-m3" and plan.taught
    for block in blocks():
        sides = (block.positives, block.negatives)
        positives, negatives = (block.passages.texts(side.row).to_pylist() for side in sides)
        pos_scores, neg_scores = (_numbers(side, taught) for side in sides)
        for line in lines(block, plan.settings):
            row: Row = {"query": line.query, "pos": positives[line.positives], "neg": negatives[line.negatives]}
            if not row["neg"]:
                skipped.append(1)
                continue
            if scored:
                row |= {"pos_scores": pos_scores[line.positives], "neg_scores": neg_scores[line.negatives]}
            yield row | more


def _numbers(side: Side, taught: bool) -> list[float]:
    values: Array = side.teacher if taught else side.score
    return [round(value, 6) for value in values.astype(np.float32).tolist()]
