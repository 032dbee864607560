"""Fine-tune an encoder, and mine as sentence-transformers mines: what is done with that library in a trial."""

from __future__ import annotations

import contextlib
import io
import logging
import math
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments, util
from sentence_transformers.base.sampler import DefaultBatchSampler
from sentence_transformers.sentence_transformer import losses
from transformers import TrainerCallback, set_seed
from transformers.trainer_callback import PrinterCallback

from miner import config
from miner.encoders import Kind, files, shape
from miner.encoders.torch import TorchEncoder
from miner.errors import UserError
from miner.trials import Array, Lesson, Recipe

MARGIN = 0.05  # of sentence-transformers' own mining, as its manual has it
Tick = Callable[[int], None]


class Student(TorchEncoder):
    """An encoder that can be trained. Texts get the family's prefixes in training as in encoding."""

    def fit(self, lesson: Lesson, recipe: Recipe, tick: Tick) -> float:
        """Train, one tick a step; the mean loss. Raises UserError where it is not a finite number."""
        set_seed(lesson.seed)
        model = self._model.float()
        names = ["anchor", "positive", *(f"negative_{i}" for i in range(1, len(lesson.columns) - 1))]
        texts = [self._prepared(lesson.columns[0], "query")]
        texts += [self._prepared(column, "passage") for column in lesson.columns[1:]]
        with tempfile.TemporaryDirectory() as folder, _quiet():
            trainer = Trainer(
                model=model,
                args=_arguments(folder, lesson, recipe),
                train_dataset=datasets.Dataset.from_dict(dict(zip(names, texts, strict=True))),
                loss=losses.MultipleNegativesRankingLoss(model, scale=recipe.scale),
                callbacks=[_Ticker(tick)],
            )
            trainer.remove_callback(PrinterCallback)
            loss = float(trainer.train().training_loss)
        if not math.isfinite(loss):
            raise UserError(f"miner evaluate: the loss became {loss} in training; take another --model or fp32")
        model.eval()
        return loss

    def _prepared(self, texts: list[str], kind: Kind) -> list[str]:
        prefixed = [self._prefixes[kind] + text for text in texts]
        return shape.suffixed(prefixed, self._suffixes[kind], self._spans, self._longest)

    def save(self, folder: Path) -> None:
        with _quiet():
            self._model.save_pretrained(str(folder))


def load(settings: config.Encoder) -> Student:
    """The untrained encoder, through torch. Raises UserError where torch cannot load it."""
    return Student(settings, files.find(settings))


def _arguments(folder: str, lesson: Lesson, recipe: Recipe) -> SentenceTransformerTrainingArguments:
    def sampler(dataset: Any, **_: Any) -> Batches:
        return Batches(dataset, lesson.batches)

    return SentenceTransformerTrainingArguments(
        output_dir=folder,
        num_train_epochs=1,  # the batches are those of all epochs
        per_device_train_batch_size=recipe.batch,
        learning_rate=recipe.learning_rate,
        warmup_steps=math.ceil(recipe.warmup * len(lesson.batches)),
        batch_sampler=sampler,
        seed=lesson.seed,
        bf16=recipe.precision == "bf16",
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=torch.cuda.is_available(),
    )


class Trainer(SentenceTransformerTrainer):  # type: ignore[misc]
    """Without the card of the model, which nobody reads and which takes longer than small trainings."""

    def add_model_card_callback(self, default_args_dict: dict[str, Any]) -> None:
        pass


class Batches(DefaultBatchSampler):  # type: ignore[misc]
    """The batches as they are given, in their order."""

    def __init__(self, dataset: Any, batches: list[list[int]]) -> None:
        super().__init__(dataset, batch_size=max(map(len, batches)), drop_last=False)
        self._batches = batches

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self._batches)

    def __len__(self) -> int:
        return len(self._batches)


class _Ticker(TrainerCallback):  # type: ignore[misc]
    def __init__(self, tick: Tick) -> None:
        self._tick = tick

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self._tick(1)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The trainer's and the miner's own notes: none of them is for stdout, where the table goes."""
    loggers = [logging.getLogger(name) for name in ("transformers", "sentence_transformers", "accelerate")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


# ---------------------------------------------------------------- the library's own mining


class _Vectors:
    """Stands for the model in `mine_hard_negatives`: gives the vectors that the job has, so it mines with the same."""

    device = torch.device("cpu")
    similarity = staticmethod(util.dot_score)
    similarity_pairwise = staticmethod(util.pairwise_dot_score)

    def __init__(self, queries: dict[str, Array], passages: dict[str, Array]) -> None:
        self._queries, self._passages = queries, passages

    def encode_query(self, texts: list[str], **_: Any) -> Array:
        return np.stack([self._queries[text] for text in texts])

    def encode_document(self, texts: list[str], **_: Any) -> Array:
        return np.stack([self._passages[text] for text in texts])


def mine(
    pairs: list[tuple[str, str]], queries: dict[str, Array], passages: dict[str, Array], negatives: int, depth: int
) -> dict[str, list[str]]:
    """query text -> `negatives` texts, best first, by `sentence_transformers.util.mine_hard_negatives`.

    pairs: (query, positive), all that are known. queries, passages: text -> its L2-normalised vector. The top of
    `depth` ranks that keeps a relative margin of 0.05, which is the setting its manual names first. Queries for which
    it finds fewer are left out.
    """
    if len(passages) <= 1:
        return {}
    table = datasets.Dataset.from_dict({"anchor": [q for q, _ in pairs], "positive": [p for _, p in pairs]})
    with _quiet(), _no_bars():
        found = util.mine_hard_negatives(
            table,
            _Vectors(queries, passages),
            corpus=list(passages),
            range_max=max(depth, negatives),
            relative_margin=MARGIN,
            num_negatives=negatives,
            sampling_strategy="top",
            output_format="n-tuple",
            verbose=False,
        )
    names = [name for name in found.column_names if name.startswith("negative")]
    return {row["anchor"]: [row[name] for name in names] for row in found}


@contextlib.contextmanager
def _no_bars() -> Iterator[None]:
    """Its bars stand on stderr, whoever looks."""
    with contextlib.redirect_stderr(io.StringIO()):
        datasets.disable_progress_bars()
        try:
            yield
        finally:
            datasets.enable_progress_bars()
