"""What `miner prompt` shows. Texts of prompts, passages and models are cleaned of control characters first."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from miner import prompt_files
from miner.prompt_files import Entry, Finding, Version
from miner.prompts import Prompt
from miner.readers.rows import clip

Row = dict[str, Any]
FLIPS = 10
SHOWN = {
    "kappa": "kappa, relevant or not",
    "kappa_quadratic": "kappa of grades, quadratic",
    "auc_grade": "AUC of grades",
    "auc_score": "AUC of scores",
    "precision_irrelevant": "precision of irrelevant",
    "recall_irrelevant": "recall of irrelevant",
    "yield": "accepted as irrelevant",
    "false_negatives": "false negatives among them",
}
SHARES = ("precision_irrelevant", "recall_irrelevant", "yield", "false_negatives")


def _console() -> Console:
    return Console(highlight=False, markup=False, emoji=False, soft_wrap=False)


def clean(text: str) -> str:
    """The text with every character that could steer a terminal or turn the reading direction replaced."""
    return "".join(c if c.isprintable() or c in "\n\t" else "?" for c in text)


def _table(*columns: str, right: tuple[str, ...] = ()) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    for name in columns:
        table.add_column(name, justify="right" if name in right else "left", overflow="fold")
    return table


# ---------------------------------------------------------------- files


def entry(one: Entry) -> Row:
    prompt = one.prompt
    found = {"task": one.task, "name": one.name, "origin": one.origin, "hidden": one.hidden, "path": str(one.path)}
    if prompt is None:
        return {**found, "error": one.error}
    mode = prompt.mode if one.task == "judge" else None
    return {
        **found,
        "mode": mode,
        "version": prompt.version,
        "label": prompt.front.version,
        "parent": prompt.front.parent,
        "notes": prompt.front.notes,
    }


def whole(prompt: Prompt) -> Row:
    front = prompt.front.model_dump(mode="json", by_alias=True) | {"label": prompt.front.version}
    return {**front, "version": prompt.version, "path": str(prompt.path), "system": prompt.system, "user": prompt.user}


def print_list(entries: list[Entry]) -> None:
    names = ("prompt", "mode", "version", "whose", "notes")
    rows = [_list_row(one) for one in entries]
    widths = [max(map(len, column)) + 2 for column in zip(names[:4], *(row[:4] for row in rows), strict=True)]
    console = _console()
    for row, style in [
        (list(names), "bold"),
        *zip(rows, ("dim" if one.hidden else "" for one in entries), strict=True),
    ]:
        line = "".join(cell.ljust(width) for cell, width in zip(row, widths, strict=False))
        console.print(Text(line + clip(row[4], max(console.width - len(line), 8)), style), soft_wrap=True)


def _list_row(one: Entry) -> list[str]:
    row, whose = entry(one), one.origin + (" (hidden)" if one.hidden else "")
    about = row.get("error") or row["notes"]
    return [clean(f"{one.task}/{one.name}"), row.get("mode") or "", row.get("version", "faulty")[:8], whose, about]


def print_text(text: str) -> None:
    print(clean(text), end="" if text.endswith("\n") else "\n")


def print_messages(messages: list[dict[str, str]]) -> None:
    for message in messages:
        print(f"[{message['role']}]")
        print_text(message["content"])


def print_findings(found: dict[str, list[Finding]]) -> None:
    for path, findings in found.items():
        for one in findings:
            print(clean(f"{path}: {one.level}: {one.message}"))
    errors = sum(one.level == "error" for findings in found.values() for one in findings)
    warnings = sum(map(len, found.values())) - errors
    print(f"{len(found)} prompts, {errors} errors, {warnings} warnings")


def versions(found: list[Version]) -> list[Row]:
    """The versions with what each changed of its parent: a diff where the parent's text is known."""
    known = {one.prompt.version: one.prompt for one in found}
    rows = []
    for one in found:
        before = known.get(one.prompt.front.parent.partition("@")[2])
        rows.append(
            {
                "name": one.prompt.front.name,
                "version": one.prompt.version,
                "label": one.prompt.front.version,
                "parent": one.prompt.front.parent,
                "where": list(one.where),
                "diff": prompt_files.text_diff(before, one.prompt) if before else [],
            }
        )
    return rows


def print_history(rows: list[Row]) -> None:
    console = _console()
    for row in rows:
        label = f" ({row['label']})" if row["label"] else ""
        parent = f", from {row['parent']}" if row["parent"] else ""
        console.print(Text(clean(f"{row['name']}@{row['version']}{label}{parent}"), style="bold"))
        console.print(Text(clean("  " + ", ".join(row["where"]))))
        _print_text_diff(console, row["diff"])


def _print_text_diff(console: Console, lines: list[str]) -> None:
    styles = {"+": "green", "-": "red", "@": "dim"}
    for line in lines:
        console.print(Text(f"  {clean(line)}", style=styles.get(line[:1], "")), soft_wrap=True)


# ---------------------------------------------------------------- evaluations


def _number(value: float | None, name: str = "") -> str:
    if value is None:
        return "-"
    return f"{value:.1%}" if name in SHARES else f"{value:.3f}"


def _dollars(cost: float | None) -> str:
    return "cost unknown" if cost is None else f"${cost:.4g}"


