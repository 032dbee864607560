"""Teachers read a query and a passage together and say how well they fit. Imported only when used."""

from __future__ import annotations

import importlib
from typing import Any, Protocol

import numpy as np

from miner import config

Scores = np.ndarray[Any, np.dtype[np.float32]]


class Teacher(Protocol):
    def score(self, pairs: list[tuple[str, str]]) -> Scores:
        """float32[len(pairs)], one raw logit for each (query, passage), in the order of `pairs`; no pair: no score."""


def load(settings: config.Teacher) -> Teacher:
    """The teacher that the job file names. Raises UserError where files or packages are missing or do not fit."""
    from miner.teachers import files

    found = files.find(settings)
    teacher: Teacher = importlib.import_module("miner.teachers.cross_encoder").load(settings, found)
    return teacher


def fingerprint(settings: config.Teacher) -> dict[str, Any]:
    """All that decides a score besides the texts, by content and without loading torch. Raises UserError as `load`."""
    from miner.teachers import files

    return files.fingerprint(files.find(settings))
