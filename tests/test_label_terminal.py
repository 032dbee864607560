"""A labelling session as a person has it: a real terminal, keys, kills and all."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pexpect
import pytest
import toy
from test_golden import row

from miner import golden

ENTER_RAW = "q quit"
Start = Callable[..., Any]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "golden.jsonl"
    toy.write_jsonl(path, [row(i, grade=None, tag="t") for i in range(9)])
    return path


@pytest.fixture
def start(environment: dict[str, str]) -> Iterator[Start]:
    """Start `miner golden label ARGS` in a terminal of 80 by 24, and wait for its first screen."""
    children = []

    def begin(*args: object, wait: str = "q quit") -> Any:
        own = {k: v for k, v in environment.items() if k != "COLUMNS"}
        command = ["-m", "miner", "golden", "label", *map(str, args)]
        child = pexpect.spawn(
            sys.executable, command, env={**own, "TERM": "xterm"}, encoding="utf-8", timeout=60, dimensions=(24, 80)
        )
        children.append(child)
        child.expect(wait)
        return child

    yield begin
    for child in children:
        child.close(force=True)


def press(child: Any, keys: str, wait: str) -> None:
    child.send(keys)
    child.expect(wait)


def ended(child: Any) -> int:
    child.expect(pexpect.EOF)
    child.close()
    return int(child.exitstatus)


def grades(path: Path) -> list[int | None]:
    return [pair.grade for pair in golden.read(path, labelled=False)]


def test_a_session_grades_goes_back_skips_and_resumes(file, start, tmp_path):
    child = start(file, "--annotator", "ann")
    assert "pair 1 of 9" in child.before
    assert "question 0" in child.before
    assert "an answer" in child.before  # the reference
    press(child, "2", "pair 2 of 9 +1 graded")
    assert grades(file)[:2] == [2, None]  # before the next screen it is in the file
    press(child, "0", "pair 3 of 9 +2 graded")
    press(child, "b", "graded 0")  # back at the second, which says what it has
    press(child, "3", "pair 3 of 9 +2 graded")
    press(child, "s", "pair 4 of 9 +2 graded, 1 skipped")
    press(child, "x9\x1b[A", "")  # keys that mean nothing
    press(child, "1", "pair 5 of 9 +3 graded")
    press(child, "\x1b[D", "graded 1")  # the left arrow is back too
    press(child, "q", "3 of 9 pairs are graded")
    assert ended(child) == 0
    assert grades(file) == [2, 3, None, 1, None, None, None, None, None]
    assert [pair.annotator for pair in golden.read(file, labelled=False)[:3]] == ["ann", "ann", ""]
    child = start(file)
    assert "pair 3 of 9" in child.before  # the skipped one comes first
    press(child, "b", "graded 3")  # the last one of the session before can be mended
    press(child, "0", "pair 3 of 9")
    press(child, "111111", "None is left to grade")  # six keys at once are six grades
    press(child, "b", "graded 1")
    press(child, "2", "None is left to grade")
    press(child, "\x04", "9 of 9 pairs are graded")
    assert ended(child) == 0
    assert grades(file) == [2, 0, 1, 1, 1, 1, 1, 1, 2]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["golden.jsonl"]
    child = start(file, wait="None is left to grade")
    press(child, "q", "9 of 9")


def test_a_kill_at_any_time_loses_no_key(file, start, tmp_path):
    pressed: list[int | None] = []
    for number in range(4):
        child = start(file)
        assert f"pair {2 * number + 1} of 9" in child.before
        press(child, str(number), f"pair {2 * number + 2} of 9")
        press(child, str(3 - number), f"pair {2 * number + 3} of 9")
        os.kill(child.pid, signal.SIGKILL)
        child.expect(pexpect.EOF)
        pressed += [number, 3 - number]
        assert grades(file) == [*pressed, *[None] * (9 - len(pressed))]
        (tmp_path / ".golden.jsonl.4711.part").write_text("{")  # as a kill in the middle of a write leaves it
    child = start(file)
    press(child, "0", "None is left to grade")
    press(child, "q", "9 of 9")
    assert ended(child) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["golden.jsonl"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_ends_the_session_and_gives_the_terminal_back(file, number, environment):
    """Under a shell, so that the terminal can be asked afterwards what it is like."""
    shell = pexpect.spawn("/bin/sh", env={**environment, "PS1": "$ "}, encoding="utf-8", timeout=60)
    shell.sendline("stty -a | tr ';' '\\n' | grep -o -- '-\\?icanon\\|-\\?echo ' | tr '\\n' ' '; echo first")
    shell.expect("first\r\n")
    shell.expect("first\r\n")
    before = [word for word in ("icanon", "echo") if word in shell.before.split()]
    shell.sendline(f"{sys.executable} -m miner golden label {file}; echo code-$?")
    shell.expect("pair 1 of 9")
    shell.send("2")
    shell.expect("pair 2 of 9")
    if number == signal.SIGINT:
        shell.send("\x03")
    else:
        (child,) = Path(f"/proc/{shell.pid}/task/{shell.pid}/children").read_text().split()
        os.kill(int(child), number)
    shell.expect("1 of 9 pairs are graded; .* is saved")
    shell.expect("code-130")
    shell.sendline("stty -a | tr ';' '\\n' | grep -o -- '-\\?icanon\\|-\\?echo ' | tr '\\n' ' '; echo second")
    shell.expect("second\r\n")
    shell.expect("second\r\n")
    assert [word for word in ("icanon", "echo") if word in shell.before.split()] == before == ["icanon", "echo"]
    assert grades(file)[:2] == [2, None]
    shell.close(force=True)


def test_two_sessions_do_not_write_one_file(file, start):
    first = start(file)
    second = start(file, wait="another session is labelling this file")
    assert ended(second) == 2
    press(first, "1", "pair 2 of 9")
    press(first, "q", "1 of 9")


def test_hostile_text_does_not_reach_the_terminal(tmp_path, start):
    path = tmp_path / "hostile.jsonl"
    hostile = "safe \x1b[2J\x1b]0;owned\x07 \u202edesrever\u202c \x9b31m end"
    toy.write_jsonl(path, [row(0, grade=None, passage=hostile, positive=hostile, query=hostile)])
    child = start(path)
    shown = child.before
    for bad in ("\x1b]0", "\x07", "\u202e", "\x9b"):
        assert bad not in shown
    assert shown.count("\ufffd]0;owned\ufffd") == 3
    assert shown.count("\x1b[2J") == 1  # the screen is cleared once, by the program
    press(child, "q", "0 of 1")


def test_long_texts_are_wrapped_and_the_query_stays_in_sight(tmp_path, start):
    path = tmp_path / "long.jsonl"
    toy.write_jsonl(path, [row(0, grade=None, passage="word " * 2000)])
    child = start(path)
    lines = child.before.split("\r\n")
    assert max(len(line) for line in lines if "word" in line) <= 80
    assert any("question 0" in line for line in lines[-6:])
    press(child, "q", "0 of 1")


def test_without_a_terminal_it_says_so(file, miner):
    done = miner("golden", "label", file, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"miner: miner golden label {file}: this is no terminal; start it in one\n"
