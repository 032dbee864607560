"""One answer: which status it gets, and that nothing odd is ever a grade."""

from __future__ import annotations

import json

import pytest
from loopback import Reply, completion, failure, raw

from miner import llms, prompts
from miner.config import Judge
from miner.stages import judgments

KEY = "sk-toy-secret"  # the key of conftest's environment
PROMPT = prompts.load("judge", "graded", None)
PASSAGE = "The cat meows when it wants attention."


ODD: dict[str, tuple[str, str, bytes]] = {
    "refusal": ("refused", "I will not", completion("", refusal="I will not")),
    "refusal beside an answer": ("refused", "no", completion('{"evidence": "", "grade": 0}', refusal="no")),
    "content filter": ("refused", "content_filter", completion('{"evidence": "", "grade": 0}', "content_filter")),
    "cut": ("truncated", "max_tokens", completion('{"evidence": "the cat', "length")),
    "cut behind the object": ("truncated", "max_tokens", completion('{"evidence": "", "grade": 0} And', "length")),
    "nothing": ("unparsable", "no JSON", completion("")),
    "null": ("unparsable", "no JSON", completion("").replace(b'""', b"null")),
    "prose": ("unparsable", "no JSON", completion("The grade is 0.")),
    "prose with a brace": ("unparsable", "no JSON", completion("The grade {is} 0.")),
    "half an object": ("unparsable", "no JSON", completion('{"evidence": "", "grade": 0')),
    "two objects": (
        "unparsable",
        "no JSON",
        completion('{"evidence": "", "grade": 0} or {"evidence": "", "grade": 1}'),
    ),
    "a number": ("unparsable", "no JSON", completion("0")),
    "grade as text": ("unparsable", "grade is not of type integer", completion('{"evidence": "", "grade": "0"}')),
    "grade null": ("unparsable", "grade is not of type integer", completion('{"evidence": "", "grade": null}')),
    "grade true": ("unparsable", "grade is not of type integer", completion('{"evidence": "", "grade": false}')),
    "grade with a point": ("unparsable", "grade is not of type integer", completion('{"evidence": "", "grade": 0.0}')),
    "grade 4": ("unparsable", "grade is 4", completion('{"evidence": "The cat", "grade": 4}')),
    "grade -1": ("unparsable", "grade is -1", completion('{"evidence": "", "grade": -1}')),
    "a number without end": ("unparsable", "no JSON", completion('{"evidence": "", "grade": ' + "9" * 5000 + "}")),
    "no grade": ("unparsable", "no grade", completion('{"evidence": ""}')),
    "no evidence key": ("unparsable", "no evidence", completion('{"grade": 0}')),
    "evidence is a list": ("unparsable", "evidence is not of type string", completion('{"evidence": [], "grade": 0}')),
    "relevant without evidence": ("unparsable", "grade 3 without", completion('{"evidence": " ", "grade": 3}')),
    "relevant, evidence made up": (
        "unparsable",
        "not in the pas",
        completion('{"evidence": "Zebras bark", "grade": 2}'),
    ),
    "half a pair of surrogates": ("unparsable", "no JSON", completion('{"evidence": "\\ud83d", "grade": 0}')),
    "nested without end": ("unparsable", "no JSON", completion('{"a":' * 100_000 + "}" * 100_000)),
}
# Replies from which no answer can be taken: the row is missing, and asked again in the next run.
LOST: dict[str, tuple[str, Reply]] = {
    "a bad request": (
        f"HTTP 400: *** is too long for {KEY}".replace(KEY, "***"),
        failure(400, f"{KEY} is too long for {KEY}"),
    ),
    "no choices": ("ValueError: no choices", raw('{"choices": []}')),
    "an error with status 200": ("ValueError: no choices", raw('{"error": {"message": "overloaded"}}')),
    "a server error": ("HTTP 500: worker crashed", failure(500, "worker crashed")),
}


def read(response: bytes) -> prompts.Parsed:
    parsed = prompts.read_answer(llms.completion(json.loads(response)), PROMPT.front.answer_schema)
    return judgments.check_evidence(parsed, PASSAGE, Judge())


@pytest.mark.parametrize("name", ODD)
def test_an_odd_answer_has_a_status_and_no_grade(name):
    status, detail, response = ODD[name]
    parsed = read(response)
    assert (parsed.status, parsed.value) == (status, {})
    assert detail in parsed.detail


@pytest.mark.parametrize(
    "content", ["null", '{"choices": []}', '{"choices": [{}]}', '{"choices": [{"message": null}]}', "[]"]
)
def test_what_is_no_completion_never_reaches_the_ledger(content):
    with pytest.raises(ValueError, match=r"no (choices|message)"):
        llms.completion(json.loads(content))


@pytest.mark.parametrize(
    ("content", "grade"),
    [
        ('{"evidence": "", "grade": 0}', 0),
        ('```json\n{"evidence": "the cat MEOWS", "grade": 3}\n```', 3),
        ('{"evidence": "“The cat  meows…”", "grade": 2}', 2),
        ('{"evidence": "a paraphrase", "grade": 1}', 1),
        ("<think>{nothing}</think>".replace("{nothing}", "hm") + '{"grade": 0, "evidence": ""}', 0),
    ],
)
def test_a_sound_answer_is_taken(content, grade):
    parsed = read(completion(content))
    assert (parsed.status, parsed.detail, parsed.value["grade"]) == ("ok", "", grade)


@pytest.mark.parametrize("number", [-1, 4, 10**12])
def test_a_grade_is_from_0_to_3_whatever_an_own_schema_allows(number):
    schema = {"properties": {"evidence": {"type": "string"}, "grade": {"type": "integer"}}}
    answer = json.loads(completion(json.dumps({"evidence": "the cat", "grade": number})))
    parsed = judgments.check_evidence(prompts.read_answer(answer, schema), PASSAGE, Judge())
    assert (parsed.status, parsed.value) == ("unparsable", {})


def test_no_answer_is_missing_and_failed():
    parsed = judgments.check_evidence(prompts.read_answer(None, {}, "HTTP 500"), PASSAGE, Judge())
    assert parsed == prompts.Parsed("missing", "HTTP 500", {})
    assert judgments.verdict(None, Judge()) == "failed"


@pytest.mark.parametrize(
    "usage", [None, "many", [], {}, {"prompt_tokens": "3"}, {"prompt_tokens": 1 << 40}, {"prompt_tokens": 1.5}]
)
def test_odd_usage_is_no_count(usage):
    parsed = prompts.Parsed("ok", "", {})
    assert prompts.answered(parsed, "k", "m", PROMPT, {"usage": usage})["prompt_tokens"] is None
