"""What comes back from an LLM, read into values: a JSON object under its schema, a Yes or No by its probability, a list
with one entry a passage. Pure. Only status `ok` carries a value; nothing unreadable becomes a grade.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from miner.records import fold

Status = Literal["ok", "refused", "truncated", "unparsable", "missing"]
Response = dict[str, Any]

TYPES: dict[str, tuple[type, ...]] = {"string": (str,), "integer": (int,), "number": (int, float), "boolean": (bool,)}
THOUGHT = re.compile(r"\A<think>.*?</think>\s*", re.DOTALL)
CODE_FENCE = re.compile(r"```(?:json)?\s*(.*?)\s*```", re.DOTALL)
# The spellings of a label that are one token in the vocabularies of the common models.
YES_NO = {"Yes": ("Yes", " Yes", "yes", " yes", "YES", " YES"), "No": ("No", " No", "no", " no", "NO", " NO")}
# The grades at the two ends: whatever bounds a job sets, Yes is relevant and No is irrelevant.
YES_NO_GRADES = {"Yes": 3, "No": 0}
# How a passage stands to the known positive, as a grade.
RELATIONS = {"better": 3, "equal": 2, "worse": 1, "unrelated": 0}


@dataclass(frozen=True)
class Parsed:
    status: Status
    detail: str
    value: dict[str, Any]


def unparsable(detail: str) -> Parsed:
    return Parsed("unparsable", detail, {})


def read_answer(response: Response | None, schema: dict[str, Any], error: str = "") -> Parsed:
    """Status and content of a chat completion that is one JSON object under `schema`."""
    stopped = _stopped(response, error)
    if stopped or response is None:
        return stopped or Parsed("missing", error, {})
    choice = _choice(response)
    if choice.get("finish_reason") == "length":
        return Parsed("truncated", "the answer met max_tokens", {})
    content = _content(choice)
    value = _json_object(content) if isinstance(content, str) else None
    if value is None:
        return unparsable("no JSON object")
    wrong = _breaks(value, schema)
    return unparsable(wrong) if wrong else Parsed("ok", "", value)


def broken_form(response: Response, schema: dict[str, Any]) -> str:
    """What breaks the form of an answer, so that the model can be asked to mend it; "" for a sound one, for one that
    was refused or cut, and where the prompt asks for no form."""
    parsed = read_answer(response, schema) if schema else None
    return parsed.detail if parsed is not None and parsed.status == "unparsable" else ""


def _choice(response: Response) -> dict[str, Any]:
    choice: dict[str, Any] = (response.get("choices") or [{}])[0]
    return choice


def _content(choice: dict[str, Any]) -> Any:
    return (choice.get("message") or {}).get("content")


def _stopped(response: Response | None, error: str) -> Parsed | None:
    """`missing` or `refused`, where it is one of them."""
    if response is None:
        return Parsed("missing", error, {})
    choice = _choice(response)
    refusal = (choice.get("message") or {}).get("refusal")
    if refusal or choice.get("finish_reason") == "content_filter":
        return Parsed("refused", str(refusal or "content_filter"), {})
    return None


def _json_object(content: str) -> dict[str, Any] | None:
    """The JSON object that the whole text is; a thought before it and one code fence around it are taken off.

    An object inside prose may be a quotation from the passage, and of two equal keys one may be: neither is guessed.
    """
    body = THOUGHT.sub("", content.strip())
    fenced = CODE_FENCE.fullmatch(body)
    try:
        value = json.loads(fenced[1] if fenced else body, object_pairs_hook=_once)
        json.dumps(value, ensure_ascii=False).encode()  # a lone surrogate fits in no file
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key twice")
    return found


# ---------------------------------------------------------------- schemas


def kinds(schema: dict[str, Any]) -> dict[str, str]:
    """Property name -> type of an object's schema, as far as it names any."""
    properties = schema.get("properties")
    rules = properties if isinstance(properties, dict) else {}
    return {name: str(rule.get("type") if isinstance(rule, dict) else "?") for name, rule in rules.items()}


