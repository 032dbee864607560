"""What a report counts and measures of all candidates, in one reading: exact counts, and a sample for distributions."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from miner import store
from miner.report import read as report_read
from miner.report.read import Found

Array = np.ndarray[Any, Any]
# Rows of which distributions are drawn: of more, every so many-th one.
SAMPLE = 2_000_000
WORDS = ("source", "reason", "verdict", "status", "rung", "band", "retriever")
COLUMNS = [
    *WORDS,
    "query_id",
    "doc_id",
    "kept",
    "rank",
    "score",
    "positive_score",
    "to_positive",
    "teacher_score",
    "grade",
    "judge_score",
]
SAMPLED = [name for name in COLUMNS if name not in ("query_id", "doc_id")]


@dataclass
class Numbers:
    """reasons: (source, reason) to count, reason "" is kept. exported: kept, of queries that are exported. unused:
    kept, by the reason why their query is left out. used: how often each mined passage is kept. sample: rows with
    SAMPLED columns, every `stride`-th."""

    reasons: Counter[tuple[str, str]] = field(default_factory=Counter)
    retrievers: Counter[tuple[str, bool]] = field(default_factory=Counter)
    bands: Counter[tuple[str, bool]] = field(default_factory=Counter)
    exported: int = 0
    unused: Counter[str] = field(default_factory=Counter)
    used: Counter[str] = field(default_factory=Counter)
    sample: pa.Table = field(default_factory=lambda: pa.table({}))
    stride: int = 1

    def total(self, source: str) -> int:
        return sum(count for (one, _), count in self.reasons.items() if one == source)

    def of(self, source: str, *reasons: str) -> int:
        return sum(self.reasons[source, reason] for reason in reasons)


def read(found: Found) -> Numbers:
    """Reads every file of candidates once."""
    numbers = Numbers()
    step = "decisions" if found.has("decisions") else "candidates"
    total = sum(store.count_rows(path) for path in found.run.parts(step, "part"))
    numbers.stride = max(1, -(-total // SAMPLE))
    samples = []
    for part, became in zip(report_read.parts(found, COLUMNS), report_read.outcome_parts(found), strict=True):
        _count(part, numbers)
        _count_kept(part.filter(part.column("kept")), became, numbers)
        rows = np.arange(0, part.num_rows, numbers.stride)
        samples.append(_small(part.select(SAMPLED).take(pa.array(rows, pa.int64()))))
    numbers.sample = pa.concat_tables(samples).unify_dictionaries().combine_chunks()
    return numbers


def _small(table: pa.Table) -> pa.Table:
    columns = {name: table.column(name) for name in SAMPLED}
    columns |= {name: pc.fill_null(table.column(name).cast(pa.string()), "").dictionary_encode() for name in WORDS}
    return pa.table(columns)


def _count(part: pa.Table, numbers: Numbers) -> None:
    for row in _grouped(part, ["source", "reason", "retriever"]):
        # A corpus passage in the place of its written copy never was in the pool: it is told beside what was written.
        source = "synthetic" if row["retriever"] == "generator" else row["source"]
        numbers.reasons[source, row["reason"]] += row["count_all"]
    for row in _grouped(part, ["retriever", "kept"]):
        if row["retriever"]:
            numbers.retrievers[row["retriever"], row["kept"]] += row["count_all"]
    for row in _grouped(part, ["band", "kept"]):
        if row["band"]:
            numbers.bands[row["band"], row["kept"]] += row["count_all"]


def _grouped(part: pa.Table, names: list[str]) -> list[dict[str, Any]]:
    plain = pa.table({n: part.column(n) if n == "kept" else part.column(n).cast(pa.string()) for n in names})
    return list(plain.group_by(names, use_threads=False).aggregate([([], "count_all")]).to_pylist())


def _count_kept(kept: pa.Table, became: pa.Table, numbers: Numbers) -> None:
    place = pc.index_in(kept.column("query_id"), value_set=became.column("query_id").combine_chunks())
    reasons = Counter(became.column("reason").take(place).to_pylist())
    numbers.exported += reasons.pop("", 0)
    numbers.unused.update(reasons)
    mined = kept.filter(pc.equal(kept.column("source"), "mined")).column("doc_id")
    for row in mined.value_counts().to_pylist():
        numbers.used[row["values"]] += row["counts"]


# ---------------------------------------------------------------- of the sample


def values(sample: pa.Table, name: str) -> Array:
    """float64[n], NaN for null."""
    return np.asarray(sample.column(name).cast(pa.float64()).to_numpy(zero_copy_only=False), np.float64)


def words(sample: pa.Table, name: str) -> Array:
    """object[n]: the words of a column, "" for null."""
    column = sample.column(name).combine_chunks()
    names = np.asarray([*column.dictionary.to_pylist(), ""], object)
    return np.asarray(names[pc.fill_null(column.indices, len(names) - 1).to_numpy()])


def kinds(sample: pa.Table) -> dict[str, Array]:
    """bool[n] for each kind of candidate that occurs: kept, found relevant, and what was dropped before or after."""
    kept = sample.column("kept").to_numpy(zero_copy_only=False).astype(bool)
    source, verdict, status, reason = (words(sample, name) for name in ("source", "verdict", "status", "reason"))
    made, told = source == "synthetic", (status == "ok") & (verdict == "relevant")
    judged = status != ""
    found = {
        "negatives, mined": kept & ~made,
        "negatives, synthetic": kept & made,
        "judged relevant": told & ~kept,
        "judged, not kept": judged & ~told & ~kept & ~made,
        "pool": reason == "pool",
        "dropped before judging": ~judged & ~kept & ~made & (reason != "pool"),
    }
    return {name: mask for name, mask in found.items() if mask.any()}
