"""Golden files: what is read, refused, split, sampled and compared."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import toy
from hypothesis import given
from hypothesis import strategies as st
from loopback import Loopback

from miner import golden, golden_sample
from miner.commands.golden import clean
from miner.errors import UserError
from miner.golden import Golden
from miner.golden_sample import Pooled

pytestmark = pytest.mark.usefixtures("shared_vectors")


def row(number: int = 0, **more: Any) -> dict[str, Any]:
    """A pair; three pairs to a query."""
    base = {"query_id": f"q{number // 3}", "query": f"question {number // 3}", "positive": "an answer"}
    return {**base, "doc_id": f"d{number}", "passage": f"passage {number}", "grade": number % 4, **more}


def file(path: Path, rows: list[dict[str, Any]]) -> Path:
    toy.write_jsonl(path, rows)
    return path


def test_a_file_comes_back_as_it_was_written(tmp_path):
    path = file(tmp_path / "g.jsonl", [row(i, tag="négation", source={"a": [1]}) for i in range(7)])
    pairs = golden.read(path)
    assert pairs[1] == Golden(
        "q0", "question 0", "an answer", "d1", "passage 1", 1, "négation", more={"source": {"a": [1]}}
    )
    golden.write(tmp_path / "again.jsonl", pairs)
    assert golden.read(tmp_path / "again.jsonl") == pairs
    assert [pair.split for pair in pairs] == ["test"] * 7
    golden.write(tmp_path / "third.jsonl", golden.read(tmp_path / "again.jsonl"))
    assert (tmp_path / "third.jsonl").read_bytes() == (tmp_path / "again.jsonl").read_bytes()


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        ({"grade": 4}, "grade is 4; write 0, 1, 2 or 3"),
        ({"grade": "2"}, 'grade is "2"'),
        ({"grade": True}, "grade is true"),
        ({"grade": 1.5}, "grade is 1.5"),
        ({"grade": None}, "grade is null; grade the pair first: miner golden label"),
        ({"split": "train"}, 'split is "train"; write dev or test'),
        ({"split": "dev"}, "query 'q0' is in dev, at "),
        ({"query": "another question"}, "query 'q0' has another text at "),
        ({"doc_id": "d0"}, "the pair ('q0', 'd0') stands at "),
        ({"passage": " "}, "passage is empty"),
        ({"query": None}, "query is empty"),
        ({"positive": 7}, "positive is a number, not a text: 7"),
        ({"query_id": None}, "query_id is not an id: null"),
        ({"tag": ["a"]}, "tag is a list"),
    ],
)
def test_what_is_wrong_is_said_in_one_line_with_its_place(tmp_path, bad, words):
    path = file(tmp_path / "g.jsonl", [row(0), row(1, **bad)])
    with pytest.raises(UserError) as error:
        golden.read(path)
    assert str(error.value).startswith(f"{path}:2: ")
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_a_missing_key_is_named(tmp_path):
    short = row(0)
    del short["passage"]
    with pytest.raises(UserError, match="no passage; a golden pair has query_id, query"):
        golden.read(file(tmp_path / "g.jsonl", [short]))


def test_a_split_is_by_query_and_by_seed():
    pairs = [golden._pair(golden.rows.Row(row(i), "")) for i in range(60)]
    parted = golden.split(pairs, 0.5, 1)
    assert [pair.key for pair in parted] == [pair.key for pair in pairs]
    by_query: dict[str, set[str]] = {}
    for pair in parted:
        by_query.setdefault(pair.query_id, set()).add(pair.split)
    assert Counter(map(tuple, by_query.values())) == {("test",): 10, ("dev",): 10}
    assert golden.split(pairs[::-1], 0.5, 1) == parted[::-1]
    assert golden.split(pairs, 0.5, 2) != parted
    assert Counter(pair.split for pair in golden.split(pairs, 0.01, 1)) == {"test": 3, "dev": 57}
    assert {pair.split for pair in golden.part(parted, "dev", Path("g"))} == {"dev"}
    assert golden.part(parted, "all", Path("g")) == parted
    with pytest.raises(UserError, match="no pair of split dev; use --split all"):
        golden.part(pairs, "dev", Path("g.jsonl"))
    with pytest.raises(UserError, match="needs two"):
        golden.split(pairs[:3], 0.5, 1)


# ---------------------------------------------------------------- two annotators


def test_two_annotators_are_compared_on_what_both_graded():
    from sklearn.metrics import cohen_kappa_score

    pairs = [golden._pair(golden.rows.Row(row(i), "")) for i in range(60)]
    grades = [(i * 7 // 3) % 4 for i in range(60)]
    other = [golden.replace(p, grade=g, reason="so") for p, g in zip(pairs, grades, strict=True)]
    other = [*other[:-2][::-1], golden.replace(other[-2], grade=None)]
    found = golden.compare(pairs, other, 2, seed=1)
    own = [pair.grade for pair in pairs[:58]]
    assert (found["pairs"], found["queries"], found["left_out"]) == (58, 20, 3)
    assert found["kappa_quadratic"]["value"] == pytest.approx(cohen_kappa_score(own, grades[:58], weights="quadratic"))
    assert found["kappa"]["value"] == pytest.approx(
        cohen_kappa_score([g >= 2 for g in own], [g >= 2 for g in grades[:58]])
    )
    for name in ("kappa", "kappa_quadratic"):
        assert found[name]["low"] < found[name]["value"] < found[name]["high"]
    differ = [abs(one["grades"][0] - one["grades"][1]) for one in found["differ"]]
    assert differ == sorted(differ, reverse=True)
    assert len(differ) == sum(a != b for a, b in zip(own, grades, strict=False))
    assert sum(map(sum, found["confusion"])) == 58
    assert math.isnan(golden.compare(pairs[:1], pairs[:1], 2, seed=1)["kappa"]["value"])


def test_agree_on_the_command_line(tmp_path, miner):
    first = file(tmp_path / "a.jsonl", [row(i, reason="on topic") for i in range(20)])
    second = file(tmp_path / "b.jsonl", [row(i, grade=(i + (i == 5)) % 4) for i in range(20)])
    shown = miner("golden", "agree", first, second).stdout
    assert "20 pairs of 7 queries" in shown
    assert "same grade        95.0%" in shown
    assert "1 or 2   q1   d5" in shown
    assert "  1: on topic" in shown
    found = json.loads(miner("golden", "agree", first, second, "--json").stdout)
    assert found["differ"][0]["grades"] == [1, 2]
    other = file(tmp_path / "c.jsonl", [row(i, query_id="x", query="x") for i in range(3)])
    done = miner("golden", "agree", first, other, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert "no pair is graded in both files" in done.stderr


def test_split_on_the_command_line(tmp_path, miner):
    path = file(tmp_path / "g.jsonl", [row(i) for i in range(12)])
    assert miner("golden", "split", path, "--test-share", 0.25).stdout.splitlines() == [
        "dev  9 pairs of 3 queries",
        "test 3 pairs of 1 queries",
    ]
    assert Counter(pair.split for pair in golden.read(path)) == {"dev": 9, "test": 3}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["g.jsonl"]
    done = miner("golden", "split", path, "--test-share", 1, check=False)
    assert (done.returncode, done.stderr) == (2, "miner: golden split: --test-share is 1; it lies between 0 and 1\n")


# ---------------------------------------------------------------- samples


def pool(queries: int, each: int) -> list[Pooled]:
    return [
        Pooled(f"q{q}", f"d{q}-{d}", 1.0 - d / each, (d * 5 + q) % 5 if (d * 5 + q) % 5 < 4 else None)
        for q in range(queries)
        for d in range(each)
    ]


def test_strata_tell_score_grade_and_contradiction():
    high, low = Pooled("q", "a", 0.9, 0), Pooled("q", "b", 0.1, 3)
    middle = [Pooled("q", f"m{i}", 0.4 + i / 100, 1 + (i >= 5)) for i in range(10)]
    names = golden_sample.strata([high, low, *middle, Pooled("q", "u", 0.05, None)])
    assert names[0] == "score-high grade-0 contradiction"
    assert names[1] == "score-low grade-3 contradiction"
    assert names[-1] == "score-low"
    assert "score-middle grade-1" in names
    assert not any("contradiction" in name for name in names[2:])


@given(st.integers(1, 12), st.integers(1, 12), st.integers(1, 80), st.integers(0, 5))
def test_a_sample_takes_each_stratum_in_turn_and_spreads_over_queries(queries, each, count, seed):
    rows = pool(queries, each)
    names = golden_sample.strata(rows)
    chosen = golden_sample.sample(rows, names, count, seed)
    assert len(chosen) == len(set(chosen)) == min(count, len(rows))
    sizes, drawn = Counter(names), Counter(names[i] for i in chosen)
    open_ = [drawn[name] for name in sizes if drawn[name] < sizes[name]]
    if open_:  # who is not used up has had its turn as often as any other, or once less
        assert max(drawn.values()) - min(open_) <= 1
    plain = golden_sample.sample(rows, [""] * len(rows), count, seed)
    uses = Counter(rows[i].query_id for i in plain)
    assert max(uses.values()) - min(uses[f"q{q}"] for q in range(queries)) <= 1


def test_a_sample_does_not_depend_on_the_order_of_the_pool():
    rows = pool(6, 9)
    names = golden_sample.strata(rows)
    chosen = [rows[i] for i in golden_sample.sample(rows, names, 20, 3)]
    assert [rows[::-1][i] for i in golden_sample.sample(rows[::-1], names[::-1], 20, 3)] == chosen
    assert [rows[i] for i in golden_sample.sample(rows, names, 20, 4)] != chosen


def test_a_sample_of_a_job_before_and_after_it_is_judged(tmp_path, miner):
    with Loopback() as server:
        job = toy.job(tmp_path, llm=toy.llm(server.url), judge={"enabled": True, "pool": 5})
        miner("golden", "sample", job, "-o", tmp_path / "before.jsonl", "--count", 20)
        assert server.bodies == []
        miner("run", job)
        shown = miner("golden", "sample", job, "-o", tmp_path / "after.jsonl", "--count", 30).stdout
        miner("golden", "sample", job, "-o", tmp_path / "again.jsonl", "--count", 30)
        miner("golden", "sample", job, "-o", tmp_path / "even.jsonl", "--count", 16, "--uniform")
    assert shown.startswith("30 pairs of ")
    assert f"miner golden label {tmp_path / 'after.jsonl'}" in shown
    assert (tmp_path / "after.jsonl").read_bytes() == (tmp_path / "again.jsonl").read_bytes()
    before, after, even = (golden.read(tmp_path / f"{n}.jsonl", labelled=False) for n in ("before", "after", "even"))
    assert {pair.tag for pair in before} == {"score-low", "score-middle", "score-high"}
    assert {grade for pair in after for grade in (0, 1, 2) if f"grade-{grade}" in pair.tag} == {0, 1, 2}
    assert {pair.tag for pair in even} == {""}
    assert len({pair.query_id for pair in even}) == 16  # one of each query
    for pair in [*before, *after, *even]:
        assert pair.grade is None
        animal = pair.query_id.split("-")[1]
        assert animal in pair.query
        assert pair.positive.startswith(animal)  # title and text
        assert pair.passage
        assert pair.passage != pair.positive
    done = miner("golden", "sample", job, "-o", tmp_path / "even.jsonl", "--count", 16, check=False)
    assert done.returncode == 2
    assert "even.jsonl: exists already, and may hold grades" in done.stderr


# ---------------------------------------------------------------- untrusted text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\x1b[31mred\x1b[0m", "a\ufffd[31mred\ufffd[0m"),
        ("\x1b]0;title\x07x", "\ufffd]0;title\ufffdx"),
        ("a\u202egrade 0\u202c", "a\ufffdgrade 0\ufffd"),
        ("zero\u200bwidth\ufeff", "zero\ufffdwidth\ufffd"),
        ("line\r\nline\ttab\u00a0space\u3000wide\u2028end", "line\nline tab space wide\nend"),
        ("back\rover\b\x9b31m", "back\ufffdover\ufffd\ufffd31m"),
        ("می\u200cخواهم 漢字 é 👩\u200d🔬", "می\u200cخواهم 漢字 é 👩\u200d🔬"),
        ("\ud800", "\ufffd"),
    ],
)
def test_untrusted_text_cannot_steer_the_terminal(text, shown):
    assert clean(text) == shown
