"""Encoders behind a server on loopback: order, cut, retries, refusals, and that nothing is paid for twice."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from email.utils import formatdate
from pathlib import Path

import loopback
import numpy as np
import pyarrow as pa
import pytest
import toy
from hypothesis import given
from hypothesis import strategies as st
from loopback import Loopback, failure
from typer.testing import CliRunner

from miner import cli, config, encoders, provider
from miner.encoders import remote
from miner.errors import ProviderStop, UserError
from miner.stages import vectors
from miner.vector_cache import VectorCache, keys

TEXTS = [f"text number {i} " + "word " * (i % 7) for i in range(50)]
BOTH = pytest.mark.parametrize("backend", ["openai", "cohere"])


@pytest.fixture(autouse=True)
def key(monkeypatch):
    monkeypatch.setenv("TOY_KEY", "sk-secret")
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    monkeypatch.setattr(provider, "FIRST_WAIT_S", 0.001)


def settings(server: Loopback, backend: str = "openai", **more) -> config.Encoder:
    base = server.url if backend == "openai" else server.root
    given_ = {"model": "toy", "base_url": base, "api_key": "${TOY_KEY}", "batch_size": 7, "concurrency": 3}
    return config.Encoder(**{"backend": backend, **given_, **more})


def expected(texts: list[str], width: int = loopback.WIDTH) -> np.ndarray:
    rows = np.stack([loopback.vector(text, width) for text in texts])
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def asked(server: Loopback) -> Counter[str]:
    return Counter(text for body in server.bodies for text in body.get("input") or body.get("texts"))


@BOTH
@pytest.mark.parametrize("kind", ["query", "passage"])
def test_vectors_come_in_the_order_of_the_texts(backend, kind):
    with Loopback() as server:
        encoder = encoders.load(settings(server, backend))
        found = encoder.encode(TEXTS, kind)
    typed = [{"query": "search_query ", "passage": "search_document "}[kind] * (backend == "cohere") + t for t in TEXTS]
    assert found == pytest.approx(expected(typed), abs=1e-6)
    assert (found.dtype, encoder.dimension) == (np.float32, loopback.WIDTH)
    assert asked(server) == Counter(TEXTS)
    words = sum(len(text.split()) for text in TEXTS)
    assert encoder.usage == {"requests": 8, "attempts": 8, "tokens": words}
    assert server.peak <= 3
    assert set(server.paths) == {"/v1/embeddings" if backend == "openai" else "/v2/embed"}
    assert {h["authorization"] for h in server.headers} == {"Bearer sk-secret"}


def test_prefix_suffix_cut_and_dimensions_reach_the_server():
    with Loopback() as server:
        more = {"query_prefix": "q: ", "query_suffix": " !", "passage_prefix": "p: ", "max_chars": 5, "dimensions": 4}
        encoder = encoders.load(settings(server, **more))
        assert encoder.encode(["abcdefgh"], "query") == pytest.approx(expected(["q: abcde !"], 4), abs=1e-6)
        assert encoder.encode(["abcdefgh"], "passage") == pytest.approx(expected(["p: abcde"], 4), abs=1e-6)
        assert encoder.encode([], "passage").shape == (0, 4)
        assert [body["dimensions"] for body in server.bodies] == [4, 4]
        encoders.load(settings(server, "cohere", dimensions=4)).encode(["x"], "query")
        assert server.bodies[-1]["output_dimension"] == 4
        known = encoders.load(settings(server, model="Qwen/Qwen3-Embedding-0.6B", instruction="Find code"))
        known.encode(["x"], "query")
        assert server.bodies[-1]["input"] == ["Instruct: Find code\nQuery:x"]


def test_a_server_that_ignores_base64_is_read_too():
    with Loopback(lambda body: (200, {}, loopback.embeddings({**body, "encoding_format": "float"}))) as server:
        assert encoders.load(settings(server)).encode(TEXTS, "query") == pytest.approx(expected(TEXTS), abs=1e-6)


@given(st.lists(st.integers(0, 300), max_size=40), st.integers(1, 9), st.integers(1, 200))
def test_requests_hold_every_row_once_within_both_limits(sizes, count, tokens):
    batches = remote.cut(sizes, count, tokens)
    assert [row for rows in batches for row in rows] == list(range(len(sizes)))
    for rows in batches:
        assert 1 <= len(rows) <= count
        assert len(rows) == 1 or sum(sizes[row] for row in rows) <= tokens * remote.BYTES_A_TOKEN


# ---------------------------------------------------------------- failures


def once(*replies):
    """Each request's first tries get these replies in turn, and then an answer."""
    seen: Counter[str] = Counter()
    lock = threading.Lock()

    def reply(body):
        text = json.dumps(body)
        with lock:
            number, seen[text] = seen[text], seen[text] + 1
        return replies[number] if number < len(replies) else loopback.sensible(body)

    return reply


