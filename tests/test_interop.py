"""The exported files in the hands of those they are for: FlagEmbedding's and sentence-transformers' own code."""

from __future__ import annotations

import importlib.util
import json
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
import tiny
import toy

PEERS = ("FlagEmbedding", "sentence_transformers", "accelerate")
pytestmark = [
    pytest.mark.interop,
    pytest.mark.skipif(not all(map(importlib.util.find_spec, PEERS)), reason="extra interop not installed"),
]
NEGATIVES = 3  # of the toy job


@pytest.fixture(scope="module")
def export(tmp_path_factory, miner) -> Path:
    folder = tmp_path_factory.mktemp("toy")
    miner("run", toy.job(folder))
    return folder / "job.job/export"


@pytest.fixture(autouse=True)
def offline(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "datasets")


def jsonl(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


# ---------------------------------------------------------------- FlagEmbedding


def arguments(path: Path, group: int, **more):
    from FlagEmbedding.abc.finetune.embedder import AbsEmbedderDataArguments

    return AbsEmbedderDataArguments(
        train_data=[str(path)], cache_path=str(path.parent / "cache"), train_group_size=group, **more
    )


def same_dataset(args, batch: int) -> list[tuple]:
    from FlagEmbedding.abc.finetune.embedder import AbsEmbedderSameDatasetTrainDataset

    data = AbsEmbedderSameDatasetTrainDataset(args=args, default_batch_size=batch, seed=1, tokenizer=None)
    return [data[i] for i in range(len(data))]


def check(rows: dict[str, dict], query: str, passages: list[str], scores: list[float] | None) -> None:
    """A group of the loader against the line it came from: a positive first, then negatives, each with its score."""
    row = rows[query]
    known = dict(zip(row["neg"], row["neg_scores"], strict=True))
    assert passages[0] in row["pos"]
    assert set(passages[1:]) <= set(row["neg"])
    if len(passages) - 1 <= NEGATIVES:
        assert len(set(passages)) == len(passages), "nothing is repeated while there are enough negatives"
    if scores is not None:
        assert all(type(score) is float for score in scores)
        wanted = [row["pos_scores"][row["pos"].index(passages[0])], *(known[text] for text in passages[1:])]
        assert scores == wanted


@pytest.fixture
def recorded():
    """No warning, not even one that its raiser shows only once."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield caught
    assert [str(warning.message) for warning in caught] == []


@pytest.mark.parametrize("distil", [False, True])
@pytest.mark.parametrize("group", [2, 1 + NEGATIVES, 8])
def test_flagembedding_reads_every_item(export, group, distil, recorded):
    from FlagEmbedding.abc.finetune.embedder import AbsEmbedderTrainDataset

    path = export / "flagembedding.jsonl"
    rows = {row["query"]: row for row in jsonl(path)}
    for instruction in (None, "Represent this sentence for searching relevant passages: "):
        args = arguments(path, group, knowledge_distillation=distil, query_instruction_for_retrieval=instruction)
        data = AbsEmbedderTrainDataset(args=args, tokenizer=None)
        items = [data[i] for i in range(len(data))]
        assert len(items) == len(rows) == 16
        assert {query for query, _, _ in items} == set(rows), "the row's own empty prompt stands before the query"
        for query, passages, scores in items:
            assert len(passages) == group
            assert (scores is not None) == distil
            check(rows, query, passages, scores)


@pytest.mark.parametrize("distil", [False, True])
@pytest.mark.parametrize("group", [2, 1 + NEGATIVES])
def test_flagembedding_reads_batches_of_one_file(export, group, distil, recorded):
    path = export / "flagembedding.jsonl"
    rows = {row["query"]: row for row in jsonl(path)}
    seen = []
    for queries, passages, scores, apart in same_dataset(arguments(path, group, knowledge_distillation=distil), 4):
        assert (len(queries), len(passages), apart) == (4, 4 * group, False)
        for i, query in enumerate(queries):
            part = slice(i * group, (i + 1) * group)
            check(rows, query, passages[part], scores[part] if distil else None)
        seen += queries
    assert sorted(seen) == sorted(rows)


def test_flagembedding_takes_two_jobs_in_one_folder(export, tmp_path, recorded):
    from FlagEmbedding.abc.finetune.embedder import AbsEmbedderTrainDataset

    rows = jsonl(export / "flagembedding.jsonl")
    for name in ("a.jsonl", "b.jsonl"):
        shutil.copy(export / "flagembedding.jsonl", tmp_path / name)
    args = arguments(tmp_path, 2, knowledge_distillation=True)
    assert len(AbsEmbedderTrainDataset(args=args, tokenizer=None)) == 2 * len(rows)


def test_flagembedding_without_scores(tmp_path, miner, recorded):
    from FlagEmbedding.abc.finetune.embedder import AbsEmbedderTrainDataset

    miner("run", toy.job(tmp_path, export={"scores": False}))
    path = tmp_path / "job.job/export/flagembedding.jsonl"
    data = AbsEmbedderTrainDataset(args=arguments(path, 2), tokenizer=None)
    assert len([data[i] for i in range(len(data))]) == 16
    assert len(same_dataset(arguments(path, 2), 4)) == 4
    with pytest.raises(ValueError, match="`pos_scores` and `neg_scores` not found"):
        AbsEmbedderTrainDataset(args=arguments(path, 2, knowledge_distillation=True), tokenizer=None)


@pytest.mark.filterwarnings("ignore:`max_length` is ignored:UserWarning")  # FlagEmbedding's own collator
@pytest.mark.parametrize("same", [False, True])
def test_flagembedding_trains_a_step(export, tmp_path, same):
    from FlagEmbedding.abc.finetune.embedder import AbsEmbedderModelArguments, AbsEmbedderTrainingArguments
    from FlagEmbedding.finetune.embedder.encoder_only.base import EncoderOnlyEmbedderRunner

    folder = tiny.bert(tmp_path / "bge-small-en-v1.5")
    training = AbsEmbedderTrainingArguments(
        output_dir=str(tmp_path / "out"),
        max_steps=1,
        per_device_train_batch_size=4,
        use_cpu=True,
        report_to="none",
        save_strategy="no",
        remove_unused_columns=False,
        dataloader_pin_memory=False,
    )
    data = arguments(export / "flagembedding.jsonl", 4, knowledge_distillation=True, same_dataset_within_batch=same)
    runner = EncoderOnlyEmbedderRunner(AbsEmbedderModelArguments(model_name_or_path=str(folder)), data, training)
    before = weights(runner.model.model)
    done = runner.trainer.train()
    assert np.isfinite(done.training_loss)
    assert any((a != b).any() for a, b in zip(before, weights(runner.model.model), strict=True))


def weights(model) -> list[np.ndarray]:
    return [tensor.detach().numpy().copy() for tensor in model.parameters()]


# ---------------------------------------------------------------- sentence-transformers


def table(export: Path, name: str):
    import datasets

    return datasets.load_dataset("parquet", data_files=str(export / f"{name}.parquet"), split="train")


FILES = [("st-ntuple", ["negative_1", "negative_2", "negative_3"]), ("st-triplet", ["negative"])]
LOSSES = ("MultipleNegativesRankingLoss", "CachedMultipleNegativesRankingLoss", "MarginMSELoss", "DistillKLDivLoss")


@pytest.mark.parametrize(("name", "negatives"), FILES)
def test_datasets_opens_the_parquet_files(export, name, negatives, recorded):
    data = table(export, name)
    assert data.column_names == ["anchor", "positive", *negatives, "scores"]
    by_query = {row["query"]: row for row in jsonl(export / "flagembedding.jsonl")}
    assert len(data) == 16 * (1 if name == "st-ntuple" else NEGATIVES)
    for row in data:
        known = by_query[row["anchor"]]
        scores = dict(zip([*known["pos"], *known["neg"]], [*known["pos_scores"], *known["neg_scores"]], strict=True))
        texts = [row[column] for column in ["positive", *negatives]]
        assert row["scores"] == pytest.approx([scores[text] for text in texts], abs=1e-6)


def trainer(model, data, loss_name: str, out: Path, **more):
    from sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments
    from sentence_transformers.sentence_transformer import losses

    args = SentenceTransformerTrainingArguments(
        output_dir=str(out),
        max_steps=1,
        per_device_train_batch_size=4,
        use_cpu=True,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        dataloader_pin_memory=False,
        **more,
    )
    return SentenceTransformerTrainer(
        model=model, args=args, train_dataset=data, loss=getattr(losses, loss_name)(model)
    )


@pytest.fixture
def student(tmp_path):
    from sentence_transformers import SentenceTransformer

    folder = tiny.bert(tmp_path / "student", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    tiny.modules(folder)
    return SentenceTransformer(str(folder), device="cpu")


@pytest.mark.parametrize("sampler", ["batch_sampler", "no_duplicates"])
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize(("name", "negatives"), FILES)
def test_sentence_transformers_trains_a_step_on_the_file_as_it_is(
    export, tmp_path, student, name, negatives, loss, sampler
):
    run = trainer(student, table(export, name), loss, tmp_path / "out", batch_sampler=sampler)
    batch = next(iter(run.get_train_dataloader()))
    fed = {key.removesuffix("_input_ids") for key in batch if key.endswith("_input_ids")}
    assert fed == {"anchor", "positive", *negatives}, "scores is the label, not a text"
    assert tuple(batch["label"].shape) == (4, 1 + len(negatives))
    before = weights(student)
    done = run.train()
    assert np.isfinite(done.training_loss)
    assert any((a != b).any() for a, b in zip(before, weights(student), strict=True))


def test_the_ranking_loss_is_the_same_with_and_without_scores(export, tmp_path, student):
    data = table(export, "st-ntuple").select(range(4))
    found = []
    for part in (data, data.remove_columns("scores")):
        run = trainer(student, part, "MultipleNegativesRankingLoss", tmp_path / "out", learning_rate=0.0)
        found.append(run.train().training_loss)
    assert found[0] == found[1]


def test_margin_mse_learns_the_margins_of_the_scores(export, tmp_path, student):
    """(mean over slots of (s(q,p) - s(q,n)) - (label_p - label_n)) squared, with the student's own dot products."""
    data = table(export, "st-ntuple").select(range(4))
    done = trainer(student, data, "MarginMSELoss", tmp_path / "out", learning_rate=0.0).train()
    columns = ["positive", "negative_1", "negative_2", "negative_3"]
    queries = student.encode(data["anchor"][:])
    sims = np.stack([(queries * student.encode(data[column][:])).sum(1) for column in columns], axis=1)
    labels = np.array(data["scores"][:])
    gap = (sims[:, :1] - sims[:, 1:]) - (labels[:, :1] - labels[:, 1:])
    assert done.training_loss == pytest.approx((gap**2).mean(), rel=1e-4)


def test_a_file_without_scores_trains_too(tmp_path, miner, student):
    miner("run", toy.job(tmp_path, export={"scores": False}))
    data = table(tmp_path / "job.job/export", "st-ntuple")
    assert data.column_names == ["anchor", "positive", "negative_1", "negative_2", "negative_3"]
    assert np.isfinite(trainer(student, data, "MultipleNegativesRankingLoss", tmp_path / "out").train().training_loss)
