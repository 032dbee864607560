"""Files that are whole or absent, hashes of content, and the vector cache."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from miner import chunks, store
from miner.errors import UserError
from miner.stages import vectors
from miner.vector_cache import KEY, VectorCache, keys


def names(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def broken(rows):
    yield from rows
    raise RuntimeError("the source broke")


SCHEMA = pa.schema([("n", pa.int64())])
WRITERS = {
    "a.jsonl": lambda path, rows: store.write_jsonl(path, rows),
    "a.jsonl.gz": lambda path, rows: store.write_jsonl(path, rows),
    "a.parquet": lambda path, rows: store.write_batches(path, SCHEMA, (pa.table({"n": [r["n"]]}) for r in rows)),
}


@pytest.mark.parametrize("name", WRITERS)
def test_a_crash_while_writing_leaves_the_old_file_and_nothing_else(tmp_path, name):
    write, path = WRITERS[name], tmp_path / name
    assert write(path, [{"n": 1}]) == 1
    before = path.read_bytes()
    with pytest.raises(RuntimeError, match="the source broke"):
        write(path, broken([{"n": n} for n in range(5000)]))
    assert path.read_bytes() == before
    assert names(tmp_path) == [name]


def test_a_crash_at_the_first_writing_leaves_no_file(tmp_path):
    with pytest.raises(RuntimeError):
        store.write_jsonl(tmp_path / "a.jsonl", broken([{"n": 1}]))
    assert names(tmp_path) == []


def test_a_full_disk_is_an_error_for_people(tmp_path):
    def write(part):
        part.write_text("some")
        Path("/dev/full").write_text("the rest")

    with pytest.raises(UserError, match=r"a: cannot write \(No space left on device\)"):
        store.replace(tmp_path / "a", write)
    assert names(tmp_path) == []


def test_a_folder_that_cannot_be_made_is_an_error_for_people(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file/a: cannot write"):
        store.write_text(tmp_path / "file/a", "x")


def test_a_reader_never_sees_half_a_file(tmp_path):
    """The new bytes are under another name until they are all there."""
    path = tmp_path / "a.txt"
    path.write_text("old")

    def write(part):
        part.write_text("ne")
        assert path.read_text() == "old"
        part.write_text("new")

    store.replace(path, write)
    assert path.read_text() == "new"


ROWS = [{"text": f"línea {n}\u2028", "n": n} for n in range(500)]


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="reads Linux's own count of memory")
def test_what_was_read_of_a_mapped_array_can_be_let_go(tmp_path):
    def resident() -> int:
        line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith("VmRSS"))
        return int(line.split()[1])

    rows = np.arange(1 << 23, dtype=np.float32)
    np.save(tmp_path / "rows.npy", rows)
    mapped = np.load(tmp_path / "rows.npy", mmap_mode="r")
    assert (mapped == rows).all()
    held = resident()
    store.let_go(mapped)
    assert resident() < held - 24 * 1024
    assert (mapped == rows).all()
    store.let_go(rows)  # nothing of a file: it stays
    assert rows[-1] == (1 << 23) - 1


def test_gzip_bytes_hold_no_time_and_no_name(tmp_path):
    store.write_jsonl(tmp_path / "a.jsonl.gz", ROWS)
    time.sleep(1.1)  # gzip's time stamp counts whole seconds
    store.write_jsonl(tmp_path / "b.jsonl.gz", ROWS)
    assert (tmp_path / "a.jsonl.gz").read_bytes() == (tmp_path / "b.jsonl.gz").read_bytes()
    lines = gzip.decompress((tmp_path / "a.jsonl.gz").read_bytes()).decode().split("\n")
    assert [json.loads(line) for line in lines[:-1]] == ROWS


def test_lines_are_read_alike_packed_or_not(tmp_path):
    for name in ("a.jsonl", "a.jsonl.gz"):
        store.write_jsonl(tmp_path / name, ROWS)
        with store.open_lines(tmp_path / name) as lines:
            assert [json.loads(line) for line in lines] == ROWS


def test_a_table_comes_back_in_row_groups_and_whole(tmp_path):
    table = pa.table({"n": range(store.ROWS_PER_GROUP + 1)})
    store.write_table(tmp_path / "t.parquet", table)
    assert store.read_table(tmp_path / "t.parquet").equals(table)
    assert [t.num_rows for t in store.iter_tables(tmp_path / "t.parquet")] == [store.ROWS_PER_GROUP, 1]


def test_a_tree_digest_tells_contents_and_names_and_nothing_else(tmp_path):
    def tree(root, **files):
        for name, text in files.items():
            path = root / name.replace("_", "/")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return store.tree_digest(root)

    one = tree(tmp_path / "1", b="x", a_c="y")
    assert list(one) == ["a/c", "b"]
    (tmp_path / "1/.b.77.part").write_text("left behind")
    os.utime(tmp_path / "1/b", (0, 0))
    assert store.tree_digest(tmp_path / "1") == one == tree(tmp_path / "2", a_c="y", b="x")
    assert tree(tmp_path / "3", b="X", a_c="y")["b"] != one["b"]
    assert store.tree_digest(tmp_path / "absent") == {}


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text(), JSON, max_size=4))
def test_a_digest_does_not_depend_on_the_order_of_keys(value):
    turned = dict(reversed(value.items()))
    assert store.digest(turned) == store.digest(value)
    assert store.digest([value]) != store.digest(value)


def test_promote_puts_the_new_folder_in_the_place_of_the_old(tmp_path):
    for name in ("work", "final"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
    (tmp_path / "final/stale").write_text("")
    store.promote(tmp_path / "work", tmp_path / "final")
    assert names(tmp_path) == ["final"]
    assert names(tmp_path / "final") == ["file"]
    assert (tmp_path / "final/file").read_text() == "work"


# ---------------------------------------------------------------- vector cache


def vector_of(texts: list[str]) -> np.ndarray:
    """A vector that tells its text: its characters' sum and its length."""
    return np.array([[sum(map(ord, text)), len(text)] for text in texts], np.float32).reshape(-1, 2)


