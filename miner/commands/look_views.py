"""What `miner inspect` shows: a query with its candidates, or one candidate with what was asked and answered."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.text import Text

from miner.commands.safe import LONG, LONGEST, block, console_of, dollars, inline, marked, number, whole

Row = dict[str, Any]
GRADES = ("not relevant", "same topic, no answer", "answers the main point", "answers fully")
REASONS = {
    "positive": "a positive of the query",
    "positive_copy": "a copy of a positive",
    "query_copy": "a copy of the query",
    "copy_of_better": "a copy of a better candidate",
    "near_positive": "nearly the same as a positive",
    "near_better": "nearly the same as a better candidate",
    "answer": "holds the answer",
    "sibling": "of the same group as a positive",
    "positive_of_twin": "a positive of nearly the same query",
    "rank_min": "ranked above the window",
    "rank_max": "ranked below the window",
    "no_teacher_score": "the teacher gave no score",
    "score_max": "score too high",
    "score_min": "score too low",
    "margin_absolute": "too close to the lowest positive",
    "margin_relative": "too close to the lowest positive",
    "max_uses": "used too often already",
    "quota": "its retriever has its share",
    "not_sampled": "beyond the pool",
    "surplus": "more than are wanted",
    "judged_relevant": "the judge found it relevant: a false negative",
    "judged_unsure": "the judge is in doubt",
    "judge_missing": "no answer of the judge yet",
    "judge_refused": "the judge refused",
    "judge_truncated": "the judge's answer was cut off",
    "judge_unparsable": "the judge's answer cannot be read",
    "copy_of_positive": "a copy of a positive",
    "copy_of_corpus": "stands in the corpus already",
    "copy_of_synthetic": "a copy of another written one",
    "style_audit": "written ones can be told by their style",
    "not_chosen": "another sample of the same demand was taken",
}


def decision(row: Row) -> str:
    """What became of a candidate, in words."""
    if row.get("kept"):
        return f"kept as negative {row['slot']}"
    if row["reason"]:
        words = REASONS.get(row["reason"])
        return f"dropped: {row['reason']}{f' ({words})' if words else ''}"
    return f"in the pool at {row['pool_rank']}, not decided yet" if row.get("pool_rank") else "not decided yet"


def print_query(found: Row, full: bool = False) -> None:
    """found: as job_query.query returns it, its candidates perhaps filtered: `of` says how many there were."""
    console = console_of()
    block(console, Text(inline(found["query_id"]), "bold"))
    block(console, Text(inline(found["text"], None if full else LONGEST), "bold"), 2)
    for row in found["positives"]:
        console.print()
        scores = f"score {number(row['score'])}{_teacher(row)}, relevance {row['relevance']}"
        block(console, Text(f"positive  {inline(row['doc_id'], 60)}  {scores}", "green"))
        _print_passage(console, row["text"], [], full)
    for row in found["candidates"]:
        console.print()
        _print_candidate(console, row, full)
    total, shown = found.get("of", len(found["candidates"])), len(found["candidates"])
    kept = sum(bool(row.get("kept")) for row in found["candidates"])
    of = f" of {total}" if total != shown else ""
    console.print(f"\n{shown}{of} candidates, {kept} kept")


def _teacher(row: Row) -> str:
    return "" if row.get("teacher_score") is None else f", teacher {number(row['teacher_score'])}"


def _print_candidate(console: Console, row: Row, full: bool) -> None:
    kept = bool(row.get("kept"))
    rank = f"#{row['rank']}" if row.get("rank") else "written"
    block(console, Text(f"{rank:<5} {inline(row['doc_id'], 60)}", "bold" if kept else ""))
    block(console, Text(decision(row), "red" if kept else "dim"), 6)
    block(console, Text(_measured(row), "dim"), 6)
    if said := _judged(row):
        block(console, Text(said), 6)
    _print_passage(console, row["text"], [row.get("evidence") or ""], full)
    if row.get("evidence"):
        block(console, Text(f"evidence “{inline(row['evidence'], None if full else 200)}”", "yellow"), 6)
    for name in ("change", "detail"):
        if row.get(name):
            block(console, Text(f"{name}: {inline(row[name], None if full else 200)}", "dim"), 6)


def _measured(row: Row) -> str:
    """Score, margin and who found it, in one line."""
    parts = [f"score {number(row['score'])}"]
    if row.get("margin") is not None:
        side = "below" if row["margin"] >= 0 else "above"
        parts.append(f"{number(abs(row['margin']))} {side} the lowest positive")
    if row.get("to_positive") is not None:
        parts.append(f"{number(row['to_positive'])} with the nearest positive")
    if row.get("teacher_score") is not None:
        parts.append(f"teacher {number(row['teacher_score'])}")
    found_by = ", ".join(f"{inline(one['retriever'], 30)} {one['rank']}" for one in row.get("found_by") or [])
    parts += [f"found by {found_by}"] if found_by else []
    parts += [f"facet {inline(row['facet'], 40)}"] if row.get("facet") else []
    parts += [f"band {inline(row['band'], 30)}"] if row.get("band") else []
    return ", ".join(parts)


def _judged(row: Row) -> str:
    if row.get("status") is None:
        return ""
    if row["status"] != "ok":
        return f"judge: {inline(row['status'], 40)}"
    grade = "" if row["grade"] is None else f", grade {row['grade']} ({GRADES[row['grade']]})"
    sure = "" if row.get("judge_score") is None else f", p(relevant) {number(row['judge_score'], 3)}"
    rung = f", by {inline(row['rung'], 30)}" if row.get("rung") not in (None, "", "judge") else ""
    return f"judge: {row['verdict']}{grade}{sure}{rung}"


def _print_passage(console: Console, text: str, parts: list[str], full: bool) -> None:
    block(console, marked(inline(text, None if full else LONGEST), parts, "bold yellow"), 6)


# ---------------------------------------------------------------- one candidate with everything


def print_one(found: Row, full: bool = False) -> None:
    """Everything of one candidate: found as job_query.candidate returns it."""
    console, row, most = console_of(), found["row"], None if full else LONG
    block(console, Text(f"query {inline(found['query_id'], None)}", "bold"))
    block(console, Text(whole(found["query"], most)), 2)
    console.print()
    block(console, Text(f"{found['kind']} {inline(row['doc_id'], None)}", "bold"))
    for name, value in row.items():
        if name not in ("text", "query_id", "doc_id", "found_by") and value is not None and value != "":
            shown = number(value, 6) if isinstance(value, float) else inline(str(value), most)
            block(console, Text(shown), 24, f"  {name}")
    for one in row.get("found_by") or []:
        block(console, Text(f"{inline(one['retriever'], 40)}: rank {one['rank']}, score {number(one['score'])}"), 24,
              "  found_by")  # fmt: skip
    if found["kind"] == "candidate":
        block(console, Text(decision(row)), 24, "  decision")
    _titled(console, "passage", f"{len(row['text']):,} characters")
    block(console, marked(whole(row["text"], most), [row.get("evidence") or ""], "bold yellow"), 2)
    for asked in found["asked"]:
        _print_asked(console, asked, most)
    if not found["asked"]:
        console.print("\nNo LLM was asked about it.")


def _titled(console: Console, title: str, more: str = "") -> None:
    console.print()
    block(console, Text(title, "bold") + Text(f"  {more}" if more else "", "dim"))


def _print_asked(console: Console, one: Row, most: int | None) -> None:
    about = f"{one['prompt'] or ''}@{one['prompt_version'] or ''} with {one['model'] or ''}"
    _titled(console, f"asked: {inline(one['what'], 40)}", inline(about, None))
    block(console, Text(one["request_key"]), 24, "  request key")
    if one["messages"] is None:
        block(console, Text("the ledger does not hold this request"), 2)
        return
    tokens = f"{one['prompt_tokens']:,} prompt ({one['cached_tokens']:,} cached), {one['completion_tokens']:,} answer"
    facts = {
        "state": f"{one['state']} {one['reason']} {one['mark']}",
        "endpoint": one["endpoint"],
        "tokens": tokens,
        "cost": dollars(one["cost"]),
        "took": f"{one['attempts']} tries, {one['seconds']:.2f} s",
        "sampling": ", ".join(
            f"{name} {value}" for name, value in one["sampling"].items() if name != "response_format"
        ),
    }
    for name, value in facts.items():
        if value.strip():
            block(console, Text(inline(value, None)), 24, f"  {name}")
    for message in one["messages"]:
        _titled(console, f"[{inline(str(message.get('role')), 20)}]")
        block(console, Text(whole(str(message.get("content") or ""), most)), 2)
    _titled(console, "[answer]")
    block(console, Text(whole(one["answer"], most) if one["answer"] is not None else "none"), 2)