PASSING = [408, 409, 429, 500, 502, 503, 504, 520, 529]


@BOTH
@pytest.mark.parametrize("status", PASSING)
def test_a_passing_failure_is_tried_again(backend, status):
    with Loopback(once(failure(status))) as server:
        encoder = encoders.load(settings(server, backend))
        encoder.encode(TEXTS, "passage")
    assert encoder.usage["attempts"] == 2 * encoder.usage["requests"] == 16


def wrong(**change):
    whole = json.loads(loopback.embeddings({"model": "toy", "input": ["one"]}))
    return loopback.raw(json.dumps({**whole, **change}))


def row(index, value):
    return {"index": index, "embedding": value}


BROKEN = {
    "reset": loopback.reset_midway,
    "closed": loopback.close_midway,
    "no JSON": loopback.raw("{"),
    "no object": loopback.raw("[]"),
    "null": loopback.raw("null"),
    "no data": loopback.raw("{}"),
    "deep": loopback.raw("[" * 100_000),
    "too few": wrong(data=[]),
    "too many": wrong(data=[row(0, [1.0]), row(1, [1.0])]),
    "index": wrong(data=[row(1, [1.0])]),
    "no index": wrong(data=[{"embedding": [1.0]}]),
    "zero": wrong(data=[row(0, [0.0, 0.0])]),
    "NaN": loopback.raw('{"data": [{"index": 0, "embedding": [NaN, 1]}]}'),
    "words": wrong(data=[row(0, ["a"])]),
    "nested": wrong(data=[row(0, [[1.0]])]),
    "empty": wrong(data=[row(0, [])]),
    "base64": wrong(data=[row(0, "!!!!")]),
    "bytes": wrong(data=[row(0, "AAAA")]),
    "null vector": wrong(data=[row(0, None)]),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_reply_is_tried_again_and_then_stops_the_run(case):
    with Loopback(once(BROKEN[case])) as server:
        assert encoders.load(settings(server)).encode(["one"], "query") == pytest.approx(expected(["one"]), abs=1e-6)
    with Loopback(lambda _: BROKEN[case]) as server:
        encoder = encoders.load(settings(server, attempts=2))
        with pytest.raises(ProviderStop, match=r"no vectors from 127.* in 2 attempts .*run again") as error:
            encoder.encode(["one"], "query")
    assert "\n" not in str(error.value)
    assert len(server.bodies) == 2


def test_a_slow_reply_is_given_up_after_its_time():
    with Loopback(lambda _: loopback.drip) as server, pytest.raises(ProviderStop, match=r"no answer within 0\.2 s"):
        encoders.load(settings(server, attempts=1, timeout_s=0.2)).encode(["one"], "query")


@pytest.mark.parametrize("given_", ["0.4", lambda: formatdate(time.time() + 2, usegmt=True)])
def test_the_servers_wait_is_kept(given_):
    value = given_() if callable(given_) else given_
    with Loopback(once(failure(429, headers={"retry-after": value}))) as server:
        start = time.monotonic()
        encoders.load(settings(server)).encode(["one"], "query")
        assert time.monotonic() - start > 0.35


STOPS = [
    (401, {}, "HTTP 401"),
    (403, {}, "HTTP 403"),
    (404, {"code": "model_not_found"}, "HTTP 404"),
    (429, {"code": "insufficient_quota"}, "HTTP 429"),
]


@BOTH
@pytest.mark.parametrize(("status", "more", "told"), STOPS)
def test_a_refusal_of_all_stops_at_once_and_never_shows_the_key(backend, status, more, told, caplog):
    caplog.set_level("DEBUG")
    with Loopback(lambda _: failure(status, "bad key sk-secret given", **more)) as server:
        encoder = encoders.load(settings(server, backend))
        with pytest.raises(ProviderStop, match=f"refuses every request .{told}.*check key, quota") as error:
            encoder.encode(TEXTS, "passage")
    assert len(server.bodies) <= 3, "those in flight, and none after"
    assert "sk-secret" not in str(error.value) + caplog.text + repr(encoder)


def test_a_text_that_is_too_long_is_named_and_the_others_are_encoded():
    long = "the long one " * 40

    def reply(body):
        if long in body["input"]:
            return failure(400, "This model's maximum context length is 100 tokens", code="context_length_exceeded")
        return loopback.sensible(body)

    texts = [*TEXTS[:20], long, *TEXTS[20:24]]
    found: dict[int, np.ndarray] = {}
    with Loopback(reply) as server:
        encoder = encoders.load(settings(server, concurrency=1, batch_size=8))
        with pytest.raises(UserError, match=r"refuses the text 'the long one .*520 characters.*set encoder\.max_chars"):
            encoder.encode_each(texts, "passage", lambda rows, v: found.update(zip(rows, v, strict=True)))
    assert set(found) == set(range(20)), "what stands before it, down to its own half of the request"


def test_a_request_that_is_too_large_as_a_whole_is_halved():
    def reply(body):
        return failure(413, "request too large") if len(body["input"]) > 2 else loopback.sensible(body)

    with Loopback(reply) as server:
        assert encoders.load(settings(server)).encode(TEXTS, "query") == pytest.approx(expected(TEXTS), abs=1e-6)


def test_other_dimensions_than_asked_for_are_refused():
    with (
        Loopback(lambda body: (200, {}, loopback.embeddings({**body, "dimensions": 16}))) as server,
        pytest.raises(UserError, match=r"encoder\.dimensions 4: 127.* gave 16 dimensions for toy, not 4"),
    ):
        encoders.load(settings(server, dimensions=4)).encode(["x"], "query")


def test_the_width_does_not_change_midway():
    def reply(body):
        return 200, {}, loopback.embeddings(body, 4 + len(body["input"]))

    with Loopback(reply) as server, pytest.raises(UserError, match="gave 5 dimensions for toy, not 11"):
        encoders.load(settings(server, concurrency=1)).encode(TEXTS[:8], "query")


@pytest.mark.parametrize("value", ["", "two words", "schlüssel"])
def test_a_key_that_is_none_is_told_before_any_request(monkeypatch, value):
    monkeypatch.setenv("TOY_KEY", value)
    with Loopback() as server:
        encoder = encoders.load(settings(server))
        with pytest.raises(UserError, match="TOY_KEY") as error:
            encoder.encode(["x"], "query")
        assert not server.bodies
    assert not value or value not in str(error.value)


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ({"api_key": "sk-123"}, "a key stands in the job file only as"),
        ({"base_url": "localhost"}, "not a web address"),
        ({"onnx_file": "x.onnx"}, "onnx_file is for other backends, and backend is openai"),
        ({"max_length": 8000}, "a server cuts by max_chars"),
        ({"passages_file": "x.npy"}, "passages_file is for backend precomputed"),
        ({"backend": "cohere", "batch_size": 97}, "at most 96 texts"),
        ({"backend": "onnx"}, "is for the backends openai and cohere, and backend is onnx"),
        ({"instruction": "x", "query_prefix": "y"}, "set it or query_prefix, not both"),
    ],
)
def test_settings_without_effect_are_refused(more, told):
    given_ = {"backend": "openai", "model": "m", "api_key": "${TOY_KEY}", **more}
    with pytest.raises(ValueError, match=told):
        config.Encoder(**given_)
    with pytest.raises(ValueError, match="backend openai needs `model`"):
        config.Encoder(backend="openai")


