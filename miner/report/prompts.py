"""The raw answers and exact prompts of a report, each text of them once: the messages are cut where texts that the page
has anyway stand in them, and put together again by the page, character for character.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from miner.defects import SURROGATE
from miner.report.ledger import Book, Entry

Part = int | list[Any]
# Shorter texts are not looked for: they would be found anywhere, and save nothing.
LEAST = 12


class Text(NamedTuple):
    """A text that the page has: kind "p" a passage, "q" a query; its place in the page's list."""

    kind: str
    place: int
    text: str


class Marks(NamedTuple):
    strings: int
    answers: int


def clean(text: str) -> str:
    """Half a surrogate pair, which UTF-8 has no bytes for, becomes U+FFFD; every other character stays."""
    return SURROGATE.sub("\ufffd", text)


class Answers:
    """Gathers the answers of requests, by key. Nothing of a request that the ledger lacks."""

    def __init__(self, book: Book | None) -> None:
        self._book = book
        self.repairs = book.repairs() if book else {}
        self._string: dict[str, int] = {}
        self._place: dict[str, int] = {}
        self.answers: list[dict[str, Any]] = []

    @property
    def strings(self) -> list[str]:
        return list(self._string)

    def add(self, key: str | None, texts: Sequence[Text]) -> int:
        """The place of the answer in `answers`; -1 where nobody was asked. texts: what may stand in the messages."""
        if not key or self._book is None:
            return -1
        if key not in self._place:
            entry = self._book.entry(key)
            if entry is None:
                return -1
            made = self._made(entry, texts)
            self._place[key] = len(self.answers)
            self.answers.append(made)
        return self._place[key]

    def marks(self) -> Marks:
        return Marks(len(self._string), len(self.answers))

    def since(self, marks: Marks) -> tuple[list[str], list[dict[str, Any]]]:
        """The strings and answers that came after."""
        return list(self._string)[marks.strings :], self.answers[marks.answers :]

    def undo(self, marks: Marks) -> None:
        """Forget what came after."""
        while len(self._string) > marks.strings:
            self._string.popitem()
        del self.answers[marks.answers :]
        self._place = {key: place for key, place in self._place.items() if place < marks.answers}

    def _made(self, entry: Entry, texts: Sequence[Text]) -> dict[str, Any]:
        about, usage = entry.about, (entry.response or {}).get("usage")
        counts = [
            usage.get(name) if isinstance(usage, dict) else None for name in ("prompt_tokens", "completion_tokens")
        ]
        found: dict[str, Any] = {
            "prompt": clean("/".join(filter(None, (about.get("task", ""), about.get("prompt", ""))))),
            "version": clean(about.get("prompt_version", "")),
            "model": clean(str(entry.body.get("model", ""))),
            "text": clean(said(entry.response)),
            "tokens": [count if isinstance(count, int) else None for count in counts],
            "messages": [self._message(message, texts) for message in entry.body.get("messages", [])],
        }
        notes = [entry.mark, "" if entry.response else entry.reason or "no answer"]
        notes.append("asked again, since the first answer's form was broken" if about.get("repairs") else "")
        return found | ({"note": clean("; ".join(filter(None, notes)))} if any(notes) else {})

    def _message(self, message: dict[str, Any], texts: Sequence[Text]) -> dict[str, Any]:
        content = clean(str(message.get("content") or ""))
        parts: list[Part] = []
        for piece in cut(content, texts):
            parts.append([piece.kind, piece.place] if isinstance(piece, Text) else self._interned(piece))
        return {"role": clean(str(message.get("role", ""))), "parts": parts}

    def _interned(self, text: str) -> int:
        return self._string.setdefault(text, len(self._string))


def said(response: dict[str, Any] | None) -> str:
    """The text of a chat completion, "" where it has none."""
    try:
        message = (response or {})["choices"][0]["message"]
        return str(message.get("content") or message.get("refusal") or "")
    except (KeyError, IndexError, TypeError, AttributeError):
        return ""


def cut(content: str, texts: Sequence[Text]) -> Iterator[Text | str]:
    """The content in pieces, in order: texts that stand in it, and the strings between them.

    Of a text that stands there only as far as it was shown, that start is a piece of its own, so that the many
    prompts that show it share it.
    """
    whole = {one.text: one for one in texts if len(one.text) >= LEAST and one.text in content}
    starts = {start for one in texts if one.text not in whole and (start := _start(content, one.text))}
    pieces: list[Text | str] = [content]
    done: set[int] = set()  # places in `pieces` that are not cut further
    for text in sorted({*whole, *starts}, key=lambda text: (-len(text), text)):
        pieces, done = _split(pieces, done, text, whole.get(text, text))
    yield from (piece for piece in pieces if piece)


def _split(pieces: list[Text | str], done: set[int], text: str, piece: Text | str) -> tuple[list[Text | str], set[int]]:
    """The pieces with `piece` in place of `text`, wherever it stands in one that is not done."""
    found: list[Text | str] = []
    now: set[int] = set()
    for place, old in enumerate(pieces):
        if isinstance(old, Text) or place in done:
            now.add(len(found))
            found.append(old)
            continue
        for number, between in enumerate(old.split(text)):
            if number:
                now.add(len(found))
                found.append(piece)
            found.append(between)
    return found, now


def _start(content: str, text: str, least: int = 40) -> str:
    """The longest start of `text` that stands in `content`, where its first letters do; "" where it is short."""
    at = content.find(text[:least]) if len(text) >= least else -1
    if at < 0:
        return ""
    low, high = least, min(len(text), len(content) - at)
    while low < high:  # the longest common run from here, by halving
        middle = (low + high + 1) // 2
        low, high = (middle, high) if content.startswith(text[:middle], at) else (low, middle - 1)
    return text[:low]
