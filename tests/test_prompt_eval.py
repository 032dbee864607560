"""Evaluating, comparing and promoting prompts, as a user types it, against a judge whose errors are known."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from loopback import Loopback, failure
from prompt_server import asked, asks, call, data, golden, judge, pairs

from miner import agreement, llms, prompt_diff, prompt_eval, prompts
from miner.config import Endpoint, Judge
from miner.errors import UserError
from miner.golden import Golden
from miner.stages import judgments


@pytest.fixture(autouse=True)
def _place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TOY_KEY", "sk-toy-secret")
    monkeypatch.setenv("COLUMNS", "80")


@pytest.fixture
def server():
    with Loopback(judge) as one:
        yield one


def where(server: Loopback) -> list[str]:
    return ["--model", "toy", "--base-url", server.url, "--api-key", "${TOY_KEY}"]


def evaluate(server: Loopback, name: str, file: Path, *more: object, code: int = 0) -> Any:
    return data("eval", name, "--golden", file, *where(server), *more, code=code)


def own(name: str, old: str, new: str, origin: str = "graded") -> Path:
    """An own prompt made by `miner prompt new` and one edit."""
    path = Path(call("new", name, "--from", origin, "--prompts", "own").strip())
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    return path


def test_a_prompt_is_measured_against_human_grades(tmp_path, server):
    found = evaluate(server, "graded", golden(tmp_path))
    assert found["golden"]["pairs"] == len(asked(server)) == 6 * 4
    assert found["golden"]["split"] == "dev", "prompts are tuned on dev, where there is one"
    # Of each query the careless judge takes the paraphrase (rightly) and the other fact (wrongly) for relevant.
    agreed, chance = 18 / 24, (6 * 12 + 18 * 12) / 24**2
    kappa = found["measures"]["kappa"]
    assert kappa["value"] == pytest.approx((agreed - chance) / (1 - chance))
    assert kappa["low"] <= kappa["value"] <= kappa["high"]
    assert found["measures"]["recall_irrelevant"]["value"] == pytest.approx(12 / 18)
    assert found["measures"]["precision_irrelevant"]["value"] == 1
    assert found["measures"]["auc_grade"]["value"] == pytest.approx((12 + 6 / 2) / 18)
    assert (found["accepted"]["accepted"], found["accepted"]["false_negatives"]) == (12, 0)
    assert 1 - 0.05 ** (1 / 12) <= found["accepted"]["bound"] < 1
    assert {tag: (one["pairs"], one["right"]) for tag, one in found["tags"].items()} == {
        "entity": (6, 6),
        "paraphrase": (6, 6),
        "stranger": (6, 6),
        "topic": (6, 0),
    }
    assert (found["spent"]["prompt_tokens"], found["spent"]["completion_tokens"]) == (24 * 100, 24 * 10)
    assert found["spent"]["cost"] is None, "the price of a toy is unknown, not 0"
    assert 0 < found["spent"]["latency"]["median"] <= found["spent"]["latency"]["p90"]
    folder = Path(found["folder"])
    assert (folder / "prompt.md").read_text() == prompts.load("judge", "graded", None).text
    results = [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
    assert [row["doc_id"] for row in results] == [row["doc_id"] for row in pairs() if row["split"] == "dev"]
    assert json.loads((folder / "summary.json").read_text()).items() <= found.items()
    assert "sk-toy-secret" not in "".join(path.read_text() for path in folder.iterdir())


def test_the_same_evaluation_again_asks_nothing_and_writes_the_same_bytes(tmp_path, server):
    file = golden(tmp_path)
    folder = Path(evaluate(server, "graded", file)["folder"])
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    count = len(server.bodies)
    evaluate(server, "graded", file)
    assert len(server.bodies) == count
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_an_edit_asks_only_what_changed(tmp_path, server):
    rows = pairs()
    file = golden(tmp_path, rows)
    path = own("mine", "version: ", "version: ")
    more = ("--split", "all", "--prompts", "own")

    def new() -> int:
        before = len(asked(server))
        evaluate(server, "mine", file, *more)
        return len(asked(server)) - before

    assert new() == len(rows)
    text = path.read_text()
    path.write_text(text.replace("notes: ", "notes: Now with a remark. "))
    assert new() == 0, "the front matter is not sent"
    about_cats = "{{ query }}{% if 'cat' in query %} (the pet){% endif %}"
    path.write_text(text.replace("{{ query }}", about_cats))
    assert new() == sum("cat" in row["query"] for row in rows) == 4
    rows.append({**rows[0], "doc_id": "new", "passage": "Cats are cats."})
    golden(tmp_path, rows)
    assert new() == 1
    path.write_text(text.replace("You decide", "You must decide"))
    assert new() == len(rows), "all texts begin otherwise"
    path.write_text(text)
    assert new() == 1, "what the first version was asked is still there"


@pytest.mark.parametrize(("mode", "requests"), [("graded", 24), ("binary", 24), ("packed", 6), ("listwise", 6)])
def test_every_mode_is_read(tmp_path, server, mode, requests):
    found = evaluate(server, mode, golden(tmp_path))
    assert (found["mode"], found["spent"]["requests"], len(asked(server))) == (mode, requests, requests)
    assert found["status"] == {"ok": 24}
    assert found["measures"]["recall_irrelevant"]["value"] == pytest.approx(12 / 18)
    results = [json.loads(line) for line in (Path(found["folder"]) / "results.jsonl").read_text().splitlines()]
    topic = next(row for row in results if row["tag"] == "topic")
    grades = {"graded": 2, "packed": 2, "listwise": 2, "binary": 3}
    assert (topic["grade"], topic["verdict"], topic["right"]) == (grades[mode], "relevant", False)
    if mode == "binary":
        assert topic["score"] == pytest.approx(0.9)
        assert found["measures"]["auc_score"]["value"] == pytest.approx((12 + 6 / 2) / 18)
        assert all("response_format" not in body for body in asked(server))
    else:
        assert topic["passage"].startswith(topic["evidence"])


def test_both_orders_are_asked_on_demand_and_their_run_stands_beside_the_other(tmp_path, server):
    file = golden(tmp_path)
    once = evaluate(server, "binary", file)
    twice = evaluate(server, "binary", file, "--orders", 2)
    assert (once["spent"]["requests"], twice["spent"]["requests"], len(asked(server))) == (24, 48, 48)
    assert Path(twice["folder"]).name == f"{Path(once['folder']).name}-both_orders"
    assert (once["orders"], twice["orders"]) == (1, 2)
    # This judge reads the texts alike in both orders.
    assert twice["measures"]["auc_score"] == once["measures"]["auc_score"]
    found = data("diff", once["folder"], twice["folder"])
    assert found["flips"] == []
    assert "first: binary@" in (said := call("diff", once["folder"], twice["folder"]))
    assert re.search(r"^second: binary@\w+ \(binary, both orders\)", said, re.MULTILINE)
    data("check", "binary", "--against", twice["folder"], "--max-drop", 0.5)
    assert len(asked(server)) == 48, "a check asks what its run asked"
    for ask in (
        lambda: evaluate(server, "graded", file, "--orders", 2),
        lambda: call("render", "graded", "--query", "q", "--order", 2),
    ):
        with pytest.raises(UserError, match="prompt graded shows its texts in one order"):
            ask()


def test_a_graded_evaluation_asks_what_a_job_would_ask():
    row = Golden("q", "query", "positive " * 900, "d", "passage " * 900, 1)
    endpoint, prompt = Endpoint(model="toy"), prompts.load("judge", "graded", None)
    settings = prompt_eval.Settings(endpoint, Judge())
    (unit,) = prompt_eval.units(prompt, [row], settings)
    values = {"query": row.query, "positive": row.positive[:4000], "passage": row.passage[:4000]}
    values["nonce"] = prompts.nonce(*values.values())
    assert unit.request.key == llms.request(endpoint, prompt, {}, **values).key


def blinded(body: dict[str, Any]) -> dict[str, Any]:
    return {**body, "messages": [{"content": "blind"}, body["messages"][1]]}


def test_repeats_have_seeds_of_their_own_and_their_agreement_is_told(tmp_path, server):
    def moody(body: dict[str, Any]):
        if body.get("seed") == 14 and "Rain" in body["messages"][1]["content"]:
            body = blinded(body)
        return judge(body)

    server.reply = moody
    found = evaluate(server, "graded", golden(tmp_path), "--repeat", 3)
    assert sorted({body["seed"] for body in asked(server)}) == [13, 14, 15]
    assert len(asked(server)) == found["spent"]["requests"] == 3 * 24
    assert found["repeat_agreement"] == pytest.approx(18 / 24)
    assert found["measures"]["recall_irrelevant"]["value"] == pytest.approx(12 / 18), "the first one is measured"


def test_limit_and_split_choose_pairs(tmp_path, server):
    file = golden(tmp_path)
    assert evaluate(server, "graded", file, "--split", "test")["golden"]["pairs"] == 8
    few = evaluate(server, "graded", file, "--limit", 5)
    assert few["golden"]["pairs"] == 5
    assert few["golden"]["limit"] == 5
    with pytest.raises(UserError, match="split train"):
        evaluate(server, "graded", file, "--split", "train")


def test_an_answer_that_is_missing_is_no_verdict_and_the_exit_code_says_so(tmp_path, server):
    server.reply = lambda body: failure(400, "no") if "Rain" in str(body) else judge(body)
    found = evaluate(server, "graded", golden(tmp_path), code=3)
    assert found["status"] == {"missing": 6, "ok": 18}
    assert found["accepted"]["accepted"] == 6
    server.reply = judge
    assert evaluate(server, "graded", golden(tmp_path), "--retry-failed")["status"] == {"ok": 24}


def test_a_packed_answer_that_lacks_a_passage_fails_that_row_alone(tmp_path, server):
    def short(body: dict[str, Any]):
        status, headers, content = judge(body)
        if not asks(body):
            return status, headers, content
        whole = json.loads(content)
        said = json.loads(whole["choices"][0]["message"]["content"])
        said["answers"] = [entry for entry in said["answers"] if entry["id"] != 2]
        whole["choices"][0]["message"]["content"] = json.dumps(said)
        return status, headers, json.dumps(whole).encode()

    server.reply = short
    assert evaluate(server, "packed", golden(tmp_path))["status"] == {"ok": 18, "unparsable": 6}


def test_what_is_wrong_on_the_command_line_is_told_in_one_line(tmp_path, server):
    file = golden(tmp_path)
    with pytest.raises(UserError, match=r"no model; give --model NAME, or --job"):
        call("eval", "graded", "--golden", file)
    with pytest.raises(UserError, match=r"--api-key: a key stands .* only as \$\{NAME\}"):
        call("eval", "graded", "--golden", file, "--model", "toy", "--api-key", "sk-toy-secret")
    with pytest.raises(UserError, match="--base-url: not a web address"):
        call("eval", "graded", "--golden", file, "--model", "toy", "--base-url", "localhost")
    with pytest.raises(UserError, match=r"'topical': no such judge prompt; there are binary, graded"):
        evaluate(server, "topical", file)


def test_a_job_gives_endpoint_and_bounds(tmp_path, server):
    llm = {"model": "toy", "base_url": server.url, "api_key": "${TOY_KEY}"}
    job = {"data": {"path": "data"}, "encoder": {"model": "x"}, "llm": llm, "judge": {"relevant_from": 3}}
    Path("job.yaml").write_text(yaml.safe_dump(job))
    found = data("eval", "graded", "--golden", golden(tmp_path), "--job", "job.yaml")
    assert found["judge"] == {"relevant_from": 3, "irrelevant_to": 1, "max_chars": 4000}
    assert found["measures"]["recall_irrelevant"]["value"] == pytest.approx(12 / 18), "grade 2 is unsure now"
    assert found["tags"]["paraphrase"]["right"] == 0


# ---------------------------------------------------------------- diff


@pytest.fixture
def two(tmp_path, server):
    """The shipped judge, which errs on every pair of tag topic, and a careful one."""
    file = golden(tmp_path)
    own("careful", "You decide whether", "You are careful. You decide whether")
    evaluate(server, "graded", file, "--split", "all")
    evaluate(server, "careful", file, "--split", "all", "--prompts", "own")
    return file


def test_diff_shows_what_flipped_and_whether_it_can_be_chance(two):
    found = data("diff", "graded", "careful", "--prompts", "own")
    assert found["pairs"] == 32
    assert found["right"] == {"only_first": 0, "only_second": 8, "both": 24}
    assert found["mcnemar_p"] == pytest.approx(2 * 0.5**8)
    agreed, chance = 24 / 32, (8 * 16 + 24 * 16) / 32**2
    change = found["differences"]["kappa"]
    assert change["value"] == pytest.approx(1 - (agreed - chance) / (1 - chance))
    assert 0 < change["low"] <= change["high"]
    assert {flip["tag"] for flip in found["flips"]} == {"topic"}
    flip = found["flips"][0]
    assert (flip["first"]["verdict"], flip["second"]["verdict"], flip["became"]) == ("relevant", "irrelevant", "right")
    assert flip["passage"].startswith(flip["first"]["evidence"])
    assert any(line.startswith("+You are careful.") for line in found["text_diff"])
    assert found["spent"] == {"requests": 0, "prompt_tokens": 0, "completion_tokens": 0, "cost": None}
    assert data("diff", "graded", "careful", "--only", "flips", "--prompts", "own") == found["flips"]


CAREFUL = "+You are careful."


def test_diff_reads_like_a_report_of_80_columns(two):
    shown = call("diff", "graded", "careful", "--prompts", "own")
    assert "exact McNemar p = 0.00781" in " ".join(shown.split())
    assert "relevant (grade 2) “The bat likes to eat" in " ".join(shown.split())
    flips = call("diff", "graded", "careful", "--prompts", "own", "--only", "flips")
    assert flips.count("became right") == 8
    lines = [line.strip() for line in shown.splitlines()]
    added = [line for line in lines if line.startswith("+") and not line.startswith("+++")]
    assert added == ["+name: careful", f'+parent: "graded@{prompts.load("judge", "graded", None).version}"', CAREFUL]
    assert re.search(r"AUC of scores +0\.833 +1\.000 +\+0\.167", shown)
    assert max(map(len, flips.splitlines())) <= 80


def test_diff_finds_runs_by_version_and_folder_and_asks_where_several_fit(two, server):
    folders = {path.parent.name.split("-")[0]: path.parent for path in Path("prompt-runs").glob("*/summary.json")}
    version = prompts.load("judge", "graded", None).version
    for name in (folders["graded"], folders["graded"].name, version[:8], f"graded@{version[:4]}"):
        assert data("diff", name, "careful", "--prompts", "own")["first"]["folder"].endswith(folders["graded"].name)
    with pytest.raises(UserError, match=r"nothing: no run of that name in prompt-runs; there are careful@"):
        call("diff", "nothing", "careful")
    evaluate(server, "graded", two, "--split", "test")
    with pytest.raises(UserError, match="several runs fit"):
        call("check", "graded", "--against", "graded")
    with pytest.raises(UserError, match=r"no summary\.json"):
        prompt_diff.read_run(Path("own"))


def test_runs_of_other_pairs_or_bounds_are_not_compared(two, server):
    call("diff", "graded", "careful", "--prompts", "own")
    folder = next(Path("prompt-runs").glob("careful-*"))
    summary = json.loads((folder / "summary.json").read_text())
    (folder / "summary.json").write_text(json.dumps({**summary, "judge": {**summary["judge"], "relevant_from": 3}}))
    with pytest.raises(UserError, match="judged by other bounds"):
        call("diff", "graded", "careful", "--prompts", "own")
    (folder / "summary.json").write_text(json.dumps({**summary, "golden": {**summary["golden"], "digest": "other"}}))
    with pytest.raises(UserError, match="no two runs on the same golden pairs"):
        call("diff", "graded", "careful", "--prompts", "own")


def simulated(seed: int, right: float = 0.75) -> list[dict[str, Any]]:
    """40 queries of 4 pairs, judged by somebody who is right so often."""
    draw = random.Random(seed)
    rows = []
    for number in range(160):
        human = 3 if number % 3 == 0 else 0
        grade = human if draw.random() < right else 3 - human
        rows.append({"query_id": f"q{number // 4:02}", "doc_id": f"d{number}", "human": human, "grade": grade})
        rows[-1] |= {"score": grade, "right": grade == human, "verdict": "relevant" if grade else "irrelevant"}
    return rows


def compare(seed: int, second: float = 0.75) -> dict[str, Any]:
    both = prompt_diff.paired(simulated(2 * seed), simulated(2 * seed + 1, second))
    return prompt_diff.significance(both, 2, 1, 13, 200, ("kappa",))


def test_two_judges_of_the_same_quality_differ_in_at_most_one_of_twenty_comparisons():
    """Their answers differ in about 3 of 8 pairs, by chance alone."""
    found = [compare(seed) for seed in range(200)]
    assert min(one["changed"] for one in found) > 30
    assert sum(one["mcnemar_p"] < 0.05 for one in found) <= 0.05 * 200
    kappas = [one["differences"]["kappa"] for one in found]
    outside = sum(not one["low"] <= 0 <= one["high"] for one in kappas)
    assert outside <= 18, "of 200 at 95%: 10 are expected, and 19 or more with a chance of 0.6%"
    better = [compare(seed, 0.95)["mcnemar_p"] < 0.05 for seed in range(10)]
    assert all(better), "where there is a difference it is found"


def test_identical_answers_differ_in_nothing():
    rows = simulated(1)
    found = prompt_diff.significance(prompt_diff.paired(rows, rows), 2, 1, 13, 300)
    assert (found["mcnemar_p"], found["changed"]) == (1.0, 0)
    assert found["differences"]["kappa"] == {"value": 0.0, "low": 0.0, "high": 0.0}
    assert prompt_diff.decide(found, 0.0) == "pass"


@pytest.mark.parametrize(
    ("low", "high", "outcome"),
    [
        (-0.01, 0.3, "pass"),
        (-0.02, 0.0, "pass"),
        (-0.021, 0.3, "inconclusive"),
        (-0.3, -0.021, "regression"),
        (-0.3, -0.02, "inconclusive"),
        (None, None, "inconclusive"),
    ],
)
def test_a_drop_is_decided_on_the_interval(low, high, outcome):
    assert prompt_diff.decide({"changed": 1, "differences": {"kappa": {"low": low, "high": high}}}, 0.02) == outcome
    assert prompt_diff.decide({"changed": 0, "differences": {}}, 0.02) == "pass"


def test_check_has_an_exit_code_for_continuous_integration(two, server):
    (baseline,) = Path("prompt-runs").glob("careful-*")
    same = data("check", "careful", "--against", baseline, "--prompts", "own")
    assert (same["outcome"], same["changed"]) == ("pass", 0)
    count = len(server.bodies)
    worse = data("check", "graded", "--against", baseline, code=1)
    assert (worse["outcome"], len(worse["flips"]), len(server.bodies)) == ("regression", 8, count)
    assert call("check", "graded", "--against", baseline, code=1).startswith("regression: kappa -0.5")
    own("unsure", "You decide whether", "You are careful. {% if 0 %}{% endif %}You decide whether")
    wrong = "The koala likes to eat eucalyptus leaves most of all."
    server.reply = lambda body: judge(
        body if wrong not in str(body) else {**body, "messages": [{"content": "blind"}, body["messages"][1]]}
    )
    path = Path("own/judge/unsure.md")
    path.write_text(path.read_text().replace("careful. {", "careful, really. {"))
    found = data("check", "unsure", "--against", baseline, "--prompts", "own", code=3)
    assert (found["outcome"], len(found["flips"])) == ("inconclusive", 1)


def test_agreement_is_that_of_miner_agreement():
    rows = simulated(5)
    measured = prompt_eval.metrics([{**row, "status": "ok", "tag": ""} for row in rows], Judge(), 13, 200)
    columns = [[row[name] for row in rows] for name in ("query_id", "human", "grade")]
    value = agreement.measure(agreement.Judged.of(*columns), 2, 1, 13, 200)["kappa"].value
    assert measured["measures"]["kappa"]["value"] == value
    assert judgments.verdict(2, Judge()) == "relevant"


# ---------------------------------------------------------------- promote and history


def test_a_better_prompt_becomes_the_default_and_the_history_keeps_the_old_one(two):
    careful = prompts.load("judge", "careful", Path("own"))
    shipped = prompts.load("judge", "graded", None)
    assert Path(call("promote", "careful", "--prompts", "own").strip()) == Path("own/judge/graded.md")
    now = prompts.load("judge", "graded", Path("own"))
    assert (now.system, now.front.name, now.front.parent) == (careful.system, "graded", f"graded@{shipped.version}")
    found = data("history", "graded", "--prompts", "own")
    assert [row["version"] for row in found] == [now.version, shipped.version]
    assert any(line.startswith("+You are careful.") for line in found[0]["diff"])
    assert "prompt-runs" in " ".join(found[1]["where"]), "its evaluation kept the text too"
    before = {path: path.read_bytes() for path in Path("own").rglob("*") if path.is_file()}
    call("promote", "graded", "--prompts", "own")
    assert {path: path.read_bytes() for path in Path("own").rglob("*") if path.is_file()} == before
    with pytest.raises(UserError, match="no folder of your own prompts"):
        call("promote", "graded")
