"""Have the generator write negatives for the queries that judging left short. They are judged like all others, unless
a check finds a fault first: `reason` of records.SYNTHETIC names it, and nobody pays for judging such a passage.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from miner import prompts, shares, synthetic_checks
from miner.answers import odd_violations
from miner.config import Endpoint, Generator
from miner.config.llm import Checks
from miner.ledger import Request
from miner.llms import Ask, Check, form_check, request
from miner.records import content_id, fold

Array = np.ndarray[Any, Any]
Row = dict[str, Any]


@dataclass(frozen=True)
class Demand:
    """One synthetic negative wanted: a query that is short, its positive, and the facet to change.

    prompt: in place of that of the stage. near_miss: a mined passage that is judged irrelevant, "" where the prompt
    shows none. words: the length that the passage should have; 0: that of the source. turn: how many demands before
    it ask for the very same; the seed tells them apart.
    """

    query_id: str
    query: str
    positive_id: str
    positive: str
    facet: str
    prompt: prompts.Prompt | None = None
    near_miss_id: str = ""
    near_miss: str = ""
    words: int = 0
    k: int = 1
    turn: int = 0

    def source(self, generator: Generator) -> str:
        """The passage that is rewritten, as far as it is shown."""
        return (self.near_miss or self.positive)[: generator.max_chars]


class Near(NamedTuple):
    """What a query has already. positives, mined: texts; the mined ones are those of its pool, with `scores`."""

    positives: Sequence[str]
    mined: Sequence[str]
    scores: Sequence[float]


def wanted(short: int, negatives: int, generator: Generator) -> int:
    """Synthetic negatives to write for a query that lacks `short` of `negatives`: capped by max_share."""
    return max(0, min(short, int(generator.max_share * negatives)))


# ---------------------------------------------------------------- what is asked for


def facets(query_hash: int, count: int, generator: Generator) -> list[str]:
    """Facets in turn, starting where the query's hash says, so that all are used alike over the queries."""
    start = query_hash % len(generator.facets)
    return [generator.facets[(start + i) % len(generator.facets)] for i in range(count)]


def in_turn(demands: Iterable[Demand]) -> Iterator[Demand]:
    """The demands with `turn` filled in; those of a query are neighbours."""
    query_id, met = "", Counter[tuple[str, ...]]()
    for demand in demands:
        if demand.query_id != query_id:
            query_id, met = demand.query_id, Counter()
        version = demand.prompt.version if demand.prompt else ""
        same = (version, demand.facet, demand.near_miss_id, str(demand.words), str(demand.k))
        yield replace(demand, turn=met[same])
        met[same] += 1


def requests(
    demands: Callable[[], Iterator[Demand]], prompt: prompts.Prompt, endpoint: Endpoint, generator: Generator
) -> Iterator[Request]:
    """What is asked for each demand, in order: generator.samples requests."""
    return (
        _request(demand, prompt, endpoint, generator, sample)
        for demand in demands()
        for sample in range(generator.samples)
    )


def _request(
    demand: Demand, prompt: prompts.Prompt, endpoint: Endpoint, generator: Generator, sample: int = 0
) -> Request:
    prompt = demand.prompt or prompt
    ahead = demand.turn * generator.samples + sample
    if ahead:
        sampling = {**prompt.front.sampling, "seed": prompt.front.sampling.get("seed", 0) + ahead}
        prompt = replace(prompt, front=prompt.front.model_copy(update={"sampling": sampling}))
    about = {"query_id": demand.query_id, "doc_id": demand.positive_id}
    return request(endpoint, prompt, about, **_values(demand, prompt, generator))


def _values(demand: Demand, prompt: prompts.Prompt, generator: Generator) -> dict[str, str]:
    source = demand.source(generator)
    values = {
        "query": demand.query,
        "positive": demand.positive[: generator.max_chars],
        "facet": demand.facet,
        "words": str(_target(demand, source)),
        "k": str(demand.k),
        "language": synthetic_checks.language(source) or synthetic_checks.ANY_LANGUAGE,
    }
    if demand.near_miss:
        values["near_miss"] = source
    return prompts.fill(prompt, **values)


def _target(demand: Demand, source: str) -> int:
    return demand.words or max(1, synthetic_checks.word_count(source))


# ---------------------------------------------------------------- what came back


def run(
    demands: Callable[[], Iterator[Demand]],
    prompt: prompts.Prompt,
    endpoint: Endpoint,
    generator: Generator,
    ask: Ask,
) -> list[Row]:
    """generator.samples rows of SYNTHETIC per demand, in order, `score` and `corpus_id` still empty."""
    asked_for = partial(requests, demands, prompt, endpoint, generator)
    met = [demand.prompt or prompt for demand in _first_of_each(demands)]
    each = ((demand, sample) for demand in demands() for sample in range(generator.samples))
    rows = []
    seen: set[tuple[str, str]] = set()
    for (demand, sample), reply in zip(each, ask(asked_for, _any_form(met)), strict=True):
        own = demand.prompt or prompt
        parsed = _read(prompts.read_answer(reply.response, own.front.answer_schema, reply.error), demand)
        rows.append(
            {
                **_written(parsed, demand, sample, reply.request.key, seen, generator),
                **prompts.answered(parsed, reply.request.key, reply.request.body["model"], own, reply.response),
            }
        )
    return rows


