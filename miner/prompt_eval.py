"""Evaluate a judge prompt on golden pairs: ask, read, measure, and keep all of it in a run folder.

RUNS/ledger.sqlite                           every answer of every run: what was asked once is not asked again
RUNS/NAME-VERSION-MODEL-GOLDEN/prompt.md     the text that was evaluated
                               results.jsonl one line a pair: the human grade and what the judge said
                               summary.json  written last
"""

from __future__ import annotations

import math
import re
import sqlite3
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import numpy as np
from pydantic import ValidationError

from miner import acceptance, agreement, answers, golden, llms, meter, progress, prompts, store
from miner.config import Endpoint, Judge
from miner.errors import UserError
from miner.golden import Golden
from miner.ledger import Ledger, Request
from miner.prompts import Prompt
from miner.resampling import SAMPLES
from miner.stages import judgments
from miner.stages.judgments import Said

Row = dict[str, Any]
SEED = 13
TARGET = 0.05  # acceptance asks for one; it decides nothing here


@dataclass(frozen=True)
class Settings:
    """How a prompt is evaluated. repeat: every pair is asked so often, each time with another seed."""

    endpoint: Endpoint
    judge: Judge
    repeat: int = 1
    seed: int = SEED
    samples: int = SAMPLES


class Unit(NamedTuple):
    """One request, and how often all pairs were asked about before it."""

    request: Request
    repeat: int


class Group(NamedTuple):
    """Pairs that are asked about together, the numbers of their golden rows, and how their requests show them."""

    pairs: list[judgments.Pair]
    rows: list[int]
    shapes: list[judgments.Shape]
    repeat: int


def settings(job: Any, given: dict[str, str | None], repeat: int = 1, orders: int | None = None) -> Settings:
    """From a job (or None) and what stands on the command line, which wins. Raises UserError."""
    base: Endpoint | None = (job.judge.llm or job.llm) if job is not None else None
    values = base.model_dump(exclude_defaults=True) if base is not None else {}
    values |= {name: value for name, value in given.items() if value is not None}
    if "model" not in values:
        raise UserError("prompt eval: no model; give --model NAME, or --job JOB.yaml with llm.model")
    judge = job.judge if job is not None else Judge()  # type: ignore[call-arg]
    if orders is not None:
        judge = judge.model_copy(update={"orders": orders})
    return Settings(endpoint(values), judge, repeat)


def endpoint(values: Row) -> Endpoint:
    try:
        return Endpoint.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        name = "--" + ".".join(map(str, first["loc"])).replace("_", "-")
        raise UserError(f"prompt eval: {name}: {first['msg'].removeprefix('Value error, ')}") from None


# ---------------------------------------------------------------- ask


def groups(prompt: Prompt, rows: list[Golden], settings: Settings) -> Iterator[Group]:
    """All pairs once, then all again; pairs of one query and positive are neighbours where a request shows many."""
    order = list(range(len(rows)))
    if prompt.mode in prompts.MANY:
        first: dict[tuple[str, str, str], int] = {}
        keys = [(row.query_id, row.query, row.positive) for row in rows]
        order.sort(key=lambda at: first.setdefault(keys[at], len(first)))
    for repeat in range(settings.repeat):
        start = 0
        for pairs in judgments.groups((_pair(rows[at]) for at in order), prompt):
            shapes = judgments.shapes(pairs, prompt, settings.judge, settings.seed + repeat)
            yield Group(pairs, order[start : start + len(pairs)], shapes, repeat)
            start += len(pairs)


def _pair(row: Golden) -> judgments.Pair:
    return judgments.Pair(row.query_id, row.doc_id, row.query, row.positive, row.passage)


def units(prompt: Prompt, rows: list[Golden], settings: Settings) -> Iterator[Unit]:
    """The requests of an evaluation, in order: those that a job would make of the same pairs."""
    judgments.check(prompt, settings.judge)
    for group in groups(prompt, rows, settings):
        varied = _varied(prompt, group.repeat)
        for order, shape in enumerate(group.shapes, 1):
            shown = [group.pairs[number] for number in shape]
            made = judgments.request_about(shown, varied, _endpoint(varied, settings), settings.judge, order)
            yield Unit(made, group.repeat)


def _varied(prompt: Prompt, repeat: int) -> Prompt:
    """The prompt with another seed at each repeat, so that a repeat is a request of its own."""
    if not repeat:
        return prompt
    sampling = {**prompt.front.sampling, "seed": int(prompt.front.sampling.get("seed", 0)) + repeat}
    front = prompt.front.model_copy(update={"sampling": sampling})
    return Prompt(front, prompt.system, prompt.user, prompt.version, prompt.text, prompt.path)


def _endpoint(prompt: Prompt, settings: Settings) -> Endpoint:
    """A prompt without a schema asks for no form."""
    if prompt.front.answer_schema:
        return settings.endpoint
    return settings.endpoint.model_copy(update={"structured": "none"})


