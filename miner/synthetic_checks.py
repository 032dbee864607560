"""Faults of a written passage that show before anyone is paid to judge it. Pure: texts in, a reason or "" out.

A marker (a refusal, a code fence, a placeholder) counts only where the source, the passage that was rewritten, has none
of its kind: a corpus may speak of AI models, and its texts may be Markdown. Phrases and word lists are those of the
larger languages; a text in another one passes the checks that need them.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import islice
from typing import Any

import numpy as np

from miner.defects import script
from miner.records import fold
from miner.shingles import BATCH, EDGES, UNSPACED, pair_jaccard, shingle_hashes, words

# ---------------------------------------------------------------- talk

_REFUSAL = re.compile(
    r"\bas an ai\b|\bals (?:eine? )?(?:ki\b|künstliche intelligenz|sprachmodell|ai\b|taalmodel)"
    r"|\ben tant qu['’]ia\b|\ben tant que (?:modèle|intelligence)|\b(?:como|come) (?:uma? |un[ao]? )?(?:ia\b|intelig"
    r"|intellig|modelo de ling|modelo de leng|modello ling)|как (?:языковая модель|ии\b|искусственный интеллект)"
    r"|yapay zeka(?: dil modeli)? olarak|作[为為](?:一个|一個|一名)?(?:ai|人工智能|人工智慧|大?语言模型|大?語言模型)"
    r"|(?:ai|人工知能|言語モデル)として|(?:ai|인공지능|언어 ?모델)로서|بصفتي (?:نموذج|ذكاء)|मॉडल के रूप में"
    r"|^\W*(?:i['’]?m |i am )?(?:sorry|afraid)\b[^.\n]{0,40}\b(?:can['’]?t|cannot|can not|unable|not able|won['’]?t)"
    r"|^\W*i (?:can['’]?t|cannot|can not|am unable to|am not able to|won['’]?t)\b"
    r"|^\W*(?:es tut mir leid|tut mir leid|het spijt me|je suis désolé|désolé|lo siento|mi dispiace|desculpe"
    r"|sinto muito|извините|простите|к сожалению,? я|üzgünüm|很?抱歉|对不起|對不起|我(?:无法|無法|不能)"
    r"|申し訳|すみません|죄송|آسف|عذر|أعتذر|क्षमा करें|माफ़)",
    re.IGNORECASE,
)
_TALK = re.compile(
    r"^\W*(?:sure|certainly|of course|okay)[!,.:]+ *(?:here|i\b|this)"
    r"|^\W*here(?:['’]s| is| are) (?:an?|the|your|my)\b[^.\n]{0,60}\b(?:passage|text|version|rewrite|negative)"
    r"|\bhard negative|\b(?:rewritten|original|revised|modified|reworded) (?:passage|text|version)\b|\bthe facet\b"
    r"|\banswers? (?:to )?the query\b|\bthe query (?:asks|is about)\b|\bthis task\b"
    r"|\bthe passage (?:no longer|does not|doesn['’]t|now|is about|has been)\b"
    r"|\bnot answer(?:ing)? the (?:query|question)"
    r"|\b(?:umgeschriebene|überarbeitete|ursprüngliche)[nrs]? (?:text|passage|abschnitt)"
    r"|^\W*hier ist (?:der|die|eine?) (?:umg|text|passage)"
    r"|\b(?:passage|texte) (?:réécrit|modifié|remanié|original)|^\W*voici (?:le|la|une?) (?:passage|texte|version)"
    r"|\b(?:pasaje|texto|passagem) (?:reescrit|modificad|original)|^\W*aqu[íi] (?:está|tienes) (?:el|la|o|a|una?)\b"
    r"|\b(?:brano|testo) (?:riscritto|modificato|originale)|^\W*ecco (?:il|un) (?:brano|testo)"
    r"|\b(?:herschreven|oorspronkelijke) (?:tekst|passage)|^\W*hier is (?:de|een) (?:tekst|passage|herschreven)"
    r"|(?:переписанн|изменённ|измененн|исходн)\w+ (?:текст|отрывок|фрагмент)|^\W*вот (?:текст|отрывок|переписан)"
    r"|(?:改写|改寫|重写|重寫|修改)[后後]的|^\W*以下是[^。\n]{0,12}(?:段落|文章|文本|内容|內容|版本)|这段(?:话|文字)不再"
    r"|(?:書き換え|書き直し)(?:た|られた|後の)|^\W*以下[はがに][^。\n]{0,14}(?:文章|パッセージ|テキスト)"
    r"|(?:다시 쓴|재작성(?:된|한)|수정된) (?:지문|구절|문단|글|텍스트)"
    r"|^\W*다음은 [^.\n]{0,14}(?:지문|구절|문단|글|텍스트)"
    r"|(?:النص|الفقرة|المقطع) (?:المعاد|المعدل|الأصلي)|(?:पुनर्लिखित|संशोधित) (?:पाठ|अनुच्छेद|गद्यांश)",
    re.IGNORECASE,
)
# Each kind by itself: a source with one of them excuses only that one.
_MARKUP = (
    re.compile(r"```|~~~"),
    re.compile(r"^ {0,3}#{1,6} ", re.MULTILINE),
    re.compile(r"\*\*[^*\n]{1,80}\*\*|__[A-Z][^_\n]{0,80}__"),
    re.compile(r"^\W*(?:(?:re)?written )?(?:passage|text|answer|output|response|document)\W{0,3}:", re.IGNORECASE),
    re.compile(
        r"\[(?:(?:your|insert|the|some|another) )?[A-Z][A-Za-z]{2,}(?: [A-Za-z]+){0,3}\]|\[(?:insert|your) [^\]]*\]"
    ),
    re.compile(
        r"\[(?:公司|姓名|名称|名前|会社|日付|日期|회사|이름|날짜|компания|имя|дата|empresa|nombre|nom|firma)[^\]]{0,20}\]"
    ),
    re.compile(r"<(?:insert|your|company|name|place)\b[^>]*>|\{\{ ?\w+ ?\}\}|\blorem ipsum\b|\bX{4,}\b", re.IGNORECASE),
    re.compile(r"[\"'](?:passage|change|requirements|violated|missing|entity)[\"'] ?:"),
    re.compile(r"^\s*[{\[]\s*\"|\"\s*[}\]]\s*$"),
    re.compile(r"\\n|\\\"|\\u[0-9a-f]{4}"),
    re.compile(r"===+ ?(?:QUERY|PASSAGE|NEAR MISS|FORM|FACET|K|END)\b"),
    re.compile(r"<\|[a-z_]+\|>|</?think>|\[/?INST\]"),
)


def refusal(text: str, source: str) -> str:
    return "refusal" if _REFUSAL.search(text) and not _REFUSAL.search(source) else ""


def meta_talk(text: str, query: str, source: str, code: str = "") -> str:
    """Talk about the task, scaffolding, leftovers of the answer's form; the query whole, where it is of five words or
    more; the code of the prompt's fences."""
    marked = any(marker.search(text) and not marker.search(source) for marker in (_TALK, *_MARKUP))
    asked = fold(query)
    copied = len(words(query)) >= 5 and asked in fold(text) and asked not in fold(source)
    return "meta_talk" if marked or copied or (code and code in text) else ""


