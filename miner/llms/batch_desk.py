"""The files and batches of a provider, through the openai client. Each call is tried again through an outage."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar

import openai
from openai.types import Batch

from miner import provider
from miner.config import Endpoint
from miner.errors import ProviderStop
from miner.llms.batch_files import URL, Intent, Line, read_downloaded

log = logging.getLogger("miner")
T = TypeVar("T")
# What a download breaks with is an error of the transport under the client: httpx, or httpx2 from openai 3 on.
TRANSPORT: type[Exception] = import_module(openai.DefaultHttpxClient.__mro__[1].__module__.partition(".")[0]).HTTPError


class Desk:
    """The provider's files and batches, each call tried until the provider was out for `outage_s`."""

    def __init__(self, client: openai.OpenAI, endpoint: Endpoint) -> None:
        self._client, self._endpoint = client, endpoint

    def upload(self, path: Path) -> str:
        def create() -> str:
            with path.open("rb") as handle:
                return _text(self._client.files.create(file=(path.name, handle), purpose="batch"), "id")

        return self._call(create)

    def create(self, intent: Intent, about: dict[str, str]) -> str:
        """The id of the batch. A try that broke off may have arrived, so each further one looks for it first."""
        tries = 0

        def create() -> str:
            nonlocal tries
            tries += 1
            known = self._find(intent) if tries > 1 else None
            if known is not None:
                return known
            made = self._client.batches.create(
                completion_window="24h",
                endpoint=URL,
                input_file_id=intent.input_file,
                metadata={**about, "miner_intent": intent.id},
            )
            return _text(made, "id")

        return self._call(create)

    def find(self, intent: Intent) -> str | None:
        """The id of the batch that was made of an intent, or None."""
        return self._call(lambda: self._find(intent))

    def _find(self, intent: Intent) -> str | None:
        for batch in self._client.batches.list(limit=100):
            made_of = (batch.metadata or {}).get("miner_intent")
            if made_of == intent.id or (intent.input_file and batch.input_file_id == intent.input_file):
                return _text(batch, "id")
            if batch.created_at and batch.created_at < intent.at - 86400:  # newest first; a day for clocks that differ
                return None
        return None

    def look(self, intent: Intent, folder: Path) -> Batch:
        def look() -> Batch:
            batch = self._client.batches.retrieve(intent.batch)
            _text(batch, "id"), _text(batch, "status")
            return batch

        return self._call(
            look,
            f"batch {intent.batch} is not there; use the key that it was submitted with, or delete"
            f" {folder}/{intent.id}.* to submit its requests anew",
        )

    def refusal(self, batch: Batch) -> tuple[str, str]:
        """Code and message of the first error of a batch that failed as a whole, else empty."""
        errors = (batch.errors.data if batch.errors else None) or []
        if batch.status != "failed" or not errors:
            return "", ""
        line = f"line {errors[0].line}: " if errors[0].line else ""
        message = errors[0].message or errors[0].code or "no reason given"
        return errors[0].code or "", provider.clean(f"{line}{message}", self._client.api_key)

    def download(self, file_id: str | None, path: Path) -> Iterator[Line | None]:
        """The lines of a file of results, by way of the disk; none where there is no file, or no longer."""
        if not file_id:
            return iter(())

        def fetch() -> bool:
            try:
                with self._client.files.with_streaming_response.content(file_id) as reply, path.open("wb") as handle:
                    for block in reply.iter_bytes(1 << 20):
                        handle.write(block)
            except openai.NotFoundError:
                log.warning("batch file %s is gone at the provider; what it held is asked again", file_id)
                return False
            return True

        return read_downloaded(path) if self._call(fetch) else iter(())

    def delete(self, file_id: str) -> None:
        try:
            self._client.files.delete(file_id)
        except openai.APIError as error:
            log.debug("upload %s was not deleted: %s", file_id, provider.clean(str(error), self._client.api_key))

    def _call(self, action: Callable[[], T], unknown: str = "") -> T:
        start, attempt = time.monotonic(), 0
        while True:
            attempt += 1
            try:
                return action()
            except openai.APIStatusError as failure:
                error = provider.refusal(failure, self._client.api_key)
                self._stop_if_final(failure, error, unknown)
                pause = provider.wait(min(attempt, 10), failure)
            except (openai.APIError, TRANSPORT, ValueError) as failure:
                error = provider.broken(failure, self._endpoint.timeout_s, self._client.api_key)
                pause = provider.wait(min(attempt, 10))
            if attempt >= self._endpoint.attempts and time.monotonic() - start >= self._endpoint.outage_s:
                raise ProviderStop(f"the provider gives no answer ({error}); run again to go on where this run ended")
            log.debug("batch API: attempt %d failed: %s", attempt, error)
            time.sleep(pause)

    def _stop_if_final(self, failure: openai.APIStatusError, error: str, unknown: str) -> None:
        if unknown and failure.status_code == 404:
            raise ProviderStop(f"{unknown} ({error})") from None
        if provider.is_final(failure) or failure.status_code not in provider.RETRY_STATUS:
            raise ProviderStop(
                f"the provider refuses the batch ({error}); check key, quota and model, then run again"
            ) from None


def _text(thing: Any, name: str) -> str:
    """A field that must be there. ValueError where the reply is no such object, which is worth another try."""
    value = getattr(thing, name, None)
    if not isinstance(value, str) or not value:
        raise ValueError(f"the reply holds no {name}")
    return value
