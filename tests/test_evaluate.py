"""miner evaluate: what is compared is fair and is counted right; the trainings themselves carry the mark `local`."""

from __future__ import annotations

import importlib.util
import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tiny
import toy
import typer
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from miner import config, evaluate, evaluate_data, evaluation, trials
from miner.commands.evaluate import evaluate as command
from miner.errors import UserError
from miner.evaluate_data import World
from miner.trials import Lesson, Recipe

app = typer.Typer()
app.command()(command)


@app.callback()
def _group() -> None:
    """So that the command keeps its name, as in miner."""


def called(*args: object) -> None:
    """`miner evaluate ARGS`; raises what the command raises."""
    done = CliRunner().invoke(app, ["evaluate", *map(str, args)], catch_exceptions=False, standalone_mode=False)
    assert not done.exit_code, done.output


# ---------------------------------------------------------------- rows and batches


def test_rows_are_those_that_every_arm_can_fill():
    pairs = np.array([[0, 10], [0, 11], [1, 12], [2, 13]])
    negatives = {"job": {0: [1, 2], 1: [3, 4], 2: [5]}, "bm25": {0: [6, 7], 2: [8, 9]}}
    rows, lost = evaluation.shared_rows(pairs, negatives, 2)
    assert rows.tolist() == [[0, 10], [0, 11]]
    assert lost == {"job": 1, "bm25": 1}, "pairs that each arm alone would lose"
    assert len(evaluation.shared_rows(pairs, {}, 2)[0]) == 4


@st.composite
def lessons(draw):
    """Rows of queries over a small corpus, so that a negative of one is often a positive of another."""
    queries = draw(st.lists(st.integers(0, 5), min_size=1, max_size=12))
    known = {q: frozenset(draw(st.sets(st.integers(0, 9), min_size=1, max_size=3))) for q in set(queries)}
    texts = []
    for q in queries:
        negatives = draw(st.sets(st.integers(0, 9), max_size=3)) - known[q]
        texts.append(frozenset({min(known[q]), *negatives}))
    return queries, [known[q] for q in queries], texts, draw(st.integers(1, 5))


@given(lessons(), st.integers(0, 99))
def test_no_batch_holds_an_answer_to_a_query_as_its_negative(lesson, seed):
    queries, known, texts, size = lesson
    rows = evaluation.order(len(queries), seed, 0).tolist()
    batches = evaluation.batches(rows, queries, known, texts, size)
    assert sorted(row for batch in batches for row in batch) == list(range(len(queries))), "each row once"
    for batch in batches:
        assert 1 <= len(batch) <= size
        assert len({queries[row] for row in batch}) == len(batch)
        for row in batch:
            assert not any(texts[other] & known[row] for other in batch if other != row)


def test_batches_keep_the_order_where_nothing_is_in_the_way():
    free = [frozenset({row}) for row in range(7)]
    order = [3, 1, 4, 0, 5, 2, 6]
    assert evaluation.batches(order, list(range(7)), free, free, 3) == [[3, 1, 4], [0, 5, 2], [6]]
    same = [0, 0, 1, 2, 3, 4, 5]
    assert evaluation.batches(list(range(7)), same, free, free, 3) == [[0, 2, 3], [1, 4, 5], [6]], "row 1 waits"
    assert evaluation.batches([], [], [], [], 3) == []


def test_the_order_is_that_of_seed_and_epoch():
    orders = [evaluation.order(50, seed, epoch).tolist() for seed in (1, 2) for epoch in (0, 1)]
    assert all(sorted(one) == list(range(50)) for one in orders)
    assert len({tuple(one) for one in orders}) == 4
    assert orders[0] == evaluation.order(50, 1, 0).tolist()


def test_the_search_is_exact_and_ties_go_to_the_lowest_row(monkeypatch):
    rng = np.random.default_rng(0)
    queries, passages = rng.integers(-2, 3, (7, 4)).astype(np.float32), rng.integers(-2, 3, (40, 4)).astype(np.float32)
    monkeypatch.setattr(evaluation, "SCORES_AT_ONCE", 100)  # several blocks
    scores, rows = evaluation.top(queries, passages, 9)
    every = queries @ passages.T
    for at in range(7):
        assert rows[at].tolist() == sorted(range(40), key=lambda row: (-every[at, row], row))[:9]
    assert (scores == np.take_along_axis(every, rows, 1)).all()
    assert evaluation.top(queries, passages[:2], 9)[1].shape == (7, 2)


