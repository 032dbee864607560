"""Progress on stderr: a tqdm bar on a terminal, else one log line every 30 seconds."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

EVERY_S = 30.0
log = logging.getLogger("miner")
Tick = Callable[[int], None]


Note = Callable[[int], str]


def _no_note(_: int) -> str:
    return ""


@contextmanager
def bar(what: str, total: int | None, unit: str, note: Note = _no_note) -> Iterator[Tick]:
    """Yield a function that counts on. total None: unknown. note: what else to show, given what is left."""
    if sys.stderr.isatty():
        from tqdm import tqdm

        with tqdm(total=total, desc=what, unit=unit, file=sys.stderr, leave=False) as shown:

            def tick(count: int) -> None:
                if shown.update(count) and total:  # true as often as the bar is drawn anew
                    shown.set_postfix_str(note(int(total - shown.n)))

            yield tick
    else:
        yield _logged(what, total, unit, note)


def _logged(what: str, total: int | None, unit: str, note: Note) -> Tick:
    start = last = time.monotonic()
    done = 0

    def tick(count: int) -> None:
        nonlocal done, last
        done += count
        now = time.monotonic()
        if now - last >= EVERY_S:
            last = now
            rate = done / (now - start)
            left = f", {(total - done) / rate:.0f} s left" if total and rate else ""
            more = note(total - done) if total else ""
            log.info(
                "%s: %d/%s %s, %.1f/s%s%s", what, done, total or "?", unit, rate, left, f", {more}" if more else ""
            )

    return tick
