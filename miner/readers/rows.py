"""Rows of a JSONL, CSV, TSV or Parquet file, each with its place (file:line) for error messages."""

from __future__ import annotations

import csv
import gzip
import io
import json
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from miner.errors import UserError
from miner.store import iter_tables, open_lines

KINDS = {".jsonl": "jsonl", ".json": "jsonl", ".ndjson": "jsonl", ".csv": "csv", ".tsv": "tsv", ".parquet": "parquet"}
csv.field_size_limit(1 << 30)


class Row(NamedTuple):
    values: dict[str, Any]
    place: str


def kind(path: Path) -> str:
    name = path.name.removesuffix(".gz")
    found = KINDS.get(Path(name).suffix.lower())
    if found is None:
        raise UserError(f"{path}: unknown kind of file; use .jsonl, .csv, .tsv or .parquet (.gz accepted)")
    return found


def read(path: Path) -> Iterator[Row]:
    """Stream the rows of a file. Raises UserError for what is broken, missing or empty."""
    if path.is_dir():
        raise UserError(f"{path}: a folder, not a file")
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    readers = {"jsonl": _jsonl, "csv": _csv, "tsv": _csv, "parquet": _parquet}
    empty = True
    for row in readers[kind(path)](path):
        empty = False
        yield row
    if empty:
        raise UserError(f"{path}: the file holds no rows")


def text_lines(path: Path) -> Iterator[tuple[int, str]]:
    """(line number from 1, line) of a UTF-8 file, a byte order mark taken off."""
    number = 0
    try:
        with open_lines(path) as handle:
            for number, raw in enumerate(handle, 1):
                yield number, raw.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path}:{number}: not UTF-8 (byte 0x{error.object[error.start]:02x}); convert the file to UTF-8"
        ) from None
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UserError(f"{path}: broken gzip after line {number} ({error}); compress the file again") from None
    except OSError as error:
        raise UserError(f"{path}: cannot read ({error.strerror}); check the file and its permissions") from None


def _jsonl(path: Path) -> Iterator[Row]:
    name = str(path)
    for number, line in text_lines(path):
        if line.strip():
            place = f"{name}:{number}"
            yield Row(_json_object(line, place), place)


def _json_object(line: str, place: str) -> dict[str, Any]:
    try:
        values = json.loads(line)
    except (ValueError, RecursionError) as error:
        reason = "nested too deep" if isinstance(error, RecursionError) else getattr(error, "msg", str(error))
        remedy = "every line must be one whole JSON object" if line.endswith("\n") else "the file may be cut off"
        raise UserError(f"{place}: broken JSON ({reason}); {remedy}: {clip(line)}") from None
    if not isinstance(values, dict):
        raise UserError(f"{place}: {sort_of(values)}; every line must be one JSON object: {clip(line)}")
    return values


def _csv(path: Path) -> Iterator[Row]:
    lines = (line for _, line in text_lines(path))
    reader = csv.DictReader(lines, delimiter="\t" if kind(path) == "tsv" else ",", strict=True)
    before = 0
    try:
        _check_header(path, reader.fieldnames or ())
        before = reader.line_num
        for values in reader:
            place, before = f"{path}:{reader.line_num}", reader.line_num
            if None in values or None in values.values():
                raise UserError(f"{place}: {_field_counts(values)}; quote fields that hold the separator")
            yield Row(dict(values), place)
    except csv.Error as error:
        raise UserError(f"{path}:{before + 1}: broken CSV ({error}); check the quotes of this row") from None


def _check_header(path: Path, names: Iterable[str]) -> None:
    doubled = [name for name, times in Counter(names).items() if times > 1]
    if doubled:
        raise UserError(f"{path}:1: the header names {doubled[0]!r} twice; rename one")


def _field_counts(values: dict[Any, Any]) -> str:
    """What is wrong with a row that DictReader padded with None, or from which it put a surplus under None."""
    surplus = values.get(None, [])
    names = len(values) - (None in values)
    lacking = sum(value is None for name, value in values.items() if name is not None)
    return f"{names + len(surplus) - lacking} fields, but the header has {names}"


def _parquet(path: Path) -> Iterator[Row]:
    import pyarrow as pa

    number = 0
    try:
        for table in iter_tables(path):
            for values in table.to_pylist():
                number += 1
                yield Row(values, f"{path}:row {number}")
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        reason = clip(str(error), 160) or type(error).__name__
        raise UserError(f"{path}: not a readable Parquet file ({reason}); write it again") from None


def text_of(row: Row, column: str, required: bool = True) -> str:
    """The text in a column. Missing, null and empty count the same; only the wrong type is an error."""
    if column not in row.values:
        if not required:
            return ""
        raise UserError(_no_column(row, column))
    value = row.values[column]
    if value is None:
        return ""
    if not isinstance(value, str):
        raise UserError(f"{row.place}: {column} is {sort_of(value)}, not a text: {shown(value)}")
    return value


def texts_of(row: Row, column: str | None, required: bool = True) -> list[str]:
    """The texts in a column that holds one text or a list of them."""
    value = row.values.get(column) if column else None
    if not isinstance(value, list):
        return [text_of(row, column, required)] if column and (required or column in row.values) else []
    for item in value:
        if not isinstance(item, str):
            raise UserError(f"{row.place}: {column} holds {sort_of(item)}, not a text: {shown(item)}")
    return list(value)


def id_of(row: Row, column: str | None) -> str | None:
    """The id in a column, as a string; None where no column is named, so that the content gives the id."""
    if column is None:
        return None
    if column not in row.values:
        raise UserError(_no_column(row, column))
    value = row.values[column]
    if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
        raise UserError(f"{row.place}: {column} is not an id: {shown(value)}; write a text or a whole number")
    return str(value)


def _no_column(row: Row, column: str) -> str:
    there = ", ".join(repr(name) for name in row.values) or "none"
    return (
        f"{row.place}: no column {column!r}; the row has {clip(there, 200)}; rename one, or name the right one in"
        " data.columns or data.corpus_columns"
    )


def rest(row: Row, used: set[str | None]) -> dict[str, Any] | None:
    """The columns that travel along by id, or None."""
    extra = {name: value for name, value in row.values.items() if name not in used}
    return extra or None


def clip(text: str, width: int = 60) -> str:
    """A short, printable form of untrusted text."""
    line = io.StringIO(text.strip()).readline().rstrip("\n")
    shown = line if len(line) <= width else line[: width - 1] + "…"
    return "".join(c if c.isprintable() else "?" for c in shown)


def sort_of(value: Any) -> str:
    """What a JSON value is, in words."""
    words = {
        bool: "true or false",
        int: "a number",
        float: "a number",
        list: "a list",
        dict: "an object",
        str: "a text",
    }
    return "null" if value is None else words.get(type(value), f"a {type(value).__name__}")


def shown(value: Any) -> str:
    """A short, printable form of an untrusted value, as JSON writes it."""
    return clip(json.dumps(value, ensure_ascii=False, default=repr))