# ---------------------------------------------------------------- significance


def test_the_randomization_test_counts_sign_patterns():
    exact = 2 / 2**8  # of 256 patterns only all + and all - reach the sum
    assert evaluation.sign_flips(np.full(8, 0.5), 1, 20_000) == pytest.approx(exact, rel=0.25)
    assert evaluation.sign_flips(np.zeros(30), 1) == 1
    assert evaluation.sign_flips(np.full(400, 0.1), 1) == 1 / (evaluation.SAMPLES + 1), "the smallest that there is"
    mixed = np.array([1.0, -1.0, 2.0])  # |±1±1±2| >= 2: 6 of 8
    assert evaluation.sign_flips(mixed, 3, 20_000) == pytest.approx(6 / 8, abs=0.02)


def test_the_randomization_test_is_scipys_where_that_is_exact():
    """scipy's own draws are those of a generator whose versions may differ; ours are hashes, as in `resampling`."""
    from scipy.stats import permutation_test

    for seed in range(4):
        values = np.random.default_rng(seed).normal(0.3, 1, 12)
        every = permutation_test((values,), np.sum, permutation_type="samples", n_resamples=np.inf)
        assert evaluation.sign_flips(values, seed, 40_000) == pytest.approx(every.pvalue, abs=0.01)


def test_holm_is_as_statsmodels_has_it():
    from statsmodels.stats.multitest import multipletests

    values = [0.04, 0.001, 0.03, 0.9, 0.03]
    assert evaluation.holm(values) == pytest.approx(multipletests(values, method="holm")[1].tolist())
    assert evaluation.holm([]) == []


def test_the_report_pairs_by_query_and_averages_seeds():
    base = np.array([[0.2, 0.4, 0.6], [0.4, 0.4, 0.8]])
    values = {
        "before": {"nDCG@10": base[:1]},
        "st": {"nDCG@10": base},
        "none": {"nDCG@10": base - 0.1},
        "job": {"nDCG@10": base},
    }
    before, same, none, job = evaluation.report(values, 13, 500)
    assert [row["arm"] for row in (before, same, none, job)] == ["before", "st", "none", "job"]
    assert job["difference"] is None
    assert job["measures"]["nDCG@10"]["mean"] == pytest.approx(2.8 / 6)
    assert job["measures"]["nDCG@10"]["sd"] == pytest.approx(np.std([1.2 / 3, 1.6 / 3], ddof=1))
    assert before["measures"]["nDCG@10"]["sd"] is None, "one seed has no spread"
    assert (same["difference"]["nDCG@10"]["value"], same["difference"]["nDCG@10"]["p"]) == (0, 1)
    found = none["difference"]["nDCG@10"]
    assert [found[name] for name in ("value", "low", "high")] == pytest.approx([0.1] * 3), "the same for each query"
    assert found["ahead"] == found["seeds"] == 2
    assert found["p_holm"] == pytest.approx(min(1, 2 * found["p"]))
    assert "p_holm" not in before["difference"]["nDCG@10"], "the untrained encoder is no rival"


def test_the_table_has_a_line_an_arm_and_no_markup_of_a_name():
    values = {name: np.array([[0.5, 0.25], [0.5, 0.75]]) for name in trials.MEASURES}
    rows = evaluation.report({"a|b.yaml": values, "job": values}, 1, 100)
    lines = evaluation.markdown(rows).splitlines()
    assert len(lines) == 2 + len(rows)
    assert lines[2].startswith("| a\\|b.yaml | 0.500 ±0.177 | 0.500 | 0.500 | +0.000 (+0.000 to +0.000) | 1.000 | 0/2")
    assert lines[3] == "| job | 0.500 ±0.177 | 0.500 | 0.500 |  |  |  |"


# ---------------------------------------------------------------- rows and arms of a job


@pytest.fixture(scope="module")
def done(tmp_path_factory, miner) -> Path:
    """A finished job with dev queries; its job file."""
    folder = tmp_path_factory.mktemp("toy")
    file = toy.job(folder, export={"dev_share": 0.25})
    miner("run", file)
    return file


@pytest.fixture(scope="module")
def rival(tmp_path_factory, miner) -> Path:
    """Another job on the same corpus, with nothing held out; one of its queries has another text."""
    folder = tmp_path_factory.mktemp("rival")
    file = toy.job(folder, mining={"negatives": 2, "rank_min": 2})
    queries = folder / "data/queries.jsonl"
    queries.write_text(queries.read_text().replace("favourite food of the owl", "owls eat what"))
    miner("run", file)
    return file


