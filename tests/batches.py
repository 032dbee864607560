"""A real HTTP server on loopback with /v1/files and /v1/batches, which can be told what becomes of each batch.

Run as a script it is a client: LEDGER URL COUNT OPTIONS, for the tests that kill one.
"""

from __future__ import annotations

import json
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qs, urlsplit

import loopback
from serving import Handler, Serving

from miner.config import Budget, Endpoint
from miner.ledger import Ledger, Request
from miner.llms import Reply, asker, load
from miner.meter import Meter

Line = dict[str, Any]
USAGE = {"prompt_tokens": 100, "completion_tokens": 10}


class Outcome(NamedTuple):
    """What becomes of a batch after it was looked at `looks` times. None: no such file. refused: its `errors`."""

    status: str
    output: list[Any] | None = None
    errors: list[Any] | None = None
    refused: list[dict[str, Any]] | None = None
    looks: int = 1


def good(line: Line) -> Line:
    """The answer to a request line: the loopback server's for a prompt of the program, else an echo."""
    said = line["body"]["messages"][-1]["content"]
    if "=== " in said:
        reply = loopback.sensible(line["body"])
        assert not callable(reply)
        body = json.loads(reply[2])
    else:
        body = json.loads(loopback.completion(f"echo {' '.join(said.split()[:2])}"))
    response = {"status_code": 200, "request_id": "r", "body": {**body, "usage": USAGE}}
    return {"id": "batch_req", "custom_id": line["custom_id"], "response": response, "error": None}


def refused(line: Line, status: int, code: str | None = None, message: str = "no luck") -> Line:
    body = {"error": {"message": message, "type": "x", "code": code}}
    response = {"status_code": status, "request_id": "r", "body": body}
    return {"id": "batch_req", "custom_id": line["custom_id"], "response": response, "error": None}


def late(line: Line, code: str = "batch_expired") -> Line:
    error = {"code": code, "message": "This request was not executed."}
    return {"id": "batch_req", "custom_id": line["custom_id"], "response": None, "error": error}


def completed(lines: list[Line]) -> Outcome:
    """All answered, in reverse order."""
    return Outcome("completed", [good(line) for line in lines[::-1]])


class BatchServer(Serving):
    """`with BatchServer() as server:` -> server.url.

    outcome: (number of the batch from 0, its lines) -> what becomes of it.
    faults: operation (upload create look list content delete) -> what happens to its next calls, in order: a status, or
        a function. before: the call is not carried out; one named in `lost` is carried out first, and its reply broken.
    batches, files, deleted; lines: custom_id -> how often it was submitted; calls: how often each operation was called.
    """

    def __init__(self, outcome: Callable[[int, list[Line]], Outcome] = lambda _, lines: completed(lines)) -> None:
        self.outcome = outcome
        self.key = ""
        self.faults: dict[str, list[int | str | Callable[[], object]]] = {}
        self.batches: list[dict[str, Any]] = []
        self.files: dict[str, bytes] = {}
        self.deleted: list[str] = []
        self.lines: Counter[str] = Counter()
        self.sizes: list[int] = []
        self.calls: Counter[str] = Counter()
        self._outcomes: dict[str, Outcome] = {}
        self._lock = threading.Lock()

    # ------------------------------------------------------------ what it does

    def add_file(self, content: bytes) -> str:
        name = f"file-{len(self.files) + len(self.deleted)}"
        self.files[name] = content
        return name

    def create(self, wanted: dict[str, Any]) -> dict[str, Any]:
        number = len(self.batches)
        raw = self.files[wanted["input_file_id"]]
        lines = [json.loads(line) for line in raw.splitlines()]
        assert all(line["url"] == wanted["endpoint"] == "/v1/chat/completions" for line in lines)
        self.lines.update(line["custom_id"] for line in lines)
        self.sizes.append(len(lines))
        batch = {
            "id": f"batch_{number}",
            "object": "batch",
            "endpoint": wanted["endpoint"],
            "completion_window": wanted["completion_window"],
            "created_at": 2_000_000_000,
            "input_file_id": wanted["input_file_id"],
            "metadata": wanted.get("metadata"),
            "status": "validating",
            "request_counts": {"total": len(lines), "completed": 0, "failed": 0},
        }
        self.batches.append(batch)
        self._outcomes[batch["id"]] = self.outcome(number, lines)
        return batch

    def look(self, batch: dict[str, Any]) -> dict[str, Any]:
        outcome = self._outcomes[batch["id"]]
        if outcome.looks > 0:
            self._outcomes[batch["id"]] = outcome._replace(looks=outcome.looks - 1)
            batch["status"] = "in_progress"
        elif batch["status"] != outcome.status:
            batch["status"] = outcome.status
            batch["output_file_id"] = self._results(outcome.output)
            batch["error_file_id"] = self._results(outcome.errors)
            batch["errors"] = {"object": "list", "data": outcome.refused} if outcome.refused else None
        return batch

    def _results(self, lines: list[Any] | None) -> str | None:
        if lines is None:
            return None
        texts = (line if isinstance(line, str) else json.dumps(line) for line in lines)
        return self.add_file("".join(f"{text}\n" for text in texts).encode())

    def release(self) -> None:
        """All batches are over at the next look."""
        self._outcomes = {name: outcome._replace(looks=0) for name, outcome in self._outcomes.items()}

    # ------------------------------------------------------------ HTTP

    def handle(self, method: str, path: str, body: bytes, content_type: str) -> tuple[str, Callable[[], Any]]:
        """(operation, what carries it out)."""
        url = urlsplit(path)
        names = url.path.removeprefix("/v1/").split("/")
        if (method, url.path) == ("POST", "/v1/files"):
            return "upload", lambda: {"id": self.add_file(uploaded(body, content_type)), "object": "file"}
        if (method, url.path) == ("POST", "/v1/batches"):
            return "create", lambda: self.create(json.loads(body))
        if (method, url.path) == ("GET", "/v1/batches"):
            return "list", lambda: self._page(parse_qs(url.query))
        if method == "GET" and names[0] == "batches":
            return "look", lambda: self.look(next(b for b in self.batches if b["id"] == names[1]))
        if method == "GET" and names[-1] == "content":
            return "content", lambda: self.files[names[1]]
        assert (method, names[0]) == ("DELETE", "files"), (method, path)
        return "delete", lambda: self._delete(names[1])

    def _page(self, query: dict[str, list[str]]) -> dict[str, Any]:
        """Two a page, newest first."""
        found = self.batches[::-1]
        after = query.get("after", [None])[0]
        start = next((i + 1 for i, batch in enumerate(found) if batch["id"] == after), 0)
        page = found[start : start + 2]
        more = start + 2 < len(found)
        return {"object": "list", "data": page, "has_more": more, "last_id": page[-1]["id"] if page else None}

    def _delete(self, name: str) -> dict[str, Any]:
        del self.files[name]
        self.deleted.append(name)
        return {"id": name, "object": "file", "deleted": True}

    def respond(self, handler: Handler) -> None:
        body = handler.read()
        operation, act = self.handle(handler.command, handler.path, body, handler.headers.get("content-type", ""))
        with self._lock:
            self.calls[operation] += 1
            sent = handler.headers.get("authorization", "")
            if self.key and sent != f"Bearer {self.key}":
                return handler.say(401, {"error": {"message": f"Incorrect API key provided: {sent}"}})
            fault = (self.faults.get(operation) or [None]).pop(0)
            if isinstance(fault, int):
                return handler.say(fault, {"error": {"message": "scripted"}}, {"retry-after": "0"})
            if fault == "garbage":
                return handler.say(200, b"<html>please log in</html>")
            if callable(fault):
                fault()
            try:
                done = act()
            except (KeyError, StopIteration):
                return handler.say(404, {"error": {"message": "no such thing"}})
        if fault == "lost":
            return loopback.reset_midway(handler)
        handler.say(200, done)

    def __enter__(self) -> BatchServer:
        outer = self

        class Answering(Handler):
            def do_GET(self) -> None:
                outer.respond(self)

            do_POST = do_DELETE = do_GET

        self.url = f"{self.start(Answering)}/v1"
        return self


