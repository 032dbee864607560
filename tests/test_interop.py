"""The exported files in the hands of those they are for: FlagEmbedding's and sentence-transformers' own code."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import sys
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


FORMS = [
    *("flagembedding-reranker", "flagembedding-m3", "st-labeled-pair", "st-labeled-list", "st-scored-pair"),
    *("st-scored-list", "tevatron", "tevatron-legacy", "beir", "parquet"),
]


@pytest.fixture(scope="module")
def forms(tmp_path_factory, miner) -> Path:
    """The same job's export in all other forms, a quarter of the queries held out."""
    folder = tmp_path_factory.mktemp("forms")
    miner("run", toy.job(folder, export={"formats": FORMS, "dev_share": 0.25}))
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


TRAINING = {
    "max_steps": 1,
    "per_device_train_batch_size": 4,
    "use_cpu": True,
    "report_to": "none",
    "save_strategy": "no",
    "remove_unused_columns": False,
    "dataloader_pin_memory": False,
}


def learns(runner) -> None:
    before = weights(runner.model.model)
    done = runner.trainer.train()
    assert np.isfinite(done.training_loss)
    assert any((a != b).any() for a, b in zip(before, weights(runner.model.model), strict=True))


@pytest.mark.filterwarnings("ignore:`max_length` is ignored:UserWarning")
@pytest.mark.parametrize("same", [False, True])
def test_flagembedding_trains_m3_with_three_outputs_and_self_distillation(forms, tmp_path, same):
    import tiny_m3
    from FlagEmbedding.finetune.embedder.encoder_only.m3 import (
        EncoderOnlyEmbedderM3ModelArguments,
        EncoderOnlyEmbedderM3Runner,
        EncoderOnlyEmbedderM3TrainingArguments,
    )

    folder = tiny_m3.m3(tmp_path / "bge-m3")
    training = EncoderOnlyEmbedderM3TrainingArguments(
        output_dir=str(tmp_path / "out"),
        unified_finetuning=True,
        use_self_distill=True,
        kd_loss_type="m3_kd_loss",
        **TRAINING,
    )
    data = arguments(forms / "flagembedding-m3.jsonl", 4, knowledge_distillation=True, same_dataset_within_batch=same)
    learns(EncoderOnlyEmbedderM3Runner(EncoderOnlyEmbedderM3ModelArguments(str(folder)), data, training))


def reranker_arguments(path: Path, group: int, **more):
    from FlagEmbedding.abc.finetune.reranker import AbsRerankerDataArguments

    return AbsRerankerDataArguments(
        train_data=[str(path)], cache_path=str(path.parent / "cache"), train_group_size=group, **more
    )


@pytest.mark.filterwarnings("ignore:`max_length` is ignored:UserWarning")
@pytest.mark.parametrize("distil", [False, True])
def test_flagembedding_trains_a_reranker_a_step(forms, tmp_path, distil):
    from FlagEmbedding.abc.finetune.reranker import AbsRerankerModelArguments, AbsRerankerTrainingArguments
    from FlagEmbedding.finetune.reranker.encoder_only.base import EncoderOnlyRerankerRunner

    folder = tiny.cross_encoder(tmp_path / "bge-reranker-base")
    path = forms / "flagembedding-reranker.jsonl"
    data = reranker_arguments(path, 1 + NEGATIVES, knowledge_distillation=distil)
    training = AbsRerankerTrainingArguments(output_dir=str(tmp_path / "out"), **TRAINING)
    runner = EncoderOnlyRerankerRunner(AbsRerankerModelArguments(str(folder)), data, training)
    rows = jsonl(path)
    items = [runner.train_dataset[i] for i in range(len(runner.train_dataset))]
    assert len(items) == len(rows) == 12
    for (batch, found), row in zip(items, rows, strict=True):
        assert len(batch) == 1 + NEGATIVES
        assert found is None if not distil else sorted(found) == sorted(row["pos_scores"] + row["neg_scores"])
    learns(runner)


