"""Write a cleaned copy of training files, in the same form, with a list of every change. Nothing is ever padded."""

from __future__ import annotations

import csv
import json
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from functools import partial
from itertools import groupby, islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from miner import forms, store
from miner.audit import Report
from miner.audit_checks import Settings
from miner.defects import DEFECTS, mend, text_defects
from miner.errors import UserError
from miner.forms import BY_ID, QUERY, ROLES, Example, Plan, Row
from miner.readers.training import Entry, Source, bare

Change = dict[str, Any]
Marked = list[tuple[str, int, int]]
BATCH = 1024
SHOWN = 300


def write(report: Report, out: Path, settings: Settings) -> dict[str, int]:
    """Write the copies to `out` (a folder where several files were audited) and the changes to OUT.changes.jsonl.

    report: of an audit with keep_all. Returns counts of rows kept, rows removed and changes. Raises UserError.
    """
    paths = [source.path for source in report.sources]
    targets = _targets(list(dict.fromkeys(paths)), out)
    counts = {"rows kept": 0, "rows removed": 0, "changes": 0}
    base = 0
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="surrogatepass") as kept:
        for path, group in groupby(report.sources, key=lambda source: source.path):
            split_rows = []
            for source in group:
                split_rows.append((source, partial(_cleaned, source, base, report, settings, kept, counts)))
                base += next(f["rows"] for f in report.files if (f["path"], f["split"]) == (str(path), source.split))
            _write(targets[path], split_rows)
        kept.seek(0)
        changed = (json.loads(line) for line in kept)
        counts["changes"] = store.write_jsonl(out.with_name(f"{out.name}.changes.jsonl"), map(_plain, changed))
    return counts


def _plain(change: Change) -> Change:
    """Without lone surrogates, which no file takes."""
    return {k: v.encode("utf-8", "replace").decode() if isinstance(v, str) else v for k, v in change.items()}


def _targets(paths: list[Path], out: Path) -> dict[Path, Path]:
    if len(paths) == 1:
        found = {paths[0]: out}
    else:
        found = {path: out / path.name for path in paths}
        if len(set(found.values())) < len(found):
            raise UserError(f"--fix {out}: two of the files have the same name; fix them one by one")
    for path, target in found.items():
        if target.exists():
            raise UserError(f"--fix {target}: exists already; name another")
        same = path.is_dir() or path.parent.name == "qrels" or bare(path).suffix == bare(target).suffix
        if not same:
            raise UserError(f"--fix {target}: the copy of {path} is of its kind; name it *{bare(path).suffix}")
    return found


# ---------------------------------------------------------------- what becomes of a row


def _cleaned(
    source: Source, base: int, report: Report, settings: Settings, kept: Any, counts: dict[str, int]
) -> Iterator[Row]:
    for row, entry in enumerate(source, base):
        marked = report.by_row.get(row, [])
        values, changes = _fixed(source.form, entry, marked, settings)
        counts["rows removed" if values is None else "rows kept"] += 1
        for change in changes:
            kept.write(json.dumps({"place": source.place(entry.number), **change}, ensure_ascii=True) + "\n")
        if values is not None:
            yield values


def _fixed(form: str, entry: Entry, marked: Marked, settings: Settings) -> tuple[Row | None, list[Change]]:
    """The row as it may stay, or None, and what was done to it."""
    if entry.example is None:
        return None, [{"code": entry.broken.code if entry.broken else "F01", "change": "row removed"}]
    todo = [one for one in marked if DEFECTS[one[0]].fix]
    if not todo:
        return entry.values, []
    texts = {(role, slot): text for role, slot, text in entry.example.texts()}
    fixing = partial(mend, max_chars=settings.max_chars)
    plan, changes = Plan(), []
    for code, role, slot in todo:
        done = _decide(form, code, role, slot, texts, settings)
        if done == "row":
            return None, [{"code": code, "change": "row removed", "value": _shown(entry.example)}]
        changes.append(_apply(plan, code, role, slot, done, texts.get((role, slot)), fixing))
    values = forms.rebuild(form, entry.values, plan, fixing)
    if values is None:
        lost = {"code": "F05", "change": "row removed: no negative, or no positive, is left"}
        return None, [*changes, {**lost, "value": _shown(entry.example)}]
    return values, changes


def _decide(form: str, code: str, role: int, slot: int, texts: dict[tuple[int, int], str], settings: Settings) -> str:
    """row, drop, mend or a mark. What cannot be mended is dropped, and with the query goes the row."""
    fix = DEFECTS[code].fix
    if fix not in ("drop", "mend"):
        return fix
    if fix == "mend":
        behind = form == "beir" or (form in BY_ID and role != QUERY)  # the text is not this file's
        text = mend(texts[role, slot], settings.max_chars)
        fix = "drop" if behind or text_defects(role, text, settings.max_chars) else "mend"
    return "row" if fix == "drop" and (slot < 0 or role == QUERY) else fix


