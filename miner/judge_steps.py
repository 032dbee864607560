"""The steps that ask the judge: of the pool, in one step or in a cascade of rungs, and of what the generator wrote."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from miner import cascade, meter, prompts, store
from miner.config import Job, Judge
from miner.errors import UserError
from miner.judge_watch import CANARIES, Canaries, Watched
from miner.records import JUDGMENTS
from miner.stages import judgments, synthetic
from miner.stages.judgments import RUNG, Pair, Pairs
from miner.steps import Context, Done

Array = np.ndarray[Any, Any]


def run_judgments(run: Context, work: Path) -> Done:
    return _judge(run, work, lambda: pool_pairs(run), "judge")


def run_synthetic_judgments(run: Context, work: Path) -> Done:
    reference = references(run)
    written = run.table("synthetic", "synthetic").to_pylist()
    rows = [row for row in written if synthetic.sound(row)]

    def pairs() -> Iterator[Pair]:
        for row in rows:
            query_id = row["query_id"]
            positive = run.passages[reference[query_id]]
            yield Pair(query_id, row["doc_id"], run.queries[query_id], positive, row["text"])

    return _judge(run, work, pairs, "judge synthetic", watched=False)


# ---------------------------------------------------------------- a cascade


def rung_names(judge: Judge) -> list[str]:
    return [*(rung.name for rung in judge.rungs), RUNG]


def rung_steps(judge: Judge) -> list[str]:
    """The steps of the rungs, in the same order; of a judge without rungs the one step of all judging."""
    return [f"judgments_{name}" for name in rung_names(judge)] if judge.rungs else ["judgments"]


def at(run: Context, number: int) -> Context | None:
    """The job as one rung of its judge sees it, that rung being its only judge; None for a rung that asks no LLM.

    Raises UserError where the rung has no endpoint.
    """
    judge = run.job.judge
    if number == len(judge.rungs):
        return _as(run, judge.model_copy(update={"rungs": ()}))
    rung = judge.rungs[number]
    if rung.kind == "teacher":
        return None
    if rung.llm is None and run.job.llm is None:
        raise UserError(f"judge.rungs: {rung.name} has no endpoint; give it llm.model, or set llm.model of the job")
    return _as(run, judge.of(rung))


def _as(run: Context, judge: Judge) -> Context:
    return dataclasses.replace(run, job=run.job.model_copy(update={"judge": judge}))


def judges(run: Context) -> list[tuple[str, Context]]:
    """Every LLM that judges, by the name of its rung, in order; the last is judge.prompt itself. [] where none does."""
    if not run.job.judge.enabled:
        return []
    found = [(name, at(run, number)) for number, name in enumerate(rung_names(run.job.judge))]
    return [(name, one) for name, one in found if one is not None]


def check(run: Context) -> None:
    """Raises UserError for what is wrong with the judges of the job, before hours of mining and not after."""
    for _, one in judges(run):
        judgments.check(one.prompt("judge"), one.job.judge)
    for rung in run.job.judge.rungs if run.job.judge.enabled else ():
        if rung.kind == "teacher" and run.job.teacher is None:
            raise UserError(f"judge.rungs: {rung.name} is of kind teacher, and the job has none; set teacher.model")


def settings(job: Job) -> dict[str, Any]:
    """What verdicts rest on besides prompt and endpoint. What becomes of them afterwards changes none."""
    found = job.judge.model_dump(exclude=_AFTER)
    if job.judge.canaries.rate:
        file = job.judge.canaries.golden
        found["canaries"] = job.judge.canaries.model_dump(exclude={"golden"})
        found["canaries"]["golden"] = file and store.file_digest(Path(file))
    return found | {"seed": job.seed}


_AFTER = {
    *("enabled", "prompt", "pool", "llm", "rungs", "canaries"),
    *("false_negatives", "max_false_negatives", "uncalibrated"),
}


def run_rung(run: Context, work: Path, number: int) -> Done:
    """Ask a rung about what the rungs before it left open."""
    judge, names = run.job.judge, rung_names(run.job.judge)
    rows, before = _left_open(run, number)
    here = at(run, number)
    if here is None:
        done = _teach(run, work, number, rows)
    else:
        mask = np.zeros(_pool_size(run), bool)
        mask[rows] = True
        done = _judge(here, work, lambda: pool_pairs(run, mask), f"judge {names[number]}", names[number])
    judged = store.read_table(work / "judgments.parquet", ["status", "verdict"])
    last = number == len(judge.rungs)
    settled = len(rows) if last else int(cascade.settled(judged, judge.rungs[number].settles).sum())
    counts = {**done.counts, "settled": settled, "sent on": len(rows) - settled}
    changed = cascade.moves(before, judged)
    counts |= {"changed": dict(sorted(changed.items()))} if changed else {}
    if here is not None and (cost := _cost(here, done.counts.get("tokens", {}))) is not None:
        counts["cost"] = cost
    return Done(counts, done.complete)


def _left_open(run: Context, number: int) -> tuple[Array, Array]:
    before, rungs = rung_steps(run.job.judge)[:number], run.job.judge.rungs[:number]
    judged = [run.table(step, "judgments").select(["status", "verdict"]) for step in before]
    return cascade.left_open(judged, [rung.settles for rung in rungs], _pool_size(run))


def _cost(run: Context, tokens: dict[str, int]) -> float | None:
    """Dollars of all answers of a rung, whenever they were given; None where no price is known."""
    endpoint = run.endpoint("judge")
    price, batched = meter.price(endpoint), endpoint.backend == "openai-batch"
    if price is None:
        return None
    found = meter.dollars(price, tokens.get("prompt", 0), tokens.get("completion", 0), batched=batched)
    return round(found, 6)


def run_cascade(run: Context, work: Path) -> Done:
    """One table out of those of the rungs: each pair has the verdict of the rung that settled it."""
    judged = [run.table(step, "judgments") for step in rung_steps(run.job.judge)]
    table = cascade.merged(judged, [*(rung.settles for rung in run.job.judge.rungs), "both"])
    store.write_table(work / "judgments.parquet", table)
    write_failures(work)
    return Done({"rows": table.num_rows, **_tallied(table, "status", "verdict", "rung")})


def _tallied(table: pa.Table, *names: str) -> dict[str, dict[str, int]]:
    return plain({name: Counter(table.column(name).to_pylist()) for name in names})


def _teach(run: Context, work: Path, number: int, rows: Array) -> Done:
    """The verdicts of a rung that goes by teacher scores. A pair without one is unsure."""
    rung, teacher = run.job.judge.rungs[number], run.job.teacher
    pool = pa.concat_tables(_pool(part, ["teacher_score"]) for part in run.parts("candidates", "part"))
    score = np.asarray(pool.column("teacher_score").cast(pa.float64()).to_numpy(), np.float64)
    verdict = cascade.by_score(score, rung.above, rung.below, rung.unit == "percentile")[rows]
    pool = pool.take(pa.array(rows))
    size = pool.num_rows
    known: dict[str, Any] = {
        name: pa.nulls(size, field.type) for name, field in zip(JUDGMENTS.names, JUDGMENTS, strict=True)
    }
    known |= {name: pool.column(name) for name in ("query_id", "doc_id")}
    known |= {name: pa.array([""] * size) for name in ("evidence", "detail", "prompt", "prompt_version", "request_key")}
    known |= {"score": pool.column("teacher_score"), "verdict": pa.array(verdict, pa.string())}
    words = {"status": "ok", "rung": rung.name, "model": teacher.model if teacher else ""}
    known |= {name: pa.array([word] * size) for name, word in words.items()}
    table = pa.table({name: known[name] for name in JUDGMENTS.names}).cast(JUDGMENTS)
    store.write_table(work / "judgments.parquet", table)
    write_failures(work)
    return Done({"rows": size, **_tallied(table, "verdict")})


# ---------------------------------------------------------------- the pool


def _pool_size(run: Context) -> int:
    return sum(_pool(part).num_rows for part in run.parts("candidates", "part"))


def _pool(part: Path, more: Iterable[str] = ()) -> pa.Table:
    table = store.read_table(part, ["query_id", "doc_id", "pool_rank", *more])
    return table.filter(table.column("pool_rank").is_valid())


def references(run: Context) -> dict[str, str]:
    """The positive that stands for each query in prompts: highest relevance, then lowest doc_id.

    No score decides, so the answers of one encoder's job serve the next one's.
    """
    best: dict[str, tuple[int, str]] = {}
    for part in run.parts("candidates", "positives"):
        for row in store.read_table(part).to_pylist():
            rank = (-row["relevance"], row["doc_id"])
            best[row["query_id"]] = min(best.get(row["query_id"], rank), rank)
    return {query_id: rank[1] for query_id, rank in best.items()}


def pool_pairs(run: Context, mask: Array | None = None) -> Iterator[Pair]:
    """The pairs of the pool, in order. mask: bool[n], only these."""
    reference, start = references(run), 0
    for part in run.parts("candidates", "part"):
        pool = _pool(part)
        ids = zip(*(pool.column(name).to_pylist() for name in ("query_id", "doc_id")), strict=True)
        for number, (query_id, doc_id) in enumerate(ids, start):
            if mask is None or mask[number]:
                positive = run.passages[reference[query_id]]
                yield Pair(query_id, doc_id, run.queries[query_id], positive, run.passages[doc_id])
        start += pool.num_rows


def judged_parts(run: Context) -> Iterator[tuple[Path, pa.Table | None]]:
    """Each candidates file with the judgments of its pool rows; None where the judge is off."""
    judged = run.table("judgments", "judgments") if run.job.judge.enabled else None
    start = 0
    for part in run.parts("candidates", "part"):
        size = _pool(part).num_rows
        yield part, None if judged is None else judged.slice(start, size)
        start += size


# ---------------------------------------------------------------- ask


def _judge(run: Context, work: Path, pairs: Pairs, what: str, rung: str = RUNG, watched: bool = True) -> Done:
    """Ask about pairs, with canaries among them; judgments.parquet and canaries.parquet. Raises JudgeDrift."""
    counts: dict[str, Counter[str]] = {"status": Counter(), "verdict": Counter(), "tokens": Counter()}
    missing: Counter[str] = Counter()
    prompt, judge, seed = run.prompt("judge"), run.job.judge, run.job.seed
    birds = Canaries(run, pairs, references(run), what) if watched and judge.canaries.rate else None
    asked = birds.pairs if birds else pairs
    with _asking(run, prompt, what, asked, birds) as ask:
        known: list[dict[str, Any]] = []
        notice = birds.notice if birds else None
        tables = judgments.run(asked, prompt, run.endpoint("judge"), judge, ask, seed, rung, known, notice)
        rows = store.write_batches(work / "judgments.parquet", JUDGMENTS, counted(tables, counts, missing))
    write_failures(work)
    found = {"rows": rows, **plain(counts)}
    if birds:
        store.write_table(work / "canaries.parquet", pa.Table.from_pylist(known, CANARIES))
        found["canaries"] = birds.report(known)
    warn(run, what, missing)
    return Done(found, complete=not missing)


def with_canaries(run: Context, pairs: Pairs) -> Pairs:
    """The pairs as they are judged, for those who count requests before any is asked."""
    if not run.job.judge.canaries.rate:
        return pairs
    return Canaries(dataclasses.replace(run, warnings=[]), pairs, references(run), "judge").pairs


def open_pairs(run: Context, number: int, known: bool) -> Pairs:
    """What a rung is to be asked. known: the rungs before it are done; else the most that it can be."""
    if not number or not known:
        return lambda: pool_pairs(run)
    mask = np.zeros(_pool_size(run), bool)
    mask[_left_open(run, number)[0]] = True
    return lambda: pool_pairs(run, mask)


def keys_used(run: Context) -> Iterator[str]:
    """The requests that the finished judging steps rest on, canaries among them."""
    for step in (*rung_steps(run.job.judge), "synthetic_judgments"):
        for path in sorted(run.folder.step(step).glob("*.parquet")):
            table = store.read_table(path, ["request_key", "other_key"])
            for name in table.column_names:
                yield from filter(None, table.column(name).to_pylist())


def ask_about(run: Context, pairs: Pairs, what: str) -> Iterator[dict[str, Any]]:
    """A JUDGMENTS row for each pair, in order, from the ledger or the job's last judge; writes no file."""
    prompt, judge = run.prompt("judge"), run.job.judge
    with _asking(run, prompt, what, pairs, None) as ask:
        for table in judgments.run(pairs, prompt, run.endpoint("judge"), judge, ask, run.job.seed):
            yield from table.to_pylist()


