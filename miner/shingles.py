"""Texts as sets of hashed word triples, and how much of them two texts share."""

from __future__ import annotations

import hashlib
import re
import string
from collections.abc import Iterable, Iterator
from functools import lru_cache
from itertools import chain, islice
from typing import Any, NamedTuple

import numpy as np

from miner.ranking import mix
from miner.records import fold

Array = np.ndarray[Any, Any]
WIDTH = 3
ROW_BITS, HASH_BITS = np.uint64(13), np.uint64(51)
BATCH = 1 << 13  # texts whose shingles are made at once, and pairs that are compared at once: ROW_BITS number them
ELEMENTS = 1 << 21  # shingles that are sorted at once
EDGES = string.punctuation + "“”‘’‚„«»‹›…–—·¿¡、。，．！？：；（）「」『』【】《》〈〉"
# Scripts written without spaces: Thai to Burmese, Khmer, kana, bopomofo, ideographs and their extensions.
UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3005-\u3007\u3040-\u312f\u31a0-\u31ff"
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff66-\uff9f\U00020000-\U0003ffff"
)
_RUN = re.compile(f"[{UNSPACED}]+")


class Ragged(NamedTuple):
    """Sets in a row. values: uint64, ascending and unique within a row; row i is values[offsets[i]:offsets[i + 1]]."""

    values: Array
    offsets: Array

    @property
    def sizes(self) -> Array:
        return np.diff(self.offsets)


def words(text: str) -> list[str]:
    """The words of a text: folded, split at white space, punctuation at their ends taken off.

    A run of a script written without spaces gives its overlapping character triples, so that three words of it in a
    row, one shingle, span five characters.
    """
    return [word for word in (piece.strip(EDGES) for piece in _pieces(text)) if word]


def _pieces(text: str) -> list[str]:
    folded = fold(text)
    return (folded if folded.isascii() else _RUN.sub(_triples, folded)).split()


def _triples(run: re.Match[str]) -> str:
    found = run.group()
    return f" {' '.join(found[i : i + 3] for i in range(max(1, len(found) - 2)))} "


def shingle_hashes(texts: Iterable[str]) -> Ragged:
    """The hashed word 3-shingles of each text. Never empty: a text of fewer than 3 words is one shingle as a whole.

    A hash depends on the words alone, not on the process, and has 51 bits: 1 in 2^51 pairs of shingles meets by chance.
    """
    source = iter(texts)
    values, sizes = [np.empty(0, np.uint64)], [np.empty(0, np.int64)]
    while batch := list(islice(source, BATCH)):
        found = _batch(batch)
        values.append(found.values)
        sizes.append(found.sizes)
    return Ragged(np.concatenate(values), np.r_[0, np.cumsum(np.concatenate(sizes))])


def _batch(texts: list[str]) -> Ragged:
    split = [_hashes(text) for text in texts]
    flat = np.fromiter(chain.from_iterable(split), np.uint64)
    counts = np.array([len(row) for row in split], np.int64) - (WIDTH - 1)
    at = ranges(np.r_[0, np.cumsum(counts + WIDTH - 1)[:-1]], counts)
    key = _keyed(np.repeat(np.arange(len(texts)), counts), mix(flat[at] + mix(flat[at + 1] + mix(flat[at + 2]))))
    key = key[np.r_[True, key[1:] != key[:-1]]]
    sizes = np.bincount((key >> HASH_BITS).astype(np.int64), minlength=len(texts))
    return Ragged(key & (~np.uint64(0) >> ROW_BITS), np.r_[0, np.cumsum(sizes)])


def _keyed(row: Array, values: Array) -> Array:
    """uint64[n], ascending: the row in the upper bits, the upper bits of the value below; one plain sort for both."""
    return np.sort((row.astype(np.uint64) << HASH_BITS) | (values >> ROW_BITS))


def _hashes(text: str) -> list[int]:
    """At least three. No word is empty or has a space, so a text made whole meets no true shingle."""
    found = [value for value in map(_hash, _pieces(text)) if value]
    if len(found) < WIDTH:
        found = [_hash64(" ".join(words(text)) or f" {fold(text)}"), 0, 0]
    return found


@lru_cache(maxsize=1 << 18)
def _hash(piece: str) -> int:
    """Of the word in a piece of text; 0 where it is punctuation alone."""
    word = piece.strip(EDGES)
    return _hash64(word) if word else 0


def _hash64(word: str) -> int:
    return int.from_bytes(hashlib.blake2b(word.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little") or 1


def ranges(starts: Array, counts: Array) -> Array:
    """int64[sum(counts)]: starts[0], starts[0] + 1, … (counts[0] of them), then from starts[1], and so on."""
    before = np.cumsum(counts) - counts
    return np.asarray(np.repeat(starts - before, counts) + np.arange(counts.sum()))


def pair_jaccard(a: Ragged, a_rows: Array, b: Ragged, b_rows: Array) -> Array:
    """float64[n]: the Jaccard similarity of row a_rows[i] of `a` and row b_rows[i] of `b`, exact."""
    total = a.sizes[a_rows] + b.sizes[b_rows]
    shared = np.zeros(len(total), np.int64)
    for some in spans(np.maximum(total, -(-ELEMENTS // BATCH)), ELEMENTS):
        shared[some] = _shared(a, a_rows[some], b, b_rows[some])
    return np.asarray(shared / np.maximum(total - shared, 1))


def spans(weights: Array, limit: int) -> Iterator[slice]:
    """Slices of the array whose weights sum to at most `limit` each, or hold one element that alone is above."""
    ends = np.cumsum(weights)
    start = 0
    while start < len(weights):
        before = ends[start - 1] if start else 0
        stop = max(start + 1, int(np.searchsorted(ends, before + limit, side="right")))
        yield slice(start, stop)
        start = stop


def _shared(a: Ragged, a_rows: Array, b: Ragged, b_rows: Array) -> Array:
    """int64[n]: the size of the intersection. No row holds a value twice, so a value met twice in a pair is shared."""
    sides = ((a, a_rows), (b, b_rows))
    values = np.concatenate([sets.values[ranges(sets.offsets[rows], sets.sizes[rows])] for sets, rows in sides])
    pair = np.concatenate([np.repeat(np.arange(len(rows)), sets.sizes[rows]) for sets, rows in sides])
    key = _keyed(pair, values << ROW_BITS)
    twice = key[1:][key[1:] == key[:-1]] >> HASH_BITS
    return np.bincount(twice.astype(np.int64), minlength=len(a_rows))
