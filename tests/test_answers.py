"""Answers by file: requests out, answers in whatever their state, and a recording that stands in for the server."""

from __future__ import annotations

import gzip
import json
import random
import re
import shutil
import sqlite3
from pathlib import Path
from typing import Any

import pytest
import toy
from loopback import Loopback, completion, parts, sensible

from miner import prompts
from miner.errors import UserError
from miner.ledger import Answer, Request
from miner.llms import batch_files
from miner.llms.recorded import RecordedBackend
from miner.store import tree_digest

pytestmark = pytest.mark.usefixtures("shared_vectors")

NOWHERE = "http://127.0.0.1:9/v1"
Line = dict[str, Any]


def make_job(folder: Path, llm: dict[str, Any], **more: Any) -> Path:
    folder.mkdir(exist_ok=True)
    judge, generator = {"enabled": True, "pool": 4}, {"enabled": True, "max_share": 0.4}
    return toy.job(folder, llm=llm, judge=judge, generator=generator, mining={"negatives": 4}, **more)


def lines(path: Path) -> list[Line]:
    content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    return [json.loads(line) for line in content.decode().splitlines()]


def write(path: Path, rows: list[Line]) -> Path:
    content = "".join(json.dumps(row) + "\n" for row in rows).encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def answer(request: Line) -> Line:
    """What a batch server makes of a request line: the answer that the loopback server gives online."""
    _, _, content = sensible(request["body"])
    response = {"status_code": 200, "request_id": "r", "body": json.loads(content)}
    return {"id": "batch_req_1", "custom_id": request["custom_id"], "response": response, "error": None}


def failed(request: Line, status: int | None = None) -> Line:
    error = {"message": "server had an error", "type": "server_error"}
    if status is None:
        return {
            "custom_id": request["custom_id"],
            "response": None,
            "error": {"code": "batch_expired", "message": "late"},
        }
    response = {"status_code": status, "request_id": "r", "body": {"error": error}}
    return {"custom_id": request["custom_id"], "response": response, "error": None}


@pytest.fixture(scope="module")
def miner_alone(environment, miner):
    """miner without a key: nothing here may ask a server."""

    def call(*args: object, check: bool = True) -> Any:
        return miner(*args, check=check, TOY_KEY="")

    return call


@pytest.fixture(scope="module")
def online(tmp_path_factory, miner) -> Path:
    """A job answered online; its server is gone."""
    with Loopback() as server:
        job = make_job(tmp_path_factory.mktemp("answers") / "online", toy.llm(server.url))
        miner("run", job, fresh=True)
    return job


@pytest.fixture(scope="module")
def recording(online, miner_alone) -> Path:
    path = online.parent / "recorded.jsonl.gz"
    done = miner_alone("answers", online, "--export", path)
    assert done.stdout == f"{len(lines(path))} answers written to {path}\n"
    return path


def export_of(job: Path) -> dict[str, str]:
    return tree_digest(job.with_suffix(".job") / "export")


def counts(job: Path, step: str) -> dict[str, Any]:
    return json.loads((job.with_suffix(".job") / "stamps" / f"{step}.json").read_text())["counts"]


def test_a_job_answered_by_files_ends_as_one_answered_online(tmp_path, miner_alone, online):
    job = make_job(tmp_path / "files", toy.llm(NOWHERE))

    def ask() -> list[Line]:
        path = tmp_path / "requests.jsonl"
        done = miner_alone("requests", job, "-o", path)
        found = lines(path)
        assert done.stdout == f"{len(found)} requests written to {path}\n"
        return found

    def take(rows: list[Line], name: str = "answers.jsonl") -> dict[str, int]:
        return json.loads(miner_alone("answers", job, write(tmp_path / name, rows), "--json").stdout)

    judge = ask()
    assert_requests(judge, counts(job, "candidates")["pool"])
    rows, expected = messy(judge)
    assert take(rows, "answers.jsonl.gz") == expected
    left = ask()
    assert len(left) == expected["still missing"] < len(judge)
    assert {row["custom_id"] for row in left} <= {row["custom_id"] for row in judge}

    rest = take([answer(row) for row in [*left, judge[-1]]])
    generate = ask()
    assert rest == report(len(left), known=1, missing=len(generate))
    assert all("FACET" in parts(row["body"]) for row in generate)
    written = take([answer(row) for row in generate])
    judge_written = ask()
    assert len(judge_written) == counts(job, "synthetic")["status"]["ok"]
    assert written == report(len(generate), missing=len(judge_written))
    assert take([answer(row) for row in judge_written]) == report(len(judge_written))
    assert ask() == []
    miner_alone("run", job)
    assert export_of(job) == export_of(online)


