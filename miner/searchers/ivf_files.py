"""An IVF on disk: one file, or where the codes are many, several, none of which took more memory than PART to make.

    dense.faiss                     centroids, codebooks, and the first rows in their lists
    dense-001.faiss, dense-002 …    the same with the rows that follow

Opened they are one index whose lists are those of all files, one behind the other: what one file would hold.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import faiss
import numpy as np

from miner import store
from miner.errors import UserError
from miner.searchers import Array, exact

_faiss: Any = faiss  # whose type stubs lack some functions
PART = 1 << 30  # bytes of codes and row numbers in a file; lists that grow take up to twice that while it is made
ID = 8


def write(path: Path, trained: Array, blocks: Iterable[Array]) -> int:
    """trained: uint8[n], a serialised IVF without rows; blocks: codes uint8[b, size], in the order of the rows.

    Returns the bytes written. Files of a longer index, left by an interrupted run, are deleted.
    """
    size = count = 0
    for old in _further(path):
        old.unlink()
    for number, index in enumerate(_parts(trained, blocks)):
        name = path if not number else path.with_name(f"{path.stem}-{number:03d}{path.suffix}")
        _write(name, index)
        size, count = size + name.stat().st_size, count + 1
    if not count:
        _write(path, exact.unpacked(trained))
    return size


def _write(path: Path, index: Any) -> None:
    store.replace(path, lambda part: faiss.write_index(index, str(part)))


def _parts(trained: Array, blocks: Iterable[Array]) -> Iterator[Any]:
    """Indexes of some rows each. One is dropped before the next is begun."""
    index, start = None, 0
    for codes in blocks:
        if index is None:
            index = exact.unpacked(trained)
        ids = np.arange(start, start + len(codes))
        index.add_sa_codes(codes, ids)
        start += len(codes)
        if index.ntotal * (index.code_size + ID) >= PART:
            yield index
            index = None
    if index is not None:
        yield index


def is_ivf(path: Path) -> bool:
    try:
        with path.open("rb") as handle:
            return handle.read(2) == b"Iw"  # faiss's four letters of an IVF index: IwFl, IwPQ
    except OSError as error:
        raise UserError(f"{path}: cannot read ({error.strerror}); run the job, which makes it anew") from None


def files(path: Path) -> list[Path]:
    return [path, *_further(path)]


def _further(path: Path) -> list[Path]:
    return sorted(path.parent.glob(f"{path.stem}-[0-9]*{path.suffix}"))


def read(path: Path, mapped: bool) -> Any:
    """All files as one index, memory-mapped or in memory. RuntimeError where faiss cannot read one."""
    flags = faiss.IO_FLAG_MMAP if mapped else 0
    whole, parts = _faiss.read_index(str(path), flags), files(path)
    if len(parts) == 1:
        return whole
    if not mapped:
        for part in parts[1:]:
            whole.merge_from(_faiss.read_index(str(part)), 0)
        return whole
    held = [_faiss.read_index(str(part), flags) for part in parts]
    pointers = _faiss.InvertedListsPtrVector()
    for part in held:
        pointers.push_back(part.invlists)
    stacked = _faiss.HStackInvertedLists(pointers.size(), pointers.data())
    whole.replace_invlists(stacked, False)
    whole.ntotal = sum(part.ntotal for part in held)
    whole.referenced_objects = [stacked, pointers, *held]
    return whole


def cut(path: Path, low: int, high: int) -> Any:
    """The rows low..high of an index as one in memory, which holds their codes and no more."""
    index = _faiss.read_index(str(path), faiss.IO_FLAG_MMAP)
    empty = _faiss.ArrayInvertedLists(index.nlist, index.code_size)
    empty.this.disown()  # the index frees it
    index.replace_invlists(empty, True)
    index.ntotal = 0
    for part in files(path):
        whole = _faiss.read_index(str(part), faiss.IO_FLAG_MMAP)
        whole.copy_subset_to(index, _faiss.InvertedLists.SUBSET_TYPE_ID_RANGE, low, high)
    return index
