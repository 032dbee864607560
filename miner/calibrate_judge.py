"""Ask a job's judge about golden pairs, and decide which of its verdicts may be trusted.

JOB/calibration.json holds what was found, for the export to read:

    {"format": 1, "calibrations": [{
        "prompt": "graded", "prompt_version": "…", "model": "…", "endpoint": "…",   whose calibration it is
        "relevant_from": 2, "max_chars": 4000,                                      settings that it rests on
        "on": "grade", "threshold": 1,         accepted is what is at or below; null: no threshold met the target
        "bound": 0.021, "target": 0.03, "level": 0.95, "accepted": 180, "false_negatives": 0,    of that threshold
        "pairs": 300, "queries": 60, "golden": "golden.jsonl", "golden_digest": "…", "split": "test",
        "reason": "",                                                               why there is no threshold
        "metrics": {"kappa": {"value": 0.6, "low": 0.5, "high": 0.7}, …}}]}

One entry for each prompt version, model and endpoint; a later calibration takes the place of an earlier one.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from miner import acceptance, agreement, golden, llms, store, yaml_file
from miner.agreement import Judged
from miner.bounds import LEVEL
from miner.errors import UserError
from miner.golden import Golden
from miner.stages import judgments
from miner.steps import Context

Row = dict[str, Any]
FILE = "calibration.json"
BINS = 10


def judge(run: Context, path: Path, split: str, target: float) -> Row:
    """Ask what is not in the ledger yet, and measure. Raises UserError for a bad golden file or a judge that is off."""
    if not run.job.judge.enabled:
        raise UserError("calibrate judge: judge.enabled is false in the job file; there is no judge to calibrate")
    pairs, left = graded(path, split)
    prompt, endpoint = run.prompt("judge"), run.endpoint("judge")
    found = report(
        pairs, verdicts(run, pairs), run.job.judge.relevant_from, run.job.judge.irrelevant_to, target, run.job.seed
    )
    return {
        "prompt": prompt.front.name,
        "prompt_version": prompt.version,
        "model": endpoint.model,
        "endpoint": llms.identity(endpoint),
        "relevant_from": run.job.judge.relevant_from,
        "max_chars": run.job.judge.max_chars,
        "irrelevant_to": run.job.judge.irrelevant_to,
        "golden": str(path),
        "golden_digest": store.file_digest(path),
        "split": split,
        "ungraded": left,
        **found,
    }


def graded(path: Path, split: str) -> tuple[list[Golden], int]:
    """The graded pairs of a split, and how many of it nobody has graded yet. Raises UserError where none is graded."""
    pairs = golden.part(golden.read(path, labelled=False), split, path)
    found = [pair for pair in pairs if pair.grade is not None]
    if not found:
        raise UserError(f"{path}: none of its {len(pairs)} pairs is graded yet; miner golden label {path}")
    return found, len(pairs) - len(found)


def verdicts(run: Context, pairs: Sequence[Golden]) -> list[Row]:
    """A JUDGMENTS row for each pair, in order, from the ledger or the judge."""

    def asked() -> Any:
        return (judgments.Pair(p.query_id, p.doc_id, p.query, p.positive, p.passage) for p in pairs)

    with run.asking("judge", "judge golden", len(pairs)) as ask:
        tables = judgments.run(asked, run.prompt("judge"), run.endpoint("judge"), run.job.judge, ask)
        return [row for table in tables for row in table.to_pylist()]


def report(
    pairs: Sequence[Golden], rows: Sequence[Row], relevant_from: int, irrelevant_to: int, target: float, seed: int
) -> Row:
    """All statistics of the judge on graded pairs, as JSON takes them (None where undefined), and the threshold.

    rows: grade of each pair or None, its status and detail, and score (higher is more relevant) where the judge gives
    one; then the threshold is on the score, else on the grade.
    """
    scored = any(row.get("score") is not None for row in rows)
    judged = Judged.of(
        [pair.query_id for pair in pairs],
        [pair.grade or 0 for pair in pairs],
        [row["grade"] for row in rows],
        [row.get("score") for row in rows] if scored else None,
    )
    metrics = agreement.measure(judged, relevant_from, irrelevant_to, seed)
    chosen = acceptance.calibrate(judged, target, relevant_from, "score" if scored else "grade")
    bins = agreement.reliability(judged, relevant_from, _edges(judged, scored), seed=seed)
    found = {
        "target": target,
        "level": LEVEL,
        "pairs": len(pairs),
        "queries": judged.queries,
        "relevant": sum((pair.grade or 0) >= relevant_from for pair in pairs),
        "missing": next((row["detail"] for row in rows if row["status"] == "missing"), ""),
        "status": dict(sorted(Counter(row["status"] for row in rows).items())),
        "metrics": {name: one._asdict() for name, one in metrics.items()},
        "confusion": agreement.counts(judged).astype(int).tolist(),
        "reliability": [{**one._asdict(), "observed": one.observed._asdict()} for one in bins],
        "thresholds": [one._asdict() for one in chosen.tried],
        "chosen": chosen.chosen and chosen.chosen._asdict(),
        "reason": chosen.reason,
    }
    plain: Row = _plain(found)
    return plain


def _edges(judged: Judged, scored: bool) -> list[float]:
    """A bin for each grade; ten equal ones for probabilities; for other scores ten with equally many pairs."""
    if not scored:
        return [grade - 0.5 for grade in range(agreement.GRADES + 1)]
    known = judged.score[~np.isnan(judged.score)]
    if known.min() >= 0 and known.max() <= 1:
        return [step / BINS for step in range(BINS + 1)]
    return [float(edge) for edge in np.unique(np.quantile(known, np.arange(BINS + 1) / BINS))]


def _plain(value: Any) -> Any:
    """nan, which JSON lacks, becomes None."""
    if isinstance(value, dict):
        return {name: _plain(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_plain(inner) for inner in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def entry(found: Row) -> Row:
    """What calibration.json keeps of a report."""
    one = found["chosen"] or {}
    names = ("prompt", "prompt_version", "model", "endpoint", "relevant_from", "max_chars")
    rest = ("pairs", "queries", "golden", "golden_digest", "split", "reason", "metrics")
    return {
        **{name: found[name] for name in names},
        "on": one.get("on", found["thresholds"][0]["on"] if found["thresholds"] else "grade"),
        "threshold": one.get("threshold"),
        "bound": one.get("bound"),
        "target": found["target"],
        "level": found["level"],
        "accepted": one.get("accepted"),
        "false_negatives": one.get("false_negatives"),
        **{name: found[name] for name in rest},
    }


def _owner(one: Row) -> tuple[str, str, str]:
    return one["prompt_version"], one["model"], one["endpoint"]


def record(folder: Path, found: Row) -> Path:
    """Put a report's entry into folder/calibration.json, in place of one of the same judge. Returns the file."""
    new = entry(found)
    kept = [one for one in calibrations(folder) if _owner(one) != _owner(new)]
    store.write_json(folder / FILE, {"format": 1, "calibrations": sorted([*kept, new], key=_owner)})
    return folder / FILE


