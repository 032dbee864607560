"""The sections of a report about the judge: its answers, its agreement with people, canaries, and each rung's work."""

from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc

from miner import bounds, calibrate_judge, judge_steps, llms, store
from miner.errors import UserError
from miner.report import numbers as report_numbers
from miner.report.numbers import Numbers
from miner.report.plots import Line, Plot, bars, histogram, lines
from miner.report.read import Found
from miner.report.sections import section, table

Row = dict[str, Any]


def rung_steps(found: Found) -> list[tuple[str, str]]:
    """(name of the rung, its step) of each judging step that is there; a judge without rungs is one."""
    if not found.job.judge.enabled:
        return []
    judge = found.job.judge
    steps = zip(judge_steps.rung_names(judge), judge_steps.rung_steps(judge), strict=True)
    return [(name, step) for name, step in steps if found.has(step)]


def answers(found: Found, numbers: Numbers) -> Row | None:
    """What the judge said of the pool and of what was generated."""
    if not found.has("judgments"):
        return None
    steps = [name for name in ("judgments", "synthetic_judgments") if found.has(name)]
    rows = [
        (step.replace("_", " "), kind, word, count)
        for step in steps
        for kind in ("status", "verdict")
        for word, count in found.counts(step).get(kind, {}).items()
    ]
    sample = numbers.sample
    said = np.isin(report_numbers.words(sample, "status"), ["ok"])
    verdict, grade = report_numbers.words(sample, "verdict"), report_numbers.values(sample, "grade")
    kinds = {word: said & (verdict == word) for word in ("irrelevant", "unsure", "relevant")}
    plots: list[Plot | None] = []
    grades = sorted(int(one) for one in np.unique(grade[said & np.isfinite(grade)]))
    if grades:
        series = {word: [float((grade[mask] == one).sum()) for one in grades] for word, mask in kinds.items()}
        series = {word: values for word, values in series.items() if any(values)}
        plots.append(bars("Grades of the judge", [f"grade {one}" for one in grades], series, "passages"))
    score = report_numbers.values(sample, "judge_score")
    sure = {word: score[mask] for word, mask in kinds.items()}
    plots.append(histogram("How sure the judge is", sure, "score of the judge, higher is more relevant"))
    columns = ("step", "", "answer", "passages")
    tables = [table("Answers", columns, rows), _details(found)]
    return section("judge", "The judge's answers", "", plots, tables)


def _details(found: Found) -> Row | None:
    """What was odd about answers, whether they could be used or not; the most frequent first."""
    reasons: Counter[tuple[str, str]] = Counter()
    for step in ("judgments", "synthetic_judgments"):
        if found.has(step):
            judged = store.read_table(found.run.folder.step(step) / "judgments.parquet", ["status", "detail"])
            odd = pc.greater(pc.utf8_length(pc.fill_null(judged.column("detail"), "")), 0)
            bad = judged.filter(pc.or_(odd, pc.not_equal(judged.column("status"), "ok")))
            columns = (bad.column(name).to_pylist() for name in ("status", "detail"))
            reasons.update((status, (detail or "")[:120]) for status, detail in zip(*columns, strict=True))
    most = sorted(reasons.items(), key=lambda one: (-one[1], one[0]))[:12]
    rows = [(*reason, count) for reason, count in most]
    return table("Remarks on answers", ("status", "remark", "answers"), rows)


# ---------------------------------------------------------------- agreement with people


def agreement(found: Found) -> Row | None:
    """What JOB/calibration.json says of each judge, and the curve where its golden file and answers are still there."""
    if not found.job.judge.enabled:
        return None
    known = calibrate_judge.calibrations(found.run.folder.root)
    if not known:
        return None
    plots, rows, chosen = [], [], []
    for one in known:
        who = f"{one['model']}, {one['prompt']} {one['prompt_version'][:8]}"
        rows += [(who, words, *_measured(one["metrics"].get(name))) for name, words in calibrate_judge.MEASURES.items()]
        kept = "none" if one["threshold"] is None else f"{one['on']} <= {one['threshold']:g}"
        counts = (one["pairs"], one["queries"], one["accepted"], one["false_negatives"], one["bound"], one["target"])
        chosen.append((who, kept, *counts, one["reason"]))
        plots.append(_curve(found, one, who))
    rows = [row for row in rows if row[2] is not None]
    columns = ("judge", "accepted", "golden pairs", "queries", "accepted pairs", "of these relevant", "bound", "wanted")
    tables = [
        table("Agreement with people, 95% intervals", ("judge", "", "value", "low", "high"), rows),
        table("What is accepted as irrelevant", (*columns, "reason"), chosen),
    ]
    note = "Measured on graded pairs by miner calibrate judge."
    return section("agreement", "Agreement and calibration of the judge", note, plots, tables)