def _apply(plan: Plan, code: str, role: int, slot: int, done: str, text: str | None, fixing: Any) -> Change:
    where = f"{ROLES[role]} {slot + 1}" if role != QUERY else "query"
    if done == "drop":
        plan.dropped.add((role, slot))
        return {"code": code, "change": f"{where} removed", "value": (text or "")[:SHOWN]}
    if done == "mend":
        plan.mended.add((role, slot))
        return {"code": code, "change": f"{where} mended", "value": (text or "")[:SHOWN], "now": fixing(text)[:SHOWN]}
    plan.marks.add(done)
    words = {"prompt": 'prompt set to ""', "columns": "extra columns removed", "floats": "scores written as floats"}
    return {"code": code, "change": words[done]}


def _shown(example: Example) -> str:
    return (example.query or "")[:SHOWN]


# ---------------------------------------------------------------- files


def _write(target: Path, split_rows: list[tuple[Source, Any]]) -> None:
    source, rows = split_rows[0]
    if source.kind == "saved":
        _write_saved(target, split_rows)
    elif source.kind == "beir":
        _write_beir(target, source, rows())
    elif source.kind == "parquet":
        _write_parquet(pq.read_schema(source.path), target, rows())
    elif source.kind == "jsonl":
        _write_jsonl(target, rows())
    else:
        _write_csv(target, "\t" if source.kind == "tsv" else ",", rows())


def _write_jsonl(target: Path, rows: Iterable[Row]) -> None:
    if target.suffix != ".zst":
        store.write_jsonl(target, rows)
        return

    def write(part: Path) -> None:
        with pa.output_stream(str(part), compression="zstd") as handle:
            for row in rows:
                handle.write(json.dumps(row, ensure_ascii=False, separators=(",", ":")).encode() + b"\n")

    store.replace(target, write)


def _write_csv(target: Path, delimiter: str, rows: Iterable[Row]) -> None:
    def write(part: Path) -> None:
        with part.open("w", encoding="utf-8", newline="") as handle:
            writer = None
            for row in rows:
                if writer is None:
                    writer = csv.DictWriter(handle, list(row), delimiter=delimiter)
                    writer.writeheader()
                writer.writerow({k: json.dumps(v) if isinstance(v, list) else v for k, v in row.items()})

    if target.suffix in (".gz", ".zst"):
        raise UserError(f"--fix {target}: CSV is written unpacked; name it without {target.suffix}")
    store.replace(target, write)


def _write_parquet(schema: pa.Schema, target: Path, rows: Iterator[Row]) -> pa.Schema:
    """The schema is that of the file that was read, less the columns that were taken out."""
    first = next(rows, None)
    left = schema if first is None else pa.schema([f for f in schema if f.name in first], schema.metadata)

    def tables() -> Iterator[pa.Table]:
        batch = [first] if first is not None else []
        while batch:
            yield pa.Table.from_pylist(batch, left)
            batch = list(islice(rows, BATCH))

    store.write_batches(target, left, tables())
    return left


def _write_saved(target: Path, split_rows: list[tuple[Source, Any]]) -> None:
    import datasets

    work = target.with_name(f".{target.name}.part")
    shutil.rmtree(work, ignore_errors=True)
    datasets.disable_progress_bars()
    with tempfile.TemporaryDirectory() as cache:
        found = {}
        for source, rows in split_rows:
            file = Path(cache) / f"{source.split or 'all'}.parquet"
            features = datasets.load_from_disk(str(source.path / source.split)).features
            left = _write_parquet(features.arrow_schema, file, rows())
            kept = datasets.Features({name: features[name] for name in left.names})
            found[source.split] = datasets.Dataset.from_parquet(str(file), features=kept, cache_dir=cache)
        whole = found[""] if "" in found else datasets.DatasetDict(found)
        whole.save_to_disk(str(work))
    store.promote(work, target)


def _write_beir(target: Path, source: Source, rows: Iterable[Row]) -> None:
    folder = source.path.parent.parent
    for path in sorted(folder.glob("corpus.jsonl*")) + sorted(folder.glob("queries.jsonl*")):
        store.replace(target / path.name, partial(shutil.copyfile, path))
    lines = ["query-id\tcorpus-id\tscore"]
    for row in rows:
        kept = {*row["positive_document_ids"], *row["negative_document_ids"]}
        lines += [f"{query}\t{doc}\t{grade}" for query, doc, grade, _ in row["relevance"] if doc in kept]
    store.write_text(target / "qrels" / source.path.name, "\n".join(lines) + "\n")
