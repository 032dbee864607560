"""Files that are either whole or absent: temporary name, fsync, rename; and the hashes that stamps hold."""

from __future__ import annotations

import gzip
import hashlib
import itertools
import json
import mmap
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from miner.errors import UserError

ROWS_PER_GROUP = 1 << 17


def replace(path: Path, write: Callable[[Path], object]) -> None:
    """Call `write` on a temporary name beside `path`, then fsync and rename it to `path`."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{path}: cannot write, no folder there ({error.strerror}); choose another folder") from None
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        write(part)
        with part.open("rb") as handle:
            os.fsync(handle.fileno())
        part.replace(path)
    except OSError as error:
        raise UserError(f"{path}: cannot write ({error.strerror}); free space or choose another folder") from None
    finally:
        part.unlink(missing_ok=True)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def let_go(mapped: np.ndarray[Any, Any]) -> None:
    """The pages read of a memory-mapped array are this process's memory no more; whoever reads on has them back."""
    base: Any = mapped.base
    if isinstance(base, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
        base.madvise(mmap.MADV_DONTNEED)


def unused_name(path: Path) -> Path:
    """`path`, or the first of path-2, path-3, … that is not there; the suffixes stay."""
    stem, dot, suffixes = path.name.partition(".")
    names = (path.with_name(f"{stem}{f'-{n}' if n > 1 else ''}{dot}{suffixes}") for n in itertools.count(1))
    return next(name for name in names if not name.exists())


def write_text(path: Path, text: str) -> None:
    replace(path, lambda part: part.write_text(text, encoding="utf-8"))


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, ensure_ascii=False, indent=2) + "\n")


def write_jsonl(path: Path, rows: Iterable[Any]) -> int:
    """One compact JSON object a line; gzip where the name ends in .gz. Returns the number of rows."""
    count = 0

    def write(part: Path) -> None:
        nonlocal count
        with part.open("wb") as raw, _packed(raw, path) as handle:
            for row in rows:
                handle.write(json.dumps(row, ensure_ascii=False, separators=(",", ":")).encode() + b"\n")
                count += 1

    replace(path, write)
    return count


def _packed(raw: IO[bytes], path: Path) -> Any:
    # mtime=0 and no file name: the same rows give the same bytes.
    return gzip.GzipFile("", "wb", 9, raw, mtime=0) if path.suffix == ".gz" else raw


def write_table(path: Path, table: pa.Table) -> None:
    write_batches(path, table.schema, [table])


def write_batches(path: Path, schema: pa.Schema, tables: Iterable[pa.Table]) -> int:
    """Stream tables of one schema into one Parquet file. Returns the number of rows."""
    count = 0
    # Scores hardly repeat, and nobody looks for one: a dictionary and statistics of them cost a third of the time.
    worded = [path for field in schema for path in _leaves(field.name, field.type)]
    told = [field.name for field in schema if not (pa.types.is_nested(field.type) or pa.types.is_floating(field.type))]

    def write(part: Path) -> None:
        nonlocal count
        with pq.ParquetWriter(part, schema, compression="zstd", use_dictionary=worded, write_statistics=told) as writer:
            for table in tables:
                writer.write_table(table.cast(schema), row_group_size=ROWS_PER_GROUP)
                count += table.num_rows

    replace(path, write)
    return count


def _leaves(path: str, of: pa.DataType) -> list[str]:
    """The columns of a Parquet file that a field becomes, those of floats left out."""
    if pa.types.is_list(of) or pa.types.is_large_list(of):
        return _leaves(f"{path}.list.element", of.value_type)
    if pa.types.is_struct(of):
        return [leaf for field in of for leaf in _leaves(f"{path}.{field.name}", field.type)]
    return [] if pa.types.is_floating(of) else [path]


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """A table of the job is read inside: what pyarrow raises becomes one line, a UserError."""
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{path}: cannot read ({reason}); run the job, which makes it anew") from None


def read_table(path: Path, columns: list[str] | None = None, filters: list[Any] | None = None) -> pa.Table:
    """filters: as pyarrow takes them; row groups that cannot hold such a row are not read. Raises UserError."""
    with readable(path):
        return pq.read_table(path, columns=columns, filters=filters)


def count_rows(path: Path) -> int:
    with readable(path):
        return int(pq.read_metadata(path).num_rows)


def iter_tables(path: Path, columns: list[str] | None = None) -> Iterator[pa.Table]:
    """The row groups of a Parquet file, a user's or a job's, one after the other. Raises what pyarrow raises: the
    caller knows whose file it is and what mends it."""
    with pq.ParquetFile(path) as file:
        for group in range(file.num_row_groups):
            yield file.read_row_group(group, columns=columns)


def save_array(path: Path, array: np.ndarray[Any, Any]) -> None:
    def write(part: Path) -> None:
        with part.open("wb") as handle:
            np.save(handle, array)

    replace(path, write)


def open_lines(path: Path) -> gzip.GzipFile | IO[bytes]:
    """A file for reading line by line; .gz is unpacked on the way."""
    return gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb")


def digest(value: Any) -> str:
    """64 hex digits: the SHA-256 of a value's canonical JSON (sorted keys, no spaces, UTF-8)."""
    text = json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def file_digest(path: Path) -> str:
    try:
        with path.open("rb") as handle:
            return hashlib.file_digest(handle, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
    except OSError as error:
        raise UserError(f"{path}: cannot read ({error.strerror}); check the file and its permissions") from None


def tree_digest(folder: Path) -> dict[str, str]:
    """Content hash of each file below a folder, by relative name, in order."""
    files = sorted(p for p in folder.rglob("*") if p.is_file() and not p.name.endswith(".part"))
    return {p.relative_to(folder).as_posix(): file_digest(p) for p in files}


def promote(work: Path, final: Path) -> None:
    """Put a finished folder in the place of an older one."""
    old = final.with_name(f".{final.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if final.exists():
        final.replace(old)
    work.replace(final)
    sync_folder(final.parent)
    shutil.rmtree(old, ignore_errors=True)


def made(folder: Path, name: str, make: Callable[[Path], None]) -> Path:
    """folder/name, made by `make` in a folder beside it if it is not there; another process may do the same."""
    target = folder / name
    if not target.is_file():
        work = folder.with_name(f".{folder.name}.{os.getpid()}.part")
        try:
            work.mkdir(parents=True, exist_ok=True)
            make(work / name)
            promote(work, folder)
        except OSError as error:
            raise UserError(
                f"{folder.parent}: cannot write ({error.strerror}); set XDG_CACHE_HOME to another folder"
            ) from None
        finally:
            shutil.rmtree(work, ignore_errors=True)
    return target
