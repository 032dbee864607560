"""Vectors made elsewhere: .npy with an ids file beside it (STEM.ids.txt, .ids.json or .ids.npy), or Parquet.

A file is read once, from front to back, in blocks; each row goes where its id stands in the wanted order.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from miner import config
from miner.errors import UserError
from miner.store import file_digest, replace

Vectors = np.ndarray[Any, np.dtype[np.float32]]

BLOCK_BYTES = 32 << 20
IDS = (".ids.txt", ".ids.json", ".ids.npy")
VECTOR_COLUMNS = ("vector", "embedding")
Array = np.ndarray[Any, Any]


class Block(NamedTuple):
    ids: list[str]
    vectors: Array  # floating point [len(ids), d]


class Precomputed:
    """The two files of a job."""

    def __init__(self, settings: config.Encoder) -> None:
        assert settings.passages_file, "the settings refuse backend precomputed without files"
        assert settings.queries_file
        self._paths = {"passages": Path(settings.passages_file), "queries": Path(settings.queries_file)}
        widths = {name: dimension(path) for name, path in self._paths.items()}
        if widths["passages"] != widths["queries"]:
            raise UserError(
                f"encoder.queries_file {settings.queries_file}: {widths['queries']} dimensions, but passages_file has"
                f" {widths['passages']}; encode both with one model"
            )
        self.dimension = widths["passages"]

    def write(self, name: str, ids: list[str], target: Path) -> None:
        """Write the .npy float32[len(ids), dimension] of `passages` or `queries`, L2-normalised, in the ids' order."""
        shape = (len(ids), self.dimension)

        def fill(part: Path) -> None:
            out = np.lib.format.open_memmap(part, mode="w+", dtype=np.float32, shape=shape)
            _scatter(self._paths[name], ids, out)
            out.flush()

        replace(target, fill)


def load(settings: config.Encoder) -> Precomputed:
    """Raises UserError where a file or its ids are missing, or the two do not fit together."""
    return Precomputed(settings)


def fingerprint(settings: config.Encoder) -> dict[str, Any]:
    """The contents of the files, and never their paths."""
    found: dict[str, Any] = {"backend": "precomputed", "query_prefix": "", "passage_prefix": ""}
    for name in ("passages_file", "queries_file"):
        path = _there(Path(getattr(settings, name)))
        beside = [_ids_file(path)] if path.suffix == ".npy" else []
        found[name] = [file_digest(file) for file in (path, *beside)]
    return found


def read(path: Path, ids: list[str]) -> Vectors:
    """float32[len(ids), d], L2-normalised, in the order of `ids`; rows of other ids are left out.

    Raises UserError naming file, row (from 0) and id for a missing or doubled id, NaN, infinity or a zero vector, and
    for a file whose form is wrong.
    """
    out = np.empty((len(ids), dimension(path)), np.float32)
    _scatter(path, ids, out)
    return out


def dimension(path: Path) -> int:
    """The width of the vectors of a file."""
    if _there(path).suffix == ".npy":
        return int(_npy(path).shape[1])
    first = next(_parquet_blocks(path), None)
    if first is None:
        raise UserError(f"{path}: no rows; encode the texts first")
    return int(first.vectors.shape[1])


def _scatter(path: Path, ids: list[str], out: Array) -> None:
    wanted = {name: place for place, name in enumerate(ids)}
    seen: dict[str, int] = {}
    row = 0
    for block in _blocks(path):
        for offset, name in enumerate(block.ids):
            if name in seen:
                raise UserError(f"{path}: row {row + offset}: id {name!r} stands in row {seen[name]} too; keep one")
            seen[name] = row + offset
        chosen = [offset for offset, name in enumerate(block.ids) if name in wanted]
        if chosen:
            names = [block.ids[offset] for offset in chosen]
            numbers = [row + offset for offset in chosen]
            out[[wanted[name] for name in names]] = _normalised(path, block.vectors[chosen], numbers, names)
        row += len(block.ids)
    lacking = next((name for name in ids if name not in seen), None)
    if lacking is not None:
        count = sum(name not in seen for name in ids)
        raise UserError(
            f"{path}: no vector of id {lacking!r} ({count} of {len(ids)} ids lack one); encode the whole data,"
            " under its own ids"
        )


def _normalised(path: Path, vectors: Array, rows: list[int], names: list[str]) -> Vectors:
    wide = vectors.astype(np.float64)
    norms = np.linalg.norm(wide, axis=1, keepdims=True)
    bad = np.flatnonzero(~np.isfinite(norms[:, 0]) | (norms[:, 0] == 0))
    if len(bad):
        what = "a zero vector" if norms[bad[0], 0] == 0 else "NaN or infinity in the vector"
        raise UserError(f"{path}: row {rows[bad[0]]}, id {names[bad[0]]!r}: {what}; encode that text again")
    return np.asarray(wide / norms, np.float32)


def _there(path: Path) -> Path:
    if path.suffix not in (".npy", ".parquet"):
        raise UserError(f"{path}: vectors are read from .npy (ids beside it) or .parquet; write one of the two")
    if not path.is_file():
        raise UserError(f"{path}: no such file; encode the texts first, or set the path right")
    return path


