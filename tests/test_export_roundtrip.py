"""What goes into a training file comes back out: by hypothesis, and through `datasets` as the hub would open it."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from test_exporters import ALL, SMALL, World, jsonl, quiet, rows, write

from miner import card, exporters
from miner.card import escape

assert quiet  # the fixture holds here too

# Any text but half surrogates, which the corpus stage refuses: control characters, line separators, NUL, other scripts.
TEXT = st.text() | st.sampled_from(
    ["\u2028", "a\u2029b\x85c", "\x00\x1b[31m", "\r\n\t", '"\\/', "日本語 \U0001f600", "\ufeff", "x" * 20_000]
)
NAME = st.text(min_size=1, max_size=8)
rounds = settings(max_examples=40)
SCORE = st.floats(-1, 1, width=32)


@st.composite
def worlds(draw: Any) -> World:
    """1 to 4 queries over up to 8 passages, each query with 1 or more positives and 0 or more negatives."""
    ids = draw(st.lists(NAME, min_size=1, max_size=8, unique=True))
    passages = [(doc_id, draw(st.just("") | TEXT), draw(TEXT)) for doc_id in ids]
    queries = []
    for query_id in sorted(draw(st.lists(NAME, min_size=1, max_size=4, unique=True))):
        order = draw(st.permutations(range(len(ids))))
        cut = draw(st.integers(1, len(ids)))
        items = [(row, draw(SCORE), draw(SCORE)) for row in order]
        # One relevance: the positives come by score, then id.
        positives = sorted(items[:cut], key=lambda item: (-item[1], ids[item[0]]))
        queries.append((query_id, draw(TEXT), positives, items[cut:]))
    return World(passages, queries, written=draw(st.integers(0, len(ids) - 1)))


def f32(value: float) -> float:
    return float(np.float32(value))


def texts(world: World, items: list[tuple[int, float, Any]]) -> list[str]:
    return [world.text(row) for row, *_ in items]


@rounds
@given(worlds(), TEXT, st.booleans())
def test_flagembedding_lines(tmp_path_factory, world, prompt, scored):
    folder = tmp_path_factory.mktemp("export")
    counts = write("flagembedding", world, folder, prompt=prompt, scores=scored)
    raw = (folder / "flagembedding.jsonl").read_bytes()
    kept = [q for q in world.queries if q[3]]
    assert raw.count(b"\n") == len(kept) == counts["rows"], "one line a row, whatever the texts hold"
    assert counts.get("queries_without_negatives", 0) == len(world.queries) - len(kept)
    for row, (_, query, pos, neg) in zip(jsonl(folder / "flagembedding.jsonl"), kept, strict=True):
        numbers = [row.pop("pos_scores"), row.pop("neg_scores")] if scored else []
        expected = {"query": query, "pos": texts(world, pos), "neg": texts(world, neg)}
        assert row == expected | {"prompt": prompt, "type": "normal"}
        for found, items in zip(numbers, (pos, neg), strict=False):
            assert found == pytest.approx([item[1] for item in items], abs=1e-6)
            assert all(type(number) is float for number in found)


@rounds
@given(worlds(), st.booleans())
def test_triplets(tmp_path_factory, world, scored):
    folder = tmp_path_factory.mktemp("export")
    counts = write("st-triplet", world, folder, scores=scored)
    expected = [
        {"anchor": query, "positive": world.text(p), "negative": world.text(n)}
        | ({"scores": [f32(a), f32(b)]} if scored else {})
        for _, query, pos, neg in world.queries
        for p, a, _ in pos
        for n, b, _ in neg
    ]
    assert counts["rows"] == len(expected)
    assert rows(folder / "st-triplet.parquet") == expected


@rounds
@given(worlds(), st.integers(1, 7), st.booleans())
def test_ntuples(tmp_path_factory, world, size, scored):
    folder = tmp_path_factory.mktemp("export")
    counts = write("st-ntuple", world, folder, ntuple_negatives=size, scores=scored)
    wide = [q for q in world.queries if len(q[3]) >= size]
    expected = [
        {"anchor": query, "positive": world.text(p)}
        | {f"negative_{i}": world.text(neg[i - 1][0]) for i in range(1, size + 1)}
        | ({"scores": [f32(s), *(f32(n[1]) for n in neg[:size])]} if scored else {})
        for _, query, pos, neg in wide
        for p, s, _ in pos
    ]
    assert counts == {"rows": len(expected), "queries_with_too_few_negatives": len(world.queries) - len(wide)}
    assert rows(folder / "st-ntuple.parquet") == expected


@rounds
@given(worlds(), st.booleans(), st.sampled_from(["together", "each"]))
def test_pairs_and_lists(tmp_path_factory, world, scored, policy):
    folder = tmp_path_factory.mktemp("export")
    kind = "scored" if scored else "labeled"
    for form in ("pair", "list"):
        write(f"st-{kind}-{form}", world, folder, positives=policy)
    one, many = ("score", "scores") if scored else ("label", "labels")
    pairs, lists = [], []
    for _, query, pos, neg in world.queries:
        items = (
            [(row, f32(s) if scored else 1) for row, s, _ in pos],
            [(row, f32(s) if scored else 0) for row, s, _ in neg],
        )
        pairs += [{"anchor": query, "positive": world.text(row), one: value} for row, value in items[0] + items[1]]
        for chosen in ([[item] for item in items[0]] if policy == "each" else [items[0]]) if neg else []:
            both = chosen + items[1]
            lists.append({"anchor": query, "positive": texts(world, both), many: [value for _, value in both]})
    assert rows(folder / f"st-{kind}-pair.parquet") == pairs
    assert rows(folder / f"st-{kind}-list.parquet") == lists


@rounds
@given(worlds())
def test_tevatron(tmp_path_factory, world):
    folder = tmp_path_factory.mktemp("export")
    for name in ("tevatron", "tevatron-legacy"):
        write(name, world, folder)
    corpus = {row["docid"]: row["text"] for row in jsonl(folder / "tevatron-corpus/corpus.jsonl")}
    kept = [q for q in world.queries if q[3]]
    found = jsonl(folder / "tevatron/train.jsonl")
    for row, older, (query_id, query, pos, neg) in zip(
        found, jsonl(folder / "tevatron-legacy.jsonl"), kept, strict=True
    ):
        assert (row["query_id"], row["query_text"]) == (older["query_id"], older["query"]) == (query_id, query)
        for side, items in (("positive", pos), ("negative", neg)):
            ids = row[f"{side}_document_ids"]
            assert ids == [world.passages[item[0]][0] for item in items]
            assert [corpus[doc_id] for doc_id in ids] == texts(world, items)
            passages = older[f"{side}_passages"]
            assert [p["docid"] for p in passages] == ids
            assert [(p.get("title", ""), p["text"]) for p in passages] == [world.passages[i[0]][1:] for i in items]


@rounds
@given(worlds())
def test_beir(tmp_path_factory, world):
    folder = tmp_path_factory.mktemp("export")
    counts = write("beir", world, folder)
    real = len(world.passages) - world.written
    corpus = [(row["_id"], row["title"], row["text"]) for row in jsonl(folder / "beir/corpus.jsonl")]
    assert corpus == world.passages[:real]
    assert [(r["_id"], r["text"]) for r in jsonl(folder / "beir/queries.jsonl")] == [q[:2] for q in world.queries]
    items = [(q[0], row, label) for q in world.queries for label, side in ((1, q[2]), (0, q[3])) for row, *_ in side]
    with (folder / "beir/qrels/train.tsv").open(encoding="utf-8", newline="") as handle:
        found = list(csv.reader(handle, delimiter="\t"))[1:]
    assert found == [[q, world.passages[row][0], str(label)] for q, row, label in items if row < real]
    assert counts.get("synthetic_left_out", 0) == sum(row >= real for _, row, _ in items)


@rounds
@given(worlds())
def test_the_plain_form(tmp_path_factory, world):
    folder = tmp_path_factory.mktemp("export")
    write("parquet", world, folder)
    found = rows(folder / "examples.parquet")
    names = ("query_id", "query", "doc_id", "text", "label", "score", "teacher_score")
    expected = [
        (query_id, query, world.passages[row][0], world.text(row), label, f32(score), f32(teacher))
        for query_id, query, pos, neg in world.queries
        for label, side in ((1, pos), (0, neg))
        for row, score, teacher in side
    ]
    assert [tuple(r[name] for name in names) for r in found] == expected


# ---------------------------------------------------------------- as the hub opens it


def facts(**more: Any) -> dict[str, Any]:
    return {
        "title": "toys: hard negatives",
        "license": "cc-by-4.0",
        "license_note": None,
        "language": ["en"],
        "source": {"name": "toys", "passages": 5, "queries": 2},
        "files": [["st-triplet", "train", "st-triplet.parquet"]],
        "rows": {"st-triplet": 7},
        "exported": {"queries": 2, "positives": 3, "negatives": 4, "fewest": 1, "most": 3, "dev_queries": 0},
        "models": [{"role": "encoder", "name": "all-MiniLM-L6-v2", "detail": ""}],
        "prompts": [],
        "settings": {"mining.depth": "10"},
        "candidates": {"mined.kept": 4},
        "outcomes": {"exported": 2},
        "lost": {},
        "judged": True,
        "judge": None,
        "unvouched": [],
        "relabelled": 0,
        "style": None,
        "scores": {
            "of": "The encoder's cosines",
            "scale": "raw",
            **dict.fromkeys(("low", "high", "spread", "top", "top_advised"), 0.25),
        },
        "train": {
            "model": "all-MiniLM-L6-v2",
            "pooling": "mean",
            "prompt": "",
            "group": 2,
            "paths": {"st-triplet": "st-triplet.parquet"},
            "taught": False,
        },
        "reproduce": {"miner": "0.1.0", "job": "0" * 64, "data": "1" * 64, "seed": 13},
    } | more


@pytest.mark.parametrize("options", [{}, {"rows_per_shard": 1, "dev": ["b"]}], ids=["one file", "shards"])
@pytest.mark.parametrize("name", ALL)
def test_datasets_opens_each_form(tmp_path, name, options):
    """As the card says for each file, and by name where the front matter lists it."""
    chosen = {"dev": None, "ntuple_negatives": 1, **options}
    out, cache = tmp_path / "out", str(tmp_path / "cache")
    files = written(name, out, **chosen)
    expected: dict[str, dict[str, int]] = {}
    for file in files:
        expected.setdefault(file.name, {})[file.split] = file.rows
    told = facts(files=[list(file[:3]) for file in files], rows={n: sum(v.values()) for n, v in expected.items()})
    told["train"]["paths"] = {file.name: file.pattern for file in files}
    (out / "README.md").write_text(card.card(told), encoding="utf-8")
    listed = {found["config_name"] for found in front((out / "README.md").read_text(encoding="utf-8"))["configs"]}
    for found, splits in expected.items():
        builder, more = card.opener(next(file.pattern for file in files if file.name == found))
        paths = {file.split: str(out / file.pattern) for file in files if file.name == found}
        opened = datasets.load_dataset(builder, data_files=paths, cache_dir=cache, **more)
        assert {split: len(part) for split, part in opened.items()} == splits
        if found in listed:
            by_name = datasets.load_dataset(str(out), found, cache_dir=cache)
            assert {split: part.to_list() for split, part in by_name.items()} == {
                split: part.to_list() for split, part in opened.items()
            }
    assert files[0].name in listed


@pytest.mark.parametrize(("pooling", "flag", "tevatron"), [("mean",) * 3, ("last", "last_token", "last")])
def test_the_commands_to_train_pool_as_the_model_does(pooling, flag, tevatron):
    paths = {"flagembedding": "a.jsonl", "tevatron-legacy": "b.jsonl"}
    told = facts(files=[[name, "train", path] for name, path in paths.items()], rows=dict.fromkeys(paths, 1))
    told["train"] |= {"paths": paths, "pooling": pooling}
    text = card.card(told)
    assert f"--sentence_pooling_method {flag} " in text
    assert f"--pooling {tevatron} " in text


def test_the_card_lists_files_of_one_kind(tmp_path):
    """Another kind would be read by the builder of the first, and fail."""
    files = [["flagembedding", "train", "a.jsonl"], ["st-triplet", "train", "b.parquet"]]
    (tmp_path / "a.jsonl").write_text('{"x":1}\n')
    write("st-triplet", SMALL, tmp_path)
    (tmp_path / "st-triplet.parquet").rename(tmp_path / "b.parquet")
    told = facts(files=files, rows={"flagembedding": 1, "st-triplet": 7})
    told["train"]["paths"] = {"flagembedding": "a.jsonl", "st-triplet": "b.parquet"}
    text = card.card(told)
    assert [found["config_name"] for found in front(text)["configs"]] == ["st-triplet"]
    assert "`load_dataset('json', data_files={'train': 'a.jsonl'})`" in text
    (tmp_path / "README.md").write_text(text)
    assert len(datasets.load_dataset(str(tmp_path), cache_dir=str(tmp_path / "cache"))["train"]) == 7


def written(name: str, folder: Path, **settings: Any) -> list[exporters.File]:
    """Write, and return the list of files."""
    kept: list[exporters.File] = []
    get = exporters.get

    def spying(name: str) -> exporters.Exporter:
        def call(name: str, plan: exporters.Plan) -> exporters.Written:
            found = get(name)(name, plan)
            kept.extend(found.files)
            return found

        return call

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exporters, "get", spying)
        write(name, SMALL, folder, **settings)
    return kept


# ---------------------------------------------------------------- the card


def front(text: str) -> dict[str, Any]:
    return yaml.safe_load(text.split("---\n")[1])


def test_the_front_matter_is_what_the_hub_reads():
    found = front(card.card(facts()))
    assert found["license"] == "cc-by-4.0"
    assert found["language"] == ["en"]
    assert found["size_categories"] == ["n<1K"]
    files = [{"split": "train", "path": "st-triplet.parquet"}]
    assert found["configs"] == [{"config_name": "st-triplet", "data_files": files, "default": True}]
    assert {"license", "language"}.isdisjoint(front(card.card(facts(license=None, language=[]))))


@pytest.mark.parametrize(
    ("count", "words"),
    [(0, "n<1K"), (999, "n<1K"), (1000, "1K<n<10K"), (99_999, "10K<n<100K"), (10**6, "1M<n<10M"), (10**9, "1B<n<10B")],
)
def test_the_hubs_words_for_a_size(count, words):
    assert card.size_category(count) == words


def test_what_is_absent_is_said_and_what_is_there_is_shown():
    bare = card.card(facts())
    assert card.NO_JUDGE in bare
    assert card.NO_STYLE in bare
    full = card.card(facts(judge={"kappa": 0.4321}, style={"AUC": 0.55}))
    assert "| kappa | 0.4321 |" in full
    assert "| AUC | 0.55 |" in full
    assert card.NO_JUDGE not in full
    assert card.NO_STYLE not in full
    assert "No judge was used" in card.card(facts(judged=False))


def test_text_from_outside_is_no_markdown_and_no_terminal_sequence():
    bad = "# big <script>\n\n| [x](http://evil) \x1b[31m`code` \u202e www.evil \n---"
    text = card.card(
        facts(
            title=bad,
            license_note=bad,
            settings={"mining.depth": bad},
            models=[{"role": "judge", "name": bad, "detail": ""}],
        )
    )
    body = text.split("---\n", 2)[2]
    assert not {"\x1b", "\u202e"} & set(text)
    assert "<script>" not in body
    assert "[x]" not in body
    assert not [line for line in body.splitlines() if line.startswith("# big")]
    assert front(text)["pretty_name"].startswith("# big <script>")


@given(st.text())
def test_escaped_text_is_one_line_and_keeps_every_letter(text):
    found = escape(text)
    assert len(found.splitlines()) <= 1
    assert [c for c in found.replace("&amp;", "").replace("&lt;", "").replace("&gt;", "") if c.isalnum()] == [
        c for c in text if c.isalnum()
    ]


def test_the_same_facts_give_the_same_card():
    assert card.card(facts()) == card.card(facts())
