"""Candidates that are refused for what they say: copies in other words, holders of the answer, twins' positives.

Lists are flat: parallel arrays sorted by (query, rank), as in `miner.ranking`. `query` is any number that is the same
for the candidates and the positives of one query; `row` points into the passages table. A caller that hands over only
the candidates that no earlier test refused saves time, and nothing is then refused for being like a refused one.
"""

from __future__ import annotations

import json
import re
import sys
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa

from miner.errors import UserError
from miner.shingles import UNSPACED, Ragged, pair_jaccard, ranges, shingle_hashes, spans

Array = np.ndarray[Any, Any]
TextOf = Callable[[Array], Iterable[str]]
Similar = Callable[[Array, Array], Array]
Measure = Callable[[Array], Similar]
ROWS = 1 << 15  # candidates and positives whose texts are compared at once
SIDE = 1 << 10  # of a matrix of similarities
PAIRS = 1 << 15  # vectors multiplied at once
TEXTS = 1 << 13  # normalised texts in memory at once
BITS = 512

# ---------------------------------------------------------------- near-duplicates


def near_duplicates(
    query: Array, row: Array, pos_query: Array, pos_row: Array, measure: Measure, threshold: float
) -> tuple[Array, Array]:
    """bool[n] twice: like a positive of its query; like a better candidate of its query.

    A candidate that is refused itself refuses nobody, so of a chain a-b-c of which only neighbours are alike, c stays.
    measure: called with the distinct passage rows of some queries (int64, ascending), it gives `similar`, which for
    rows a[n], b[m] among them gives their similarities, [n, m]; `jaccard` and `cosine` make such.
    """
    of_positive, of_better = np.zeros(len(query), bool), np.zeros(len(query), bool)
    order = np.argsort(pos_query, kind="stable")
    pos_query, pos_row = pos_query[order], pos_row[order]
    names, starts = np.unique(query, return_index=True)
    stops = np.r_[starts[1:], len(query)]
    known = np.searchsorted(pos_query, names), np.searchsorted(pos_query, names, side="right")
    for some in spans(stops - starts + known[1] - known[0], ROWS):
        rows = [row[slice(*at)] for at in zip(starts[some], stops[some], strict=True)]
        positives = [pos_row[slice(*at)] for at in zip(known[0][some], known[1][some], strict=True)]
        similar = measure(np.unique(np.concatenate([*rows, *positives])))
        for start, mine, theirs in zip(starts[some], rows, positives, strict=True):
            at = slice(start, start + len(mine))
            of_positive[at] = _any_like(mine, theirs, similar, threshold)
            of_better[at] = _like_better(mine, of_positive[at], similar, threshold)
    return of_positive, of_better


def _any_like(a: Array, b: Array, similar: Similar, threshold: float) -> Array:
    """bool[len(a)]: is like some row of b."""
    found = np.zeros(len(a), bool)
    for left in range(0, len(a), SIDE):
        for right in range(0, len(b), SIDE):
            matrix = similar(a[left : left + SIDE], b[right : right + SIDE])
            found[left : left + SIDE] |= (matrix >= threshold).any(axis=1)
    return found


def _like_better(rows: Array, refused: Array, similar: Similar, threshold: float) -> Array:
    """bool[n]: is like an earlier row that is neither `refused` nor like an earlier one itself."""
    found = np.zeros(len(rows), bool)
    kept = np.empty(0, np.int64)
    left = np.flatnonzero(~refused)
    for start in range(0, len(left), SIDE):
        some = left[start : start + SIDE]
        hit = _any_like(rows[some], rows[kept], similar, threshold)
        alike = np.triu(similar(rows[some], rows[some]) >= threshold, 1)
        for i in np.flatnonzero(alike.any(axis=1)):
            if not hit[i]:
                hit |= alike[i]
        found[some] = hit
        kept = np.r_[kept, some[~hit]]
    return found


def jaccard(text_of: TextOf, threshold: float) -> Measure:
    """Shares of common word 3-shingles (`miner.shingles`). What is surely below `threshold` comes back as 0.

    text_of: the texts of passage rows, in their order; each row of a block is asked for once.
    """

    def measure(rows: Array) -> Similar:
        sets = shingle_hashes(text_of(rows))
        parity = _parity(sets)

        def similar(a: Array, b: Array) -> Array:
            a, b = np.searchsorted(rows, a), np.searchsorted(rows, b)
            same = a[:, None] == b
            found: Array = same.astype(float)
            i, j = np.nonzero(_may_reach(sets.sizes, parity, a, b, threshold) & ~same)
            found[i, j] = pair_jaccard(sets, a[i], sets, b[j])
            return found

        return similar

    return measure