# ---------------------------------------------------------------- fingerprints


def test_a_fingerprint_names_server_and_model_and_never_the_key(monkeypatch):
    openai_ = config.Encoder(backend="openai", model="text-embedding-3-small", api_key="${TOY_KEY}", dimensions=256)
    found = encoders.fingerprint(openai_)
    assert found == {
        "backend": "openai",
        "server": "api.openai.com/v1",
        "model": "text-embedding-3-small",
        "query_prefix": "",
        "passage_prefix": "",
        "dimensions": 256,
    }
    monkeypatch.setenv("OPENAI_BASE_URL", "http://me:pw@host:81/v1/")
    assert encoders.fingerprint(openai_)["server"] == "host:81/v1"
    cohere = encoders.fingerprint(config.Encoder(backend="cohere", model="embed-v4.0"))
    assert cohere["server"] == "api.cohere.com"
    assert encoders.space(cohere, "query") != encoders.space(cohere, "passage"), "input_type keeps them apart"
    assert encoders.space(found, "query") == encoders.space(found, "passage")


# ---------------------------------------------------------------- nothing is paid for twice


def fill(server: Loopback, folder: Path, texts: list[str], **more) -> encoders.Encoder:
    encoder = encoders.load(settings(server, **more))
    table = pa.table({"text": texts})
    vectors.run(table, keys(texts, len(texts)), "passage", encoder, VectorCache(folder), lambda _: None)
    return encoder


