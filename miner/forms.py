"""The forms of training files: how one row of each is read as an example, and written back after passages were dropped.

Pure: a row is a dict in the order of its columns. What is wrong with the row comes back as troubles, never as an error.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from miner.records import passage_text

Row = dict[str, Any]
Lookup = Callable[[str], str | None]
QUERY, POSITIVE, NEGATIVE = 0, 1, 2
ROLES = ("query", "positive", "negative")
FORMS = (
    "flagembedding",
    "st-triplet",
    "st-ntuple",
    "st-pair",
    "st-list",
    "tevatron-legacy",
    "tevatron",
    "beir",
)
COLUMNS = {"st-triplet", "st-ntuple"}  # every passage has a column of its own
LISTS = {"flagembedding", "st-list", "tevatron-legacy", "tevatron"}  # all negatives of a query stand in one row
BY_ID = {"tevatron", "beir"}  # rows hold ids; the texts stand in a corpus
LABELS = ("label", "labels", "score", "scores")  # what sentence-transformers' trainer takes out before the inputs
FLAG_COLUMNS = {"query", "pos", "neg", "pos_scores", "neg_scores", "prompt", "type", "query_prompt", "passage_prompt"}
FLAG_TYPES = ("normal", "only_1neg", "symmetric_sts", "symmetric_class", "symmetric_clustering")


class Trouble(NamedTuple):
    """One thing wrong with a row. slot counts from 0 in the list of its role; -1: the row itself."""

    code: str
    role: int
    slot: int
    value: Any


@dataclass(slots=True)
class Example:
    """A row of any form. A passage that is not a text is None; scores are as the file holds them, or None.

    ids: of the query, the positives, then the negatives, where the form has ids; else empty.
    """

    query: str | None
    positives: list[str | None] = field(default_factory=list)
    negatives: list[str | None] = field(default_factory=list)
    positive_scores: Any = None
    negative_scores: Any = None
    ids: list[str] = field(default_factory=list)
    troubles: list[Trouble] = field(default_factory=list)

    def texts(self) -> list[tuple[int, int, str]]:
        """(role, slot, text) of the query, the positives and the negatives, those that are texts."""
        sides = ((QUERY, [self.query]), (POSITIVE, self.positives), (NEGATIVE, self.negatives))
        return [(role, slot, text) for role, side in sides for slot, text in enumerate(side) if text is not None]

    def lacks(self, code: str, value: Any, role: int = QUERY, slot: int = -1) -> None:
        self.troubles.append(Trouble(code, role, slot, value))


def detect(row: Row) -> str | None:
    """The form that a row has; None where it is none of them."""
    if "query" in row and ("pos" in row or "neg" in row):
        return "flagembedding"
    if "positive_passages" in row or "negative_passages" in row:
        return "tevatron-legacy"
    if "positive_document_ids" in row or "negative_document_ids" in row:
        return "tevatron"
    names, _ = inputs(row)
    if len(names) < 2 or not isinstance(row[names[0]], str | None):
        return None
    if isinstance(row[names[1]], list) and any(name in row for name in LABELS):
        return "st-list"
    if not isinstance(row[names[1]], str | None):
        return None
    if len(names) == 2:
        return "st-pair"
    return "st-triplet" if len(names) == 3 else "st-ntuple"


def inputs(row: Row) -> tuple[list[str], list[str]]:
    """The columns that are meant as texts, in order, and those that a trainer would take for texts all the same."""
    names = [name for name in row if name not in LABELS]
    named = any(name.startswith("neg") for name in names[2:])
    extra = [
        name
        for place, name in enumerate(names)
        if name in ("id", "idx", "index") or name.endswith("_id") or (place > 1 and named and "neg" not in name)
    ]
    return [name for name in names if name not in extra], extra


def parse(form: str, row: Row, lookup: Lookup | None = None) -> Example:
    """Read a row. lookup: passage id -> text, for the forms that hold ids."""
    if form == "flagembedding":
        return _flag(row)
    if form == "tevatron-legacy":
        return _tevatron_legacy(row)
    if form in BY_ID:
        return _by_id(row, lookup)
    return _columns(form, row)


# ---------------------------------------------------------------- FlagEmbedding


def _flag(row: Row) -> Example:
    found = Example(None)
    found.query = _text(found, row, "query", QUERY, 0)
    found.positives = _list(found, row, "pos", POSITIVE)
    found.negatives = _list(found, row, "neg", NEGATIVE)
    found.positive_scores, found.negative_scores = row.get("pos_scores"), row.get("neg_scores")
    for name in row:
        if name not in FLAG_COLUMNS:
            found.lacks("F07", name)
    kind = row.get("type")
    if kind is not None and kind not in FLAG_TYPES:
        found.lacks("F09", kind)
    return found


def _text(found: Example, row: Row, name: str, role: int, slot: int) -> str | None:
    value = row.get(name)
    if isinstance(value, str):
        return value
    found.lacks("F02" if value is None else "F03", name if value is None else value, role, slot)
    return None


def _list(found: Example, row: Row, name: str, role: int) -> list[str | None]:
    value = row.get(name)
    if isinstance(value, list):
        return [_item(found, item, role, slot) for slot, item in enumerate(value)]
    if value is None and role == NEGATIVE:
        return []  # no negatives, which is told as such
    found.lacks("F02" if value is None else "F03", name if value is None else value)
    return []


def _item(found: Example, item: Any, role: int, slot: int) -> str | None:
    if isinstance(item, str):
        return item
    found.lacks("F03", item, role, slot)
    return None


# ---------------------------------------------------------------- sentence-transformers


def _columns(form: str, row: Row) -> Example:
    """As the trainer reads: by the order of the columns, not by their names."""
    names, extra = inputs(row)
    found = Example(None)
    for name in extra:
        found.lacks("F07", name)
    if len(names) < 2:
        found.lacks("F02", "a second column of texts")
        return found
    if names[0].startswith(("pos", "neg")) or names[1].startswith("neg"):
        found.lacks("F13", ", ".join(names))
    found.query = _text(found, row, names[0], QUERY, 0)
    if form == "st-list":
        _labelled_list(found, row, names[1])
    elif form == "st-pair":
        _labelled_pair(found, row, names[1])
    else:
        found.positives = [_text(found, row, names[1], POSITIVE, 0)]
        found.negatives = [_text(found, row, name, NEGATIVE, slot) for slot, name in enumerate(names[2:])]
        scores = row.get("scores")
        if isinstance(scores, list):
            found.positive_scores, found.negative_scores = scores[:1], scores[1:]
    return found


def _labelled_pair(found: Example, row: Row, name: str) -> None:
    negative = row.get("label", 1) in (0, "0")
    if "label" in row and row["label"] not in (0, 1):
        found.lacks("F11", row["label"], POSITIVE, 0)
    side = found.negatives if negative else found.positives
    side.append(_text(found, row, name, NEGATIVE if negative else POSITIVE, 0))


def _labelled_list(found: Example, row: Row, name: str) -> None:
    texts, roles = row.get(name), list_roles(row, name)
    if not isinstance(texts, list):
        found.lacks("F02" if texts is None else "F03", name if texts is None else texts)
        return
    labels, scores = row.get("labels"), row.get("scores")
    if labels is not None and (not isinstance(labels, list) or len(labels) != len(texts)):
        found.lacks("F12", f"{len(texts)} texts, {len(labels) if isinstance(labels, list) else 'no'} labels")
    ordered: tuple[list[Any], list[Any]] = ([], [])
    for place, (text, role) in enumerate(zip(texts, roles, strict=True)):
        side = found.positives if role == POSITIVE else found.negatives
        if isinstance(labels, list) and place < len(labels) and labels[place] not in (0, 1):
            found.lacks("F11", labels[place], role, len(side))
        if isinstance(scores, list) and place < len(scores):
            ordered[role == NEGATIVE].append(scores[place])
        side.append(_item(found, text, role, len(side)))
    if isinstance(scores, list):
        found.positive_scores, found.negative_scores = ordered


def list_roles(row: Row, name: str) -> list[int]:
    """The role of each text of a labelled list: by `labels`; with scores alone the first is the positive."""
    texts = row.get(name)
    count = len(texts) if isinstance(texts, list) else 0
    labels = row.get("labels")
    if not isinstance(labels, list):
        return [POSITIVE if place == 0 else NEGATIVE for place in range(count)]
    given = [NEGATIVE if label in (0, "0") else POSITIVE for label in labels[:count]]
    return given + [NEGATIVE] * (count - len(given))


# ---------------------------------------------------------------- Tevatron and BEIR


def _listed(found: Example, row: Row, name: str, role: int) -> list[Any]:
    """The list under a key; where there is none it is a defect, except that negatives may lack."""
    value = row.get(name)
    if isinstance(value, list):
        return value
    if value is not None or role != NEGATIVE:
        found.lacks("F02" if value is None else "F03", name if value is None else value)
    return []


def _tevatron_legacy(row: Row) -> Example:
    found = Example(None, ids=[str(row.get("query_id", ""))])
    found.query = _text(found, row, "query", QUERY, 0)
    for name, role, side in (
        ("positive_passages", POSITIVE, found.positives),
        ("negative_passages", NEGATIVE, found.negatives),
    ):
        for slot, passage in enumerate(_listed(found, row, name, role)):
            side.append(_passage(found, passage, role, slot))
    return found


def _passage(found: Example, passage: Any, role: int, slot: int) -> str | None:
    given = passage if isinstance(passage, dict) else {}
    found.ids.append(str(given.get("docid", "")))
    title, text = given.get("title") or "", given.get("text")
    if not isinstance(text, str) or not isinstance(title, str):
        found.lacks("F02" if isinstance(passage, dict) and text is None else "F03", passage, role, slot)
        return None
    return passage_text(title, text)


def _by_id(row: Row, lookup: Lookup | None) -> Example:
    found = Example(None, ids=[str(row.get("query_id", ""))])
    found.query = _text(found, row, "query_text", QUERY, 0)
    for name, role, side in (
        ("positive_document_ids", POSITIVE, found.positives),
        ("negative_document_ids", NEGATIVE, found.negatives),
    ):
        for slot, doc_id in enumerate(_listed(found, row, name, role)):
            found.ids.append(str(doc_id))
            text = lookup(str(doc_id)) if lookup else None
            if text is None:
                found.lacks("F14", doc_id, role, slot)
            side.append(text)
    return found


# ---------------------------------------------------------------- writing back


@dataclass(slots=True)
class Plan:
    """What becomes of a row: passages left out, texts mended, and marks of what else is put right."""

    dropped: set[tuple[int, int]] = field(default_factory=set)
    mended: set[tuple[int, int]] = field(default_factory=set)
    marks: set[str] = field(default_factory=set)


def rebuild(form: str, row: Row, plan: Plan, mend: Callable[[str], str]) -> Row | None:
    """The row after the plan; None where it cannot stand: a positive or the last negative is lost. Never pads."""
    row = dict(row)
    if form == "flagembedding":
        return _rebuild_flag(row, plan, mend)
    if form == "tevatron-legacy" or form in BY_ID:
        return _rebuild_tevatron(form, row, plan, mend)
    return _rebuild_columns(form, row, plan, mend)


def _kept(values: Any, role: int, plan: Plan, mend: Callable[[str], str] | None = None) -> list[Any]:
    return [
        mend(value) if mend and (role, slot) in plan.mended else value
        for slot, value in enumerate(values)
        if (role, slot) not in plan.dropped
    ]


def _rebuild_flag(row: Row, plan: Plan, mend: Callable[[str], str]) -> Row | None:
    if (QUERY, 0) in plan.mended:
        row["query"] = mend(row["query"])
    for name, role in (("pos", POSITIVE), ("neg", NEGATIVE)):
        row[name] = _kept(row.get(name) or [], role, plan, mend)
        if isinstance(row.get(f"{name}_scores"), list):
            row[f"{name}_scores"] = _kept(row[f"{name}_scores"], role, plan)
    if "prompt" in plan.marks:
        row["prompt"] = ""
    if "columns" in plan.marks:
        row = {name: value for name, value in row.items() if name in FLAG_COLUMNS}
    if "floats" in plan.marks:
        for name in ("pos_scores", "neg_scores"):
            row[name] = [float(score) for score in row.get(name) or []]
    return row if row["pos"] and row["neg"] else None


def _rebuild_columns(form: str, row: Row, plan: Plan, mend: Callable[[str], str]) -> Row | None:
    names, extra = inputs(row)
    if form != "st-list" and plan.dropped:
        return None
    if (QUERY, 0) in plan.mended:
        row[names[0]] = mend(row[names[0]])
    if form == "st-list":
        if not _rebuild_list(row, names[1], plan, mend):
            return None
    else:
        for place, name in enumerate(names[1:]):
            role = POSITIVE if place == 0 else NEGATIVE
            marked = {(role, max(0, place - 1)), (NEGATIVE, 0)} if form == "st-pair" else {(role, max(0, place - 1))}
            row[name] = mend(row[name]) if marked & plan.mended else row[name]
    return {name: value for name, value in row.items() if name not in extra or "columns" not in plan.marks}


def _rebuild_list(row: Row, name: str, plan: Plan, mend: Callable[[str], str]) -> bool:
    keep, texts, seen = [], [], {POSITIVE: 0, NEGATIVE: 0}
    roles = list_roles(row, name)
    for place, (text, role) in enumerate(zip(row[name], roles, strict=True)):
        at = (role, seen[role])
        seen[role] += 1
        if at not in plan.dropped:
            keep.append(place)
            texts.append(mend(text) if at in plan.mended else text)
    row[name] = texts
    for labels in ("labels", "scores"):
        if isinstance(row.get(labels), list):
            row[labels] = [row[labels][place] for place in keep]
    return {POSITIVE, NEGATIVE} <= {roles[place] for place in keep}


def _rebuild_tevatron(form: str, row: Row, plan: Plan, mend: Callable[[str], str]) -> Row | None:
    """Texts behind ids are not this file's to mend: such passages were put among the dropped before."""
    names = ("passages" if form == "tevatron-legacy" else "document_ids").split()
    for prefix, role in (("positive", POSITIVE), ("negative", NEGATIVE)):
        name = f"{prefix}_{names[0]}"
        row[name] = _kept(row.get(name) or [], role, plan, lambda one: _mended(one, mend))
    query = "query" if form == "tevatron-legacy" else "query_text"
    if (QUERY, 0) in plan.mended:
        row[query] = mend(row[query])
    left = bool(row[f"negative_{names[0]}"]) or form == "beir"
    return row if row[f"positive_{names[0]}"] and left else None


def _mended(passage: Any, mend: Callable[[str], str]) -> Any:
    if not isinstance(passage, dict):
        return passage
    return {k: mend(v) if k in ("title", "text") and isinstance(v, str) else v for k, v in passage.items()}
