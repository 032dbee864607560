"""Ask a job's judge about golden pairs, and decide which of its verdicts may be trusted.

JOB/calibration.json holds what was found, for the export to read:

    {"format": 1, "calibrations": [{
        "prompt": "graded", "prompt_version": "…", "model": "…", "endpoint": "…",   whose calibration it is
        "relevant_from": 2, "max_chars": 4000, "reference": true, …,                settings that it rests on
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
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from miner import acceptance, agreement, golden, judge_steps, llms, prompts, store, yaml_file
from miner.agreement import Judged
from miner.bounds import LEVEL
from miner.config import Judge
from miner.errors import UserError
from miner.golden import Golden
from miner.stages import judgments
from miner.steps import Context

Row = dict[str, Any]
FILE = "calibration.json"
# What a calibration rests on, beside prompt, model and endpoint; the others only where many passages share a request.
RESTS_ON = ("relevant_from", "max_chars", "reference", "evidence")
PACKED = ("pack", "orders")
BINS = 10
# What is measured of a judge, in words.
MEASURES = {
    "kappa": "kappa, irrelevant or not",
    "kappa_quadratic": "kappa, grades, quadratic",
    "auc_grade": "AUC of the grade",
    "auc_score": "AUC of the score",
    "precision_irrelevant": "precision of irrelevant",
    "recall_irrelevant": "recall of irrelevant",
    "yield": "yield",
    "false_negatives": "false negatives among accepted",
}


def judge(run: Context, path: Path, split: str, target: float, rung: str | None = None) -> Row:
    """Ask what is not in the ledger yet, and measure. rung: of a cascade; None is the last one, judge.prompt itself.

    Raises UserError for a bad golden file, a judge that is off and a rung that asks no LLM.
    """
    if not run.job.judge.enabled:
        raise UserError("calibrate judge: judge.enabled is false in the job file; there is no judge to calibrate")
    known = dict(judge_steps.judges(run))
    if rung is not None and rung not in known:
        raise UserError(f"calibrate judge: --rung {rung}: no such rung asks an LLM; the job has {', '.join(known)}")
    run = known[rung or judgments.RUNG]
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
        **{name: getattr(run.job.judge, name) for name in (*RESTS_ON, *PACKED, "irrelevant_to", "irrelevant_p")},
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

    order = sorted(
        range(len(pairs)), key=lambda at: (pairs[at].query_id, pairs[at].positive)
    )  # packs are of neighbours

    def asked() -> Iterator[judgments.Pair]:
        for one in (pairs[at] for at in order):
            yield judgments.Pair(one.query_id, one.doc_id, one.query, one.positive, one.passage)

    found: list[Row] = [{}] * len(pairs)
    for at, row in zip(order, judge_steps.ask_about(run, asked, "judge golden"), strict=True):
        found[at] = row
    return found


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
    names = ("prompt", "prompt_version", "model", "endpoint", *RESTS_ON, *PACKED)
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


def write_setting(job_file: Path, chosen: Row, relevant_p: float = 0.5) -> None:
    """Put the chosen grade or probability into the job file; every other line stays as it is.

    relevant_p: the job's; what is irrelevant may lie no higher.
    """
    text = job_file.read_bytes().decode()  # as bytes, so that line ends stay what they are
    if chosen["on"] == "grade":
        values: Row = {"judge.irrelevant_to": int(chosen["threshold"])}
    else:
        values = {"judge.irrelevant_p": min(float(chosen["threshold"]), relevant_p)}
    changed = yaml_file.set_values(text, values).encode()
    store.replace(job_file, lambda part: part.write_bytes(changed))


# ---------------------------------------------------------------- may its verdicts be exported?


def uncalibrated(run: Context) -> list[str]:
    """Why negatives rest on verdicts that no calibration vouches for; [] where all are vouched for or none is used."""
    judge = run.job.judge
    if not judge.enabled:
        return []
    reasons = [
        f"rung {rung.name} calls passages irrelevant by teacher score, which no calibration covers"
        for rung in judge.rungs
        if rung.kind == "teacher" and rung.below is not None and rung.settles != "relevant"
    ]
    settles = {rung.name: rung.settles for rung in judge.rungs}
    trusted = [one for name, one in judge_steps.judges(run) if settles.get(name) != "relevant"]
    return reasons + [why for why in map(_unvouched, trusted) if why]


def _unvouched(run: Context) -> str:
    """What a judge lacks of being calibrated, or ""."""
    judge, prompt, one = run.job.judge, run.prompt("judge"), calibration_for(run)
    who = f"the judge {run.endpoint('judge').model} with prompt {prompt.front.name}"
    if one is None:
        return f"{who} is not calibrated"
    if one["threshold"] is None:
        return f"{who} failed its calibration ({one['reason']})"
    defaults = Judge()  # type: ignore[call-arg]
    more = PACKED if prompt.mode in prompts.MANY else ("orders",) * (prompt.orders > 1)
    for name in (*RESTS_ON, *more):
        found, wanted = one.get(name, getattr(defaults, name)), getattr(judge, name)
        if found != wanted:
            return f"{who} was calibrated with judge.{name} {json.dumps(found)}, and the job has {json.dumps(wanted)}"
    name = "irrelevant_to" if one["on"] == "grade" else "irrelevant_p"
    if getattr(judge, name) > one["threshold"]:
        return (
            f"{who} is calibrated up to {one['on']} {one['threshold']:g}, and judge.{name} is {getattr(judge, name):g}"
        )
    return ""


def calibration_for(run: Context) -> Row | None:
    """The calibration of the job's (last) judge at its own endpoint."""
    endpoint = run.endpoint("judge")
    return calibration_of(run.folder.root, run.prompt("judge").version, endpoint.model, llms.identity(endpoint))


def gate(run: Context) -> None:
    """Raises UserError where negatives rest on an uncalibrated judge and the job does not say that they may."""
    reasons = uncalibrated(run)
    if reasons and not run.job.judge.uncalibrated:
        more = f" (and {len(reasons) - 1} more)" if len(reasons) > 1 else ""
        raise UserError(
            f"export: {reasons[0]}{more}; measure it with miner calibrate judge JOB --golden FILE --target-fn 0.03, or"
            " export all the same with --uncalibrated (judge.uncalibrated: true), which the data card will say"
        )


def state(run: Context) -> str:
    """A digest of all that the gate and the data card take from calibrations: one of the export's inputs."""
    return store.digest([run.job.judge.uncalibrated, uncalibrated(run), card_facts(run)])


def card_facts(run: Context) -> Row | None:
    """Agreement of the job's last judge with people, for the data card; None where it is not calibrated."""
    one = calibration_for(run) if run.job.judge.enabled and not uncalibrated(run) else None
    if one is None:
        return None
    found: Row = {"golden pairs": one["pairs"], "queries of these": one["queries"]}
    known = {name: one["metrics"].get(name) for name in CARD}
    found |= {CARD[name]: round(m["value"], 3) for name, m in known.items() if m and m["value"] is not None}
    return found | {f"false negatives among accepted, at most ({one['level']:.0%} bound)": round(one["bound"], 4)}


CARD = {
    "kappa": "Cohen's kappa, irrelevant or not",
    "kappa_quadratic": "quadratic kappa of the grades",
    "precision_irrelevant": "precision of irrelevant",
    "recall_irrelevant": "recall of irrelevant",
}
