"""Prompts on disk, through the command line: list, show, new, lint, render, history; and the lock of a job."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from prompt_server import call, data, golden

from miner import prompt_files, prompts
from miner.errors import UserError
from miner.store import tree_digest


@pytest.fixture(autouse=True)
def _place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")


def graded() -> prompts.Prompt:
    return prompts.load("judge", "graded", None)


# ---------------------------------------------------------------- list, show, new


def test_the_list_tells_modes_versions_and_whose_a_prompt_is():
    found = {(row["task"], row["name"]): row for row in data("list")}
    assert len(found) == 10
    assert {row["mode"] for row in found.values()} == {"graded", "binary", "packed", "listwise", None}
    assert found["judge", "graded"]["version"] == graded().version
    shown = call("list").splitlines()
    assert len(shown) == 11
    assert max(map(len, shown)) <= 80
    assert all(name in "\n".join(shown) for _, name in found)


def test_an_own_prompt_hides_the_shipped_one_and_a_faulty_one_is_listed_as_such():
    call("new", "graded")
    Path("prompts/judge/broken.md").write_text("---\nname: [\n")
    rows = [row for row in data("list") if row["task"] == "judge"]
    assert [(row["name"], row["origin"], row["hidden"]) for row in rows if row["name"] == "graded"] == [
        ("graded", "own", False),
        ("graded", "shipped", True),
    ]
    (broken,) = (row for row in rows if row["name"] == "broken")
    assert "a prompt is front matter" in broken["error"]
    assert "faulty" in call("list")


def test_show_prints_the_file_and_no_control_character():
    assert call("show", "graded") == graded().text
    found = data("show", "judge/binary")
    assert (found["mode"], found["schema"], found["sampling"]["logprobs"]) == ("binary", {}, True)
    path = Path(call("new", "x").strip())
    path.write_text(path.read_text().replace("You decide", "\x1b[2J\u202eYou decide"))
    assert "\n?[2J?You decide" in call("show", "x")


def test_new_copies_a_prompt_and_says_what_it_was_made_from():
    path = Path(call("new", "strict", "--from", "binary", "--prompts", "mine").strip())
    assert path == Path("mine/judge/strict.md")
    made, origin = prompts.parse_file(path), prompts.load("judge", "binary", None)
    assert (made.front.name, made.front.parent) == ("strict", f"binary@{origin.version}")
    assert (made.system, made.user, made.front.sampling) == (origin.system, origin.user, origin.front.sampling)
    with pytest.raises(UserError, match="exists already"):
        call("new", "strict", "--prompts", "mine")
    assert call("new", "null").strip() == "prompts/judge/null.md", "a word of YAML is a name all the same"
    assert prompts.load("judge", "null", Path("prompts")).front.name == "null"
    assert data("new", "sib", "--from", "topical") == {"path": "prompts/generate/sib.md"}


@pytest.mark.parametrize("name", ["../x", "a/b", "", ".hidden", "x.md", "a b", "-"])
def test_a_name_becomes_a_file_name_and_nothing_else(name):
    with pytest.raises(UserError, match="a file name without"):
        call("new", "--", name)
    assert list(Path().iterdir()) == []


def test_a_prompt_that_is_not_there_is_told_with_the_nearest():
    with pytest.raises(UserError, match=r"'gradde': no such judge or generate prompt; did you mean graded\?"):
        call("show", "gradde")
    with pytest.raises(UserError, match="'rank/graded': no such task prompt"):
        call("show", "rank/graded")
    with pytest.raises(UserError, match=r"x\.md: cannot read"):
        call("show", "x.md")
    with pytest.raises(UserError, match="--prompts nowhere: no such folder"):
        call("list", "--prompts", "nowhere")
    call("new", "topical", "--from", "judge/graded")
    with pytest.raises(UserError, match="write judge/topical or so"):
        call("show", "topical")
    assert "task: judge" in call("show", "judge/topical")


# ---------------------------------------------------------------- lint


def findings(old: str, new: str, origin: str = "graded") -> list[str]:
    path = Path(f"{origin}.md")
    text = prompts.load("judge", origin, None).text
    assert old in text
    path.write_text(text.replace(old, new))
    return [f"{one.level}: {one.message}" for one in prompt_files.lint(path)]


def test_the_shipped_prompts_have_no_findings():
    assert call("lint").endswith("10 prompts, 0 errors, 0 warnings\n")
    assert set(map(len, data("lint").values())) == {0}


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("You decide whether", "Of {{ query }}: you decide whether", "error: query stands in the system part"),
        ("You decide whether", "Code {{ nonce }}. You decide whether", "warning: a variable in the system part"),
        ("=== QUERY {{ nonce }} ===\n", "", "error: query has no fence"),
        ("\n=== END {{ nonce }} ===", "", "error: passage has no fence"),
        ("=== END", "Now answer. " * 40 + "\n=== END", "characters of fixed text stand behind a variable"),
        (
            "=== REFERENCE {{ nonce }} ===\n{{ positive }}\n=== PASSAGE {{ nonce }} ===\n{{ passage }}\n",
            "=== PASSAGE {{ nonce }} ===\n{{ passage }}\n=== REFERENCE {{ nonce }} ===\n{{ positive }}\n",
            "warning: passage does not come last",
        ),
        ("temperature: 0", "temperature: 0.7", "warning: temperature is not 0"),
        ("max_tokens: 160, ", "", "warning: no max_tokens"),
        ("required: [evidence, grade]", "required: [grade]", "warning: the schema: strict servers want"),
        ("additionalProperties: false", "additionalProperties: true", "warning: the schema: strict servers want"),
        (
            "    evidence: {type: string}\n    grade: {type: integer, enum: [0, 1, 2, 3]}",
            "    grade: {type: integer}\n    evidence: {type: string}",
            "warning: the schema: evidence comes behind grade",
        ),
        ("name: graded", "name: other", "warning: the file is graded.md, but the name is other"),
        ("name: graded", "nmae: graded", "error: a prompt is front matter"),
        ("{{ query }}", "{{ query | nosuch }}", "error: not valid Jinja2"),
        ("{{ query }}", "{{ query + 1 }}", "error: prompt graded: cannot render"),
    ],
)
def test_lint_finds(old, new, told):
    assert any(told in one for one in findings(old, new)), findings(old, new)


def test_a_query_that_is_shown_once_more_behind_the_passage_is_no_fault():
    assert findings("=== END", "=== QUERY {{ nonce }} ===\n{{ query }}\n=== END") == []


def test_lint_of_other_modes():
    assert findings("logprobs: true, top_logprobs: 10", "n: 1", "binary") == [
        "error: a binary judge is read by log probabilities; set logprobs: true, top_logprobs: 10"
    ]
    assert findings("max_tokens: 1,", "max_tokens: 50,", "binary") == [
        "warning: max_tokens is 50, but only the first token is read"
    ]
    assert findings("\n=== END {{ nonce }} ===", "", "packed") == [
        "error: passage has no fence: put a line with {{ nonce }} before it and one behind it"
    ]
    (one,) = findings("required: [id, evidence, grade]", "required: [id]", "packed")
    assert one.startswith("warning: an entry: strict servers want")


def test_lint_ends_with_1_on_an_error_and_with_strict_on_a_warning():
    text = graded().text
    Path("graded.md").write_text(text.replace("temperature: 0", "temperature: 1"))
    assert "graded.md: warning: temperature" in call("lint", "graded.md")
    call("lint", "graded.md", "--strict", code=1)
    Path("graded.md").write_text(text.replace("{{ query }}", ""))
    assert "1 errors" in call("lint", "graded.md", code=1)
    assert data("lint", "graded.md", code=1)["graded.md"][0]["level"] == "error"


def test_lint_takes_names_tasks_and_files_as_the_others_do():
    call("new", "graded")
    Path("prompts/judge/graded.md").write_text(graded().text.replace("temperature: 0", "temperature: 1"))
    Path("prompts/generate").mkdir()
    Path("prompts/generate/graded.md").write_text("---\nname: [\n")
    shipped = str(prompts.SHIPPED / "judge/binary.md")
    assert list(data("lint", "binary", shipped)) == [shipped]
    (one,) = data("lint", "judge/graded")["prompts/judge/graded.md"]
    assert one["message"].startswith("temperature is not 0"), "the own prompt, not the shipped one"
    both = data("lint", "graded", code=1)
    assert list(both) == ["prompts/judge/graded.md", "prompts/generate/graded.md"], "of a name all are checked"
    assert [one["level"] for one in both["prompts/generate/graded.md"]] == ["error"], "a faulty file is told as one"


@pytest.mark.parametrize("name", ["gradde", "judge/gradde", "none.md", "nobody/graded"])
def test_lint_of_what_is_not_there_ends_as_the_others_do(name):
    with pytest.raises(UserError) as lint:
        call("lint", name)
    with pytest.raises(UserError) as show:
        call("show", name)
    assert str(lint.value).partition(":")[0] == str(show.value).partition(":")[0], "both begin with the name"
    assert "\n" not in str(lint.value)


# ---------------------------------------------------------------- render


def test_render_prints_what_a_model_would_see():
    found = data("render", "graded", "--query", "what", "--positive", "that", "--passage", "{{ this }}")
    values = prompts.fill(graded(), query="what", positive="that", passage="{{ this }}")
    assert found == graded().messages(**values)
    many = data("render", "packed", "--query", "what", "--passage", "one", "--passage", "two")[1]["content"]
    assert ("=== PASSAGE 2 " in many, "REFERENCE" in many) == (True, False)
    shown = call("render", "graded", "--query", "what", "--passage", "\x1b]0;x\x07")
    assert shown.startswith("[system]\nYou decide")
    assert "\n?]0;x?\n" in shown


def test_render_takes_a_golden_pair(tmp_path):
    file = golden(tmp_path)
    pair = json.loads(file.read_text().splitlines()[4])
    user = data("render", "graded", "--golden", file, "--row", 5)[1]["content"]
    assert all(pair[name] in user for name in ("query", "positive", "passage"))
    with pytest.raises(UserError, match="--row 33: the file has 32 rows"):
        call("render", "graded", "--golden", file, "--row", 33)
    with pytest.raises(UserError, match="give --query"):
        call("render", "graded")


@pytest.mark.parametrize("name", sorted(path.stem for path in (prompts.SHIPPED / "generate").glob("*.md")))
def test_every_generator_can_be_rendered(name):
    texts = ("--query", "QQ", "--positive", "PP", "--near-miss", "NN", "--words", 77, "--k", 2, "--language", "Dutch")
    user = data("render", name, *texts)[1]["content"]
    shown = {"query": "QQ", "positive": "PP", "near_miss": "NN", "words": "77", "language": "Dutch", "k": "\n2\n"}
    inputs = prompts.load("generate", name, None).front.inputs
    assert {key for key, text in shown.items() if text in user} == set(inputs) - {"facet", "nonce"}


# ---------------------------------------------------------------- lock and history


def edited(prompt: prompts.Prompt, note: str) -> prompts.Prompt:
    return prompts.parse(prompt.text.replace("notes: ", f"notes: {note} "), Path("judge/graded.md"))


def test_a_lock_keeps_the_text_of_every_version_and_the_order_of_their_use(tmp_path):
    first = graded()
    second = edited(first, "Better.")
    for prompt in (first, second, first):
        prompt_files.pin(tmp_path, prompt)
    found = prompt_files.read_lock(tmp_path)
    assert [entry["version"] for entry in found] == [second.version, first.version]
    assert found[1] == {
        "task": "judge",
        "name": "graded",
        "version": first.version,
        "label": "1",
        "parent": "",
        "path": "shipped:judge/graded.md",
    }
    for prompt in (first, second):
        assert (tmp_path / "prompts" / f"{prompt.version}.md").read_text() == prompt.text
        assert prompt_files.pinned(tmp_path, prompt.version) == prompt
    assert prompt_files.pinned(tmp_path, "other") is None


def test_pinning_again_changes_no_byte(tmp_path):
    for prompt in (graded(), prompts.load("generate", "topical", None)):
        prompt_files.pin(tmp_path, prompt)
    before = tree_digest(tmp_path)
    stamps = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    for prompt in (graded(), prompts.load("generate", "topical", None)):
        prompt_files.pin(tmp_path, prompt)
    assert tree_digest(tmp_path) == before
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()} == stamps


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"prompts": [1]}', '{"prompts": [{}]}', "\x00"])
def test_a_damaged_lock_is_told(tmp_path, text):
    (tmp_path / "prompts.lock").write_text(text)
    with pytest.raises(UserError, match=r"prompts\.lock: not a lock of prompts"):
        prompt_files.pin(tmp_path, graded())


def test_history_follows_the_parents_through_renames_and_edits():
    call("new", "a", "--from", "graded")
    call("new", "b", "--from", "a")
    a, b = (prompts.load("judge", name, Path("prompts")) for name in "ab")
    found = data("history", "b")
    assert [row["version"] for row in found] == [b.version, a.version, graded().version]
    assert found[0]["diff"][2:] != []
    shown = call("history", "b")
    assert f"b@{b.version} (1), from a@{a.version}" in shown
    assert "+name: b" in shown


def test_history_finds_the_versions_that_a_job_pinned():
    path = Path(call("new", "mine").strip())
    before = prompts.parse_file(path)
    prompt_files.pin(Path("job.job"), before)
    path.write_text(before.text.replace("You decide", "You must decide"))
    Path("job.yaml").write_text("data: {path: data}\nencoder: {model: x}\njudge: {enabled: false}\n")
    assert before.version not in [row["version"] for row in data("history", "mine")]
    found = {row["version"]: row["where"] for row in data("history", "mine", "--job", "job.yaml")}
    assert found[before.version] == [str(Path("job.job").resolve())]


def test_the_diff_of_a_prompt_with_itself_is_empty():
    assert prompt_files.text_diff(graded(), graded()) == []
