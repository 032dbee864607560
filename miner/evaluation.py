"""What trials of training data need beside the training: batches that are the same in every arm, exact search, paired
significance, and the table. Pure functions."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any

import numpy as np

from miner import ranking, resampling
from miner.errors import UserError

Array = np.ndarray[Any, Any]
Row = dict[str, Any]
JOB, BEFORE = "job", "before"
SAMPLES = 10_000
SCORES_AT_ONCE = 1 << 24
MAIN = "nDCG@10"


# ---------------------------------------------------------------- rows and batches


def shared_rows(pairs: Array, negatives: dict[str, dict[int, list[int]]], wanted: int) -> tuple[Array, dict[str, int]]:
    """The rows that every arm can train on, and how many pairs each arm alone would have lost.

    pairs: int64[n, 2], (query, positive). negatives: arm -> query -> passages, best first. Kept are the pairs whose
    query has at least `wanted` negatives in every arm.
    """
    lost = dict.fromkeys(negatives, 0)
    keep = np.ones(len(pairs), bool)
    for arm, found in negatives.items():
        short = np.array([len(found.get(query, ())) < wanted for query in pairs[:, 0].tolist()], bool)
        lost[arm] = int(short.sum())
        keep &= ~short
    return pairs[keep], lost


def order(size: int, seed: int, epoch: int) -> Array:
    """int64[size]: the rows of one epoch in random order, the same on every machine."""
    start = ranking.mix(np.array([seed], np.uint64)) + np.uint64(epoch)
    return np.argsort(ranking.mix(np.arange(size, dtype=np.uint64) ^ ranking.mix(start)), kind="stable")


def batches(
    rows: Sequence[int],
    query: Sequence[int],
    known: Sequence[frozenset[int]],
    texts: Sequence[frozenset[int]],
    size: int,
) -> list[list[int]]:
    """The rows, cut into batches of at most `size` in which no passage is a negative of a query that it answers.

    query: of each row. known: all known positives of its query. texts: its own positive and its negatives, of all arms
    together, so that every arm gets the same batches. In a batch each query stands once, and the texts of a row are
    none of the positives of another row's query. A row that does not fit waits for the next batch.
    """
    waiting, out = deque(rows), []
    while waiting:
        batch: list[int] = []
        later: list[int] = []
        queries: set[int] = set()
        barred: set[int] = set()
        used: set[int] = set()
        while waiting and len(batch) < size:
            row = waiting.popleft()
            if query[row] in queries or texts[row] & barred or known[row] & used:
                later.append(row)
                continue
            batch.append(row)
            queries.add(query[row])
            barred |= known[row]
            used |= texts[row]
        waiting.extendleft(reversed(later))
        out.append(batch)
    return out


# ---------------------------------------------------------------- search


def top(queries: Array, passages: Array, k: int) -> tuple[Array, Array]:
    """float32[q, d], float32[n, d] -> scores float32[q, k'] descending, rows int64[q, k'], k' being min(k, n).

    Exact inner products; the lowest row first among equals.
    """
    k = min(k, len(passages))
    scores, rows = np.empty((len(queries), k), np.float32), np.empty((len(queries), k), np.int64)
    step = max(1, SCORES_AT_ONCE // max(1, len(passages)))
    for start in range(0, len(queries), step):
        block = queries[start : start + step] @ passages.T
        for at, every in enumerate(block, start):
            cut = np.partition(every, len(every) - k)[len(every) - k]
            found = np.flatnonzero(every >= cut)
            best = found[np.lexsort((found, -every[found]))][:k]
            scores[at], rows[at] = every[best], best
    return scores, rows


# ---------------------------------------------------------------- significance


def sign_flips(differences: Array, seed: int, samples: int = SAMPLES) -> float:
    """The two-sided p of a paired randomization test: how often random signs bring the mean so far from 0.

    differences: float64[n], one a query. Smucker, Allan & Carterette 2007, "A comparison of statistical significance
    tests for information retrieval evaluation". The smallest p is 1 / (samples + 1); all differences 0 give 1.
    """
    reached, size = abs(float(differences.sum())), len(differences)
    start, extreme = ranking.mix(np.array([seed], np.uint64)), 0
    step = max(1, (1 << 22) // max(1, size))
    for first in range(0, samples, step):
        some = min(step, samples - first)
        counters = np.arange(first * size, (first + some) * size, dtype=np.uint64)
        signs = (ranking.mix(counters ^ start) >> np.uint64(63)).astype(float) * 2 - 1
        extreme += int((np.abs(signs.reshape(some, size) @ differences) >= reached - 1e-9).sum())
    return (1 + extreme) / (1 + samples)


def holm(values: Sequence[float]) -> list[float]:
    """p values of a family of tests, adjusted after Holm 1979, in the order given."""
    adjusted, highest = [0.0] * len(values), 0.0
    for place, at in enumerate(sorted(range(len(values)), key=lambda i: values[i])):
        highest = max(highest, min(1.0, (len(values) - place) * values[at]))
        adjusted[at] = highest
    return adjusted


def mean_interval(values: Array, seed: int, samples: int = SAMPLES) -> resampling.Interval:
    """The mean of float64[n], one value a query, with its 95% interval over queries (`resampling`)."""
    found = resampling.interval(lambda w: (w @ values) / len(values), np.arange(len(values)), seed, samples)
    assert isinstance(found, resampling.Interval), "a mean is one number"
    return found


# ---------------------------------------------------------------- the table


def report(values: dict[str, dict[str, Array]], seed: int, samples: int = SAMPLES) -> list[Row]:
    """A row an arm, the job last. values: arm -> measure -> float64[seeds, queries].

    Queries are the unit; the seeds of an arm are averaged first. `difference` is job minus arm, paired by query, with
    its 95% interval, p, and p after Holm over all arms but the untrained one; `ahead` says at how many seeds the job's
    mean is higher.
    """
    rows = [_row(arm, found, values, seed, samples) for arm, found in values.items() if arm != JOB]
    rivals = [row for row in rows if row["arm"] != BEFORE]
    for measure in values[JOB]:
        p = holm([row["difference"][measure]["p"] for row in rivals])
        for row, adjusted in zip(rivals, p, strict=True):
            row["difference"][measure]["p_holm"] = adjusted
    return [*rows, {**_row(JOB, values[JOB], values, seed, samples), "difference": None}]


def _row(arm: str, found: dict[str, Array], values: dict[str, dict[str, Array]], seed: int, samples: int) -> Row:
    measures, difference = {}, {}
    for measure, array in found.items():
        seeds = array.mean(axis=1)
        whole = mean_interval(array.mean(axis=0), seed, samples)
        sd = float(seeds.std(ddof=1)) if len(seeds) > 1 else None
        measures[measure] = {
            "mean": whole.value,
            "low": whole.low,
            "high": whole.high,
            "sd": sd,
            "seeds": seeds.tolist(),
        }
        difference[measure] = _difference(values[JOB][measure], array, seed, samples)
    return {"arm": arm, "measures": measures, "difference": difference}


def _difference(own: Array, other: Array, seed: int, samples: int) -> Row:
    paired = own.mean(axis=0) - other.mean(axis=0)
    found = mean_interval(paired, seed, samples)
    ahead = own.mean(axis=1) > other.mean(axis=1)  # an arm of one seed is set against each of the job's
    return {**found._asdict(), "p": sign_flips(paired, seed, samples), "ahead": int(ahead.sum()), "seeds": len(own)}


HEAD = ("arm", "nDCG@10", "MRR@10", "recall@100", "job - arm, nDCG@10", "p", "ahead")


def cells(row: Row) -> list[str]:
    """The row as the table shows it, under HEAD."""
    main = row["measures"][MAIN]
    spread = "" if main["sd"] is None else f" ±{main['sd']:.3f}"
    shown = [row["arm"], f"{main['mean']:.3f}{spread}"]
    shown += [f"{row['measures'][name]['mean']:.3f}" for name in ("MRR@10", "recall@100")]
    if row["difference"] is None:
        return [*shown, "", "", ""]
    one = row["difference"][MAIN]
    p = one.get("p_holm", one["p"])
    return [
        *shown,
        f"{one['value']:+.3f} ({one['low']:+.3f} to {one['high']:+.3f})",
        "<.001" if p < 0.001 else f"{p:.3f}",
        f"{one['ahead']}/{one['seeds']}",
    ]


def markdown(rows: list[Row]) -> str:
    lines = ["| " + " | ".join(HEAD) + " |", "|---|" + "---:|" * (len(HEAD) - 1)]
    lines += ["| " + " | ".join(cell.replace("|", "\\|") for cell in cells(row)) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def pick(names: str, known: Sequence[str]) -> list[str]:
    """The names of a comma list, in the order of `known`, each once. Raises UserError for another."""
    wanted = [name.strip() for name in names.split(",") if name.strip()]
    for name in wanted:
        if name not in known:
            raise UserError(f"--baselines {name}: not known; the baselines are {', '.join(known)}")
    return [name for name in known if name in wanted]
