"""Data and exports at fsspec URLs (s3://, gs://, memory://, file://, …).

Data is fetched into JOB/fetched/NAME/ once, and again where the far side tells of another version of a file; from there
on it is a local file, whose content the job's stamps hold. An export is copied out file by file, its data card last.
"""

from __future__ import annotations

import importlib
import json
import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from miner import store
from miner.config import Data
from miner.errors import UserError

log = logging.getLogger("miner")
CARD = "README.md"
# A file appears there whole or not at all, and there is no renaming.
OBJECT_STORES = frozenset(("s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "memory"))


def is_url(name: str | None) -> bool:
    return name is not None and "://" in name


@contextmanager
def _telling(key: str, url: str) -> Iterator[None]:
    try:
        yield
    except UserError:
        raise
    except ImportError as error:
        raise UserError(f"{key} {url}: a package is missing ({_line(error)}); s3:// needs s3fs, gs:// gcsfs") from None
    except FileNotFoundError:
        raise UserError(f"{key} {url}: no such bucket, folder or file; check the URL") from None
    except Exception as error:  # noqa: BLE001 - each file system raises errors of its own
        raise UserError(f"{key} {url}: {_line(error)}; check the URL and the credentials") from None


def _line(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"


def _at(url: str) -> tuple[Any, str]:
    """The file system and the path in it."""
    fs, path = importlib.import_module("fsspec").core.url_to_fs(url)
    fs.invalidate_cache()  # what was listed earlier in this process may have changed
    return fs, path.rstrip("/")


# ---------------------------------------------------------------- data


def fetched(data: Data, folder: Path) -> Data:
    """The same data with local paths in place of URLs, fetched below `folder`. Raises UserError."""
    own = {
        name: str(_fetch(f"data.{name}", getattr(data, name), folder))
        for name in ("path", "corpus")
        if is_url(getattr(data, name))
    }
    return data.model_copy(update=own) if own else data


def _fetch(key: str, url: str, folder: Path) -> Path:
    """The last name of the URL stays the name of the copy: readers go by its suffix."""
    place = folder / store.digest(url)[:12]
    listing, target = place / "listing.json", place / (url.rstrip("/").rpartition("/")[2] or "data")
    known = json.loads(listing.read_text(encoding="utf-8")) if listing.is_file() else None
    try:
        with _telling(key, url):
            fs, root = _at(url)
            there = _versions(fs, root)
    except UserError as error:
        if known is None:
            raise
        log.warning("%s; the copy of an earlier run is read", error)
        return target
    if known != there:
        log.info("%s: fetching %d files of %s", key, len(there), url)
        listing.unlink(missing_ok=True)  # a copy that is half of one version and half of another is none
        with _telling(key, url):
            _get_all(fs, root, there, target, known or {})
        store.write_json(listing, there)
    return target


def _versions(fs: Any, root: str) -> dict[str, str]:
    """What tells one version of each file from another, by its name below the root; "" is the root itself."""
    if fs.isfile(root):
        return {"": str(fs.ukey(root))}
    names = sorted(path for path in fs.find(root) if not path.rpartition("/")[2].startswith("."))
    if not names:
        raise FileNotFoundError(root)
    return {path.removeprefix(root).lstrip("/"): str(fs.ukey(path)) for path in names}


def _get_all(fs: Any, root: str, there: dict[str, str], target: Path, known: dict[str, str]) -> None:
    if set(known) - set(there) and target.is_dir():
        shutil.rmtree(target)  # a file that is gone there must not be read here
        known = {}
    for name, version in there.items():
        copy, path = (target / name, f"{root}/{name}") if name else (target, root)
        if not copy.resolve().is_relative_to(target.resolve()):
            raise UserError(f"{path}: a name that leads out of the folder; rename it")
        if known.get(name) != version or not copy.is_file():
            store.replace(copy, lambda part, path=path: fs.get_file(path, str(part)))  # type: ignore[misc]


# ---------------------------------------------------------------- exports


def publish(export: Path, url: str, state: Path) -> int:
    """Copy an export out, its card last, so that a copy with a card is whole. Returns the files written.

    state: file that tells what was copied; nothing is written twice, and what an earlier export left there is removed.
    """
    files = store.tree_digest(export)
    known = json.loads(state.read_text(encoding="utf-8")) if state.is_file() else {}
    before: dict[str, str] = known.get("files", {}) if known.get("url") == url else {}
    if before == files:
        return 0
    with _telling("export.copy_to", url):
        fs, root = _at(url)
        if before and fs.exists(f"{root}/{CARD}"):
            fs.rm_file(f"{root}/{CARD}")
        for name in sorted(set(before) - set(files)):
            if fs.exists(f"{root}/{name}"):
                fs.rm_file(f"{root}/{name}")
        for name in sorted(files, key=lambda name: (name == CARD, name)):
            _put(fs, export / name, f"{root}/{name}")
    store.write_json(state, {"url": url, "files": files})
    log.info("export: %d files copied to %s", len(files), url)
    return len(files)


def _put(fs: Any, file: Path, path: str) -> None:
    protocols = {fs.protocol} if isinstance(fs.protocol, str) else set(fs.protocol)
    if protocols & OBJECT_STORES:
        fs.put_file(str(file), path)
        return
    folder, _, name = path.rpartition("/")
    fs.makedirs(folder, exist_ok=True)
    part = f"{folder}/.{name}.part"
    fs.put_file(str(file), part)
    fs.mv(part, path)
