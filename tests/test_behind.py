"""Work ahead and behind: the same items in the same order, and no error is lost."""

from __future__ import annotations

import threading
import time

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


def test_work_is_spread_and_comes_back_in_order():
    together = threading.Barrier(3)

    def work(item):
        together.wait(10)
        return item * item

    assert list(behind.spread(work, range(9), 3)) == [item * item for item in range(9)]


def test_an_error_of_one_ends_what_has_not_begun():
    begun = []

    def work(item):
        begun.append(item)
        time.sleep(0.01)
        if item == 0:
            raise ValueError("broken")
        return item

    with pytest.raises(ValueError, match="broken"):
        list(behind.spread(work, range(200), 2))
    assert len(begun) < 200
