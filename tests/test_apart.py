"""The process that lives to tell how the one with the work in it ended. No Ray: the child ends itself as Ray would."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from clusters import alive

SCRIPT = """
import os, signal, sys, time
import typer
from miner import apart, cli
from miner.commands.common import resumable

cli.app = typer.Typer(pretty_exceptions_enable=False)

@cli.app.command()
def work():
    with resumable():
        apart.fork("the cluster at engine.address HOST:1", "Go on with: miner run job.yaml")
        print(os.getpid(), os.isatty(1), flush=True)
        exec(code, globals())

code = sys.argv.pop()
cli.main()
"""
WAITS = "time.sleep(30)"


def started(code: str, **options: object) -> subprocess.Popen[str]:
    # A shell's background job ignores Ctrl-C, and its children would too.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        command = [sys.executable, "-c", SCRIPT, code]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)
    finally:
        signal.signal(signal.SIGINT, before)


def ended(code: str) -> tuple[int, str, str]:
    with started(code) as process:
        _, err = process.communicate(timeout=30)
    return process.returncode, err.splitlines()[-1] if err else "", err


@pytest.mark.parametrize(
    ("code", "how"),
    [
        ("os._exit(1)", "exit code 1"),
        ("os._exit(0)", "exit code 0"),
        ("os.abort()", "SIGABRT"),
        ("os.kill(os.getpid(), signal.SIGKILL)", "SIGKILL"),
    ],
)
def test_an_end_from_outside_is_one_line_and_the_code_of_provider_trouble(code, how):
    exit_code, last, err = ended(code)
    assert exit_code == 5, err
    assert last.startswith(f"miner: the process that did the work was ended ({how}): "), err
    assert last.endswith("what is done is kept. Go on with: miner run job.yaml")
    assert ("out of memory" if how == "SIGKILL" else "the cluster at engine.address HOST:1 is gone") in last


@pytest.mark.parametrize("code", [0, 3, 130])
def test_its_own_exit_codes_pass_through(code):
    assert ended(f"sys.exit({code})") == (code, "", "")


def test_its_own_error_is_told_once():
    exit_code, _, err = ended("from miner.errors import UserError; raise UserError('data.path: not there')")
    assert (exit_code, err) == (2, "miner: data.path: not there\n")
    exit_code, last, err = ended("1 / 0")
    assert exit_code == 1
    assert last == "ZeroDivisionError: division by zero"
    assert err.count("Traceback") == 1


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_the_parent_stops_the_child_cleanly(how):
    with started(WAITS) as process:
        child = int(process.stdout.readline().split()[0])
        process.send_signal(how)
        _, err = process.communicate(timeout=20)
    assert process.returncode == 130
    assert [line for line in err.splitlines() if "interrupted" in line] == [
        "interrupted; what is done is kept. Go on with: miner"
    ]
    assert not Path(f"/proc/{child}").exists()


def test_the_child_goes_with_its_parent():
    with started(WAITS) as process:
        child = int(process.stdout.readline().split()[0])
        process.kill()
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline and alive(child):
            time.sleep(0.02)
    assert not alive(child)


def test_on_a_terminal_one_ctrl_c_is_one_and_the_terminal_is_seen():
    import pexpect

    code = "count = []\nsignal.signal(signal.SIGINT, lambda *_: count.append(1))\nprint('on', flush=True)\n"
    code += "end = time.monotonic() + 1\nwhile time.monotonic() < end: time.sleep(0.05)\nprint('heard', len(count))"
    child = pexpect.spawn(sys.executable, ["-c", SCRIPT, code], encoding="utf-8", timeout=20, env=dict(os.environ))
    child.expect("True")
    child.expect("on")
    child.sendintr()
    child.expect(r"heard (\d+)")
    assert child.match.group(1) == "1"
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 0
