"""The page of a report in a real browser: what it shows, how fast it filters, and that no text of the data can act."""

from __future__ import annotations

import copy
import json
import os
import re
import shutil
import subprocess
import time
from importlib import resources
from pathlib import Path

import pytest
import report_payload

from miner import golden
from miner.report import page as report_page

NAMES = ("chromium", "chromium-browser", "google-chrome")
READY = "body[data-ready]"


def settled(wait_s: float = 60) -> bool:
    """Whether no Chromium is half installed: its command is there 20 s before all that it needs is configured."""
    if shutil.which("dpkg-query") is None:
        return True
    asked = ["dpkg-query", "--show", "--showformat=${db:Status-Status}", "chromium"]
    end = time.monotonic() + wait_s
    while True:
        told = subprocess.run(asked, capture_output=True, text=True)
        if told.returncode or told.stdout in ("installed", "not-installed", "config-files"):
            return True  # by dpkg, or by other means
        if time.monotonic() > end:
            return False
        time.sleep(1)


@pytest.fixture(scope="module")
def browser():
    sync_api = pytest.importorskip("playwright.sync_api")
    found = next(filter(None, map(shutil.which, NAMES)), None)  # now, since it may be installed while tests run
    if found is None or not settled():
        pytest.skip("no Chromium")
    flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    with sync_api.sync_playwright() as play:
        chromium = play.chromium.launch(executable_path=found, args=flags)
        yield chromium
        chromium.close()


@pytest.fixture
def show(browser, tmp_path):
    """show(payload) opens its page. At the end there must have been no error, no dialog and no request but the file."""
    contexts, odd = [], []

    def call(payload, width=1280, height=800, scheme="light", view="", script=None, allowed=None):
        path = tmp_path / "report.html"
        path.write_text(report_page.page(payload) if isinstance(payload, dict) else payload, encoding="utf-8")
        context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
        contexts.append(context)
        page = context.new_page()
        if script:
            page.add_init_script(script)
        page.on("console", lambda said: None if allowed and re.search(allowed, said.text) else odd.append(said.text))
        page.on("pageerror", lambda error: odd.append(str(error)))
        page.on("dialog", lambda dialog: (odd.append(dialog.message), dialog.dismiss()))
        page.on("request", lambda request: odd.append(request.url) if not _own(request.url) else None)
        page.goto(path.as_uri() + view)
        page.wait_for_selector(READY, timeout=30_000)
        return page

    yield call
    assert [page.evaluate("typeof window.hacked") for context in contexts for page in context.pages] == [
        "undefined"
    ] * len(contexts)
    for context in contexts:
        context.close()
    assert odd == []


def _own(url):
    return url.startswith(("file:", "blob:"))


@pytest.fixture(scope="module")
def job():
    return report_payload.job(queries=40, each=12)


def shot(page, name):
    if os.environ.get("MINER_SCREENSHOTS"):
        page.screenshot(path=Path(os.environ["MINER_SCREENSHOTS"]) / f"{name}.png")


def rows(payload):
    """The candidates as dicts, the words spelled out."""
    found = payload["browser"]
    columns = found["candidates"]
    made = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    for row in made:
        for name in ("source", "reason", "status", "verdict", "rung"):
            row[name] = found["words"][name][row[name]]
        row["retrievers"] = {found["words"]["retriever"][one[0]] for one in row["found"] or []}
    return made


def tally(page):
    """(queries, candidates) that match, as the page counts them."""
    return tuple(int(re.sub(r"\D", "", text)) for text in page.locator("#tally b").all_text_contents())


def expected(found):
    return len({row["query"] for row in found}), len(found)


# ---------------------------------------------------------------- without a browser


def test_the_same_payload_makes_the_same_page(job):
    first = report_page.page(job)
    assert first == report_page.page(copy.deepcopy(job))
    other = report_page.page({**job, "miner": "0.2.0"})
    assert re.findall('data-hash="(.*?)"', first) != re.findall('data-hash="(.*?)"', other)


def test_a_page_names_no_address_and_holds_no_text_of_the_data(job):
    text = report_page.page({**job, "title": "<script>x</script> & \x1b[31m"})
    assert "<title>&lt;script&gt;x&lt;/script&gt; &amp; \x1b[31m</title>" in text
    assert job["browser"]["queries"]["text"][0] not in text
    assert set(re.findall(r"https?://[^\s\"'<)]+", text)) == set()
    assert text.count("<script") == text.count("</script>") == 3