def _parity(sets: Ragged) -> Array:
    """int8[n, BITS]: -1 where an odd number of a row's shingles falls on the bit, else 1."""
    row = np.repeat(np.arange(len(sets.sizes)), sets.sizes)
    at = row * BITS + (sets.values % np.uint64(BITS)).astype(np.int64)
    counts = np.bincount(at, minlength=len(sets.sizes) * BITS)
    return (1 - 2 * (counts & 1)).astype(np.int8).reshape(-1, BITS)


def _may_reach(sizes: Array, parity: Array, a: Array, b: Array, threshold: float) -> Array:
    """bool[n, m]: may the pair's Jaccard similarity reach `threshold`?

    Each bit in which the parities differ is owed to a shingle that only one text has; a pair at or above t has at most
    (1 - t) / (1 + t) * (|a| + |b|) of those. This spares nearly all pairs the exact count and loses none.
    """
    different = (BITS - parity[a].astype(np.float32) @ parity[b].astype(np.float32).T) / 2
    most = (1 - threshold) / (1 + threshold) * (sizes[a][:, None] + sizes[b])
    return np.asarray(different <= most + 1e-6)


def cosine(vectors: Array) -> Measure:
    """Cosines of the passages' vectors, to 6 digits, since float32 knows no more. vectors: [passages, d], a memmap."""

    def measure(rows: Array) -> Similar:
        units = _units(vectors[rows])

        def similar(a: Array, b: Array) -> Array:
            product = units[np.searchsorted(rows, a)] @ units[np.searchsorted(rows, b)].T
            return np.round(product.astype(float), 6)

        return similar

    return measure


def _units(vectors: Array) -> Array:
    found = np.asarray(vectors, np.float32)
    return np.asarray(found / np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-12))


# ---------------------------------------------------------------- what other queries and documents say


def positive_of_twin(query: Array, row: Array, positives: Array, query_vectors: Array, threshold: float) -> Array:
    """bool[n]: the passage is a positive of another query whose cosine with this one, to 6 digits, is >= threshold.

    query: the query's row in query_vectors [queries, d] (a memmap is fine); positives: int64[m, 3] of all queries,
    (query row, passage row, relevance). Only the queries that own a candidate are looked at, PAIRS at a time.
    """
    order = np.lexsort((positives[:, 0], positives[:, 1]))
    owner, owned = positives[order, 0], positives[order, 1]
    start = np.searchsorted(owned, row)
    count = np.searchsorted(owned, row, side="right") - start
    candidate = np.flatnonzero(count)
    found = np.zeros(len(query), bool)
    for some in spans(count[candidate], PAIRS):
        at = np.repeat(candidate[some], count[candidate[some]])
        twin = owner[ranges(start[candidate[some]], count[candidate[some]])]
        other = twin != query[at]
        at, twin = at[other], twin[other]
        found[at[_cosines(query_vectors, query[at], twin) >= threshold]] = True
    return found


def _cosines(vectors: Array, a: Array, b: Array) -> Array:
    """float64[n]: row by row; pairs are cut into pieces, since one passage may be a positive of every query."""
    found = np.empty(len(a))
    for start in range(0, len(a), PAIRS):
        some = slice(start, start + PAIRS)
        found[some] = np.einsum("ij,ij->i", _units(vectors[a[some]]), _units(vectors[b[some]]))
    return np.round(found, 6)


def sibling(query: Array, row: Array, pos_query: Array, pos_row: Array, group_codes: Array) -> Array:
    """bool[n]: of the same group as a positive of its query. group_codes: int64[passages], -1 where there is none."""
    groups = int(group_codes.max(initial=0)) + 1
    mine, theirs = group_codes[row], group_codes[pos_row]
    grouped = theirs >= 0
    wanted = pos_query[grouped] * groups + theirs[grouped]
    return np.asarray((mine >= 0) & np.isin(query * groups + mine, wanted))


# ---------------------------------------------------------------- answers

_BETWEEN_LETTERS = re.compile(r"(?<=[^\W\d_])[.'’](?=[^\W\d_])")
_ARTICLE = re.compile(r"^(?:the|an|a) (?=.)")
_UNSPACED = re.compile(f"[{UNSPACED}]")


