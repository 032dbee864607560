"""Made-up payloads of a report, of any size: the same seed gives the same payload."""

from __future__ import annotations

import random
from typing import Any

TOPICS = [
    "heat pump",
    "sourdough starter",
    "graph database",
    "tax return",
    "bicycle brake",
    "tide table",
    "lens filter",
]
ACTS = ["choose", "repair", "measure", "replace", "clean", "store", "compare"]
ENDS = ["before winter", "at home", "without tools", "for beginners", "on a budget", "step by step", "in one day"]
SAID = "the a of and to in that it with for on as by from at which can should first then often only a good bad small"
THINGS = "valve sensor flour query index form pad pressure filter glass current loop surface level answer value table"
WORDS = f"{SAID} {THINGS}".split()
REASONS = ["", "margin_relative", "judged_relevant", "surplus", "rank_min", "judge_unparsable", "near_positive"]
SVG = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 400 180"><g fill="currentColor" opacity="0.7">'
    + "".join(
        f'<rect x="{20 + 18 * i}" y="{150 - h}" width="14" height="{h}"/>' for i, h in enumerate(range(10, 130, 6))
    )
    + '</g><line x1="16" y1="150" x2="390" y2="150" stroke="currentColor"/>'
    '<text x="200" y="172" font-size="12" text-anchor="middle" fill="currentColor">score</text></svg>'
)


