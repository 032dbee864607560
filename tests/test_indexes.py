"""searchers.dense: flat against brute force; what the approximate kinds find, say of themselves and keep."""

from __future__ import annotations

import json
import math
from pathlib import Path

import faiss
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from miner.config.mining import Index
from miner.errors import UserError
from miner.searchers import dense, tuning

APPROXIMATE = ("pq", "hnsw", "ivf-flat", "ivf-pq")
K = 20


@pytest.fixture(autouse=True)
def _one_thread():
    """Many small parallel loops on a busy machine wait for each other; the answers are the same."""
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    yield
    faiss.omp_set_num_threads(before)


def clustered(rows: int, queries: int, dimension: int = 24, seed: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Normalised float32 vectors around 200 centres, passages and queries."""
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((200, dimension))
    both = centres[rng.integers(0, 200, rows + queries)] + 0.9 * rng.standard_normal((rows + queries, dimension))
    both = (both / np.linalg.norm(both, axis=1, keepdims=True)).astype(np.float32)
    return both[:rows], both[rows:]


@pytest.fixture(scope="module")
def world() -> tuple[np.ndarray, np.ndarray]:
    return clustered(10_500, 120)


@pytest.fixture(scope="module")
def best(world) -> np.ndarray:
    """float64[q, K]: the K best inner products of each query."""
    passages, queries = (array.astype(np.float64) for array in world)
    return -np.sort(-(queries @ passages.T), axis=1)[:, :K]


def build(world, folder: Path, kind: str, k: int = K, seed: int = 13, **settings) -> tuple[dict, dense.DenseSearcher]:
    folder.mkdir(parents=True, exist_ok=True)
    index = Index(kind=kind, **settings)
    choice = dense.choose(*world[0].shape, len(world[1]), index)
    report = dense.make(world[0], choice, folder, seed)
    searcher = dense.open(*world, folder, choice, index)
    return report | tuning.tune(searcher, folder, k, index, seed), searcher


def opened(world, folder: Path) -> dense.DenseSearcher:
    return dense.open(*world, folder, dense.chosen(folder), Index())


@pytest.fixture(scope="module")
def built(world, tmp_path_factory) -> dict[str, tuple[dict, Path]]:
    """Each approximate kind, built once."""
    folders = {kind: tmp_path_factory.mktemp(kind) for kind in APPROXIMATE}
    return {kind: (build(world, folder, kind)[0], folder) for kind, folder in folders.items()}


def reopen(world, built, kind: str) -> dense.DenseSearcher:
    return opened(world, built[kind][1])


# ---------------------------------------------------------------- flat


VECTORS = st.integers(1, 4).flatmap(
    lambda d: st.tuples(
        *[st.lists(st.tuples(*[st.integers(-2, 2)] * d), min_size=1, max_size=40).map(lambda v: np.array(v, "f4"))] * 2
    )
)


def test_few_queries_are_a_matrix_product_too():
    """faiss's own bound is some 340 since 1.15, and below it a search takes eight times as long."""
    assert dense.faiss.cvar.distance_compute_blas_threshold == 20


@given(VECTORS, st.integers(1, 50))
def test_flat_is_brute_force_with_ties_by_row(vectors, k):
    passages, queries = vectors
    searcher = dense.open(passages, queries, Path("none"), dense.Choice("flat", ""), Index())
    scores, rows = searcher.search(np.arange(len(queries)), k)
    assert scores.shape == rows.shape == (len(queries), k)
    assert (scores.dtype, rows.dtype) == (np.float32, np.int64)
    products = queries @ passages.T
    for product, found, row in zip(products, scores, rows, strict=True):
        kept = min(k, len(passages))
        assert found[:kept].tolist() == sorted(product, reverse=True)[:kept]
        assert product[row[:kept]].tolist() == found[:kept].tolist()
        assert len(set(row[:kept])) == kept
        assert (row[kept:] == -1).all()
        assert (found[kept:] == -math.inf).all()
        assert list(zip(-found[:kept], row[:kept], strict=True)) == sorted(zip(-found[:kept], row[:kept], strict=True))


def test_equal_vectors_tie_to_the_bit_in_any_block(world):
    passages = np.concatenate([world[0][:300], world[0][:300]])
    searcher = dense.open(passages, world[1], Path("none"), dense.Choice("flat", ""), Index())
    scores, rows = searcher.search(np.arange(120), 600)
    assert (scores[:, ::2] == scores[:, 1::2]).all()
    assert (rows[:, ::2] + 300 == rows[:, 1::2]).all()
    alone = [searcher.search(np.array([q]), 600) for q in range(120)]
    assert (np.concatenate([s for s, _ in alone]) == scores).all()


def test_a_flat_index_is_the_vectors_themselves(world, tmp_path):
    np.save(tmp_path / "vectors.npy", world[0])
    mapped = np.load(tmp_path / "vectors.npy", mmap_mode="r")
    report, searcher = build((mapped, world[1]), tmp_path / "index", "flat")
    assert np.shares_memory(searcher.vectors, mapped)
    assert (report["bytes"], report["recall"]) == (0, 1.0)
    assert not (tmp_path / "index" / dense.FILE).exists()


# ---------------------------------------------------------------- approximate kinds


@pytest.mark.parametrize("kind", APPROXIMATE)
def test_the_recall_is_reached_and_is_what_is_said(world, best, built, kind):
    report, _ = built[kind]
    assert report["kind"] == kind
    assert "warning" not in report
    assert report["recall"] >= 0.95
    scores, rows = reopen(world, built, kind).search(np.arange(120), K)
    assert (rows >= 0).all()
    assert abs((scores >= best[:, -1:] - 1e-6).mean() - report["recall"]) < 0.005


@pytest.mark.parametrize("kind", APPROXIMATE)
def test_scores_are_exact_and_sorted(world, built, kind):
    scores, rows = reopen(world, built, kind).search(np.arange(120), K)
    exact = np.einsum("qd,qkd->qk", world[1].astype(np.float64), world[0].astype(np.float64)[rows])
    np.testing.assert_allclose(scores, exact, atol=1e-6)
    assert (np.diff(scores, axis=1) <= 0).all()
    assert all(len(set(row)) == K for row in rows.tolist())


@pytest.mark.parametrize("kind", APPROXIMATE)
def test_the_same_input_and_seed_give_the_same_files(world, built, kind, tmp_path):
    report, folder = built[kind]
    again, _ = build(world, tmp_path, kind)
    assert again == report
    names = {dense.FILE, dense.CHOICE, dense.TUNED}
    assert {p.name for p in tmp_path.iterdir()} == {p.name for p in folder.iterdir()} == names
    for name in names:
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()


@pytest.mark.parametrize("kind", APPROXIMATE)
def test_a_reopened_index_finds_what_the_tuned_one_found(world, built, kind, tmp_path):
    folder, settings = built[kind][1], Index(kind=kind)
    searcher = dense.open(*world, folder, dense.chosen(folder), settings)
    tuning.tune(searcher, tmp_path, K, settings, 13)
    for first, second in zip(
        searcher.search(np.arange(120), K), reopen(world, built, kind).search(np.arange(120), K), strict=True
    ):
        assert first.tobytes() == second.tobytes()


@pytest.mark.parametrize("kind", APPROXIMATE)
def test_the_report_goes_into_a_manifest(built, kind):
    report = built[kind][0]
    assert json.loads(json.dumps(report)) == report
    knob = {"hnsw": "efSearch", "pq": "refine"}.get(kind, "nprobe")
    assert {"kind", "reason", "k", "sample", "recall", knob} <= set(report)
    assert (report["sample"], report["k"]) == (120, K)


@pytest.mark.parametrize("kind", APPROXIMATE)
def test_no_query_misses_what_the_corpus_has(world, built, kind):
    """However long the list, longer than a few inverted lists are, it is full as long as there are passages."""
    searcher = reopen(world, built, kind)
    for k in (2_000, 10_500, 10_600):
        rows = searcher.search(np.arange(3), k)[1]
        assert ((rows >= 0).sum(axis=1) == min(k, 10_500)).all()
    assert sorted(searcher.search(np.arange(1), 10_500)[1][0].tolist()) == list(range(10_500))


def test_a_short_list_of_an_index_is_made_up_by_exact_search(world, built):
    searcher = reopen(world, built, "ivf-flat")
    searcher.widen(1)
    flat = dense.open(*world, Path("none"), dense.Choice("flat", ""), Index())
    assert (searcher.indexed(world[1][:5], 2_000)[1][:, -1] == -1).all()
    for found, expected in zip(searcher.search(np.arange(5), 2_000), flat.search(np.arange(5), 2_000), strict=True):
        assert (found == expected).all()


@pytest.mark.parametrize("kind", APPROXIMATE)
def test_no_queries(world, built, kind):
    scores, rows = reopen(world, built, kind).search(np.empty(0, np.int64), K)
    assert scores.shape == rows.shape == (0, K)


@pytest.mark.parametrize("kind", ["flat", *APPROXIMATE])
def test_a_corpus_whose_queries_are_none(world, kind, tmp_path):
    report, _ = build((world[0], world[1][:0]), tmp_path, kind)
    assert report["sample"] == 0
    assert report["recall"] == (1.0 if kind == "flat" else None)


# ---------------------------------------------------------------- recall


def test_a_target_out_of_reach_is_said_and_costs_no_exhaustive_search(world, tmp_path):
    report, searcher = build(clustered(10_500, 30, 48), tmp_path, "ivf-pq", recall_target=1.0, refine=1)
    assert report["recall"] < 1
    assert f"recall@{K} of ivf-pq is {report['recall']:.3f}, below mining.index.recall_target 1.0" in report["warning"]
    assert "raise mining.index.refine (now 1)" in report["warning"]
    assert report["nprobe"] < searcher.widest


def test_a_higher_target_widens_the_search(world, tmp_path):
    low, _ = build(world, tmp_path / "low", "ivf-flat", recall_target=0.5)
    high, _ = build(world, tmp_path / "high", "ivf-flat", recall_target=1.0)
    assert low["nprobe"] < high["nprobe"]
    assert low["recall"] < high["recall"] == 1.0


def test_more_refinement_gives_more_recall(tmp_path):
    world = clustered(10_500, 30, 48)
    few, _ = build(world, tmp_path / "few", "ivf-pq", recall_target=1.0, refine=1)
    many, _ = build(world, tmp_path / "many", "ivf-pq", recall_target=1.0, refine=8)
    assert many["recall"] > few["recall"]


# ---------------------------------------------------------------- which index


def choose(rows: int, dimension: int, queries: int, **settings) -> dense.Choice:
    return dense.choose(rows, dimension, queries, Index(**{"memory_gb": 10, "gpu": False, **settings}))


@pytest.fixture
def cores(monkeypatch) -> None:
    monkeypatch.setattr(dense.behind, "cores", lambda: 2)


@pytest.mark.parametrize(
    ("rows", "queries", "kind", "reason"),
    [
        (200_000, 10_000, "flat", "0.31 GB of the 10.00 GB allowed; exact search for 10,000 queries takes about 26 s"),
        (1_000_000, 100_000, "flat", "takes about 1,280 s"),
        (3_000_000, 100_000, "ivf-flat", "exact search for 100,000 queries takes about 64 min, more than 30"),
        (6_000_000, 100_000, "ivf-pq", "takes about 128 min, more than 30, and ivf-flat takes twice the memory"),
        (7_000_000, 10, "ivf-pq", "7,000,000 vectors of 384 take 10.75 GB, more than the 10.00 GB allowed"),
        (10, 100, "flat", "10 vectors of 384"),
    ],
)
@pytest.mark.usefixtures("cores")
def test_auto_takes_by_memory_and_time(rows, queries, kind, reason):
    choice = choose(rows, 384, queries)
    assert choice.kind == kind
    assert choice.reason.startswith(f"{kind}: ")
    assert reason in choice.reason


@pytest.mark.usefixtures("cores")
def test_auto_takes_codes_where_one_process_has_no_time_for_exact_search():
    settings = Index(memory_gb=10, gpu=False)
    assert dense.choose(1_000_000, 384, 100_000, settings, whole=True).kind == "flat"
    choice = dense.choose(3_000_000, 384, 100_000, settings, whole=True)
    assert (choice.kind, choice.code, choice.width) == ("pq", 48, 384)
    assert "exact search for 100,000 queries takes about 64 min, more than 30" in choice.reason
    assert dense.choose(7_000_000, 384, 10, settings, whole=True).kind == "ivf-pq"


def test_codes_give_a_query_one_list_alone_or_in_a_block(world, built):
    searcher = dense.open(world[0], world[1], built["pq"][1], dense.chosen(built["pq"][1]), Index(kind="pq"))
    together = searcher.search(np.arange(120), K)
    for size in (1, 7, 64):
        parts = [searcher.search(np.arange(low, min(low + size, 120)), K) for low in range(0, 120, size)]
        for whole, cut in zip(together, zip(*parts, strict=True), strict=True):
            assert whole.tobytes() == np.concatenate(cut).tobytes()


def test_half_of_the_machine_is_the_default(monkeypatch):
    monkeypatch.setattr(dense, "_machine_memory", lambda: 1e9)
    assert choose(300_000, 384, 1, memory_gb=None).kind == "flat"
    assert choose(400_000, 384, 1, memory_gb=None).kind == "ivf-pq"


@pytest.mark.parametrize("kind", ["flat", *APPROXIMATE])
def test_what_is_asked_for_is_taken(kind):
    choice = choose(50_000, 64, 10, kind=kind)
    assert (choice.kind, choice.reason) == (kind, f"{kind}: mining.index.kind is {kind}")


@pytest.mark.parametrize(("dimension", "code", "width"), [(384, 96, 384), (383, 96, 384), (5, 2, 8), (1, 1, 4)])
def test_a_dimension_that_does_not_divide_is_padded(dimension, code, width):
    choice = choose(50_000, dimension, 10, kind="ivf-pq")
    assert (choice.code, choice.width) == (code, width)


def test_codes_get_coarser_where_memory_is_short():
    codes = [choose(1_000_000, 384, 10, kind="ivf-pq", memory_gb=gb).code for gb in (1, 0.06, 0.01)]
    assert codes == [96, 48, 24]


# ---------------------------------------------------------------- GPU


@pytest.fixture
def gpu(monkeypatch) -> list[str]:
    """A GPU in name only: what is moved there, in order. The indexes stay what they are."""
    moved: list[str] = []

    def flat(_, dimension):
        moved.append("flat")
        return faiss.IndexFlatIP(dimension)

    def move(_, device, index):
        moved.append(type(index).__name__)
        return index

    monkeypatch.setattr(faiss, "StandardGpuResources", object, raising=False)
    monkeypatch.setattr(faiss, "get_num_gpus", lambda: 1)
    monkeypatch.setattr(faiss, "GpuIndexFlatIP", flat, raising=False)
    monkeypatch.setattr(faiss, "index_cpu_to_gpu", move, raising=False)
    return moved


@pytest.mark.parametrize(("kind", "names"), [("flat", ["flat"]), ("ivf-flat", ["IndexIVFFlat"]), ("hnsw", [])])
def test_flat_and_ivf_flat_move_to_a_gpu_and_long_lists_stay_behind(world, gpu, kind, names, tmp_path):
    searcher = build(world, tmp_path, kind)[1]
    assert gpu == names
    exact = dense.open(*world, Path("none"), dense.Choice("flat", ""), Index(gpu=False))
    for k in (K, 3_000):
        scores, rows = searcher.search(np.arange(20), k)
        assert (scores >= exact.search(np.arange(20), k)[0][:, -1:] - 1e-6).mean() >= 0.9
        assert (rows >= 0).all()


@pytest.mark.usefixtures("gpu")
def test_a_gpu_without_room_is_one_line(world, monkeypatch):
    def full(*_):
        raise RuntimeError("Error in file.cu:9\nError: 'err == cudaSuccess' failed: out of memory")

    monkeypatch.setattr(faiss, "GpuIndexFlatIP", full)
    with pytest.raises(UserError, match=r"^mining\.index\.gpu: .*\('err == .*memory\); set it to false$"):
        dense.open(*world, Path("none"), dense.Choice("flat", ""), Index())


@pytest.mark.usefixtures("gpu", "cores")
def test_a_gpu_counts_as_faster():
    assert choose(3_000_000, 384, 100_000).kind == "ivf-flat"
    assert choose(3_000_000, 384, 100_000, gpu=True).kind == "flat"


# ---------------------------------------------------------------- small and odd corpora


@pytest.mark.parametrize("rows", [1, 2, 10, 39, 156, 157, 300])
@pytest.mark.parametrize("kind", ["auto", "flat", *APPROXIMATE])
def test_few_passages(kind, rows, tmp_path):
    world = clustered(rows, 5, 7)
    report, searcher = build(world, tmp_path, kind, k=100)
    scores, rows_found = searcher.search(np.arange(5), 100)
    assert ((rows_found >= 0).sum(axis=1) == min(rows, 100)).all()
    best = -np.sort(-(world[1] @ world[0].T), axis=1)[:, :100]
    np.testing.assert_allclose(scores[:, : min(rows, 100)], best, atol=1e-6)
    assert report["recall"] == 1.0


def test_too_few_to_train_says_so():
    assert choose(10, 384, 10, kind="ivf-pq").reason == (
        "flat: 10 passages are too few for ivf-pq, which needs 9,984 (mining.index.kind is ivf-pq)"
    )


@pytest.mark.parametrize("dimension", [1, 3, 31])
@pytest.mark.parametrize("kind", APPROXIMATE)
def test_odd_dimensions(kind, dimension, tmp_path):
    report, searcher = build(clustered(10_000, 20, dimension), tmp_path, kind)
    assert report["recall"] >= 0.95 or "warning" in report  # one byte for three dimensions is little
    assert (searcher.search(np.arange(20), K)[1] >= 0).all()


def test_all_vectors_equal(tmp_path):
    same = np.ones((10_000, 8), np.float32)
    for kind in APPROXIMATE:
        report, searcher = build((same, same[:3]), tmp_path / kind, kind)
        assert report["recall"] == 1.0
        assert (searcher.search(np.arange(3), K)[0] == 8).all()


# ---------------------------------------------------------------- broken


def test_a_broken_index_is_one_line(world, built, tmp_path):
    for kind in APPROXIMATE:
        folder = tmp_path / kind
        folder.mkdir()
        for path in built[kind][1].iterdir():
            (folder / path.name).write_bytes(path.read_bytes())
        (folder / dense.FILE).write_bytes((folder / dense.FILE).read_bytes()[:500])
        with pytest.raises(UserError, match=r"^.*dense\.faiss: cannot read \(.*\); run the job, which makes it anew$"):
            opened(world, folder)
        (folder / dense.FILE).unlink()
        with pytest.raises(UserError, match=r"dense\.faiss: cannot read"):
            opened(world, folder)


def test_an_index_of_other_vectors_is_refused(world, built):
    with pytest.raises(UserError, match="holds 10500 vectors, the corpus 9000"):
        opened((world[0][:9_000], world[1]), built["ivf-flat"][1])


def test_queries_of_another_model_are_refused(world, built):
    with pytest.raises(UserError, match="passage vectors have 24 dimensions, query vectors 7"):
        opened((world[0], world[1][:, :7]), built["ivf-flat"][1])


def test_no_choice_file_is_one_line(world, tmp_path):
    with pytest.raises(UserError, match=r"choice\.json: cannot read"):
        opened(world, tmp_path)
