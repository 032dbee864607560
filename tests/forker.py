"""Processes of miner without the second that its imports take: each is forked from one that has them already.

A run is still a process of its own: its environment, exit code, output and end are those of `python -m miner`. Two
things are shared by all of one forker: the seed of hash(), and what a module reads from the environment when it is
imported. A test that is about one of these asks for `fresh=True` and gets a new interpreter.

As a program, this file is the forker: lines of JSON in, exit codes out.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import runpy
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

# What a mining job and its LLM calls import. None of them starts a thread or reads HF_*, COLUMNS or colours by itself.
HEAVY = ("pyarrow.parquet", "pandas", "faiss", "tokenizers", "openai", "jinja2", "miner.cli", "miner.engine")
# These read HF_* when they are imported, so every run imports its own.
OWN = {"huggingface_hub", "datasets", "transformers"}


class Forker:
    """Runs miner from one prepared process. env: what it is imported with; a run may have another."""

    def __init__(self, env: dict[str, str]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env
        )

    def run(self, arguments: list[str], env: dict[str, str], timeout: float) -> subprocess.CompletedProcess[str]:
        """One run. A negative exit code is a signal; a run beyond `timeout` seconds is killed: TimeoutExpired."""
        command = ["miner", *arguments]
        with tempfile.TemporaryDirectory() as folder:
            out, err = Path(folder) / "out", Path(folder) / "err"
            asked = {"argv": command, "env": env, "cwd": str(Path.cwd()), "out": str(out), "err": str(err)}
            pid = int(self._ask(json.dumps(asked)))
            late = threading.Event()

            def strike() -> None:
                late.set()
                os.kill(pid, 9)

            timer = threading.Timer(timeout, strike)
            timer.start()
            code = int(self._line())
            timer.cancel()
            if late.is_set():
                raise subprocess.TimeoutExpired(command, timeout, out.read_bytes(), err.read_bytes())
            return subprocess.CompletedProcess(
                command, code, out.read_text(encoding="utf-8"), err.read_text(encoding="utf-8")
            )

    def _ask(self, line: str) -> str:
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()
        return self._line()

    def _line(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, f"the forker ended with {self._process.wait()}"
        return line

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(60)
        self._process.stdout.close()


def serve() -> bool:
    """Fork a child for each line; False at the end of the lines, True in a child that is to be a run of miner."""
    sys.path[0] = str(Path.cwd())  # as `python -m` has it; it was the folder of the tests
    for name in HEAVY:
        importlib.import_module(name)
    assert not OWN & set(sys.modules)
    gc.freeze()  # what is imported is never collected: a child neither copies nor walks it
    for line in sys.stdin:
        asked = json.loads(line)
        pid = os.fork()
        if not pid:
            _become(asked)
            return True
        _say(pid)
        _, status = os.waitpid(pid, 0)
        _say(os.waitstatus_to_exitcode(status))
    return False


def _say(number: int) -> None:
    sys.stdout.write(f"{number}\n")
    sys.stdout.flush()


def _become(asked: dict[str, object]) -> None:
    """Standard streams, environment, folder and arguments of a new `miner`."""
    os.chdir(str(asked["cwd"]))
    sys.path[0] = str(asked["cwd"])
    for number, path, flags in ((0, os.devnull, os.O_RDONLY), (1, asked["out"], 577), (2, asked["err"], 577)):
        opened = os.open(str(path), flags, 0o600)
        os.dup2(opened, number)
        os.close(opened)
    os.environ.clear()
    os.environ.update(asked["env"])  # type: ignore[arg-type]
    sys.argv = list(asked["argv"])  # type: ignore[call-overload]


if __name__ == "__main__" and serve():
    runpy.run_module("miner", run_name="__main__", alter_sys=True)
