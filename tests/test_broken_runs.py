"""What goes wrong in a job that has begun, what must never be shown, and where a run goes on and counts its drops."""

from __future__ import annotations

import fcntl
import json
import shutil

import pyarrow.parquet as pq
import pytest
import toy
from breaking import (
    JUDGED,
    case,
    check,
    complaint,
    corpus,
    message_fits,
    nothing,
    packed,
    qrels,
    queries,
    write,
)
from loopback import Loopback

pytestmark = pytest.mark.usefixtures("shared_vectors")

# ---------------------------------------------------------------- after mining

RECORDED = {**JUDGED, "llm": {"model": "toy", "backend": "recorded", "answers": "a.jsonl", "identity": "toy"}}
AFTER = [
    case("no variable", nothing, "environment variable TOY_KEY is not set (api_key: ${TOY_KEY}); export", "judge JOB"),
    case(
        "no key", nothing, "OPENAI_API_KEY is not set; export it", "judge JOB", llm={"model": "toy", "identity": "toy"}
    ),
    case("address", nothing, "OPENAI_BASE_URL is 'nowhere', not a web address", "judge JOB", llm={"model": "toy"}),
    case("no answers", nothing, "a.jsonl: no such file", "judge JOB", **RECORDED),
    case("broken answers", write("a.jsonl", "{\n"), "a.jsonl:1: broken JSON", "judge JOB", **RECORDED),
    case("answers of what", write("a.jsonl", "{}\n"), "a.jsonl:1: no custom_id; an answers", "judge JOB", **RECORDED),
    case(
        "no such query", nothing, "query 'q-yeti' is not in this job, which has 16: q-bat-food,", "inspect JOB q-yeti"
    ),
    case(
        "spoiled table",
        write("job.job/corpus/queries.parquet", "PAR1"),
        "queries.parquet: cannot read ( … ); run the job, which makes it anew",
        "inspect JOB q-bat-food",
    ),
]


@pytest.fixture(scope="module")
def mined(tmp_path_factory, miner):
    folder = tmp_path_factory.mktemp("mined")
    miner("mine", toy.job(folder, **JUDGED))
    return folder


@pytest.mark.parametrize(("damage", "says", "does", "job"), AFTER)
def test_what_only_shows_after_mining(damage, says, does, job, tmp_path, miner, mined):
    shutil.copytree(mined, tmp_path, dirs_exist_ok=True)
    toy.job(tmp_path, **{**JUDGED, **job})
    damage(tmp_path)
    check(miner, tmp_path, does, says, TOY_KEY="", OPENAI_BASE_URL="nowhere")


def test_a_finished_job_needs_no_key(tmp_path, miner, mined):
    shutil.copytree(mined, tmp_path, dirs_exist_ok=True)
    with Loopback() as server:
        job = toy.job(tmp_path, **{**JUDGED, "llm": toy.llm(server.url)})
        miner("judge", job)
    miner("judge", job, TOY_KEY="")


def test_a_job_that_runs_elsewhere_is_left_alone(tmp_path, miner):
    toy.job(tmp_path)
    (tmp_path / "job.job").mkdir()
    with (tmp_path / "job.job/.lock").open("w") as handle:
        handle.write("4711")
        handle.flush()
        fcntl.flock(handle, fcntl.LOCK_EX)
        check(miner, tmp_path, "mine JOB", "job.job: process 4711 is running this job; wait for it")


KEY = "sk-live-do-not-show"
SECRETS = [
    (
        f"llm: {{model: m, api_key: {KEY}}}\n",
        (),
        "job.yaml:2: llm.api_key: … only as ${NAME} of an environment variable",
    ),
    (f"llm: {{model: m, api_key: [{KEY}]}}\n", (), "job.yaml:2: llm.api_key: "),
    (f"llm: {{model: m, apikey: {KEY}}}\n", (), "job.yaml:2: unknown key llm.apikey; did you mean api_key?"),
    (f"llm: {KEY}\n", (), "job.yaml:2: llm: a section"),
    (f"llm: {{model: m, api_key: {KEY}\n", (), "job.yaml: … not valid YAML"),
    ("llm: {model: m}\n", (f"llm.api_key={KEY}",), "--set llm.api_key: llm.api_key: … only as ${NAME}"),
    ("", (f"llm.api_key:{KEY}",), "--set llm.api_key: write key=value"),
    ("", (f"seed.api_key={KEY}",), "--set seed.api_key: seed is a value, not a section"),
]


@pytest.mark.parametrize(("text", "overrides", "says"), SECRETS)
def test_a_key_in_the_job_file_is_refused_and_never_shown(text, overrides, says, tmp_path, miner):
    path = tmp_path / "job.yaml"
    path.write_text(f"data: {{path: data}}\n{text}seed: 1\n")
    done = miner("mine", path, *(word for item in overrides for word in ("--set", item)), check=False)
    assert KEY not in done.stdout + done.stderr
    message_fits(complaint(done).replace("job.yaml:4", "job.yaml: "), says)


# ---------------------------------------------------------------- where a run goes on


def read(miner, job):
    return json.loads(miner("run", job, "--until", "corpus", "--json").stdout)["steps"]["corpus"]