# ---------------------------------------------------------------- language

_ONE_LANGUAGE = {"HANGUL": "Korean", "THAI": "Thai", "GREEK": "Greek", "HEBREW": "Hebrew", "ARMENIAN": "Armenian"}
_ONE_LANGUAGE |= {"GEORGIAN": "Georgian", "KHMER": "Khmer", "LAO": "Lao", "TAMIL": "Tamil", "TELUGU": "Telugu"}
_STOP = {
    "English": "the of and to in is that for with as on are was by this from which it be an or not have has when",
    "German": "der die das und ist nicht ein eine mit von den zu auf für dem des wird sich im bei wenn auch sind oder",
    "French": "le la les et est une des du que dans pour pas sur par au qui avec un ce sont il elle ou aux",
    "Spanish": "el la los las y es una del que en por con para no se un como su más al lo cuando o son",
    "Italian": "il la che di e è una del per con non gli dei nella sono un si della le da al lo i in",
    "Portuguese": "o a os as que de e é uma do da em para com não um no na se por dos mais ao são",
    "Dutch": "de het een en van is dat niet op te zijn met voor aan die in wordt er ook bij als of naar door",
    "Polish": "i w na nie się z do jest że to jak są o od po przez dla co czy ale ma oraz przy",
    "Swedish": "och att det som en är för på med av inte den till i har ett om kan de eller från vid när",
    "Turkish": "ve bir bu için ile da de olarak en daha çok olan gibi ne kadar sonra değil var her",
    "Russian": "и в не на что с по это как из для у от же за к при или был его так она они",
    "Ukrainian": "і в не на що з та це як для до від у за є або його при його також які був вона",
    "Arabic": "في من على أن إلى التي هذا عن مع ما هو كان لا أو هذه الذي كل بعد هي ذلك",
    "Persian": "در به از که این را با است برای آن یک های می شود و بر تا خود هم",
    "Hindi": "है के की में का को से और पर यह हैं ने एक नहीं था भी कि इस जो हो",
}
_STOP_WORDS = {name: frozenset(found.split()) for name, found in _STOP.items()}
ANY_LANGUAGE = "the same as that of the text below"


