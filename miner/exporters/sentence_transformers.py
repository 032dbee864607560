"""sentence-transformers' forms as Parquet that `datasets` opens.

    st-triplet       anchor, positive, negative[, scores]
    st-ntuple        anchor, positive, negative_1, negative_2, …[, scores]
    st-labeled-pair  anchor, positive, label          1 for a positive, 0 for a negative
    st-labeled-list  anchor, positive: […], labels: […]
    st-scored-pair   anchor, positive, score          for CoSENT, CosineSimilarity, a cross-encoder's MSE
    st-scored-list   anchor, positive: […], scores: […]

Every column but a label becomes a model input, so there are no ids; `scores` (of the positive, then of the negatives),
`score`, `label` and `labels` are the label names that the trainers know, and no file has two of them: the second would
be fed to the model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pyarrow as pa

from miner.exporters import Array, Block, File, Plan, Written, files
from miner.records import TEXT
from miner.shingles import ranges, spans

SCORES = pa.list_(pa.float32())
LIST = pa.list_(TEXT)
Tables = Iterator[pa.Table]


def write(name: str, plan: Plan) -> Written:
    size = plan.settings.ntuple_negatives or min(plan.wanted, 4)
    schema, make = _form(name, plan, size)
    counts, written = {"rows": 0}, []
    short = 0

    def tables(split: str) -> Tables:
        nonlocal short
        for block in plan.splits[split]():
            sizes = np.diff(block.negatives.offsets(len(block)))
            short += int((sizes < (size if name == "st-ntuple" else 1)).sum())
            yield from make(block)

    for split in plan.splits:
        count, pattern = files.parquet(plan.folder, files.place(name, split), schema, tables(split), plan.settings)
        counts["rows" if split == "train" else f"{split}_rows"] = count
        written.append(File(name, split, pattern, count))
    if name == "st-ntuple":
        counts["queries_with_too_few_negatives"] = short
    elif short and "pair" not in name:
        counts["queries_without_negatives"] = short
    return Written(counts, written)


def _form(name: str, plan: Plan, size: int) -> tuple[pa.Schema, Callable[[Block], Tables]]:
    """The columns of a format, and what makes its rows of a block."""
    scores = [("scores", SCORES)] if plan.settings.scores else []
    texts = [("anchor", TEXT), ("positive", TEXT)]
    scored = name.startswith("st-scored")
    if name == "st-triplet":
        return pa.schema([*texts, ("negative", TEXT), *scores]), lambda b: _triplets(b, bool(scores))
    if name == "st-ntuple":
        columns = [(f"negative_{i + 1}", TEXT) for i in range(size)]
        return pa.schema([*texts, *columns, *scores]), lambda b: _ntuples(b, size, bool(scores))
    if name.endswith("pair"):
        label = ("score", pa.float32()) if scored else ("label", pa.int64())
        return pa.schema([*texts, label]), lambda b: _pairs(b, scored)
    last = ("scores", SCORES) if scored else ("labels", pa.list_(pa.int64()))
    apart = plan.settings.positives == "each"
    return pa.schema([texts[0], ("positive", LIST), last]), lambda b: _lists(b, scored, apart)


def _triplets(block: Block, scored: bool) -> Tables:
    positive, negative = block.pairs()
    for start in range(0, len(positive), files.BATCH):
        some = slice(start, start + files.BATCH)
        yield _tuples(block, positive[some], negative[some, None], ["negative"], scored)


def _ntuples(block: Block, size: int, scored: bool) -> Tables:
    offsets = block.negatives.offsets(len(block))
    positive = np.flatnonzero(np.diff(offsets)[block.positives.query] >= size)
    names = [f"negative_{i + 1}" for i in range(size)]
    for start in range(0, len(positive), files.BATCH):
        some = positive[start : start + files.BATCH]
        negative = offsets[block.positives.query[some]][:, None] + np.arange(size)
        yield _tuples(block, some, negative, names, scored)


def _tuples(block: Block, positive: Array, negative: Array, names: list[str], scored: bool) -> pa.Table:
    """positive: int64[n]; negative: int64[n, len(names)]; rows of the block's sides."""
    texts = block.passages.texts
    columns = {
        "anchor": block.queries.take(pa.array(block.positives.query[positive])),
        "positive": texts(block.positives.row[positive]),
    }
    columns |= {name: texts(block.negatives.row[negative[:, i]]) for i, name in enumerate(names)}
    if scored:
        scores = np.column_stack([block.positives.score[positive], block.negatives.score[negative]])
        offsets = np.arange(0, scores.size + 1, scores.shape[1], dtype=np.int32)
        columns["scores"] = pa.ListArray.from_arrays(offsets, scores.ravel().astype(np.float32))
    return pa.table(columns)


def _merged(block: Block) -> tuple[Array, Array, Array, Array]:
    """Query, passage row, score and label of all items, by query, its positives first."""
    sides = (block.positives, block.negatives)
    query = np.concatenate([side.query for side in sides])
    label = np.repeat([1, 0], [len(side.query) for side in sides])
    order = np.argsort(query, kind="stable")
    row, score = np.concatenate([s.row for s in sides]), np.concatenate([s.score for s in sides])
    return query[order], row[order], score[order], label[order]


def _pairs(block: Block, scored: bool) -> Tables:
    query, row, score, label = _merged(block)
    for start in range(0, len(query), files.BATCH):
        some = slice(start, start + files.BATCH)
        last = {"score": score[some].astype(np.float32)} if scored else {"label": label[some]}
        anchor = block.queries.take(pa.array(query[some]))
        yield pa.table({"anchor": anchor, "positive": block.passages.texts(row[some]), **last})


def _lists(block: Block, scored: bool, apart: bool) -> Tables:
    """A row a query, or, `apart`, a row a positive. A list without a negative teaches nothing and is left out."""
    positives, negatives = (side.offsets(len(block)) for side in (block.positives, block.negatives))
    query = block.positives.query if apart else np.arange(len(block))
    first = np.arange(len(query)) if apart else positives[:-1]
    counts = np.column_stack(
        [np.ones(len(query), np.int64) if apart else np.diff(positives), np.diff(negatives)[query]]
    )
    keep = counts[:, 1] > 0
    query, first, counts = query[keep], first[keep], counts[keep]
    size = len(block.positives.query)
    row, score = (
        np.concatenate([getattr(side, name) for side in (block.positives, block.negatives)])
        for name in ("row", "score")
    )
    for some in spans(counts.sum(axis=1), files.BATCH * 4):
        starts = np.column_stack([first[some], size + negatives[query[some]]])
        at = ranges(starts.ravel(), counts[some].ravel())
        offsets = np.r_[0, np.cumsum(counts[some].sum(axis=1))].astype(np.int32)
        numbers = score[at].astype(np.float32) if scored else (at < size).astype(np.int64)
        yield pa.table(
            {
                "anchor": block.queries.take(pa.array(query[some])),
                "positive": pa.ListArray.from_arrays(offsets, block.passages.texts(row[at])),
                "scores" if scored else "labels": pa.ListArray.from_arrays(offsets, numbers),
            }
        )
