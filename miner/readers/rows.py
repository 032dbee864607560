"""Rows of a JSONL, CSV, TSV or Parquet file, each with its place (file:line) for error messages."""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Iterator
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
    except (gzip.BadGzipFile, EOFError) as error:
        raise UserError(f"{path}: broken gzip after line {number} ({error}); compress the file again") from None


def _jsonl(path: Path) -> Iterator[Row]:
    for number, line in text_lines(path):
        if not line.strip():
            continue
        try:
            values = json.loads(line)
        except (json.JSONDecodeError, RecursionError) as error:
            reason = getattr(error, "msg", "nested too deep")
            raise UserError(f"{path}:{number}: broken JSON ({reason}): {clip(line)}") from None
        if not isinstance(values, dict):
            raise UserError(f"{path}:{number}: a {type(values).__name__}, not a JSON object: {clip(line)}")
        yield Row(values, f"{path}:{number}")


def _csv(path: Path) -> Iterator[Row]:
    lines = (line for _, line in text_lines(path))
    reader = csv.DictReader(lines, delimiter="\t" if kind(path) == "tsv" else ",", strict=True)
    try:
        for values in reader:
            if None in values or None in values.values():
                raise UserError(f"{path}:{reader.line_num}: the row has not as many fields as the header")
            yield Row(dict(values), f"{path}:{reader.line_num}")
    except csv.Error as error:
        raise UserError(f"{path}:{reader.line_num}: broken CSV ({error})") from None


def _parquet(path: Path) -> Iterator[Row]:
    import pyarrow as pa

    number = 0
    try:
        for table in iter_tables(path):
            for values in table.to_pylist():
                number += 1
                yield Row(values, f"{path}:row {number}")
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(f"{path}: not a readable Parquet file ({str(error).splitlines()[0]})") from None


def text_of(row: Row, column: str, required: bool = True) -> str:
    """The text in a column. Missing, null and empty count the same; only the wrong type is an error."""
    if column not in row.values:
        if not required:
            return ""
        raise UserError(f"{row.place}: no column {column!r}; the row has {', '.join(map(repr, row.values))}")
    value = row.values[column]
    if value is None:
        return ""
    if not isinstance(value, str):
        raise UserError(f"{row.place}: {column} is a {type(value).__name__}, not a text: {clip(repr(value))}")
    return value


def texts_of(row: Row, column: str | None, required: bool = True) -> list[str]:
    """The texts in a column that holds one text or a list of them."""
    value = row.values.get(column) if column else None
    if not isinstance(value, list):
        return [text_of(row, column, required)] if column and (required or column in row.values) else []
    for item in value:
        if not isinstance(item, str):
            raise UserError(f"{row.place}: {column} holds a {type(item).__name__}, not a text: {clip(repr(item))}")
    return list(value)


def id_of(row: Row, column: str | None) -> str | None:
    """The id in a column, as a string; None where no column is named, so that the content gives the id."""
    if column is None:
        return None
    if column not in row.values:
        raise UserError(f"{row.place}: no id column {column!r}; the row has {', '.join(map(repr, row.values))}")
    value = row.values[column]
    if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
        raise UserError(f"{row.place}: {column} is not an id (text or whole number): {clip(repr(value))}")
    return str(value)


def rest(row: Row, used: set[str | None]) -> dict[str, Any] | None:
    """The columns that travel along by id, or None."""
    extra = {name: value for name, value in row.values.items() if name not in used}
    return extra or None


def clip(text: str, width: int = 60) -> str:
    """A short, printable form of untrusted text."""
    line = io.StringIO(text.strip()).readline().rstrip("\n")
    shown = line if len(line) <= width else line[: width - 1] + "…"
    return "".join(c if c.isprintable() else "?" for c in shown)
