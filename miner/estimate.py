"""What the LLM stages of a job will take before the first paid call: requests, tokens, dollars, time.

Mines where that is not done. Of the judge everything is counted; of the generator, which asks for what judging leaves
short, the most that it can ask as long as the judge has not answered.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from miner import engine, generate_steps, judge_steps
from miner.ledger import Request
from miner.meter import Meter, completion_limit, dollars
from miner.stages import judgments, synthetic
from miner.steps import Context

Row = dict[str, Any]
# Exact tokenisation takes a millisecond a request: of more requests than this an even sample is counted.
SAMPLE = 2000


def run(context: Context) -> Row:
    """`stages`, one row each, and `total`. Costs are US dollars, None where no price is known; times are seconds.

    tokens: prompt and completion, the latter as long as the stage's answers were so far, else max_tokens. `most` is the
    cost if every answer met its max_tokens.
    """
    engine.advance(context, "mine")
    stages = _judges(context)
    if context.job.generator.enabled:
        stages += _generator(context, stages[-1], not any(row["to_ask"] for row in stages))
    return {"stages": stages, "total": _total(stages), "budget": context.job.budget.model_dump(exclude_none=True)}


def _judges(context: Context) -> list[Row]:
    """A row for each LLM that judges; of a later rung the most, as long as those before it are not done."""
    fresh = {name for name, why, _ in engine.states(context) if not why}
    names, known, rows = judge_steps.rung_names(context.job.judge), True, []
    judges, steps = dict(judge_steps.judges(context)), judge_steps.rung_steps(context.job.judge)
    for number, name in enumerate(names):
        if name in judges:
            pairs = judge_steps.open_pairs(context, number, known)
            what = "judge" if len(names) == 1 else f"judge {name}"
            rows.append({"stage": what, "at_most": not known, **_judge(judges[name], pairs)})
        known = known and steps[number] in fresh
    return rows


def _judge(context: Context, pairs: judgments.Pairs) -> Row:
    prompt, endpoint, settings = context.prompt("judge"), context.endpoint("judge"), context.job.judge
    asked = judge_steps.with_canaries(context, pairs)

    def requests() -> Iterator[Request]:
        return judgments.requests(asked, prompt, endpoint, settings, context.job.seed)

    return _stage(context, "judge", requests)


def _generator(context: Context, judge: Row, judged: bool) -> list[Row]:
    prompt, endpoint, settings = context.prompt("generator"), context.endpoint("generator"), context.job.generator
    if judged:
        engine.advance(context, "judge")
    demands = generate_steps.demands(context, judged)

    def requests() -> Iterator[Request]:
        return synthetic.requests(lambda: iter(demands), prompt, endpoint, settings)

    row = {"stage": "generate", "at_most": not judged, **_stage(context, "generator", requests)}
    again = _meter_rates(context.meter("judge"), context.prompt("judge").version)
    each = judge["prompt_tokens"] / judge["to_ask"] if judge["to_ask"] else again["prompt"]
    more = _priced(context.meter("judge"), row["to_ask"], each * row["to_ask"], judge["limit"], again)
    counts = {"requests": row["requests"], "in_ledger": row["in_ledger"], "given_up": 0, "to_ask": row["to_ask"]}
    return [row, {"stage": "judge synthetic", "at_most": True, **counts, **more}]


def _stage(context: Context, stage: str, requests: Callable[[], Iterator[Request]]) -> Row:
    meter, ledger = context.meter(stage), context.ledger
    counts = {"requests": 0, "in_ledger": 0, "given_up": 0, "to_ask": 0}
    seen: set[str] = set()
    bodies: list[dict[str, Any]] = []
    for request in requests():
        if request.key in seen:
            continue
        seen.add(request.key)
        there = "in_ledger" if ledger.has(request.key) else "given_up" if ledger.given_up(request.key) else "to_ask"
        counts["requests"] += 1
        counts[there] += 1
        if there == "to_ask" and len(bodies) < SAMPLE:
            bodies.append(request.body)
        elif there == "to_ask":
            _thin(bodies, request.body, counts["to_ask"])
    each = sum(map(meter.prompt_tokens, bodies)) / len(bodies) if bodies else 0.0
    limit = max((completion_limit(body) or 0 for body in bodies), default=0)
    rates = _meter_rates(meter, context.prompt(stage).version)
    return {**counts, **_priced(meter, counts["to_ask"], each * counts["to_ask"], limit, rates)}


def _thin(bodies: list[dict[str, Any]], body: dict[str, Any], count: int) -> None:
    """Keep an even sample: every request takes the place of one at a fixed stride."""
    if count % (1 + count // SAMPLE) == 0:
        bodies[count % SAMPLE] = body


def _meter_rates(meter: Meter, version: str) -> dict[str, float]:
    """Means of the answers that the prompt version has so far; 0 where it has none."""
    rows = [row for row in meter.ledger.stats() if row["state"] == "done" and row["prompt_version"] == version]
    count = sum(row["requests"] for row in rows) or 1
    prompt = sum(row["prompt_tokens"] for row in rows)
    return {
        "prompt": prompt / count,
        "completion": sum(row["completion_tokens"] for row in rows) / count,
        "cached": sum(row["cached_tokens"] for row in rows) / (prompt or 1),
        "seconds": sum(row["seconds"] * row["requests"] for row in rows) / count,
    }


def _priced(meter: Meter, count: int, prompt: float, limit: int, rates: dict[str, float]) -> Row:
    """cached: the share of prompt tokens that the provider had in its cache so far, taken to stay."""
    completion = count * (rates["completion"] or limit)
    batched = meter.endpoint.backend == "openai-batch"
    cost = most = None
    if meter.price is not None:
        cached = int(prompt * rates["cached"])
        cost = dollars(meter.price, int(prompt), int(completion), cached, batched)
        most = dollars(meter.price, int(prompt), count * limit, batched=batched)
    return {
        "prompt_tokens": int(prompt),
        "completion_tokens": int(completion),
        "limit": limit,
        "cost": cost,
        "most": most,
        "seconds": _seconds(meter, count, prompt + completion, rates["seconds"]),
        "model": meter.endpoint.model,
    }


def _seconds(meter: Meter, count: int, tokens: float, each: float) -> float | None:
    """At the limits of the job file and the mean answer time so far; None where neither is known."""
    endpoint = meter.endpoint
    lanes = endpoint.replicas or (None,)
    found = [count * each / (endpoint.concurrency * len(lanes))] if each else []
    for name, amount in (("rpm", count), ("tpm", tokens)):
        limits = [(lane and getattr(lane, name)) or getattr(endpoint, name) for lane in lanes]
        if all(limits):
            found.append(60.0 * amount / sum(limits))
    return max(found, default=None)


def _total(stages: list[Row]) -> Row:
    names = ("requests", "in_ledger", "given_up", "to_ask", "prompt_tokens", "completion_tokens")
    total: Row = {name: sum(row[name] for row in stages) for name in names}
    for name in ("cost", "most", "seconds"):
        known = [row[name] for row in stages if row["to_ask"]]
        total[name] = None if None in known else sum(known)
    return total
