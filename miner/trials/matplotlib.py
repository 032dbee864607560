"""Draw the result of a trial: what each arm reached, and how far the job is ahead of it."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from miner.evaluation import JOB

Row = dict[str, Any]


def draw(arms: list[Row], measure: str, path: Path) -> None:
    """Two panels beside each other, a line an arm: the value (a small dot a seed, its mean large, 95% over queries),
    and job minus arm with its 95% interval. The same numbers give the same bytes."""
    with matplotlib.rc_context({"svg.hashsalt": "miner", "font.size": 9}), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a letter in a job's name that the font lacks
        figure = Figure(figsize=(8, 1.2 + 0.4 * len(arms)), layout="constrained")
        left, right = figure.subplots(1, 2, sharey=True)
        for height, arm in enumerate(reversed(arms)):
            _value(left, height, arm["measures"][measure], arm["arm"] == JOB)
            if arm["difference"] is not None:
                _difference(right, height, arm["difference"][measure])
        left.set_yticks(range(len(arms)), [arm["arm"] for arm in reversed(arms)], parse_math=False)
        left.set_xlabel(f"{measure}: seeds, mean, 95% over queries")
        right.axvline(0, color="0.6", linewidth=0.8)
        right.set_xlabel(f"{measure}: job minus arm, paired 95%")
        for axes in (left, right):
            axes.spines[["top", "right"]].set_visible(False)
            axes.set_ylim(-0.6, len(arms) - 0.4)
        figure.savefig(path, format="svg", metadata={"Date": None})


def _value(axes: Any, height: int, found: Row, own: bool) -> None:
    color = "C3" if own else "C0"
    axes.plot([found["low"], found["high"]], [height, height], color=color, linewidth=1.2)
    axes.plot(found["seeds"], [height] * len(found["seeds"]), ".", color="0.5", markersize=4)
    axes.plot([found["mean"]], [height], "o", color=color, markersize=6)


def _difference(axes: Any, height: int, found: Row) -> None:
    axes.plot([found["low"], found["high"]], [height, height], color="0.3", linewidth=1.2)
    axes.plot([found["value"]], [height], "o", color="0.3", markersize=6)
