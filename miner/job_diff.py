"""Compare two jobs: what was set differently, what became of it, which negatives came and went, and why.

Only reads both folders, by column. Queries and passages are matched by their ids.
"""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from miner import engine, ledger_tail, store
from miner.config import Job
from miner.job import JobFolder
from miner.job_query import fits, passage_texts
from miner.records import TEXT

Row = dict[str, Any]
QUERIES = 1000  # in a payload, those with the most changes; the others are counted
TEXT_CHARS = 500
LEAST_SHARED = 0.5
KEY = ["query_id", "doc_id"]
COLUMNS = {
    "kept": pa.bool_(),
    "reason": pa.string(),
    "slot": pa.int32(),
    "rank": pa.int32(),
    "grade": pa.int8(),
    "score": pa.float32(),
    "positive_score": pa.float32(),
    "source": pa.string(),
    "status": pa.string(),
}


def payload(job_a: Job, job_b: Job, queries: int = QUERIES) -> Row:
    """What a page or a program shows of two jobs. queries: how many at most are told one by one, most changes first.

    `comparison`: config, metrics and counts as [name, a, b]; positives and queries, by query, each with what was
    gained (in b alone), lost (in a alone) and, of negatives, moved (in another slot, or graded anew). Job a is the
    first in all of it. Raises UserError for files that cannot be read.
    """
    sides = [_Side(job) for job in (job_a, job_b)]
    joined = _joined(*sides)
    changed = _changed(joined)
    told = _told(changed, sides, queries)
    apart = _apart(sides)
    positives = _positives(sides, apart, queries)
    shared = _shared(sides)
    warnings = [line for name, side in zip("AB", sides, strict=True) for line in side.warnings(name)]
    facts = [
        *([f"job {name}", str(side.folder.root)] for name, side in zip("AB", sides, strict=True)),
        ["queries of both", shared["both"]],
        ["queries of A alone", shared["a"]],
        ["queries of B alone", shared["b"]],
        *([f"negatives {what}", _count(joined, test)] for what, test in _TESTS.items()),
        *([f"positives {what}", table.num_rows] for what, table in apart.items()),
        ["queries whose negatives changed", len(pc.unique(changed.column("query_id")))],
        ["of these told one by one", len(told)],
    ]
    fewer = shared["both"] + min(shared["a"], shared["b"])
    if shared["both"] < LEAST_SHARED * fewer:
        warnings.append(
            f"only {shared['both']} queries are in both jobs by id, {shared['a']} in A alone and {shared['b']} in B"
            " alone: were they made from different data?"
        )
    return {
        "kind": "comparison",
        "title": " and ".join(_labels(sides)),
        "miner": importlib.metadata.version("miner"),
        "warnings": warnings,
        "facts": facts,
        "flow": [],
        "sections": _sections(positives),
        "browser": None,
        "comparison": {
            "config": _config(job_a, job_b),
            "metrics": _metrics(sides, joined),
            "counts": _paired(sides[0].counts(), sides[1].counts()),
            "positives": positives,
            "queries": told,
        },
    }


def _labels(sides: list[_Side]) -> list[str]:
    """The names of the folders; with the folder around them where they are alike."""
    a, b = (side.folder.root for side in sides)
    return [a.name, b.name] if a.name != b.name else [f"{path.parent.name}/{path.name}" for path in (a, b)]


# ---------------------------------------------------------------- one job


