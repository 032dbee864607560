"""miner doctor: the machine, a job and its servers, with nothing changed and no key shown."""

from __future__ import annotations

import fcntl
import json
import socket
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import toy
from loopback import completion
from prompt_server import yes_no
from serving import Handler, Serving

from miner import doctor, doctor_job
from miner.doctor import Check

KEY = "sk-toy-very-secret-17"


class Server(Serving):
    """An LLM server with a list of models (None: it has none). chat: request -> status and body of the answer."""

    def __init__(self, models: Any = ("toy", "cheap"), chat: Any = None, models_status: int = 200) -> None:
        self.models, self.models_status = models, models_status
        self.chat = chat or answer
        self.asked: list[tuple[str, dict[str, Any]]] = []

    def __enter__(self) -> Server:
        outer = self

        class Answering(Handler):
            def do_GET(self) -> None:
                outer.asked.append((self.path, {}))
                if outer.models_status != 200:
                    return self.say(outer.models_status, {"error": {"message": f"bad key {KEY}"}})
                listed = {"data": [{"id": name} for name in outer.models]} if outer.models is not None else {"x": 1}
                self.say(200, listed)

            def do_POST(self) -> None:
                body = json.loads(self.read())
                outer.asked.append((self.path, body))
                self.say(*outer.chat(body))

        self.url = f"{self.start(Answering).replace('//', '//user:pass-word@')}/v1"
        return self

    @property
    def chats(self) -> list[dict[str, Any]]:
        return [body for path, body in self.asked if path.endswith("/chat/completions")]


def answer(body: dict[str, Any]) -> tuple[int, Any]:
    """Takes json_object and refuses JSON schemas; gives log probabilities where they are asked for."""
    form = body.get("response_format", {}).get("type")
    if form == "json_schema" or "structured_outputs" in body:
        return 400, {"error": {"message": "no schemas here"}}
    if body.get("logprobs"):
        return 200, yes_no(0.9)
    return 200, completion('{"greeting": "hello"}')


def job(folder: Path, url: str, **more: Any) -> Path:
    llm = {"model": "toy", "base_url": url, "api_key": "${TOY_KEY}", **more.pop("llm", {})}
    return toy.job(folder, llm=llm, judge={"enabled": True, **more.pop("judge", {})}, **more)


def checks(done: Any) -> dict[tuple[str, str], dict[str, Any]]:
    return {(one["group"], one["name"]): one for one in json.loads(done.stdout)["checks"]}


def test_the_machine_alone(miner):
    done = miner("doctor", "--json", check=False, OPENAI_API_KEY=KEY, CO_API_KEY="  ")
    found, told = checks(done), json.loads(done.stdout)
    assert done.returncode == (1 if told["fail"] else 0)
    assert {one["state"] for one in told["checks"]} <= {"ok", "warn", "fail"}
    assert found["core", "numpy"]["value"] == metadata.version("numpy")
    assert found["installed", "miner"]["value"] == metadata.version("miner")
    declared = metadata.metadata("miner").get_all("Provides-Extra")
    assert {group.split()[1] for group, _ in found if group.startswith("extra ")} == set(declared)
    assert found["machine", "faiss"]["state"] in ("ok", "warn")
    assert "HF_HUB_OFFLINE is set" in found["hub", "reachable"]["value"]
    assert [found["keys", name]["value"] for name in ("OPENAI_API_KEY", "CO_API_KEY")] == ["set", "set but empty"]
    assert found["keys", "CO_API_KEY"]["state"] == "warn"
    assert found["terminal", "output"]["value"].startswith("piped")
    assert KEY not in done.stdout + done.stderr


