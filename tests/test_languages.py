"""Languages told apart on real passages: those that came with the golden set in twelve languages, and XQuAD."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from miner import audit, bounds, languages, prompts

pytest.importorskip("py3langid", reason="extra languages not installed")
pytestmark = pytest.mark.slow
GOLDEN = prompts.SHIPPED / "judge/graded.golden.jsonl"


def passages() -> list[tuple[str, str]]:
    """(language, text); the query id begins with the language of query and positive. So is that of the passage, but
    where the row is tagged multilingual: there it is another on purpose.
    """
    rows = [json.loads(line) for line in GOLDEN.read_text(encoding="utf-8").splitlines()]
    texts = [(row["query_id"], row["positive"]) for row in rows]
    texts += [(row["query_id"], row["passage"]) for row in rows if row["tag"] != "multilingual"]
    return sorted({(query_id.split("-")[0], text) for query_id, text in texts if text})


def test_real_passages_are_told_and_seldom_wrongly():
    told = [(known, languages.language(text)) for known, text in passages()]
    wrong = Counter(one for one in told if one[1] and one[0] != one[1])
    named = sum(bool(found) for _, found in told)
    assert named >= 0.9 * len(told), "in doubt too often"
    assert bounds.upper_bound(wrong.total(), named) < 0.05, wrong
    assert {"en", "de", "fr", "es", "it", "pt", "ru", "zh", "ja"} <= {found for known, found in told if known == found}


def test_what_is_too_short_is_not_told():
    assert [languages.language(text) for text in ("", "42", "OK", "a b c")] == [""] * 4


def write(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows), encoding="utf-8")
    return path


def test_the_audit_finds_negatives_of_another_language_in_the_same_script(tmp_path):
    english = [text for name, text in passages() if name == "en" and languages.language(text) == "en"][:60]
    german = [text for name, text in passages() if name == "de" and languages.language(text) == "de"]
    rows = [
        {"query": f"which passage is number {n}", "pos": [english[n]], "neg": [english[n + 30]], "prompt": ""}
        for n in range(30)
    ]
    clean = audit.run(audit.Options([write(tmp_path / "clean.jsonl", rows)]))
    assert "D06" not in {found["code"] for found in clean.findings}
    assert clean.measured["languages"]["negative"] == {"en": 30}
    for row, text in zip(rows, german[:8], strict=False):
        row["neg"] = [text]
    mixed = audit.run(audit.Options([write(tmp_path / "mixed.jsonl", rows)]))
    (found,) = (one for one in mixed.findings if one["code"] == "D06")
    share = mixed.measured["languages"]["drift"]["share"]
    assert share == pytest.approx(len(german[:8]) / 30)
    assert f"de {len(german[:8])}" in found["places"][0]["value"]
