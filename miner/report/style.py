"""The section of a report about what the texts of exported queries give away: style audits, and the checks of a row."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from miner import audit_checks, style
from miner.audit_checks import Findings, Lengths, Settings
from miner.defects import DEFECTS
from miner.forms import NEGATIVE, POSITIVE, Example
from miner.records import TEXT, content_id
from miner.report import read as report_read
from miner.report.plots import bars
from miner.report.read import Found
from miner.report.sections import section, table

Row = dict[str, Any]
# Exported queries whose texts are looked at, and negatives of each; of those whose style is measured, which takes
# longest, the most queries, and negatives in all.
SAMPLED, NEGATIVES = 400, 4
STYLED = 150
DIFFERENCE = 0.5  # Cohen's d of the logarithms of the lengths, from which it is told


class Looked(NamedTuple):
    """What a sample of exported queries shows. told: can a classifier tell negatives from positives? length: how much
    longer negatives are, as Cohen's d of the logarithms; None for too few."""

    queries: int
    found: Findings
    told: style.Style | None
    length: float | None


def look(found: Found) -> Looked:
    """At up to SAMPLED exported queries, drawn by a hash of seed and id; of none before the job has decided."""
    examples = _examples(found) if found.has("decisions") else {}
    seen, lengths, settings = Findings(shown=3), Lengths(), Settings(seed=found.job.seed)
    batch, texts, second, groups = [], [], [], []
    log, each = audit_checks.Log(), max(1, STYLED // max(1, len(examples)))
    for row, (query_id, example) in enumerate(examples.items()):
        log.open_row(0, row)
        audit_checks.check_row(row, "flagembedding", {}, example, log, seen, settings)
        digests = log.fill(row, "flagembedding", {}, example)
        batch.append((row, example, digests))
        for role, slot, text in example.texts():
            if role in (POSITIVE, NEGATIVE):
                lengths.add(role, text)
            if role in (POSITIVE, NEGATIVE) and row < STYLED and (role == POSITIVE or slot < each):
                texts.append(text)
                second.append(role == NEGATIVE)
                groups.append(query_id)
    if batch:
        audit_checks.check_near(batch, seen, settings)
    told = style.audit(texts, second, groups, found.job.seed) if texts else None
    return Looked(len(examples), seen, told, lengths.difference())


def _examples(found: Found) -> dict[str, Example]:
    became = report_read.outcomes(found)
    exported = became.filter(pc.equal(became.column("reason"), "")).column("query_id").to_pylist()
    drawn = sorted(exported, key=lambda name: (content_id(f"{found.job.seed} look {name}"), name))[:SAMPLED]
    names = pa.array(sorted(drawn), TEXT)
    docs: dict[str, tuple[list[str], list[str]]] = {name: ([], []) for name in names.to_pylist()}
    for row in _of(report_read.positives(found, ["query_id", "doc_id"]), names):
        docs[row["query_id"]][0].append(row["doc_id"])
    for part in report_read.parts(found, ["query_id", "doc_id", "kept"]):
        for row in _of(part.filter(part.column("kept")), names):
            docs[row["query_id"]][1].append(row["doc_id"])
    chosen = {name: (docs[name][0], docs[name][1][:NEGATIVES]) for name in drawn}
    texts = report_read.texts(found, {doc for sides in chosen.values() for side in sides for doc in side})
    asked = report_read.query_texts(found, list(chosen))
    return {
        name: Example(query, _known(texts, sides[0]), _known(texts, sides[1]))
        for (name, sides), query in zip(chosen.items(), asked, strict=True)
    }


def _known(texts: dict[str, str], docs: list[str]) -> list[str | None]:
    return [texts.get(doc) for doc in docs]


def _of(part: pa.Table, names: pa.Array) -> list[Row]:
    return list(part.filter(pc.is_in(part.column("query_id"), value_set=names)).to_pylist())


def audit(found: Found, looked: Looked) -> Row | None:
    """Synthetic against mined negatives as the decisions measured it; negatives against positives on the sample."""
    rows = [("synthetic against mined negatives", name, value) for name, value in _stamped(found).items()]
    plot, told = None, looked.told
    if told is not None:
        known = {"verdict": told.verdict, "AUC": told.auc, "low": told.low, "high": told.high, "needed": told.needed}
        known = {n: v for n, v in known.items() if v != "" and not (isinstance(v, float) and math.isnan(v))}
        rows += [("negatives against positives", name, value) for name, value in known.items()]
        if told.features:
            names = [name for name, _ in told.features]
            sides = {
                "speak for a negative": [max(0.0, weight) for _, weight in told.features],
                "for a positive": [max(0.0, -weight) for _, weight in told.features],
            }
            plot = bars("Most telling features, negatives against positives", names, sides, "weight times spread")
    if looked.length is not None:
        rows.append(("negatives against positives", "length, Cohen's d of the logarithm", looked.length))
    counts = sorted(looked.found.counts.items())
    defects = [(code, DEFECTS[code].severity, DEFECTS[code].what, count) for code, count in counts]
    note = (
        f"A sample of {looked.queries:,} exported queries; miner audit looks at all rows of the files."
        if looked.queries
        else ""
    )
    tables = [
        table("Can a classifier tell them apart?", ("", "", ""), rows, "AUC 0.5: it cannot; 1: always."),
        table("Defects in the sample", ("code", "severity", "what", "count"), defects),
    ]
    return section("style", "Style and defects of the texts", note, [plot], tables)


def _stamped(found: Found) -> Row:
    told = found.counts("decisions").get("style")
    return told if isinstance(told, dict) else {}


def warnings(found: Found, looked: Looked) -> list[str]:
    lines, stamped = [], _stamped(found)
    if stamped.get("verdict") in ("warn", "refuse"):
        ending = "all are left out" if stamped["verdict"] == "refuse" else "they show how they were made"
        lines.append(f"style: a classifier tells synthetic from mined negatives, AUC {stamped['auc']:.2f}; {ending}")
    told = looked.told
    if told is not None and told.verdict in ("warn", "refuse"):
        telling = ", ".join(name for name, _ in told.features[:3])
        lines.append(
            f"style: a classifier tells negatives from positives without the query, AUC {told.auc:.2f}"
            f" ({told.low:.2f}-{told.high:.2f}): a model may learn that in place of relevance; most telling: {telling}"
        )
    if looked.length is not None and abs(looked.length) >= DIFFERENCE:
        more = "longer" if looked.length > 0 else "shorter"
        lines.append(f"style: negatives are {more} than positives, Cohen's d {abs(looked.length):.2f}")
    for code, count in sorted(looked.found.counts.items()):
        if code in LEAKS or DEFECTS[code].severity == "error":
            lines.append(f"leak or defect in a sample of {looked.queries} queries: {DEFECTS[code].what}, {count} times")
    return lines


LEAKS = ("R02", "R08", "T17")  # a negative that may be relevant, and what an LLM says of its task