def _asking(run: Context, prompt: prompts.Prompt, what: str, pairs: Pairs, birds: Canaries | None) -> Any:
    """A prompt that asks for no form needs no probe of which forms the server takes."""
    total = sum(
        len(judgments.shapes(group, prompt, run.job.judge, run.job.seed)) for group in judgments.groups(pairs(), prompt)
    )
    if not prompt.front.answer_schema:
        endpoint = run.endpoint("judge").model_copy(update={"structured": "none"})
        run = _as(run, run.job.judge.model_copy(update={"llm": endpoint}))
    if birds is not None:
        backend, watching = run.backend, birds
        run = dataclasses.replace(run, backend=lambda endpoint, meter_: Watched(backend(endpoint, meter_), watching))
    return run.asking("judge", what, total)


def counted(tables: Iterable[pa.Table], counts: dict[str, Counter[str]], missing: Counter[str]) -> Iterator[pa.Table]:
    for table in tables:
        for row in table.to_pylist():
            counts["status"][row["status"]] += 1
            for name in counts.keys() & row.keys() - {"status"}:
                counts[name].update([row[name]] if row[name] else [])
            counts["tokens"]["prompt"] += row["prompt_tokens"] or 0
            counts["tokens"]["completion"] += row["completion_tokens"] or 0
            if row["status"] == "missing":
                missing[row["detail"]] += 1
        yield table


FAILED = ("query_id", "doc_id", "status", "detail", "request_key")


def write_failures(work: Path) -> None:
    """failures.jsonl: the rows without a usable answer, each with its reason."""
    path = next(work / f"{name}.parquet" for name in ("synthetic", "judgments") if (work / f"{name}.parquet").is_file())
    name = "positive_id" if path.stem == "synthetic" else "doc_id"
    table = store.read_table(path, ["query_id", name, *FAILED[2:]])
    failed = table.filter(pc.not_equal(table.column("status"), "ok")).rename_columns(list(FAILED))
    store.write_jsonl(work / "failures.jsonl", failed.to_pylist())


def plain(counts: dict[str, Counter[str]]) -> dict[str, dict[str, int]]:
    return {name: dict(sorted(counter.items())) for name, counter in counts.items() if counter}


def warn(run: Context, what: str, missing: Counter[str]) -> None:
    if missing:
        reason, count = missing.most_common(1)[0]
        others = f", and {len(missing) - 1} other reasons" if len(missing) > 1 else ""
        run.warnings.append(
            f"{what}: {missing.total()} answers are missing ({count} times: {reason}{others});"
            " those given up for good are asked again with --retry-failed"
        )