@lru_cache(maxsize=1 << 12)
def language(text: str) -> str:
    """English name of the language: by its script, else by its commonest words; "" where they do not tell."""
    kind = script(text)
    if kind == "CJK":
        kana = sum("\u3040" <= letter <= "\u30ff" for letter in text)
        return "Japanese" if 20 * kana >= len(text) else "Chinese"
    if kind in _ONE_LANGUAGE:
        return _ONE_LANGUAGE[kind]
    met = words(text[:4000])
    counts = {name: sum(word in known for word in met) for name, known in _STOP_WORDS.items()}
    first, second = sorted(counts, key=lambda name: (-counts[name], name))[:2]
    sure = counts[first] >= max(4, 0.08 * len(met)) and counts[first] >= 1.5 * counts[second]
    return first if sure else ""


def script_drift(text: str, source: str) -> str:
    """Another script than a tenth of the source has, or another language where both are known."""
    letters = [letter for letter in source[:2000] if letter.isalpha()]
    here = script(text)
    if letters and here and sum(script(letter) == here for letter in letters) < 0.1 * len(letters):
        return "script_drift"
    known = language(text), language(source)
    return "script_drift" if all(known) and known[0] != known[1] else ""


# ---------------------------------------------------------------- length

_DENSE = re.compile(f"[{UNSPACED}]")
_LONG_WORDS = re.compile("[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff]")