def test_a_person_sees_groups_and_remedies_in_80_columns(miner, tmp_path):
    done = miner("doctor", tmp_path / "none.yaml", check=False, COLUMNS="80", OPENAI_API_KEY=f"{KEY} ")
    assert done.returncode == 1
    assert all(len(line) <= 80 for line in done.stdout.splitlines())
    assert done.stdout.startswith("installed\nok ")
    assert "-> export OPENAI_API_KEY without them" in done.stdout
    assert "nosuchjobfile" in "".join(done.stdout.split()), "folded where it is long"
    assert "1 fail" in done.stdout.splitlines()[-1]
    assert "\x1b" not in done.stdout
    assert KEY not in done.stdout


def test_a_job_whose_server_takes_json_objects(miner, tmp_path):
    rungs = [{"name": "cheap", "prompt": "binary"}]
    with Server() as server:
        path = job(tmp_path, server.url, judge={"rungs": rungs}, generator={"enabled": True})
        done = miner("doctor", path, "--json", check=False, TOY_KEY=KEY)
    found = checks(done)
    group = "rung cheap and judge and generator"
    host = server.url.rpartition("@")[2].removesuffix("/v1")
    assert found[group, "server"]["value"] == f"{host} answers"
    assert found[group, "model"]["value"] == "toy is listed"
    assert found[group, "chat as rung cheap"]["state"] == "ok"
    assert found[group, "chat as judge"]["state"] == "ok"
    assert found[group, "form"]["value"].startswith("json_object (")
    assert found[group, "price"]["value"].startswith("unknown of toy")
    assert found["keys", "TOY_KEY"]["value"] == "set"
    assert found["job", "data"]["value"].endswith("(beir)")
    assert found["job", "lock"]["value"] == "free"
    assert done.returncode == 0
    assert server.chats[0]["logprobs"] is True
    assert all(body["max_tokens"] <= 40 for body in server.chats)
    assert not path.with_suffix(".job").exists(), "nothing is made"
    assert "pass-word" not in done.stdout


def test_no_ask_and_offline_send_less(miner, tmp_path):
    with Server(models=("other", "toys")) as server:
        path = job(tmp_path, server.url)
        found = checks(miner("doctor", path, "--no-ask", "--json", TOY_KEY=KEY))
        assert [name for name, _ in server.asked] == ["/v1/models"]
        assert found["judge", "model"]["state"] == "warn"
        assert found["judge", "model"]["remedy"] == "did you mean toys?"
        assert found["judge", "chat"]["value"] == "not asked: --no-ask"
        server.asked.clear()
        found = checks(miner("doctor", path, "--offline", "--json", TOY_KEY=KEY, HF_HUB_OFFLINE="0"))
        assert server.asked == []
        assert found["hub", "reachable"]["value"] == "not asked: --offline"
        assert found["judge", "server"]["value"].endswith("is not asked: --offline")


@pytest.mark.parametrize("status", [401, 404])
def test_a_server_that_echoes_the_key_in_its_error(miner, tmp_path, status):
    def chat(body: dict[str, Any]) -> tuple[int, Any]:
        return 400, {"error": {"message": f"wrong: Bearer {KEY}\x1b[31m"}}

    with Server(models_status=status, chat=chat) as server:
        path = job(tmp_path, server.url)
        shown = miner("doctor", path, check=False, TOY_KEY=KEY)
        told = miner("doctor", path, "--json", check=False, TOY_KEY=KEY)
    assert shown.returncode == told.returncode == 1
    assert KEY not in shown.stdout + shown.stderr + told.stdout + told.stderr
    assert "\x1b" not in shown.stdout
    found = checks(told)
    assert "bad key ***" in found["judge", "server"]["value"]
    if status == 401:
        assert found["judge", "server"]["state"] == "fail"
        assert ("judge", "chat as judge") not in found, "more would be in vain"
    else:
        assert found["judge", "server"]["state"] == "warn"
        assert found["judge", "chat as judge"]["state"] == "fail"
        assert "wrong: Bearer ***" in found["judge", "chat as judge"]["value"]


