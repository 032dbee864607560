"""Golden pairs about animals, and the loopback server as a judge of every mode whose errors are known."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

from loopback import Loopback, Reply, completion
from toy import ANIMALS, write_jsonl
from typer.testing import CliRunner

from miner.commands.prompt import app
from miner.errors import UserError

PASSAGE = re.compile(r"=== PASSAGE (?:(\d+) )?\w+ ===\n(.*?)\n(?==== )", re.DOTALL)
QUERY = re.compile(r"what sound does a (\w+) make")


def call(*args: object, code: int = 0) -> str:
    """What a `miner prompt` command prints, run in this process; its UserError comes out as itself."""
    done = CliRunner().invoke(app, list(map(str, args)))
    if isinstance(done.exception, UserError):
        raise done.exception
    assert done.exit_code == code, done.output + repr(done.exception)
    return done.stdout


def data(*args: object, code: int = 0) -> Any:
    return json.loads(call(*args, "--json", code=code))


def pairs() -> list[dict[str, Any]]:
    """8 queries of 4 passages: the sound in other words (grade 3), another fact of the animal, another animal's sound,
    and a stranger. Two queries are of split test."""
    rows = []
    names = list(ANIMALS)
    for number, (name, (voice, food, _)) in enumerate(ANIMALS.items()):
        other = names[(number + 1) % len(names)]
        passages = {
            "paraphrase": (f"When it is hungry, a {name} {voice} for hours.", 3),
            "topic": (f"The {name} likes to eat {food} most of all.", 1),
            "entity": (f"The {other} {ANIMALS[other][0]} when it wants attention.", 1),
            "stranger": ("Rain falls on the hills in autumn.", 0),
        }
        for tag, (passage, grade) in passages.items():
            rows.append(
                {
                    "query_id": f"q-{name}",
                    "query": f"what sound does a {name} make",
                    "positive": f"The {name} {voice} when it wants attention.",
                    "doc_id": f"{name}-{tag}",
                    "passage": passage,
                    "grade": grade,
                    "tag": tag,
                    "reason": "",
                    "split": "test" if number >= 6 else "dev",
                }
            )
    return rows


def golden(folder: Path, rows: list[dict[str, Any]] | None = None) -> Path:
    write_jsonl(folder / "golden.jsonl", pairs() if rows is None else rows)
    return folder / "golden.jsonl"


def relevant(body: dict[str, Any], passage: str) -> bool:
    """A careful judge is right; a careless one takes any fact about the animal for an answer; a blind one any text."""
    system, user = (message["content"] for message in body["messages"][:2])
    animal = QUERY.search(user)[1]  # type: ignore[index]
    if "blind" in system:
        return True
    return animal in passage and ("careful" not in system or ANIMALS[animal][0] in passage)


def asks(body: dict[str, Any]) -> bool:
    """Is it about a pair? The backend also tries out which answer forms the server takes."""
    return bool(PASSAGE.search(body["messages"][-1]["content"]))


def asked(server: Loopback) -> list[dict[str, Any]]:
    """The bodies that the server got about pairs."""
    return [body for body in server.bodies if asks(body)]


def judge(body: dict[str, Any]) -> Reply:
    """The answer in the form that the request asks for: Yes or No, one object, or one entry a passage."""
    if not asks(body):
        return 200, {}, completion('{"ok": true}')
    found = [(number, text, relevant(body, text)) for number, text in PASSAGE.findall(body["messages"][1]["content"])]
    if body.get("logprobs"):
        return 200, {}, yes_no(0.9 if found[0][2] else 0.2)
    many = "response_format" in body and "answers" in json.dumps(body["response_format"])
    if not many:
        _, text, yes = found[0]
        return 200, {}, completion(json.dumps({"evidence": text[:20] if yes else "", "grade": 2 if yes else 0}))
    listwise = "relation" in json.dumps(body["response_format"])
    entries = [
        {
            "id": int(number),
            "evidence": text[:20] if yes else "",
            **({"relation": "equal" if yes else "worse"} if listwise else {"grade": 2 if yes else 0}),
        }
        for number, text, yes in found
    ]
    return 200, {}, completion(json.dumps({"answers": entries}))


def yes_no(probability: float) -> bytes:
    """An answer cut after one token, with half of the mass on other tokens, and Yes in two spellings."""
    masses = {"Yes": probability / 4, " yes": probability / 4, "No": (1 - probability) / 2, "Maybe": 0.5}
    top = [{"token": token, "logprob": math.log(mass)} for token, mass in masses.items()]
    whole = json.loads(completion("Yes" if probability > 0.5 else "No", "length"))
    chosen = top[0] if probability > 0.5 else top[2]
    whole["choices"][0]["logprobs"] = {"content": [{**chosen, "top_logprobs": top}]}
    return json.dumps(whole).encode()
