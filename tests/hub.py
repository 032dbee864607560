"""A model hub on the loopback interface: enough of its API for snapshot_download, served from folders."""

from __future__ import annotations

import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

COMMIT = "c0ffee" + "0" * 34


class Hub:
    """`with Hub({"BAAI/bge-m3": folder}) as hub:`; hub.url goes into HF_ENDPOINT, hub.sent names the files sent."""

    def __init__(self, models: dict[str, Path]) -> None:
        self.models, self.sent = models, list[str]()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Hub:
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def _handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            parts = unquote(urlsplit(self.path).path).strip("/").split("/")
            if parts[:2] == ["api", "models"]:
                self._listed("/".join(parts[2:4]), tree=parts[4:5] == ["tree"])
            elif parts[2:3] == ["resolve"]:
                self._file("/".join(parts[:2]), "/".join(parts[4:]))
            else:
                self._answer(404, b"{}", {})

        do_HEAD = do_GET

        def _listed(self, name: str, tree: bool) -> None:
            folder = hub.models.get(name)
            if folder is None:
                self._answer(404, b"{}", {"X-Error-Code": "RepoNotFound"})
                return
            paths = sorted(p for p in folder.rglob("*") if p.is_file())
            files = [{"path": p.relative_to(folder).as_posix(), "size": p.stat().st_size} for p in paths]
            value: Any = [{"type": "file", "oid": COMMIT, **file} for file in files]
            if not tree:
                siblings = [{"rfilename": file["path"]} for file in files]
                value = {"id": name, "modelId": name, "sha": COMMIT, "siblings": siblings}
            self._answer(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

        def _file(self, name: str, file: str) -> None:
            content = (hub.models[name] / file).read_bytes()
            if self.command == "GET":
                hub.sent.append(file)
            tag = hashlib.sha256(content).hexdigest()
            self._answer(200, content, {"ETag": f'"{tag}"', "X-Repo-Commit": COMMIT})

        def _answer(self, status: int, content: bytes, headers: dict[str, Any]) -> None:
            self.send_response(status)
            for key, value in {**headers, "Content-Length": len(content)}.items():
                self.send_header(key, str(value))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    return Handler
