"""The sections of a report about candidates: where they went, their scores, lengths and reuse."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from miner.records import TEXT
from miner.report import numbers as report_numbers
from miner.report import read as report_read
from miner.report.numbers import Numbers
from miner.report.plots import Line, Plot, histogram, lines
from miner.report.prompts import clean
from miner.report.read import UNDECIDED, Found

Array = np.ndarray[Any, Any]
Row = dict[str, Any]
SHOWN, WORN = 20, 0.05
JUDGED_OUT = ("judged_", "judge_")


def section(name: str, title: str, note: str, plots: Sequence[Plot | None], tables: Sequence[Row | None]) -> Row | None:
    """None where there is nothing to show. `name` is its id in the page."""
    drawn = [{name: clean(text) for name, text in plot._asdict().items()} for plot in plots if plot is not None]
    listed = [one for one in tables if one is not None]
    if not drawn and not listed:
        return None
    return {"id": name, "title": title, "note": note, "plots": drawn, "tables": listed}


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], note: str = "") -> Row | None:
    """None without rows. Texts are cleaned of what UTF-8 cannot hold; numbers are rounded to six digits."""
    if not rows:
        return None
    return {
        "title": title,
        "columns": list(columns),
        "rows": [[cell(one) for one in row] for row in rows],
        "note": note,
    }


def cell(value: Any) -> Any:
    if isinstance(value, str):
        return clean(value)
    if isinstance(value, float):
        return None if not np.isfinite(value) else float(f"{value:.6g}")
    return value


# ---------------------------------------------------------------- where candidates went


def flow(found: Found, numbers: Numbers, written: int | None) -> list[Row]:
    """From candidates to what is exported, each drop with its reason. written: negatives in the export's files, None
    before the export."""
    edges = _mined(numbers, found.has("decisions"), found.has("judgments"))
    if not found.has("decisions"):
        return edges
    if numbers.total("synthetic"):
        edges += [_edge("generated", "negatives", numbers.of("synthetic", ""))]
        edges += _drops("generated", "synthetic", numbers, ("",))
    lost = 0 if written is None else max(0, numbers.exported - written)
    last = "ready for export" if written is None else "exported"
    edges += [_edge("negatives", f"query: {reason}", n, "dropped") for reason, n in sorted(numbers.unused.items())]
    edges.append(_edge("negatives", last, numbers.exported - lost))
    return edges + ([_edge("negatives", "left out by the export", lost, "dropped")] if lost else [])


def _mined(numbers: Numbers, decided: bool, judged: bool) -> list[Row]:
    reasons = {reason: count for (source, reason), count in numbers.reasons.items() if source == "mined"}
    after = {reason for reason in reasons if reason in ("", "surplus", "pool") or reason.startswith(JUDGED_OUT)}
    pool = sum(reasons[reason] for reason in after)
    edges = [_edge("candidates", "pool", pool), *_drops("candidates", "mined", numbers, tuple(after))]
    if judged or any(reason.startswith(JUDGED_OUT) for reason in after):
        good = sum(reasons.get(reason, 0) for reason in ("", "surplus", "judged_irrelevant"))
        refused = tuple(r for r in reasons if not r.startswith(JUDGED_OUT) or r == "judged_irrelevant")
        edges += [_edge("pool", "judged irrelevant", good), *_drops("pool", "mined", numbers, refused)]
        last = "judged irrelevant"
    else:
        last = "pool"
    if decided:
        edges.append(_edge(last, "negatives", reasons.get("", 0)))
        edges += [_edge(last, "surplus", reasons["surplus"], "dropped")] if reasons.get("surplus") else []
    return edges


def _edge(start: str, end: str, count: int, kind: str = "kept") -> Row:
    return {"from": start, "to": clean(end), "count": int(count), "kind": kind}


def _drops(start: str, source: str, numbers: Numbers, but: tuple[str, ...]) -> list[Row]:
    mine = {reason: n for (one, reason), n in numbers.reasons.items() if one == source and reason not in but}
    return [_edge(start, reason, count, "dropped") for reason, count in sorted(mine.items())]


def candidates(found: Found, numbers: Numbers) -> Row | None:
    total = sum(numbers.reasons.values())
    counted = sorted(numbers.reasons.items(), key=lambda one: (one[0][0], -one[1], one[0][1]))
    rows = [(source, reason or "kept", count, count / max(1, total)) for (source, reason), count in counted]
    tables = [table("What became of them", ("source", "reason", "candidates", "share"), rows)]
    for title, name, counts in (
        ("By the retriever that ranked them best", "retriever", numbers.retrievers),
        ("By band of ranks or scores", "band", numbers.bands),
    ):
        names = sorted({one for one, _ in counts})
        if len(names) > 1:
            split = [(one, counts[one, True] + counts[one, False], counts[one, True]) for one in names]
            tables.append(table(title, (name, "candidates", "kept"), split))
    became = report_read.outcomes(found)
    outcome = [
        (row["values"] or "exported", row["counts"]) for row in became.column("reason").value_counts().to_pylist()
    ]
    tables.append(table("Queries", ("outcome", "queries"), sorted(outcome, key=lambda one: (-one[1], one[0]))))
    plots = [] if UNDECIDED in became.column("reason").to_pylist() else [_per_query(became)]
    return section("candidates", "Candidates", "", plots, tables)


def _per_query(became: pa.Table) -> Plot | None:
    counts = {name: became.column(name).to_numpy().astype(float) for name in ("negatives", "false_negatives")}
    if not counts["false_negatives"].any():
        del counts["false_negatives"]
    return histogram("Negatives of a query", {n.replace("_", " "): v for n, v in counts.items()}, "passages")


# ---------------------------------------------------------------- scores


def scores(found: Found, numbers: Numbers) -> Row | None:
    sample, kinds = numbers.sample, report_numbers.kinds(numbers.sample)
    score, lowest = (report_numbers.values(sample, name) for name in ("score", "positive_score"))
    near = report_numbers.values(sample, "to_positive")
    weighed, what = score, "the score"
    if np.isfinite(near).any():  # the margin of `rocchio`
        weighed = np.where(np.isfinite(near), (score + near) / 2, score)  # a written one was never held against it
        what = "the mean of the score and, of mined ones, the cosine with the nearest positive"
    of = report_read.positives(found, ["score", "teacher_score"])
    taught = report_numbers.values(sample, "teacher_score")
    plots = [
        histogram("Scores", {"positives": report_numbers.values(of, "score"), **_by(kinds, score)}, scorer(found)),
        histogram("Margins", _by(kinds, lowest - weighed), f"lowest positive score of the query less {what}"),
        histogram("Ranks", _by(kinds, report_numbers.values(sample, "rank")), "rank"),
    ]
    if np.isfinite(taught).any():
        groups = {"positives": report_numbers.values(of, "teacher_score"), **_by(kinds, taught)}
        plots.append(histogram("Teacher scores", groups, teacher(found) or ""))
    rows = [_spread("positives", report_numbers.values(of, "score"))]
    rows += [_spread(name, score[mask]) for name, mask in kinds.items()]
    rows = [row for row in rows if row[1]]
    above = [
        (name, int((score[mask] >= lowest[mask]).sum()), float((score[mask] >= lowest[mask]).mean()))
        for name, mask in kinds.items()
        if np.isfinite(lowest[mask]).any()
    ]
    note = "" if numbers.stride == 1 else f"Every {numbers.stride}th candidate is counted here."
    tables = [
        table("Scores", ("", "passages", "lowest", "median", "highest"), rows),
        table("At or above the lowest positive of their query", ("", "passages", "share"), above),
    ]
    return section("scores", "Scores, ranks and margins", note, plots, tables)


def _by(kinds: dict[str, Array], values: Array) -> dict[str, Array]:
    return {name: values[mask] for name, mask in kinds.items()}


def _spread(name: str, values: Array) -> tuple[Any, ...]:
    known = values[np.isfinite(values)]
    if not len(known):
        return name, 0, None, None, None
    return name, len(known), float(known.min()), float(np.median(known)), float(known.max())


def scorer(found: Found) -> str:
    """Whose the column `score` is."""
    return f"cosine of {clean(str(found.job.encoder.model).rstrip('/').rpartition('/')[2])}"


def teacher(found: Found) -> str | None:
    """Whose the column `teacher_score` is; None where the job has no teacher."""
    settings = found.job.teacher
    return f"score of {clean(str(settings.model).rstrip('/').rpartition('/')[2])}" if settings else None


# ---------------------------------------------------------------- lengths and reuse


def lengths(found: Found, numbers: Numbers) -> Row | None:
    """Characters of queries, positives, negatives and the corpus."""
    ids, sizes = report_read.lengths(found)
    queries, used = found.run.table("corpus", "queries").column("text"), pa.array(list(numbers.used), TEXT)
    groups = {
        "positives": _sized(report_read.positives(found, ["doc_id"]).column("doc_id"), ids, sizes),
        "negatives, mined": np.repeat(_sized(used, ids, sizes), list(numbers.used.values())),
        "negatives, synthetic": _written(found),
        "corpus": sizes.astype(float),
    }
    asked = pc.fill_null(pc.utf8_length(queries), 0).to_numpy().astype(float)
    rows = [_spread(name, values) for name, values in {"queries": asked, **groups}.items() if len(values)]
    plots = [histogram("Lengths of passages", groups, "characters", log=True)]
    return section("lengths", "Lengths", "", plots, [table("Characters", SPREAD, rows)])


SPREAD = ("", "texts", "lowest", "median", "highest")


def _sized(names: Any, ids: pa.Array, sizes: Array) -> Array:
    """float64[n]: the characters of each; 0 of what is no passage of the corpus."""
    place = pc.fill_null(pc.index_in(names, value_set=ids), len(ids)).to_numpy()
    sizes = np.append(sizes, 0)
    return np.asarray(sizes[place], float)


def _written(found: Found) -> Array:
    """Characters of the synthetic negatives that were kept."""
    texts, kept = report_read.synthetic_texts(found), []
    if texts and found.has("decisions"):
        for part in report_read.parts(found, ["doc_id", "source", "kept"]):
            made = part.filter(pc.and_(part.column("kept"), pc.equal(part.column("source"), "synthetic")))
            kept += [len(texts[name]) for name in made.column("doc_id").to_pylist() if name in texts]
    return np.array(kept, float)


def reuse(found: Found, numbers: Numbers) -> Row | None:
    """How often the same passage is a negative."""
    if not numbers.used:
        return None
    queries = report_read.outcomes(found).num_rows
    most = sorted(numbers.used.items(), key=lambda one: (-one[1], one[0]))[:SHOWN]
    texts = report_read.texts(found, {name for name, _ in most})
    rows = [(name, count, count / max(1, queries), _short(texts.get(name, ""))) for name, count in most]
    counts = np.sort(np.array(list(numbers.used.values()), float))[::-1]
    share = np.cumsum(counts) / counts.sum()
    at = np.unique(np.geomspace(1, len(share), 100).astype(np.int64)) - 1
    top = float(share[max(0, round(0.01 * len(share)) - 1)])
    plot = lines(
        "Reuse of passages",
        [Line("negatives", ((at + 1) / len(share)).tolist(), share[at].tolist())],
        "share of the different negatives, most used first",
        "share of all mined negatives",
        f"The most used hundredth of the passages makes {top:.1%} of the mined negatives.",
        diagonal=True,
    )
    note = f"{int(counts.sum()):,} mined negatives are {len(counts):,} different passages."
    columns = ("doc_id", "negative of so many queries", "share of queries", "text")
    return section("reuse", "Most reused passages", note, [plot], [table("Most reused", columns, rows)])


def _short(text: str, width: int = 160) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"


def worn(found: Found, numbers: Numbers) -> list[str]:
    """A warning where one passage is the negative of very many queries."""
    queries = report_read.outcomes(found).num_rows
    if queries < SHOWN or not numbers.used:
        return []
    often = [name for name, count in numbers.used.items() if count > max(4, WORN * queries)]
    if not often:
        return []
    name, count = max(numbers.used.items(), key=lambda one: (one[1], one[0]))
    return [
        f"{len(often)} passages are the negative of more than {WORN:.0%} of the queries each; the most reused,"
        f" {name}, of {count} of {queries}"
    ]