def uploaded(body: bytes, content_type: str) -> bytes:
    """The file part of a multipart body."""
    boundary = b"--" + content_type.rpartition("boundary=")[2].strip('"').encode()
    for part in body.split(boundary):
        head, _, content = part.partition(b"\r\n\r\n")
        if b'name="file"' in head:
            assert b"miner" not in head or head.isascii()
            return content.removesuffix(b"\r\n")
    raise KeyError("file")


# ---------------------------------------------------------------- the client's side


def requests(count: int, size: int = 0, **body: Any) -> Iterator[Request]:
    for number in range(count):
        said = [{"role": "user", "content": f"say {number} {'x' * size}"}]
        shown = {"model": "toy", "messages": said, "max_tokens": 50, **body}
        about = {"task": "judge", "prompt": "p", "prompt_version": "1", "query_id": "q", "doc_id": str(number)}
        yield Request(f"{number:064x}", shown, about)


def endpoint(url: str, **options: Any) -> Endpoint:
    batch = {"poll_s": 0.01, **options.pop("batch", {})}
    common = {"backend": "openai-batch", "model": "toy", "base_url": url, "api_key": "${TOY_KEY}", "identity": "toy"}
    return Endpoint(**{**common, "attempts": 4, "outage_s": 0.0, **options, "batch": batch})


def replies(
    ledger_path: Path, asked: Callable[[], Iterator[Request]], wanted: Endpoint, budget: dict[str, Any] | None = None
) -> Iterator[Reply]:
    """One run of a job that has one stage."""
    ledger = Ledger(ledger_path)
    try:
        meter = Meter(wanted, ledger, Budget(**(budget or {})))
        yield from asker(lambda: load(wanted, meter), meter, lambda _: None)(asked, lambda _: "")
    finally:
        ledger.close()


def ask(*run: Any) -> list[Reply]:
    return list(replies(*run))


def main(ledger: str, url: str, count: str, options: str) -> None:
    wanted = json.loads(options)
    budget, size = wanted.pop("budget", {}), wanted.pop("size", 0)
    found = replies(Path(ledger), lambda: requests(int(count), size), endpoint(url, **wanted), budget)
    answered = sum(reply.response is not None for reply in found)
    sys.stdout.write(json.dumps({"answered": answered, "peak_mb": peak_mb()}))


def peak_mb() -> float:
    """The most memory that this process had. (The peak that getrusage tells begins with that of the parent.)"""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


if __name__ == "__main__":
    main(*sys.argv[1:])
