"""BM25 over words, by the library bm25s; Chinese, Japanese, Thai and their like over pairs of characters."""

from __future__ import annotations

import re
import unicodedata
from array import array
from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import NamedTuple

import bm25s
import bm25s.stopwords as stopwords
import numpy as np
import Stemmer

from miner.errors import UserError
from miner.searchers import Array

# What Lucene's BM25Similarity takes where nothing is said.
K1, B = 1.2, 0.75

# ISO 639-1 code -> Snowball's name of the stemmer; None: stop words alone, since Snowball has no stemmer.
STEMMERS: dict[str, str | None] = {
    "ar": "arabic",
    "ca": "catalan",
    "cs": "czech",
    "da": "danish",
    "de": "german",
    "el": "greek",
    "en": "english",
    "es": "spanish",
    "et": "estonian",
    "eu": "basque",
    "fa": "persian",
    "fi": "finnish",
    "fr": "french",
    "ga": "irish",
    "hi": "hindi",
    "hu": "hungarian",
    "hy": "armenian",
    "id": "indonesian",
    "it": "italian",
    "ko": None,
    "lt": "lithuanian",
    "nb": "norwegian",
    "ne": "nepali",
    "nl": "dutch",
    "no": "norwegian",
    "pl": "polish",
    "pt": "portuguese",
    "ro": "romanian",
    "ru": "russian",
    "sr": "serbian",
    "sv": "swedish",
    "ta": "tamil",
    "tr": "turkish",
    "yi": "yiddish",
    "zh": None,
}
STOP_WORDS: dict[str, tuple[str, ...]] = {
    "da": stopwords.STOPWORDS_DANISH,
    "de": stopwords.STOPWORDS_GERMAN,
    "en": stopwords.STOPWORDS_EN,
    "es": stopwords.STOPWORDS_SPANISH,
    "fr": stopwords.STOPWORDS_FRENCH,
    "it": stopwords.STOPWORDS_ITALIAN,
    "ko": stopwords.STOPWORDS_KOREAN,
    "nb": stopwords.STOPWORDS_NORWEGIAN,
    "nl": stopwords.STOPWORDS_DUTCH,
    "no": stopwords.STOPWORDS_NORWEGIAN,
    "pt": stopwords.STOPWORDS_PORTUGUESE,
    "ru": stopwords.STOPWORDS_RUSSIAN,
    "sv": stopwords.STOPWORDS_SWEDISH,
    "tr": stopwords.STOPWORDS_TURKISH,
    "zh": stopwords.STOPWORDS_CHINESE,
}

# Letters and signs of the scripts that put no space between words: Thai, Lao, Burmese, Khmer, kana, Han.
UNSPACED = (
    r"\u0E01-\u0E3A\u0E40-\u0E4E\u0E81-\u0ECE\u0EDC-\u0EDF\u1000-\u103F\u1050-\u1089\u1780-\u17D3\u17D7\u17DC\u17DD"
    r"\u3005-\u3007\u3041-\u3096\u3099\u309A\u309D-\u309F\u30A1-\u30FA\u30FC-\u30FF\u31F0-\u31FF"
    r"\u3400-\u4DBF\u4E00-\u9FFF\uF900-\uFAFF\U00020000-\U000323AF"
)
ASCII_WORD = re.compile("[a-z0-9]+")


class _Language(NamedTuple):
    stop: frozenset[str]
    stemmer: Stemmer.Stemmer | None
    turkish: bool


def tokens(text: str, language: str | None) -> list[str]:
    """The index terms of a text, in its order, repeats included.

    NFKC and case folding; then a run of letters, digits and their marks is a word, and a run of a script without
    spaces (Chinese, Japanese, Thai, …) becomes its overlapping pairs of characters, a run of one that character.
    language: ISO 639-1 code whose stop words (of bm25s) go and whose Snowball stemmer runs; None: words as they are.
    Raises UserError for a code that has neither.
    """
    if language is None:
        return _words(text, turkish=False)
    known = _language(language)
    kept = [word for word in _words(text, known.turkish) if word not in known.stop]
    stemmed: list[str] = kept if known.stemmer is None else known.stemmer.stemWords(kept)
    return stemmed


@lru_cache
def _language(code: str) -> _Language:
    if code not in STEMMERS:
        raise UserError(
            f"mining.retrievers: language {code}: no stemmer for it; the languages are {', '.join(STEMMERS)};"
            " null takes words as they are"
        )
    name, turkish = STEMMERS[code], code == "tr"
    split = [_words(word, turkish) for word in STOP_WORDS.get(code, ())]
    # A stop word of several parts (weren't) is left out: one of them alone may be a word of weight.
    stop = frozenset(words[0] for words in split if len(words) == 1)
    return _Language(stop, None if name is None else Stemmer.Stemmer(name), turkish)


