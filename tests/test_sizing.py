"""The arithmetic of `miner estimate --cluster`, and what the command reads and refuses."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import toy
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from miner import rates, sizing

FOLDER = Path(__file__).parent / "benchmarks" / "sizing"
README = Path(__file__).resolve().parents[1] / "README.md"
BOOK = rates.book()
RATES = {name: rate.value for name, rate in BOOK.rates.items()}
# Round numbers, so that a line of arithmetic can be read.
ROUND = {
    **RATES,
    "encode_core": 50.0,
    "encode_gpu": 0.25,
    "encode_server": 0.5,
    "process_gb": 0.5,
    "search_core": 40.0,
    "build_core": 50.0,
    "flat_list_core": 8.0,
    "code_list_core": 1000.0,
    "flat_share": 0.5,
    "code_share": 0.25,
    "index_growth": 2.0,
    "llm_gpu": 0.25,
    "llm_fill": 0.8,
    "export_core": 500_000.0,
    "export_row": 600.0,
    "retrieved_row": 16.0,
    "bytes_a_token": 4.0,
}
BASE = sizing.Model(100e6, 110e6, 768)
GPU = sizing.Gpu("G", 100e12, 20e12, 24)
CORES = sizing.Cluster("cores", nodes=2, cores=16, memory_gb=64, price=1.5)
GPUS = sizing.Cluster("gpus", nodes=2, cores=16, memory_gb=64, price=4.0, gpus=4, gpu=GPU)
WORK = sizing.Work(
    passages=1_000_000,
    queries=100_000,
    passage_tokens=90,
    query_tokens=10,
    encoder=BASE,
    dimension=768,
    index="flat",
    depth=100,
    asked=(sizing.Asked("judge", 1_400_000, 450, 50),),
    llm=8e9,
    rows=700_000,
)


def stage(name, work=WORK, cluster=GPUS, rates=ROUND):
    if cluster.gpu is None and work.llm == WORK.llm:
        work = replace(work, asked=(), llm=None)
    (found,) = (row for row in sizing.stages(work, cluster, rates) if row.stage == name)
    return found


# ---------------------------------------------------------------- the arithmetic


def test_encoding_is_two_operations_a_weight_and_token():
    operations = 2 * 100e6 * (1_000_000 * 90 + 100_000 * 10)
    assert stage("encode", cluster=CORES).hours == pytest.approx(operations / (50e9 * 32) / 3600)
    assert stage("encode").hours == pytest.approx(operations / (0.25 * 20e12 * 8) / 3600)  # the torch encoder: fp32
    served = stage("encode", replace(WORK, server=True))
    assert served.hours == pytest.approx(operations / (0.5 * 100e12 * 8) / 3600)
    assert (stage("encode", cluster=CORES).gpus, served.gpus) == (0, 8)
    assert served.memory_gb == pytest.approx(0.110 * 4 + 0.5)
    assert served.disk_gb == pytest.approx((1_100_000 * 768 * 4 + 91e6 * 4) / 1e9)


def test_the_memory_of_shards():
    two = replace(CORES, workers=4)  # 2 nodes * 4 workers
    n, d, lists = 1_000_000, 768, 4000
    assert sizing.lists(n) == lists
    assert stage("search", cluster=two).memory_gb == pytest.approx(n * d * 4 / 8 / 1e9 + 0.5)
    flat = n * (d * 4 + 8) + lists * d * 4
    assert sizing.index_bytes("ivf-flat", n, d) == flat
    codes = n * (d / 4 + 8) + lists * d * 4 + 256 * d * 4
    assert sizing.index_bytes("ivf-pq", n, d) == codes
    for kind, size in (("ivf-flat", flat), ("ivf-pq", codes)):
        found = stage("search", replace(WORK, index=kind), two)
        assert found.memory_gb == pytest.approx((n * d * 4 + size) / 8 / 1e9 + 0.5)


def test_the_search_of_each_kind():
    n, d, q, cores = 1_000_000, 768, 100_000, 32
    assert stage("search", cluster=CORES).hours == pytest.approx(2 * n * d * q / (40e9 * cores) / 3600)
    coarse = 2 * 4000 * d / 40e9
    lists = 2 * n * 0.5 * d / 8e9
    assert stage("search", replace(WORK, index="ivf-flat"), CORES).hours == pytest.approx(
        q * (coarse + lists) / cores / 3600
    )
    codes = n * 0.25 * (d / 4) / 1000e6
    assert stage("search", replace(WORK, index="ivf-pq"), CORES).hours == pytest.approx(
        q * (coarse + codes) / cores / 3600
    )


def test_an_index_is_built_on_one_node():
    train, fill = 2 * 64 * 4000 * 4000 * 768 * 10, 2 * 1_000_000 * 4000 * 768
    found = stage("index", replace(WORK, index="ivf-flat"), CORES)
    assert found.hours == pytest.approx((train + fill) / (50e9 * 16) / 3600)
    size = sizing.index_bytes("ivf-flat", 1_000_000, 768)
    assert size > 2**30, "in files of a GiB"
    assert found.memory_gb == pytest.approx(2 * 2**30 / 1e9 + 64 * 4000 * 768 * 4 / 1e9 + 0.5)
    coded = stage("index", replace(WORK, index="ivf-pq"), CORES)
    assert coded.hours == pytest.approx((train + fill + 2 * 1_000_000 * 256 * 768) / (50e9 * 16) / 3600)
    codes = sizing.index_bytes("ivf-pq", 1_000_000, 768)
    assert coded.memory_gb == pytest.approx(2 * codes / 1e9 + 64 * 4000 * 768 * 4 / 1e9 + 0.5)


def test_the_llm_on_gpus():
    operations = 2 * 8e9 * 1_400_000 * 500
    found = stage("judge")
    assert found.hours == pytest.approx(operations / (0.25 * 100e12 * 8) / 3600)
    assert found.dollars == pytest.approx(found.hours * 2 * 4.0)
    assert found.disk_gb == pytest.approx(1_400_000 * 500 * 4 / 1e9)
    # 2 bytes * 14e9 = 28 GB need 2 GPUs of 24 * 0.8; of 3 GPUs a node, one then idles.
    three = replace(GPUS, gpus=3)
    assert stage("judge", replace(WORK, llm=14e9), three).gpus == 4


@pytest.mark.parametrize(("billion", "gpus"), [(8, 1), (32, 1), (33, 2), (70, 4), (405, 16)])
def test_how_many_gpus_of_80_gb_hold_a_model(billion, gpus):
    assert sizing.replica_gpus(billion * 1e9, 80, 0.8) == gpus


def test_an_llm_elsewhere_is_paid_by_the_token():
    paid = sizing.Paid("m", 0.4, 1.6, rpm=1000, tpm=1_000_000)
    found = stage("judge", replace(WORK, llm=paid), CORES)
    assert found.dollars == pytest.approx(1_400_000 * (450 * 0.4 + 50 * 1.6) / 1e6)
    assert found.hours == pytest.approx(max(1_400_000 / 1000, 1_400_000 * 500 / 1_000_000) / 60)
    unknown = stage("judge", replace(WORK, llm=sizing.Paid("m", None, None)), CORES)
    assert (unknown.hours, unknown.dollars) == (None, None)


def test_teacher_and_export():
    work = replace(WORK, teacher=BASE, pairs=5_100_000, pair_tokens=100)
    assert stage("teacher", work).hours == pytest.approx(2 * 100e6 * 5_100_000 * 100 / (0.25 * 20e12 * 8) / 3600)
    found = stage("export")
    assert found.hours == pytest.approx(700_000 / 500_000 / 3600)
    assert found.disk_gb == pytest.approx(700_000 * 600 / 1e9)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(10_000, 10**9),
    st.integers(1, 10**8),
    st.integers(1, 64),
    st.sampled_from(["flat", "ivf-flat", "ivf-pq"]),
    st.sampled_from([CORES, GPUS]),
)
def test_more_nodes_are_never_slower_and_dollars_follow_the_hours(passages, queries, nodes, index, cluster):
    work = replace(WORK, passages=passages, queries=queries, index=index)
    if cluster.gpu is None:
        work = replace(work, asked=(), llm=None)
    few = sizing.stages(work, replace(cluster, nodes=nodes), ROUND)
    many = sizing.stages(work, replace(cluster, nodes=nodes + 1), ROUND)
    for one, more in zip(few, many, strict=True):
        assert more.hours <= one.hours
        assert more.memory_gb <= one.memory_gb
        assert one.dollars == pytest.approx(one.hours * nodes * cluster.price)
        assert one.disk_gb == more.disk_gb
    dear = sizing.stages(work, replace(cluster, nodes=nodes, price=3 * cluster.price), ROUND)
    assert [row.dollars for row in dear] == pytest.approx([3 * row.dollars for row in few])


def test_auto_takes_what_the_index_step_takes(monkeypatch):
    from miner.config import Index
    from miner.searchers import dense

    monkeypatch.setattr(dense.behind, "cores", lambda: 16)
    for rows, queries, memory in ((10**6, 10**5, 32), (10**7, 10**6, 96), (10**7, 10**6, 40), (10**8, 10, 100)):
        real = dense.choose(rows, 768, queries, Index.model_validate({"memory_gb": memory, "gpu": False}))
        assert sizing.chosen(rows, 768, queries, memory * 1e9, 16) == real.kind
        assert real.lists in (0, sizing.lists(rows))


# ---------------------------------------------------------------- the rates


def test_every_rate_has_a_source_and_is_used():
    folder = Path(rates.__file__).parent
    names = ("rates.py", "sizing.py", "estimate_cluster.py")
    text = "".join((folder / name).read_text(encoding="utf-8") for name in names)
    for name, rate in BOOK.rates.items():
        assert f'"{name}"' in text or name.startswith("judge_"), name
        assert len(rate.source) > 20, name
        if rate.kind == "published":
            assert "https://" in rate.source, name
        if rate.kind == "measured":
            assert (README.parent / rate.source.split(",")[0].split(":")[0]).is_file(), name


def test_the_encoding_rates_are_their_sources_arithmetic():
    assert RATES["encode_core"] == pytest.approx(1.29e6 * 2 * 10.6e6 / 401.2 / 1e9, rel=0.01)
    assert RATES["encode_server"] == pytest.approx(0.54 * 115_000 * 2 * 302e6 / 121e12, rel=0.01)
    assert RATES["llm_gpu"] == pytest.approx(2 * 8088 * 2 * 8e9 / 989e12, rel=0.01)
    assert RATES["build_core"] == pytest.approx((2 * 64 * 4000**2 * 384 * 10 + 2e6 * 4000 * 384) / 196.1e9, rel=0.01)
    assert RATES["flat_list_core"] == pytest.approx(2e6 * 0.512 * 384 * 2000 / 109.9e9, rel=0.01)
    assert RATES["code_list_core"] == pytest.approx(1e5 * 0.405 * 96 * 1e4 / 27.7e6, rel=0.01)


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("BAAI/bge-base-en-v1.5", "bge-base"),
        ("/models/bge-reranker-v2-m3/", "bge-reranker-v2-m3"),
        ("BAAI/bge-m3", "bge-m3"),
        ("sentence-transformers/all-MiniLM-L6-v2", "all-MiniLM-L6-v2"),
    ],
)
def test_a_model_is_found_by_its_name(name, key):
    assert rates.model(name, BOOK, FOLDER).weights == BOOK.models[key].weights * 1e6


# ---------------------------------------------------------------- the command


def cluster(tmp_path, **values):
    path = tmp_path / "cluster.yaml"
    path.write_text(yaml.safe_dump({"nodes": 2, "cores": 16, "memory_gb": 64, **values}), encoding="utf-8")
    return path


def test_the_command_counts_the_data_without_mining(tmp_path, miner):
    job = toy.job(tmp_path, encoder={"model": "x/bge-small-en"}, judge={"enabled": False})
    found = json.loads(miner("estimate", job, "--cluster", cluster(tmp_path), "--json").stdout)
    assert (found["work"]["passages"], found["work"]["queries"]) == (25, 16)
    assert not list(tmp_path.glob("**/dense.faiss")) + list(tmp_path.glob("**/vectors/*.npy"))
    assert [row["stage"] for row in found["stages"]] == ["encode", "search", "export"]
    assert found["total"]["dollars"] == pytest.approx(sum(row["dollars"] for row in found["stages"]))
    assert found["cluster"]["price"] == pytest.approx(16 * RATES["core_price"])


def test_so_many_passages_need_no_data(tmp_path, miner):
    file = cluster(tmp_path, gpus=4, gpu="L4", llm=8, rates={"passage_tokens": 180})
    asked = ("estimate", FOLDER / "job.yaml", "--cluster", file, "--passages", 1_000_000)
    found = json.loads(miner(*asked, "--json").stdout)
    assert (found["work"]["passages"], found["work"]["queries"]) == (1_000_000, 100_000)
    other = json.loads(miner(*asked, "--queries", 5000, "--json").stdout)
    assert other["work"]["queries"] == 5000
    shown = miner(*asked, "--explain").stdout
    assert "tokens = 1,000,000 x 180 + 100,000 x 10 = 1.81e+08" in shown
    assert "judge" in shown
    judge = next(row for row in found["stages"] if row["stage"] == "judge")
    tokens = 100_000 * 14 * (470 + 2 * 100 + 48)  # passage and reference, each 100 tokens longer than those measured
    assert judge["hours"] == pytest.approx(2 * 8e9 * tokens / (0.26 * 121e12 * 8) / 3600)


def test_what_does_not_fit_is_told(tmp_path, miner):
    file = cluster(tmp_path, nodes=1, memory_gb=16)
    both = "mining.retrievers=[{kind: dense}, {kind: bm25}]"
    shown = miner("estimate", FOLDER / "job.yaml", "--cluster", file, "--passages", 10_000_000, "--set", both).stdout
    assert "warning: retriever bm25: not sized" in shown
    assert "warning: search: " in shown
    assert "GB a node, which has 16" in shown
    sizes = ("--passages", 1000, "--passages", 10_000_000)
    several = miner("estimate", FOLDER / "job.yaml", "--cluster", file, *sizes).stdout
    assert "warning: cluster, 10,000,000 passages: search: " in several
    assert "cluster, 1,000 passages" not in several


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"gpu": "L4"}, "gpus 0 and gpu L4: set both"),
        ({"gpu": "L9", "gpus": 1}, "gpu L9: not one of L4, A100, H100"),
        ({"llm": 8}, "nodes without a GPU serve no model"),
        ({"gpu": "L4", "gpus": 1, "llm": 70}, "llm 70: needs 8 L4 on one node, which has 1"),
        ({"rates": {"speed": 1}}, "rates.speed: no such rate"),
        ({"rates": {"encode_core": 0}}, "rates.encode_core: 0 is not above 0"),
        ({"core": 4}, "core: no such key; the keys are nodes, cores"),
        ({"nodes": 0}, "nodes: input should be greater than or equal to 1"),
    ],
)
def test_a_wrong_cluster_is_one_line(tmp_path, miner, values, words):
    done = miner(
        "estimate", FOLDER / "job.yaml", "--cluster", cluster(tmp_path, **values), "--passages", 10, check=False
    )
    assert done.returncode == 2
    assert words in done.stderr
    assert "cluster.yaml" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--passages", 10], "--passages is about a cluster; add --cluster"),
        (["--explain"], "--explain is about a cluster"),
        (["--cluster", FOLDER / "l4.yaml", "--queries", 10], "--queries 10 needs one --passages N, 0 are given"),
        (["--cluster", FOLDER / "no.yaml", "--passages", 10], "no.yaml: no such"),
        (
            ["--cluster", FOLDER / "l4.yaml", "--passages", 9, "--set", "encoder.model=my"],
            "size of model my is not known",
        ),
        (["--cluster", FOLDER / "l4.yaml", "--passages", 9, "--set", "mining.index.kind=hnsw"], "hnsw: its build"),
    ],
)
def test_wrong_options_are_one_line(miner, arguments, words):
    done = miner("estimate", FOLDER / "job.yaml", *arguments, check=False)
    assert done.returncode == 2
    assert words in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_the_readme_shows_what_the_command_prints(miner):
    sizes = [word for size in (10**6, 10**7, 10**8) for word in ("--passages", size)]
    files = [word for name in ("cpu", "l4", "h100") for word in ("--cluster", FOLDER / f"{name}.yaml")]
    shown = miner("estimate", FOLDER / "job.yaml", *files, *sizes).stdout
    text = README.read_text(encoding="utf-8")
    if "## Sizing" not in text:
        pytest.skip("the README has no such section")
    assert shown.strip() in text