def odd_rule(schema: dict[str, Any], depth: int = 2) -> str:
    """What the readers here cannot check in an object's schema, or "".

    They check plain values, lists of plain values, and lists of flat objects. depth: how many objects deep.
    """
    for name, kind in kinds(schema).items():
        if kind == "array" and depth > 1:
            items = schema["properties"][name].get("items")
            inner = items.get("type") if isinstance(items, dict) else None
            if inner == "object":
                wrong = odd_rule(items, depth - 1)
            else:
                wrong = "" if inner in TYPES else f"{name} is of type array without the type of its items"
            if wrong:
                return wrong
        elif kind not in TYPES:
            return f"{name} is of type {kind}; known are {', '.join(TYPES)}, and array at the top"
    return ""


def _breaks(value: dict[str, Any], schema: dict[str, Any]) -> str:
    """What is wrong with an object under its schema, or ""."""
    for name, rule in schema.get("properties", {}).items():
        if name not in value:
            return f"no {name}"
        wrong = _breaks_rule(name, value[name], rule)
        if wrong:
            return wrong
    foreign = sorted(set(value) - set(schema.get("properties", {})))
    if foreign and schema.get("additionalProperties") is False:
        return f"a key {foreign[0]!r} that the schema does not have"
    return ""


def _breaks_rule(name: str, item: Any, rule: dict[str, Any]) -> str:
    """Booleans are not numbers here. The length of a list is its reader's matter."""
    if rule["type"] == "array":
        if not isinstance(item, list):
            return f"{name} is not of type array"
        return next((wrong for entry in item if (wrong := _breaks_rule(name, entry, rule["items"]))), "")
    if rule["type"] == "object":
        return _breaks(item, rule) if isinstance(item, dict) else f"{name} holds what is no object"
    kind = TYPES[rule["type"]]
    if not isinstance(item, kind) or (isinstance(item, bool) and bool not in kind):
        return f"{name} is not of type {rule['type']}"
    if "enum" in rule and item not in rule["enum"]:
        return f"{name} is {item!r}, not one of {rule['enum']}"
    return ""


# ---------------------------------------------------------------- Yes or No


def label_probabilities(response: Response, labels: Mapping[str, tuple[str, ...]]) -> dict[str, float] | None:
    """Probability of each label by the first token: the sum over its spellings, renormalised over the labels.

    A server that masks tokens still reports raw log probabilities, so the renormalisation is what makes them one
    scale. None where the response has no log probabilities or no spelling of any label among them.
    """
    sums = dict.fromkeys(labels, 0.0)
    for token, probability in _first_tokens(response):
        for label, spellings in labels.items():
            sums[label] += probability if token in spellings else 0.0
    total = math.fsum(sums.values())
    return {label: value / total for label, value in sums.items()} if total > 0 else None


def _first_tokens(response: Response) -> list[tuple[str, float]]:
    """(token, probability) of what could have stood first; the token that does stand there is among them."""
    content = (_choice(response).get("logprobs") or {}).get("content") or []
    first = content[0] if isinstance(content, list) and content and isinstance(content[0], dict) else {}
    top = first.get("top_logprobs") or []
    entries = [entry for entry in top if isinstance(entry, dict)] if isinstance(top, list) else []
    if first.get("token") not in [entry.get("token") for entry in entries]:
        entries.append(first)
    found = []
    for entry in entries:
        value = entry.get("logprob")
        if isinstance(value, int | float) and not isinstance(value, bool) and not math.isnan(value):
            found.append((str(entry.get("token")), math.exp(min(float(value), 0.0))))
    return found