class _Side:
    """The files of one job."""

    def __init__(self, job: Job) -> None:
        self.job, self.folder = job, JobFolder(Path(job.job or ""))
        self.decided = fits(self.folder, "decisions")
        # Every candidate: decided, or as mining left it.
        step = "decisions" if self.decided else "candidates"
        self.rows = self._concat(self.parts(step, "part"), [*KEY, *COLUMNS])
        self.queries = self._queries()
        # What the judge made positives is among them.
        relabelled = self.parts("decisions", "relabelled") if self.decided else []
        self.positives = self._concat([*self.parts("candidates", "positives"), *relabelled], KEY)

    def parts(self, step: str, name: str) -> list[Path]:
        return sorted(self.folder.step(step).glob(f"{name}-*.parquet"))

    def _concat(self, paths: list[Path], columns: list[str]) -> pa.Table:
        """The columns of all parts, as plain types; null where the files lack one."""
        types = {"query_id": TEXT, "doc_id": TEXT, **COLUMNS}
        schema = pa.schema([(name, types[name]) for name in columns])
        tables = []
        for path in paths:
            table = store.read_table(path, [name for name in columns if name in _names(path)])
            there = [table.column(n) if n in table.column_names else pa.nulls(table.num_rows) for n in columns]
            tables.append(pa.table(there, names=columns).cast(schema))
        return pa.concat_tables([schema.empty_table(), *tables]).combine_chunks()

    def _queries(self) -> pa.Table:
        path = self.folder.step("corpus") / "queries.parquet"
        if not path.is_file():
            return pa.table({"query_id": pa.array([], TEXT), "text": pa.array([], TEXT)})
        return store.read_table(path, ["query_id", "text"])

    def counts(self) -> Row:
        """The counts of all steps, flat, in the order of the steps: {"candidates.dropped.positive": 16}."""
        stamps = [stamp for step in engine.plan(self.job) if (stamp := self.folder.stamp(step.name)) is not None]
        return {
            f"{stamp.step}.{name}": value
            for stamp in stamps
            for name, value in _flat(stamp.counts)
            if isinstance(value, int | float)
        }

    def _ran(self) -> Any:
        """The settings of the last run; None where they cannot be read."""
        try:
            return json.loads(self.folder.manifest.read_text(encoding="utf-8"))["config"]
        except (ValueError, KeyError, TypeError):
            return None

    def warnings(self, name: str) -> Iterator[str]:
        if not self.rows.num_rows:
            yield f"{name}: {self.folder.root} has no candidates yet; `miner run` makes them"
        elif not self.decided:
            yield f"{name}: {self.folder.root} has no decisions yet, so none of its candidates is a negative"
        now = json.loads(json.dumps(self.job.model_dump(mode="json")))
        if self.folder.manifest.is_file() and self._ran() != now:
            yield f"{name}: the job file is not as it was when the job last ran; `miner status` tells what is stale"


def _names(path: Path) -> list[str]:
    try:
        return list(pq.read_schema(path).names)
    except (pa.ArrowException, OSError):
        return []  # which the reader of its rows tells