def gathered(cache: VectorCache, texts: list[str]) -> np.ndarray:
    out = np.empty((len(texts), 2), np.float32)
    cache.gather(keys(texts, len(texts)), out)
    return out


@settings(max_examples=40)
@given(st.lists(st.lists(st.text(max_size=3), min_size=1, max_size=9, unique=True), min_size=1, max_size=4))
def test_the_cache_gives_back_what_went_in_and_knows_what_it_lacks(tmp_path_factory, shards):
    cache = VectorCache(tmp_path_factory.mktemp("cache"))
    have: set[str] = set()
    everything = sorted({text for shard in shards for text in shard} | {"no such text"})
    for shard in shards:
        cache.append(keys(shard, len(shard)), vector_of(shard))
        cache.refresh()
        have |= set(shard)
        missing = cache.missing(keys(everything, len(everything)))
        assert missing.tolist() == [text not in have for text in everything]
    wanted = [*sorted(have, reverse=True), *sorted(have)]
    assert np.array_equal(gathered(cache, wanted), vector_of(wanted))


def test_a_shard_without_its_keys_is_no_shard(tmp_path):
    cache = VectorCache(tmp_path)
    for texts in (["a", "b"], ["c"]):
        cache.append(keys(texts, len(texts)), vector_of(texts))
    lone = next(p for p in tmp_path.glob("*.keys.npy") if len(np.load(p)) == 1)
    lone.unlink()
    cache.refresh()
    assert cache.missing(keys(["a", "b", "c"], 3)).tolist() == [False, False, True]
    assert np.array_equal(gathered(cache, ["b", "a"]), vector_of(["b", "a"]))