def test_no_script_writes_markup():
    for name in (report_page.FIRST, *report_page.SCRIPTS):
        text = (resources.files("miner") / "report" / name).read_text(encoding="utf-8")
        assert not re.search(
            r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|new Function|fetch\(", text
        )
        assert len(text.splitlines()) <= 400
        assert max(map(len, text.splitlines())) <= 160, name


def test_nan_is_refused(job):
    with pytest.raises(ValueError, match="not JSON compliant"):
        report_page.page({**job, "facts": [["share", float("nan")]]})


def test_the_colours_of_texts_have_contrast():
    css = (resources.files("miner") / "report" / "page.css").read_text(encoding="utf-8")
    themes = re.findall(r"(?::root|\[data-theme=\"dark\"\]) \{(.*?)\n\}", css, re.DOTALL)
    assert len(themes) == 2
    pairs = [
        (ink, ground) for ink in ("ink", "muted", "accent", "kept", "dropped") for ground in ("ground", "paper", "sunk")
    ]
    pairs += [(f"{name}", f"{name}-soft") for name in ("accent", "kept", "dropped", "warn")]
    pairs += [("ink", "warn-soft"), ("ink", "accent-soft"), ("muted", "accent-soft"), ("mark-ink", "mark")]
    for theme in themes:
        colours = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6});", theme))
        for ink, ground in [*pairs, ("accent-ink", "accent"), ("paper", "dropped")]:
            assert contrast(colours[ink], colours[ground]) >= 4.5, (ink, ground)


def contrast(one, other):
    """WCAG 2: (lighter + .05) / (darker + .05) of relative luminances."""

    def luminance(colour):
        parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


# ---------------------------------------------------------------- the summary


def test_the_summary_tells_warnings_first_then_facts_flow_and_sections(show, job):
    page = show(job)
    heads = page.locator(".sections h2").all_text_contents()
    assert heads == ["2 warnings", "Summary", "What became of the candidates", "Scores", "Judge agreement"]
    assert page.locator("[role=alert] li").all_text_contents() == job["warnings"]
    assert page.locator(".fact dd").all_text_contents()[-1] == "1.25"
    assert page.locator("figure svg[role=img]").count() == 2
    assert page.title() == job["title"]
    shot(page, "summary")


def test_a_click_on_a_drop_reason_shows_the_candidates_that_it_took(show, job):
    page = show(job)
    page.click(".flow button:has-text('judged_relevant')")
    assert tally(page) == expected([row for row in rows(job) if row["reason"] == "judged_relevant"])
    assert page.locator(".set-chip").all_text_contents() == ["decision: judged_relevant ×"]


def test_a_bar_of_one_source_shows_the_candidates_of_that_source(show, job):
    wanted = [row for row in rows(job) if row["reason"] == "surplus" and row["source"] == "synthetic"]
    assert wanted
    edge = {"from": "generated", "to": "surplus", "count": len(wanted), "kind": "dropped"}
    page = show({**job, "flow": [edge]})
    page.click(".flow button")
    assert tally(page) == expected(wanted)


def test_a_table_sorts_at_a_click(show, job):
    page = show(job)
    head = page.locator("#s-scores th").nth(1)
    column = page.locator("#s-scores td:nth-child(2)")
    for direction in (-1, 1):
        head.locator("button").click()
        counts = [int(text.replace(",", "")) for text in column.all_text_contents()]
        assert counts == sorted(counts, key=lambda n: direction * n)
        assert head.get_attribute("aria-sort") == {-1: "descending", 1: "ascending"}[direction]


# ---------------------------------------------------------------- search and filters


def test_search_finds_texts_and_ids(show, job):
    page = show(job, view="#decisions")
    texts = job["browser"]["queries"]["text"]
    page.fill("#search", "TAX return")
    assert tally(page)[0] == sum("tax return" in text for text in texts)
    assert all("tax return" in text for text in page.locator(".row-text").all_text_contents())
    page.fill("#search", "q00017")
    assert tally(page) == (1, 12)
    page.fill("#search", "no such thing")
    assert tally(page) == (0, 0)
    page.press("#search", "Escape")
    page.press("#queries", "Escape")  # clears
    assert tally(page) == (40, 480)


