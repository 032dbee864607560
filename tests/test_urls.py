"""Data at URLs is fetched once and read like files; an export is copied out whole, its card last."""

from __future__ import annotations

import json
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import toy

from miner import readers, urls
from miner.config import Data, load
from miner.engine import advance, opened
from miner.errors import UserError
from miner.store import tree_digest


@pytest.fixture
def memory():
    fs = fsspec.filesystem("memory")
    fs.store.clear()
    fs.pseudo_dirs[:] = [""]
    yield fs
    fs.store.clear()
    fs.pseudo_dirs[:] = [""]


def upload(fs, folder: Path, root: str) -> None:
    for file in folder.rglob("*"):
        if file.is_file():
            fs.pipe_file(f"{root}/{file.relative_to(folder).as_posix()}", file.read_bytes())


def there(fs, root: str) -> dict[str, bytes]:
    return {path.removeprefix(f"{root}/"): fs.cat_file(path) for path in fs.find(root)}


def test_a_folder_is_fetched_once_and_again_only_what_changed(tmp_path, memory, monkeypatch):
    upload(memory, toy.beir(tmp_path / "data"), "/bucket/data")
    got: list[str] = []
    whole = memory.get_file
    monkeypatch.setattr(type(memory), "get_file", lambda self, path, *rest: (got.append(path), whole(path, *rest))[1])
    data = Data(path="memory://bucket/data")
    found = urls.fetched(data, tmp_path / "fetched")
    assert tree_digest(Path(found.path)) == tree_digest(tmp_path / "data")
    assert readers.detect(found) == "beir"
    assert len(got) == 3
    assert urls.fetched(data, tmp_path / "fetched") == found
    assert len(got) == 3
    memory.pipe_file("/bucket/data/queries.jsonl", b'{"_id": "q", "text": "new"}\n')
    assert urls.fetched(data, tmp_path / "fetched") == found
    assert got[3:] == ["/bucket/data/queries.jsonl"]
    assert (Path(found.path) / "queries.jsonl").read_bytes() == b'{"_id": "q", "text": "new"}\n'
    memory.rm_file("/bucket/data/qrels/train.tsv")
    urls.fetched(data, tmp_path / "fetched")
    assert sorted(tree_digest(Path(found.path))) == ["corpus.jsonl", "queries.jsonl"]


def test_a_finished_copy_is_read_where_the_far_side_is_away(tmp_path, memory, caplog):
    memory.pipe_file("/bucket/pairs.jsonl", b'{"query": "a", "positive": "b"}\n')
    data = Data(path="memory://bucket/pairs.jsonl", corpus="memory://bucket/pairs.jsonl")
    found = urls.fetched(data, tmp_path)
    assert found.path == found.corpus
    memory.rm_file("/bucket/pairs.jsonl")
    assert urls.fetched(data, tmp_path) == found
    assert "the copy of an earlier run is read" in caplog.text


def test_sharded_parquet_is_read_as_from_a_folder(tmp_path, memory):
    (tmp_path / "p").mkdir()
    for number in range(2):
        rows = {"query": [f"q{number}"], "positive": [f"p{number}"]}
        pq.write_table(pa.table(rows), tmp_path / "p" / f"train-{number}.parquet")
    upload(memory, tmp_path / "p", "/bucket/p")
    found = urls.fetched(Data(path="memory://bucket/p/"), tmp_path / "fetched")
    pairs = list(readers.get(readers.detect(found))(found).pairs)
    assert [(pair.query.text, pair.positives[0].text) for pair in pairs] == [("q0", "p0"), ("q1", "p1")]


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("memory://nowhere/data", "no such bucket, folder or file"),
        ("s3://bucket/data", "s3:// needs s3fs"),
        ("gs://bucket/data", "gs:// gcsfs"),
        ("wrong://bucket/data", "Protocol not known: wrong"),
    ],
)
def test_what_cannot_be_fetched_is_told_in_one_line(tmp_path, memory, url, told):
    with pytest.raises(UserError, match=told) as error:
        urls.fetched(Data(path=url), tmp_path)
    assert str(error.value).startswith(f"data.path {url}: ")
    assert "\n" not in str(error.value)


