"""What a user must know of a job before training on it: the first thing that a report shows."""

from __future__ import annotations

from miner import calibrate_judge
from miner.errors import UserError
from miner.report import sections as report_sections
from miner.report import style as report_style
from miner.report.numbers import Numbers
from miner.report.prompts import clean
from miner.report.read import Found
from miner.report.style import Looked

UNREADABLE, LEFT_OUT, YIELD = 0.05, 0.2, 0.5
JUDGING = ("judgments", "synthetic_judgments")


def lines(found: Found, numbers: Numbers, looked: Looked) -> list[str]:
    """One line each, the gravest first."""
    told = [
        *_uncalibrated(found),
        *_canaries(found),
        *_unanswered(found),
        *_yield(found, numbers),
        *report_style.warnings(found, looked),
        *report_sections.worn(found, numbers),
        *found.notes,
    ]
    return [clean(line) for line in told]


def _uncalibrated(found: Found) -> list[str]:
    if not found.job.judge.enabled:
        return ["no judge was used: the negatives are unjudged, and some of them may be relevant"]
    try:
        reasons = calibrate_judge.uncalibrated(found.run)
    except UserError as error:
        return [f"whether the judge is calibrated cannot be told: {error}"]
    ending = "how many of its negatives are relevant is not known; measure it with miner calibrate judge"
    return [f"{reason}: {ending}" for reason in reasons]


def _canaries(found: Found) -> list[str]:
    """A recall that is surely below what the job asks for stops the run; one that may be is told here."""
    settings, lines = found.job.judge.canaries, []
    for name, stamp in found.stamps.items():
        told = stamp.counts.get("canaries") or {}
        if name.startswith("judgments") and told.get("recall", 1.0) < settings.halt_recall:
            lines.append(
                f"{name}: the judge recognised {told['recognised']} of {told['readable']} canaries,"
                f" less than judge.canaries.halt_recall {settings.halt_recall:g}"
            )
    return lines


def _unanswered(found: Found) -> list[str]:
    """Missing answers, and many that cannot be used."""
    told = []
    for step in (*JUDGING, "synthetic"):
        status = dict(found.counts(step).get("status", {}))
        total, missing = sum(status.values()), status.pop("missing", 0)
        if missing:
            told.append(f"{step}: {missing} answers are missing; run the job again, with --retry-failed if need be")
        bad = {name: count for name, count in status.items() if name != "ok"}
        if total and sum(bad.values()) > UNREADABLE * total:
            named = ", ".join(f"{name} {count}" for name, count in bad.items())
            told.append(f"{step}: {sum(bad.values()) / total:.1%} of {total} answers cannot be used ({named})")
    return told


def _yield(found: Found, numbers: Numbers) -> list[str]:
    if not found.has("decisions"):
        return []
    told, outcomes = [], dict(found.counts("decisions").get("queries", {}))
    total = sum(outcomes.values())
    exported = outcomes.pop("exported", 0)
    if total and total - exported > LEFT_OUT * total:
        named = ", ".join(f"{reason} {count}" for reason, count in outcomes.items())
        told.append(f"{total - exported} of {total} queries are left out ({named})")
    wanted = exported * found.job.mining.negatives
    if wanted and numbers.exported < YIELD * wanted:
        told.append(
            f"low yield: {numbers.exported} negatives for {exported} exported queries, of {wanted} wanted"
            f" (mining.negatives {found.job.mining.negatives})"
        )
    return told