def synthetic_to(row, score):
    return row["source"] == "synthetic" and row["score"] <= score


FILTERS = [
    ({"decision": "kept"}, lambda row: row["kept"]),
    ({"decision": "dropped"}, lambda row: row["reason"]),
    ({"decision": "rank_min"}, lambda row: row["reason"] == "rank_min"),
    ({"grade": "2 main point"}, lambda row: row["grade"] == 2),
    ({"grade": "2 or 3"}, lambda row: row["grade"] in (2, 3)),
    ({"grade": "none"}, lambda row: row["grade"] is None),
    ({"source": "synthetic"}, lambda row: row["source"] == "synthetic"),
    ({"status": "unparsable"}, lambda row: row["status"] == "unparsable"),
    ({"verdict": "relevant"}, lambda row: row["verdict"] == "relevant"),
    ({"rung": "large"}, lambda row: row["rung"] == "large"),
    ({"retriever": "bm25"}, lambda row: "bm25" in row["retrievers"]),
    ({"min": "0.7"}, lambda row: row["score"] >= 0.7),
    ({"min": "0.5", "max": "0.6"}, lambda row: 0.5 <= row["score"] <= 0.6),
    ({"decision": "kept", "source": "synthetic", "max": "0.7"}, lambda row: row["kept"] and synthetic_to(row, 0.7)),
]


def choose(page, name, value):
    field = page.locator(f"#f-{name}")
    if name in ("min", "max"):
        return field.fill(value)
    labels = field.locator("option").all_text_contents()
    field.select_option(label=next(label for label in labels if label.split(" (")[0] == value))


def test_each_filter_keeps_what_it_says(show, job):
    page = show(job, view="#decisions")
    page.click(".more-filters summary")
    for chosen, test in FILTERS:
        for name, value in chosen.items():
            choose(page, name, value)
        found = [row for row in rows(job) if test(row)]
        assert tally(page) == expected(found), chosen
        assert len(found) > 0
        assert page.locator(".set-chip").count() == len(chosen)
        page.click("#clear")
    shot(page, "filters")


def test_the_filter_on_outcomes_keeps_queries(show, job):
    page = show(job, view="#decisions")
    page.click(".more-filters summary")
    choose(page, "outcome", "too_few_negatives")
    assert tally(page) == (2, 24)
    assert page.locator(".row-out").all_text_contents() == ["too_few_negatives"] * 2


def test_a_kept_candidate_above_a_positive_is_worth_a_look(show, job):
    found = job["browser"]
    lowest = [min(one[2] for one in positives) for positives in found["queries"]["positives"]]
    wanted = [row for row in rows(job) if row["kept"] and row["score"] > lowest[row["query"]]]
    assert wanted
    page = show(job, view="#decisions")
    page.click(".more-filters summary")
    choose(page, "odd", "kept, though above the lowest positive")
    assert tally(page) == expected(wanted)


# ---------------------------------------------------------------- an open query


def test_an_open_query_shows_everything_of_its_candidates(show, job):
    page = show(job, view="#decisions/q00003")
    own = [row for row in rows(job) if row["query"] == 3]
    texts = job["browser"]["passages"]["text"]
    assert page.locator(".query h2").text_content() == job["browser"]["queries"]["text"][3]
    positive = job["browser"]["queries"]["positives"][3][0]
    assert page.locator(".positive .passage").all_text_contents() == [texts[positive[0]]]
    assert page.locator(".candidates .passage").all_text_contents() == [texts[row["passage"]] for row in own]
    first = page.locator(".candidates .card").first
    margin = positive[2] - (own[0]["score"] + own[0]["near"]) / 2
    values = dict(zip(first.locator("dt").all_text_contents(), first.locator("dd").all_text_contents(), strict=True))
    assert values["to positive"] == f"{own[0]['near']:.4f}"
    assert values["rank"] == str(own[0]["rank"])
    assert values["score"] == f"{own[0]['score']:.4f}"
    assert values["margin"] == f"+{margin:.4f} ({100 * margin / positive[2]:.1f} %)"
    assert first.locator(".why").text_content() == "Kept as hard negative 1 of this query."
    assert f"dense #{own[0]['rank']}" in first.locator(".found").text_content()
    shot(page, "query")


