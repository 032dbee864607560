"""Work a step ahead and a step behind: what comes next is read, and what is done is written, beside the work itself.

numpy, faiss and pyarrow leave the interpreter free while they compute, so threads of one process are enough.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar

T = TypeVar("T")


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