def test_beir_rows_that_add_nothing_are_counted_by_reason(tmp_path, miner):
    job = toy.job(tmp_path)
    first = (tmp_path / "data/corpus.jsonl").read_text().splitlines()[0]
    asked = (tmp_path / "data/queries.jsonl").read_text().splitlines()[0]
    corpus(f'{first}\n{{"_id": "blank", "text": " "}}\n{{"_id": "null", "text": null}}\n')(tmp_path)
    queries(f'{asked}\n{{"_id": "q-blank", "text": ""}}\n{{"_id": "q-lonely", "text": "who is there"}}\n')(tmp_path)
    pairs_ = "cat-food nowhere 1, q-nobody cat-food 1, q-cat-food blank 1, q-blank cat-food 1, q-cat-food cat-food 1.0"
    rows = f"q-{pairs_}, q-lonely cat-food 0"
    qrels("".join("\t".join(row.split()) + "\n" for row in rows.split(", ")))(tmp_path)
    found = read(miner, job)
    assert found.pop("dropped") == {
        "passage.duplicate_row": 1,
        "passage.empty_text": 2,
        "qrel.duplicate_row": 1,
        "qrel.empty_passage": 1,
        "qrel.empty_query": 1,
        "qrel.missing_passage": 1,
        "qrel.missing_query": 1,
        "qrel.no_positive": 1,
        "query.duplicate_row": 1,
        "query.empty_text": 1,
        "query.no_positive": 1,
    }
    assert found == {"passages": 25, "queries": 16, "qrels": 16}


def test_pairs_that_add_nothing_are_counted_by_reason(tmp_path, miner):
    rows = [
        {"query": "q1", "pos": ["a cat"], "neg": ["a cat", "a dog"]},
        {"query": "q2", "pos": []},
        {"query": "q3", "pos": ["a cow", ""]},
        {"query": "", "pos": ["a horse"]},
        {"query": "q1", "pos": ["a cat"]},
        {"query": "q4", "pos": ["a dog"], "neg": ["a cow"]},
    ]
    toy.write_jsonl(tmp_path / "p.jsonl", rows)
    found = read(miner, toy.job(tmp_path, data={"path": "p.jsonl"}))
    assert found.pop("dropped") == {
        "passage.empty_text": 1,
        "qrel.duplicate_row": 1,
        "qrel.empty_passage": 1,
        "qrel.empty_query": 1,
        "qrel.negative_is_positive": 1,
        "query.empty_text": 1,
        "query.no_positive": 1,
    }
    assert found == {"passages": 4, "queries": 3, "qrels": 5}  # cat, dog, cow, horse; q1 2, q3 1, q4 2


def test_byte_order_marks_line_ends_and_gzip_are_no_error(tmp_path, miner):
    job = toy.job(tmp_path)
    clean = read(miner, job)
    for path in (tmp_path / "data").rglob("*.*"):
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
    assert read(miner, job) == clean
    for path in (tmp_path / "data").rglob("*.*"):
        path.with_name(f"{path.name}.gz").write_bytes(packed(path.read_bytes()))
        path.unlink()
    assert read(miner, job) == clean


def test_a_csv_from_a_spreadsheet_is_no_error(tmp_path, miner):
    text = '\ufeffquery,positive,note\r\n"a ""b""","c,\r\nd",1\r\n\r\ne,f,2\r\n'
    write("p.csv", text)(tmp_path)
    found = read(miner, toy.job(tmp_path, data={"path": "p.csv"}))
    assert found == {"passages": 2, "queries": 2, "qrels": 2, "dropped": {}}


ODD = {
    "id with spaces": "tabs\tand\nnew lines\r\nof two kinds",
    "x" * 5000: "a NUL \0 byte and an escape \x1b[31m",
    "ид/🦊\\": "emoji 👩‍👩‍👧‍👦 🏳️‍🌈 and e\u0301 beside \u00e9",
    "\u200fשלום\u200e": "\u202eturned\u202c سلام \u2028 line separator \ufeff mark",
    "%s {x} [bold]": "{{ jinja }} ${HOME} [red]markup[/red] <b> \\u0041 \\n",
    " edges ": "  spaces at both ends  ",
    "7": "\u00a0" + "very long " * 3000,
}


def test_odd_ids_and_texts_come_out_as_they_went_in(tmp_path, miner):
    titles = {doc_id: "a\ttitle" if number % 2 else "" for number, doc_id in enumerate(ODD)}
    whole = {
        doc_id: f"{titles[doc_id]} {text}".removeprefix(" " if not titles[doc_id] else "")
        for doc_id, text in ODD.items()
    }
    data = tmp_path / "data"
    toy.write_jsonl(data / "corpus.jsonl", [{"_id": i, "title": titles[i], "text": text} for i, text in ODD.items()])
    toy.write_jsonl(data / "queries.jsonl", [{"_id": f"q {i}", "text": f"? {text}"} for i, text in ODD.items()])
    write("data/qrels/train.tsv", "".join(f"q {i}\t{i}\t1\n" for i in ODD))(tmp_path)
    job = toy.job(tmp_path, mining={"negatives": 2})
    miner("run", job)
    lines = (tmp_path / "job.job/export/flagembedding.jsonl").read_text(encoding="utf-8").split("\n")[:-1]
    rows = {row["query"]: row for row in map(json.loads, lines)}
    assert {query: row["pos"] for query, row in rows.items()} == {f"? {text}": [whole[i]] for i, text in ODD.items()}
    assert all(set(row["neg"]) <= set(whole.values()) and len(row["neg"]) == 2 for row in rows.values())
    triplets = pq.read_table(tmp_path / "job.job/export/st-ntuple.parquet").to_pylist()
    assert {row["anchor"]: row["positive"] for row in triplets} == {f"? {ODD[i]}": whole[i] for i in ODD}
    negatives = pq.read_table(tmp_path / "job.job/export/provenance.parquet").to_pylist()
    assert {row["query_id"] for row in negatives} == {f"q {i}" for i in ODD}
    assert {row["doc_id"] for row in negatives} <= ODD.keys()
    assert "\x1b" not in miner("inspect", job, "q id with spaces").stdout