@pytest.mark.parametrize("how", ["stop", "unavailable", "refused"])
def test_what_was_answered_before_a_stop_is_not_asked_again(tmp_path, how):
    count = 0
    lock = threading.Lock()

    def reply(body):
        nonlocal count
        with lock:
            count += 1
            late = count > 9
        if not late:
            return loopback.sensible(body)
        return failure({"stop": 401, "unavailable": 503, "refused": 400}[how])

    texts = [f"{text} {i}" for i in range(6) for text in TEXTS]  # 300 texts, 43 requests
    with Loopback(reply) as server, pytest.raises((ProviderStop, UserError)):
        fill(server, tmp_path, texts, attempts=2)
    paid = Counter(text for body, n in server.completed.items() for text in json.loads(body)["input"] * n)
    assert len(paid) == 9 * 7
    with Loopback() as server:
        encoder = fill(server, tmp_path, texts)
    assert asked(server) == Counter(set(texts) - set(paid)), "each text that lacks, once, and no other"
    with Loopback() as server:
        fill(server, tmp_path, texts)
    assert not server.bodies
    cache, out = VectorCache(tmp_path), np.empty((300, loopback.WIDTH), np.float32)
    cache.gather(keys(texts, 300), out)
    assert out == pytest.approx(expected(texts), abs=1e-6)
    assert cache.dimension == encoder.dimension


RUN = """
import sys
import pyarrow as pa
from pathlib import Path
from miner import config, encoders
from miner.stages import vectors
from miner.vector_cache import VectorCache, keys
texts = [f"text {i}" for i in range(300)]
encoder = encoders.load(config.Encoder.model_validate_json(sys.argv[1]))
vectors.run(pa.table({"text": texts}), keys(texts, 300), "passage", encoder, VectorCache(Path(sys.argv[2])), print)
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_run_loses_at_most_the_shard_in_work(tmp_path, how):
    with Loopback(delay_s=0.05) as server:
        chosen = settings(server, batch_size=5, concurrency=2)  # shards of 10 texts
        command = [sys.executable, "-c", RUN, chosen.model_dump_json(exclude_unset=True), str(tmp_path)]
        process = subprocess.Popen(command, env=dict(os.environ), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while len(server.completed) < 20:
            time.sleep(0.01)
            assert process.poll() is None
        process.send_signal(how)
        process.wait()
        time.sleep(0.2)
        first = asked(server)
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=dict(os.environ))
        both = asked(server)
    assert set(both.values()) <= {1, 2}
    again = sum(n == 2 for n in both.values())
    assert again <= 10, "the two requests of one shard"
    assert len(both) == 300
    assert len(first) < 300


def test_a_job_reports_what_it_paid_for(tmp_path):
    with Loopback() as server:
        given_ = settings(server, identity="toy").model_dump(exclude_unset=True)
        path = toy.job(tmp_path, encoder=dict.fromkeys(toy.MINILM) | given_)
        text = path.read_text()
        path.write_text("".join(line for line in text.splitlines(True) if not line.endswith(": null\n")))
        result = CliRunner().invoke(cli.app, ["run", str(path), "--until", "vectors"])
        assert result.exit_code == 0, result.output
    stamps = [json.loads(p.read_text()) for p in (tmp_path / "job.job").rglob("*.json")]
    usage = next(s["counts"]["usage"] for s in stamps if "usage" in s.get("counts", {}))
    texts = sum(len(body["input"]) for body in server.bodies)
    assert usage["requests"] == usage["attempts"] == len(server.bodies)
    assert texts == len(asked(server)) == 25 + 16
    assert usage["tokens"] == sum(len(text.split()) for text in asked(server).elements())
    assert "sk-secret" not in "".join(p.read_text(errors="replace") for p in tmp_path.rglob("*.json"))