def _first_of_each(demands: Callable[[], Iterator[Demand]]) -> Iterator[Demand]:
    """One demand of each prompt: prompts hold dicts and have no hash."""
    versions: set[str] = set()
    for demand in demands():
        version = demand.prompt.version if demand.prompt else ""
        if version not in versions:
            versions.add(version)
            yield demand


def _any_form(asked: Sequence[prompts.Prompt]) -> Check:
    """The form of one of the prompts: all go out in one wave, and an answer does not say whose it is."""
    checks = [form_check(prompt) for prompt in asked]

    def check(response: dict[str, Any]) -> str:
        broken = [found(response) for found in checks]
        return broken[0] if all(broken) else ""

    return check


def _read(parsed: prompts.Parsed, demand: Demand) -> prompts.Parsed:
    """Unparsable too: an empty passage, and violated requirements that are not those asked for."""
    if parsed.status != "ok":
        return parsed
    value = parsed.value
    if not value.get("passage", "").strip():
        return prompts.Parsed("unparsable", "empty passage", {})
    odd = odd_violations(value, demand.k) if {"requirements", "violated"} <= value.keys() else ""
    return prompts.Parsed("unparsable", odd, value) if odd else parsed


def _written(
    parsed: prompts.Parsed, demand: Demand, sample: int, key: str, seen: set[tuple[str, str]], generator: Generator
) -> Row:
    text, source = parsed.value.get("passage", "").strip(), demand.source(generator)
    gone = text and generator.checks.facet and synthetic_checks.still_there(parsed.value, demand.query, source, text)
    return {
        "query_id": demand.query_id,
        "doc_id": f"syn-{content_id(f'{demand.query_id} {text or key}')}",
        "positive_id": demand.positive_id,
        "near_miss_id": demand.near_miss_id or None,
        "facet": demand.facet,
        "k": demand.k,
        "words": _target(demand, source),
        "sample": sample,
        "change": parsed.value.get("change", ""),
        "requirements": _json(parsed.value.get("requirements")),
        "violated": _json(parsed.value.get("violated")),
        "text": text or None,
        "copy_of": _copy_of(fold(text), demand, seen),
        "corpus_id": None,
        "reason": gone or "",
        "score": None,
    }


def _json(value: Any) -> str | None:
    return None if value is None else json.dumps(value, ensure_ascii=False)


def _copy_of(text: str, demand: Demand, seen: set[tuple[str, str]]) -> str:
    """Whose copy a folded text is, of those that the demand knows; `seen` collects the texts of each query."""
    if text == fold(demand.positive):
        return "positive"
    known = (demand.query_id, text) in seen
    seen.add((demand.query_id, text))
    return "synthetic" if text and known else ""


# ---------------------------------------------------------------- checks


def sound(row: Row) -> bool:
    """Nothing is known against the passage yet: then it is judged."""
    return row["status"] == "ok" and not row["copy_of"] and not row["reason"]


def check_texts(
    rows: list[Row],
    demands: Iterable[Demand],
    prompt: prompts.Prompt,
    near: Callable[[str], Near],
    generator: Generator,
) -> None:
    """Fill `reason` by what the texts alone show. demands: those of the rows, in order; near: of a query_id."""
    before: tuple[str, list[str]] = ("", [])
    each = (demand for demand in demands for _ in range(generator.samples))
    for row, demand in zip(rows, each, strict=True):
        if row["query_id"] != before[0]:
            before = row["query_id"], []
        if sound(row):
            row["reason"] = _fault(row, demand, demand.prompt or prompt, near, before[1], generator)
            if not row["reason"]:
                before[1].append(row["text"])


def _fault(
    row: Row,
    demand: Demand,
    prompt: prompts.Prompt,
    near: Callable[[str], Near],
    before: list[str],
    generator: Generator,
) -> str:
    """The first reason against a passage. before: what was written for the query before it."""
    checks, text, source = generator.checks, row["text"], demand.source(generator)
    code = _values(demand, prompt, generator).get("nonce", "")
    found = synthetic_checks.refusal(text, source) if checks.talk else ""
    found = found or (synthetic_checks.meta_talk(text, demand.query, source, code) if checks.talk else "")
    found = found or (synthetic_checks.script_drift(text, source) if checks.language else "")
    found = found or (synthetic_checks.length(text, row["words"], checks.length) if checks.length else "")
    if not found and checks.facet:
        found = synthetic_checks.facet_unchanged(demand.facet, row["change"], source, text)
    if found or checks.near_duplicate_jaccard is None:
        return found
    return _near_copy(row, source, demand, near(row["query_id"]), before, checks.near_duplicate_jaccard)


