"""`miner prompt`: list, write, check, evaluate and compare prompts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from miner.commands import complete
from miner.commands.common import AsJson, load, print_json, resumable
from miner.errors import UserError

app = typer.Typer(help="Write, check, evaluate and compare prompts.", no_args_is_help=True)

Name = Annotated[
    str,
    typer.Argument(
        help="A prompt: NAME, judge/NAME, generate/NAME, or a file.",
        metavar="NAME",
        autocompletion=complete.prompts,
    ),
]
Own = Annotated[
    Path | None,
    typer.Option("--prompts", help="Your own prompts; they come before the shipped. Default: ./prompts, if there."),
]
Runs = Annotated[Path, typer.Option("--runs", help="Folder of evaluations and their answers.")]
RUNS = Path("prompt-runs")
Golden = Annotated[Path | None, typer.Option("--golden", help="Golden pairs with human grades (JSONL).")]
Split = Annotated[
    str | None,
    typer.Option(
        "--split", help="dev, test or all; default: dev where there is one, else all.", autocompletion=complete.splits
    ),
]
Limit = Annotated[int | None, typer.Option("--limit", min=1, help="At most so many pairs, drawn by a hash.")]
Model = Annotated[str | None, typer.Option("--model", help="Model name as the server knows it.")]
BaseUrl = Annotated[str | None, typer.Option("--base-url", help="Server; default: OPENAI_BASE_URL, else OpenAI.")]
ApiKey = Annotated[str | None, typer.Option("--api-key", help="Only as '${NAME}'; default: OPENAI_API_KEY.")]
JobFile = Annotated[
    Path | None,
    typer.Option(
        "--job",
        help="Take endpoint, bounds and prompts folder from this job.",
        metavar="JOB.yaml",
        autocompletion=complete.job_files,
    ),
]
Retry = Annotated[bool, typer.Option("--retry-failed", help="Ask again what an earlier run gave up for good.")]


def _own(given: Path | None, job: Any = None) -> Path | None:
    from miner import prompt_files

    if given is not None and not given.is_dir():
        raise UserError(f"--prompts {given}: no such folder; make it, or `miner prompt new NAME --prompts {given}`")
    return prompt_files.own_folder(given or (Path(job.prompts) if job is not None and job.prompts else None))


@app.command("list")
def list_(own: Own = None, as_json: AsJson = False) -> None:
    """List the prompts: task, mode, version, and whose they are."""
    from miner import prompt_files
    from miner.commands import prompt_views

    entries = prompt_files.listing(_own(own))
    print_json([prompt_views.entry(one) for one in entries]) if as_json else prompt_views.print_list(entries)


@app.command()
def show(name: Name, own: Own = None, as_json: AsJson = False) -> None:
    """Print a prompt's file, or with --json its parts."""
    from miner import prompt_files
    from miner.commands import prompt_views

    prompt = prompt_files.find(name, _own(own))
    print_json(prompt_views.whole(prompt)) if as_json else prompt_views.print_text(prompt.text)


@app.command()
def new(
    name: Annotated[str, typer.Argument(help="Name of the new prompt.", metavar="NAME")],
    origin: Annotated[
        str,
        typer.Option("--from", help="The prompt to start from.", metavar="NAME", autocompletion=complete.prompts),
    ] = "judge/graded",
    own: Own = None,
    as_json: AsJson = False,
) -> None:
    """Copy a prompt under a new name into your own folder, ready to edit."""
    from miner import prompt_files

    path = prompt_files.new(name, prompt_files.find(origin, prompt_files.own_folder(own)), own or Path("prompts"))
    print_json({"path": str(path)}) if as_json else print(path)