@pytest.fixture(scope="module")
def world(done) -> World:
    return World(evaluate_data.opened(config.load(done), done))


def test_training_rows_are_the_exported_queries(world, done):
    lines = (done.parent / "job.job/export/flagembedding.jsonl").read_text().splitlines()
    exported = [json.loads(line) for line in lines]
    assert {world.queries[q] for q in world.pairs[:, 0]} == {row["query"] for row in exported}
    own = evaluate_data.exported(world)
    by_query = {row["query"]: row["neg"] for row in exported}
    for query, passages in own.items():
        assert [world.passages[p] for p in passages] == by_query[world.queries[query]], "in the order of the slots"


def test_baselines_hold_no_known_positive_and_no_copy_of_one(world):
    copy = [at for at, text in enumerate(world.passages) if text.startswith("Cat the cat")]
    assert len(copy) == 1
    row = next(q for q, text in enumerate(world.queries) if text == "what sound does a cat make")
    for seed in range(20):
        drawn = evaluate_data.random(world, 5, seed)
        assert all(len(set(passages)) == 5 for passages in drawn.values())
        for query, positive in world.pairs.tolist():
            assert positive not in drawn[query]
        assert copy[0] not in drawn[row]
    assert evaluate_data.random(world, 5, 1) == evaluate_data.random(world, 5, 1) != evaluate_data.random(world, 5, 2)


def test_bm25_ranks_by_shared_words(world):
    found = evaluate_data.bm25(world, 2)
    row = next(q for q in found if world.queries[q].startswith("favourite food of the "))
    name = world.queries[row].split()[-1]
    assert len(found[row]) == 2
    assert any(name in world.passages[p] for p in found[row])
    assert not world.classes(found[row]) & world.positives[row]


def test_another_job_is_an_arm_by_the_texts_of_its_queries(world, rival):
    other = evaluate_data.exported(world, evaluate_data.opened(config.load(rival), rival))
    texts = {world.queries[q] for q in other}
    assert "favourite food of the owl" not in texts, "another text under the same id is another query"
    own = evaluate_data.exported(world)
    assert set(other) < set(own)
    assert any(other[q] != own[q][:2] for q in other)
    assert all(p < world.corpus_size for passages in other.values() for p in passages), "the same passages by text"


def test_every_arm_gets_the_same_queries_positives_and_batches(world, done):
    negatives = {"job": evaluate_data.exported(world), "bm25": evaluate_data.bm25(world, 2)}
    rows, lost = evaluation.shared_rows(world.pairs, negatives, 2)
    assert len(rows), lost
    lessons = dict(evaluate._lessons(plan_of(world, done, rows, negatives), 13))
    assert list(lessons) == ["none", "random", "bm25", "job"]
    assert {len(lesson.columns) for arm, lesson in lessons.items() if arm != "none"} == {4}
    assert len(lessons["none"].columns) == 2
    for lesson in lessons.values():
        assert lesson.columns[:2] == lessons["job"].columns[:2]
        assert lesson.batches == lessons["job"].batches
        assert sorted(row for batch in lesson.batches for row in batch) == sorted([*range(len(rows))] * 2), "2 epochs"
    assert lessons["job"].columns[2:] != lessons["bm25"].columns[2:]


def plan_of(world: World, file: Path, rows: np.ndarray, negatives: dict) -> evaluate.Plan:
    options = evaluate.Options(
        eval=None,
        split="test",
        baselines=("none", "random", "bm25"),
        against={},
        model=None,
        negatives=2,
        seeds=1,
        recipe=Recipe(epochs=2, batch=4),
        limit=None,
        output=None,
        keep_models=False,
    )
    held = evaluate_data.held_out(world.run, None, "test")
    return evaluate.Plan(world, held, world.run.job.encoder, options, rows, negatives, {}, "", file.parent)


def test_the_limit_draws_whole_queries(world):
    drawn = evaluate._limited(world, world.pairs, 5)
    assert len(np.unique(drawn[:, 0])) == 5
    assert drawn.tolist() == evaluate._limited(world, world.pairs, 5).tolist()
    assert len(evaluate._limited(world, world.pairs, 99)) == len(world.pairs)


# ---------------------------------------------------------------- held-out queries


