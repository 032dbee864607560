"""The files that exporters write: one, or shards in a folder; Parquet or JSON lines; packed where wanted.

Of a format NAME the file is NAME.ext, or NAME/00000.ext and on where rows_per_shard is set; what is held out lies in
dev/, so that a trainer that is given a folder does not read it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import chain, islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from miner.config import Export
from miner.config.export import PLAIN
from miner.store import replace

BATCH = 4096  # rows of a Parquet row group


def place(name: str, split: str) -> str:
    """The path without its ending, below the export folder."""
    return name if split == "train" else f"{split}/{name}"


def parquet(
    folder: Path, stem: str, schema: pa.Schema, tables: Iterable[pa.Table], settings: Export
) -> tuple[int, str]:
    """Returns the number of rows and the pattern of the files. No rows: one file without rows."""

    def write(part: Path, groups: Iterator[pa.Table]) -> int:
        rows = 0
        with pq.ParquetWriter(part, schema, compression=settings.compression) as writer, ThreadPoolExecutor(1) as pool:
            before: Future[None] | None = None  # a group is packed while the next one is gathered
            for table in groups:
                if before is not None:
                    before.result()
                before = pool.submit(writer.write_table, table)
                rows += table.num_rows
            if before is not None:
                before.result()
        return rows

    limit = settings.rows_per_shard
    groups = _even(tables, schema, min(BATCH, limit) if limit else BATCH)
    if limit is None:
        return _one(folder / f"{stem}.parquet", groups, write), f"{stem}.parquet"
    return _shards(folder / stem, ".parquet", _dealt(groups, limit), write), f"{stem}/*.parquet"


def _even(tables: Iterable[pa.Table], schema: pa.Schema, size: int) -> Iterator[pa.Table]:
    """The same rows in tables of `size` rows; the last may have fewer."""
    waiting: list[pa.Table] = []
    count, empty = 0, True
    for table in tables:
        waiting.append(table.cast(schema))
        count += table.num_rows
        if count < size:
            continue
        whole = pa.concat_tables(waiting)
        for start in range(0, count - size + 1, size):
            empty = False
            yield whole.slice(start, size)
        waiting = [whole.slice(count - count % size)]
        count %= size
    if count or empty:
        yield pa.concat_tables([*waiting, schema.empty_table()])


def _dealt(groups: Iterator[pa.Table], limit: int) -> Iterator[Iterator[pa.Table]]:
    """One iterator of tables for each shard of `limit` rows, to be used up in turn."""
    left: list[pa.Table] = []

    def shard(first: pa.Table) -> Iterator[pa.Table]:
        room, table = limit, first
        while table is not None:
            yield table.slice(0, room)
            if table.num_rows > room:
                left.append(table.slice(room))
            room -= min(room, table.num_rows)
            table = next(groups, None) if room else None

    while (first := left.pop() if left else next(groups, None)) is not None:
        yield shard(first)


def lines(folder: Path, stem: str, rows: Iterable[dict[str, Any]], settings: Export, name: str = "") -> tuple[int, str]:
    """JSON lines, one compact object each, UTF-8. name: the format, where it is not the stem's last part.

    Returns the number of rows and the pattern of the files. No rows: one empty file.
    """
    packed = settings.compression if (name or Path(stem).name) not in PLAIN else "none"
    ending = ".jsonl" + {"gzip": ".gz", "zstd": ".zst"}.get(packed, "")

    def write(part: Path, some: Iterator[dict[str, Any]]) -> int:
        count = 0
        with _opened(part, packed) as out:
            for row in some:
                out.write(json.dumps(row, ensure_ascii=False, separators=(",", ":")).encode() + b"\n")
                count += 1
        return count

    source = iter(rows)
    if settings.rows_per_shard is None:
        return _one(folder / f"{stem}{ending}", source, write), f"{stem}{ending}"
    shards = _chunks(source, settings.rows_per_shard)
    return _shards(folder / stem, ending, shards, write), f"{stem}/*{ending}"


def _opened(part: Path, packed: str) -> Any:
    # Arrow's streams write no name and no time into the file: the same rows give the same bytes.
    return pa.CompressedOutputStream(str(part), packed) if packed in ("gzip", "zstd") else part.open("wb")


def _chunks(rows: Iterator[Any], size: int) -> Iterator[Iterator[Any]]:
    while first := list(islice(rows, 1)):
        yield chain(first, islice(rows, size - 1))


def _one(path: Path, rows: Iterator[Any], write: Callable[[Path, Iterator[Any]], int]) -> int:
    count = 0

    def fill(part: Path) -> None:
        nonlocal count
        count = write(part, rows)

    replace(path, fill)
    return count


def _shards(
    folder: Path, ending: str, shards: Iterator[Iterator[Any]], write: Callable[[Path, Iterator[Any]], int]
) -> int:
    number = count = 0
    for number, rows in enumerate(shards, start=1):
        count += _one(folder / f"{number - 1:05}{ending}", rows, write)
    if not number:
        count = _one(folder / f"00000{ending}", iter(()), write)
    return count
