"""Choose the window and the margin of a job on judged data: how many relevant passages would each let through?"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from miner import calibration, engine, mining_steps, store, yaml_file
from miner.config import Mining
from miner.errors import UserError
from miner.mining_steps import Array
from miner.numbering import Numbered
from miner.readers import rows
from miner.steps import Context

OPEN: dict[str, Any] = {
    **{"rank_min": 1, "rank_max": None, "score_min": None, "score_max": None, "max_uses": None, "sample": "top"},
    **{"margin_absolute": None, "margin_relative": None},
}


def margin(run: Context, golden: Path | None, target: float, share: float) -> dict[str, Any]:
    """The trade-off curve and the setting chosen on one half of the queries, and how it does on the other half.

    golden: judged pairs (query_id, doc_id, relevance) beside the job's own positives; None hides `share` of the
    positives of every query that has two or more, and then counts all others as not relevant, so that what it finds is
    the least that there is. Mines first if it must. Raises UserError where nothing is judged.
    """
    engine.advance(run, "candidates")
    world = mining_steps.world_of(run)
    shown, relevance = _from_golden(run, world, golden) if golden else _hidden(world, run.job.seed, share)
    lists = _judged(run, dataclasses.replace(world, positives=shown), relevance)
    queries = np.unique(shown[:, 0])
    if len(queries) < 4:
        raise UserError(f"calibrate margin: {len(queries)} queries are judged, too few to choose on one half of them")
    first, second = queries[::2], queries[1::2]
    wanted, seed = run.job.mining.negatives, run.job.seed
    points = _curve(lists, first, calibration.grid(_scale(lists)), wanted, seed, golden is None)
    chosen = calibration.choose(points, target)
    held_out = chosen and _curve(lists, second, [calibration.Setting(*chosen[:3])], wanted, seed, golden is None)[0]
    return {
        "target": target,
        "source": str(golden) if golden else f"{len(relevance)} hidden positives",
        "queries": len(queries),
        "points": [point._asdict() for point in points],
        "chosen": chosen and chosen._asdict(),
        "held_out": held_out and held_out._asdict(),
        "lacking": calibration.lacking(points, target),
    }


def _curve(
    lists: tuple[Array, ...], queries: Array, grid: list[calibration.Setting], wanted: int, seed: int, unjudged: bool
) -> list[calibration.Point]:
    own = np.isin(lists[0], queries)
    return calibration.curve(
        *(column[own] for column in lists),
        negatives=wanted,
        grid=grid,
        seed=seed,
        queries=len(queries),
        count_unjudged=unjudged,
    )


def _scale(lists: tuple[Array, ...]) -> float:
    """The spread of the scores beside that of cosines, so that absolute margins suit a teacher's logits too."""
    spread = float(np.quantile(lists[2], 0.95) - np.quantile(lists[2], 0.05)) if len(lists[2]) else 1.0
    return 1.0 if spread <= 1 else round(spread, 2)


def _hidden(world: Numbered, seed: int, share: float) -> tuple[Array, dict[tuple[int, int], int]]:
    """Some positives of each query that has several stay, the others become what must not be mined."""
    hidden = calibration.hide(world.positives, world.query_hash, world.doc_hash, seed, share)
    kept = np.isin(world.positives[:, 0], world.positives[hidden, 0])
    if not hidden.any():
        raise UserError(
            "calibrate margin: no query has two positives, so none can be hidden; give judged pairs with --golden FILE"
        )
    relevance = {(int(q), int(d)): 1 for q, d, _ in world.positives[hidden]}
    return world.positives[kept & ~hidden], relevance


def _from_golden(run: Context, world: Numbered, golden: Path) -> tuple[Array, dict[tuple[int, int], int]]:
    """All positives of the data stay; the pairs of the file say what else is relevant, and what is not."""
    query_row = {key: row for row, key in enumerate(world.queries.column("query_id").to_pylist())}
    doc_row = {key: row for row, key in enumerate(world.passages.column("doc_id").to_pylist())}
    known = {(int(q), int(d)) for q, d, _ in world.positives}
    relevance = {}
    for query_id, doc_id, grade in _pairs(golden):
        pair = (query_row.get(query_id, -1), doc_row.get(doc_id, -1))
        if min(pair) >= 0 and pair not in known:
            relevance[pair] = int(grade >= run.job.data.relevant_from)
    if not relevance:
        raise UserError(f"{golden}: none of its pairs is of this job's queries and passages; compare the ids")
    judged = np.unique([query for query, _ in relevance])
    return world.positives[np.isin(world.positives[:, 0], judged)], relevance


def _pairs(path: Path) -> Iterator[tuple[str, str, int]]:
    """(query_id, doc_id, relevance) of a qrels file: three tab-separated columns, or TREC's four, header or not."""
    for number, line in rows.text_lines(path):
        place = f"{path}:{number}"
        cells = line.split("\t") if "\t" in line else line.split()
        if len(cells) == 4:
            del cells[1]
        if len(cells) != 3:
            raise UserError(f"{place}: {len(cells)} columns; write query_id, doc_id and relevance")
        grade = cells[2].strip()
        if not grade.removeprefix("-").isdecimal():
            if number == 1:
                continue
            raise UserError(f"{place}: relevance {grade[:40]!r} is no whole number")
        yield cells[0], cells[1], int(grade)


def _judged(run: Context, world: Numbered, relevance: dict[tuple[int, int], int]) -> tuple[Array, ...]:
    """What the job's own retrievers and content filters let through when only `world.positives` are known."""
    total = len(world.passages)
    keys = np.array(sorted(q * total + d for q, d in relevance), np.int64)
    grades = np.array([relevance[divmod(int(key), total)] for key in keys], np.int8)
    parts = []
    for query, row, rank, weighed, lowest, score in mining_steps.eligible(run, world, _opened(run.job.mining)):
        pair = query * total + row
        at = np.minimum(np.searchsorted(keys, pair), len(keys) - 1)
        relevant = np.where(keys[at] == pair, grades[at], -1).astype(np.int8)
        parts.append((query, rank, weighed, lowest, relevant, score))
    return tuple(np.concatenate(columns) for columns in zip(*parts, strict=True))


def _opened(mining: Mining) -> Mining:
    """The same retrievers with every window and margin open."""
    window = {"rank_min": None, "rank_max": None, "quota": None}
    retrievers = tuple(one.model_copy(update=window) for one in mining.retrievers)
    return mining.model_copy(update={**OPEN, "retrievers": retrievers})


def write(job_file: Path, chosen: dict[str, Any]) -> None:
    """Put the chosen window and margin into the job file; every other line and comment stays as it is."""
    values = {
        "mining.rank_min": chosen["rank_min"],
        "mining.margin_absolute": chosen["margin"] if chosen["kind"] == "absolute" else None,
        "mining.margin_relative": chosen["margin"] if chosen["kind"] == "relative" else None,
    }
    text = job_file.read_bytes().decode()  # as bytes, so that line ends stay what they are
    changed = yaml_file.set_values(text, values).encode()
    store.replace(job_file, lambda part: part.write_bytes(changed))
