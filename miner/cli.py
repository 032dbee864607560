"""The command line: options in, configuration out; the only place that prints. Heavy imports wait for a command."""

from __future__ import annotations

import json
import logging
import os
import sys
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn

import typer

from miner.commands import audit, calibrate_judge, complete, doctor, evaluate, golden, ledger, look, prompt, report
from miner.commands.common import AsJson, JobFile, Overrides, load, load_to_work, print_json, resumable
from miner.errors import MinerError, UserError

app = typer.Typer(
    help="Mine hard negatives, have an LLM judge them, export training triples.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

RetryFailed = Annotated[bool, typer.Option("--retry-failed", help="Ask again what an earlier run gave up for good.")]
Uncalibrated = Annotated[
    bool, typer.Option("--uncalibrated", help="Export though the judge was not calibrated; the data card says so.")
]
Engine = Annotated[
    Literal["local", "ray"] | None,
    typer.Option("--engine", help="Where the work is done, whatever the job file says: local or ray."),
]
calibrate = typer.Typer(help="Choose settings by measurement on judged data.", no_args_is_help=True)
app.add_typer(calibrate, name="calibrate")
app.add_typer(ledger.app, name="ledger")
app.add_typer(prompt.app, name="prompt")
app.add_typer(golden.app, name="golden")
calibrate.command()(calibrate_judge.judge)
# The class of all wrong arguments: Typer has no name for it, and carries its own copy of click or not, by version.
USAGE_ERROR: Any = typer.BadParameter.__base__


def _print_version(wanted: bool) -> None:
    if wanted:
        from miner import __version__

        print(__version__)
        raise typer.Exit


@app.callback()
def options(
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log every attempt and decision to stderr.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    logging.basicConfig(format="%(asctime)s %(message)s", datefmt="%H:%M:%S", stream=sys.stderr)
    logging.getLogger("miner").setLevel(logging.DEBUG if verbose else logging.INFO)


@app.command()
def init(
    path: Annotated[Path, typer.Argument(help="Where to write the job file.", metavar="JOB.yaml")] = Path("job.yaml"),
    force: Annotated[bool, typer.Option("--force", help="Overwrite a file that is there.")] = False,
) -> None:
    """Write a commented job file with every key at its default."""
    from miner import store, template

    if path.exists() and not force:
        raise UserError(f"{path}: exists already; name another file, or --force to overwrite it")
    store.write_text(path, template.job_file())
    print(path)


@app.command()
def schema() -> None:
    """Print the JSON Schema of job files, for editors that complete and check YAML."""
    from miner.config import Job

    print(json.dumps(Job.model_json_schema(), ensure_ascii=False, indent=2))


@app.command()
def run(
    job_file: JobFile,
    set_: Overrides = None,
    until: Annotated[
        str | None,
        typer.Option(help="Stop after this stage: mine, judge, generate or export.", autocompletion=complete.stages),
    ] = None,
    retry_failed: RetryFailed = False,
    uncalibrated: Uncalibrated = False,
    engine: Engine = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would run, and why; run nothing.")] = False,
    as_json: AsJson = False,
) -> None:
    """Run the job: every step that is not fresh. Started again, it goes on where it stopped."""
    if dry_run:
        _dry_run(job_file, _at(set_, engine), as_json)
    else:
        _advance(job_file, _at(_vouched(set_, uncalibrated), engine), until, as_json, retry_failed)


@app.command()
def mine(job_file: JobFile, set_: Overrides = None, engine: Engine = None, as_json: AsJson = False) -> None:
    """Read the data, encode it, search it, draw the pool of candidates."""
    _advance(job_file, _at(set_, engine), "mine", as_json)


@app.command()
def judge(
    job_file: JobFile, set_: Overrides = None, retry_failed: RetryFailed = False, as_json: AsJson = False
) -> None:
    """Have the LLM judge the pool (mines first where that is not done)."""
    _advance(job_file, set_, "judge", as_json, retry_failed)


@app.command()
def generate(
    job_file: JobFile, set_: Overrides = None, retry_failed: RetryFailed = False, as_json: AsJson = False
) -> None:
    """Have the LLM write negatives for queries that are short of them, and judge these too."""
    _advance(job_file, set_, "generate", as_json, retry_failed)


@app.command()
def export(
    job_file: JobFile, set_: Overrides = None, uncalibrated: Uncalibrated = False, as_json: AsJson = False
) -> None:
    """Decide and write the training files (runs earlier stages where they are not done)."""
    _advance(job_file, _vouched(set_, uncalibrated), "export", as_json)


@app.command()
def push(
    job_file: JobFile,
    repository: Annotated[str, typer.Argument(help="Data set on the hub: OWNER/NAME.", metavar="OWNER/NAME")],
    token_env: Annotated[
        str, typer.Option("--token-env", help="Environment variable with the hub's token.")
    ] = "HF_TOKEN",
    public: Annotated[bool, typer.Option("--public", help="Anyone may see it; else it is private.")] = False,
    set_: Overrides = None,
) -> None:
    """Upload the exported files with their data card to the hub."""
    from miner.exporters import hub

    print(hub.push(Path(load(job_file, set_).job) / "export", repository, token_env, private=not public))


@calibrate.command()
def margin(
    job_file: JobFile,
    target: Annotated[
        float, typer.Option("--target-fn", help="Largest share of relevant passages among the negatives.")
    ],
    golden: Annotated[
        Path | None, typer.Option("--golden", help="Judged pairs: query_id, doc_id, relevance (TSV or TREC qrels).")
    ] = None,
    hide: Annotated[
        float, typer.Option("--hide", help="Without --golden: share of a query's positives to hide.")
    ] = 0.5,
    write: Annotated[bool, typer.Option("--write/--no-write", help="Write the setting into the job file.")] = True,
    set_: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Choose rank_min and the margin for this encoder and corpus, on judged pairs or on hidden positives."""
    if not 0 < target < 1 or not 0 < hide < 1:
        raise UserError("calibrate margin: --target-fn and --hide lie between 0 and 1")
    with resumable():
        job = load_to_work(job_file, set_)
        from miner import calibrate as calibration_of
        from miner import engine, views

        with engine.opened(job) as context:
            found = calibration_of.margin(context, golden, target, hide)
        if write and found["chosen"]:
            calibration_of.write(job_file, found["chosen"])
    print_json(found) if as_json else views.print_calibration(found)


@app.command()
def requests(
    job_file: JobFile,
    output: Annotated[Path, typer.Option("--output", "-o", help="File to write, Batch API input form.")],
    set_: Overrides = None,
) -> None:
    """Write every LLM request that the job still needs and can name now."""
    with resumable():
        job = load_to_work(job_file, set_)
        from miner import engine, store
        from miner.llms.batch_files import request_line

        with engine.opened(job) as context:
            lacking = engine.pending(context)
    store.write_jsonl(output, (request_line(request) for request in lacking))
    print(f"{len(lacking)} requests written to {output}")


@app.command()
def answers(
    job_file: JobFile,
    file: Annotated[Path | None, typer.Argument(help="Answers, Batch API output form (.gz accepted).")] = None,
    export_: Annotated[Path | None, typer.Option("--export", help="Write all answers of the job to this file.")] = None,
    set_: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Take answers in from a file, or write the answers that the job has to one."""
    if (file is None) == (export_ is None):
        raise UserError("miner answers: name either a file to take in, or --export FILE")
    with resumable():
        from miner import engine, intake, store

        with engine.opened(load(job_file, set_)) as context:
            if export_ is not None:
                print(f"{store.write_jsonl(export_, context.ledger.lines())} answers written to {export_}")
                return
            report = intake.take(context, file or Path())
    print_json(report) if as_json else print("\n".join(f"{name}: {count}" for name, count in report.items()))


# In the order in which the help lists them, behind those above.
for command in (
    *(look.status, look.inspect, report.report, look.diff, look.show),
    *(ledger.estimate, audit.audit, evaluate.evaluate, doctor.doctor),
):
    app.command()(command)


def _advance(
    job_file: Path, overrides: list[str] | None, until: str | None, as_json: bool, retry_failed: bool = False
) -> None:
    with resumable():  # around the imports too, which take a second
        job = load_to_work(job_file, overrides)
        from miner import engine, views

        with engine.opened(job) as context:
            if retry_failed:
                context.ledger.forget_failures()
            stamps = engine.advance(context, until)
    summary = views.summary(context.folder, stamps, context.warnings)
    print_json(summary) if as_json else views.print_summary(summary)
    if not all(stamp.complete for stamp in stamps):
        raise typer.Exit(3)


def _vouched(overrides: list[str] | None, uncalibrated: bool) -> list[str]:
    return [*(overrides or []), *(["judge.uncalibrated=true"] if uncalibrated else [])]


def _at(overrides: list[str] | None, engine: str | None) -> list[str]:
    # local takes nothing of a cluster's section.
    named = {"ray": ["engine.kind=ray"], "local": ["engine={kind: local}"]}.get(engine or "", [])
    return [*(overrides or []), *named]


def _dry_run(job_file: Path, overrides: list[str] | None, as_json: bool) -> None:
    from miner import views

    found = views.plan(load(job_file, overrides))
    print_json(found) if as_json else views.print_plan(found)


def main() -> None:
    """Entry point: errors meant for people become one line on stderr and an exit code."""
    try:
        sys.exit(app(prog_name="miner", standalone_mode=False))
    except MinerError as error:
        _complain(str(error), error.exit_code)
    except USAGE_ERROR as error:
        _complain_of_usage(error)
    except typer.Abort:
        sys.exit(130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        if error.filename is None:
            raise
        _complain(f"{error.filename}: {error.strerror}; check the path and its permissions", UserError.exit_code)


def _complain(message: str, exit_code: int) -> NoReturn:
    line = " ".join(message.split())
    print(f"miner: {''.join(c if c.isprintable() else '?' for c in line)}", file=sys.stderr)
    sys.exit(exit_code)


def _complain_of_usage(error: Any) -> NoReturn:
    """Wrong arguments; `miner` alone is answered with the help."""
    message = error.format_message()
    if message.startswith("Usage:"):
        print(message, file=sys.stderr)
        sys.exit(error.exit_code)
    command = error.ctx.command_path if error.ctx else "miner"
    _complain(f"{message.rstrip('.')}; see {command} --help", error.exit_code)
