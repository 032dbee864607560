"""The catalogue of what `miner audit` tells apart, and the checks of a single text.

Codes: F file and schema, S scores, T texts, R within a row, X across rows, E evaluation sets, D the whole data set.
What a fix does: drop (the passage goes), mend (the text is put right), row (the row goes), or a mark of its own.
"""

from __future__ import annotations

import html
import re
import unicodedata
from functools import lru_cache
from typing import NamedTuple

from miner.forms import QUERY
from miner.shingles import EDGES, UNSPACED


class Defect(NamedTuple):
    severity: str
    what: str
    fix: str = ""


SEVERITIES = ("info", "warning", "error")
DEFECTS = {
    "F01": Defect("error", "row cannot be read", "row"),
    "F02": Defect("error", "field missing or null", "drop"),
    "F03": Defect("error", "field of a wrong type", "drop"),
    "F04": Defect("error", 'prompt missing in some rows: the query becomes "Nonequery"', "prompt"),
    "F05": Defect("error", "no negatives: the loader divides by zero", "row"),
    "F06": Defect("info", "fewer negatives than other rows: the loader repeats them"),
    "F07": Defect("error", "extra column: becomes a model input, or breaks the load", "columns"),
    "F08": Defect("error", "column in some rows only", "row"),
    "F09": Defect("error", "unknown type", "row"),
    "F10": Defect("error", "several types in one file", "row"),
    "F11": Defect("error", "label is not 0 or 1", "row"),
    "F12": Defect("error", "texts and labels of unequal number", "row"),
    "F13": Defect("error", "columns out of order: trainers go by order, not by name"),
    "F14": Defect("error", "passage id is not in the corpus", "drop"),
    "F15": Defect("error", "one id for different texts"),
    "F16": Defect("error", "no positive", "row"),
    "F17": Defect("info", 'no row has a prompt: beside a file that has one, "Nonequery"', "prompt"),
    "F18": Defect("warning", "fewer negatives than --negatives: the loader repeats them"),
    "S01": Defect("error", "positives and their scores of unequal number", "row"),
    "S02": Defect("error", "negatives and their scores of unequal number (stale)", "row"),
    "S03": Defect("error", "scores of one side only", "row"),
    "S04": Defect("error", "score is not a number", "drop"),
    "S05": Defect("error", "score is NaN or infinite", "drop"),
    "S06": Defect("error", "int scores among floats: files cannot be loaded together", "floats"),
    "S07": Defect("warning", "scores of another scale than in other rows or files"),
    "S08": Defect("warning", "negative scored at or above a positive", "drop"),
    "S09": Defect("warning", "all scores of the row are the same"),
    "T01": Defect("error", "empty query", "row"),
    "T02": Defect("error", "empty positive", "drop"),
    "T03": Defect("error", "empty negative", "drop"),
    "T04": Defect("warning", "very short text", "drop"),
    "T05": Defect("warning", "over-long text: trainers cut it", "mend"),
    "T06": Defect("warning", "control characters", "mend"),
    "T07": Defect("warning", "zero-width characters", "mend"),
    "T08": Defect("warning", "characters that turn the direction of text", "mend"),
    "T09": Defect("warning", "replacement characters: bytes were lost", "drop"),
    "T10": Defect("warning", "mojibake: UTF-8 read as Latin-1", "mend"),
    "T11": Defect("warning", "HTML tags", "mend"),
    "T12": Defect("warning", "HTML entities", "mend"),
    "T13": Defect("error", "lone surrogate: tokenizers refuse it", "mend"),
    "T14": Defect("warning", "title stands twice", "mend"),
    "T15": Defect("warning", "an encoder's prefix in the text: it would stand there twice", "mend"),
    "T16": Defect("error", "placeholder in place of a text", "drop"),
    "T17": Defect("warning", "a language model's talk about its task", "drop"),
    "R01": Defect("error", "negative is a positive of its row", "drop"),
    "R02": Defect("error", "negative is nearly a positive of its row", "drop"),
    "R03": Defect("warning", "negative stands twice in its row", "drop"),
    "R04": Defect("warning", "negatives of a row nearly the same", "drop"),
    "R05": Defect("error", "negative is the query", "drop"),
    "R06": Defect("warning", "positive is the query", "drop"),
    "R07": Defect("warning", "positive stands twice in its row", "drop"),
    "R08": Defect("warning", "negative holds a whole positive, or lies in one", "drop"),
    "R09": Defect("warning", "negative in another script than the positives", "drop"),
    "R10": Defect("warning", "row filled up to the common number with repeats: padding"),
    "X01": Defect("error", "negative is a positive of the same query in another row", "drop"),
    "X02": Defect("error", "negative is a positive of a nearly identical query", "drop"),
    "X03": Defect("info", "negative is a positive of some other query"),
    "X04": Defect("warning", "row stands twice", "row"),
    "X05": Defect("warning", "query in several rows: each row's positive is in-batch negative of the others"),
    "X06": Defect("warning", "one passage is a negative in a large share of the rows"),
    "X07": Defect("info", "query of the same words as another"),
    "E01": Defect("error", "query is one of the evaluation", "row"),
    "E02": Defect("error", "query is nearly one of the evaluation", "row"),
    "E03": Defect("error", "passage is one of the evaluation", "drop"),
    "E04": Defect("error", "passage is nearly one of the evaluation", "drop"),
    "D01": Defect("warning", "positives and negatives differ in length"),
    "D02": Defect("warning", "style tells positives and negatives apart"),
    "D03": Defect("warning", "negatives closer to the query than its positive: estimate of false negatives"),
    "D04": Defect("warning", "negatives that the judge finds relevant: estimate of false negatives"),
    "D05": Defect("warning", "negatives no closer to the query than random passages: padding, or too deep"),
    "D06": Defect("warning", "negatives in another language than the positives of their query"),
}

