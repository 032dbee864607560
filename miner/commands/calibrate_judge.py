"""`miner calibrate judge`: measure the judge on golden pairs, and decide which of its verdicts may be trusted."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from miner.commands.common import AsJson, JobFile, Overrides, load_to_work, print_json, resumable
from miner.commands.golden import clean, interval
from miner.errors import UserError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

Row = dict[str, Any]


def judge(
    job_file: JobFile,
    file: Annotated[Path, typer.Option("--golden", help="Golden file: pairs that people graded.")],
    target: Annotated[
        float, typer.Option("--target-fn", help="Largest share of relevant passages among those called irrelevant.")
    ],
    split: Annotated[
        Literal["test", "dev", "all"],
        typer.Option("--split", help="Part of the golden file; prompts are tuned on dev."),
    ] = "test",
    write: Annotated[
        bool, typer.Option("--write/--no-write", help="Write the threshold into the job file, as judge.irrelevant_to.")
    ] = False,
    rung: Annotated[
        str | None, typer.Option("--rung", help="Rung of a cascade to measure; without it judge.prompt itself.")
    ] = None,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Ask again what an earlier run gave up for good.")
    ] = False,
    set_: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Measure the judge on golden pairs, and find the verdicts that keep false negatives below a target.

    Asks only what the ledger lacks; the result goes to calibration.json in the job's folder. Exit code 1: the judge is
    too weak for the target, or the pairs are too few to show it; 3: answers are missing, and nothing is written.
    """
    if write and rung:
        raise UserError("calibrate judge: --write is for judge.prompt itself; set the bounds of a rung by hand")
    if not 0 < target < 1:
        raise UserError(f"calibrate judge: --target-fn is {target:g}; it lies between 0 and 1")
    with resumable():
        job = load_to_work(job_file, set_)
        from miner import calibrate_judge, engine

        with engine.opened(job) as context:
            if retry_failed:
                context.ledger.forget_failures()
            found = calibrate_judge.judge(context, file, split, target, rung)
            missing = found["status"].get("missing", 0)
            if not missing:
                calibrate_judge.record(context.folder.root, found)
        if write and found["chosen"] and not missing:
            calibrate_judge.write_setting(job_file, found["chosen"], job.judge.relevant_p)
    print_json(found) if as_json else _print(found)
    if missing:
        raise typer.Exit(3)
    if not found["chosen"]:
        raise typer.Exit(1)


def _print(found: Row) -> None:
    from rich.console import Console

    from miner.calibrate_judge import MEASURES

    console = Console(highlight=False, markup=False, emoji=False)
    failed = sum(count for status, count in found["status"].items() if status != "ok")
    left = f", {found['ungraded']} more not graded yet" if found["ungraded"] else ""
    console.print(
        f"judge {found['model']} with prompt {found['prompt']} ({found['prompt_version']})\n"
        f"{found['pairs']} golden pairs of {found['queries']} queries, {found['relevant']} relevant"
        f" (split {found['split']}{left}); {failed} answers failed",
        soft_wrap=True,
    )
    console.print(f"\nat grade <= {found['irrelevant_to']}, as the job accepts (95% intervals, resampled by query)")
    table = _table(("", "", ""), 2)
    for name, words in MEASURES.items():
        if name in found["metrics"]:
            percent = name not in ("kappa", "kappa_quadratic", "auc_grade", "auc_score")
            table.add_row(words, interval(found["metrics"][name], percent))
    console.print(table)
    _print_confusion(console, found)
    _print_reliability(console, found)
    _print_thresholds(console, found)
    console.print(_verdict(found), soft_wrap=True)


def _table(names: tuple[str, ...], left: int = 1) -> Table:
    from rich.table import Table

    table = Table(box=None, padding=(0, 2, 0, 0), show_header=any(names))
    for place, name in enumerate(names):
        table.add_column(name, justify="left" if place < left else "right")
    return table


def _print_confusion(console: Console, found: Row) -> None:
    console.print("\nconfusion: rows people, columns judge")
    table = _table(("", "0", "1", "2", "3", "failed"))
    for grade, row in enumerate(found["confusion"]):
        table.add_row(str(grade), *map(str, row))
    console.print(table)


def _print_reliability(console: Console, found: Row) -> None:
    console.print("\nreliability: what a grade or score of the judge means")
    table = _table(("", "pairs", "mean", "relevant to people"))
    graded = all(one["on"] == "grade" for one in found["thresholds"])
    for one in found["reliability"]:
        if one["n"]:
            where = f"grade {one['start'] + 0.5:g}" if graded else f"score {one['start']:.2f} to {one['end']:.2f}"
            table.add_row(where, str(one["n"]), f"{one['predicted']:.2f}", interval(one["observed"], True))
    console.print(table)


def _print_thresholds(console: Console, found: Row) -> None:
    console.print(f"\nthresholds, strictest first; wanted: bound at most {found['target']:.1%}")
    table = _table(("accepted", "pairs", "queries", "relevant", "share", "95% interval", "one-sided bound", ""))
    for one in found["thresholds"]:
        table.add_row(
            f"{one['on']} <= {one['threshold']:g}",
            *(str(one[name]) for name in ("accepted", "queries", "false_negatives")),
            "" if one["share"] is None else f"{one['share']:.1%}",
            f"{one['low']:.1%} to {one['high']:.1%}",
            f"{one['bound']:.1%}",
            one["state"],
        )
    console.print(table)


def _verdict(found: Row) -> str:
    """The last line: may it be trusted?"""
    if missing := found["status"].get("missing"):
        why = clean(found["missing"])[:200]
        return f"\n{missing} answers are missing ({why}), so nothing is decided; run it again, with --retry-failed"
    one = found["chosen"]
    if one is None:
        few = "too few pairs" in found["reason"]
        return f"\n{'not shown yet' if few else 'the judge is too weak'}: {clean(found['reason'])}"
    accepts = f"\n{one['on']} <= {one['threshold']:g} keeps false negatives at or below {found['target']:.1%}"
    if one["on"] == "grade" and one["threshold"] < found["irrelevant_to"]:
        accepts += f"; the job accepts up to {found['irrelevant_to']}: set judge.irrelevant_to, or --write does"
    return f"{accepts} (bound {one['bound']:.1%}, on {one['accepted']} accepted pairs of {one['queries']} queries)"