def exported(folder: Path, **files: str) -> Path:
    folder.mkdir(exist_ok=True)
    for old in folder.iterdir():
        old.unlink()
    for name, text in files.items():
        (folder / name.replace("_", ".")).write_text(text)
    return folder


@pytest.mark.parametrize("kind", ["memory", "file"])
def test_a_copy_follows_the_export_and_its_card_comes_last(tmp_path, memory, monkeypatch, kind):
    url = "memory://bucket/out" if kind == "memory" else f"file://{tmp_path}/shared/out"
    fs, root = fsspec.core.url_to_fs(url)
    order: list[str] = []
    put = urls._put
    monkeypatch.setattr(urls, "_put", lambda fs, file, path: (order.append(file.name), put(fs, file, path)))
    state, export = tmp_path / "copied.json", tmp_path / "export"
    exported(export, README_md="card", a_jsonl="1", z_jsonl="2")
    assert urls.publish(export, url, state) == 3
    assert order == ["a.jsonl", "z.jsonl", "README.md"]
    assert there(fs, root) == {"README.md": b"card", "a.jsonl": b"1", "z.jsonl": b"2"}
    assert urls.publish(export, url, state) == 0
    fs.pipe_file(f"{root}/notes.txt", b"mine")
    exported(export, README_md="new", a_jsonl="3")
    assert urls.publish(export, url, state) == 2
    assert there(fs, root) == {"README.md": b"new", "a.jsonl": b"3", "notes.txt": b"mine"}


def test_a_copy_that_breaks_off_has_no_card(tmp_path, memory, monkeypatch):
    export = exported(tmp_path / "export", README_md="card", a_jsonl="1")
    state = tmp_path / "copied.json"
    urls.publish(export, "memory://bucket/out", state)
    exported(export, README_md="new", a_jsonl="2")

    def refuse(*_: object) -> None:
        raise PermissionError("no credentials")

    with monkeypatch.context() as patch:
        patch.setattr(type(memory), "put_file", refuse)
        with pytest.raises(UserError, match=r"^export.copy_to memory://bucket/out: PermissionError: no credentials;"):
            urls.publish(export, "memory://bucket/out", state)
    assert there(memory, "/bucket/out") == {"a.jsonl": b"1"}
    urls.publish(export, "memory://bucket/out", state)
    assert there(memory, "/bucket/out") == {"README.md": b"new", "a.jsonl": b"2"}


@pytest.mark.slow
def test_a_job_from_a_url_to_a_url_has_the_bytes_of_a_local_one(tmp_path, memory):
    for name in ("local", "far"):
        (tmp_path / name).mkdir()
        toy.beir(tmp_path / name / "data")
    upload(memory, tmp_path / "far" / "data", "/bucket/data")
    local = toy.job(tmp_path / "local")
    far = toy.job(
        tmp_path / "far",
        data={"path": "memory://bucket/data"},
        export={"copy_to": "memory://bucket/out"},
    )
    homes = {}
    for file in (local, far):
        job = load(file)
        with opened(job) as run:
            advance(run)
        homes[file] = Path(job.job or "")
    assert tree_digest(homes[far] / "export") == tree_digest(homes[local] / "export")
    copied = there(memory, "/bucket/out")
    assert copied.keys() == tree_digest(homes[far] / "export").keys()
    assert all(copied[name] == (homes[far] / "export" / name).read_bytes() for name in copied)
    stamps = [json.loads((home / "stamps/export.json").read_text()) for home in homes.values()]
    assert stamps[0]["inputs"] == stamps[1]["inputs"], "where it is copied to makes nothing stale"


def test_copy_to_is_a_url(tmp_path):
    with pytest.raises(UserError, match=r"copy_to out: no URL; write s3://"):
        load(toy.job(tmp_path, export={"copy_to": "out"}))
