"""What every HTTP server of the tests has in common: loopback, a thread of its own, and how it reads and answers."""

from __future__ import annotations

import contextlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def handle(self) -> None:
        with contextlib.suppress(ConnectionError):
            super().handle()

    def read(self) -> bytes:
        """The body of the request; shorter than it was promised where the client died while it was asking."""
        return self.rfile.read(int(self.headers.get("content-length") or 0))

    def say(self, status: int, value: Any, headers: dict[str, str] | None = None) -> None:
        """bytes as they are, anything else as JSON; `headers` come before the type and the length."""
        content = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(status)
        for name, told in (headers or {}).items():
            self.send_header(name, told)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


class Serving:
    """The base of a server: its __enter__ calls `start`, and at the end of the `with` block it is gone."""

    def start(self, handler: type[Handler]) -> str:
        """Serve, each connection in a thread. Returns http://127.0.0.1:PORT."""
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self._thread.start()
        return f"http://127.0.0.1:{self._server.server_port}"

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