def test_flagembeddings_llm_reranker_keeps_its_own_question(forms, tmp_path):
    """An empty `prompt` in the file would take its place."""
    from FlagEmbedding.abc.finetune.reranker import AbsLLMRerankerTrainDataset
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(tiny.cross_encoder(tmp_path / "model")))
    args = reranker_arguments(forms / "flagembedding-reranker.jsonl", 2, query_max_len=64, passage_max_len=256)
    data = AbsLLMRerankerTrainDataset(args=args, tokenizer=tokenizer)
    question = "Given a query A and a passage B, determine whether the passage contains an answer to the query by"
    asked = tokenizer(question, add_special_tokens=False)["input_ids"]
    for item in range(len(data)):
        for passage in data[item][0]:
            ids = passage["input_ids"]
            assert any(ids[i : i + len(asked)] == asked for i in range(len(ids)))


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


@pytest.mark.parametrize(
    ("name", "loss"),
    [
        ("st-labeled-pair", "ContrastiveLoss"),
        ("st-labeled-pair", "OnlineContrastiveLoss"),
        ("st-scored-pair", "CoSENTLoss"),
        ("st-scored-pair", "CosineSimilarityLoss"),
    ],
)
def test_pairs_train_an_embedder_a_step(forms, tmp_path, student, name, loss):
    run = trainer(student, table(forms, name), loss, tmp_path / "out")
    batch = next(iter(run.get_train_dataloader()))
    assert {key.removesuffix("_input_ids") for key in batch if key.endswith("_input_ids")} == {"anchor", "positive"}
    assert tuple(batch["label"].shape) == (4,)
    before = weights(student)
    assert np.isfinite(run.train().training_loss)
    assert any((a != b).any() for a, b in zip(before, weights(student), strict=True))


@pytest.mark.parametrize(
    ("name", "loss"),
    [
        ("st-labeled-pair", "BinaryCrossEntropyLoss"),
        ("st-labeled-list", "LambdaLoss"),
        ("st-labeled-list", "PListMLELoss"),
        ("st-labeled-list", "ListNetLoss"),
        ("st-scored-pair", "MSELoss"),
        ("st-scored-list", "ListNetLoss"),
        ("st-scored-list", "RankNetLoss"),
    ],
)
def test_pairs_and_lists_train_a_cross_encoder_a_step(forms, tmp_path, name, loss):
    from sentence_transformers.cross_encoder import (
        CrossEncoder,
        CrossEncoderTrainer,
        CrossEncoderTrainingArguments,
        losses,
    )

    model = CrossEncoder(str(tiny.bert_cross_encoder(tmp_path / "model")), num_labels=1, device="cpu")
    args = CrossEncoderTrainingArguments(
        output_dir=str(tmp_path / "out"),
        disable_tqdm=True,
        **{key: value for key, value in TRAINING.items() if key != "remove_unused_columns"},
    )
    run = CrossEncoderTrainer(
        model=model, args=args, train_dataset=table(forms, name), loss=getattr(losses, loss)(model)
    )
    before = weights(model)
    assert np.isfinite(run.train().training_loss)
    assert any((a != b).any() for a, b in zip(before, weights(model), strict=True))


# ---------------------------------------------------------------- Tevatron and BEIR, where they are installed

TEVATRON = "TEVATRON_SOURCE"


@pytest.fixture
def tevatron(monkeypatch):
    """tevatron("retriever.dataset") -> that module of the checkout of Tevatron's main branch, which no registry has.

    PyPI's 0.1.0 has the same package name, so neither may be left among the loaded modules.
    """
    folder = os.environ.get(TEVATRON)
    if not folder:
        pytest.skip(f"{TEVATRON} names no checkout of github.com/texttron/tevatron")
    source = Path(folder) / "src"
    assert (source / "tevatron/retriever/dataset.py").is_file(), f"{TEVATRON}={folder}: no Tevatron of 2024 or later"
    monkeypatch.syspath_prepend(source)
    _forget_tevatron()
    yield lambda name: importlib.import_module(f"tevatron.{name}")
    _forget_tevatron()


