"""Any training file as one stream of examples, each with its place; a broken row is told and passed over.

Sources can be read as often as wanted and hold no texts. A corpus, where rows hold ids, goes into a temporary database
on disk. `.gz` is unpacked by Python, `.zst` by pyarrow.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import math
import sqlite3
import zlib
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from miner import forms
from miner.errors import UserError
from miner.forms import Example, Row
from miner.readers import rows
from miner.records import passage_text

PACKED = (".gz", ".zst")
LOOKED_AT = 50  # rows from whose columns the form is told
BATCH = 512
CUT = b"\x00cut"  # stands for what is lost where a packed file ends too early
IDS = ("docid", "doc_id", "_id", "id")


class Broken(NamedTuple):
    """A row that cannot be read, with the code of its defect."""

    code: str
    reason: str


class Entry(NamedTuple):
    """number: line of a text file, row of any other, from 1. Either example and values, or broken."""

    number: int
    values: Row
    example: Example | None
    broken: Broken | None


class Raw(NamedTuple):
    number: int
    values: Row | None
    broken: Broken | None


@dataclass
class Texts:
    """Passages (and of a BEIR folder queries and judgments) in a temporary file that SQLite deletes by itself."""

    database: sqlite3.Connection = field(default_factory=lambda: sqlite3.connect(""))
    broken: list[tuple[str, Broken]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.database.execute(
            "CREATE TABLE texts (kind TEXT, id TEXT, text BLOB, PRIMARY KEY (kind, id)) WITHOUT ROWID"
        )
        self.database.execute("CREATE TABLE qrels (query TEXT, doc TEXT, relevance INT, line INT)")

    def get(self, kind: str, name: str) -> str | None:
        query = "SELECT text FROM texts WHERE kind = ? AND id = ?"
        found = self.database.execute(query, (kind, _plain(name))).fetchone()
        return None if found is None else found[0].decode("utf-8", "surrogatepass")

    def read(self, path: Path, kind: str) -> None:
        """Take in a file of passages or queries; what cannot be used goes to `broken`, with its place."""
        for raw in read_rows(path):
            place = place_of(path, raw.number)
            values = raw.values or {}
            name = next((values[key] for key in IDS if isinstance(values.get(key), str | int)), None)
            text = values.get("text")
            if raw.broken or name is None or not isinstance(text, str):
                self.broken.append((place, raw.broken or Broken("F02", "no id, or no text")))
                continue
            title = values.get("title")
            whole = passage_text(title if isinstance(title, str) else "", text)
            self._add(kind, str(name), whole, place)
        self.database.commit()

    def _add(self, kind: str, name: str, text: str, place: str) -> None:
        row = (kind, _plain(name), text.encode("utf-8", "surrogatepass"))
        new = self.database.execute("INSERT OR IGNORE INTO texts VALUES (?, ?, ?)", row).rowcount
        if not new and self.get(kind, name) != text:
            self.broken.append((place, Broken("F15", f"id {name} stands for another text above")))


def _plain(name: str) -> str:
    return name.encode("utf-8", "replace").decode()


@dataclass
class Source:
    """A file (or a split of a folder) and the form of its rows. kind: jsonl, csv, tsv, parquet, saved or beir."""

    path: Path
    kind: str
    form: str
    split: str = ""
    texts: Texts | None = None

    def __iter__(self) -> Iterator[Entry]:
        lookup = None
        if self.texts is not None:
            texts = self.texts
            lookup = lambda name: texts.get("passage", name)  # noqa: E731
        for raw in self._raw():
            if raw.values is None:
                yield Entry(raw.number, {}, None, raw.broken)
            else:
                yield Entry(raw.number, raw.values, forms.parse(self.form, raw.values, lookup), None)

    def _raw(self) -> Iterator[Raw]:
        if self.kind == "beir":
            assert self.texts is not None
            return _judged(self.path, self.texts)
        return _saved(self.path, self.split) if self.kind == "saved" else read_rows(self.path)

    def place(self, number: int) -> str:
        return place_of(self.path / self.split if self.kind == "saved" else self.path, number)


def place_of(path: Path, number: int) -> str:
    lines = bare(path).suffix.lower() not in ("", ".parquet")
    return f"{path}:{number}" if lines else f"{path}:row {number}"


def bare(path: Path) -> Path:
    """The name without what says that it is packed."""
    return path.with_suffix("") if path.suffix in PACKED else path


# ---------------------------------------------------------------- opening


def open_file(path: Path, form: str | None, corpus: Texts | None) -> list[Source]:
    """The sources that a path names: one, or one for each split of a saved data set. form: None to tell it.

    Raises UserError where the path is missing or unreadable, or no form fits.
    """
    if form is not None and form not in forms.FORMS:
        raise UserError(f"--format {form}: no such form; write one of {', '.join(forms.FORMS)}")
    if path.is_dir():
        return _open_folder(path, form)
    if not path.is_file():
        raise UserError(f"{path}: no such file or folder")
    if path.parent.name == "qrels" and form in (None, "beir"):
        return [_beir(path.parent.parent, path)]
    kind = rows.KINDS.get(bare(path).suffix.lower())
    if kind is None:
        raise UserError(f"{path}: unknown kind of file; use .jsonl, .csv, .tsv or .parquet (.gz and .zst accepted)")
    found = Source(path, kind, form or _told(path, read_rows(path)))
    if found.form == "tevatron":
        if corpus is None:
            raise UserError(f"{path}: its rows hold ids; name the file of their passages with --corpus")
        found.texts = corpus
    return [found]


def _told(path: Path, source: Iterable[Raw]) -> str:
    first: Row | None = None
    for seen, raw in enumerate(source):
        if raw.values is not None:
            first = first or raw.values
            if form := forms.detect(raw.values):
                return form
        if seen >= LOOKED_AT:
            break
    if first is None:
        raise UserError(f"{path}: no row in it can be read; name a training file")
    columns = rows.clip(", ".join(map(str, first)) or "none", 200)
    raise UserError(f"{path}: the form cannot be told from its columns ({columns}); name it with --format")


def _open_folder(path: Path, form: str | None) -> list[Source]:
    if (path / "qrels").is_dir() and form in (None, "beir"):
        files = sorted((path / "qrels").glob("*.tsv"))
        if not files:
            raise UserError(f"{path}/qrels: no .tsv file in it; a BEIR folder needs one")
        return [_beir(path, next((file for file in files if file.stem == "train"), files[0]))]
    splits = _splits(path)
    found = [Source(path, "saved", form or "", split) for split in splits]
    for source in found:
        source.form = form or _told(path, _saved(path, source.split))
    return found


def _splits(path: Path) -> list[str]:
    if (path / "dataset_dict.json").is_file():
        try:
            return list(json.loads((path / "dataset_dict.json").read_text(encoding="utf-8"))["splits"])
        except (ValueError, KeyError, TypeError):
            raise UserError(f"{path}/dataset_dict.json: broken; save the data set again") from None
    if (path / "dataset_info.json").is_file():
        return [""]
    raise UserError(f"{path}: neither a saved data set nor a BEIR folder; name the files in it")


def _beir(folder: Path, qrels: Path) -> Source:
    texts = Texts()
    for name, kind in (("corpus.jsonl", "passage"), ("queries.jsonl", "query")):
        path = next((p for end in ("", *PACKED) if (p := folder / f"{name}{end}").is_file()), None)
        if path is None:
            raise UserError(f"{folder / name}: a BEIR folder needs this file")
        texts.read(path, kind)
    return Source(qrels, "beir", "beir", texts=texts)


def open_corpus(path: Path) -> Texts:
    """The passages that rows of ids are about. Raises UserError."""
    if not path.is_file():
        raise UserError(f"--corpus {path}: no such file")
    texts = Texts()
    texts.read(path, "passage")
    return texts


# ---------------------------------------------------------------- rows


def read_rows(path: Path) -> Iterator[Raw]:
    kind = rows.KINDS.get(bare(path).suffix.lower(), "jsonl")
    if kind == "parquet":
        return _parquet(path)
    return _jsonl(path) if kind == "jsonl" else _csv(path, "\t" if kind == "tsv" else ",")


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """(line number from 1, bytes). A file that is cut off while packed ends with its last whole line: number 0."""
    number = 0
    try:
        with closing(_opened(path)) as handle:
            for number, raw in enumerate(handle, 1):
                yield number, raw[3:] if number == 1 and raw.startswith(b"\xef\xbb\xbf") else raw
    except (gzip.BadGzipFile, EOFError, zlib.error, pa.ArrowException, OSError) as error:
        if not number:
            reason = getattr(error, "strerror", None) or str(error)
            raise UserError(f"{path}: cannot read ({rows.clip(reason)}); check the file") from None
        yield number + 1, CUT


def _opened(path: Path) -> Any:
    if path.suffix == ".gz":
        return gzip.open(path, "rb")
    if path.suffix == ".zst":
        return io.BufferedReader(pa.input_stream(str(path), compression="zstd"), 1 << 16)
    return path.open("rb")


def _jsonl(path: Path) -> Iterator[Raw]:
    for number, line in _lines(path):
        if line.strip():
            yield _json(number, line)


def _json(number: int, line: bytes) -> Raw:
    if line == CUT:
        return Raw(number, None, Broken("F01", "the packed file is cut off here"))
    try:
        values = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        return Raw(number, None, Broken("F01", f"not UTF-8 (byte 0x{error.object[error.start]:02x})"))
    except (ValueError, RecursionError) as error:
        reason = getattr(error, "msg", "") or ("nested too deep" if isinstance(error, RecursionError) else str(error))
        return Raw(number, None, Broken("F01", f"broken JSON ({reason}): {line[:80].decode('utf-8', 'replace')}"))
    if not isinstance(values, dict):
        return Raw(number, None, Broken("F01", f"{rows.sort_of(values)}, not an object"))
    return Raw(number, values, None)


def _csv(path: Path, delimiter: str) -> Iterator[Raw]:
    bad: list[Broken] = []

    def decoded() -> Iterator[str]:
        for _, line in _lines(path):
            try:
                yield line.decode("utf-8")
            except UnicodeDecodeError as error:
                bad.append(Broken("F01", f"not UTF-8 (byte 0x{error.object[error.start]:02x})"))
                yield line.decode("utf-8", "replace")

    reader = csv.reader(decoded(), delimiter=delimiter)
    header = next(reader, None)
    while header is not None:
        start = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            bad.append(Broken("F01", f"broken CSV ({error})"))
            cells = []
        if cells and len(cells) != len(header) and not bad:
            bad.append(Broken("F01", f"{len(cells)} fields, but the header has {len(header)}"))
        if bad:
            yield Raw(start, None, bad[0])
            bad.clear()
        elif cells:
            yield Raw(start, _typed(dict(zip(header, cells, strict=True))), None)


def _typed(values: Row) -> Row:
    """Labels and scores of a CSV file as the loaders take them: as numbers, lists as JSON."""
    for name in forms.LABELS:
        if name in values:
            try:
                values[name] = json.loads(values[name])
            except ValueError:
                values[name] = math.nan if values[name].strip().lower() == "nan" else values[name]
    return values


def _parquet(path: Path) -> Iterator[Raw]:
    number = 0
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=BATCH):
                for values in _values(batch):
                    number += 1
                    yield Raw(number, values if isinstance(values, dict) else None, _unless_dict(values))
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path}: not a readable Parquet file ({rows.clip(str(error), 160)}); write it again") from None


def _values(batch: pa.RecordBatch) -> Iterator[Row | Broken]:
    try:
        yield from batch.to_pylist()
    except UnicodeDecodeError:
        for row in range(batch.num_rows):
            try:
                yield batch.slice(row, 1).to_pylist()[0]
            except UnicodeDecodeError:
                yield Broken("F01", "not UTF-8")


def _unless_dict(values: Row | Broken) -> Broken | None:
    return None if isinstance(values, dict) else values


def _saved(path: Path, split: str) -> Iterator[Raw]:
    import datasets

    try:
        loaded = datasets.load_from_disk(str(path / split if split else path))
        for number, values in enumerate(loaded, 1):
            yield Raw(number, dict(values), None)
    except (OSError, ValueError, KeyError, pa.ArrowException) as error:
        raise UserError(f"{path}: cannot load the data set ({rows.clip(str(error), 160)}); save it again") from None


# ---------------------------------------------------------------- BEIR


def _judged(qrels: Path, texts: Texts) -> Iterator[Raw]:
    """One row a judged query, as Tevatron's form by ids; a passage judged 0 or less is a negative."""
    texts.database.execute("DELETE FROM qrels")
    for number, raw in _lines(qrels):
        fields = raw.decode("utf-8", "replace").rstrip("\r\n").split("\t")
        if fields == [""] or (number == 1 and fields[:2] == ["query-id", "corpus-id"]):
            continue
        if len(fields) != 3 or not fields[2].removeprefix("-").isdecimal():
            yield Raw(number, None, Broken("F01", f"not query-id, corpus-id, whole number: {' '.join(fields)[:80]}"))
            continue
        texts.database.execute("INSERT INTO qrels VALUES (?, ?, ?, ?)", (fields[0], fields[1], int(fields[2]), number))
    found = texts.database.cursor().execute("SELECT query, doc, relevance, line FROM qrels ORDER BY query, line")
    for query, group in groupby(found, key=lambda one: one[0]):
        judged = list(group)
        sides: tuple[list[str], list[str]] = ([], [])
        for _, doc, relevance, _ in judged:
            sides[relevance <= 0].append(doc)
        values = {"query_id": query, "query_text": texts.get("query", query), "relevance": judged}
        values |= {"positive_document_ids": sides[0], "negative_document_ids": sides[1]}
        yield Raw(judged[0][3], values, None)
