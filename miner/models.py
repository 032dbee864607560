"""What encoders and teachers share: fetch a model's files, read what they say, tell in one line what is wrong.

`named` is how errors call the model, for example "encoder.model BAAI/bge-m3".
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from miner.errors import UserError


def snapshot(named: str, model: str, revision: str | None) -> Callable[[list[str]], Path]:
    """A function from file patterns to the folder of the hub's snapshot that holds those of them that the model has."""
    if Path(model).is_absolute() or model.count("/") != 1:
        raise UserError(f"{named}: no such folder, and not a hub id (owner/name)")
    import huggingface_hub
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
    )

    def fetch(patterns: list[str]) -> Path:
        try:
            return Path(huggingface_hub.snapshot_download(model, revision=revision, allow_patterns=patterns))
        except HFValidationError as error:
            raise UserError(f"{named}: no such folder, and not a hub id ({error})") from None
        except (OfflineModeIsEnabled, LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
            raise UserError(
                f"{named}: not in the local hub cache and the hub did not answer ({reason(error)[:120]}); check the"
                " name and the network, or give a local folder"
            ) from None

    return fetch


def read_json(folder: Path | None, name: str) -> Any:
    """The parsed file; None where there is none."""
    path = folder / name if folder else None
    if path is None or not path.is_file():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: broken JSON ({error}); fetch the model again") from None


def reason(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


@contextmanager
def explained(named: str, what: str) -> Iterator[None]:
    """Whatever torch and transformers raise for a bad model or device, as one line."""
    section = named.split(".")[0]
    try:
        yield
    except UserError:
        raise
    except ImportError as error:
        raise UserError(f"{named}: {what} ({reason(error)[:240]}); pip install 'miner[local]'") from None
    except Exception as error:  # noqa: BLE001 - OSError, ValueError, RuntimeError, SafetensorError, AssertionError…
        why = reason(error)[:240]
        if "trust_remote_code" in str(error):
            why = f"it brings Python code of its own; {section}.trust_remote_code: true would run that code"
        if "out of memory" in str(error):
            why += f"; lower {section}.batch_tokens"
        raise UserError(f"{named}: {what} ({why})") from None
