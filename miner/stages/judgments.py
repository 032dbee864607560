"""Ask the judge about (query, passage) pairs and write down what it said.

Only status ok with a grade at or below `irrelevant_to` may admit a negative. A call that failed, was refused, was cut
or cannot be read has a status of its own and never a grade.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import pyarrow as pa

from miner import prompts
from miner.config import Endpoint, Judge
from miner.ledger import Request
from miner.llms import Ask, Reply, form_check, request
from miner.records import JUDGMENTS

BATCH = 8192
GRADES = range(4)


@dataclass(frozen=True)
class Pair:
    query_id: str
    doc_id: str
    query: str
    positive: str
    passage: str


def run(pairs: Any, prompt: prompts.Prompt, endpoint: Endpoint, judge: Judge, ask: Ask) -> Iterator[pa.Table]:
    """One JUDGMENTS row per pair, in order. pairs: a function that starts the iteration anew at each call."""

    rows: list[dict[str, Any]] = []
    asked = partial(requests, pairs, prompt, endpoint, judge)
    for pair, reply in zip(pairs(), ask(asked, form_check(prompt)), strict=True):
        rows.append(_row(pair, reply, prompt, judge))
        if len(rows) == BATCH:
            yield pa.Table.from_pylist(rows, JUDGMENTS)
            rows = []
    yield pa.Table.from_pylist(rows, JUDGMENTS)


def requests(pairs: Any, prompt: prompts.Prompt, endpoint: Endpoint, judge: Judge) -> Iterator[Request]:
    """What is asked of each pair, in order."""
    return (_request(pair, prompt, endpoint, judge) for pair in pairs())


def _request(pair: Pair, prompt: prompts.Prompt, endpoint: Endpoint, judge: Judge) -> Request:
    made = _rendered(pair, prompt, endpoint, judge.max_chars)
    size = max(len(pair.passage[: judge.max_chars]), len(pair.positive[: judge.max_chars]))
    if not endpoint.shorten or size < 2:
        return made
    return replace(made, shorter=_rendered(pair, prompt, endpoint, size // 2).body)


def _rendered(pair: Pair, prompt: prompts.Prompt, endpoint: Endpoint, chars: int) -> Request:
    values = {"query": pair.query, "positive": pair.positive[:chars], "passage": pair.passage[:chars]}
    values["nonce"] = prompts.nonce(*values.values())
    about = {"query_id": pair.query_id, "doc_id": pair.doc_id}
    return request(endpoint, prompt, about, **{k: v for k, v in values.items() if k in prompt.front.inputs})


def _row(pair: Pair, reply: Reply, prompt: prompts.Prompt, judge: Judge) -> dict[str, Any]:
    read = prompts.read_answer(reply.response, prompt.front.answer_schema, reply.error)
    parsed = check_evidence(read, pair.passage[: judge.max_chars], judge)
    if parsed.status == "ok" and reply.note:
        parsed = replace(parsed, detail=reply.note)
    grade = parsed.value.get("grade")
    return {
        "query_id": pair.query_id,
        "doc_id": pair.doc_id,
        "grade": grade,
        "verdict": verdict(grade, judge) if parsed.status == "ok" else "failed",
        "evidence": parsed.value.get("evidence", ""),
        **prompts.answered(parsed, reply.request.key, reply.request.body["model"], prompt, reply.response),
    }


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