MAX_CHARS = 20_000
SHORT = {0: 2, 1: 8, 2: 8}  # by role: letters and digits that are too few
BIDI = re.compile("[\u202a-\u202e\u2066-\u2069]")
ZERO_WIDTH = re.compile("[\u200b\u2060\ufeff\u180e]")
CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")
SURROGATE = re.compile("[\ud800-\udfff]")
MOJIBAKE = re.compile("Ã[\x80-\xbf‚ƒ„…†‡ˆ‰Š‹ŒŽ‘’“”•–—˜™š›œžŸ]|â€[\x80-\xbf™œ“”˜¦¢]|Â[\xa0-\xbf]|Ð[\x80-\xbf][ÐÑ]")
TAG = re.compile(
    r"</?(?:p|br|hr|div|span|b|i|u|a|em|strong|li|ul|ol|td|tr|th|table|tbody|h[1-6]|img|script|style|sup|sub|font"
    r"|code|pre|blockquote|ref|html|body|head)(?:\s[^<>]{0,200})?/?>",
    re.IGNORECASE,
)
ENTITY = re.compile(r"&(?:amp|lt|gt|quot|apos|nbsp|ndash|mdash|hellip|[lr][sd]quo|#\d{2,6}|#x[0-9a-fA-F]{2,5});")
PREFIXES = (
    "query: ",
    "passage: ",
    "search_query: ",
    "search_document: ",
    "Represent this sentence for searching relevant passages: ",
    "为这个句子生成表示以用于检索相关文章：",
    "Instruct: ",
    "<instruct>",
)
PLACEHOLDERS = {"nan", "none", "null", "n/a", "na", "undefined", "[deleted]", "[removed]", "tbd", "todo", "#n/a"}
TALK = re.compile(
    r"\bas an ai (?:language )?model\b|^(?:i'm sorry|i am sorry|sorry), (?:but )?i can(?:no|')t\b"
    r"|^(?:sure|certainly|of course)[!,.] here(?: is|'s| are)\b|^here(?: is|'s) (?:a|the|your) (?:rewritten"
    r"|hard negative|negative|passage|revised|modified)\b|\bi can(?:no|')t (?:assist|help|fulfill|comply)\b",
    re.IGNORECASE,
)
WIDE = re.compile(f"[{UNSPACED}\uac00-\ud7af]")
PATTERNS = {
    "T06": CONTROL,
    "T07": ZERO_WIDTH,
    "T08": BIDI,
    "T09": re.compile("\ufffd"),
    "T10": MOJIBAKE,
    "T11": TAG,
    "T12": ENTITY,
    "T13": SURROGATE,
    "T17": TALK,
}
ASCII = ("T06", "T11", "T12", "T17")  # what a text of ASCII alone can have