def word_count(text: str) -> int:
    """Words. Of scripts without spaces two characters make one, of Thai, Lao, Burmese and Khmer four."""
    dense, long = len(_DENSE.findall(text)), len(_LONG_WORDS.findall(text))
    spaced = sum(any(map(str.isalnum, piece)) for piece in _DENSE.sub(" ", text).split())
    return spaced + -(-(dense - long) // 2) + -(-long // 4)


def length(text: str, target: int, ratio: float) -> str:
    count = word_count(text)
    return "length" if count > ratio * target or ratio * count < target else ""


# ---------------------------------------------------------------- the declared change

_KINDS = {"quantity": "number", "number": "number", "amount": "number", "date": "number", "time": "number"}
_KINDS |= {"entity": "name", "place": "name", "location": "name", "person": "name", "polarity": "negation"}
_AMOUNTS = """
one two three four five six seven eight nine ten eleven twelve hundred thousand million half double twice triple
all none every each some many few most least more less single several both eins zwei drei vier fünf sechs sieben
acht neun zehn elf zwölf hundert tausend halb doppelt alle keine jeder einige viele wenige mehr weniger deux
trois quatre cinq sept huit neuf dix cent mille moitié tous aucun chaque plusieurs plus moins dos tres cuatro
cinco seis siete ocho nueve diez cien mil mitad todos ninguno cada varios más menos due tre quattro sei sette
otto nove dieci cento metà tutti nessuno ogni dois três quatro sete oito dez metade nenhum vários два три четыре
пять шесть семь восемь девять десять сто тысяча половина все каждый несколько больше меньше january february
march april may june july august september october november december monday tuesday wednesday thursday friday
saturday sunday januar februar märz mai juni juli oktober dezember janvier février mars avril juin juillet août
septembre octobre novembre décembre enero febrero marzo abril mayo junio julio agosto septiembre octubre
noviembre diciembre
"""
_AMOUNT_WORDS = frozenset(_AMOUNTS.split())
_NOT = {
    "English": "not no never none without neither nor cannot nothing nobody unable impossible lacks fails hardly",
    "German": "nicht kein keine keinen keiner keinem nie niemals ohne weder nichts niemand unmöglich",
    "French": "ne pas jamais sans aucun aucune ni rien personne impossible non",
    "Spanish": "no nunca sin ningún ninguna ninguno ni nada nadie jamás tampoco imposible",
    "Italian": "non mai senza nessun nessuna nessuno né niente nulla impossibile",
    "Portuguese": "não nunca sem nenhum nenhuma nem nada ninguém jamais impossível",
    "Dutch": "niet geen nooit zonder noch niets niemand onmogelijk",
    "Russian": "не нет ни без никогда нельзя никто ничего невозможно",
    "Arabic": "لا ليس لم لن غير ليست بدون ما دون",
    "Hindi": "नहीं न मत बिना ना",
}
_NOT_WORDS = {name: frozenset(found.split()) for name, found in _NOT.items()}
_NOT_PARTS = {
    "Chinese": "[不没沒无無非未别]",
    "Japanese": "ない|ません|なく|なかった|ず[、。に]",
    "Korean": "않|못|없|안 |아니",
}
_QUOTED = re.compile(r"\"([^\"]+)\"|“([^”]+)”|«([^»]+)»|「([^」]+)」|„([^“]+)“|`([^`]+)`|(?<!\w)'([^']+)'(?!\w)")


def numbers(text: str) -> Counter[str]:
    """Numbers in digits of any script, thousands without commas; words for amounts, months and days."""
    plain = "".join(str(unicodedata.decimal(c)) if c.isdecimal() else c for c in unicodedata.normalize("NFKC", text))
    found = Counter(number.replace(",", "") for number in re.findall(r"\d+(?:[.,:/]\d+)*", plain))
    found.update(word for word in words(text) if word in _AMOUNT_WORDS)
    found.update(re.findall("[一二两兩三四五六七八九十百千万萬亿億半]", text))
    return found


def names(text: str) -> set[str]:
    """Words that look like names, folded: with a capital, an underscore, or both letters and digits."""
    found = set()
    for token in text.split():
        bare = token.strip(EDGES)
        mixed = any(map(str.isdigit, bare)) and any(map(str.isalpha, bare))
        if mixed or "_" in bare or any(map(str.isupper, bare)):
            found.add(fold(bare))
    return found - {""}


def negations(text: str) -> int | None:
    """None in a language whose negations are not known here."""
    known = language(text)
    if known in _NOT_PARTS:
        return len(re.findall(_NOT_PARTS[known], text))
    if known not in _NOT_WORDS:
        return None
    return sum(word in _NOT_WORDS[known] or word.endswith(("n't", "n’t")) for word in words(text))


def changed(facet: str, source: str, text: str) -> bool | None:
    """Can the change of a facet be seen? True and False where the texts prove it, None where they cannot."""
    had, has = Counter(words(source)), Counter(words(text))
    if had == has:
        return False
    kind = _KINDS.get(facet.strip().casefold())
    if kind == "number":
        before, after = numbers(source), numbers(text)
        plain = any(map(str.isdigit, "".join(before)))
        return True if after - before else (False if plain and before == after else None)
    if kind == "name":
        if names(text) - set(had):
            return True
        return None if has.keys() - had.keys() else False
    if kind == "negation":
        before_, after_ = negations(source), negations(text)
        if before_ is None or after_ is None:
            return None
        return True if before_ != after_ else (None if has.keys() - had.keys() else False)
    return None


def shown(change: str, source: str, text: str) -> bool | None:
    """Does the text show what `change` names in digits or in quotes and the source has not? None: it names nothing."""
    quoted = [next(filter(None, groups)) for groups in _QUOTED.findall(change)]
    claims = [*quoted, *re.findall(r"\d+(?:[.,:/]\d+)*", _QUOTED.sub(" ", change))]
    new = [claim for claim in claims if not holds(source, claim)]
    return any(holds(text, claim) for claim in new) if new else None


def holds(text: str, phrase: str) -> bool:
    """Does the phrase occur, case and white space folded, and where it is of spaced words, not inside of one?"""
    wanted = fold(phrase).strip(EDGES + " ")
    if not wanted:
        return False
    edge = "" if _DENSE.search(wanted) else r"\w"
    before, after = (f"(?<!{edge})", f"(?!{edge})") if edge else ("", "")
    return re.search(f"{before}{re.escape(wanted)}{after}", fold(text)) is not None


def facet_unchanged(facet: str, change: str, source: str, text: str) -> str:
    unseen = changed(facet, source, text) is False or shown(change, source, text) is False
    return "facet_unchanged" if unseen else ""


def still_there(answer: dict[str, Any], query: str, source: str, text: str) -> str:
    """Of prompts that declare what they took out: the `entity` of the query, the `missing` piece of the passage."""
    entity, missing = answer.get("entity"), answer.get("missing")
    kept = isinstance(entity, str) and (holds(query, entity) or holds(source, entity)) and holds(text, entity)
    kept = kept or (isinstance(missing, str) and holds(source, missing) and holds(text, missing))
    return "facet_unchanged" if kept else ""


# ---------------------------------------------------------------- copies, scores, the whole job


def nearest(text: str, others: Sequence[str]) -> float:
    """The highest Jaccard similarity of word 3-shingles with one of the others; 0 where there are none."""
    if not others:
        return 0.0
    sets = shingle_hashes([text, *others])
    return float(pair_jaccard(sets, np.zeros(len(others), np.int64), sets, np.arange(1, len(others) + 1)).max())


def corpus_copies(
    written: Sequence[str], sources: Sequence[Sequence[str]], corpus: Iterable[tuple[str, str]], jaccard: float | None
) -> dict[int, tuple[str, bool]]:
    """By place in `written`: the id of the first corpus passage that is its copy, and whether the copy is exact.

    corpus: (doc_id, text), read once and not kept. jaccard None: exact copies only. A passage that is as near to one of
    the text's own sources is passed over in favour of none: the edit is known to be near it.
    """
    exact: dict[str, list[int]] = {}
    for place, text in enumerate(written):
        exact.setdefault(fold(text), []).append(place)
    found: dict[int, tuple[str, bool]] = {}
    if not exact:
        return found
    source = iter(corpus)
    index = _Index(written, jaccard) if jaccard is not None else None
    while batch := list(islice(source, BATCH)):
        for doc_id, text in batch:
            for place in exact.get(fold(text), []):
                if not found.get(place, ("", False))[1]:
                    found[place] = (doc_id, True)
        for place, row in index.near([text for _, text in batch]) if index else ():
            if place not in found and nearest(batch[row][1], sources[place]) < index.least:  # type: ignore[union-attr]
                found[place] = (batch[row][0], False)
    return found


class _Index:
    """The shingles of some texts, to find which of many other texts are near one of them."""

    def __init__(self, written: Sequence[str], least: float) -> None:
        self.least = least
        sets = shingle_hashes(written)
        self.sizes = sets.sizes
        order = np.argsort(sets.values, kind="stable")
        self.values = sets.values[order]
        self.owner = np.repeat(np.arange(len(written)), sets.sizes)[order]

    def near(self, texts: list[str]) -> Iterator[tuple[int, int]]:
        """(written, text) places. A near text has at least that share of its own shingles in the index."""
        sets = shingle_hashes(texts)
        met = np.isin(sets.values, self.values)
        counts = np.add.reduceat(met, sets.offsets[:-1], dtype=np.int64)
        for row in np.flatnonzero(counts >= self.least * sets.sizes).tolist():
            mine = sets.values[sets.offsets[row] : sets.offsets[row + 1]]
            low, high = np.searchsorted(self.values, mine), np.searchsorted(self.values, mine, side="right")
            owners = np.concatenate([self.owner[a:b] for a, b in zip(low, high, strict=True)])
            place, shared = np.unique(owners, return_counts=True)
            near = shared >= self.least * (self.sizes[place] + len(mine) - shared)
            yield from ((int(one), row) for one in place[near])


def too_easy(score: float, band: Sequence[float], tolerance: float) -> str:
    """band: the scores of the query's mined candidates; without any, nothing is too easy."""
    return "too_easy" if band and score < min(band) - tolerance else ""


def templates(texts: Sequence[str], sources: Sequence[str], share: float, least: int = 5) -> list[str]:
    """The reason of each text. Of texts that begin with the same three words the first `share` of all may stay, and
    always `least`. An opening that the source has too is the source's, and no template."""
    allowed = max(least, int(share * len(texts)))
    met: Counter[str] = Counter()
    reasons = []
    for text, source in zip(texts, sources, strict=True):
        opening = " ".join(words(text)[:3])
        own = opening == " ".join(words(source)[:3])
        met[opening] += not own
        reasons.append("template" if not own and met[opening] > allowed else "")
    return reasons
