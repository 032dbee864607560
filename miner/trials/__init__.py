"""Trials of training data: fine-tune an encoder on it and measure what the encoder has learnt.

One outside library a file: sentence-transformers trains, ir_measures measures, matplotlib draws. All of them come with
the extra `train`; nothing here is imported before a trial starts.
"""

from __future__ import annotations

import importlib.util
from typing import Any, NamedTuple

import numpy as np

from miner.errors import UserError

Array = np.ndarray[Any, Any]
NEEDED = ("torch", "sentence_transformers", "accelerate", "ir_measures", "matplotlib")
MEASURES = ("nDCG@10", "MRR@10", "recall@100")
DEPTH = 100  # of the rankings that are measured


class Recipe(NamedTuple):
    """How an encoder is fine-tuned: the same for every arm. Everything else is the trainer's default.

    batch: queries of one step. warmup: share of the steps in which the learning rate rises; then it falls to 0 in a
    straight line. scale: what cosines are multiplied by in the loss, 1/temperature. precision: fp32, or bf16 for
    autocast while training.
    """

    epochs: int = 1
    batch: int = 16
    max_length: int = 128
    precision: str = "fp32"
    learning_rate: float = 2e-5
    warmup: float = 0.1
    scale: float = 20.0


class Lesson(NamedTuple):
    """What one training sees. columns: queries, positives, then each place of negatives, n texts each.

    batches: the row numbers of each step, over all epochs.
    """

    columns: list[list[str]]
    batches: list[list[int]]
    seed: int


def check() -> None:
    """Raises UserError where a library of the extra `train` is missing."""
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"miner evaluate: {', '.join(missing)} not installed; pip install 'miner[train]'")
