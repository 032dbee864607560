from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import clusters
import pytest
import toy
from forker import Forker
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
def forker(environment: dict[str, str]) -> Iterator[Forker]:
    running = Forker(environment)
    yield running
    running.close()


@pytest.fixture(scope="session")
def miner(environment: dict[str, str], forker: Forker) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run `miner ARGS` as a user would: a process of its own. check=True fails on another exit code than 0.

    fresh=True: a new interpreter with a seed of hash() of its own, and not one forked from forker.py's.
    """

    def call(
        *args: object, check: bool = True, timeout: float = 300, fresh: bool = False, **env: str
    ) -> subprocess.CompletedProcess[str]:
        arguments, where = list(map(str, args)), {**environment, **env}
        if fresh:
            command = [sys.executable, "-m", "miner", *arguments]
            done = subprocess.run(command, capture_output=True, text=True, env=where, timeout=timeout)
        else:
            done = forker.run(arguments, where, timeout)
        if check and done.returncode:
            raise AssertionError(f"miner {arguments} exited {done.returncode}\n{done.stdout}\n{done.stderr}")
        return done

    return call


@pytest.fixture(scope="module")
def toy_key() -> Iterator[None]:
    """The key of the loopback servers, for what is called in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TOY_KEY", "sk-toy-secret")
        yield


@pytest.fixture(scope="module")
def shared_vectors(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Jobs of toy.job find their vectors in one folder: for modules that are about what comes after the encoder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(toy, "VECTORS", str(tmp_path_factory.getbasetemp() / "toy-vectors"))
        yield


def shared(name: str) -> Path:
    """A real data set beside the checkout; the test is skipped where it is absent."""
    path = SHARED / name
    if not path.is_dir():
        pytest.skip(f"no {name} beside the checkout")
    return path


@pytest.fixture(scope="session")
def cluster_environment(environment: dict[str, str]) -> dict[str, str]:
    """Of a miner process that joins a cluster; Ray's own code warns."""
    return {name: value for name, value in environment.items() if name != "PYTHONWARNINGS"} | clusters.TOKEN


@pytest.fixture(scope="module")
def cluster() -> Iterator[clusters.Cluster]:
    """One for the tests of a module, which kill no more of it than they add."""
    yield from running()


@pytest.fixture
def own_cluster() -> Iterator[clusters.Cluster]:
    """One to be killed."""
    yield from running()


def running(**env: str) -> Iterator[clusters.Cluster]:
    made = clusters.Cluster(**env)
    try:
        yield made
    finally:
        made.close()
