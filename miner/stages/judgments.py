"""Ask the judge about (query, passage) pairs and write down what it said.

Only status ok with the verdict irrelevant may admit a negative. A call that failed, was refused, was cut or cannot be
read has a status of its own and never a grade. What the judge is in doubt about is ok, but unsure: a grade between the
bounds, a probability between the bounds, two orders of a pack that disagree, a quote that is not there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby, islice
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from miner import answers, meter, packs, prompts
from miner.config import Endpoint, Judge
from miner.errors import UserError
from miner.ledger import Request
from miner.llms import Ask, Reply, form_check, request
from miner.records import JUDGMENTS

BATCH = 8192
GRADES = range(4)
SEED = 13
RUNG = "judge"
# What is not surely irrelevant has the grade of a Yes: no bound on grades takes it for a negative.
YES_NO = {"relevant": "Yes", "unsure": "Yes", "irrelevant": "No"}
Row = dict[str, Any]
Shape = tuple[int, ...]
Pairs = Callable[[], Iterator["Pair"]]


@dataclass(frozen=True)
class Pair:
    """canary: where the pair comes from if its answer is known, else ""; such rows are kept apart."""

    query_id: str
    doc_id: str
    query: str
    positive: str
    passage: str
    canary: str = ""


class Said(NamedTuple):
    """What the judge says of a pair. other_key: of the request in the other order, or ""."""

    parsed: prompts.Parsed
    verdict: str
    key: str
    other_key: str = ""


def run(
    pairs: Pairs,
    prompt: prompts.Prompt,
    endpoint: Endpoint,
    judge: Judge,
    ask: Ask,
    seed: int = SEED,
    rung: str = RUNG,
    canaries: list[Row] | None = None,
    notice: Callable[[Request, list[Pair]], None] | None = None,
) -> Iterator[pa.Table]:
    """One JUDGMENTS row per pair, in order. pairs: a function that starts the iteration anew at each call.

    canaries: gets the rows of pairs that are some, which the tables lack. notice: is told of each request, before it is
    asked, with its pairs as they are shown. Raises UserError where judge and prompt contradict each other.
    """
    check(prompt, judge)
    rows: list[Row] = []
    asked = partial(requests, pairs, prompt, endpoint, judge, seed, notice)
    replies = ask(asked, form_check(prompt))
    for group in groups(pairs(), prompt):
        found = shapes(group, prompt, judge, seed)
        answered = list(islice(replies, len(found)))
        for pair, row in zip(group, _rows(group, found, answered, prompt, judge, rung), strict=True):
            if not pair.canary:
                rows.append(row)
            elif canaries is not None:
                canaries.append({**row, "source": pair.canary})
        if len(rows) >= BATCH:
            yield pa.Table.from_pylist(rows, JUDGMENTS)
            rows = []
    yield pa.Table.from_pylist(rows, JUDGMENTS)


def check(prompt: prompts.Prompt, judge: Judge) -> None:
    if prompt.mode == "listwise" and not judge.reference:
        raise UserError(
            f"judge.reference: false, but prompt {prompt.front.name} is listwise and compares passages with the"
            " reference; take another prompt, or leave the key out"
        )


# ---------------------------------------------------------------- ask


def groups(pairs: Iterable[Pair], prompt: prompts.Prompt) -> Iterator[list[Pair]]:
    """What is asked together: each pair alone; where the prompt shows many, neighbours of one query and positive."""
    if prompt.mode not in prompts.MANY:
        return ([pair] for pair in pairs)
    return (list(some) for _, some in groupby(pairs, lambda pair: (pair.query_id, pair.query, pair.positive)))


def orders(prompt: prompts.Prompt, judge: Judge) -> int:
    """In how many orders a pair is asked about: judge.orders, where the prompt has as many."""
    return judge.orders if prompt.mode in prompts.MANY else min(prompt.orders, judge.orders)


def shapes(group: list[Pair], prompt: prompts.Prompt, judge: Judge, seed: int) -> list[Shape]:
    """The requests about a group, in order: the numbers of their pairs, as they are shown."""
    if prompt.mode not in prompts.MANY:
        return [(0,)] * orders(prompt, judge)
    return packs.shapes([pair.doc_id for pair in group], judge.pack, judge.orders, seed)


def requests(
    pairs: Pairs,
    prompt: prompts.Prompt,
    endpoint: Endpoint,
    judge: Judge,
    seed: int = SEED,
    notice: Callable[[Request, list[Pair]], None] | None = None,
) -> Iterator[Request]:
    """What is asked, in order."""
    for group in groups(pairs(), prompt):
        for order, shape in enumerate(shapes(group, prompt, judge, seed), 1):
            shown = [group[number] for number in shape]
            made = request_about(shown, prompt, endpoint, judge, order)
            if notice is not None:
                notice(made, shown)
            yield made


def _request(pair: Pair, prompt: prompts.Prompt, endpoint: Endpoint, judge: Judge) -> Request:
    return request_about([pair], prompt, endpoint, judge)


def request_about(
    shown: list[Pair], prompt: prompts.Prompt, endpoint: Endpoint, judge: Judge, order: int = 1
) -> Request:
    """The request about pairs of one query and positive. Without judge.reference the positive is empty. order: of the
    texts, where the prompt has two; a pack is shuffled already."""
    made = _rendered(shown, prompt, endpoint, judge, judge.max_chars, order)
    texts = [pair.passage for pair in shown] + ([shown[0].positive] if judge.reference else [])
    size = min(judge.max_chars, max(map(len, texts)))
    if not endpoint.shorten or size < 2:
        return made
    return replace(made, shorter=_rendered(shown, prompt, endpoint, judge, size // 2, order).body)


def _rendered(
    shown: list[Pair], prompt: prompts.Prompt, endpoint: Endpoint, judge: Judge, chars: int, order: int
) -> Request:
    first = shown[0]
    positive = first.positive[:chars] if judge.reference else ""
    passages = [pair.passage[:chars] for pair in shown]
    if prompt.mode in prompts.MANY:
        values, _ = prompts.fill_many(prompt, first.query, positive, passages)
    else:
        values = prompts.fill(prompt, order, query=first.query, positive=positive, passage=passages[0])
    about = {"query_id": first.query_id, "doc_id": " ".join(pair.doc_id for pair in shown)}
    return request(endpoint, prompt, about, **values)


# ---------------------------------------------------------------- read


def read(
    group: Sequence[Pair], found: Sequence[Shape], replies: Sequence[Reply], prompt: prompts.Prompt, judge: Judge
) -> list[Said]:
    """What the replies to the requests about a group say of each of its pairs, in order."""
    heard: list[list[Said]] = [[] for _ in group]
    for shape, reply in zip(found, replies, strict=True):
        for number, parsed in zip(shape, _parsed(len(shape), reply, prompt), strict=True):
            passage = group[number].passage[: judge.max_chars]
            heard[number].append(_said(parsed, passage, reply, prompt, judge))
    return [said[0] if len(said) == 1 else _both(said[0], said[1], prompt, judge) for said in heard]


def _parsed(size: int, reply: Reply, prompt: prompts.Prompt) -> list[prompts.Parsed]:
    schema = prompt.front.answer_schema
    if prompt.mode == "binary":
        return [answers.read_yes_no(reply.response, reply.error)]
    if prompt.mode in prompts.MANY:
        reader = answers.read_packed if prompt.mode == "packed" else answers.read_listwise
        ids = [str(number) for number in range(1, size + 1)]
        return list(reader(reply.response, schema, ids, reply.error).values())
    return [prompts.read_answer(reply.response, schema, reply.error)]


def _said(parsed: prompts.Parsed, passage: str, reply: Reply, prompt: prompts.Prompt, judge: Judge) -> Said:
    checked, doubt = parsed, ""
    if prompt.mode != "binary":
        checked = check_evidence(parsed, passage, judge)
        if checked.status != parsed.status and judge.evidence == "downgrade" and parsed.value["grade"] in GRADES:
            checked, doubt = replace(parsed, detail=checked.detail), checked.detail
    if checked.status != "ok":
        found = "failed"
    elif prompt.mode == "binary":
        found = by_probability(checked.value["probability"], judge)
        checked = replace(checked, value={**checked.value, "grade": answers.YES_NO_GRADES[YES_NO[found]]})
    else:
        found = "unsure" if doubt else verdict(checked.value["grade"], judge)
    if checked.status == "ok" and reply.note:
        checked = replace(checked, detail="; ".join(filter(None, (checked.detail, reply.note))))
    return Said(checked, found, reply.request.key)


def _both(first: Said, second: Said, prompt: prompts.Prompt, judge: Judge) -> Said:
    """A pair that was asked about in two orders. Where the verdicts differ it is unsure, at the higher grade; of two
    probabilities the mean counts. Where one answer cannot be used, neither can."""
    for said in (first, second):
        if said.parsed.status != "ok":
            return Said(said.parsed, "failed", first.key, second.key)
    if prompt.mode == "binary":
        mean = (first.parsed.value["probability"] + second.parsed.value["probability"]) / 2
        found = by_probability(mean, judge)
        value = {**first.parsed.value, "probability": mean, "grade": answers.YES_NO_GRADES[YES_NO[found]]}
        return Said(replace(first.parsed, value=value), found, first.key, second.key)
    grades = [said.parsed.value["grade"] for said in (first, second)]
    parsed = first.parsed if grades[0] >= grades[1] else second.parsed
    if first.verdict == second.verdict:
        return Said(parsed, first.verdict, first.key, second.key)
    return Said(replace(parsed, detail=f"two orders disagree: grades {grades}"), "unsure", first.key, second.key)


def _rows(
    group: list[Pair],
    found: list[Shape],
    replies: list[Reply],
    prompt: prompts.Prompt,
    judge: Judge,
    rung: str,
) -> Iterator[Row]:
    said = read(group, found, replies, prompt, judge)
    for number, (pair, one) in enumerate(zip(group, said, strict=True)):
        value = one.parsed.value
        borne = [reply for shape, reply in zip(found, replies, strict=True) if min(shape) == number]
        yield {
            "query_id": pair.query_id,
            "doc_id": pair.doc_id,
            "grade": value.get("grade"),
            "verdict": one.verdict,
            "evidence": value.get("evidence", ""),
            "score": value["probability"] if prompt.mode == "binary" and value else None,
            "rung": rung,
            **prompts.answered(one.parsed, one.key, replies[0].request.body["model"], prompt, _usage(borne)),
            "other_key": one.other_key or None,
        }


def _usage(replies: list[Reply]) -> Any:
    """What the requests took whose tokens a row bears, as a response tells it."""
    if len(replies) < 2:
        return replies[0].response if replies else None
    used = [meter.used(reply.response) for reply in replies]
    return {"usage": {"prompt_tokens": sum(u[0] for u in used), "completion_tokens": sum(u[1] for u in used)}}


# ---------------------------------------------------------------- what an answer is worth


def check_evidence(parsed: prompts.Parsed, passage: str, judge: Judge) -> prompts.Parsed:
    """A grade is from 0 to 3, whatever the schema of an own prompt allows, and a relevant one must quote the passage;
    else the answer is unparsable. The quote of a lower grade is only a remark: it admits nothing, so a paraphrase does
    not spoil the answer."""
    if parsed.status != "ok":
        return parsed
    grade, evidence = parsed.value["grade"], parsed.value.get("evidence", "")
    wrong = ""
    if grade not in GRADES:
        wrong = f"grade {grade} is not from 0 to 3"
    elif grade >= judge.relevant_from and not evidence.strip():
        wrong = f"grade {grade} without evidence"
    elif grade >= judge.relevant_from and not prompts.quotes(evidence, passage):
        wrong = f"the evidence of grade {grade} is not in the passage"
    return prompts.Parsed("unparsable", wrong, {}) if wrong else parsed


def verdict(grade: int | None, judge: Judge) -> str:
    """relevant, irrelevant, or unsure for a grade between the two bounds."""
    if grade is None:
        return "failed"
    if grade >= judge.relevant_from:
        return "relevant"
    return "irrelevant" if grade <= judge.irrelevant_to else "unsure"


def by_probability(probability: float, judge: Judge) -> str:
    """relevant from relevant_p on, else irrelevant up to irrelevant_p, else unsure. Rounded as the files hold it, so
    that a bound chosen on them means the same here."""
    stored = float(np.float32(probability))
    if stored >= judge.relevant_p:
        return "relevant"
    return "irrelevant" if stored <= judge.irrelevant_p else "unsure"