def test_a_margin_on_the_score_alone_is_shown_so(show, job):
    page = show(job, view="#decisions/q00002")
    own = [row for row in rows(job) if row["query"] == 2]
    positive = job["browser"]["queries"]["positives"][2][0]
    first = page.locator(".candidates .card").first
    values = dict(zip(first.locator("dt").all_text_contents(), first.locator("dd").all_text_contents(), strict=True))
    assert "to positive" not in values
    assert values["margin"].startswith(
        f"{'+' if positive[2] >= own[0]['score'] else '−'}{abs(positive[2] - own[0]['score']):.4f}"
    )


def test_before_the_decisions_nothing_that_may_be_kept_is_called_dropped(show, job):
    payload = copy.deepcopy(job)
    found = payload["browser"]
    found["candidates"]["kept"] = [0] * len(found["candidates"]["kept"])
    found["words"]["reason"] = ["pool", "judged_irrelevant", *found["words"]["reason"][2:]]
    page = show(payload, view="#decisions")
    choose(page, "decision", "undecided")
    assert tally(page) == expected([row for row in rows(payload) if row["reason"] in ("pool", "judged_irrelevant")])
    labels = " ".join(page.locator("#f-decision option").all_text_contents())
    assert "judged_relevant" in labels
    assert "pool" not in labels
    assert "judged_irrelevant" not in labels
    assert page.locator(".hit .verdict").first.text_content() == "undecided"


def test_a_failed_judgment_shows_its_status_and_why(show, job):
    page = show(job, view="#decisions")
    choose(page, "decision", "judge_unparsable")
    page.click(".row >> nth=0")
    card = page.locator(".hit").first
    assert card.locator(".verdict").text_content() == "dropped: judge_unparsable"
    assert card.locator(".why").all_text_contents() == [
        "The judge gave an answer that could not be read.",
        "no JSON object",
    ]
    assert card.locator(".chip.bad").text_content() == "unparsable"


def test_evidence_is_marked_whatever_its_case_and_space(show, job):
    """The made-up judge quotes words 3 to 8 of a passage in capitals."""
    page = show(job, view="#decisions")
    choose(page, "decision", "judged_relevant")
    row = next(row for row in rows(job) if row["reason"] == "judged_relevant")
    page.click(".row >> nth=0")
    words = job["browser"]["passages"]["text"][row["passage"]].split()
    assert page.locator(".hit mark").first.text_content() == " ".join(words[3:9])
    assert page.locator(".hit").count() == page.locator(".hit mark").count()
    assert page.locator(".candidates h3").first.text_content() == f"{page.locator('.hit').count()} matching"


def test_evidence_with_an_ellipsis_is_marked_in_pieces_and_a_false_quote_is_told(show, job):
    payload = copy.deepcopy(job)
    candidates = payload["browser"]["candidates"]
    candidates["evidence"][:2] = ["“blue  WHALES swim … under the ice”", "something else"]
    for place in range(2):
        payload["browser"]["passages"]["text"][candidates["passage"][place]] = (
            "Blue\n whales swim far, often under the ice."
        )
    page = show(payload, view="#decisions/q00000")
    first, second = page.locator(".candidates .card").nth(0), page.locator(".candidates .card").nth(1)
    assert first.locator("mark").all_text_contents() == ["Blue\n whales swim", "under the ice"]
    assert second.locator("mark").count() == 0
    assert second.locator(".evidence").text_content() == "evidence, not found in the text: something else"


def test_the_prompt_is_shown_letter_by_letter(show, job):
    page = show(job, view="#decisions/q00000")
    page.locator(".answer summary").first.click()
    found = job["browser"]
    sent = "=== QUERY ===\n{}\n=== PASSAGE ===\n{}\n=== END ===".format(
        found["queries"]["text"][0], found["passages"]["text"][0]
    )
    shown = page.locator(".answer[open] .code").all_text_contents()
    assert shown == ['{"evidence": "", "grade": 0}', found["strings"][0], sent]