@app.command()
def lint(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            help="Prompts: NAME, judge/NAME, generate/NAME, or files; default: all.",
            metavar="[NAME]...",
            autocompletion=complete.prompts,
        ),
    ] = None,
    own: Own = None,
    strict: Annotated[bool, typer.Option("--strict", help="Fail on warnings too.")] = False,
    as_json: AsJson = False,
) -> None:
    """Check prompts: form, schema, fences, and what spoils caching. Exit code 1 where there is an error."""
    from miner import prompt_files
    from miner.commands import prompt_views

    folder = _own(own)
    paths = [path for name in names or () for path in prompt_files.places(name, folder)]
    paths = paths or [entry.path for entry in prompt_files.listing(folder) if not entry.hidden]
    found = {str(path): prompt_files.lint(path) for path in paths}
    if as_json:
        print_json({path: [one._asdict() for one in findings] for path, findings in found.items()})
    else:
        prompt_views.print_findings(found)
    if any(one.level == "error" or strict for findings in found.values() for one in findings):
        raise typer.Exit(1)


ONE_ORDER = "prompt {} shows its texts in one order; a binary one with the input `order` has two"


@app.command()
def render(
    name: Name,
    query: Annotated[str | None, typer.Option(help="The query.")] = None,
    positive: Annotated[str, typer.Option(help="The known positive; may be left out.")] = "",
    passage: Annotated[list[str] | None, typer.Option(help="The passage; repeatable for packed judges.")] = None,
    golden: Golden = None,
    row: Annotated[int, typer.Option("--row", min=1, help="Which row of --golden, from 1.")] = 1,
    order: Annotated[int, typer.Option(min=1, max=2, help="Of a binary judge with two orders of its texts.")] = 1,
    facet: Annotated[str, typer.Option(help="Generators: the facet to change.")] = "entity",
    near_miss: Annotated[str, typer.Option("--near-miss", help="Generators: a mined near-miss.")] = "",
    words: Annotated[int, typer.Option(min=1, help="Generators: length of the passage to write.")] = 80,
    k: Annotated[int, typer.Option("--k", min=1, help="Generators: requirements to violate.")] = 1,
    language: Annotated[str, typer.Option(help="Generators: language to write in.")] = "English",
    own: Own = None,
    as_json: AsJson = False,
) -> None:
    """Print the messages that a model would see."""
    from miner import prompt_eval, prompt_files
    from miner.commands import prompt_views

    prompt = prompt_files.find(name, _own(own))
    if golden is not None:
        chosen = prompt_eval.golden_row(golden, row)
        query, positive, passage = chosen.query, chosen.positive, [chosen.passage]
    if query is None:
        raise UserError("prompt render: give --query, or --golden FILE --row N")
    if order > prompt.orders:
        raise UserError(f"prompt render: --order 2: {ONE_ORDER.format(prompt.front.name)}")
    more = {"facet": facet, "near_miss": near_miss, "words": str(words), "k": str(k), "language": language}
    messages = prompt_eval.rendered(prompt, query, positive, passage or [""], more, order)
    print_json(messages) if as_json else prompt_views.print_messages(messages)


@app.command()
def history(
    name: Name,
    job: Annotated[
        Path | None, typer.Option("--job", help="Look in this job's folder too.", metavar="JOB.yaml")
    ] = None,
    own: Own = None,
    runs: Runs = RUNS,
    as_json: AsJson = False,
) -> None:
    """Show the versions of a prompt, the present one first, and what each changed."""
    from miner import prompt_diff, prompt_files
    from miner.commands import prompt_views

    settings = load(job, None) if job else None
    folders = [Path(settings.job)] if settings else []
    folders += [folder for folder, _ in prompt_diff.runs_in(runs)]
    found = prompt_views.versions(prompt_files.history(name, _own(own, settings), folders))
    print_json(found) if as_json else prompt_views.print_history(found)