def read_yes_no(response: Response | None, error: str = "") -> Parsed:
    """{"probability": of Yes, "grade": 3 for Yes or 0 for No, "evidence": ""} of an answer of one word.

    Such an answer ends at max_tokens, so its length says nothing. Without log probabilities the word itself counts,
    with probability 1 or 0, and `detail` says so.
    """
    stopped = _stopped(response, error)
    if stopped or response is None:
        return stopped or Parsed("missing", error, {})
    detail, found = "", label_probabilities(response, YES_NO)
    if found is None:
        content = _content(_choice(response))
        word = content.strip().strip("\"'.*") if isinstance(content, str) else ""
        label = next((label for label, spellings in YES_NO.items() if word in spellings), None)
        if label is None:
            return unparsable("neither Yes nor No")
        detail, found = "no log probabilities; by the word alone", {"Yes": float(label == "Yes")}
    grade = YES_NO_GRADES["Yes" if found["Yes"] >= 0.5 else "No"]
    return Parsed("ok", detail, {"probability": found["Yes"], "grade": grade, "evidence": ""})


# ---------------------------------------------------------------- many passages in one answer


def read_packed(
    response: Response | None, schema: dict[str, Any], ids: Sequence[str], error: str = ""
) -> dict[str, Parsed]:
    """One Parsed per id, in order: {"evidence", "grade", …} of its entry in `answers`.

    An id without an entry, or with two, is unparsable. An entry for an id that was not asked makes all of them
    unparsable: who counts from 0 where the passages are numbered from 1 has graded the wrong ones.
    """
    whole = read_answer(response, schema, error)
    if whole.status != "ok":
        return dict.fromkeys(ids, whole)
    entries = [(str(entry["id"]), entry) for entry in whole.value["answers"]]
    foreign = sorted({name for name, _ in entries} - set(ids))
    if foreign:
        return dict.fromkeys(ids, unparsable(f"an entry for passage {foreign[0]!r}, which was not asked"))
    times = Counter(name for name, _ in entries)
    by_id = dict(entries)
    return {name: _entry(by_id, times[name], name) for name in ids}


def _entry(by_id: dict[str, dict[str, Any]], times: int, name: str) -> Parsed:
    if times != 1:
        return unparsable(f"no entry for passage {name}" if not times else f"{times} entries for passage {name}")
    return Parsed("ok", "", {key: value for key, value in by_id[name].items() if key != "id"})


def read_listwise(
    response: Response | None, schema: dict[str, Any], ids: Sequence[str], error: str = ""
) -> dict[str, Parsed]:
    """As read_packed, for entries with a `relation` to the reference; `grade` is what RELATIONS makes of it.

    The comparison with the known positive follows RLHN (arXiv 2505.16967).
    """
    return {name: _graded(parsed) for name, parsed in read_packed(response, schema, ids, error).items()}


def _graded(parsed: Parsed) -> Parsed:
    if parsed.status != "ok":
        return parsed
    grade = RELATIONS.get(parsed.value["relation"])
    if grade is None:
        return unparsable(f"relation is {parsed.value['relation']!r}, not one of {list(RELATIONS)}")
    return Parsed("ok", "", {**parsed.value, "grade": grade})


# ---------------------------------------------------------------- checks of a sound answer


def quotes(evidence: str, passage: str) -> bool:
    """Does the quote occur in the passage, case and white space folded, quote marks around it ignored?"""
    quote = fold(evidence).strip("\"'“”…. ")
    return bool(quote) and quote in fold(passage)


def odd_violations(value: dict[str, Any], count: int) -> str:
    """What is wrong with `requirements` and `violated` (numbers from 1) where exactly `count` were to be violated."""
    requirements, violated = value["requirements"], value["violated"]
    if len(set(violated)) != len(violated) or not _within(violated, len(requirements)):
        return f"violated {violated} does not name requirements from 1 to {len(requirements)}, each once"
    if len(violated) != min(count, len(requirements)):
        return f"{len(violated)} of {len(requirements)} requirements violated, not {count}"
    return ""


def _within(numbers: Iterable[int], highest: int) -> bool:
    return all(1 <= number <= highest for number in numbers)