def test_further_answers_of_a_candidate_are_told_apart(show, job):
    payload = copy.deepcopy(job)
    found = payload["browser"]
    found["answers"] = [*found["answers"], {**found["answers"][0], "prompt": "judge/binary", "note": "shortened"}]
    found["candidates"]["more"] = [[1], *[None] * (len(found["candidates"]["query"]) - 1)]
    found["candidates"]["answer"][0] = 0
    page = show(payload, view="#decisions/q00000")
    boxes = page.locator(".candidates .card").first.locator(".answer")
    assert boxes.locator("summary").all_text_contents() == ["Raw answer and prompt", "A further answer: judge/binary"]
    boxes.nth(1).locator("summary").click()
    assert "shortened" in boxes.nth(1).locator(".values").text_content()


def test_a_text_that_is_not_in_the_page_says_how_to_read_it(show, job):
    payload = copy.deepcopy(job)
    payload["browser"]["passages"]["text"] = [None] * len(payload["browser"]["passages"]["text"])
    payload["browser"]["candidates"]["evidence"][0] = "quoted words"
    payload["browser"]["note"] = "no text is in this page"
    page = show(payload, view="#decisions/q00000")
    card = page.locator(".candidates .card").first
    assert "miner inspect JOB.yaml QUERY_ID" in card.locator(".absent").text_content()
    assert card.locator(".evidence").text_content() == "evidence, quoted by the judge: quoted words"
    assert "cannot be marked here" in card.locator(".mark").text_content()
    assert page.locator(".pane-note").text_content() == "no text is in this page"


# ---------------------------------------------------------------- keys and marks


def test_marks_made_by_keys_are_kept_and_exported_as_a_golden_file(show, job, tmp_path):
    page = show(job, view="#decisions")
    page.keyboard.press("d")
    for key in ("j", "j", "Enter", "j", "3", "n"):
        page.keyboard.press(key)
    page.keyboard.type("says the  same")
    page.keyboard.press("Enter")
    for key in ("j", "1", "j", "w"):
        page.keyboard.press(key)
    assert page.locator("#mark-count").text_content() == "3"
    page.reload()
    page.wait_for_selector(READY)
    page.click("nav a[data-view=marks]")
    assert page.locator("#mark-count").text_content() == "3"
    page.fill("#annotator", "ann")
    with page.expect_download() as download:
        page.click("#export")
    path = tmp_path / download.value.suggested_filename
    download.value.save_as(path)
    pairs = golden.read(path, labelled=False)
    own = [row for row in rows(job) if row["query"] == 2]
    found = job["browser"]
    assert [(p.grade, p.tag, p.reason) for p in pairs] == [
        (2, "report", "says the same"),
        (0, "report", ""),
        (None, "wrong", ""),
    ]
    assert [p.doc_id for p in pairs] == [found["passages"]["id"][row["passage"]] for row in own[1:4]]
    assert {(p.query_id, p.query, p.split, p.annotator) for p in pairs} == {
        ("q00002", found["queries"]["text"][2], "dev", "ann")
    }
    assert {p.positive for p in pairs} == {found["passages"]["text"][found["queries"]["positives"][2][0][0]]}
    assert "1 mark without a grade" in page.locator("#main").text_content()
    shot(page, "marks")


def test_the_same_key_takes_a_mark_back_and_marked_only_keeps_the_marked(show, job):
    page = show(job, view="#decisions")
    page.keyboard.press("d")
    for key in ("Enter", "4", "j", "2", "2"):
        page.keyboard.press(key)
    assert page.locator("#mark-count").text_content() == "1"
    page.check("#f-marked")
    assert tally(page) == (1, 1)
    assert page.locator(".row-marked").all_text_contents() == ["1 marked"]


def test_keys_walk_open_close_search_and_help(show, job):
    page = show(job)
    page.keyboard.press("d")
    page.keyboard.press("j")
    assert page.locator(".row.active .id").text_content() == "q00001"
    assert page.locator(".query-bar .id").text_content() == "q00001"
    assert page.locator("#queries").get_attribute("aria-activedescendant") == "queries-1"
    page.keyboard.press("Enter")
    page.keyboard.press("j")
    assert page.evaluate("document.activeElement.dataset.place") == "13"
    page.keyboard.press("]")
    assert page.evaluate("document.activeElement.dataset.place") == "24"
    page.keyboard.press("Escape")
    assert page.evaluate("document.activeElement.id") == "queries"
    page.keyboard.press("/")
    page.keyboard.type("j?k")  # letters, not keys
    assert page.input_value("#search") == "j?k"
    page.keyboard.press("Escape")
    page.keyboard.press("?")
    assert page.locator("dialog[open] kbd").count() > 10
    page.keyboard.press("Escape")
    page.locator("dialog").wait_for(state="detached")
    page.keyboard.press("s")
    assert page.locator(".overview").is_visible()


