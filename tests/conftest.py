from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import settings

# No deadline: the machine may be busy. The same examples at every run: a red check can be repeated.
settings.register_profile("miner", deadline=None, derandomize=True, database=None)
settings.load_profile("miner")

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of a miner process: no hub, a key for the loopback server, a narrow terminal."""
    own = {"HF_HUB_OFFLINE": "1", "TOY_KEY": "sk-toy-secret", "COLUMNS": "100", "PYTHONWARNINGS": "error"}
    own["HF_HOME"] = str(tmp_path_factory.mktemp("hf"))
    return {**{k: v for k, v in os.environ.items() if not k.startswith("OPENAI_")}, **own}


@pytest.fixture(scope="session")
def miner(environment: dict[str, str]) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run `miner ARGS` as a user would: a process of its own. check=True fails on another exit code than 0."""

    def call(*args: object, check: bool = True, timeout: float = 300, **env: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "miner", *map(str, args)]
        done = subprocess.run(command, capture_output=True, text=True, env={**environment, **env}, timeout=timeout)
        if check and done.returncode:
            raise AssertionError(f"{command} exited {done.returncode}\n{done.stdout}\n{done.stderr}")
        return done

    return call


@pytest.fixture(scope="module")
def toy_key() -> Iterator[None]:
    """The key of the loopback servers, for what is called in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TOY_KEY", "sk-toy-secret")
        yield


def shared(name: str) -> Path:
    """A real data set beside the checkout; the test is skipped where it is absent."""
    path = SHARED / name
    if not path.is_dir():
        pytest.skip(f"no {name} beside the checkout")
    return path
