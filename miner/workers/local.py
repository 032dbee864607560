"""The work done in this process."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from miner import config, encoders, teachers
from miner.encoders import Encoder
from miner.searchers import Searcher
from miner.teachers import Teacher
from miner.workers import Array

if TYPE_CHECKING:
    from miner.searchers.dense import Coder


def load(engine: config.Engine) -> Local:
    return Local()


class Local:
    def encoder(self, settings: config.Encoder, token_outputs: bool = False) -> Encoder:
        return encoders.load(settings, token_outputs)

    def teacher(self, settings: config.Teacher) -> Teacher:
        return teachers.load(settings)

    def coder(self, trained: Array) -> Coder:
        from miner.searchers import dense

        return dense.Coder(trained)

    def dense(self, passages: Array, queries: Array, folder: Path, settings: config.Index) -> Searcher:
        from miner.searchers import dense

        return dense.open(passages, queries, folder, dense.chosen(folder), settings)

    def close(self) -> None:
        """Nothing is held."""