def test_dev_queries_are_held_out_with_their_answers(world):
    held = evaluate_data.held_out(world.run, None, "test")
    training = {world.query_ids[q] for q in world.pairs[:, 0]}
    assert len(held.queries) == 4
    assert not training & set(held.queries)
    assert all(held.qrels[query_id] for query_id in held.queries)
    assert list(held.passages) == world.numbered.passages.column("doc_id").to_pylist()


def folder(path: Path, queries: dict[str, str], corpus: bool = True) -> Path:
    """A BEIR folder in which every query asks for owl-sleep; judgments of a passage that is not there stand by."""
    path.mkdir(parents=True)
    toy.write_jsonl(path / "queries.jsonl", [{"_id": key, "text": text} for key, text in queries.items()])
    if corpus:
        toy.write_jsonl(path / "corpus.jsonl", [{"_id": "owl-sleep", "title": "owl", "text": "It sleeps by day."}])
    (path / "qrels").mkdir()
    lines = [f"{key}\t{doc}\t1\n" for key in queries for doc in ("owl-sleep", "gone")]
    (path / "qrels/test.tsv").write_text("query-id\tcorpus-id\tscore\n" + "".join(lines) + "empty\tgone\t1\n")
    return path


NEW = {"e1": "when do owls rest", "e2": "sleeping time of an owl"}


def test_a_folder_is_read_with_its_own_corpus_or_the_jobs(world, tmp_path):
    held = evaluate_data.held_out(world.run, folder(tmp_path / "whole", NEW), "test")
    assert held.passages == {"owl-sleep": "owl It sleeps by day."}
    assert held.qrels == {key: {"owl-sleep": 1} for key in NEW}
    assert held.lost == {"judgments without a passage": 3, "queries without text or answer": 1}
    held = evaluate_data.held_out(world.run, folder(tmp_path / "part", NEW, corpus=False), "test")
    assert len(held.passages) == world.corpus_size


def test_training_queries_may_not_be_measured_on(world, tmp_path):
    known = world.queries[world.pairs[0, 0]]
    query_id = world.query_ids[world.pairs[0, 0]]
    for number, queries in enumerate(({"x": known.upper() + " "}, {query_id: known + " please"})):
        with pytest.raises(UserError, match="is a training query of the job too; keep the set out with data"):
            evaluate_data.held_out(world.run, folder(tmp_path / str(number), {**NEW, **queries}), "test")
    other = {**NEW, query_id: "an id that counts something else"}
    assert len(evaluate_data.held_out(world.run, folder(tmp_path / "own", other), "test").queries) == 3


# ---------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--baselines", "none,dense"], "--baselines dense: not known; the baselines are none, random, bm25, st"),
        (["--eval", "nowhere"], "--eval nowhere: no folder qrels in it"),
        (["--set", "mining.negatives=2"], r"the job is not done \(.*\); run `miner run"),
        ([], "the job's encoder .onnx_file. cannot be trained; name a model for torch with --model"),
    ],
)
def test_mistakes_are_told_before_anything_is_trained(done, args, message):
    with pytest.raises(UserError, match=message):
        called(done, *args)
    assert not (done.parent / "job.job/evaluate").exists()


def test_two_jobs_of_one_name_could_not_be_told_apart(done, tmp_path):
    shutil.copy(done, tmp_path / "job.yaml")
    with pytest.raises(UserError, match="another job file is called job"):
        called(done, "--against", done, "--against", tmp_path / "job.yaml")


def test_a_job_file_may_not_have_the_name_of_another_arm(done, tmp_path):
    shutil.copy(done, tmp_path / "random")
    with pytest.raises(UserError, match="random is an arm of its own; rename the file"):
        called(done, "--against", tmp_path / "random")


def test_a_split_that_is_not_there_is_named(done, tmp_path):
    with pytest.raises(UserError, match=r"data.split may be test"):
        called(done, "--eval", folder(tmp_path / "set", NEW), "--eval-split", "dev")


def test_without_held_out_queries_the_remedy_is_told(tmp_path, miner):
    file = toy.job(tmp_path)
    miner("run", file)
    with pytest.raises(
        UserError, match="nothing is held out; name an evaluation set with --eval FOLDER, or set export"
    ):
        called(file)


