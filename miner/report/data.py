"""The payload of a report: all that the page shows of one job, as plain values that JSON takes.

Its keys are kind, title, miner, warnings, facts, flow, sections, browser and comparison. The same job folder gives the
same payload.
"""

from __future__ import annotations

import importlib.metadata
from contextlib import ExitStack
from typing import Any

from miner.config import Job
from miner.errors import UserError
from miner.report import browser as report_browser
from miner.report import choice as report_choice
from miner.report import cost as report_cost
from miner.report import judge as report_judge
from miner.report import ledger as report_ledger
from miner.report import numbers as report_numbers
from miner.report import read as report_read
from miner.report import sections as report_sections
from miner.report import style as report_style
from miner.report import texts as report_texts
from miner.report import warnings as report_warnings
from miner.report.browser import size
from miner.report.choice import Choice, Wanted
from miner.report.ledger import Book
from miner.report.numbers import Numbers
from miner.report.prompts import clean
from miner.report.read import Found
from miner.report.style import Looked

Row = dict[str, Any]
MAX_MB = 8.0
# Of the largest file, for the page's own script and style; the payload is base64 of gzip in the rest.
PAGE, SLACK = 200_000, 0.95
# Numbers may take so much of the room, texts get what is left.
NUMBERS = 0.7
TRIES = 3


def payload(job: Job, wanted: Wanted | None = None, max_mb: float = MAX_MB, browser: bool = True) -> Row:
    """What the page shows of a job. wanted: which queries; None is the first page. max_mb: of the whole file, in
    millions of bytes. browser: false leaves out the decisions on each candidate.

    Takes no lock: where a run replaces a step meanwhile, everything is read once more. Raises UserError where nothing
    is mined yet, where no text would fit, and where a file is broken.
    """
    room = int((max_mb * 1e6 - PAGE) * 0.75 * SLACK)
    if room <= 0:
        raise UserError(f"report: --max-mb {max_mb:g} leaves no room for data; the page alone takes {PAGE / 1e6:g}")
    for number in range(TRIES):
        before = report_read.snapshot(job)
        try:
            made = _payload(job, wanted or Wanted(), room, browser)
        except UserError:
            if number == TRIES - 1 or report_read.snapshot(job) == before:
                raise
            continue
        if report_read.snapshot(job) == before:
            return made
    raise UserError(f"{job.job}: a run replaces its files again and again; ask for the report when a step takes longer")


def _payload(job: Job, wanted: Wanted, room: int, browser: bool) -> Row:
    found = report_read.opened(job)
    with ExitStack() as stack:
        stack.callback(found.close)  # last: a connection that may write takes SQLite's helper files away
        ledger = found.run.folder.ledger
        book = stack.enter_context(report_ledger.opened(ledger)) if ledger.is_file() else None
        numbers, looked = report_numbers.read(found), report_style.look(found)
        made: Row = {
            "kind": "job",
            "title": _title(found),
            "miner": importlib.metadata.version("miner"),
            "warnings": report_warnings.lines(found, numbers, looked),
            "facts": facts(found, numbers),
            "flow": report_sections.flow(found, numbers, found.counts("export").get("negatives")),
            "sections": sections(found, numbers, looked, book),
            "browser": None,
            "comparison": None,
        }
        if browser:
            made["browser"] = _browser(found, wanted, book, room - size(made))
        return made


def _title(found: Found) -> str:
    root = found.run.folder.root
    return clean(found.job.export.name or f"{root.parent.name}/{root.name}".removesuffix(".job"))


def sections(found: Found, numbers: Numbers, looked: Looked, book: Book | None) -> list[Row]:
    every = [
        report_sections.candidates(found, numbers),
        report_sections.scores(found, numbers),
        report_judge.answers(found, numbers),
        report_judge.agreement(found),
        report_judge.canaries(found),
        report_judge.cascade(found),
        report_style.audit(found, looked),
        report_sections.lengths(found, numbers),
        report_sections.reuse(found, numbers),
        report_cost.cost(book),
    ]
    return [one for one in every if one is not None]


def facts(found: Found, numbers: Numbers) -> list[list[Any]]:
    """The summary: names and values."""
    job, corpus, outcomes = found.job, found.counts("corpus"), found.counts("decisions").get("queries", {})
    known: Row = {
        "passages": corpus.get("passages"),
        "queries": corpus.get("queries"),
        "encoder": str(job.encoder.model),
        "retrievers": ", ".join(one.label for one in job.mining.retrievers),
        "teacher": str(job.teacher.model) if job.teacher else None,
        **{stage: _model(found, stage) for stage in ("judge", "generator")},
        "candidates, mined": numbers.total("mined"),
        "generated": numbers.total("synthetic") or None,
        "queries exported": outcomes.get("exported", 0) if found.has("decisions") else None,
        "queries left out": sum(outcomes.values()) - outcomes.get("exported", 0) if found.has("decisions") else None,
        "negatives exported": found.counts("export").get("negatives", numbers.exported or None),
        "of these synthetic, before the export": numbers.of("synthetic", "") or None,
        "kept out for evaluation": _kept_out(found),
        "steps": ", ".join(found.stamps),
        "seed": job.seed,
    }
    return [[name, report_sections.cell(value)] for name, value in known.items() if value not in (None, "")]


def _model(found: Found, stage: str) -> str | None:
    settings = getattr(found.job, stage)
    endpoint = settings.llm or found.job.llm
    return f"{endpoint.model}, prompt {settings.prompt}" if settings.enabled and endpoint else None


def _kept_out(found: Found) -> str:
    if not found.job.data.firewall:
        return "no evaluation set is named (data.firewall)"
    dropped = found.counts("corpus").get("dropped", {})
    return f"{sum(count for name, count in dropped.items() if '.firewall_' in name):,} rows"


# ---------------------------------------------------------------- the browser


def _browser(found: Found, wanted: Wanted, book: Book | None, room: int) -> Row:
    while True:
        choice = report_choice.choose(found, wanted)
        made = report_browser.numbers(found, choice)
        taken = size(made.browser)
        if taken <= NUMBERS * room or len(choice.ids) == 1:
            break
        fewer = int(len(made.query) * 0.9 * NUMBERS * max(room, 1) / taken)
        wanted = wanted._replace(candidates=min(fewer, wanted.candidates - 1))
    told = report_texts.tell(found, made, choice, book, room - taken)
    if choice.told and not told.queries:
        raise UserError("report: the texts of not one query fit; give a higher --max-mb, or a lower --queries")
    scorers = {"score": report_sections.scorer(found), "teacher_score": report_sections.teacher(found)}
    return {"note": note(choice, told, wanted), "scorers": scorers, **made.browser}


def note(choice: Choice, told: report_texts.Told, wanted: Wanted) -> str:
    """What of the job is not in the page, in words; "" where all is."""
    lines = []
    if told.queries < choice.total:
        lines.append(f"Texts of {told.queries:,} of {choice.total:,} queries are in this page.")
    if told.queries < choice.told:
        lines.append(f"{choice.told:,} were wanted; --max-mb leaves room for no more.")
    if not told.complete:
        lines.append("Texts of some candidates that were dropped before judging are left out.")
    if len(choice.ids) < choice.total:
        lines.append(
            f"Numbers of {len(choice.ids):,} queries are in this page, out of {choice.candidates:,} candidates."
        )
    if choice.pages > 1:
        lines.append(
            f"This is page {wanted.page} of {choice.pages}: --page K takes the next {wanted.queries:,} queries."
        )
    return " ".join([*lines, "The others: miner inspect JOB.yaml QUERY_ID."]) if lines else ""
