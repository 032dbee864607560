"""What this machine has and what a job will need: checks that change nothing, each ok, warn or fail with its remedy.

The machine stands here; `miner.doctor_job` has the job file and its endpoints.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import shutil
import subprocess
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, NamedTuple

from miner import behind

GB = 1 << 30
LOW_DISK, LOW_MEMORY = 2 * GB, 2 * GB
HUB_TIMEOUT_S = 5.0
# The variables that miner, its clients and the hub read keys from.
KEYS = ("OPENAI_API_KEY", "HF_TOKEN", "CO_API_KEY", "COHERE_API_KEY")
State = Literal["ok", "warn", "fail"]


class Check(NamedTuple):
    """One finding. `value` says what is; `remedy` what to do about it, "" where nothing is to be done."""

    group: str
    name: str
    state: State
    value: str
    remedy: str = ""


def machine(online: bool, folders: dict[str, Path], job_keys: Iterable[str] = ()) -> Iterator[Check]:
    """All checks that need no job file. folders: what they are for -> the folder; job_keys: variables a job names.

    online: the hub may be asked. Nothing is written but one empty file in each folder, gone at once.
    """
    yield from packages()
    yield from hardware()
    for name, folder in folders.items():
        yield disk(name, folder)
    yield hub(online)
    wanted = list(dict.fromkeys(job_keys))
    yield from (key(name, name in wanted) for name in dict.fromkeys([*KEYS, *wanted]))


# ---------------------------------------------------------------- installed


def packages() -> Iterator[Check]:
    """Python, miner, and every package that miner's own metadata asks for, by extra."""
    yield Check("installed", "python", "ok", f"{platform.python_version()} ({platform.system()} {platform.machine()})")
    try:
        known = metadata.distribution("miner")
    except metadata.PackageNotFoundError:
        yield Check("installed", "miner", "warn", "runs from a folder, not installed", "pip install . in its folder")
        return
    yield Check("installed", "miner", "ok", known.version)
    needs = _needs(known.requires or [])
    yield from (_package("core", text) for text in needs.pop("", []))
    for extra, texts in sorted(needs.items()):
        yield from _extra(extra, texts)


def _needs(requires: list[str]) -> dict[str, list[str]]:
    """Requirements by extra ("": always), those that are meant for this machine, in the order of their names."""
    from packaging.requirements import Requirement

    found: dict[str, list[str]] = {}
    for text in sorted(requires, key=str.lower):
        marker = Requirement(text).marker
        extras = re.findall(r"extra\s*==\s*['\"]([\w.-]+)['\"]", str(marker or "")) or [""]
        for extra in extras:
            if marker is None or marker.evaluate({"extra": extra}):
                found.setdefault(extra, []).append(text.partition(";")[0].strip())
    return found


