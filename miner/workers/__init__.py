"""Who does the heavy work of a job: this process, or the workers of a Ray cluster (`engine` in the job file).

What they hand out looks the same to the steps: an encoder, a teacher, the searcher of the dense index. Results are the
same to the byte, so a job that was begun on one goes on on the other.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from miner import config
from miner.encoders import Encoder
from miner.searchers import Searcher
from miner.teachers import Teacher

if TYPE_CHECKING:
    from miner.searchers.dense import Coder

Array = np.ndarray[Any, Any]


class Workers(Protocol):
    def encoder(self, settings: config.Encoder, token_outputs: bool = False) -> Encoder:
        """As encoders.load. One of many workers is a `chunks.Many` too."""

    def teacher(self, settings: config.Teacher) -> Teacher:
        """As teachers.load. One of many workers is a `chunks.Many` too."""

    def coder(self, trained: Array) -> Coder:
        """As searchers.dense.Coder. One of many workers is a `chunks.Many` too."""

    def dense(self, passages: Array, queries: Array, folder: Path, settings: config.Index) -> Searcher:
        """passages: float32[n, d], queries: float32[q, d], memmaps too; folder: of the index step."""

    def close(self) -> None: ...


def load(engine: config.Engine) -> Workers:
    """The workers that the job file names. Raises UserError where the cluster or the package is not there."""
    found: Workers = importlib.import_module(f"miner.workers.{engine.kind}").load(engine)
    return found