def assert_requests(found: list[Line], pool: int) -> None:
    assert len({row["custom_id"] for row in found}) == len(found) == pool
    for row in found:
        assert re.fullmatch("[0-9a-f]{64}", row["custom_id"])
        assert (row["method"], row["url"]) == ("POST", "/v1/chat/completions")
        assert set(row) == {"custom_id", "method", "url", "body"}
        assert row["body"]["model"] == "toy"


def report(taken: int, known: int = 0, failed: int = 0, doubled: int = 0, foreign: int = 0, missing: int = 0) -> dict:
    names = ("taken in", "known before", "failed", "doubled", "foreign", "still missing")
    return dict(zip(names, (taken, known, failed, doubled, foreign, missing), strict=True))


def messy(requests: list[Line]) -> tuple[list[Line], dict[str, int]]:
    """Answers to the requests but for 7 that are missing and 4 that failed; 5 doubled, 2 foreign; and the report."""
    rows = [answer(row) for row in requests[7:]]
    rows[:4] = [failed(requests[7]), failed(requests[8], 500), failed(requests[9], 429), failed(requests[10])]
    rows[3] = {"custom_id": requests[10]["custom_id"], "response": None, "error": None}
    foreign = [answer({**requests[0], "custom_id": name}) for name in ("f" * 64, "request-1")]
    twice = [rows[20], rows[21], failed(requests[7 + 22]), failed(requests[7 + 23], 500), failed(requests[8], 500)]
    everything = [*rows, *foreign, *twice]
    random.Random(3).shuffle(everything)
    expected = report(len(requests) - 7 - 4, failed=4, doubled=5, foreign=2, missing=7 + 4)
    assert len(everything) == sum(expected.values()) - expected["still missing"]
    return everything, expected


def test_the_report_in_words_and_a_second_taking(tmp_path, miner_alone, online, recording):
    job = make_job(tmp_path / "words", toy.llm(NOWHERE))
    total = len(lines(recording))
    done = miner_alone("answers", job, recording)
    assert done.stdout.splitlines() == [f"{name}: {count}" for name, count in report(total).items()]
    again = miner_alone("answers", job, recording)
    assert again.stdout.splitlines() == [f"{name}: {count}" for name, count in report(0, known=total).items()]
    miner_alone("run", job)
    assert export_of(job) == export_of(online)


def recorded_job(folder: Path, recording: Path, **more: Any) -> Path:
    return make_job(
        folder, {"model": "toy", "identity": "toy", "backend": "recorded", "answers": str(recording)}, **more
    )


def test_a_recording_replays_to_the_same_bytes(tmp_path, miner_alone, online, recording):
    job = recorded_job(tmp_path / "replay", recording)
    miner_alone("run", job)
    replayed, asked = export_of(job), export_of(online)
    assert replayed.pop("README.md") != asked.pop("README.md"), "the data card tells the settings, and `llm` differs"
    assert replayed == asked
    miner_alone("answers", job, "--export", tmp_path / "again.jsonl.gz")
    assert (tmp_path / "again.jsonl.gz").read_bytes() == recording.read_bytes()