def _blocks(path: Path) -> Iterator[Block]:
    return _npy_blocks(path) if _there(path).suffix == ".npy" else _parquet_blocks(path)


# ---------------------------------------------------------------- .npy


def _npy_blocks(path: Path) -> Iterator[Block]:
    vectors, ids = _npy(path), _ids(_ids_file(path))
    if len(ids) != len(vectors):
        raise UserError(f"{path}: {len(vectors)} rows, but {_ids_file(path).name} has {len(ids)} ids; write both anew")
    step = max(BLOCK_BYTES // (8 * vectors.shape[1]), 1)
    for start in range(0, len(vectors), step):
        yield Block(ids[start : start + step], vectors[start : start + step])


def _npy(path: Path) -> Array:
    try:
        vectors = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{path}: not a .npy of vectors ({_line(error)}); write it with numpy.save") from None
    if not isinstance(vectors, np.ndarray) or vectors.ndim != 2 or vectors.dtype.kind != "f" or not vectors.shape[1]:
        kind = f"{vectors.dtype}{list(vectors.shape)}" if isinstance(vectors, np.ndarray) else "an archive"
        raise UserError(f"{path}: {kind}, not floating point [rows, dimensions]; write one vector a row")
    return vectors


def _ids_file(path: Path) -> Path:
    found = [file for file in (path.with_suffix(end) for end in IDS) if file.is_file()]
    if len(found) == 1:
        return found[0]
    names = ", ".join(file.name for file in found)
    raise UserError(
        f"{path}: "
        + (f"{names} both hold ids; keep one" if found else f"no {path.stem}.ids.txt (or .json, .npy) beside it")
        + ("" if found else "; write one id a row")
    )


def _ids(path: Path) -> list[str]:
    """The ids of a file, numbers as text."""
    try:
        if path.suffix == ".npy":
            values: Any = np.load(path, allow_pickle=False).tolist()
        else:
            text = path.read_text(encoding="utf-8-sig")
            values = json.loads(text) if path.suffix == ".json" else text.removesuffix("\n").split("\n")
    except (OSError, ValueError, EOFError, RecursionError) as error:
        raise UserError(f"{path}: cannot read the ids ({_line(error)}); write them anew") from None
    if not isinstance(values, list):
        raise UserError(f"{path}: no list of ids; write one id a row")
    for row, value in enumerate(values):
        if isinstance(value, bool) or not isinstance(value, str | int) or not str(value).strip():
            raise UserError(f"{path}: row {row}: {value!r:.60} is no id; an id is text or a whole number")
    return [str(value).rstrip("\r") for value in values]


# ---------------------------------------------------------------- Parquet


def _parquet_blocks(path: Path) -> Iterator[Block]:
    with _explained(path), pq.ParquetFile(path) as file:
        column = _columns(path, file.schema_arrow)
    width: int | None = None
    row = 0
    step = 4096
    with pq.ParquetFile(path) as file:
        batches = iter(file.iter_batches(batch_size=step, columns=["id", column]))
        while (batch := _next(path, batches)) is not None:
            block = _block(path, batch, column, row, width)
            width = block.vectors.shape[1]
            row += len(block.ids)
            yield block


def _next(path: Path, batches: Iterator[pa.RecordBatch]) -> pa.RecordBatch | None:
    with _explained(path):
        return next((batch for batch in batches if batch.num_rows), None)


def _columns(path: Path, schema: pa.Schema) -> str:
    """The name of the vector column."""
    column = next((name for name in VECTOR_COLUMNS if name in schema.names), None)
    if "id" not in schema.names or column is None:
        raise UserError(f"{path}: columns {', '.join(schema.names)[:120]}; it needs id, and vector or embedding")
    of = schema.field(column).type
    lists = pa.types.is_list(of) or pa.types.is_large_list(of) or pa.types.is_fixed_size_list(of)
    if not lists or not pa.types.is_floating(of.value_type):
        raise UserError(f"{path}: column {column} is {of}; write lists of floats")
    return column


def _block(path: Path, batch: pa.RecordBatch, column: str, row: int, width: int | None) -> Block:
    ids = [None if i is None else str(i) for i in batch.column("id").to_pylist()]
    vectors = batch.column(column)
    lengths = pc.list_value_length(vectors).to_pylist()
    width = width or lengths[0]
    for offset, (name, length) in enumerate(zip(ids, lengths, strict=True)):
        if not name:
            raise UserError(f"{path}: row {row + offset}: no id; give each row its text's id")
        if not length or length != width:
            raise UserError(
                f"{path}: row {row + offset}, id {name!r}: {length or 'no'} dimensions, the rows before have {width};"
                " encode all with one model"
            )
    values = vectors.flatten()
    values = values.to_numpy(zero_copy_only=False)  # a null inside a vector becomes NaN, which is refused
    return Block([name for name in ids if name], values.reshape(len(ids), width))


class _explained:
    """What Arrow raises for a broken file, as one line."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, pa.ArrowException | OSError):
            raise UserError(f"{self._path}: not a readable Parquet file ({_line(error)}); write it anew") from None


def _line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
