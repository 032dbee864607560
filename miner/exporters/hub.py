"""Put an export folder on the Hugging Face hub as a data set."""

from __future__ import annotations

import importlib
import os
from pathlib import Path

import huggingface_hub
from huggingface_hub import errors

from miner.errors import UserError


def _transport_errors() -> tuple[type[Exception], ...]:
    """What a lost connection raises: an error of httpx or httpx2, whichever the library speaks through, or OSError."""
    found: list[type[Exception]] = [OSError]
    for name in ("httpx", "httpx2"):
        try:
            found.append(importlib.import_module(name).HTTPError)
        except ImportError:
            continue
    return tuple(found)


def push(folder: Path, repo_id: str, token_env: str = "HF_TOKEN", private: bool = True) -> str:
    """Make the data set repository where it is not there, and upload all files of the folder. Returns its address.

    The token is that of the environment variable `token_env`, else the stored login. HF_ENDPOINT names another hub.
    Raises UserError where the folder has no data card, nobody is logged in, or the hub refuses or is not reached.
    """
    if not (folder / "README.md").is_file():
        raise UserError(f"{folder}: no export with a data card there; run `miner export` first")
    api = huggingface_hub.HfApi(token=os.environ.get(token_env) or None)
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        raise UserError(f"{repo_id}: HF_HUB_OFFLINE is set; unset it to push")
    if api.token is None and huggingface_hub.get_token() is None:
        raise UserError(f"{repo_id}: not logged in; export {token_env}, or run `hf auth login`")
    try:
        api.create_repo(repo_id, repo_type="dataset", private=private, exist_ok=True)
        api.upload_folder(
            repo_id=repo_id,
            repo_type="dataset",
            folder_path=folder,
            commit_message="Upload of miner",
            ignore_patterns=["*.part"],
        )
    except errors.HFValidationError as error:
        raise UserError(f"{repo_id}: no repository name ({_line(error)}); write OWNER/NAME") from None
    except errors.HfHubHTTPError as error:
        raise UserError(
            f"{repo_id}: the hub refused ({_line(error)}); check the name and the rights of the token"
        ) from None
    except _transport_errors() as error:
        raise UserError(f"{repo_id}: cannot reach {api.endpoint} ({_line(error)}); check the network") from None
    return f"{api.endpoint}/datasets/{repo_id}"


def _line(error: Exception) -> str:
    found = [line.strip() for line in str(error).splitlines() if line.strip()]
    return found[0] if found else type(error).__name__