WRITER = """
import sys, time
from pathlib import Path
from test_store import vector_of
from miner.vector_cache import VectorCache, keys
cache, start = VectorCache(Path(sys.argv[1])), int(sys.argv[2])
print("ready", flush=True)
sys.stdin.readline()
for at in range(start, start + 200, 10):
    texts = [f"text {n}" for n in range(at, at + 10)]
    cache.append(keys(texts, 10), vector_of(texts))
"""


def test_two_processes_fill_one_cache_at_the_same_time(tmp_path):
    """Texts 0-199 and 100-299: the hundred in the middle are written by both, as the same shards."""
    command = [sys.executable, "-c", WRITER, str(tmp_path)]
    shared = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "cwd": Path(__file__).parent}
    writers = [subprocess.Popen([*command, start], **shared) for start in ("0", "100")]
    for writer in writers:
        assert writer.stdout.readline() == b"ready\n"
    for writer in writers:
        writer.stdin.write(b"go\n")
        writer.stdin.flush()
    for writer in writers:
        writer.communicate(timeout=60)
        assert writer.returncode == 0
    texts = [f"text {n}" for n in range(300)]
    cache = VectorCache(tmp_path)
    assert not cache.missing(keys(texts, 300)).any()
    assert np.array_equal(gathered(cache, texts), vector_of(texts))
    assert len(names(tmp_path)) == 2 * 300 / 10


# ---------------------------------------------------------------- chunks of texts to encode

LENGTHS = st.lists(st.integers(0, 40), max_size=60)


@given(LENGTHS, st.integers(1, 9), st.integers(1, 50), st.randoms())
def test_chunks_hold_each_distinct_text_once_longest_first_within_bounds(lengths, count, chars, rng):
    texts = [rng.choice("ab") * length for length in lengths]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chunks, "CHUNK_TEXTS", count)
        patch.setattr(chunks, "CHUNK_CHARS", chars)
        cuts = chunks.cut(np.array(lengths, np.int64), keys(texts, len(texts)))
    flat = [texts[row] for chunk in cuts for row in chunk]
    assert sorted(flat) == sorted(set(texts))
    assert [len(text) for text in flat] == sorted((len(text) for text in set(texts)), reverse=True)
    for chunk in cuts:
        assert 1 <= len(chunk) <= count
        assert len(chunk) == 1 or sum(lengths[row] for row in chunk) <= chars


class Counting:
    """An encoder that keeps the texts it was given."""

    dimension = 2

    def __init__(self):
        self.seen: list[list[str]] = []

    def encode(self, texts, kind):
        self.seen.append(texts)
        return vector_of(texts)


def test_only_what_the_cache_lacks_is_encoded(tmp_path, monkeypatch):
    monkeypatch.setattr(chunks, "CHUNK_TEXTS", 3)
    texts = ["long text", "text", "text", "abc", "d", "ef"]
    table = pa.table({"text": texts})
    wanted = keys(texts, len(texts))
    assert wanted.dtype == KEY
    ticks: list[int] = []
    first, again, more = Counting(), Counting(), Counting()
    assert vectors.run(table, wanted, "query", first, VectorCache(tmp_path), ticks.append) == 5
    assert first.seen == [["long text", "text", "abc"], ["ef", "d"]]
    assert sum(ticks) == 5
    assert vectors.run(table, wanted, "query", again, VectorCache(tmp_path), ticks.append) == 0
    assert again.seen == []
    grown = pa.table({"text": [*texts, "new"]})
    assert vectors.run(grown, keys([*texts, "new"], 7), "query", more, VectorCache(tmp_path), ticks.append) == 1
    assert more.seen == [["new"]]


def test_the_title_is_part_of_a_passage(tmp_path):
    table = pa.table({"title": ["T", ""], "text": ["x", "y"]})
    encoder = Counting()
    vectors.run(table, keys(["T x", "y"], 2), "passage", encoder, VectorCache(tmp_path), lambda _: None)
    assert encoder.seen == [["T x", "y"]]