def test_a_server_without_a_list_of_models_is_asked_all_the_same(miner, tmp_path):
    with Server(models=None) as server:
        found = checks(miner("doctor", job(tmp_path, server.url), "--json", TOY_KEY=KEY))
    assert found["judge", "server"]["state"] == "warn"
    assert found["judge", "server"]["value"].endswith("answers GET /models with no list of models")
    assert found["judge", "chat as judge"]["state"] == "ok"


def test_recorded_answers_and_prices(miner, tmp_path):
    (tmp_path / "prices.yaml").write_text("models: 3\n")
    llm = {"backend": "recorded", "answers": "none.jsonl"}
    path = job(
        tmp_path, "http://127.0.0.1:9/v1", llm=llm, generator={"enabled": True, "llm": {"model": "gpt-4.1-mini"}}
    )
    done = miner("doctor", path, "--offline", "--json", check=False, OPENAI_API_KEY=KEY)
    found = checks(done)
    assert found["judge", "answers"]["state"] == "fail"
    assert ("judge", "price") not in found
    assert "TOY_KEY" not in {name for _, name in found}, "nobody is asked with it"
    assert found["generator", "price"]["value"].startswith("$")
    path.write_text(path.read_text().replace("model: gpt-4.1-mini", "model: gpt-4.1-mini\n    prices: prices.yaml"))
    found = checks(miner("doctor", path, "--offline", "--json", check=False, OPENAI_API_KEY=KEY))
    assert found["generator", "price"]["state"] == "fail"
    assert "prices.yaml" in found["generator", "price"]["value"]


def test_a_binary_prompt_needs_log_probabilities(miner, tmp_path):
    with Server(chat=lambda body: (200, completion("Yes"))) as server:
        path = job(tmp_path, server.url, judge={"prompt": "binary"})
        done = miner("doctor", path, "--json", check=False, TOY_KEY=KEY)
    assert checks(done)["judge", "chat as judge"]["value"] == "answers without log probabilities"
    assert done.returncode == 1


def test_a_server_that_is_not_there_and_a_key_that_is_not_set(miner, tmp_path):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        path = job(tmp_path, f"http://127.0.0.1:{closed.getsockname()[1]}/v1", budget={"max_cost": 1.0})
        found = checks(miner("doctor", path, "--json", check=False, TOY_KEY=KEY))
        assert found["judge", "server"]["state"] == "fail"
        assert found["judge", "server"]["remedy"] == "start the server, or correct base_url"
        assert found["judge", "price"]["state"] == "fail"
        assert "budget.max_cost" in found["judge", "price"]["value"]
    for value, told in (("", "set but empty"), (f" {KEY}", "set, but has blanks or line ends around it")):
        found = checks(miner("doctor", path, "--json", check=False, TOY_KEY=value))
        assert (found["keys", "TOY_KEY"]["state"], found["keys", "TOY_KEY"]["value"]) == ("fail", told)
        why = "not set" if not value else "a character that no key has"
        assert found["judge", "server"]["value"].startswith("not asked: ")
        assert why in found["judge", "server"]["value"]


def test_what_a_job_file_names_and_is_not_there(miner, tmp_path):
    path = toy.job(
        tmp_path,
        judge={"enabled": False},
        previous="old.job",
        teacher={"model": "nobody/reranker"},
        mining={"retrievers": [{"kind": "dense"}, {"kind": "run", "name": "old", "file": "old.trec"}]},
        encoder={**toy.MINILM, "onnx_file": "nowhere.onnx"},
    )
    folder = path.with_suffix(".job")
    folder.mkdir()
    with (folder / ".lock").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        handle.write("4711")
        handle.flush()
        done = miner("doctor", path, "--json", check=False)
    found = checks(done)
    assert done.returncode == 1
    for name in ("previous", "retriever old", "encoder", "teacher"):
        assert found["job", name]["state"] == "fail", name
    assert found["job", "lock"]["value"] == "process 4711 is running this job"
    assert (folder / ".lock").read_text() == "4711"
    assert sorted(one.name for one in folder.iterdir()) == [".lock"]