def job(queries: int = 40, each: int = 12, seed: int = 0, passages: int = 0, words: int = 45) -> dict[str, Any]:
    """A payload of kind "job". each: candidates of a query; words: of a passage; passages: how many there are to
    choose from, by default a third of the candidates."""
    draw = random.Random(seed)
    total = queries * each
    known = passages or max(20, total // 3)
    browser = _browser(draw, queries, each, known, words)
    kept = sum(browser["candidates"]["kept"])
    return {
        "kind": "job",
        "title": "faq: mined with bge-small, judged by a local model",
        "miner": "0.1.0",
        "warnings": [
            "canaries: the judge missed 2 of 20; its verdicts may be too strict",
            "3 queries have no positive",
        ],
        "facts": [
            ["queries", queries],
            ["queries exported", queries - 3],
            ["candidates", total],
            ["hard negatives", kept],
            ["encoder", "BAAI/bge-small-en-v1.5, int8"],
            ["cost", 1.25],
        ],
        "flow": _flow(browser),
        "sections": _sections(draw),
        "browser": browser,
        "comparison": None,
    }


def repeated(payload: dict[str, Any], times: int) -> dict[str, Any]:
    """The same queries and candidates again and again, with other query ids: a large payload in little time."""
    queries, columns = payload["browser"]["queries"], payload["browser"]["candidates"]
    size = len(queries["id"])
    many = {name: values * times for name, values in queries.items()}
    many["id"] = [f"q{n:05}" for n in range(size * times)]
    rows = {name: values * times for name, values in columns.items()}
    rows["query"] = [query + size * turn for turn in range(times) for query in columns["query"]]
    return {**payload, "browser": {**payload["browser"], "queries": many, "candidates": rows}}


def _browser(draw: random.Random, queries: int, each: int, known: int, words: int) -> dict[str, Any]:
    texts = [_sentence(draw, words) for _ in range(known)]
    columns: dict[str, list[Any]] = {name: [] for name in COLUMNS}
    positives = []
    for query in range(queries):
        positives.append([[draw.randrange(known), 1, round(draw.uniform(0.75, 0.9), 4), round(draw.uniform(5, 9), 3)]])
        _candidates(draw, columns, query, each, texts)
    return {
        "note": "",
        "scorers": {"score": "cosine of bge-small-en-v1.5", "teacher_score": "bge-reranker-base"},
        "words": {
            "source": ["", "mined", "synthetic"],
            "reason": REASONS,
            "retriever": ["", "dense", "bm25"],
            "band": [""],
            "status": ["", "ok", "unparsable"],
            "verdict": ["", "irrelevant", "relevant"],
            "rung": ["", "small", "large"],
        },
        "queries": {
            "id": [f"q{n:05}" for n in range(queries)],
            "text": [f"How to {draw.choice(ACTS)} a {draw.choice(TOPICS)} {draw.choice(ENDS)}" for _ in range(queries)],
            "outcome": ["too_few_negatives" if n % 14 == 13 else "exported" for n in range(queries)],
            "positives": positives,
        },
        "passages": {"id": [f"d{n:06}" for n in range(known)], "text": texts},
        "candidates": columns,
        "answers": [ANSWER],
        "strings": [
            "You decide whether a passage answers a query.",
            "=== QUERY ===\n",
            "\n=== PASSAGE ===\n",
            "\n=== END ===",
        ],
    }


ANSWER = {
    "prompt": "judge/graded",
    "version": "ab12cd34",
    "model": "local-judge",
    "text": '{"evidence": "", "grade": 0}',
    "tokens": [412, 14],
    "messages": [{"role": "system", "parts": [0]}, {"role": "user", "parts": [1, ["q", 0], 2, ["p", 0], 3]}],
}
ORIGIN = "query passage source reason kept slot rank score near teacher found band"
COLUMNS = f"{ORIGIN} grade status verdict rung evidence detail answer".split()


def _candidates(draw: random.Random, columns: dict[str, list[Any]], query: int, each: int, texts: list[str]) -> None:
    rows = sorted((_candidate(draw, query, texts) for _ in range(each)), key=lambda row: -row["kept"])
    for slot, row in enumerate(rows, 1):
        row["slot"] = slot if row["kept"] else 0
        for name in columns:
            columns[name].append(row[name])


def _candidate(draw: random.Random, query: int, texts: list[str]) -> dict[str, Any]:
    passage, reason = draw.randrange(len(texts)), draw.choice([0, 0, 0, 1, 2, 3, 4, 5, 6])
    judged = reason in (0, 2, 3)
    grade = draw.choice([2, 3]) if reason == 2 else draw.choice([0, 0, 1]) if judged else None
    score, rank = round(draw.uniform(0.3, 0.85), 4), draw.randrange(1, 60)
    words = texts[passage].split()
    found = [[1, rank, score]] + ([[2, rank + 3, round(9 * score, 3)]] if draw.random() < 0.4 else [])
    return {
        "query": query,
        "passage": passage,
        "source": 2 if draw.random() < 0.04 else 1,
        "reason": reason,
        "kept": int(reason == 0),
        "rank": rank,
        "score": score,
        "near": round(0.8 * score, 4) if query % 2 else None,
        "teacher": round(draw.uniform(-4, 7), 3) if draw.random() < 0.8 else None,
        "grade": grade,
        "status": 1 if judged else 2 if reason == 5 else 0,
        "verdict": 0 if grade is None else 2 if grade >= 2 else 1,
        "rung": draw.choice([1, 1, 2]) if judged else 0,
        "band": 0,
        "found": found,
        "evidence": " ".join(words[3:9]).upper() if grade and grade >= 2 else None,
        "detail": "no JSON object" if reason == 5 else None,
        "answer": 0 if judged or reason == 5 else -1,
    }


def _sentence(draw: random.Random, words: int) -> str:
    parts = [f"This note says how to {draw.choice(ACTS)} a {draw.choice(TOPICS)} {draw.choice(ENDS)}."]
    left = max(0, words - len(parts[0].split()))
    while left > 0:
        size = draw.randrange(6, 15)
        parts.append(" ".join(draw.choice(WORDS) for _ in range(size)).capitalize() + ".")
        left -= size
    return " ".join(parts)


def _flow(browser: dict[str, Any]) -> list[dict[str, Any]]:
    columns = browser["candidates"]
    by_reason = {name: columns["reason"].count(at) for at, name in enumerate(REASONS)}
    early = [name for name in REASONS if name in ("margin_relative", "rank_min", "near_positive")]
    pool = len(columns["reason"]) - sum(by_reason[name] for name in early)
    edges = [("candidates", "pool", pool, "kept")]
    edges += [("candidates", name, by_reason[name], "dropped") for name in early]
    late = [name for name in REASONS if name and name not in early]
    edges += [
        ("pool", "exported", by_reason[""], "kept"),
        *(("pool", name, by_reason[name], "dropped") for name in late),
    ]
    return [dict(zip(("from", "to", "count", "kind"), edge, strict=True)) for edge in edges]


def _sections(draw: random.Random) -> list[dict[str, Any]]:
    rows = [[f"{low / 10:.1f} to {low / 10 + 0.1:.1f}", draw.randrange(900), draw.random()] for low in range(10)]
    table = {"title": "By score", "columns": ["score", "candidates", "share kept"], "rows": rows, "note": ""}
    agreement = [["kappa", 0.71, 0.62, 0.79], ["weighted kappa", 0.8, 0.72, 0.86], ["accuracy", 0.88, None, None]]
    columns = ["measure", "value", "low", "high"]
    return [
        {
            "id": "scores",
            "title": "Scores",
            "note": "Cosines of the candidates, and what became of them.",
            "plots": [
                {"title": title, "svg": SVG, "alt": "bars"} for title in ("Candidates by score", "Kept by score")
            ],
            "tables": [table],
        },
        {
            "id": "agreement",
            "title": "Judge agreement",
            "note": "",
            "plots": [],
            "tables": [{"title": "", "columns": columns, "rows": agreement, "note": "95% intervals over queries."}],
        },
    ]


def comparison(queries: int = 30, seed: int = 0) -> dict[str, Any]:
    draw = random.Random(seed)
    changed = []
    for number in range(queries):
        kinds = {
            "gained": [_moved(draw, "judged_relevant", "kept") for _ in range(draw.randrange(3))],
            "lost": [_moved(draw, "kept", "margin_relative") for _ in range(1 + draw.randrange(2))],
            "moved": [_moved(draw, "kept", "kept") for _ in range(draw.randrange(2))],
        }
        text = f"How to {draw.choice(ACTS)} a {draw.choice(TOPICS)}"
        changed.append({"id": f"q{number:05}", "text": text, **kinds})
    return {
        "kind": "comparison",
        "title": "faq.yaml and faq-strict.yaml",
        "miner": "0.1.0",
        "warnings": [],
        "facts": [["queries in both", 400], ["queries that changed", queries]],
        "flow": [],
        "sections": [],
        "browser": None,
        "comparison": {
            "config": [["mining.margin_relative", 0.05, 0.1], ["judge.prompt", "judge/graded", "judge/binary"]],
            "metrics": [["false negatives", 0.041, 0.022], ["hardness", 0.61, 0.58]],
            "counts": [["kept", 1904, 1650], ["dropped: judged_relevant", 88, 41]],
            "queries": changed,
        },
    }


def _moved(draw: random.Random, why_a: str, why_b: str) -> dict[str, Any]:
    return {
        "doc_id": f"d{draw.randrange(10**6):06}",
        "text": _sentence(draw, 40),
        "why_a": why_a,
        "why_b": why_b,
        "score": round(draw.random(), 4),
        "rank_a": draw.randrange(1, 40),
        "rank_b": draw.randrange(1, 40),
        "grade_a": draw.randrange(4),
        "grade_b": None,
    }
