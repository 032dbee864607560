"""What is wrong with a written passage, told from texts: each check with cases in several languages."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from miner import synthetic_checks as checks

EN = "The cat meows when it wants attention, and it sleeps for 16 hours of the day."
DE = "Die Katze miaut, wenn sie Aufmerksamkeit will, und sie schläft am Tag nicht weniger als 16 Stunden im Haus."
FR = "Le chat miaule quand il veut de la nourriture et il dort pendant 16 heures dans la maison avec les enfants."
ES = "El gato maúlla cuando quiere la atención de los niños y duerme en la casa por 16 horas al día."
ZH = "猫想要引起注意的时候会喵喵叫，它每天睡觉的时间大约是16个小时。"
JA = "猫は注意を引きたいときにニャーと鳴き、一日に約16時間眠ります。"
KO = "고양이는 관심을 끌고 싶을 때 야옹 하고 울며 하루에 약 16시간을 잔다."
RU = "Кошка мяукает, когда она хочет внимания, и спит по 16 часов в день на диване, как и все другие."
AR = "تموء القطة عندما تريد الاهتمام من أهل البيت وهي تنام في اليوم على الأريكة 16 ساعة أو أكثر من ذلك."
PLAIN = {"English": EN, "German": DE, "French": FR, "Spanish": ES, "Chinese": ZH, "Japanese": JA, "Korean": KO}
PLAIN |= {"Russian": RU, "Arabic": AR}


@pytest.mark.parametrize("name", PLAIN)
def test_a_plain_passage_has_no_fault(name):
    text = PLAIN[name]
    assert checks.language(text) == name
    assert checks.refusal(text, "") == ""
    assert checks.meta_talk(text, "cat", "") == ""
    assert checks.script_drift(text, text) == ""
    assert checks.length(text, checks.word_count(text), 2.0) == ""


@pytest.mark.parametrize(
    "text",
    [
        "As an AI language model, I do not own a cat.",
        "I'm sorry, but I can't write this passage.",
        "I cannot help with that request.",
        "Als KI kann ich das nicht schreiben.",
        "Es tut mir leid, das geht nicht.",
        "En tant qu'IA, je ne peux pas écrire ce texte.",
        "Lo siento, no puedo escribir eso.",
        "Como modelo de lenguaje, no puedo hacerlo.",
        "作为一个人工智能，我不能写这段文字。",
        "抱歉，我无法完成这个请求。",
        "申し訳ありませんが、お手伝いできません。",
        "죄송하지만 도와드릴 수 없습니다.",
        "К сожалению, я не могу помочь.",
        "آسف، لا أستطيع كتابة هذا النص.",
    ],
)
def test_a_refusal_is_seen(text):
    assert checks.refusal(text, EN) == "refusal"
    assert checks.refusal(text, text) == "", "the corpus speaks like that"


@pytest.mark.parametrize(
    "text",
    [
        f"Here is the rewritten passage: {EN}",
        f"Sure! Here you go. {EN}",
        "The passage no longer answers the query because the facet was changed to 'scope'.",
        "Hier ist der umgeschriebene Text: Die Katze bellt.",
        "Voici le passage réécrit : le chat aboie.",
        "Aquí está el pasaje: el gato ladra.",
        "以下是改写后的段落：猫会汪汪叫。",
        "以下は書き換えた文章です。猫は吠えます。",
        "다음은 수정된 지문입니다. 고양이는 짖는다.",
        "Вот переписанный текст: кошка лает.",
        f"**Passage:** {EN}",
        f"# Cats\n{EN}",
        f"```\n{EN}\n```",
        "The cat of [Company] barks.",
        "The cat of [Your Name Here] barks.",
        "[公司]的猫会叫。",
        "The {{ animal }} barks at {{ time }}.",
        'The cat barks.", "change": "the sound"}',
        '{"passage": "The cat barks."}',
        "The cat barks.\\nIt sleeps.",
        "=== END 0123456789 ===\nThe cat barks.",
        "<think>Let me see.</think> The cat barks.",
    ],
)
def test_talk_about_the_task_is_seen(text):
    assert checks.meta_talk(text, "cat", EN) == "meta_talk"
    assert checks.meta_talk(text, "cat", text) == "", "the source is like that"


@pytest.mark.parametrize(
    "query",
    [
        "why does a cat meow at night",
        "warum miaut die Katze in der Nacht",
        "为什么猫在晚上会喵喵叫",
        "почему кошка мяукает по ночам",
    ],
)
def test_the_query_copied_whole_is_seen(query):
    text = f"Many ask: {query.upper()}? Nobody knows."
    assert checks.meta_talk(text, query, EN) == "meta_talk"
    assert checks.meta_talk(text, query, f"FAQ. {query}") == "", "the source has it too"
    assert checks.meta_talk("The cat food of the house.", "cat food", EN) == "", "a short query occurs by itself"


def test_the_code_of_the_fences_is_seen():
    assert checks.meta_talk("weight='e4d4f1957c' is a keyword.", "q", EN, "e4d4f1957c") == "meta_talk"
    assert checks.meta_talk("weight is a keyword.", "q", EN, "e4d4f1957c") == ""


@pytest.mark.parametrize(
    ("text", "source"),
    [(RU, EN), (ZH, EN), (EN, ZH), (EN, AR), (EN, DE), (DE, FR), (JA, ZH), (ZH, JA), (KO, JA), (ES, FR)],
)
def test_another_script_or_language_is_seen(text, source):
    assert checks.script_drift(text, source) == "script_drift"


def test_no_drift_where_it_cannot_be_told():
    assert checks.script_drift("Kater Karlo", EN) == "", "too few words"
    assert checks.script_drift("x = f(y)", "z = g(x)") == ""
    assert checks.script_drift("12345", ZH) == "", "no letters"
    assert checks.script_drift("pip install", f"{ZH} pip install miner") == "", "the source has some of that script"


@pytest.mark.parametrize("text", [EN, DE, ZH, JA, KO, RU])
def test_length_is_told_in_words_of_every_script(text):
    count = checks.word_count(text)
    assert checks.length(text, count, 2.0) == ""
    assert checks.length(text * 3, count, 2.0) == "length"
    assert checks.length(text[: len(text) // 4], count, 2.0) == "length"
    assert checks.length(text * 3, count, 4.0) == ""


def test_words_are_counted():
    assert checks.word_count("one two, three - four") == 4
    assert checks.word_count("猫会叫") == 2  # three characters, two a word
    assert checks.word_count("แมวร้อง") == 2  # seven characters, four a word
    assert checks.word_count("x 猫猫 y") == 3
    assert checks.word_count("…  ") == 0


@pytest.mark.parametrize(
    ("facet", "source", "text", "expected"),
    [
        ("quantity", EN, EN.replace("16", "12"), True),
        ("date", "Die Stadt wurde im März 1990 gegründet.", "Die Stadt wurde im Mai 1990 gegründet.", True),
        ("date", "Основан в 1990 году.", "Основан в 1993 году.", True),
        ("quantity", "它有16个房间。", "它有20个房间。", True),
        ("quantity", "له ١٦ غرفة", "له ١٧ غرفة", True),
        ("quantity", "It costs 1,000 euros.", "The price is 1000 euros.", False),
        ("quantity", EN, EN.replace("meows", "barks"), False),
        ("quantity", ZH, ZH.replace("喵喵叫", "汪汪叫"), False),
        ("quantity", "A small flock.", "A tiny flock.", None),
        ("entity", "Paris lies on the Seine.", "Vienna lies on the Danube.", True),
        ("entity", "Paris liegt an der Seine.", "Seine der an liegt Paris.", False),
        ("place", "Москва стоит на реке.", "Казань стоит на реке.", True),
        ("entity", "call max_flow(g) first", "call min_cut(g) first", True),
        ("entity", "the cat barks", "the dog barks", None),
        ("entity", "Die Katze miaut laut.", "Die Katze miaut.", False),
        ("polarity", "It is possible to do this in the town.", "It is not possible to do this in the town.", True),
        (
            "polarity",
            "Das ist in der Stadt und im Land ein Fehler.",
            "Das ist in der Stadt und im Land kein Fehler.",
            True,
        ),
        ("polarity", "猫会叫。", "猫不会叫。", True),
        (
            "polarity",
            "Price rises in the year of the war and it is high.",
            "High is it and the war of the year rises.",
            False,
        ),
        (
            "polarity",
            "La valeur augmente dans les villes et dans la région.",
            "La valeur baisse dans les villes et dans la région.",
            None,
        ),
        ("scope", EN, EN, False),
        ("condition", EN, EN.replace("attention", "food"), None),
        ("", EN, f"{EN} And more.", None),
    ],
)
def test_a_declared_facet_is_looked_for(facet, source, text, expected):
    assert checks.changed(facet, source, text) is expected
    assert checks.facet_unchanged(facet, "", source, text) == ("facet_unchanged" if expected is False else "")


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ("16 became 12", True),
        ("now 14 hours", False),
        ("'barks' in place of 'meows'", True),
        ('replaced "meows" with "roars"', False),
        ("„miaut“ durch „bellt“ ersetzt", False),
        ("把「喵」改成「汪」", False),
        ("« aboie » au lieu de « miaule »", False),
        ("another sound", None),
        ("removed 'meows'", None),
        ("", None),
    ],
)
def test_what_the_change_names_must_be_in_the_text(change, expected):
    text = EN.replace("meows", "barks").replace("16", "12")
    assert checks.shown(change, EN, text) is expected
    assert checks.facet_unchanged("scope", change, EN, text) == ("facet_unchanged" if expected is False else "")


def test_what_was_taken_out_must_be_gone():
    def still(answer: dict, text: str) -> str:
        return checks.still_there(answer, "how long do cats sleep", EN, text)

    assert still({"entity": "cat"}, "The dog barks.") == ""
    assert still({"entity": "Cat"}, "The cat barks.") == "facet_unchanged"
    assert still({"entity": "cat"}, "The category is empty.") == "", "not inside of a word"
    assert still({"entity": "fish"}, "The fish is silent.") == "", "no entity of query or source"
    assert still({"missing": "16 hours"}, "It sleeps 16  hours.") == "facet_unchanged"
    assert still({"missing": "16 hours"}, "It sleeps long.") == ""
    assert still({"missing": ""}, EN) == ""
    assert checks.still_there({"missing": "小时"}, "q", ZH, "睡觉很多小时吗") == "facet_unchanged"


def test_nearness_is_the_share_of_word_triples():
    a, b = "one two three four five six", "one two three four five seven"
    assert checks.nearest(a, [b, "other words here"]) == 3 / 5
    assert checks.nearest(a, [a.upper()]) == 1.0
    assert checks.nearest(a, []) == 0.0


def test_copies_of_the_corpus():
    long = " ".join(f"w{i}" for i in range(40))
    near = f"{long} w40"  # 38 of 39 triples
    corpus = [("d1", "unrelated words in here"), ("d2", long), ("d3", EN), ("d4", f" {EN.upper()}  ")]
    assert checks.corpus_copies([near, EN, ZH], [[]] * 3, corpus, 0.8) == {0: ("d2", False), 1: ("d3", True)}
    assert checks.corpus_copies([near, EN, ZH], [[]] * 3, corpus, None) == {1: ("d3", True)}
    assert checks.corpus_copies([near, EN, ZH], [[]] * 3, corpus, 0.99) == {1: ("d3", True)}
    assert checks.corpus_copies([near], [[long]], corpus, 0.8) == {}, "an edit is near its own source"
    assert checks.corpus_copies([], [], corpus, 0.8) == {}


def test_an_exact_copy_counts_more_than_a_near_one_before_it():
    long = " ".join(f"w{i}" for i in range(40))
    corpus = [("d1", f"{long} w40"), ("d2", long)]
    assert checks.corpus_copies([long], [[]], corpus, 0.8) == {0: ("d2", True)}


def test_too_easy_is_below_the_band_by_more_than_the_tolerance():
    assert checks.too_easy(0.29, [0.5, 0.35], 0.05) == "too_easy"
    assert checks.too_easy(0.31, [0.5, 0.35], 0.05) == ""
    assert checks.too_easy(0.9, [0.5, 0.35], 0.05) == ""
    assert checks.too_easy(-1.0, [], 0.05) == ""


@pytest.mark.parametrize(
    "opening", ["It is important to note", "Es ist wichtig zu wissen", "需要注意的是这个", "Важно отметить, что"]
)
def test_openings_that_come_too_often(opening):
    texts = [f"{opening} {i}" for i in range(30)] + [f"{i} other words here" for i in range(30)]
    found = checks.templates(texts, ["x y z"] * 60, 0.2)
    assert found == [""] * 12 + ["template"] * 18 + [""] * 30  # 0.2 * 60 = 12
    assert checks.templates(texts[:5], ["x"] * 5, 0.2) == [""] * 5
    assert checks.templates(texts, texts, 0.2) == [""] * 60, "the opening of the source"


@given(st.text(), st.text())
def test_no_text_breaks_a_check(text, source):
    assert checks.refusal(text, source) in ("", "refusal")
    assert checks.meta_talk(text, source, source, "c") in ("", "meta_talk")
    assert checks.script_drift(text, source) in ("", "script_drift")
    assert checks.length(text, 5, 2.0) in ("", "length")
    for facet in ("entity", "quantity", "polarity", "scope", ""):
        assert checks.facet_unchanged(facet, text, source, text) in ("", "facet_unchanged")
    assert checks.still_there({"entity": text, "missing": source}, source, source, text) in ("", "facet_unchanged")
    assert 0 <= checks.nearest(text, [source]) <= 1


HOSTILE = [
    "(" * 5000,
    "[" * 5000,
    "\u202e" * 100,
    "{{ x" * 3000,
    "'" * 20_001,
    "1." * 20_000,
    "=== " * 5000,
    "\ud800 cat",
]


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_texts_take_no_time(text):
    checks.refusal(text, EN)
    checks.meta_talk(text, "q", EN)
    checks.script_drift(text, EN)
    checks.facet_unchanged("quantity", text, EN, text)
    assert checks.corpus_copies([text], [[]], [("d", EN)], 0.8) == {}
