"""`miner evaluate`: options in, the table out. Names of arms and sets go to the terminal only cleaned."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from miner.commands.common import AsJson, JobFile, Overrides, load, print_json, resumable
from miner.errors import UserError

Eval = Annotated[
    Path | None, typer.Option("--eval", help="BEIR folder of held-out queries; without it the job's dev queries.")
]
Baselines = Annotated[
    str, typer.Option("--baselines", help="Other negatives for the same rows: none, random, bm25, st; with commas.")
]
Against = Annotated[list[Path] | None, typer.Option("--against", help="Another job file, as one more arm. Repeatable.")]
Model = Annotated[str | None, typer.Option("--model", help="Encoder to train, for torch; without it the job's own.")]
Precision = Annotated[Literal["fp32", "bf16"], typer.Option("--precision", help="bf16: autocast while training.")]
Limit = Annotated[int | None, typer.Option("--limit", help="Training queries at most, drawn by the job's seed.", min=1)]
Output = Annotated[Path | None, typer.Option("--output", "-o", help="Folder of the results; without it JOB/evaluate.")]


def evaluate(
    job_file: JobFile,
    eval_: Eval = None,
    eval_split: Annotated[str, typer.Option("--eval-split", help="qrels/<split>.tsv of that folder.")] = "test",
    baselines: Baselines = "none,random,bm25,st",
    against: Against = None,
    model: Model = None,
    negatives: Annotated[int, typer.Option("--negatives", help="Negatives of each row, in every arm.", min=1)] = 4,
    seeds: Annotated[int, typer.Option("--seeds", help="Trainings of each arm.", min=1, max=100)] = 3,
    epochs: Annotated[int, typer.Option("--epochs", help="Times that each row is seen.", min=1)] = 1,
    batch: Annotated[int, typer.Option("--batch", help="Queries of one step.", min=2)] = 16,
    max_length: Annotated[int, typer.Option("--max-length", help="Longest text in tokens.", min=8)] = 128,
    precision: Precision = "fp32",
    limit: Limit = None,
    output: Output = None,
    keep_models: Annotated[bool, typer.Option("--keep-models", help="Keep the trained encoders.")] = False,
    set_: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Train an encoder on the job's triples, and on the same rows with other negatives; measure on held-out queries.

    Writes results.json, table.md and plot.svg. Started again, it does only the trainings that are not done.
    """
    with resumable():
        from miner import evaluate as evaluating
        from miner import evaluate_data, evaluation
        from miner.trials import Recipe

        arms = tuple(evaluation.pick(baselines, evaluate_data.BASELINES))
        recipe = Recipe(epochs, batch, max_length, precision)
        job, others = load(job_file, set_), _others(against or [])
        options = evaluating.Options(
            *(eval_, eval_split, arms, others, model, negatives, seeds, recipe, limit, output, keep_models)
        )
        plan = evaluating.plan(evaluate_data.opened(job, job_file), options)
        results = evaluating.run(plan)
    if as_json:
        print_json(results)
    else:
        _print(results, plan.folder)


def _others(files: list[Path]) -> dict[str, Any]:
    """File name -> job. Raises UserError where two arms would have one name: the name stands in the table."""
    from miner.evaluate_data import BASELINES
    from miner.evaluation import BEFORE, JOB

    found: dict[str, Any] = {}
    for file in files:
        if file.name in (*BASELINES, BEFORE, JOB):
            raise UserError(f"--against {file}: {file.name} is an arm of its own; rename the file")
        if file.name in found:
            raise UserError(f"--against {file}: another job file is called {file.name}; rename one of them")
        found[file.name] = load(file, None)
    return found


def _print(results: dict[str, Any], folder: Path) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from miner import evaluate, evaluation
    from miner.commands.prompt_views import clean

    console = Console(highlight=False, markup=False, emoji=False)
    lines = [line for line in evaluate.told(results) if line and not line.startswith("|")]
    for line in lines[:4]:
        console.print(Text(clean(line)))
    table = Table(box=None, padding=(0, 1, 0, 0))
    for name in evaluation.HEAD:
        table.add_column(name, justify="left" if name == "arm" else "right")
    for row in results["arms"]:
        table.add_row(*(Text(clean(cell)) for cell in evaluation.cells(row)))
    console.print()
    console.print(table)
    console.print()
    for line in lines[4:]:
        console.print(Text(clean(line)))
    console.print(Text(clean(f"written: {folder}/table.md, plot.svg, results.json")), soft_wrap=True)
