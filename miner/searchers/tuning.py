"""How wide an approximate index must search: recall against exact search, measured on a sample of the queries."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from miner import store
from miner.config.mining import Index
from miner.searchers import Array
from miner.searchers.dense import TUNED, DenseSearcher

GAIN = 0.005  # of recall: where the target is out of reach, a wider search that brings less is not worth its time


def tune(searcher: DenseSearcher, folder: Path, k: int, settings: Index, seed: int) -> dict[str, Any]:
    """Widen the search, doubling nprobe, efSearch or refine, until recall@k reaches the target on a sample of queries.

    recall@k: the share of the k best inner products that the index finds; a passage that ties with the k-th counts.
    Writes tuned.json, which `open` applies, and returns it: kind, reason, k, sample, recall, the width by its name, and
    `warning`, a sentence, where the target is out of reach.
    """
    total = len(searcher.query_vectors)
    sample = np.sort(np.random.default_rng(seed).choice(total, min(settings.sample, total), replace=False))
    block = np.ascontiguousarray(searcher.query_vectors[sample], np.float32)
    k = min(k, len(searcher.vectors))
    found: dict[str, Any] = {"kind": searcher.choice.kind, "reason": searcher.choice.reason, "k": k}
    if searcher.knob:
        tried = _widened(searcher, block, k, settings.recall_target)
        effort, recall = _enough(tried, settings.recall_target)
        searcher.widen(effort)
        found |= {"sample": len(sample), "recall": recall, searcher.knob: effort}
        if recall is not None and recall < settings.recall_target:
            found["warning"] = _warning(searcher.choice.kind, recall, k, settings)
    else:
        found |= {"sample": 0, "recall": 1.0}
    store.write_json(folder / TUNED, found)
    return found


def _widened(searcher: DenseSearcher, block: Array, k: int, target: float) -> list[tuple[int, float | None]]:
    """(effort, recall) of each width tried; the recall is None where there is no query to measure it on."""
    worst = searcher.exact(block, k)[0][:, -1:]
    effort = min(searcher.widest, max(16, k) if searcher.knob == "efSearch" else 1)
    if not len(block):
        return [(effort, None)]
    tried: list[tuple[int, float | None]] = []
    while True:
        searcher.widen(effort)
        recall = float((searcher.indexed(block, k)[0] >= worst).mean())
        tried.append((effort, round(recall, 4)))
        if recall >= target or effort == searcher.widest:
            return tried
        effort = min(2 * effort, searcher.widest)


def _enough(tried: list[tuple[int, float | None]], target: float) -> tuple[int, float | None]:
    """The last width tried; where even that misses the target, the first that is hardly worse."""
    effort, best = tried[-1]
    if best is None or best >= target:
        return effort, best
    return next((width, recall) for width, recall in tried if recall is not None and recall >= best - GAIN)


def _warning(kind: str, recall: float, k: int, settings: Index) -> str:
    remedy = f"raise mining.index.refine (now {settings.refine}) or " if kind == "ivf-pq" else ""
    return (
        f"recall@{k} of {kind} is {recall:.3f}, below mining.index.recall_target {settings.recall_target};"
        f" {remedy}take another mining.index.kind"
    )