def ask(prompt: Prompt, asked: list[Unit], endpoint: Endpoint, ledger: Ledger, tick: progress.Tick) -> list[llms.Reply]:
    """The replies in order; only what the ledger lacks is sent."""

    def check(response: dict[str, Any]) -> str:
        return answers.broken_form(response, prompt.front.answer_schema)

    counted = meter.Meter(endpoint, ledger)
    asker = llms.asker(lambda: llms.load(endpoint, counted), counted, tick)
    return list(asker(lambda: (unit.request for unit in asked), check))


# ---------------------------------------------------------------- read


def read(prompt: Prompt, rows: list[Golden], settings: Settings, replies: list[llms.Reply]) -> list[list[Said]]:
    """What the replies, in the order of `units`, say of each row, by repeat; read as a job reads them."""
    said: list[list[Said]] = [[] for _ in rows]
    stream = iter(replies)
    for group in groups(prompt, rows, settings):
        some = list(islice(stream, len(group.shapes)))
        found = judgments.read(group.pairs, group.shapes, some, prompt, settings.judge)
        for at, one in zip(group.rows, found, strict=True):
            said[at].append(one)
    return said


def result(row: Golden, said: list[Said], judge: Judge) -> Row:
    """The line of results.jsonl of a pair; said: by repeat. The first repeat is the one that is measured."""
    first, verdict = said[0].parsed, said[0].verdict
    grade = first.value.get("grade")
    return {
        **{name: getattr(row, name) for name in ("query_id", "doc_id", "tag", "split", "query", "passage", "reason")},
        "human": row.grade,
        "grade": grade,
        "score": first.value.get("probability", grade),
        "verdict": verdict,
        "right": verdict == ("relevant" if (row.grade or 0) >= judge.relevant_from else "irrelevant"),
        "status": first.status,
        "detail": first.detail,
        "evidence": first.value.get("evidence", ""),
        "request_key": said[0].key,
        "repeats": [one.parsed.value.get("grade") for one in said],
        "verdicts": [one.verdict for one in said],
    }


# ---------------------------------------------------------------- measure


def judged(results: list[Row]) -> agreement.Judged:
    columns = ([row[name] for row in results] for name in ("query_id", "human", "grade", "score"))
    return agreement.Judged.of(*columns)


def metrics(results: list[Row], judge: Judge, seed: int, samples: int = SAMPLES) -> Row:
    """Every measure of agreement with its interval, the false negatives among accepted pairs, and each tag."""
    pairs, (relevant_from, irrelevant_to) = judged(results), (judge.relevant_from, judge.irrelevant_to)
    measured = agreement.measure(pairs, relevant_from, irrelevant_to, seed, samples)
    tried = acceptance.calibrate(pairs, TARGET, relevant_from).tried
    accepted = next(one for one in tried if one.threshold == irrelevant_to)
    return {
        "measures": {name: _numbers(interval) for name, interval in measured.items()},
        "accepted": {name: getattr(accepted, name) for name in ("accepted", "false_negatives", "share", "bound")},
        "confusion": agreement.counts(pairs).astype(int).tolist(),
        "status": dict(sorted(Counter(row["status"] for row in results).items())),
        "tags": _tags(results),
    }


def _numbers(interval: Any) -> dict[str, float | None]:
    return {name: None if math.isnan(value) else float(value) for name, value in interval._asdict().items()}


def _tags(results: list[Row]) -> dict[str, dict[str, int]]:
    tags: dict[str, list[Row]] = {}
    for row in results:
        tags.setdefault(str(row["tag"] or ""), []).append(row)
    return {
        tag: {
            "pairs": len(rows),
            "right": sum(row["right"] for row in rows),
            "false_negatives": sum(row["verdict"] == "irrelevant" and not row["right"] for row in rows),
            "failed": sum(row["verdict"] == "failed" for row in rows),
        }
        for tag, rows in sorted(tags.items())
    }


def repeat_agreement(results: list[Row]) -> float | None:
    """The share of pairs with the same verdict in every repeat; None where each was asked once."""
    if not results or len(results[0]["verdicts"]) < 2:
        return None
    same = [len(set(row["verdicts"])) == 1 for row in results]
    return sum(same) / len(same)


def spent(asked: list[Unit], endpoint: Endpoint, ledger: Ledger) -> Row:
    """Requests, tokens, dollars (None: no price is known) and seconds of the answers, whenever they were given.

    The repair of an answer counts to it. Latency: median and 90th percentile; answers taken from a file have none.
    """
    ledger.flush()
    used = _used(ledger.path, {unit.request.key for unit in asked})
    price, seconds = meter.price(endpoint), [one[3] for one in used if one[3] > 0]
    return {
        "requests": len(used),
        "prompt_tokens": sum(one[0] for one in used),
        "completion_tokens": sum(one[1] for one in used),
        "cost": None if price is None else math.fsum(meter.dollars(price, *one[:3]) for one in used),
        "latency": {
            "median": float(np.median(seconds)) if seconds else None,
            "p90": float(np.quantile(seconds, 0.9)) if seconds else None,
        },
    }


