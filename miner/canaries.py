"""Pairs whose answer is known, mixed into the judging, so that a judge that goes blind is noticed while it works. Pure.

A canary is relevant: another positive of a query than the one that is shown as reference, or a relevant golden pair.
The recall is the share called relevant among those that got a readable answer: what is unreadable makes no negative.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Protocol, TypeVar

from miner.bounds import exact_interval, upper_bound
from miner.errors import MinerError
from miner.records import content_id


class JudgeDrift(MinerError):
    """The judge no longer recognises passages that are known to be relevant."""

    exit_code = 6


class Keyed(Protocol):
    @property
    def query_id(self) -> str: ...
    @property
    def doc_id(self) -> str: ...


Item = TypeVar("Item", bound=Keyed)


def ticket(item: Keyed, seed: int) -> int:
    return int(content_id(f"{seed} {item.query_id} {item.doc_id}"), 16)


def drawn(items: Sequence[Item], count: int, seed: int) -> list[Item]:
    """Up to `count` of the items, evenly; which depends on their ids and the seed alone. In the order of the draw."""
    return sorted(items, key=lambda item: (ticket(item, seed), item.query_id, item.doc_id))[:count]


def mixed(
    pairs: Iterable[Item], own: Mapping[str, Sequence[Item]], foreign: Sequence[Item], queries: int, seed: int
) -> Iterator[Item]:
    """The pairs, neighbours by query, with canaries among them.

    own: by query, canaries that stand among the query's pairs, each at a place of its own. foreign: canaries of other
    queries, evenly between the `queries` queries.
    """
    given = 0
    for number, (query_id, group) in enumerate(groupby(pairs, lambda pair: pair.query_id), 1):
        some = list(group)
        for canary in own.get(query_id, ()):
            some.insert(ticket(canary, seed) % (len(some) + 1), canary)
        yield from some
        due = len(foreign) * number // queries
        yield from foreign[given:due]
        given = due


@dataclass
class Watch:
    """The last answers about canaries. limit: the recall under which the judge has drifted."""

    window: int
    least: int
    limit: float
    seen: int = 0
    recent: deque[bool] = field(default_factory=deque)

    def add(self, recognised: bool) -> None:
        self.seen += 1
        self.recent.append(recognised)
        if len(self.recent) > self.window:
            self.recent.popleft()

    @property
    def drifted(self) -> bool:
        """Is the recall over the window surely under the limit, by the one-sided 95% bound of Clopper & Pearson?"""
        return drifted(sum(self.recent), len(self.recent), self.least, self.limit)

    @property
    def line(self) -> str:
        return told(sum(self.recent), len(self.recent))


def drifted(hits: int, trials: int, least: int, limit: float) -> bool:
    return trials >= max(least, 1) and upper_bound(hits, trials) < limit


def told(hits: int, trials: int) -> str:
    low, high = exact_interval(hits, trials)
    return f"{hits} of {trials} canaries recognised, recall {hits / max(trials, 1):.2f} ({low:.2f} to {high:.2f})"