def _forget_tevatron() -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "tevatron"]:
        del sys.modules[name]


def test_current_tevatron_reads_every_item(forms, tevatron):
    """Its data set class, from ids to texts."""
    dataset, arguments_ = tevatron("retriever.dataset"), tevatron("retriever.arguments")
    by_folder = {"dataset_name": str(forms / "tevatron"), "corpus_name": str(forms / "tevatron-corpus")}
    by_file = {"dataset_name": "json", "dataset_path": str(forms / "tevatron/train.jsonl")}
    by_file |= {"corpus_name": "json", "corpus_path": str(forms / "tevatron-corpus/corpus.jsonl")}
    texts = {row["docid"]: row["text"] for row in jsonl(forms / "tevatron-corpus/corpus.jsonl")}
    rows = jsonl(forms / "tevatron/train.jsonl")
    for given in (by_folder, by_file):
        args = arguments_.DataArguments(train_group_size=1 + NEGATIVES, **given)
        data = dataset.TrainDataset(args, trainer=epoch_zero())
        assert len(data) == len(rows) == 12
        for i, row in enumerate(rows):
            (query, *_), passages = data[i]
            assert query == row["query_text"]
            assert passages[0][0] in [texts[doc_id] for doc_id in row["positive_document_ids"]]
            assert sorted(p[0] for p in passages[1:]) == sorted(texts[d] for d in row["negative_document_ids"])


def test_current_tevatron_reads_the_older_form(forms, tevatron):
    dataset, arguments_ = tevatron("retriever.dataset"), tevatron("retriever.arguments")
    path = forms / "tevatron-legacy.jsonl"
    args = arguments_.DataArguments(dataset_name="json", dataset_path=str(path), train_group_size=1 + NEGATIVES)
    data = dataset.TrainDataset(args, trainer=epoch_zero())
    rows = jsonl(path)
    assert len(data) == len(rows)
    for i, row in enumerate(rows):
        (query, *_), passages = data[i]
        known = [f"{p['title']} {p['text']}" for p in row["positive_passages"] + row["negative_passages"]]
        assert query == row["query"]
        assert sorted(p[0] for p in passages) == sorted(known)


def epoch_zero():
    from types import SimpleNamespace

    return SimpleNamespace(state=SimpleNamespace(epoch=0), args=SimpleNamespace(seed=1))


def test_older_tevatron_reads_every_item(forms, tmp_path):
    """Version 0.1.0, which is the last on PyPI: its preprocessor, over the rows as `datasets` opens them."""
    preprocessor = pytest.importorskip("tevatron.datasets.preprocessor")
    import datasets
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(tiny.bert(tmp_path / "model")))
    path = forms / "tevatron-legacy.jsonl"
    data = datasets.load_dataset("json", data_files=str(path), split="train")
    for row, known in zip(data, jsonl(path), strict=True):
        found = preprocessor.TrainPreProcessor(tokenizer)(row)
        assert len(found["positives"]) == 1
        assert len(found["negatives"]) == NEGATIVES
        text = f"{known['positive_passages'][0]['title']} {known['positive_passages'][0]['text']}"
        assert found["positives"][0] == tokenizer.encode(text, add_special_tokens=False)


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")  # its own
def test_beirs_own_loader_reads_the_folder(forms):
    loader = pytest.importorskip("beir.datasets.data_loader")
    for split, queries in (("train", 12), ("dev", 4)):
        corpus, found, qrels = loader.GenericDataLoader(data_folder=str(forms / "beir")).load(split=split)
        assert len(corpus) == 25
        assert len(found) == len(qrels) == queries
        assert {grade for row in qrels.values() for grade in row.values()} == {0, 1}
        assert all(doc_id in corpus for row in qrels.values() for doc_id in row)