def print_summary(found: Row) -> None:
    console = _console()
    golden, spent = found["golden"], found["spent"]
    split = f", split {golden['split']}" if golden.get("split") else ""
    about = f"{golden['pairs']} golden pairs of {golden['queries']} queries{split}; {_listed(found['status'])}"
    console.print(Text(_who(found), "bold"))
    console.print(Text(clean(about)))
    table = _table("measure", "value", "95% interval", right=("value",))
    for name, title in SHOWN.items():
        one = found["measures"].get(name)
        if one is not None:
            ends = f"{_number(one['low'], name)} to {_number(one['high'], name)}" if one["low"] is not None else "-"
            table.add_row(title, _number(one["value"], name), ends)
    console.print(table)
    accepted = found["accepted"]
    console.print(
        f"{accepted['false_negatives']} of {accepted['accepted']} accepted pairs are relevant;"
        f" at most {accepted['bound']:.1%} (one-sided 95% bound)"
    )
    if found["repeat_agreement"] is not None:
        console.print(f"{found['repeat_agreement']:.1%} of pairs got one verdict in all {found['repeat']} repeats")
    _print_tags(console, found["tags"])
    latency = spent["latency"]
    seconds = "" if latency["median"] is None else f", {latency['median']:.2f} s median, {latency['p90']:.2f} s p90"
    console.print(
        f"{spent['requests']} requests, {spent['prompt_tokens']:,} + {spent['completion_tokens']:,} tokens,"
        f" {_dollars(spent['cost'])}{seconds}"
    )
    console.print(Text(found["folder"]), soft_wrap=True)


def _listed(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.items())


def _print_tags(console: Console, tags: Row) -> None:
    if set(tags) <= {""}:
        return
    numbers = ("pairs", "right", "accepted wrongly", "failed")
    table = _table("tag", *numbers, right=numbers)
    for tag, one in sorted(tags.items(), key=lambda item: (item[1]["right"] / item[1]["pairs"], item[0])):
        right = f"{one['right']} ({one['right'] / one['pairs']:.0%})"
        table.add_row(Text(clip(tag, 30)), str(one["pairs"]), right, str(one["false_negatives"]), str(one["failed"]))
    console.print(table)


def _who(found: Row) -> str:
    mode = found["mode"] + (", both orders" if found.get("orders") == 2 else "")
    return clean(f"{found['prompt']}@{found['version']} ({mode}) with {found['model']}")


def print_diff(found: Row) -> None:
    console = _console()
    for side in ("first", "second"):
        console.print(Text(f"{side}: {_who(found[side])}", "bold"))
    _print_text_diff(console, found["text_diff"])
    table = _table("measure", "first", "second", "difference", "95% interval", right=("first", "second", "difference"))
    for name, one in found["differences"].items():
        sides = [_measured(found[side]["measures"], name) for side in ("first", "second")]
        if one["value"] is not None:
            ends = "-" if one["low"] is None else f"{one['low']:+.3f} to {one['high']:+.3f}"
            table.add_row(SHOWN[name], *map(_number, sides), f"{one['value']:+.3f}", ends)
    console.print(table)
    right = found["right"]
    console.print(
        f"{found['pairs']} pairs: right in both {right['both']}, in the first alone {right['only_first']}, in the"
        f" second alone {right['only_second']}; exact McNemar p = {found['mcnemar_p']:.3g}"
    )
    spent = found["spent"]
    console.print(
        f"second minus first: {spent['requests']:+} requests, {spent['prompt_tokens']:+,} prompt and"
        f" {spent['completion_tokens']:+,} completion tokens, {_dollars(spent['cost'])}"
    )
    print_flips(found["flips"], FLIPS)


def _measured(measures: Row, name: str) -> float | None:
    """The value of a measure; a judge without scores has those of its grades."""
    one = measures.get(name) or measures.get("auc_grade" if name == "auc_score" else name)
    value: float | None = one["value"] if one else None
    return value


def print_flips(flips: list[Row], most: int) -> None:
    console = _console()
    for flip in flips[:most]:
        tag = f", {clip(flip['tag'], 30)}" if flip["tag"] else ""
        pair = f"{clip(flip['query_id'])} {clip(flip['doc_id'])}"
        console.print(Text(f"\n{pair}: human {flip['human']}{tag}, became {flip['became']}", "bold"))
        console.print(Text(f"query    {clip(flip['query'], 200)}"))
        console.print(Text(f"passage  {clip(' '.join(flip['passage'].split()), 300)}"))
        table = _table("first", "second")
        table.add_row(_said(flip["first"]), _said(flip["second"]))
        console.print(table)
    left = len(flips) - most
    console.print(f"\n{len(flips)} pairs flipped" + (f"; {left} more with --only flips" if left > 0 else ""))


def _said(side: Row) -> Text:
    grade = "" if side["grade"] is None else f" (grade {side['grade']})"
    about = f"“{clip(side['evidence'], 160)}”" if side["evidence"] else clip(side["detail"], 160)
    return Text(f"{side['verdict']}{grade} {about}".rstrip())


def print_check(found: Row) -> None:
    one = found["differences"]["kappa"]
    ends = "no interval" if one["low"] is None else f"{one['low']:+.3f} to {one['high']:+.3f}"
    advice = {"pass": "", "regression": "", "inconclusive": "; more golden pairs would tell"}
    value = "undefined" if one["value"] is None else f"{one['value']:+.3f}"
    print(
        f"{found['outcome']}: kappa {value} ({ends}) on {found['pairs']} pairs, -{found['max_drop']:g} is allowed;"
        f" {len(found['flips'])} pairs flipped{advice[found['outcome']]}"
    )
    print(clean(str(Path(found["second"]["folder"]))))