def has_answer(query: Array, row: Array, answers: Sequence[Sequence[str]], text_of: TextOf) -> Array:
    """bool[n]: the passage holds one of the answers of its query as whole words; answers[query] are its texts.

    Both sides are read as by `plain`; of an answer a leading English article is left off as well. Where a script has
    no spaces, any place in the text will do. An answer of which nothing is left is ignored.
    """
    wanted = [[form for form in map(_answer, some) if form] for some in answers]
    found = np.zeros(len(query), bool)
    asked = np.flatnonzero(np.array([bool(forms) for forms in wanted], bool)[query]) if wanted else found.nonzero()[0]
    asked = asked[np.argsort(row[asked], kind="stable")]
    rows, counts = np.unique(row[asked], return_counts=True)
    stops = np.cumsum(counts)
    for start in range(0, len(rows), TEXTS):
        some = slice(start, start + TEXTS)
        for text, stop, count in zip(text_of(rows[some]), stops[some], counts[some], strict=True):
            folded = plain(text)
            for at in asked[stop - count : stop]:
                found[at] = any(_holds(folded, form) for form in wanted[query[at]])
    return found


def plain(text: str) -> str:
    """Text as answers are looked for: NFKC, case-folded; U.S. and don't are us and dont, other punctuation is a space.

    Signs that tell answers apart (%, #, &, @, currencies, mathematics) stay, and so do articles.
    """
    folded = unicodedata.normalize("NFKC", text).casefold()
    return " ".join(_BETWEEN_LETTERS.sub("", folded).translate(_punctuation()).split())


@lru_cache(maxsize=1)
def _punctuation() -> dict[int, str]:
    points = range(sys.maxunicode + 1)
    return {p: " " for p in points if unicodedata.category(chr(p))[0] == "P" and chr(p) not in "#%&@"}


def _answer(text: str) -> str:
    return _ARTICLE.sub("", plain(text), count=1)


def _holds(text: str, answer: str) -> bool:
    at = text.find(answer)
    while at >= 0:
        end = at + len(answer)
        if not _one_word(text[at - 1 : at], answer[0]) and not _one_word(answer[-1], text[end : end + 1]):
            return True
        at = text.find(answer, at + 1)
    return False


def _one_word(left: str, right: str) -> bool:
    """Are two neighbouring characters ("" beyond an end) inside one word of a script that has spaces?"""
    return all(
        char and (char.isalnum() or unicodedata.category(char)[0] == "M") and not _UNSPACED.match(char)
        for char in (left, right)
    )


# ---------------------------------------------------------------- fields that travel along


def extra_field(table: pa.Table, name: str) -> list[Any]:
    """The value of a further field for each row of a passages or queries table, in order; None where a row lacks it.

    The passages' title counts as a field. Raises UserError where no row has the field.
    """
    kind, key = ("passage", "filters.group") if "doc_id" in table.column_names else ("query", "filters.answers")
    if name == "title" and "title" in table.column_names:
        return list(table.column("title").to_pylist())
    values: list[Any] = []
    met, known = False, dict[str, None]()
    for extra in _extras(table):
        values.append(extra.get(name))
        met = met or name in extra
        known |= dict.fromkeys(extra) if not met else {}
    if not met:
        fields = ", ".join(sorted(known)) or "none"
        raise UserError(f"{key} {name}: no {kind} has this field; the fields are {fields[:200]}")
    return values


def _extras(table: pa.Table) -> Iterator[dict[str, Any]]:
    for batch in table.select(["extra"]).to_batches(max_chunksize=1 << 14):
        for text in batch.column(0).to_pylist():
            yield json.loads(text) if text else {}


def group_codes(values: Sequence[Any]) -> Array:
    """int64[n]: equal values have equal codes, numbered as they are first met; -1 for null and the empty text."""
    numbers: dict[str, int] = {}
    found = [
        -1 if value is None or value == "" else numbers.setdefault(json.dumps(value, sort_keys=True), len(numbers))
        for value in values
    ]
    return np.array(found, np.int64)


def answer_texts(queries: pa.Table, name: str) -> list[list[str]]:
    """The answers of each query, in row order: the field holds a text, a number, a list of them, or SQuAD's object.

    Raises UserError for another kind of value, or where no query has the field.
    """
    ids = queries.column("query_id")
    return [
        _answer_list(value, f"filters.answers {name}: query {ids[row].as_py()!r}")
        for row, value in enumerate(extra_field(queries, name))
    ]


def _answer_list(value: Any, place: str) -> list[str]:
    if isinstance(value, dict) and "text" in value:
        value = value["text"]
    found = [] if value is None else value if isinstance(value, list) else [value]
    for item in found:
        if isinstance(item, bool) or not isinstance(item, str | int | float):
            shown = json.dumps(item, ensure_ascii=False)[:60]
            raise UserError(f"{place}: {shown} is no answer text; write a text or a list of texts")
    return [str(item) for item in found]