def test_a_browser_that_keeps_nothing_is_told_of(show, job):
    forbid = "Object.defineProperty(window, 'localStorage', {get() { throw new DOMException('no', 'SecurityError'); }})"
    page = show(job, view="#decisions", script=forbid)
    for key in ("d", "Enter", "1", "m"):
        page.keyboard.press(key)
    assert "does not keep the marks" in page.locator(".warn").text_content()
    assert page.locator(".marks li").count() == 1


def test_the_lines_can_be_copied_where_the_clipboard_is_forbidden(show, job):
    page = show(job, view="#decisions", script="delete Navigator.prototype.clipboard")
    for key in ("d", "Enter", "1", "m"):
        page.keyboard.press(key)
    page.click("button:has-text('Copy')")
    assert json.loads(page.locator(".copied textarea").input_value())["grade"] == 0


# ---------------------------------------------------------------- looks


def test_light_dark_and_what_the_reader_chose(show, job):
    ground = "getComputedStyle(document.body).backgroundColor"
    page = show(job)
    light = page.evaluate(ground)
    page.select_option("#theme", "dark")
    dark = page.evaluate(ground)
    page.reload()
    page.wait_for_selector(READY)
    assert page.evaluate(ground) == dark != light
    assert show(job, scheme="dark").evaluate(ground) == dark


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_is_wider_than_a_phone(show, job, scheme):
    payload = copy.deepcopy(job)
    payload["browser"]["queries"]["id"][0] = "q" * 300
    payload["facts"].append(["folder", "/a/long/path" * 30])
    page = show(payload, 360, 740, scheme)
    boxes = "[document.documentElement, ...document.querySelectorAll('.scrolls, .detail, .side')]"
    wide = f"{boxes}.map((e) => e.scrollWidth - e.clientWidth)"
    assert max(page.evaluate(wide)) == 0
    shot(page, f"phone-summary-{scheme}")
    page.click("nav a[data-view=decisions]")
    assert max(page.evaluate(wide)) == 0
    page.click(".row >> nth=0")
    assert page.locator(".query").is_visible()
    assert not page.locator("#queries").is_visible()
    assert max(page.evaluate(wide)) == 0
    shot(page, f"phone-query-{scheme}")
    page.click(".back")
    assert page.locator("#queries").is_visible()
    page.click(".row >> nth=1")
    page.go_back()
    page.wait_for_selector("#queries", state="visible")


# ---------------------------------------------------------------- hostile texts

HOSTILE = [
    "<script>window.hacked = 1</script>",
    '</script><img src=x onerror="window.hacked = 1; alert(1)">',
    "\x1b[31mred\x1b[0m \x00 null \x07 bell \x9b c1",
    "user \u202egnp.exe\u202c and \u2066isolates\u2069 \u200b\ufeff \U000e0041 tag",
    "emoji \U0001f600 \U0001f468\u200d\U0001f469\u200d\U0001f467 עברית العربية",
    "half \ud83d of a pair",
    "javascript:window.hacked=1",
    "{{payload}} {{script}} ${window.hacked=1}",
]
BAD_SVG = (
    '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" viewBox="0 0 9 9"'
    ' onload="window.hacked=1"><script>window.hacked=1</script><a xlink:href="javascript:window.hacked=1"><text>x'
    '</text></a><image href="https://example.invalid/x.png"/>'
    '<foreignObject><b onclick="window.hacked=1">x</b></foreignObject>'
    '<rect width="5" height="5" onmouseover="window.hacked=1"/></svg>'
)