def test_a_changed_prompt_is_named_with_both_versions(tmp_path, miner_alone, recording):
    own = tmp_path / "prompts/judge/graded.md"
    own.parent.mkdir(parents=True)
    shutil.copy(prompts.SHIPPED / "judge/graded.md", own)
    own.write_text(own.read_text().replace("same topic", "same subject"))
    before, now = (prompts.load("judge", "graded", folder).version for folder in (None, tmp_path / "prompts"))
    assert before != now
    job = recorded_job(tmp_path / "changed", recording, prompts=str(tmp_path / "prompts"))
    done = miner_alone("run", job, check=False)
    pool = counts(job, "candidates")["pool"]
    assert done.returncode == 3
    told = (
        f"warning: judge: {pool} answers are missing ({pool} times: prompt graded (judge) changed: recorded for"
        f" version {before}, now {now})"
    )
    assert sum(line.startswith(told) for line in done.stdout.splitlines()) == 1
    manifest = json.loads((job.with_suffix(".job") / "manifest.json").read_text())
    assert manifest["prompts"]["judge"]["version"] == now
    assert counts(job, "decisions")["queries"] == {"too_few_negatives": 16}


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ({}, "prompt graded (judge): a text, the model, a parameter or the endpoint's identity changed since"),
        ({"query_id": "q", "doc_id": "d"}, "no recorded answer: prompt graded (judge), query q, passage d"),
        ({"prompt_version": "v2"}, "prompt graded (judge) changed: recorded for version {prompt_version}, now v2"),
    ],
)
def test_an_answer_that_is_not_in_the_recording_is_told_by_its_cause(recording, more, told):
    backend = RecordedBackend(batch_files.read_answers(recording))
    about = next(row["miner"] for row in lines(recording) if row["miner"]["task"] == "judge")
    found: list[Answer] = []
    backend.answer([Request("0" * 64, {}, about | more)], lambda _, answer: found.append(answer))
    assert found[0].response is None
    assert found[0].error.startswith(told.format(**about))


BODY = json.loads(completion('{"evidence": "", "grade": 0}'))
GOOD = json.dumps({"custom_id": "k", "response": {"status_code": 200, "body": BODY}, "error": None})
NOT_ANSWERS = {
    "pairs.jsonl": ('{"query": "a", "positive": "b"}', ":1: no custom_id"),
    "second.jsonl": (GOOD + '\n{"custom_id": 7}\n', ":2: no custom_id"),
    "requests.jsonl": ('{"custom_id": "k", "method": "POST", "body": {}}', ":1: neither response nor error"),
    "cut.jsonl": (GOOD + "\n" + GOOD[:50], ":2: broken JSON"),
    "list.jsonl": ("[1]", ":1: a list"),
    "text.jsonl": ("Dear all", ":1: broken JSON"),
    "empty.jsonl": ("", "the file holds no rows"),
    "answers.pdf": (GOOD, "unknown kind of file"),
    "plain.jsonl.gz": (GOOD, "broken gzip"),
}


@pytest.mark.parametrize("name", NOT_ANSWERS)
def test_a_file_that_holds_no_answers_is_refused(tmp_path, name):
    content, told = NOT_ANSWERS[name]
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(UserError, match=re.escape(told)) as caught:
        RecordedBackend(batch_files.read_answers(path))
    assert str(caught.value).startswith(str(path))


def test_a_refused_file_ends_with_one_line_and_changes_nothing(tmp_path, miner_alone, online):
    job = tmp_path / "job.yaml"
    shutil.copytree(online.parent, tmp_path, dirs_exist_ok=True)
    path = write(tmp_path / "second.jsonl", [json.loads(GOOD), {"custom_id": 7}])
    before = tree_digest(job.with_suffix(".job") / "stamps")
    for args, told in (
        ([path], f"{path}:2: no custom_id"),
        ([tmp_path / "none.jsonl"], "none.jsonl: no such file"),
        ([], "name either a file to take in, or --export FILE"),
        ([path, "--export", tmp_path / "x.jsonl"], "name either a file to take in, or --export FILE"),
    ):
        done = miner_alone("answers", job, *args, check=False)
        assert (done.returncode, done.stdout) == (2, "")
        assert len(done.stderr.splitlines()) == 1
        assert told in done.stderr
    assert tree_digest(job.with_suffix(".job") / "stamps") == before
    assert not (tmp_path / "x.jsonl").exists()


