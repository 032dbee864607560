"""A job whose data comes from S3 and whose export goes there, against a real S3 server on loopback.

pip install 'moto[server]' s3fs && pytest -m slow tests/test_s3.py
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import toy

from miner.store import tree_digest

pytestmark = pytest.mark.slow
boto3 = pytest.importorskip("boto3")
moto = pytest.importorskip("moto.server")
pytest.importorskip("s3fs")
SECRET = "miner+test/secret0123456789"
KEYS = {"AWS_ACCESS_KEY_ID": "AKIAMINERTEST", "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_DEFAULT_REGION": "us-east-1"}


@pytest.fixture(scope="module")
def s3() -> Iterator[Any]:
    """A client of a server that has one bucket."""
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    client = boto3.client(
        "s3",
        endpoint_url=f"http://127.0.0.1:{server.get_host_and_port()[1]}",
        region_name=KEYS["AWS_DEFAULT_REGION"],
        aws_access_key_id=KEYS["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=SECRET,
    )
    client.create_bucket(Bucket="bucket")
    yield client
    server.stop()


@pytest.fixture(scope="module")
def miner(environment) -> Callable[..., subprocess.CompletedProcess[str]]:
    own = {name: value for name, value in environment.items() if name != "PYTHONWARNINGS" and "AWS" not in name}

    def run(job: Path, url: str = "", code: int = 0, **more: str) -> subprocess.CompletedProcess[str]:
        env = {**own, **KEYS, **({"AWS_ENDPOINT_URL": url} if url else {}), **more}
        command = [sys.executable, "-m", "miner", "--verbose", "run", str(job)]
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
        assert done.returncode == code, done.stderr
        return done

    return run


def upload(s3: Any, folder: Path, root: str) -> None:
    for file in folder.rglob("*"):
        if file.is_file():
            s3.upload_file(str(file), "bucket", f"{root}/{file.relative_to(folder).as_posix()}")


def download(s3: Any, root: str, folder: Path) -> Path:
    for one in s3.list_objects_v2(Bucket="bucket", Prefix=f"{root}/")["Contents"]:
        target = folder / one["Key"].removeprefix(f"{root}/")
        target.parent.mkdir(parents=True, exist_ok=True)
        s3.download_file("bucket", one["Key"], str(target))
    return folder


def test_data_and_export_in_a_bucket_are_the_local_runs(tmp_path, s3, miner):
    url, local, remote = s3.meta.endpoint_url, tmp_path / "local", tmp_path / "remote"
    toy.beir(local / "set/corpora")
    eats = [{"query": f"food of the {a}", "positive": f"The {a} likes {of[1]}."} for a, of in toy.ANIMALS.items()]
    toy.write_jsonl(local / "set/pairs.jsonl", eats)
    upload(s3, local / "set", "set")
    (remote / "data").mkdir(parents=True)  # or toy.job would put its own there
    (local / "data").mkdir()
    job = toy.job(local, data={"path": "set/pairs.jsonl", "corpus": "set/corpora/corpus.jsonl"})
    places = {"path": "s3://bucket/set/pairs.jsonl", "corpus": "s3://bucket/set/corpora/corpus.jsonl"}
    far = toy.job(remote, data=places, export={"copy_to": "s3://bucket/out/v1"})
    miner(job)
    done = miner(far, url)
    assert exported(far) == exported(job)
    assert tree_digest(download(s3, "out/v1", tmp_path / "copy")) == tree_digest(far.with_suffix(".job") / "export")
    stamps = {one["Key"]: one["LastModified"] for one in s3.list_objects_v2(Bucket="bucket")["Contents"]}
    again = miner(far, url)
    assert again.stderr.count(": fresh") == done.stderr.count(": done in")
    assert {o["Key"]: o["LastModified"] for o in s3.list_objects_v2(Bucket="bucket")["Contents"]} == stamps
    said = "".join(run.stdout + run.stderr for run in (done, again))
    assert SECRET not in said
    assert [path for path in remote.rglob("*") if path.is_file() and SECRET.encode() in path.read_bytes()] == []


def exported(job: Path) -> dict[str, str]:
    return tree_digest(job.with_suffix(".job") / "export")


def test_what_is_wrong_is_one_line(tmp_path, s3, miner):
    (tmp_path / "data").mkdir()
    url = s3.meta.endpoint_url
    for place, where, wanted in (
        ("s3://nowhere/data", url, "data.path s3://nowhere/data: no such bucket, folder or file; check the URL"),
        ("s3://bucket/none", url, "data.path s3://bucket/none: no such bucket, folder or file; check the URL"),
        ("s3://bucket/set", "http://127.0.0.1:9", "data.path s3://bucket/set: "),
    ):
        err = miner(toy.job(tmp_path, data={"path": place}), where, code=2).stderr
        assert err.splitlines()[-1].startswith(f"miner: {wanted}"), err
        assert "Traceback" not in err
        assert SECRET not in err
