"""A model hub on the loopback interface: enough of its API for snapshot_download, served from folders."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from serving import Handler, Serving

COMMIT = "c0ffee" + "0" * 34


class Hub(Serving):
    """`with Hub({"BAAI/bge-m3": folder}) as hub:`; hub.url goes into HF_ENDPOINT, hub.sent names the files sent."""

    def __init__(self, models: dict[str, Path]) -> None:
        self.models, self.sent = models, list[str]()

    def __enter__(self) -> Hub:
        self.url = self.start(_handler(self))
        return self


def _handler(hub: Hub) -> type[Handler]:
    class Answering(Handler):
        def do_GET(self) -> None:
            parts = unquote(urlsplit(self.path).path).strip("/").split("/")
            if parts[:2] == ["api", "models"]:
                self._listed("/".join(parts[2:4]), tree=parts[4:5] == ["tree"])
            elif parts[2:3] == ["resolve"]:
                self._file("/".join(parts[:2]), "/".join(parts[4:]))
            else:
                self.say(404, {})

        do_HEAD = do_GET

        def _listed(self, name: str, tree: bool) -> None:
            folder = hub.models.get(name)
            if folder is None:
                self.say(404, {}, {"X-Error-Code": "RepoNotFound"})
                return
            paths = sorted(p for p in folder.rglob("*") if p.is_file())
            files = [{"path": p.relative_to(folder).as_posix(), "size": p.stat().st_size} for p in paths]
            value: Any = [{"type": "file", "oid": COMMIT, **file} for file in files]
            if not tree:
                siblings = [{"rfilename": file["path"]} for file in files]
                value = {"id": name, "modelId": name, "sha": COMMIT, "siblings": siblings}
            self.say(200, value)

        def _file(self, name: str, file: str) -> None:
            content = (hub.models[name] / file).read_bytes()
            if self.command == "GET":
                hub.sent.append(file)
            tag = hashlib.sha256(content).hexdigest()
            self.say(200, content, {"ETag": f'"{tag}"', "X-Repo-Commit": COMMIT})

    return Answering