def test_missing_libraries_are_named_with_the_line_that_brings_them(done, monkeypatch):
    monkeypatch.setattr(trials, "NEEDED", ("numpy", "no_such_library"))
    monkeypatch.setattr(evaluate, "student", lambda encoder, options: encoder)
    with pytest.raises(UserError, match=r"no_such_library not installed; pip install 'miner\[train\]'"):
        called(done)


def test_rows_that_no_arm_can_fill_are_counted(done, monkeypatch):
    monkeypatch.setattr(trials, "NEEDED", ())
    monkeypatch.setattr(evaluate, "student", lambda encoder, options: encoder)
    with pytest.raises(
        UserError, match=r"no training query has 9 negatives in every arm \(job lacks some for 12 of 12"
    ):
        called(done, "--negatives", 9, "--baselines", "none")


# ---------------------------------------------------------------- real trainings


def trained(test):
    """Marks a test that trains."""
    lacking = not all(map(importlib.util.find_spec, trials.NEEDED))
    return pytest.mark.local(pytest.mark.skipif(lacking, reason="extra train not installed")(test))


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """A tiny random BERT under a name whose family has prefixes."""
    return tiny.bert(tmp_path_factory.mktemp("models") / "e5-small-tiny")


def arguments(done: Path, model: Path, out: Path, *more: object) -> list[object]:
    return [done, "--model", model, "--negatives", 2, "--max-length", 16, "--batch", 4, "-o", out, *more]


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Two threads wait for each other longer than the tiny model takes. And no hub."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("HF_HUB_OFFLINE", "1")
        yield


@pytest.fixture(scope="module")
def finished(done, model, tmp_path_factory) -> Path:
    """The results of all baselines at two seeds."""
    out = tmp_path_factory.mktemp("out")
    called(*arguments(done, model, out, "--seeds", 2, "--keep-models"))
    return out


def runs(out: Path) -> dict[tuple[str, int], dict]:
    found = [json.loads(path.read_text()) for path in sorted((out / "runs").glob("*.json"))]
    return {(one["arm"], one["seed"]): one for one in found}


@trained
def test_results_tell_every_arm(finished):
    results = json.loads((finished / "results.json").read_text())
    assert [row["arm"] for row in results["arms"]] == ["before", "none", "random", "bm25", "st", "job"]
    assert results["training"]["rows"] == 12
    assert results["held_out"]["queries"] == 4
    for row in results["arms"]:
        for measure in trials.MEASURES:
            found = row["measures"][measure]
            assert 0 <= found["low"] <= found["mean"] <= found["high"] <= 1
            assert found["mean"] == pytest.approx(np.mean(results["per_query"][row["arm"]][measure]))
    losses = {row["arm"]: row["loss"] for row in results["arms"]}
    assert losses["before"] == [None]
    assert all(loss > 0 for arm, both in losses.items() if arm != "before" for loss in both)
    assert losses["none"][0] < losses["random"][0], "more passages to tell apart, more loss"
    table = (finished / "table.md").read_text()
    assert table.count("\n| ") == 1 + 6
    assert "bootstrap over queries" in table
    assert (finished / "plot.svg").read_text().startswith("<?xml")


@trained
def test_a_kept_model_gives_the_measured_values(finished, done, model):
    from miner.trials import ir_measures, sentence_transformers

    held = evaluate_data.held_out(evaluate_data.opened(config.load(done), done), None, "test")
    (kept,) = finished.glob("models/job-14-*")
    settings = config.Encoder(
        model=str(kept), backend="torch", max_length=16, query_prefix="query: ", passage_prefix="passage: "
    )
    encoder = sentence_transformers.load(settings)
    vectors = encoder.encode(list(held.passages.values()), "passage")
    queries = encoder.encode([held.queries[one] for one in held.qrels], "query")
    scores, rows = evaluation.top(queries, vectors, 100)
    ids = list(held.passages)
    run = {q: {ids[r]: float(s) for r, s in zip(rows[i], scores[i], strict=True)} for i, q in enumerate(held.qrels)}
    assert ir_measures.measure(held.qrels, run, 1) == runs(finished)["job", 14]["values"]
    untrained = sentence_transformers.load(config.Encoder(model=str(model), backend="torch", max_length=16))
    assert not np.allclose(untrained.encode(list(held.passages.values()), "passage"), vectors, atol=1e-4)