def hostile(job):
    payload = copy.deepcopy(job)
    found = payload["browser"]
    for place, text in enumerate(HOSTILE):
        found["queries"]["text"][place] = found["queries"]["id"][place] = text
        found["passages"]["text"][found["candidates"]["passage"][place]] = text
        found["passages"]["id"][found["candidates"]["passage"][place]] = text
        found["candidates"]["evidence"][place] = text
        found["candidates"]["detail"][place] = text
    found["words"]["reason"][1] = found["words"]["retriever"][1] = HOSTILE[1]
    found["queries"]["outcome"][5] = HOSTILE[0]
    found["answers"][0]["text"] = found["answers"][0]["model"] = found["strings"][0] = HOSTILE[1]
    payload["title"] = payload["facts"][0][0] = payload["facts"][0][1] = HOSTILE[1]
    payload["warnings"] += HOSTILE
    payload["flow"][1]["to"] = HOSTILE[1]
    payload["sections"][0]["note"] = HOSTILE[1]
    payload["sections"][0]["tables"][0]["rows"][0][0] = HOSTILE[1]
    payload["sections"][0]["plots"][0]["svg"] = BAD_SVG
    return payload


def test_hostile_texts_are_shown_and_do_nothing(show, job, tmp_path):
    payload = hostile(job)
    page = show(payload, allowed="Content Security Policy directive 'script-src")  # what the plot tried
    assert page.locator("[role=alert] li").nth(2).text_content() == HOSTILE[0]
    assert page.locator("figure").first.locator("script, a, image, foreignObject, [onmouseover], [onload]").count() == 0
    assert page.locator("figure").first.locator("rect").count() == 1
    page.click("nav a[data-view=decisions]")
    cards = page.locator(".candidates .card .passage")
    assert HOSTILE[0] in cards.all_text_contents()
    texts = " | ".join(cards.all_text_contents())
    signs = ["⟨ESC⟩[31mred⟨ESC⟩[0m ⟨NUL⟩ null ⟨BEL⟩ bell ⟨CSI⟩ c1", "⟨RLO⟩gnp.exe⟨PDF⟩", "⟨ZWSP⟩⟨BOM⟩ ⟨TAG A⟩"]
    for seen in (*signs, "half ⟨U+D83D⟩ of"):
        assert seen in texts
    assert not re.search("[\x00-\x08\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", page.locator("body").inner_text())
    assert page.locator("bdi, .prose").first.evaluate("(e) => getComputedStyle(e).unicodeBidi") == "isolate"
    for summary in page.locator(".answer summary").all():
        summary.click()
    page.keyboard.press("d")
    for _ in HOSTILE:
        for key in ("Enter", "1", "Escape", "j"):
            page.keyboard.press(key)
    page.wait_for_timeout(100)
    page.click("nav a[data-view=marks]")
    with page.expect_download() as download:
        page.click("#export")
    download.value.save_as(tmp_path / "golden.jsonl")
    pairs = golden.read(tmp_path / "golden.jsonl")
    assert len(pairs) == len(HOSTILE)
    assert pairs[0].passage == pairs[0].query == HOSTILE[0]


def test_a_megabyte_without_a_break_opens_at_once_and_grows_when_asked(show, job):
    payload = copy.deepcopy(job)
    found = payload["browser"]
    found["passages"]["text"][found["candidates"]["passage"][0]] = "x" * 700_000 + "NEEDLE" + "\x00y" * 150_000
    found["candidates"]["evidence"][0] = "needle"
    page = show(payload, view="#decisions/q00000")
    card = page.locator(".candidates .card").first
    assert card.locator("mark").text_content() == "NEEDLE"
    assert len(card.locator(".passage").text_content()) < 2000
    took = card.locator(".cut .more").evaluate(
        "(e) => { const t = performance.now(); e.click(); document.body.offsetHeight; return performance.now() - t; }"
    )
    assert len(card.locator(".whole").text_content()) == 100_000
    assert took < 1000
    card.locator(".more").click()
    assert len(card.locator(".whole").text_content()) == 200_000
    assert page.evaluate("document.documentElement.scrollWidth") <= 1280


# ---------------------------------------------------------------- size and speed