def _used(path: Path, keys: set[str]) -> list[tuple[int, int, int, float]]:
    """Prompt, completion and cached tokens and seconds of each answer under a key, and of each repair of one."""
    columns = "prompt_tokens, completion_tokens, cached_tokens, seconds, key, json_extract(about, '$.repairs')"
    with closing(sqlite3.connect(f"file:{quote(str(path))}?mode=ro", uri=True)) as db:
        rows = db.execute(f"SELECT {columns} FROM requests WHERE state = 'done' ORDER BY key")
        return [row[:4] for row in rows if row[4] in keys or row[5] in keys]


# ---------------------------------------------------------------- the run folder


def golden_rows(source: Row) -> tuple[list[Golden], Row]:
    """The golden pairs that {"path", "split", "limit"} means, and the same with the split that it came to.

    No split: dev, on which prompts are tuned, where the file has one, else all. limit: the first so many in the order
    of a hash, so that tags and queries mix. Raises UserError.
    """
    path, limit = Path(source["path"]), source.get("limit")
    pairs = golden.read(path)
    split = source.get("split") or ("dev" if any(pair.split == "dev" for pair in pairs) else "all")
    found = golden.part(pairs, split, path)
    order = sorted(range(len(found)), key=lambda at: store.digest(list(found[at].key)))
    return [found[at] for at in sorted(order[:limit])], {"path": str(path), "split": split, "limit": limit}


def golden_row(path: Path, number: int) -> Golden:
    """The pair of a golden file by its number from 1, graded or not. Raises UserError."""
    pairs = golden.read(path, labelled=False)
    if number > len(pairs):
        raise UserError(f"{path}: --row {number}: the file has {len(pairs)} rows")
    return pairs[number - 1]


def rendered(
    prompt: Prompt, query: str, positive: str, passages: list[str], more: Row, order: int = 1
) -> list[dict[str, str]]:
    """The messages of a prompt for these texts. more: what generators are given beside."""
    if prompt.mode in prompts.MANY:
        return prompt.messages(**prompts.fill_many(prompt, query, positive, passages)[0])
    return prompt.messages(**prompts.fill(prompt, order, query=query, positive=positive, passage=passages[0], **more))


def golden_digest(rows: list[Golden]) -> str:
    names = ("query_id", "doc_id", "query", "positive", "passage", "grade")
    return store.digest([[getattr(row, name) for name in names] for row in rows])[:12]


def run_folder(runs: Path, prompt: Prompt, settings: Settings, rows: list[Golden]) -> Path:
    parts = [prompt.front.name, prompt.version, settings.endpoint.model, golden_digest(rows)]
    if judgments.orders(prompt, settings.judge) > 1:
        parts.append("both_orders")
    return runs / "-".join(re.sub(r"[^A-Za-z0-9_.]+", "_", part) for part in parts)


def evaluate(
    prompt: Prompt,
    rows: list[Golden],
    settings: Settings,
    runs: Path,
    source: Row | None = None,
    retry_failed: bool = False,
) -> tuple[Path, Row]:
    """Ask what is lacking, measure, write the run folder. Returns it with its summary. Raises UserError.

    source: where the pairs came from, for `miner prompt check`.
    """
    if prompt.front.task != "judge":
        raise UserError(f"prompt {prompt.front.name}: a generator; eval measures judges against human grades")
    ledger = Ledger(runs / "ledger.sqlite")
    try:
        if retry_failed:
            ledger.forget_failures()
        asked = list(units(prompt, rows, settings))
        with progress.bar(f"eval {prompt.front.name}", len(asked), "answers") as tick:
            replies = ask(prompt, asked, _endpoint(prompt, settings), ledger, tick)
        cost = spent(asked, settings.endpoint, ledger)
    finally:
        ledger.close()
    said = read(prompt, rows, settings, replies)
    results = [result(row, one, settings.judge) for row, one in zip(rows, said, strict=True)]
    summary = _summary(prompt, results, settings, source or {}, rows, cost)
    folder = run_folder(runs, prompt, settings, rows)
    store.write_text(folder / "prompt.md", prompt.text)
    store.write_jsonl(folder / "results.jsonl", results)
    store.write_json(folder / "summary.json", summary)
    return folder, summary


def _summary(prompt: Prompt, results: list[Row], settings: Settings, source: Row, rows: list[Golden], cost: Row) -> Row:
    endpoint = settings.endpoint
    return {
        "prompt": prompt.front.name,
        "version": prompt.version,
        "label": prompt.front.version,
        "mode": prompt.mode,
        "model": endpoint.model,
        "server": llms.identity(endpoint),
        "golden": {
            **source,
            "digest": golden_digest(rows),
            "pairs": len(rows),
            "queries": len({row.query_id for row in rows}),
        },
        "judge": {name: getattr(settings.judge, name) for name in ("relevant_from", "irrelevant_to", "max_chars")},
        "orders": judgments.orders(prompt, settings.judge),
        "repeat": settings.repeat,
        "seed": settings.seed,
        **metrics(results, settings.judge, settings.seed, settings.samples),
        "repeat_agreement": repeat_agreement(results),
        "spent": cost,
        "endpoint": endpoint.model_dump(mode="json", exclude_defaults=True),
    }