def _near_copy(row: Row, source: str, demand: Demand, near: Near, before: list[str], jaccard: float) -> str:
    """A small edit of the positive is near it by design: it stays where the declared change is there to be seen."""
    text = row["text"]
    seen = synthetic_checks.changed(demand.facet, source, text) or synthetic_checks.shown(row["change"], source, text)
    positives = [] if seen and not demand.near_miss else [*near.positives, demand.positive[: len(source)]]
    for name, others in (("positive", positives), ("mined", near.mined), ("synthetic", before)):
        if synthetic_checks.nearest(text, others) >= jaccard:
            return f"near_duplicate_of_{name}"
    return ""


def mark_corpus(
    rows: list[Row],
    near: Callable[[str], Near],
    corpus: Iterable[tuple[str, str]],
    seen: Callable[[set[str]], dict[str, set[str]] | None],
    text_of: Callable[[str], str],
    checks: Checks,
) -> None:
    """Mark what stands in the corpus already, word for word (`copy_of`) or nearly (`reason`), with its `corpus_id`.

    A passage that the query has not met yet takes the place of its exact copy: its `doc_id` is the passage's own, and
    it is checked and judged like the rest. One that mining found stays with what mining made of it.

    corpus: (doc_id, text), read once and not kept; seen: of query ids, the doc ids of their candidates and positives,
    None where no passage may take a place.
    """
    open_ = [row for row in rows if sound(row)]
    written, sources = [row["text"] for row in open_], [near(row["query_id"]).positives for row in open_]
    found = synthetic_checks.corpus_copies(written, sources, corpus, checks.near_duplicate_jaccard)
    met = seen({open_[place]["query_id"] for place, (_, exact) in found.items() if exact})
    for place, (doc_id, exact) in sorted(found.items()):
        row = open_[place]
        row["corpus_id"] = doc_id
        if not exact:
            row["reason"] = "near_duplicate_of_corpus"
        elif met is None or doc_id in met[row["query_id"]]:
            row["copy_of"] = "corpus"
        else:
            met[row["query_id"]].add(doc_id)
            row |= {"doc_id": doc_id, "text": text_of(doc_id)}


def score(rows: list[Row], query_vectors: Callable[[list[str]], Array], encode: Callable[[list[str]], Array]) -> Array:
    """Fill `score`: the cosine of query and written passage, the scale that mined candidates have.

    query_vectors: query ids -> float32[n, d]. Returns float32[n, d], the vectors of the rows that have a text.
    """
    written = [row for row in rows if row["text"]]
    vectors = encode([row["text"] for row in written])
    cosines = (query_vectors([row["query_id"] for row in written]) * vectors).sum(axis=1)
    for row, cosine in zip(written, cosines.tolist(), strict=True):
        row["score"] = cosine
    return vectors


def check_scores(
    rows: list[Row], vectors: Array, near: Callable[[str], Near], known: Callable[[str], Array], checks: Checks
) -> None:
    """Fill `reason` by what the encoder says. vectors: as `score` returns them; known: float32[n, d], those of the
    positives of a query_id and then of its mined passages, in the order of `near`."""
    written = [row for row in rows if row["text"]]
    for row, vector in zip(written, vectors, strict=True):
        if not sound(row):
            continue
        have = near(row["query_id"])
        if checks.too_easy is not None:
            row["reason"] = synthetic_checks.too_easy(row["score"], have.scores, checks.too_easy)
        if not row["reason"] and checks.near_duplicate_cosine is not None:
            close = np.flatnonzero(known(row["query_id"]) @ vector >= checks.near_duplicate_cosine)
            if len(close):
                name = "positive" if close[0] < len(have.positives) else "mined"
                row["reason"] = f"near_duplicate_of_{name}"


def check_job(rows: list[Row], sources: Sequence[str], near: Callable[[str], Near], generator: Generator) -> None:
    """What only all rows together show: openings that come too often; then of the samples of a demand all but one are
    not_chosen. sources: the rewritten passage of each row."""
    open_ = [place for place, row in enumerate(rows) if sound(row)]
    if generator.checks.template is not None:
        texts, given = [rows[i]["text"] for i in open_], [sources[i] for i in open_]
        for i, reason in zip(open_, synthetic_checks.templates(texts, given, generator.checks.template), strict=True):
            rows[i]["reason"] = reason
    if generator.samples > 1:
        _choose(rows, near, generator.samples)


def _choose(rows: list[Row], near: Callable[[str], Near], samples: int) -> None:
    of_query: dict[str, list[list[Row]]] = {}
    for start in range(0, len(rows), samples):
        of_query.setdefault(rows[start]["query_id"], []).append(rows[start : start + samples])
    for query_id, groups in of_query.items():
        open_ = [[row for row in group if sound(row)] for group in groups]
        start_at = shares.draw(0, query_id, "spread")
        picks = shares.spread([[row["score"] for row in group] for group in open_], near(query_id).scores, start_at)
        for group, pick in zip(open_, picks, strict=True):
            for place, row in enumerate(group):
                row["reason"] = "" if place == pick else "not_chosen"