@app.command("eval")
def eval_(
    name: Name,
    golden: Annotated[Path, typer.Option("--golden", help="Golden pairs with human grades (JSONL).")],
    model: Model = None,
    base_url: BaseUrl = None,
    api_key: ApiKey = None,
    job: JobFile = None,
    repeat: Annotated[int, typer.Option(min=1, help="Ask every pair so often, each time with another seed.")] = 1,
    orders: Annotated[
        int | None, typer.Option(min=1, max=2, help="2: ask in both orders; default: judge.orders of --job, else 1.")
    ] = None,
    limit: Limit = None,
    split: Split = None,
    retry_failed: Retry = False,
    own: Own = None,
    runs: Runs = RUNS,
    as_json: AsJson = False,
) -> None:
    """Measure a judge prompt against human grades. Asks only what no earlier evaluation asked."""
    from miner import prompt_eval, prompt_files
    from miner.commands import prompt_views
    from miner.stages import judgments

    with resumable():
        settings = load(job, None) if job else None
        prompt = prompt_files.find(name, _own(own, settings), "judge")
        how = prompt_eval.settings(settings, {"model": model, "base_url": base_url, "api_key": api_key}, repeat, orders)
        if orders is not None and orders > judgments.orders(prompt, how.judge):
            raise UserError(f"prompt eval: --orders 2: {ONE_ORDER.format(prompt.front.name)}")
        rows, source = prompt_eval.golden_rows({"path": golden, "split": split, "limit": limit})
        folder, summary = prompt_eval.evaluate(prompt, rows, how, runs, source, retry_failed)
    found = {"folder": str(folder), **summary}
    print_json(found) if as_json else prompt_views.print_summary(found)
    if summary["status"].get("missing"):
        raise typer.Exit(3)


RunName = "A run folder, a prompt's name, NAME@VERSION, or a version."


@app.command()
def diff(
    first: Annotated[str, typer.Argument(help=RunName, metavar="A", autocompletion=complete.runs)],
    second: Annotated[str, typer.Argument(help=RunName, metavar="B", autocompletion=complete.runs)],
    only: Annotated[str | None, typer.Option("--only", help="flips: show the flipped pairs alone, and all.")] = None,
    own: Own = None,
    runs: Runs = RUNS,
    as_json: AsJson = False,
) -> None:
    """Compare two evaluations: text, flipped pairs, exact McNemar, the difference of kappa, cost."""
    from miner import prompt_diff
    from miner.commands import prompt_views

    if only not in (None, "flips"):
        raise UserError(f"prompt diff: --only {only}: the one choice is flips")
    found = prompt_diff.compare(*prompt_diff.resolve(first, second, runs, _own(own)))
    if as_json:
        print_json(found["flips"] if only else found)
    elif only:
        prompt_views.print_flips(found["flips"], len(found["flips"]))
    else:
        prompt_views.print_diff(found)


@app.command()
def check(
    name: Name,
    against: Annotated[
        str,
        typer.Option(
            "--against", help="The run to compare with: folder, name or version.", autocompletion=complete.runs
        ),
    ],
    max_drop: Annotated[float, typer.Option("--max-drop", min=0, help="How far kappa may fall.")] = 0.02,
    golden: Golden = None,
    model: Model = None,
    base_url: BaseUrl = None,
    api_key: ApiKey = None,
    own: Own = None,
    runs: Runs = RUNS,
    as_json: AsJson = False,
) -> None:
    """Evaluate a prompt as RUN was evaluated and compare. Exit code 0: no drop; 1: regression; 3: inconclusive."""
    from miner import prompt_diff, prompt_files
    from miner.commands import prompt_views

    with resumable():
        prompt = prompt_files.find(name, _own(own), "judge")
        baseline = prompt_diff.one(against, runs, _own(own))
        given = {"model": model, "base_url": base_url, "api_key": api_key}
        found = prompt_diff.check(prompt, baseline, runs, golden, given, max_drop)
    print_json(found) if as_json else prompt_views.print_check(found)
    if found["outcome"] != "pass":
        raise typer.Exit(prompt_diff.EXIT[found["outcome"]])


@app.command()
def promote(
    name: Name,
    as_name: Annotated[
        str | None, typer.Option("--as", help="What to replace; default: the prompt that NAME was made from.")
    ] = None,
    to: Annotated[Path | None, typer.Option("--to", help="Folder to write to; default: your own.")] = None,
    own: Own = None,
    as_json: AsJson = False,
) -> None:
    """Make your version the default: write it under the name that it replaces, and keep both in the history."""
    from miner import prompt_files

    prompt = prompt_files.find(name, _own(own))
    folder = to or _own(own)
    if folder is None:
        raise UserError("prompt promote: you have no folder of your own prompts; name it with --prompts, or use --to")
    path = prompt_files.promote(prompt, as_name or prompt_files.stem(prompt), folder)
    print_json({"path": str(path), "version": prompt_files.find(str(path), None).version}) if as_json else print(path)