SPEEDS = {"f-decision": "kept", "f-grade": "2+", "f-retriever": "2", "f-min": "0.6", "search": "tax return"}
TIME = """async ([name, value]) => {
    const field = document.getElementById(name), times = [];
    for (let i = 0; i < 5; i++) {
        for (const one of [value, name === 'f-marked' ? false : '']) {
            if (field.type === 'checkbox') field.checked = one; else field.value = one;
            const start = performance.now();
            field.dispatchEvent(new Event('input'));
            document.getElementById('queries').getBoundingClientRect();
            if (one === value) times.push(performance.now() - start);
            await new Promise((done) => setTimeout(done));
        }
    }
    return times.sort((a, b) => a - b);
}"""


def test_two_hundred_thousand_candidates_are_filtered_within_200_ms(show):
    """The time of the page's own handler, list and open query drawn and laid out: the middle of the best 3 of 5."""
    payload = report_payload.repeated(report_payload.job(queries=500, each=20), 20)
    page = show(payload, view="#decisions")
    assert tally(page) == (10_000, 200_000)
    assert page.locator(".row").count() < 60  # only those in sight
    found = {}
    for name, value in SPEEDS.items():
        found[name] = page.evaluate(TIME, [name, value])[1]
    assert max(found.values()) < 200, found
    page.locator("#queries").evaluate("(e) => (e.scrollTop = e.scrollHeight)")
    page.wait_for_selector(".row:has-text('q09999')")
    print("milliseconds of a filter over 200,000 candidates:", {k: round(v, 1) for k, v in found.items()})  # noqa: T201


def test_a_query_with_many_candidates_shows_the_first_and_walks_on(show):
    page = show(report_payload.job(queries=3, each=150), view="#decisions/q00000")
    assert page.locator(".candidates .card").count() == 60
    page.locator(".candidates .card").last.focus()
    page.keyboard.press("j")
    assert page.locator(".candidates .card").count() == 120
    assert page.evaluate("document.activeElement.dataset.place") == "60"


# ---------------------------------------------------------------- two jobs


def test_a_comparison_shows_settings_measures_and_the_negatives_that_changed(show):
    payload = report_payload.comparison()
    page = show(payload)
    assert page.locator("#s-config tbody tr").all_text_contents() == [
        "mining.margin_relative0.050.1",
        "judge.promptjudge/gradedjudge/binary",
    ]
    assert page.locator("#s-metrics tbody tr").first.locator("td").all_text_contents() == [
        "false negatives",
        "0.041",
        "0.022",
        "−0.019",
    ]
    page.click("nav a[data-view=decisions]")
    queries = payload["comparison"]["queries"]
    assert tally(page) == (30,)
    choose(page, "kind", "gained")
    assert tally(page) == (sum(bool(one["gained"]) for one in queries),)
    page.select_option("#f-kind", "")
    row = queries[7]["lost"][0]
    page.fill("#search", row["doc_id"])
    assert tally(page) == (1,)
    page.click(".row")
    card = page.locator(".card.lost").first
    assert card.locator(".side-why").all_text_contents() == ["kept", "margin_relative"]
    assert card.locator(".passage").text_content() == row["text"]
    shot(page, "comparison")


def test_a_job_of_which_nothing_can_be_browsed_shows_its_summary(show, job):
    page = show({**job, "browser": None, "sections": [], "warnings": []})
    assert page.locator("nav[aria-label=Views] a").all_text_contents() == ["Summary"]
    for key in ("d", "j", "m", "/"):
        page.keyboard.press(key)
    assert page.locator(".facts").is_visible()


def test_an_address_written_by_hand_does_no_harm(show, job):
    page = show(job, view="#decisions/%E0%A4%A")
    for view in ("nowhere", "decisions/no-such-query", "", "decisions/q00004"):
        page.evaluate("(view) => { location.hash = view; }", view)
        wanted = "Decisions" if view.startswith("decisions") else "Summary"
        page.wait_for_selector(f"nav a[aria-current]:has-text('{wanted}')")
    assert page.locator(".query-bar .id").text_content() == "q00004"


def test_a_damaged_page_says_so(browser, tmp_path, job):
    text = report_page.page(job)
    cut = re.sub(r'(id="payload"[^>]*>)[^<]{200}', r"\1", text)
    (tmp_path / "report.html").write_text(cut, encoding="utf-8")
    page = browser.new_page()
    page.goto((tmp_path / "report.html").as_uri())
    page.wait_for_selector("[role=alert]")
    assert "This report cannot be opened" in page.locator("#main").text_content()
    page.close()
