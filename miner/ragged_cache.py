"""Rows of varying length by content: a text's token weights or token vectors, encoded once and kept.

A shard is three files, NAME.npy (the values of all its rows, one row after the other), NAME.offsets.npy (int64[n + 1])
and NAME.keys.npy (S16[n]); the keys are written last, so a shard is there whole or not at all. Names come from keys and
offsets, so two processes may fill one folder at the same time.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from miner.errors import UserError
from miner.store import save_array
from miner.vector_cache import KEY, Array

# A shard that is mapped holds a file open, and a process may have 1024 files by default.
OPEN_SHARDS = 128
# One token of a text and its weight; in a row the tokens ascend and none comes twice.
SPARSE = np.dtype([("token", "<i4"), ("weight", "<f4")])


class Ragged(NamedTuple):
    """n rows of varying length: row i is values[offsets[i]:offsets[i + 1]]; offsets are int64[n + 1] from 0.

    values: SPARSE[total] for token weights, float16[total, d] for token vectors.
    """

    values: Array
    offsets: Array


class RaggedCache:
    """One folder of shards. All rows of a folder have one dtype and one width."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.refresh()

    def refresh(self) -> None:
        """Read keys and offsets of every shard, those of other processes too."""
        names = sorted(self._folder.glob("*.keys.npy"))
        keys = [_load(name) for name in names]
        offsets = [_load(_sibling(name, ".offsets")) for name in names]
        for name, some, cuts in zip(names, keys, offsets, strict=True):
            if len(cuts) != len(some) + 1:
                raise _broken(name, f"{len(some)} keys, {len(cuts)} offsets")
        self._names = names
        self._totals = [int(cuts[-1]) for cuts in offsets]
        self._shard = functools.lru_cache(OPEN_SHARDS)(self._open)
        found = np.concatenate([np.empty(0, KEY), *keys])
        self._keys, first = np.unique(found, return_index=True)
        empty = np.empty(0, np.int64)
        self._home = np.repeat(np.arange(len(keys)), [len(some) for some in keys])[first]
        self._start = np.concatenate([empty, *(cuts[:-1] for cuts in offsets)])[first]
        self._length = np.concatenate([empty, *(np.diff(cuts) for cuts in offsets)])[first]

    def missing(self, wanted: Array) -> Array:
        """bool[n]: which keys (S16[n]) have no row yet."""
        if not len(self._keys):
            return np.ones(len(wanted), bool)
        at = np.minimum(np.searchsorted(self._keys, wanted), len(self._keys) - 1)
        return np.asarray(self._keys[at] != wanted)

    def append(self, keys: Array, values: Array, offsets: Array) -> None:
        """Write one shard of n rows (see Ragged), on disk when this returns; `refresh` makes it readable.

        keys: S16[n]. Raises UserError where the disk is full or the folder cannot be written.
        """
        assert len(offsets) == len(keys) + 1
        assert offsets[-1] == len(values)
        offsets = np.asarray(offsets, np.int64)
        name = hashlib.blake2b(keys.tobytes() + offsets.tobytes(), digest_size=12).hexdigest()
        save_array(self._folder / f"{name}.npy", values)
        save_array(self._folder / f"{name}.offsets.npy", offsets)
        save_array(self._folder / f"{name}.keys.npy", keys)

    def gather(self, wanted: Array) -> Ragged:
        """Copy the rows of `wanted` (S16[n], repeats allowed), in that order. Raises KeyError where one is missing.

        An empty folder has no dtype to tell: then n must be 0, and SPARSE[0] comes back.
        """
        if self.missing(wanted).any():
            raise KeyError(f"{self._folder}: {int(self.missing(wanted).sum())} of {len(wanted)} rows are missing")
        at = np.searchsorted(self._keys, wanted)
        offsets = np.zeros(len(wanted) + 1, np.int64)
        np.cumsum(self._length[at], out=offsets[1:])
        form = self._shard(0) if self._names else np.empty(0, SPARSE)
        out = np.empty((int(offsets[-1]), *form.shape[1:]), form.dtype)
        for home in np.unique(self._home[at]):
            rows = np.flatnonzero(self._home[at] == home)
            source = spread(self._start[at[rows]], self._length[at[rows]])
            out[spread(offsets[rows], self._length[at[rows]])] = self._shard(int(home))[source]
        return Ragged(out, offsets)

    def blocks(self, wanted: Array, size: int) -> Iterator[Ragged]:
        """`gather` for `size` keys at a time, so that a corpus need never be in memory at once."""
        for start in range(0, len(wanted), size):
            yield self.gather(wanted[start : start + size])

    def _open(self, home: int) -> Array:
        values = _load(_sibling(self._names[home], ""), mmap_mode="r")
        if len(values) != self._totals[home]:
            raise _broken(self._names[home], f"{len(values)} values, {self._totals[home]} announced")
        return values


def spread(starts: Array, lengths: Array) -> Array:
    """int64[sum of lengths]: the numbers start, start + 1, … of each run, one run after the other."""
    before = np.cumsum(lengths) - lengths
    return np.asarray(np.repeat(starts - before, lengths) + np.arange(int(lengths.sum())))


def _sibling(keys: Path, part: str) -> Path:
    return keys.with_name(keys.name.replace(".keys", part))


def _load(path: Path, **how: Any) -> Array:
    try:
        return np.asanyarray(np.load(path, **how))
    except (OSError, ValueError, EOFError) as error:
        raise _broken(path, str(error)) from None


def _broken(path: Path, reason: str) -> UserError:
    both = f"{path.name.split('.')[0]}.*"
    return UserError(f"{path}: broken vectors ({reason}); delete {both} there, they are made again")
