"""Vectors by content: a text that was encoded once, with the same encoder, is never encoded again.

A shard is two files, NAME.npy (float32[n, d]) and NAME.keys.npy (S16[n]); the keys are written last, so a shard is
there whole or not at all. Names come from the keys, so two processes may fill one folder at the same time.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from miner.errors import UserError
from miner.store import save_array

Array = np.ndarray[Any, Any]
KEY = "S16"


def keys(texts: Iterable[str], count: int) -> Array:
    """S16[count]: the BLAKE2b digest of each text."""
    digests = (hashlib.blake2b(text.encode(), digest_size=16).digest() for text in texts)
    return np.fromiter(digests, KEY, count)


def _load(path: Path, **how: Any) -> Array:
    try:
        return np.asanyarray(np.load(path, **how))
    except (OSError, ValueError, EOFError) as error:
        both = f"{path.name.split('.')[0]}.*"
        raise UserError(f"{path}: broken vectors ({error}); delete {both} there, they are made again") from None


class VectorCache:
    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._shards: list[Path] = []  # opened when read: a file each would soon be more than a process may hold
        self._keys = np.empty(0, KEY)
        self._place = np.empty((0, 2), np.int64)
        self.refresh()

    def refresh(self) -> None:
        """Read the keys of every shard, those of other processes too."""
        names = sorted(self._folder.glob("*.keys.npy"))
        parts = [_load(name) for name in names]
        self._shards = [n.with_name(n.name.replace(".keys", "")) for n in names]
        found = np.concatenate(parts) if parts else np.empty(0, KEY)
        place = [np.stack([np.full(len(p), i), np.arange(len(p))], axis=1) for i, p in enumerate(parts)]
        self._keys, first = np.unique(found, return_index=True)
        self._place = np.concatenate(place)[first] if place else np.empty((0, 2), np.int64)

    @property
    def dimension(self) -> int:
        """The width of the vectors there; 0 where there are none. UserError where an encoder changed its width."""
        widths = {_load(shard, mmap_mode="r").shape[1] for shard in self._shards}
        if len(widths) > 1:
            raise UserError(f"{self._folder}: vectors of {sorted(widths)} dimensions under one name; delete the folder")
        return widths.pop() if widths else 0

    def missing(self, wanted: Array) -> Array:
        """bool[n]: which keys have no vector yet."""
        if not len(self._keys):
            return np.ones(len(wanted), bool)
        at = np.minimum(np.searchsorted(self._keys, wanted), len(self._keys) - 1)
        return np.asarray(self._keys[at] != wanted)

    def append(self, new_keys: Array, vectors: Array) -> None:
        """Write one shard, on disk when this returns; `refresh` makes it readable."""
        name = hashlib.blake2b(new_keys.tobytes(), digest_size=12).hexdigest()
        save_array(self._folder / f"{name}.npy", vectors)
        save_array(self._folder / f"{name}.keys.npy", new_keys)

    def gather(self, wanted: Array, out: Array) -> None:
        """Copy the vectors of `wanted`, all of which must be there, into out: float32[n, d]."""
        place = self._place[np.searchsorted(self._keys, wanted)]
        for shard in np.unique(place[:, 0]):
            rows = np.flatnonzero(place[:, 0] == shard)
            out[rows] = _load(self._shards[shard], mmap_mode="r")[place[rows, 1]]
