"""Work a step ahead and a step behind: what comes next is read, and what is done is written, beside the work itself.
And the same work on many things at once.

numpy, faiss, pyarrow and ONNX Runtime leave the interpreter free while they compute, so threads of one process are
enough.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar

S = TypeVar("S")
T = TypeVar("T")


def cores() -> int:
    """Of the processor, those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def spread(work: Callable[[S], T], items: Iterable[S], threads: int) -> Iterator[T]:
    """work(item) of each, in order, by so many threads. Where the caller leaves early, what has not begun is left."""
    pool = ThreadPoolExecutor(threads)
    try:
        yield from pool.map(work, items)
    finally:
        pool.shutdown(cancel_futures=True)


class Later(Protocol):
    def __call__(self, work: Callable[..., object], *arguments: Any) -> None: ...


def ahead(items: Iterator[T]) -> Iterator[T]:
    """The same items; the next one is made in a thread while the last one is used."""
    with ThreadPoolExecutor(1) as pool:
        done = object()
        coming: Future[Any] = pool.submit(next, items, done)
        while (item := coming.result()) is not done:
            coming = pool.submit(next, items, done)
            yield item


@contextmanager
def writer(waiting: int = 2) -> Iterator[Later]:
    """Yields what takes calls to be made one after the other in a thread; at most `waiting` of them wait.

    All are done when the block ends. An error of one comes up at a later call, or at the end.
    """
    left: deque[Future[object]] = deque()
    with ThreadPoolExecutor(1) as pool:

        def later(work: Callable[..., object], *arguments: Any) -> None:
            while len(left) >= waiting:
                left.popleft().result()
            left.append(pool.submit(work, *arguments))

        try:
            yield later
            while left:
                left.popleft().result()
        finally:
            for future in left:
                future.cancel()