@trained
def test_what_is_done_is_not_done_again_and_comes_out_the_same(finished, done, model, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(finished, out)
    files = sorted((out / "runs").glob("*.json"))
    gone = next(path for path in files if json.loads(path.read_text())["arm"] == "bm25")
    gone.unlink()
    kept = {path: path.stat().st_mtime_ns for path in files if path != gone}
    called(*arguments(done, model, out, "--seeds", 2))
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    for name in ("results.json", "table.md", "plot.svg", f"runs/{gone.name}"):
        assert (out / name).read_bytes() == (finished / name).read_bytes(), name
    called(*arguments(done, model, out, "--seeds", 1, "--baselines", "none", "--epochs", 2))
    assert len(list((out / "runs").glob("*.json"))) == len(files) + 2, "another recipe is another training"
    (thrown,) = out.glob("models/none-13-*")
    shutil.rmtree(thrown)
    called(*arguments(done, model, out, "--seeds", 1, "--keep-models"))
    assert (thrown / "config.json").is_file(), "a model that is wanted now is trained again"
    assert not list(out.glob("models/.*"))


@trained
def test_an_interrupted_run_goes_on_where_it_stopped(finished, done, model, tmp_path, environment):
    """Stopped after the first trial; the results are those of the run that was not."""
    script = "import test_evaluate as t, sys; t.app(sys.argv[1:], standalone_mode=False)"
    args = ["evaluate", *map(str, arguments(done, model, tmp_path, "--seeds", 2))]
    where = {**environment, "PYTHONPATH": str(Path(__file__).parent), "PYTHONWARNINGS": "ignore"}
    process = subprocess.Popen([sys.executable, "-c", script, *args], env=where, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not list((tmp_path / "runs").glob("*.json")) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=60)
    assert "what is done is kept. Go on with:" in told
    assert not (tmp_path / "results.json").exists()
    called(*args[1:])
    for name in ("results.json", "table.md", "plot.svg"):
        assert (tmp_path / name).read_bytes() == (finished / name).read_bytes(), name


@trained
def test_the_trainer_sees_prefixes_rows_and_batches_as_they_are_given(model):
    from miner.trials import sentence_transformers

    columns = [["a cat", "an owl", "a dog"], ["meows", "hoots", "barks"], ["moos", "bleats", "neighs"]]
    lesson = Lesson(columns, [[2, 0], [1], [0, 1]], 5)
    student = sentence_transformers.load(config.Encoder(model=str(model), backend="torch", max_length=16))
    assert student._prepared(["a cat"], "query") == ["query: a cat"]
    seen: list[list[str]] = []
    inner = student._model.preprocess
    student._model.preprocess = lambda texts, *a, **k: (seen.append(list(texts)), inner(texts, *a, **k))[1]
    steps: list[int] = []
    student.fit(lesson, Recipe(max_length=16, batch=2), steps.append)
    assert len(steps) == 3
    queries = [texts for texts in seen if texts[0].startswith("query: ")]
    assert queries == [["query: a dog", "query: a cat"], ["query: an owl"], ["query: a cat", "query: an owl"]]
    assert ["passage: neighs", "passage: moos"] in seen


@trained
def test_the_librarys_own_mining_gets_the_jobs_vectors(world):
    """Its top is the ranking of the job's vectors, without the positives and above the margin."""
    found = evaluate_data.library(world, 2)
    passages, queries = world.vectors()
    assert found
    for query, mine in found.items():
        scores = passages @ queries[query]
        positives = [p for q, p in world.numbered.positives[:, :2].tolist() if q == query]
        lowest = scores[positives].min()
        left = [s for p, s in enumerate(scores) if p not in positives and s <= lowest - 0.05 * abs(lowest)]
        assert scores[mine] == pytest.approx(sorted(left, reverse=True)[:2], abs=1e-6)
        assert not set(mine) & set(positives)


@trained
def test_measures_are_those_of_trec_eval_by_hand():
    from miner.trials import ir_measures

    qrels = {"q": {"a": 2, "b": 1}, "nothing": {"a": 1}}
    found = ir_measures.measure(qrels, {"q": {"x": 3.0, "a": 2.0, "b": 1.0}}, 2)
    ideal = 2 / np.log2(2) + 1 / np.log2(3)
    assert found["nDCG@10"] == pytest.approx([(2 / np.log2(3) + 1 / np.log2(4)) / ideal, 0])
    assert found["MRR@10"] == [0.5, 0]
    assert found["recall@100"] == [1, 0], "only what is at least 2 counts"
    assert tuple(found) == trials.MEASURES
    assert evaluation.MAIN in trials.MEASURES