def _measured(metric: Row | None) -> tuple[Any, Any, Any]:
    return (None, None, None) if not metric else (metric["value"], metric["low"], metric["high"])


def _curve(found: Found, one: Row, who: str) -> Plot | None:
    """What the judge's grades or scores mean to people; None where that cannot be told without asking."""
    told = _told_again(found, one)
    bins = [row for row in (told or {}).get("reliability", []) if row["n"] and row["observed"]["value"] is not None]
    if not bins:
        return None
    graded = one["on"] == "grade"
    x = [row["start"] + 0.5 if graded else row["predicted"] for row in bins]
    y, low, high = ([row["observed"][name] for row in bins] for name in ("value", "low", "high"))
    bounded = all(value is not None for value in (*low, *high))
    line = Line("relevant to people", x, y, low if bounded else None, high if bounded else None)
    x_label = "grade of the judge" if graded else "score of the judge, mean of a bin"
    alt = "; ".join(f"{at:.2f}: {share:.0%}" for at, share in zip(x, y, strict=True))
    title = f"Calibration curve of {who}"
    return lines(title, [line], x_label, "relevant to people", f"{title}. {alt}.", diagonal=not graded)


def _told_again(found: Found, one: Row) -> Row | None:
    """The full report of a calibration, out of the ledger alone; None where something of it has changed."""
    path = Path(one["golden"])
    if not path.is_file() or store.file_digest(path) != one["golden_digest"] or found.run.ledger is None:
        return None
    run = dataclasses.replace(found.run, collect=True, warnings=[])
    try:
        for name, at in judge_steps.judges(found.run):
            endpoint = at.endpoint("judge")
            owner = (at.prompt("judge").version, endpoint.model, llms.identity(endpoint))
            if owner == (one["prompt_version"], one["model"], one["endpoint"]):
                return calibrate_judge.judge(run, path, one["split"], one["target"], name)
    except (llms.Pending, UserError):
        return None  # answers are not here any more, or the golden file is no longer sound: then there is no curve
    return None


# ---------------------------------------------------------------- canaries and rungs


def canaries(found: Found) -> Row | None:
    rows, plots = [], []
    names = ("wanted", "asked", "readable", "recognised", "recall", "recall low", "recall high")
    for name, step in rung_steps(found):
        told = found.counts(step).get("canaries")
        if told:
            rows.append((name, *(told.get(one) for one in names)))
            plots.append(_recall(found, name, step))
    note = "Pairs whose answer is known, mixed into the judging: how many the judge recognised."
    return section("canaries", "Canaries", note, plots, [table("Canaries", ("judge", *names), rows)])


def _recall(found: Found, name: str, step: str) -> Plot | None:
    """The recall of all canaries so far, in the order of judging, with its exact interval."""
    path = found.run.folder.step(step) / "canaries.parquet"
    if not path.is_file():
        return None
    known = store.read_table(path, ["status", "verdict"])
    known = known.filter(pc.equal(known.column("status"), "ok"))
    hits = np.cumsum(np.asarray(known.column("verdict").to_pylist(), object) == "relevant")
    if not len(hits):
        return None
    at = np.unique(np.linspace(1, len(hits), min(100, len(hits))).astype(np.int64))
    spans = [bounds.exact_interval(float(hits[n - 1]), float(n)) for n in at]
    line = Line("recall", at.tolist(), (hits[at - 1] / at).tolist(), [s[0] for s in spans], [s[1] for s in spans])
    title = f"Recall of canaries, {name}"
    alt = f"{title}: {int(hits[-1])} of {len(hits)} recognised."
    return lines(title, [line], "canaries answered", "recall so far", alt)


def cascade(found: Found) -> Row | None:
    """What each rung was asked, settled, changed and cost."""
    if not found.job.judge.enabled or not found.job.judge.rungs:
        return None
    rows, moves = [], []
    for name, step in rung_steps(found):
        counts = found.counts(step)
        tokens = counts.get("tokens", {})
        taken = (tokens.get("prompt"), tokens.get("completion"), counts.get("cost"))
        rows.append((name, counts.get("rows"), counts.get("settled"), counts.get("sent on"), *taken))
        moves += [(name, move, count) for move, count in counts.get("changed", {}).items()]
    names = [row[0] for row in rows]
    series = {word: [float(row[at] or 0) for row in rows] for word, at in (("settled", 2), ("sent on", 3))}
    columns = ("rung", "asked about", "settled", "sent on", "prompt tokens", "answer tokens", "dollars")
    tables = [
        table("Rungs, in order", columns, rows),
        table("Verdicts that a rung changed", ("rung", "from and to", "passages"), moves),
    ]
    return section("cascade", "The cascade", "", [bars("Work of the rungs", names, series, "passages")], tables)
