"""Show what the demo made: where the triples lie, three of them, and how many false negatives got through.

known-answers.tsv holds further true answers that the job never saw, so an exported negative that stands there is a
false negative. Only the queries that have such answers are counted.
"""

from __future__ import annotations

import json
import os
import sys
import textwrap
from pathlib import Path

import pyarrow.parquet as pq

HERE = Path(__file__).resolve().parent


def known_answers() -> dict[str, set[str]]:
    answers: dict[str, set[str]] = {}
    for line in (HERE / "known-answers.tsv").read_text(encoding="utf-8").splitlines()[1:]:
        query_id, doc_id, _ = line.split("\t")
        answers.setdefault(query_id, set()).add(doc_id)
    return answers


def share(rows: list[tuple[str, str]], known: dict[str, set[str]]) -> str:
    counted = [(query_id, doc_id) for query_id, doc_id in rows if query_id in known]
    wrong = sum(doc_id in known[query_id] for query_id, doc_id in counted)
    return f"{wrong} of {len(counted)}" + (f" ({wrong / len(counted):.1%})" if counted else "")


def main(job: Path) -> None:
    known = known_answers()
    decisions = [
        row for path in sorted((job / "decisions").glob("part-*.parquet")) for row in pq.read_table(path).to_pylist()
    ]
    mined = [row for row in decisions if row["source"] == "mined"]
    nearest = [
        (r["query_id"], r["doc_id"])
        for r in mined
        if r["reason"] not in ("positive", "positive_copy") and r["rank"] <= 5
    ]
    pool = [(r["query_id"], r["doc_id"]) for r in mined if r["grade"] is not None or r["status"]]
    kept = [(r["query_id"], r["doc_id"]) for r in mined if r["kept"]]
    print(f"\nfalse negatives, counted on the {len(known)} queries with further known answers:")
    print(f"  top 5 without any filter   {share(nearest, known)}")
    print(f"  pool after the margin      {share(pool, known)}")
    print(f"  exported after the judge   {share(kept, known)}")

    lines = (job / "export/flagembedding.jsonl").read_text(encoding="utf-8").splitlines()
    rows = sorted(map(json.loads, lines), key=lambda row: -row["neg_scores"][0])
    print(f"\n{len(rows)} queries with hard negatives in {os.path.relpath(job / 'export')}; the three hardest:")
    for row in rows[:3]:
        print()
        for name, text in (("query", row["query"]), ("positive", row["pos"][0]), ("negative", row["neg"][0])):
            print(f"{name:9}{textwrap.shorten(text, 100, placeholder=' …')}")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else HERE / "job.job")