def _version(name: str) -> str:
    """The installed version, or ""."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""


def _package(group: str, text: str) -> Check:
    """One requirement: there, too old, or missing."""
    from packaging.requirements import Requirement

    need = Requirement(text)
    version = _version(need.name)
    if not version:
        return Check(group, need.name, "fail", "not installed", f"pip install '{text}'")
    if not need.specifier.contains(version, prereleases=True):
        return Check(group, need.name, "fail", f"{version}, and {need.specifier} is needed", f"pip install '{text}'")
    return Check(group, need.name, "ok", version)


def _extra(extra: str, texts: list[str]) -> Iterator[Check]:
    """An extra that is not there is no defect; one that is there in part is worth a word."""
    group, command = f"extra {extra}", f"pip install 'miner[{extra}]'"
    found = [_package(group, text) for text in texts]
    if all(one.value == "not installed" for one in found):
        yield Check(group, extra, "ok", f"not installed; {command} brings it")
        return
    yield from (one if one.state == "ok" else one._replace(state="warn", remedy=command) for one in found)


# ---------------------------------------------------------------- the machine


def hardware() -> Iterator[Check]:
    yield Check("machine", "cores", "ok", str(behind.cores()))
    total, free = memory()
    short = free is not None and free < LOW_MEMORY
    told = _size(total) if free is None else f"{_size(total)}, {_size(free)} free"
    remedy = "close other programs, or lower encoder.batch_tokens and mining.index.memory_gb"
    yield Check("machine", "memory", "warn" if short else "ok", told, remedy if short else "")
    graphics = gpus()
    yield Check("machine", "GPUs", "ok", f"{len(graphics)}: {', '.join(graphics)}" if graphics else "none")
    yield _faiss(bool(graphics))


def memory() -> tuple[int, int | None]:
    """Bytes of memory that this process may use, and bytes free of them (None: the system does not say)."""
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    free = _available()
    limit, taken = (_number(Path("/sys/fs/cgroup") / name) for name in ("memory.max", "memory.current"))
    if limit is None or limit >= total:
        return total, free
    left = None if taken is None else limit - taken
    return limit, left if free is None else free if left is None else min(free, left)


def _available() -> int | None:
    try:
        found = re.search(r"MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text(encoding="ascii"))
    except OSError:
        return None
    return int(found.group(1)) * 1024 if found else None


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text(encoding="ascii"))
    except (OSError, ValueError):  # no such file, or the word max
        return None


def gpus() -> list[str]:
    """Names of the GPUs, by nvidia-smi, else by torch where a GPU build of it is installed."""
    program = shutil.which("nvidia-smi")
    if program:
        command = [program, "--query-gpu=name,memory.total", "--format=csv,noheader"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
            return [" ".join(line.split()) for line in done.stdout.splitlines() if line.strip()]
        except (OSError, subprocess.SubprocessError):
            return []  # the program is there and finds no driver
    if not _version("torch") or "+cpu" in _version("torch"):
        return []
    import torch

    return [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]


def _faiss(graphics: bool) -> Check:
    if importlib.util.find_spec("faiss") is None:
        return Check("machine", "faiss", "fail", "not installed", "pip install faiss-cpu")
    import faiss

    version = getattr(faiss, "__version__", "")
    if not hasattr(faiss, "StandardGpuResources"):
        remedy = "a GPU build of faiss in place of faiss-cpu searches there" if graphics else ""
        return Check("machine", "faiss", "warn" if graphics else "ok", f"{version}, CPU build", remedy)
    seen = faiss.get_num_gpus()
    lost = graphics and not seen
    remedy = "check the CUDA driver, and CUDA_VISIBLE_DEVICES" if lost else ""
    return Check("machine", "faiss", "warn" if lost else "ok", f"{version}, GPU build, {seen} GPUs seen", remedy)


def disk(name: str, folder: Path) -> Check:
    """Room and write access where a folder is, or would be made."""
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.is_dir())
    try:
        free = shutil.disk_usage(there).free
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        remedy = "choose a folder that can be written" + ("; set TMPDIR" if name == "temporary files" else "")
        return Check("disk", name, "fail", f"{there}: cannot write ({error.strerror})", remedy)
    made = "" if there == folder.absolute() else ", to be made"
    low = free < LOW_DISK
    remedy = "make room, or choose a folder on another disk" if low else ""
    return Check("disk", name, "warn" if low else "ok", f"{folder}: {_size(free)} free{made}", remedy)


def _size(count: float) -> str:
    return f"{count / GB:,.1f} GB" if count >= GB / 10 else f"{count / (1 << 20):,.0f} MB"


# ---------------------------------------------------------------- the hub and keys


def offline_by_environment() -> bool:
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")


def hub(online: bool) -> Check:
    """Does the Hugging Face hub answer? Any HTTP status is an answer."""
    address = os.environ.get("HF_ENDPOINT") or "https://huggingface.co"
    if offline_by_environment():
        return Check("hub", "reachable", "ok", "not asked: HF_HUB_OFFLINE is set; models and data must be local")
    if not online:
        return Check("hub", "reachable", "ok", "not asked: --offline")
    why = _reached(address)
    if not why:
        return Check("hub", "reachable", "ok", _host(address))
    remedy = "check network and proxy; with local models and data set HF_HUB_OFFLINE=1"
    return Check("hub", "reachable", "warn", f"{_host(address)} does not answer ({why})", remedy)


def _reached(address: str) -> str:
    """ "" where the server says anything at all, else why not."""
    try:
        request = urllib.request.Request(address, method="HEAD")
        with urllib.request.urlopen(request, timeout=HUB_TIMEOUT_S):
            return ""
    except urllib.error.HTTPError:
        return ""
    except urllib.error.URLError as error:
        return str(error.reason)
    except (OSError, ValueError) as error:
        return str(error) or type(error).__name__


def _host(address: str) -> str:
    """Host and port of an address, without the name and password that it may hold."""
    return address.partition("://")[2].partition("/")[0].rpartition("@")[2] or "(no web address)"


def key(name: str, needed: bool) -> Check:
    """Whether an environment variable holds a key; never the key. needed: the job asks for it."""
    value = os.environ.get(name)
    bad: State = "fail" if needed else "warn"
    if value is None:
        remedy = f"export {name}; any word will do for a server that wants none"
        return Check("keys", name, "fail", "not set", remedy) if needed else Check("keys", name, "ok", "not set")
    if not value.strip():
        return Check("keys", name, bad, "set but empty", f"export {name} with a key, or unset it")
    if value != value.strip():
        return Check("keys", name, bad, "set, but has blanks or line ends around it", f"export {name} without them")
    if not re.fullmatch(r"[!-~]+", value):
        return Check("keys", name, bad, "set, but holds a character that no key has", f"copy the key into {name} again")
    if name == "COHERE_API_KEY" and not needed and not os.environ.get("CO_API_KEY"):
        return Check("keys", name, "warn", "set, but miner reads CO_API_KEY", "export CO_API_KEY with the same key")
    return Check("keys", name, "ok", "set")


# ---------------------------------------------------------------- what is shown


def redacted(checks: Iterable[Check], names: Iterable[str] = ()) -> Iterator[Check]:
    """The checks with the value of every key taken out, wherever a server or a library may have put it.

    Words under eight letters stay: they are placeholders such as `none`, and stand in other words too.
    """
    values = {os.environ.get(name, "") for name in (*KEYS, *names)}
    secrets = sorted({part for value in values for part in (value, value.strip()) if len(part) >= 8}, key=len)
    for one in checks:
        value, remedy = one.value, one.remedy
        for secret in reversed(secrets):
            value, remedy = value.replace(secret, "***"), remedy.replace(secret, "***")
        yield one._replace(value=value, remedy=remedy)


def report(checks: Iterable[Check]) -> dict[str, Any]:
    """The checks as JSON holds them, with the count of each state."""
    found = list(checks)
    counts = {state: sum(one.state == state for one in found) for state in ("ok", "warn", "fail")}
    return {**counts, "checks": [one._asdict() for one in found]}
