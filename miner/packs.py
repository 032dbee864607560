"""Which passages stand together in one request of a packed judge, and in what order. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from miner.store import digest


def shapes(ids: Sequence[str], size: int, orders: int, seed: int) -> list[tuple[int, ...]]:
    """The packs of one query's passages: their numbers, as they are shown. Shuffled by a hash of seed and id.

    orders 2: each pack is followed by itself in the other direction, so that a passage that profits from its place
    cannot do so twice (Wang et al., arXiv 2305.17926). A pack of one has one direction.
    """
    shuffled = sorted(range(len(ids)), key=lambda at: digest([seed, ids[at]]))
    packs = [tuple(shuffled[start : start + size]) for start in range(0, len(ids), size)]
    return [shown for pack in packs for shown in _directions(pack, orders)]


def _directions(pack: tuple[int, ...], orders: int) -> list[tuple[int, ...]]:
    return [pack, pack[::-1]] if orders > 1 and len(pack) > 1 else [pack]
