"""The OpenAI Batch API's file forms, request lines out and answer lines in, and what is kept of open batches."""

from __future__ import annotations

import json
import os
import tempfile
import time
import uuid
import weakref
from collections.abc import Iterable, Iterator, MutableMapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import IO, Any, Final, NamedTuple

from miner import store
from miner.errors import UserError
from miner.ledger import Charge, Ledger, Request
from miner.llms import completion
from miner.readers import rows

FORM = "an answers file has the Batch API's output form"
URL: Final = "/v1/chat/completions"


class Line(NamedTuple):
    """One answer line. `response` is None where the line tells of a failure, and `error` says which.

    status_code, code: as the provider gave them; 0 and "" where it gave none.
    """

    key: str
    response: dict[str, Any] | None
    error: str
    about: dict[str, str]
    status_code: int = 0
    code: str = ""


def request_line(request: Request) -> dict[str, Any]:
    return {"custom_id": request.key, "method": "POST", "url": URL, "body": request.body}


def encode(value: Any) -> bytes:
    """One compact line of JSON, as `miner requests` writes it."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace") + b"\n"


def read_answers(path: Path) -> Iterator[Line]:
    """The lines of an answers file. Raises UserError for a file that is broken or not of this form."""
    for row in rows.read(path):
        key = row.values.get("custom_id")
        if not isinstance(key, str):
            raise UserError(f"{row.place}: no custom_id; {FORM}")
        if not row.values.keys() & {"response", "error"}:
            raise UserError(f"{row.place}: neither response nor error, so no answer (a request?); {FORM}")
        yield _line(key, row.values)


def read_downloaded(path: Path) -> Iterator[Line | None]:
    """The lines of a provider's file, None for each that cannot be read: one bad line does not cost the others."""
    with path.open("rb") as handle:
        for raw in handle:
            try:
                values = json.loads(raw)
                yield _line(str(values["custom_id"]), values)
            except (ValueError, TypeError, KeyError, RecursionError):
                if raw.strip():
                    yield None


