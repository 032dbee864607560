"""Rows of varying length on disk: what goes in comes out, for two processes too; a broken shard is named."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from miner.errors import UserError
from miner.ragged_cache import SPARSE, Ragged, RaggedCache, spread
from miner.vector_cache import keys as keys_of

ROWS = st.dictionaries(st.text(max_size=3), st.lists(st.integers(0, 99), max_size=4), max_size=12)


def ragged(rows: list[list[int]]) -> Ragged:
    offsets = np.cumsum([0, *map(len, rows)])
    return Ragged(np.array([n for row in rows for n in row], np.float16).reshape(-1, 1), offsets)


def rows_of(found: Ragged) -> list[list[int]]:
    return [part[:, 0].astype(int).tolist() for part in np.split(found.values, found.offsets[1:-1])]


def fill(folder: Path, rows: dict[str, list[int]], shard: int = 3) -> RaggedCache:
    cache = RaggedCache(folder)
    names = list(rows)
    for start in range(0, len(names), shard):
        some = names[start : start + shard]
        cache.append(keys_of(some, len(some)), *ragged([rows[name] for name in some]))
    cache.refresh()
    return cache


@given(ROWS, st.lists(st.integers(0, 11), min_size=1, max_size=20))
def test_gather_gives_back_the_rows_in_the_order_asked(tmp_path_factory, rows, asked):
    cache = fill(tmp_path_factory.mktemp("cache"), rows)
    wanted = [list(rows)[i % len(rows)] for i in asked] if rows else []
    found = cache.gather(keys_of(wanted, len(wanted)))
    assert found.offsets.dtype == np.int64
    if wanted:
        assert rows_of(found) == [rows[name] for name in wanted]
        blocks = [row for block in cache.blocks(keys_of(wanted, len(wanted)), 3) for row in rows_of(block)]
        assert blocks == [rows[name] for name in wanted]


def test_missing_says_which_and_gather_refuses_them(tmp_path):
    cache = RaggedCache(tmp_path / "none")
    assert cache.missing(keys_of("ab", 2)).tolist() == [True, True]
    assert cache.gather(keys_of([], 0)).offsets.tolist() == [0]
    cache = fill(tmp_path, {"a": [1, 2], "b": []})
    assert cache.missing(keys_of("cab", 3)).tolist() == [True, False, False]
    with pytest.raises(KeyError, match="1 of 3 rows are missing"):
        cache.gather(keys_of("cab", 3))


def test_token_weights_keep_their_two_columns(tmp_path):
    cache = RaggedCache(tmp_path)
    cache.append(keys_of("a", 1), np.array([(7, 0.5), (9, 0.25)], SPARSE), np.array([0, 2]))
    cache.refresh()
    found = cache.gather(keys_of("aa", 2)).values
    assert found["token"].tolist() == [7, 9, 7, 9]
    assert found["weight"].tolist() == [0.5, 0.25, 0.5, 0.25]


def test_more_shards_than_are_held_open(tmp_path, monkeypatch):
    monkeypatch.setattr("miner.ragged_cache.OPEN_SHARDS", 2)
    rows = {str(i): [i] * (i % 3) for i in range(30)}
    cache = fill(tmp_path, rows)
    assert rows_of(cache.gather(keys_of(rows, 30))) == list(rows.values())


def test_two_processes_fill_one_folder(tmp_path):
    program = (
        "import sys; sys.path.insert(0, sys.argv[2]); from pathlib import Path; import test_ragged_cache as t\n"
        "rows = {str(i): [i] * (i % 5) for i in range(int(sys.argv[3]), int(sys.argv[4]))}\n"
        "t.fill(Path(sys.argv[1]), rows, 4)"
    )
    here = str(Path(__file__).parent)
    running = [
        subprocess.Popen([sys.executable, "-c", program, str(tmp_path), here, *span])
        for span in (("0", "60"), ("20", "80"), ("0", "60"))
    ]
    assert [process.wait(timeout=60) for process in running] == [0, 0, 0]
    cache = RaggedCache(tmp_path)
    found = cache.gather(keys_of(map(str, range(80)), 80))
    assert rows_of(found) == [[i] * (i % 5) for i in range(80)]
    assert not list(tmp_path.glob("*.part"))


def test_a_shard_without_keys_is_not_there(tmp_path):
    fill(tmp_path, {"a": [1], "b": [2]}, 1)
    lost = sorted(tmp_path.glob("*.keys.npy"))[0]
    gone = np.load(lost)
    lost.unlink()
    assert RaggedCache(tmp_path).missing(gone).tolist() == [True]


@pytest.mark.parametrize("part", ["", ".offsets", ".keys"])
def test_a_cut_shard_is_named_with_its_remedy(tmp_path, part):
    fill(tmp_path, {"a": [1, 2, 3], "b": [4]})
    path = next(tmp_path.glob("*.keys.npy"))
    path = path.with_name(path.name.replace(".keys", part))
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(UserError, match=r"broken vectors .*; delete \w+\.\* there") as error:
        RaggedCache(tmp_path).gather(keys_of("ab", 2))
    assert str(tmp_path) in str(error.value)


def test_values_of_another_length_are_refused(tmp_path):
    fill(tmp_path, {"a": [1, 2, 3]})
    values = next(p for p in tmp_path.glob("*.npy") if p.name.count(".") == 1)
    np.save(values, np.zeros((2, 1), np.float16))
    with pytest.raises(UserError, match="2 values, 3 announced"):
        RaggedCache(tmp_path).gather(keys_of("a", 1))


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 5))))
def test_spread_is_the_ranges_one_after_the_other(runs):
    starts, lengths = np.array(runs, np.int64).reshape(-1, 2).T
    assert spread(starts, lengths).tolist() == [start + i for start, length in runs for i in range(length)]