@lru_cache(maxsize=1 << 12)
def text_defects(role: int, text: str, max_chars: int = MAX_CHARS) -> tuple[str, ...]:
    """The codes of all that is wrong with one text by itself. Texts come back often, so answers are kept."""
    if not text.strip() or not text.strip(EDGES + " \t\r\n"):
        return (("T01", "T02", "T03")[role],)
    if text.strip().casefold() in PLACEHOLDERS:
        return ("T16",)
    names = ASCII if text.isascii() else tuple(PATTERNS)
    found = [name for name in names if PATTERNS[name].search(text)]
    if len(text) > max_chars:
        found.append("T05")
    if text.startswith(PREFIXES):
        found.append("T15")
    if role != QUERY and title_twice(text):
        found.append("T14")
    if _is_short(text, SHORT[role]):
        found.append("T04")
    return tuple(sorted(found))


def _is_short(text: str, least: int) -> bool:
    if len(text) > 4 * least:
        return False
    return sum(c.isalnum() for c in text) + 2 * len(WIDE.findall(text)) < least


def title_twice(text: str) -> str:
    """The title that a passage begins with twice, of two to twelve words; "" where it does not."""
    words = text.split(" ", 25)[:25]
    for size in range(min(12, len(words) // 2), 1, -1):
        if words[:size] == words[size : 2 * size]:
            return " ".join(words[:size])
    return ""


def mend(text: str, max_chars: int = MAX_CHARS) -> str:
    """The text with all put right that can be: characters taken out, tags, entities, mojibake, prefixes, doubles."""
    text = SURROGATE.sub("", BIDI.sub("", ZERO_WIDTH.sub("", text)))
    if MOJIBAKE.search(text):
        text = _read_again(text)
    while ENTITY.search(text):
        text = ENTITY.sub(lambda found: html.unescape(found.group()), text)
    while TAG.search(text):  # the text between two may make a new one
        text = TAG.sub(" ", text)
    text = CONTROL.sub(" ", text)
    prefix = next((prefix for prefix in PREFIXES if text.startswith(prefix)), "")
    while prefix and text.startswith(prefix):
        text = text.removeprefix(prefix)
    while title := title_twice(text):
        text = text.removeprefix(f"{title} ")
    text = re.sub(r"[ \t]{2,}", " ", text).strip()
    return text if len(text) <= max_chars else text[:max_chars].rsplit(" ", 1)[0]


def _read_again(text: str) -> str:
    """Take the Latin-1 reading back, piece by piece: the rest of the text may be right."""
    for encoding in ("cp1252", "latin-1"):
        pieces = re.split(r"([^\x00-\x7f]+)", text)
        for place, piece in enumerate(pieces):
            try:
                pieces[place] = piece.encode(encoding).decode("utf-8") if place % 2 else piece
            except UnicodeError:
                continue
        text = "".join(pieces)
    return text


SCRIPTS = {"CJK": "CJK", "HIRAGANA": "CJK", "KATAKANA": "CJK", "IDEOGRAPHIC": "CJK", "FULLWIDTH": "LATIN"}
SEEN = 600  # letters of a text that its script is told from


@lru_cache(maxsize=1 << 12)
def script(text: str) -> str:
    """The script of most letters: the first word of their Unicode names, LATIN or CJK for one. "" for no letters."""
    if text.isascii():
        return "LATIN" if any(map(str.isalpha, text)) else ""
    counts: dict[str, int] = {}
    for letter in filter(str.isalpha, text[:SEEN]):
        name = _script_of(letter)
        counts[name] = counts.get(name, 0) + 1
    return max(sorted(counts), key=lambda name: counts[name], default="")


@lru_cache(maxsize=1 << 14)
def _script_of(letter: str) -> str:
    first = unicodedata.name(letter, "OTHER").split()[0]
    return SCRIPTS.get(first, first)