def calibrations(folder: Path) -> list[Row]:
    """The entries of folder/calibration.json; [] where there is no such file. Raises UserError for a broken one."""
    path = folder / FILE
    if not path.is_file():
        return []
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        found = [one for one in value["calibrations"] if value["format"] == 1 and all(map(str, _owner(one)))]
        if len(found) == len(value["calibrations"]):
            return found
    except (ValueError, TypeError, KeyError, RecursionError):
        pass
    raise UserError(f"{path}: not a calibration file of this version of miner; delete it and calibrate again") from None


def calibration_of(folder: Path, prompt_version: str, model: str, endpoint: str | None = None) -> Row | None:
    """The calibration of a job's judge, or None where it was never calibrated.

    Its `threshold` is None where no threshold met the target. endpoint: identity of the server; None takes any, and of
    several the least trusted: one without a threshold, then the one with the highest bound.
    """
    own = [
        one
        for one in calibrations(folder)
        if (one["prompt_version"], one["model"]) == (prompt_version, model) and endpoint in (None, one["endpoint"])
    ]
    return max(own, key=lambda one: math.inf if one["bound"] is None else one["bound"], default=None)


def write_setting(job_file: Path, chosen: Row) -> None:
    """Put the chosen grade into the job file as judge.irrelevant_to; every other line stays as it is."""
    text = job_file.read_bytes().decode()  # as bytes, so that line ends stay what they are
    changed = yaml_file.set_values(text, {"judge.irrelevant_to": int(chosen["threshold"])}).encode()
    store.replace(job_file, lambda part: part.write_bytes(changed))
