"""A real HTTP server on loopback: chat completions, embeddings and Cohere's embed API; it counts what it is asked.

Answers come from the request alone (a hash decides the grade), so every run of a job gets the same ones.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import re
import socket
import struct
import threading
import time
import zlib
from collections import Counter
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from typing import Any

import numpy as np
from serving import Handler, Serving

FENCED = re.compile(r"=== (\w+) \w+ ===\n(.*?)\n(?==== )", re.DOTALL)
# Status, headers, content; or a function that writes to the connection itself.
Reply = tuple[int, dict[str, str], bytes] | Callable[[BaseHTTPRequestHandler], None]


def parts(body: dict[str, Any]) -> dict[str, str]:
    """The fenced texts of a request: {"QUERY": …, "PASSAGE": …}."""
    return dict(FENCED.findall(next(m["content"] for m in reversed(body["messages"]) if "=== END" in m["content"])))


def grade(body: dict[str, Any]) -> int:
    """0-3 by hash; about a third of the pairs count as relevant."""
    return hashlib.sha256(json.dumps(parts(body), sort_keys=True).encode()).digest()[0] % 6 // 2


def completion(content: str, finish_reason: str = "stop", **message: Any) -> bytes:
    return json.dumps(
        {
            "id": "toy",
            "object": "chat.completion",
            "created": 0,
            "model": "toy",
            "choices": [
                {
                    "index": 0,
                    "finish_reason": finish_reason,
                    "message": {"role": "assistant", "content": content, **message},
                }
            ],
            "usage": {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110},
        }
    ).encode()


WIDTH = 8


def vector(text: str, width: int = WIDTH) -> np.ndarray[Any, Any]:
    """float32[width], not normalised: what the server gives for a text."""
    return np.random.default_rng(zlib.crc32(text.encode())).normal(size=width).astype(np.float32)


def embeddings(body: dict[str, Any], width: int = WIDTH) -> bytes:
    """The reply of /v1/embeddings, last text first: only `index` tells the order. A token is a word."""
    width = body.get("dimensions") or width
    rows = [vector(text, width) for text in body["input"]]
    packed = body.get("encoding_format") == "base64"
    values = [base64.b64encode(row.tobytes()).decode() if packed else row.tolist() for row in rows]
    data = [{"object": "embedding", "index": i, "embedding": value} for i, value in enumerate(values)]
    tokens = sum(len(text.split()) for text in body["input"])
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return json.dumps({"object": "list", "data": data[::-1], "model": body["model"], "usage": usage}).encode()


def cohere(body: dict[str, Any], width: int = WIDTH) -> bytes:
    """The reply of /v2/embed; the vector of a text differs between queries and documents."""
    width = body.get("output_dimension") or width
    rows = [vector(f"{body['input_type']} {text}", width).tolist() for text in body["texts"]]
    tokens = sum(len(text.split()) for text in body["texts"])
    meta = {"api_version": {"version": "2"}, "billed_units": {"input_tokens": tokens}}
    return json.dumps({"id": "toy", "embeddings": {"float": rows}, "texts": body["texts"], "meta": meta}).encode()


def sensible(body: dict[str, Any]) -> Reply:
    """A judge that quotes the passage, a generator that varies it, and encoders."""
    if "input" in body or "texts" in body:
        return 200, {}, embeddings(body) if "input" in body else cohere(body)
    texts = parts(body)
    if "FACET" in texts:
        answer: dict[str, Any] = {"change": texts["FACET"], "passage": f"{texts['PASSAGE']} Not so: {texts['FACET']}."}
    else:
        answer = {"evidence": texts["PASSAGE"][:20], "grade": grade(body)}
    return 200, {}, completion(json.dumps(answer))


GREETING = [{"role": "user", "content": "Say hello."}]
SOON = {"retry-after": "0"}


def failure(status: int, message: str = "no", headers: dict[str, str] | None = None, **more: str) -> Reply:
    return status, SOON if headers is None else headers, json.dumps({"error": {"message": message, **more}}).encode()


def raw(body: str | bytes) -> Reply:
    return 200, {}, body.encode() if isinstance(body, str) else body


def reset_midway(handler: BaseHTTPRequestHandler) -> None:
    """Promise a long body, send the start of it and reset the connection."""
    _start(handler, 5000)
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    handler.close_connection = True
    handler.rfile.close()
    handler.connection.close()


def close_midway(handler: BaseHTTPRequestHandler) -> None:
    """Promise a long body, send the start of it and hang up in good manners."""
    _start(handler, 5000)
    handler.close_connection = True


def drip(handler: BaseHTTPRequestHandler) -> None:
    """A byte now and then, for ever: no single read takes long, and no answer ever comes."""
    _start(handler, 5000)
    with contextlib.suppress(OSError):
        for _ in range(400):
            time.sleep(0.05)
            handler.wfile.write(b" ")
            handler.wfile.flush()
    handler.close_connection = True


def _start(handler: BaseHTTPRequestHandler, length: int) -> None:
    handler.send_response(200)
    handler.send_header("content-type", "application/json")
    handler.send_header("content-length", str(length))
    handler.end_headers()
    handler.wfile.write(b'{"choices": [{"message": {"content": "{')
    handler.wfile.flush()


class Loopback(Serving):
    """`with Loopback() as server:` -> server.url; what it saw stands in:

    bodies, headers, paths: of every request, in order of arrival. completed: request body -> times answered in full.
    peak: the most requests in flight at once.
    """

    def __init__(self, reply: Callable[[dict[str, Any]], Reply] = sensible, delay_s: float = 0.0) -> None:
        self.reply, self.delay_s = reply, delay_s
        self.completed: Counter[str] = Counter()
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.paths: list[str] = []
        self.in_flight = self.peak = 0
        self._lock = threading.Lock()

    def __enter__(self) -> Loopback:
        outer = self

        class Answering(Handler):
            def do_POST(self) -> None:
                raw = self.read()
                if len(raw) < int(self.headers["content-length"]):  # the client died while it was asking
                    self.close_connection = True
                    return
                body = json.loads(raw)
                if body.get("messages") == GREETING:  # "are you alive?" is no request of the job
                    return self.say(200, completion("Hello."))
                with outer._lock:
                    outer.bodies.append(body)
                    outer.headers.append(dict(self.headers))
                    outer.paths.append(self.path)
                    outer.in_flight += 1
                    outer.peak = max(outer.peak, outer.in_flight)
                time.sleep(outer.delay_s)
                reply = outer.reply(body)
                with outer._lock:  # before the reply: the client may ask the next as soon as it has this one
                    outer.in_flight -= 1
                if callable(reply):
                    return reply(self)
                status, headers, content = reply
                try:
                    self.say(status, content, headers)
                except (BrokenPipeError, ConnectionResetError):
                    return
                if status == 200:
                    with outer._lock:
                        outer.completed[json.dumps(body, sort_keys=True)] += 1

        self.root = self.start(Answering)
        self.url = f"{self.root}/v1"
        return self
