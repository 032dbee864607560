"""Replays answers from a file; for what the file lacks it says which prompt changed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, MutableMapping
from pathlib import Path

from miner.config import Endpoint
from miner.ledger import Answer, Request
from miner.llms.batch_files import Line, Spool, read_answers
from miner.meter import Meter


class RecordedBackend:
    def __init__(self, lines: Iterable[Line]) -> None:
        self.lines: MutableMapping[str, Line] = Spool()
        self.doubled = 0
        self._versions: dict[tuple[str, ...], str] = {}
        for line in lines:
            self._keep(line)

    def _keep(self, line: Line) -> None:
        known = self.lines.get(line.key)
        self.doubled += known is not None
        # A good answer is not replaced by a later failure of the same request.
        if known is None or (known.response is None and line.response is not None):
            self.lines[line.key] = line
        self._versions[_subject(line.about)] = line.about.get("prompt_version", "")

    def answer(self, requests: Iterable[Request], done: Callable[[Request, Answer], None]) -> None:
        for request in requests:
            line = self.lines.get(request.key)
            if line is None:
                done(request, Answer(None, self._why_missing(request)))
            else:
                done(request, Answer(line.response, line.error))

    def _why_missing(self, request: Request) -> str:
        about = request.about
        prompt = f"prompt {about['prompt']} ({about['task']})"
        recorded = self._versions.get(_subject(about))
        if recorded is None:
            return f"no recorded answer: {prompt}, query {about['query_id']}, passage {about['doc_id']}"
        if recorded != about["prompt_version"]:
            return f"{prompt} changed: recorded for version {recorded}, now {about['prompt_version']}"
        return f"{prompt}: a text, the model, a parameter or the endpoint's identity changed since the recording"


def _subject(about: dict[str, str]) -> tuple[str, ...]:
    return tuple(about.get(name, "") for name in ("task", "prompt", "query_id", "doc_id"))


def load(endpoint: Endpoint, _: Meter) -> RecordedBackend:
    return RecordedBackend(read_answers(Path(endpoint.answers or "")))