def _words(text: str, turkish: bool) -> list[str]:
    if text.isascii() and not turkish:
        return ASCII_WORD.findall(text.lower())
    found: list[str] = []
    for run, word in _runs().findall(_folded(text, turkish)):
        if len(run) > 1:
            found += [run[at : at + 2] for at in range(len(run) - 1)]
        else:
            found.append(run or word)
    return found


def _folded(text: str, turkish: bool) -> str:
    text = unicodedata.normalize("NFKC", text)
    if turkish:
        text = text.replace("I", "ı")
    # Folded, İ is an i with a dot above it, which no other spelling of the word has.
    return unicodedata.normalize("NFKC", text.casefold()).replace("i\u0307", "i")


@lru_cache
def _runs() -> re.Pattern[str]:
    """Two groups: a run of a script without spaces, or a word. Python's \\w lacks the marks that Hindi words need."""
    unspaced = re.compile(f"[{UNSPACED}]")
    marks = (chr(code) for code in range(0x20000) if unicodedata.category(chr(code))[0] == "M")
    inside = "".join(mark for mark in marks if not unspaced.match(mark))
    letter = rf"[^\W_{UNSPACED}]"
    return re.compile(rf"([{UNSPACED}]+)|({letter}(?:{letter}|[{inside}])*)")


class _Ids(NamedTuple):
    """Token ids of many texts in one buffer: 4 bytes a token, where lists of strings would take 60 and more."""

    flat: array[int]
    ends: array[int]

    def row(self, number: int) -> list[int]:
        return self.flat[self.ends[number] : self.ends[number + 1]].tolist()


class _Corpus:
    """What bm25s wants for its list of lists, made anew at each of its passes."""

    def __init__(self, ids: _Ids) -> None:
        self._ids = ids

    def __len__(self) -> int:
        return len(self._ids.ends) - 1

    def __iter__(self) -> Iterator[list[int]]:
        return map(self._ids.row, range(len(self)))


class Bm25Searcher:
    """Exact search by BM25. Ties go to the lowest passage row; a passage without a word of the query is not found.

    A word that a query repeats counts each time. The scores of a query do not depend on the other queries.
    """

    def __init__(self, index: bm25s.BM25 | None, queries: _Ids) -> None:
        self._index = index
        self._queries = queries

    def search(self, queries: Array, k: int) -> tuple[Array, Array]:
        """queries: int64[b] -> scores float32[b, k], descending, rows int64[b, k]; -inf and -1 where there is none."""
        scores = np.full((len(queries), k), -np.inf, np.float32)
        rows = np.full((len(queries), k), -1, np.int64)
        for at, query in enumerate(queries.tolist()):
            ids = self._queries.row(query)
            if self._index is None or not ids:
                continue
            every = self._index.get_scores_from_ids(ids)
            best = _best(every, k)
            scores[at, : len(best)], rows[at, : len(best)] = every[best], best
        return scores, rows


def _best(scores: Array, k: int) -> Array:
    """Rows int64[<=k] of the highest scores above 0, best first, the lowest row first among equals."""
    found = np.flatnonzero(scores > 0)
    if len(found) > k:
        values = scores[found]
        cut = np.partition(values, len(values) - k)[len(values) - k]
        above, level = found[values > cut], found[values == cut]
        found = np.concatenate([above, level[: k - len(above)]])
    return found[np.lexsort((found, -scores[found]))]


def build(passage_texts: Iterable[str], query_texts: Iterable[str], language: str | None = None) -> Bm25Searcher:
    """Index the passages, read once and not kept, and look up the words of the queries, both in row order.

    BM25 as Lucene has it (bm25s method "lucene": idf ln(1 + (N - df + 0.5)/(df + 0.5)), times
    tf/(tf + k1 (1 - b + b length/mean length))), with exact lengths and Lucene's defaults k1 = 1.2, b = 0.75.
    Raises UserError for an unknown language.
    """
    if language is not None:
        _language(language)
    vocabulary: dict[str, int] = {}
    corpus = _Ids(array("i"), array("q", [0]))
    for text in passage_texts:
        corpus.flat.extend(vocabulary.setdefault(token, len(vocabulary)) for token in tokens(text, language))
        corpus.ends.append(len(corpus.flat))
    queries = _Ids(array("i"), array("q", [0]))
    for text in query_texts:
        queries.flat.extend(vocabulary[token] for token in tokens(text, language) if token in vocabulary)
        queries.ends.append(len(queries.flat))
    return Bm25Searcher(_index(corpus, len(vocabulary)) if vocabulary else None, queries)


def _index(corpus: _Ids, words: int) -> bm25s.BM25:
    index = bm25s.BM25(k1=K1, b=B, method="lucene", backend="numpy", csc_backend="numpy")
    # Not `index.index`, which would look at each id of the corpus to guess of what type it is, and keep the words.
    index.scores = index.build_index_from_ids(range(words), _Corpus(corpus), show_progress=False)
    return index