def test_a_folder_that_cannot_be_written_and_a_full_disk(tmp_path, monkeypatch):
    assert doctor.disk("job folder", tmp_path / "a" / "b").state == "ok"
    assert "to be made" in doctor.disk("job folder", tmp_path / "a" / "b").value
    found = doctor.disk("temporary files", Path("/proc/1"))
    assert (found.state, "TMPDIR" in found.remedy) == ("fail", True)
    monkeypatch.setattr(doctor, "LOW_DISK", 1 << 62)
    assert doctor.disk("job folder", tmp_path).state == "warn"


def test_a_lock_that_cannot_be_read_is_not_free(tmp_path):
    assert doctor_job._lock(tmp_path / "never run").state == "ok"
    (tmp_path / ".lock").mkdir()
    found = doctor_job._lock(tmp_path)
    assert (found.state, "cannot be read" in found.value) == ("fail", True)


def test_versions_and_extras(monkeypatch):
    have = {"numpy": "1.0", "torch": "2.7.1+cpu"}
    monkeypatch.setattr(doctor, "_version", lambda name: have.get(name, ""))
    assert doctor._package("core", "numpy>=1.26")[2:] == (
        "fail",
        "1.0, and >=1.26 is needed",
        "pip install 'numpy>=1.26'",
    )
    needs = doctor._needs(["numpy>=1.26", 'torch>=2.6; extra == "local"', 'colorama; sys_platform == "win32"'])
    assert needs == {"": ["numpy>=1.26"], "local": ["torch>=2.6"]}
    local = list(doctor._extra("local", ["torch>=2.6", "onnxscript>=0.5"]))
    assert [(one.name, one.state) for one in local] == [("torch", "ok"), ("onnxscript", "warn")]
    assert local[1].remedy == "pip install 'miner[local]'"
    assert [one.state for one in doctor._extra("vllm", ["vllm>=0.11"])] == ["ok"]


def test_keys_are_told_and_not_shown(monkeypatch):
    for value, state, told in (
        (None, "fail", "not set"),
        ("", "fail", "set but empty"),
        (f"{KEY}\n", "fail", "set, but has blanks or line ends around it"),
        ("sk-kéy-of-twelve", "fail", "set, but holds a character that no key has"),
        (KEY, "ok", "set"),
    ):
        monkeypatch.delenv("TOY_KEY", raising=False)
        if value is not None:
            monkeypatch.setenv("TOY_KEY", value)
        assert doctor.key("TOY_KEY", True)[2:4] == (state, told)
    shown = list(doctor.redacted([Check("a", "b", "ok", f"said {KEY}", f"use {KEY}")], ["TOY_KEY"]))
    assert shown == [Check("a", "b", "ok", "said ***", "use ***")]


def test_memory_is_that_of_this_process():
    total, free = doctor.memory()
    assert total > 1 << 28
    assert free is None or 0 < free <= total


def test_the_hub_is_asked_by_its_own_address(monkeypatch):
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    with Server() as server:  # it knows no HEAD, and that is an answer too
        monkeypatch.setenv("HF_ENDPOINT", server.url.replace("user:pass-word@", ""))
        assert doctor.hub(True).state == "ok"
    found = doctor.hub(True)
    assert (found.state, "does not answer" in found.value) == ("warn", True)
    monkeypatch.setenv("HF_ENDPOINT", "nonsense")
    assert doctor.hub(True).state == "warn"


def test_data_at_a_url_is_not_called_missing(miner, tmp_path):
    file = job(tmp_path, "http://127.0.0.1:9/v1")
    where = (tmp_path / "data").as_uri()
    found = checks(miner("doctor", file, "--set", f"data.path={where}", "--offline", "--no-ask", "--json", check=False))
    assert found["job", "data"]["state"] == "ok"
    assert found["job", "data"]["value"].startswith(f"{where}: fetched when the job runs")
