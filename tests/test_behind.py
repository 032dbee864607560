"""Work ahead and behind: the same items in the same order, and no error is lost."""

from __future__ import annotations

import threading

import pytest

from miner import behind


def test_the_next_item_is_made_while_one_is_used():
    made = []
    second = threading.Event()

    def items():
        for number in range(3):
            made.append(number)
            if number:
                second.set()
            yield number

    seen = []
    for item in behind.ahead(items()):
        if item == 0:
            assert second.wait(10), "nothing was made ahead"
        seen.append(item)
    assert seen == made == [0, 1, 2]


def test_an_error_ahead_comes_to_whom_the_item_would_come():
    def items():
        yield 1
        raise ValueError("broken")

    found = behind.ahead(items())
    assert next(found) == 1
    with pytest.raises(ValueError, match="broken"):
        next(found)


def test_calls_are_made_in_order_and_all_of_them():
    done = []
    with behind.writer() as later:
        for number in range(20):
            later(done.append, number)
    assert done == list(range(20))


def test_an_error_behind_is_not_lost():
    def fail():
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"), behind.writer() as later:
        later(fail)