def _flat(value: Row, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, inner in value.items():
        if isinstance(inner, dict):
            yield from _flat(inner, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", inner


def _paired(a: Row, b: Row) -> list[list[Any]]:
    """[name, a, b], the names of a first; null where one lacks it."""
    return [[name, _plain(a.get(name)), _plain(b.get(name))] for name in dict.fromkeys([*a, *b])]


def _plain(value: Any) -> Any:
    return value if isinstance(value, str | int | float | None) else json.dumps(value, ensure_ascii=False)


def _config(a: Job, b: Job) -> list[list[Any]]:
    """The keys that differ. Where the job lies is no setting."""
    values = [dict(_flat(job.model_dump(mode="json", exclude={"job"}))) for job in (a, b)]
    return [row for row in _paired(*values) if row[1] != row[2]]


def _shared(sides: list[_Side]) -> dict[str, int]:
    a, b = (side.queries.column("query_id") for side in sides)
    both = pc.sum(pc.is_in(a, value_set=b.combine_chunks())).as_py() or 0
    return {"both": both, "a": len(a) - both, "b": len(b) - both}


# ---------------------------------------------------------------- both


def _joined(a: _Side, b: _Side) -> pa.Table:
    """Every candidate of either job once: its columns with _a and _b, null where a job has no such candidate."""
    left, right = (_once(side.rows, name) for side, name in ((a, "a"), (b, "b")))
    joined = left.join(right, keys=KEY, join_type="full outer")
    for name in ("kept_a", "kept_b"):
        joined = joined.set_column(joined.column_names.index(name), name, _true(joined, name))
    return joined


def _once(rows: pa.Table, side: str) -> pa.Table:
    """The rows, named for a side, and here_SIDE. A text written twice has two rows: the kept one, or else the first."""
    place = pa.array(range(rows.num_rows), pa.int64())
    order = pa.table({"kept": _true(rows, "kept"), "place": place, **{name: rows.column(name) for name in KEY}})
    order = order.sort_by([("kept", "descending"), ("place", "ascending")])
    first = order.group_by(KEY, use_threads=False).aggregate([("place", "first")]).column("place_first")
    rows = rows.take(first).append_column("here", pa.array([True] * len(first), pa.bool_()))
    return rows.rename_columns([*KEY, *(f"{name}_{side}" for name in (*COLUMNS, "here"))])


def _true(table: pa.Table, name: str) -> Any:
    return pc.fill_null(table.column(name), False)


def _alone(table: pa.Table, side: str, other: str) -> Any:
    return pc.and_(table.column(f"kept_{side}"), pc.invert(table.column(f"kept_{other}")))


def _moved(table: pa.Table) -> Any:
    """A negative of both, in another slot or with another grade."""
    both = pc.and_(table.column("kept_a"), table.column("kept_b"))
    slot, grade = (
        pc.not_equal(*(pc.fill_null(table.column(f"{name}_{side}"), -1) for side in "ab")) for name in ("slot", "grade")
    )
    return pc.and_(both, pc.or_(slot, grade))


_TESTS = {"gained": lambda rows: _alone(rows, "b", "a"), "lost": lambda rows: _alone(rows, "a", "b"), "moved": _moved}


def _count(table: pa.Table, test: Any) -> int:
    return int(pc.sum(test(table)).as_py() or 0)


def _changed(joined: pa.Table) -> pa.Table:
    """The rows that are told, each with what happened to it."""
    parts = []
    for what, test in _TESTS.items():
        rows = joined.filter(test(joined))
        parts.append(rows.append_column("what", pa.array([what] * rows.num_rows, pa.string())))
    return pa.concat_tables(parts)


def _told(changed: pa.Table, sides: list[_Side], most: int) -> list[Row]:
    """The queries with the most changes, then by id; in each the rows by slot."""
    sizes = changed.group_by("query_id").aggregate([([], "count_all")])
    chosen = sizes.sort_by([("count_all", "descending"), ("query_id", "ascending")]).column("query_id").slice(0, most)
    rows = changed.filter(pc.is_in(changed.column("query_id"), value_set=chosen.combine_chunks())).to_pylist()
    ids = {row["doc_id"] for row in rows}
    texts = [_texts(side, ids) for side in sides]
    asked = [_asked(side, chosen) for side in sides]
    found: dict[str, Row] = {
        query_id: {
            "id": query_id,
            "text": asked[1].get(query_id, asked[0].get(query_id, "")),
            **{w: [] for w in _TESTS},
        }
        for query_id in chosen.to_pylist()
    }
    for row in sorted(rows, key=lambda r: (r["slot_b"] or r["slot_a"] or 0, r["doc_id"])):
        query_id = row["query_id"]
        why = [_why(row, name, query_id in asked[n], row["doc_id"] in texts[n]) for n, name in enumerate("ab")]
        score = row["score_b"] if row["here_b"] else row["score_a"]
        found[query_id][row["what"]].append(
            {
                "doc_id": row["doc_id"],
                "text": texts[1].get(row["doc_id"], texts[0].get(row["doc_id"], ""))[:TEXT_CHARS],
                "why_a": why[0],
                "why_b": why[1],
                "score": score if score == score else None,
                **{f"{name}_{side}": row[f"{name}_{side}"] for name in ("rank", "grade") for side in "ab"},
            }
        )
    return list(found.values())


def _why(row: Row, side: str, asked: bool, there: bool) -> str:
    """What became of the passage in a job: kept as negative 2, a drop reason, or why it was no candidate."""
    if row[f"kept_{side}"]:
        return f"kept as negative {row[f'slot_{side}']}"
    if row[f"here_{side}"]:
        return row[f"reason_{side}"] or "not decided yet"
    if not asked:
        return "no such query"
    written = row["source_a"] == "synthetic" or row["source_b"] == "synthetic"
    return "not written" if written else "not found" if there else "not in the corpus"


def _asked(side: _Side, ids: Any) -> dict[str, str]:
    rows = side.queries.filter(pc.is_in(side.queries.column("query_id"), value_set=ids.combine_chunks()))
    return dict(zip(rows.column("query_id").to_pylist(), rows.column("text").to_pylist(), strict=True))


def _texts(side: _Side, ids: set[str]) -> dict[str, str]:
    """Of corpus passages and of written ones."""
    found = passage_texts(side.folder, ids)
    path = side.folder.step("synthetic") / "synthetic.parquet"
    if path.is_file():
        for row in store.read_table(path, ["doc_id", "text"]).to_pylist():
            if row["doc_id"] in ids:
                found[row["doc_id"]] = row["text"] or ""
    return found


# ---------------------------------------------------------------- positives


def _apart(sides: list[_Side]) -> dict[str, pa.Table]:
    """The positives of one job alone, by query and passage."""
    a, b = (side.positives for side in sides)
    order = [(name, "ascending") for name in KEY]
    return {
        what: own.join(other, keys=KEY, join_type="left anti").sort_by(order)
        for what, own, other in (("gained", b, a), ("lost", a, b))
    }


def _positives(sides: list[_Side], apart: dict[str, pa.Table], most: int) -> list[Row]:
    """By query, the doc_ids that are positives of one job alone."""
    found: dict[str, Row] = {}
    for what, table in apart.items():
        for row in table.to_pylist():
            one = found.setdefault(row["query_id"], {"id": row["query_id"], "text": "", "gained": [], "lost": []})
            one[what].append(row["doc_id"])
    chosen = sorted(found)[:most]
    for side in sides:
        for query_id, text in _asked(side, pa.chunked_array([pa.array(chosen, TEXT)])).items():
            found[query_id]["text"] = text
    return [found[query_id] for query_id in chosen]


def _sections(positives: list[Row]) -> list[Row]:
    if not positives:
        return []
    rows = [[one["id"], one["text"], ", ".join(one["gained"]), ", ".join(one["lost"])] for one in positives]
    columns = ["query", "text", "in B alone", "in A alone"]
    table = {"title": "Positives that changed", "columns": columns, "rows": rows, "note": ""}
    return [{"id": "positives", "title": "Positives", "note": "", "plots": [], "tables": [table]}]


# ---------------------------------------------------------------- metrics


def _metrics(sides: list[_Side], joined: pa.Table) -> list[list[Any]]:
    a, b = (_measured(side) for side in sides)
    rows = _paired(a, b)
    same = joined.filter(pc.and_(joined.column("kept_a"), joined.column("kept_b"))).num_rows
    either = joined.filter(pc.or_(joined.column("kept_a"), joined.column("kept_b"))).num_rows
    share = round(same / either, 4) if either and all(side.decided for side in sides) else None
    return [*rows, ["negatives in common (of either)", share, share]]


def _measured(side: _Side) -> Row:
    """score: of the job's encoder, comparable where both jobs have the same one. None for what is not decided yet."""
    rows = side.rows
    kept = rows.filter(_true(rows, "kept"))
    score = pc.cast(kept.column("score"), pa.float64())
    below = pc.subtract(pc.cast(kept.column("positive_score"), pa.float64()), score)
    judged = int(pc.sum(pc.equal(rows.column("status"), "ok")).as_py() or 0)
    spent = ledger_tail.spent(side.folder.ledger)
    decided = {
        "negatives": kept.num_rows,
        "queries with negatives": len(pc.unique(kept.column("query_id"))),
        "mean score of negatives (hardness)": _mean(score),
        "mean distance below the lowest positive": _mean(below),
        "synthetic share of negatives": _share(pc.sum(pc.equal(kept.column("source"), "synthetic")), kept.num_rows),
        "judged": judged,
        "negatives of the judged (yield)": _share(pc.sum(pc.equal(kept.column("status"), "ok")), judged),
    }
    return {
        "queries": side.queries.num_rows,
        "candidates": rows.num_rows,
        **(decided if side.decided else dict.fromkeys(decided)),
        "LLM answers": spent["answers"],
        "prompt tokens": spent["prompt_tokens"],
        "answer tokens": spent["completion_tokens"],
        "cost in dollars": None if spent["cost"] is None else round(spent["cost"], 6),
    }


def _mean(values: Any) -> float | None:
    known = values.filter(pc.is_finite(values))
    mean = pc.mean(known).as_py()
    return None if mean is None else round(mean, 6)


def _share(count: Any, total: int) -> float | None:
    return round((count.as_py() or 0) / total, 4) if total else None