class Spool(MutableMapping[str, Line]):
    """Lines by key, kept in a temporary file: of each line the memory holds the key and its place."""

    def __init__(self) -> None:
        self._places: dict[str, tuple[int, int]] = {}
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 - open as long as the spool lives
        weakref.finalize(self, self._file.close)

    def __setitem__(self, key: str, line: Line) -> None:
        raw = encode(line)
        try:
            start = self._file.seek(0, os.SEEK_END)
            self._file.write(raw)
        except OSError as error:
            raise UserError(f"{tempfile.gettempdir()}: cannot write ({error.strerror}); set TMPDIR") from None
        self._places[key] = (start, len(raw))

    def __getitem__(self, key: str) -> Line:
        start, size = self._places[key]
        self._file.seek(start)
        return Line(*json.loads(self._file.read(size)))

    def __delitem__(self, key: str) -> None:
        del self._places[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


def _line(key: str, values: dict[str, Any]) -> Line:
    response = values.get("response")
    response = response if isinstance(response, dict) else {}
    status, body, error = response.get("status_code"), response.get("body"), values.get("error")
    if not error and isinstance(body, dict):
        error = body.get("error")
    code = error.get("code") if isinstance(error, dict) else None
    status = status if isinstance(status, int) else 0
    return Line(key, *_outcome(values), _about(values.get("miner")), status, code if isinstance(code, str) else "")


def _about(value: Any) -> dict[str, str]:
    return {name: str(text) for name, text in value.items()} if isinstance(value, dict) else {}


def _outcome(values: dict[str, Any]) -> tuple[dict[str, Any] | None, str]:
    error, response = values.get("error"), values.get("response")
    if error:
        return None, _reason(error)
    if not isinstance(response, dict) or not isinstance(response.get("body"), dict):
        return None, "the line holds no response"
    body, status = response["body"], response.get("status_code", 200)
    if status != 200:
        return None, f"HTTP {status}: {_reason(body.get('error') or body)}"
    try:
        return completion(body), ""
    except (ValueError, RecursionError) as failure:
        return None, f"the response is no chat completion ({failure})"


def _reason(error: Any) -> str:
    text = str(error.get("message") or error.get("code") or error) if isinstance(error, dict) else str(error)
    return " ".join(text.encode("utf-8", "replace").decode().split())[:200]


# ---------------------------------------------------------------- open batches


class Row(NamedTuple):
    """One request of a batch, as far as its answer line does not tell.

    attempts: which try this is, from 1. charge: what is reserved for it in the ledger, None without a budget. shorter:
    the body to ask once where the model has no room. mark: "shortened" where `shorter` is what is asked.
    """

    key: str
    attempts: int = 1
    charge: Charge | None = None
    mark: str = ""
    shorter: dict[str, Any] | None = None


@dataclass(frozen=True)
class Intent:
    """A batch from before its submission to after its collection; a small note in the ledger.

    state: writing (its file grows), intended (it may be on its way), sent (the provider has it), retry (it is over; its
    rows are to be asked again). at: seconds since 1970. part: which file of rows is the valid one.
    """

    id: str
    server: str
    model: str
    at: float
    state: str = "writing"
    lines: int = 0
    part: int = 0
    input_file: str = ""
    batch: str = ""


class Intents:
    """The intents of one server and model. Their rows stand in a file each in `batches`, beside the ledger."""

    def __init__(self, ledger: Ledger, server: str, model: str) -> None:
        self._ledger, self._server, self._model = ledger, server, model
        self.folder = ledger.path.parent / "batches"

    def path(self, intent: Intent, what: str) -> Path:
        return self.folder / f"{intent.id}.{what}.jsonl"

    def all(self) -> list[Intent]:
        """Oldest first. A batch whose rows somebody deleted is forgotten: its requests will be submitted anew."""
        known = [Intent(**note) for note in self._ledger.notes("batch ").values()]
        found = [intent for intent in known if (intent.server, intent.model) == (self._server, self._model)]
        for lost in [intent for intent in found if not self._rows(intent).is_file()]:
            found.remove(lost)
            self._forget(lost)
        return sorted(found, key=lambda intent: (intent.at, intent.id))

    def draft(self) -> Draft:
        intent = Intent(uuid.uuid4().hex, self._server, self._model, time.time())
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            draft = Draft(intent, self.path(intent, "upload"), self._rows(intent))
        except OSError as error:
            raise UserError(f"{self.folder}: cannot write ({error.strerror}); free disk space and run again") from None
        self.write(intent)
        return draft

    def write(self, intent: Intent, **changes: Any) -> Intent:
        intent = replace(intent, **changes)
        self._ledger.write_note(f"batch {intent.id}", asdict(intent))
        return intent

    def rows(self, intent: Intent, shorter: bool = True) -> Iterator[Row]:
        """In the order of the upload. shorter=False leaves these bodies out, so that all rows fit into memory."""
        with self._rows(intent).open("rb") as handle:
            for raw in handle:
                if not raw.endswith(b"\n"):  # cut by a kill, and so not reserved in vain for more than one request
                    return
                values = json.loads(raw)
                charge = values.get("charge")
                body = values.get("shorter") if shorter else None
                mark = values.get("mark", "")
                yield Row(values["key"], values["attempts"], Charge(*charge) if charge else None, mark, body)

    def keep(self, intent: Intent, rows: Iterable[Row]) -> Intent | None:
        """The batch is over, and these rows of it are to be asked again; None where there are none, and it is gone.

        The rows go to a new file before the note changes, so a kill leaves either the old state or the new one.
        """
        old, new = self._rows(intent), self._rows(replace(intent, part=intent.part + 1))
        count = store.write_jsonl(new, map(plain, rows))
        kept = self.write(intent, state="retry", part=intent.part + 1, lines=count, batch="", input_file="")
        old.unlink(missing_ok=True)
        for what in ("upload", "output", "errors"):
            self.path(intent, what).unlink(missing_ok=True)
        if count:
            return kept
        self._forget(kept)
        return None

    def _rows(self, intent: Intent) -> Path:
        return self.path(intent, f"rows-{intent.part}")

    def _forget(self, intent: Intent) -> None:
        self._ledger.write_note(f"batch {intent.id}", None)
        for path in self.folder.glob(f"{intent.id}.*"):
            path.unlink()


def plain(row: Row) -> dict[str, Any]:
    return {name: value for name, value in row._asdict().items() if value}


class Draft:
    """A batch that is being written: the file to upload, and the rows beside it.

    A row is on the disk as soon as it is added, so that after a kill its reservation can be given back.
    """

    def __init__(self, intent: Intent, upload: Path, rows: Path) -> None:
        self.intent = intent
        self.lines = self.bytes = 0
        self._paths = (upload, rows)
        self._upload: IO[bytes] = upload.open("wb")
        self._rows: IO[bytes] = rows.open("wb", buffering=0)

    def has_room(self, size: int, lines: int, most: int) -> bool:
        return self.lines < lines and self.bytes + size <= most

    def add(self, line: bytes, row: Row) -> None:
        try:
            self._rows.write(encode(plain(row)))
            self._upload.write(line)
        except OSError as error:
            raise self._full(error) from None
        self.lines += 1
        self.bytes += len(line)

    def close(self) -> None:
        try:
            for handle in (self._upload, self._rows):
                if not handle.closed:
                    handle.flush()
                    os.fsync(handle.fileno())
                    handle.close()
        except OSError as error:
            raise self._full(error) from None

    def _full(self, error: OSError) -> UserError:
        return UserError(f"{self._paths[0]}: cannot write ({error.strerror}); free disk space and run again")