@pytest.mark.parametrize(
    ("line", "error"),
    [
        ({"response": {"status_code": 200, "body": BODY}, "error": None}, ""),
        ({"response": {"body": BODY}}, ""),
        ({"error": {"code": "batch_expired", "message": "too late"}}, "too late"),
        ({"error": {"code": "batch_expired", "message": None}}, "batch_expired"),
        ({"error": "broken"}, "broken"),
        ({"error": {"odd": 1}}, "{'odd': 1}"),
        ({"error": {"message": "half \ud83d"}}, "half ?"),
        ({"response": None}, "the line holds no response"),
        ({"response": "text"}, "the line holds no response"),
        ({"response": {"status_code": 200, "body": "text"}}, "the line holds no response"),
        ({"response": {"status_code": 500, "body": {"error": {"message": "oops"}}}}, "HTTP 500: oops"),
        ({"response": {"status_code": 400, "body": {"error": "bad"}}}, "HTTP 400: bad"),
        ({"response": {"status_code": 429, "body": {"detail": "slow"}}}, "HTTP 429: {'detail': 'slow'}"),
        ({"response": {"status_code": 500, "body": BODY}}, "HTTP 500"),
        ({"response": {"status_code": None, "body": BODY}}, "HTTP None"),
        ({"response": {"status_code": 200, "body": {}}}, "the response is no chat completion (no choices)"),
        ({"response": {"status_code": 200, "body": {"choices": [{"message": 3}]}}}, "(no message)"),
    ],
)
def test_what_a_line_tells(tmp_path, line, error):
    path = write(tmp_path / "a.jsonl", [{"custom_id": "k", **line, "miner": "not ours"}])
    found = next(batch_files.read_answers(path))
    assert found.response == (None if error else BODY)
    assert error in found.error
    assert bool(error) == bool(found.error)
    assert found.about == {}


def test_a_spool_keeps_lines_as_a_dict_does(tmp_path):
    rows = [json.loads(GOOD), failed({"custom_id": "m"}, 500), {"custom_id": "n", "error": "bröken", "miner": {"a": 1}}]
    found = list(batch_files.read_answers(write(tmp_path / "a.jsonl", rows)))
    spool, plain = batch_files.Spool(), {line.key: line for line in found}
    spool.update(plain)
    spool["k"] = plain["k"] = found[0]._replace(error="later")
    assert (len(spool), list(spool), dict(spool)) == (3, list(plain), plain)
    assert (spool.get("absent"), "k" in spool, spool["m"].status_code) == (None, True, 500)
    del spool["m"]
    assert sorted(spool) == ["k", "n"]


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_a_good_answer_beats_a_failure_in_either_order(tmp_path, order):
    rows = [json.loads(GOOD), failed({"custom_id": "k"}, 500)]
    backend = RecordedBackend(batch_files.read_answers(write(tmp_path / "a.jsonl", [rows[i] for i in order])))
    assert backend.doubled == 1
    assert backend.lines["k"].response == BODY


def test_the_first_of_two_good_answers_is_taken(tmp_path):
    other = json.loads(GOOD.replace("grade", "degree"))
    backend = RecordedBackend(batch_files.read_answers(write(tmp_path / "a.jsonl", [json.loads(GOOD), other])))
    assert backend.lines["k"].response == BODY


def test_the_recording_tells_what_each_answer_was_about(online, recording):
    found = lines(recording)
    assert [row["custom_id"] for row in found] == sorted(row["custom_id"] for row in found)
    assert {row["miner"]["task"] for row in found} == {"judge", "generate"}
    for row in found:
        assert set(row["miner"]) == {"task", "prompt", "prompt_version", "query_id", "doc_id"}
    with sqlite3.connect(online.with_suffix(".job") / "ledger.sqlite") as db:
        assert db.execute("SELECT COUNT(*) FROM requests WHERE state = 'done'").fetchone() == (len(found),)
    db.close()
