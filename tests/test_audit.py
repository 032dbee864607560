from __future__ import annotations

import copy
import gzip
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import loopback
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import toy

from miner import audit, audit_fix, bounds, config, forms
from miner.audit_checks import Settings
from miner.defects import DEFECTS, mend, script, text_defects, title_twice
from miner.errors import UserError

DATA = Path(__file__).resolve().parents[1] / "examples" / "library-docs" / "data"
ROWS, NEGATIVES, AT = 24, 4, 7
Row = dict[str, Any]


def jsonl(path: Path) -> list[Row]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def write_jsonl(path: Path, rows: list[Row]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def clean(count: int = ROWS) -> list[Row]:
    """Real queries, each with its answer and four passages of the same library that are nobody's answer."""
    docs = {row["_id"]: row["text"] for row in jsonl(DATA / "corpus.jsonl")}
    queries = {row["_id"]: row["text"] for row in jsonl(DATA / "queries.jsonl")}
    judged = [line.split("\t") for line in (DATA / "qrels" / "train.tsv").read_text().splitlines()[1:]]
    answers = {query: doc for query, doc, _ in reversed(judged)}
    taken = {doc for _, doc, _ in judged}
    spare = []
    seen: set[str] = set()
    for doc, text in docs.items():
        if doc not in taken and 150 < len(text) < 900 and text[:40] not in seen and not text_defects(2, text):
            seen.add(text[:40])
            spare.append(text)
    rows = []
    for query, doc in sorted(answers.items())[:count]:
        negatives = [spare.pop((37 * len(rows)) % len(spare)) for _ in range(NEGATIVES)]
        rows.append({"query": queries[query], "pos": [docs[doc]], "neg": negatives})
    return rows


CLEAN = clean(60)


def flag(rows: list[Row]) -> list[Row]:
    return [
        {
            **copy.deepcopy(row),
            "pos_scores": [0.9 + i / 1000],
            "neg_scores": [0.5 - j / 10 - i / 1000 for j in range(NEGATIVES)],
            "prompt": "",
            "type": "normal",
        }
        for i, row in enumerate(rows)
    ]


def ntuple(rows: list[Row]) -> list[Row]:
    return [
        {
            "anchor": row["query"],
            "positive": row["pos"][0],
            **{f"negative_{i}": text for i, text in enumerate(row["neg"], 1)},
        }
        for row in rows
    ]


def triplet(rows: list[Row]) -> list[Row]:
    return [{"anchor": row["query"], "positive": row["pos"][0], "negative": row["neg"][0]} for row in rows]


def pair(rows: list[Row]) -> list[Row]:
    found = []
    for row in rows:
        found += [{"anchor": row["query"], "positive": text, "label": 1} for text in row["pos"]]
        found += [{"anchor": row["query"], "positive": text, "label": 0} for text in row["neg"]]
    return found


def labelled(rows: list[Row]) -> list[Row]:
    return [
        {"anchor": row["query"], "positive": [*row["pos"], *row["neg"]], "labels": [1, *[0] * NEGATIVES]}
        for row in rows
    ]


def legacy(rows: list[Row]) -> list[Row]:
    return [
        {
            "query_id": str(i),
            "query": row["query"],
            "positive_passages": [{"docid": f"p{i}", "title": "", "text": row["pos"][0]}],
            "negative_passages": [
                {"docid": f"n{i}-{j}", "title": "", "text": text} for j, text in enumerate(row["neg"])
            ],
        }
        for i, row in enumerate(rows)
    ]


def by_id(rows: list[Row]) -> tuple[list[Row], list[Row]]:
    """Rows of ids and their corpus."""
    corpus, found = [], []
    for i, row in enumerate(rows):
        texts = {f"p{i}": row["pos"][0], **{f"n{i}-{j}": text for j, text in enumerate(row["neg"])}}
        corpus += [{"docid": name, "title": "", "text": text} for name, text in texts.items()]
        names = {"positive_document_ids": [f"p{i}"], "negative_document_ids": [f"n{i}-{j}" for j in range(NEGATIVES)]}
        found.append({"query_id": str(i), "query_text": row["query"], **names})
    return found, corpus


def beir(folder: Path, rows: list[Row]) -> Path:
    ids, corpus = by_id(rows)
    write_jsonl(folder / "corpus.jsonl", [{"_id": doc["docid"], "title": "", "text": doc["text"]} for doc in corpus])
    write_jsonl(folder / "queries.jsonl", [{"_id": row["query_id"], "text": row["query_text"]} for row in ids])
    lines = ["query-id\tcorpus-id\tscore"]
    for row in ids:
        lines += [f"{row['query_id']}\t{doc}\t1" for doc in row["positive_document_ids"]]
        lines += [f"{row['query_id']}\t{doc}\t0" for doc in row["negative_document_ids"]]
    (folder / "qrels").mkdir()
    (folder / "qrels" / "train.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def run(*files: Path, **options: Any) -> audit.Report:
    return audit.run(audit.Options(files, keep_all=True, **options))


def codes(report: audit.Report) -> dict[str, int]:
    return {finding["code"]: finding["count"] for finding in report.findings}


def places(report: audit.Report, code: str) -> list[dict[str, str]]:
    return next(finding["places"] for finding in report.findings if finding["code"] == code)


# ---------------------------------------------------------------- defects, planted one by one

FORMS: dict[str, Callable[[list[Row]], list[Row]]] = {
    "flag": flag,
    "ntuple": ntuple,
    "triplet": triplet,
    "pair": pair,
    "list": labelled,
    "legacy": legacy,
}


def put(*path: Any, value: Any) -> Callable[[list[Row]], None]:
    """Set one field of row AT."""

    def plant(rows: list[Row]) -> None:
        node: Any = rows[AT]
        for part in path[:-1]:
            node = node[part]
        node[path[-1]] = value(rows, node[path[-1]]) if callable(value) else value

    return plant


def change(name: str, slot: int | None, edit: Callable[[list[Row], str], Any]) -> Callable[[list[Row]], None]:
    return put(name, value=edit) if slot is None else put(name, slot, value=edit)


def lose(*names: str) -> Callable[[list[Row]], None]:
    def plant(rows: list[Row]) -> None:
        for name in names:
            del rows[AT][name]

    return plant


def doubled(rows: list[Row]) -> None:
    rows.insert(AT, copy.deepcopy(rows[AT - 1]))


def padded(rows: list[Row]) -> None:
    rows[AT]["neg"][2:] = rows[AT]["neg"][:2]


def other_scale(rows: list[Row]) -> None:
    rows[AT] |= {"pos_scores": [9.1], "neg_scores": [3.2, 1.5, -4.0, -7.5]}


def constant(rows: list[Row]) -> None:
    rows[AT] |= {"pos_scores": [0.5], "neg_scores": [0.5] * NEGATIVES}


def worn(rows: list[Row]) -> None:
    for row in rows[AT : AT + 8]:
        row["neg"][1] = rows[AT]["neg"][1]


def twin_query(rows: list[Row]) -> None:
    words = rows[AT - 1]["query"].split()
    rows[AT]["query"] = f"{' '.join(words[1:])} {words[0]}".upper()
    rows[AT]["neg"][1] = rows[AT - 1]["pos"][0]


def same_query(rows: list[Row]) -> None:
    rows[AT]["query"] = rows[AT - 1]["query"]
    rows[AT]["neg"][1] = rows[AT - 1]["pos"][0]


def query_again(rows: list[Row]) -> None:
    rows[AT]["query"] = rows[AT - 1]["query"]


def columns_turned(rows: list[Row]) -> None:
    for i, row in enumerate(rows):
        rows[i] = {"negative": row["negative"], "anchor": row["anchor"], "positive": row["positive"]}


def one_word_less(_: Any, text: str) -> str:
    return " ".join(text.split()[:-1])


BELL, ZERO, TURN, LOST = "\x07", "\u200b", "\u202e", "\ufffd"
# (code, form, plant, where the report must place it)
PLANTED = [
    ("F02", "flag", lose("pos"), ""),
    ("F02", "triplet", put("negative", value=None), "negative 1"),
    ("F03", "flag", put("query", value=17), "query"),
    ("F03", "flag", put("neg", 1, value={"text": "no text"}), "negative 2"),
    ("F04", "flag", lose("prompt"), ""),
    ("F05", "flag", put("neg", value=[]), ""),
    ("F05", "legacy", put("negative_passages", value=[]), ""),
    ("F06", "list", lambda rows: [rows[AT][name].pop() for name in ("positive", "labels")], ""),
    ("F07", "flag", lambda rows: rows[AT].update(source="x"), ""),
    ("F07", "triplet", lambda rows: [row.update(query_id=str(i)) for i, row in enumerate(rows)], ""),
    ("F08", "flag", lose("pos_scores", "neg_scores"), ""),
    ("F08", "flag", lose("type"), ""),
    ("F09", "flag", put("type", value="nomal"), ""),
    ("F10", "flag", put("type", value="symmetric_sts"), ""),
    ("F11", "pair", put("label", value=2), "positive 1"),
    ("F11", "list", put("labels", 2, value=0.5), "positive 2"),
    ("F12", "list", put("labels", value=[1, 0]), ""),
    ("F13", "triplet", columns_turned, ""),
    ("F15", "legacy", put("negative_passages", 1, "docid", value="p3"), "negative 2"),
    ("F16", "flag", put("pos", value=[]), ""),
    ("S01", "flag", put("pos_scores", value=[0.9, 0.8]), ""),
    ("S02", "flag", put("neg_scores", value=[0.1]), ""),
    ("S03", "flag", lose("neg_scores"), ""),
    ("S04", "flag", put("neg_scores", 1, value="0.3"), "negative 2"),
    ("S05", "flag", put("neg_scores", 1, value=float("nan")), "negative 2"),
    ("S05", "flag", put("neg_scores", 1, value=float("-inf")), "negative 2"),
    ("S06", "flag", put("neg_scores", 3, value=0), ""),
    ("S07", "flag", other_scale, ""),
    ("S08", "flag", put("neg_scores", 1, value=0.99), "negative 2"),
    ("S09", "flag", constant, ""),
    ("T01", "ntuple", put("anchor", value="  \t "), "query"),
    ("T02", "flag", put("pos", 0, value=""), "positive 1"),
    ("T03", "ntuple", put("negative_2", value="\u3000"), "negative 2"),
    ("T03", "legacy", put("negative_passages", 1, "text", value="..."), "negative 2"),
    ("T04", "flag", put("neg", 1, value="Graph."), "negative 2"),
    ("T05", "flag", change("neg", 1, lambda _, t: " ".join(f"{t} {i}" for i in range(200))), "negative 2"),
    ("T06", "flag", change("neg", 1, lambda _, t: t[:20] + BELL + t[20:]), "negative 2"),
    ("T07", "ntuple", change("anchor", None, lambda _, t: t[:5] + ZERO + t[5:]), "query"),
    ("T08", "flag", change("pos", 0, lambda _, t: TURN + t), "positive 1"),
    ("T09", "list", change("positive", 2, lambda _, t: t + " na" + LOST + "ve"), "negative 2"),
    ("T10", "flag", change("neg", 1, lambda _, t: t + " naÃ¯ve itâ€™s"), "negative 2"),
    ("T11", "triplet", change("negative", None, lambda _, t: f"<p>{t}</p>"), "negative 1"),
    ("T12", "flag", change("neg", 1, lambda _, t: t + " A &amp; B"), "negative 2"),
    ("T13", "flag", change("neg", 1, lambda _, t: t + " \ud83d"), "negative 2"),
    ("T14", "flag", change("neg", 1, lambda _, t: "Erdos Renyi graph Erdos Renyi graph " + t), "negative 2"),
    ("T15", "flag", change("query", None, lambda _, t: "query: " + t), "query"),
    ("T16", "flag", put("neg", 1, value="nan"), "negative 2"),
    ("T17", "flag", change("neg", 1, lambda _, t: "As an AI language model, I say: " + t), "negative 2"),
    ("R01", "flag", put("neg", 1, value=lambda rows, _: rows[AT]["pos"][0].upper()), "negative 2"),
    ("R01", "triplet", put("negative", value=lambda rows, _: rows[AT]["positive"]), "negative 1"),
    ("R02", "flag", put("neg", 1, value=lambda rows, _: "So: " + rows[AT]["pos"][0] + " So."), "negative 2"),
    ("R03", "flag", put("neg", 1, value=lambda rows, _: rows[AT]["neg"][0]), "negative 2"),
    ("R04", "ntuple", put("negative_2", value=lambda rows, _: rows[AT]["negative_1"] + " Again."), "negative 2"),
    ("R05", "flag", put("neg", 1, value=lambda rows, _: rows[AT]["query"]), "negative 2"),
    ("R06", "flag", put("pos", 0, value=lambda rows, _: rows[AT]["query"]), "positive 1"),
    ("R07", "flag", lambda rows: [rows[AT][k].append(rows[AT][k][0]) for k in ("pos", "pos_scores")], "positive 2"),
    ("R08", "flag", put("neg", 1, value=lambda rows, t: f"{t} {rows[AT]['pos'][0]} {t}"), "negative 2"),
    ("R09", "flag", put("neg", 1, value="Граф называется связным, если любые две вершины соединены."), "negative 2"),
    ("R10", "flag", padded, ""),
    ("X01", "flag", same_query, "negative 2"),
    ("X01", "pair", lambda rows: rows[36].update(positive=rows[35]["positive"]), ""),
    ("X02", "flag", twin_query, "negative 2"),
    ("X03", "ntuple", put("negative_1", value=lambda rows, _: rows[3]["positive"]), "negative 1"),
    ("X04", "flag", doubled, ""),
    ("X05", "flag", query_again, "query"),
    ("X06", "flag", worn, "negative 2"),
]
STAYS = {"X05"}  # which of the rows is right, no program can tell
NOT_AT = {"F13", "F07"}  # in every row, so the first is named


def planted(tmp_path: Path, form: str, plant: Callable[[list[Row]], Any]) -> tuple[Path, Path]:
    """A file with the defect, and its clean twin."""
    rows = FORMS[form](CLEAN[:ROWS])
    twin = write_jsonl(tmp_path / "twin.jsonl", rows)
    rows = copy.deepcopy(rows)
    plant(rows)
    return write_jsonl(tmp_path / "planted.jsonl", rows), twin


def test_there_are_more_than_thirty_kinds():
    assert len({code for code, *_ in PLANTED}) >= 30
    assert {code for code, *_ in PLANTED} <= DEFECTS.keys()


@pytest.mark.parametrize(("code", "form", "plant", "where"), PLANTED, ids=lambda v: v if isinstance(v, str) else "")
def test_a_planted_defect_is_found_in_its_place_and_fixed(tmp_path, code, form, plant, where):
    path, twin = planted(tmp_path, form, plant)
    assert codes(run(twin)) == {}
    report = run(path)
    assert code in codes(report)
    found = places(report, code)
    if code not in NOT_AT and (code, form) != ("X01", "pair"):
        assert [one for one in found if one["place"] == f"{path}:{AT + 1}"]
        assert found[0]["where"] == where
    out = tmp_path / "out.jsonl"
    counts = audit_fix.write(report, out, Settings())
    left = run(out)
    if DEFECTS[code].fix:
        assert {name for name in codes(left) if DEFECTS[name].severity != "info"} <= STAYS - {code}
        changes = jsonl(tmp_path / "out.jsonl.changes.jsonl")
        assert code in {one["code"] for one in changes}
        assert counts["changes"] == len(changes) > 0
    assert counts["rows kept"] == left.rows
    assert counts["rows kept"] + counts["rows removed"] == report.rows


# ---------------------------------------------------------------- forms and kinds of files


def test_each_form_is_told_and_clean(tmp_path):
    import datasets

    rows = CLEAN[:ROWS]
    ids, corpus = by_id(rows)
    with gzip.open(tmp_path / "flag.jsonl.gz", "wt") as handle:
        handle.writelines(json.dumps(row) + "\n" for row in flag(rows))
    with pa.output_stream(str(tmp_path / "list.jsonl.zst"), compression="zstd") as handle:
        handle.write("".join(json.dumps(row) + "\n" for row in labelled(rows)).encode())
    pq.write_table(pa.Table.from_pylist(triplet(rows)), tmp_path / "triplet.parquet")
    pa_csv(tmp_path / "pair.csv", pair(rows))
    datasets.disable_progress_bars()
    datasets.DatasetDict({"train": datasets.Dataset.from_list(ntuple(rows))}).save_to_disk(str(tmp_path / "saved"))
    write_jsonl(tmp_path / "legacy.jsonl", legacy(rows))
    write_jsonl(tmp_path / "ids.jsonl", ids)
    write_jsonl(tmp_path / "corpus.jsonl", corpus)
    beir(tmp_path / "beir", rows)
    expected = {
        "flag.jsonl.gz": ("flagembedding", ROWS),
        "list.jsonl.zst": ("st-list", ROWS),
        "triplet.parquet": ("st-triplet", ROWS),
        "pair.csv": ("st-pair", ROWS * 5),
        "saved": ("st-ntuple", ROWS),
        "legacy.jsonl": ("tevatron-legacy", ROWS),
        "ids.jsonl": ("tevatron", ROWS),
        "beir": ("beir", ROWS),
    }
    for name, (form, count) in expected.items():
        report = run(tmp_path / name, corpus=tmp_path / "corpus.jsonl" if name == "ids.jsonl" else None)
        assert [(file["form"], file["rows"]) for file in report.files] == [(form, count)], name
        assert codes(report) == {}, name


def pa_csv(path: Path, rows: list[Row]) -> None:
    import csv

    with path.open("w", newline="", encoding="utf-8") as handle:
        writer = csv.DictWriter(handle, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def spoil(rows: list[Row]) -> list[Row]:
    """Row AT holds its positive as second negative and a text with HTML as third."""
    rows = copy.deepcopy(rows)
    rows[AT]["neg"][1] = rows[AT]["pos"][0]
    rows[AT]["neg"][2] = f"<p>{rows[AT]['neg'][2]}</p>"
    return rows


@pytest.mark.parametrize("kind", ["parquet", "csv", "saved", "gz", "zst", "ids", "beir"])
def test_the_cleaned_copy_is_of_the_same_kind(tmp_path, kind):
    rows = spoil(CLEAN[:ROWS])
    corpus = None
    if kind == "parquet":
        path, out = tmp_path / "in.parquet", tmp_path / "out.parquet"
        pq.write_table(pa.Table.from_pylist(labelled(rows)), path)
    elif kind == "csv":
        path, out = tmp_path / "in.csv", tmp_path / "out.csv"
        pa_csv(path, pair(rows))
    elif kind == "saved":
        import datasets

        datasets.disable_progress_bars()
        path, out = tmp_path / "in", tmp_path / "out"
        both = {
            "train": datasets.Dataset.from_list(labelled(rows)),
            "dev": datasets.Dataset.from_list(labelled(CLEAN[24:])),
        }
        datasets.DatasetDict(both).save_to_disk(str(path))
    elif kind == "ids":
        ids, passages = by_id(rows)
        path, out = write_jsonl(tmp_path / "in.jsonl", ids), tmp_path / "out.jsonl"
        corpus = write_jsonl(tmp_path / "corpus.jsonl", passages)
    elif kind == "beir":
        path, out = beir(tmp_path / "in", rows), tmp_path / "out"
    else:
        path, out = tmp_path / f"in.jsonl.{kind}", tmp_path / f"out.jsonl.{kind}"
        with pa.output_stream(str(path), compression="gzip" if kind == "gz" else "zstd") as handle:
            handle.write("".join(json.dumps(row) + "\n" for row in flag(rows)).encode())
    report = run(path, corpus=corpus)
    copied = "X01" if kind == "csv" else "R01"  # a labeled pair has the positive in another row
    assert codes(report).keys() == {copied, "T11"}
    audit_fix.write(report, out, Settings())
    left = run(out, corpus=corpus)
    assert left.worst in (None, "info"), codes(left)
    assert [file["form"] for file in left.files] == [file["form"] for file in report.files]
    changes = jsonl(Path(f"{out}.changes.jsonl"))
    assert {one["code"] for one in changes} == {copied, "T11"} | ({"F05"} if kind == "csv" else set())
    assert report.rows - left.rows == (1 if kind == "csv" else 0)


def test_a_broken_line_is_a_finding_and_the_rest_is_read(tmp_path):
    path = write_jsonl(tmp_path / "flag.jsonl", flag(CLEAN[:ROWS]))
    lines = path.read_bytes().splitlines(keepends=True)
    lines[3], lines[5], lines[9] = b'{"query": "cut of', b"[1, 2]\n", b'{"query": "\xff\xfe"}\n'
    lines[3] += b"\n"
    path.write_bytes(b"".join(lines))
    report = run(path)
    assert codes(report) == {"F01": 3}
    assert [one["place"] for one in places(report, "F01")] == [f"{path}:{n}" for n in (4, 6, 10)]
    counts = audit_fix.write(report, tmp_path / "out.jsonl", Settings())
    assert counts == {"rows kept": ROWS - 3, "rows removed": 3, "changes": 3}
    assert codes(run(tmp_path / "out.jsonl")) == {}


def test_a_packed_file_that_is_cut_off_is_a_finding(tmp_path):
    whole = gzip.compress("".join(json.dumps(row) + "\n" for row in flag(CLEAN[:ROWS])).encode())
    path = tmp_path / "flag.jsonl.gz"
    path.write_bytes(whole[: len(whole) // 2])
    report = run(path)
    assert "F01" in codes(report)
    assert "cut off" in places(report, "F01")[-1]["value"]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("none.jsonl", None, "no such file"),
        ("a.xlsx", b"x", "unknown kind of file"),
        ("a.jsonl", b'{"foo": 1}\n', "the form cannot be told"),
        ("a.jsonl", b"\n\n", "no row in it can be read"),
        ("a.parquet", b"PAR1 no", "not a readable Parquet file"),
        ("a.jsonl.gz", b"no gzip", "cannot read"),
    ],
)
def test_a_file_that_cannot_be_opened_is_a_users_error(tmp_path, name, content, said):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=said):
        run(path)


def test_format_overrides_what_the_columns_say(tmp_path):
    path = write_jsonl(tmp_path / "x.jsonl", [{"query": row["query"]} for row in CLEAN[:ROWS]])
    report = run(path, form="flagembedding")
    assert codes(report) == {"F02": ROWS, "F05": ROWS, "F17": ROWS}
    with pytest.raises(UserError, match="no such form"):
        run(path, form="flagembeding")


# ---------------------------------------------------------------- across files, ids, evaluation sets, statistics


def test_files_are_compared_with_each_other(tmp_path):
    first, second = flag(CLEAN[:ROWS]), flag(CLEAN[ROWS : 2 * ROWS])
    for row in second:
        row |= {"pos_scores": [9.5], "neg_scores": [1.5, 0.5, -2.5, -7.5]}
        del row["prompt"]
    a, b = write_jsonl(tmp_path / "a.jsonl", first), write_jsonl(tmp_path / "b.jsonl", second)
    assert codes(run(a)) == {}
    assert codes(run(b)) == {"F17": ROWS}
    report = run(a, b)
    assert codes(report) == {"F04": ROWS, "S07": ROWS}
    assert places(report, "F04")[0]["place"] == f"{b}:1"


def test_ids_need_their_texts(tmp_path):
    ids, corpus = by_id(CLEAN[:ROWS])
    ids[AT]["negative_document_ids"][1] = "nowhere"
    corpus.append({"docid": "p3", "title": "", "text": "Another text for an id that is there."})
    path = write_jsonl(tmp_path / "ids.jsonl", ids)
    report = run(path, corpus=write_jsonl(tmp_path / "corpus.jsonl", corpus))
    assert codes(report) == {"F14": 1, "F15": 1, "F06": 1}
    assert places(report, "F14") == [{"place": f"{path}:{AT + 1}", "where": "negative 2", "value": "nowhere"}]
    assert f"corpus.jsonl:{len(corpus)}: id p3" in places(report, "F15")[0]["value"]
    with pytest.raises(UserError, match="name the file of their passages with --corpus"):
        run(path)


def test_an_evaluation_set_is_found_in_queries_and_passages(tmp_path):
    rows = flag(CLEAN[:ROWS])
    held = beir(tmp_path / "held", CLEAN[ROWS : ROWS + 4])
    (held / "qrels" / "train.tsv").rename(held / "qrels" / "test.tsv")
    path = write_jsonl(tmp_path / "flag.jsonl", rows)
    assert codes(run(path, firewall=[held])) == {}
    rows[3]["query"] = CLEAN[ROWS]["query"].upper()
    rows[4]["neg"][0] = CLEAN[ROWS + 1]["pos"][0] + " And more."
    rows[5]["pos"][0] = CLEAN[ROWS + 2]["pos"][0]
    report = run(write_jsonl(path, rows), firewall=[held])
    assert codes(report) == {"E01": 1, "E03": 1, "E04": 1}
    found = [places(report, code)[0] for code in ("E01", "E03", "E04")]
    assert [(one["place"], one["where"]) for one in found] == [
        (f"{path}:4", "query"),
        (f"{path}:6", "positive 1"),
        (f"{path}:5", "negative 1"),
    ]
    audit_fix.write(report, tmp_path / "out.jsonl", Settings())
    assert run(tmp_path / "out.jsonl", firewall=[held]).worst in (None, "info")


def test_style_and_length_are_told_of_a_whole_set(tmp_path):
    rows = flag(CLEAN)
    report = run(write_jsonl(tmp_path / "clean.jsonl", rows))
    for row in rows:
        row["neg"] = [f"{text} It is worth noting that this depends on many different factors." for text in row["neg"]]
    marked = run(write_jsonl(tmp_path / "marked.jsonl", rows))
    assert report.measured["style"]["rows"] == marked.measured["style"]["rows"] == 2 * len(rows)
    assert marked.measured["style"]["auc"] > 0.9
    assert "D02" in codes(marked)
    for row in rows:
        row["neg"] = [text[:70] for text in row["neg"]]
    assert "D01" in codes(run(write_jsonl(tmp_path / "short.jsonl", rows)))


def test_fewer_negatives_than_the_trainer_takes_are_a_warning_where_it_is_known(tmp_path):
    path = write_jsonl(tmp_path / "flag.jsonl", flag(CLEAN[:ROWS]))
    assert codes(run(path, settings=Settings(negatives=NEGATIVES))) == {}
    assert codes(run(path, settings=Settings(negatives=NEGATIVES + 1))) == {"F18": ROWS}


def test_a_row_without_a_negative_left_is_removed_and_listed_never_padded(tmp_path):
    rows = flag(CLEAN[:ROWS])
    rows[AT]["neg"] = [rows[AT]["pos"][0]] * NEGATIVES
    report = run(write_jsonl(tmp_path / "flag.jsonl", rows))
    counts = audit_fix.write(report, tmp_path / "out.jsonl", Settings())
    kept = jsonl(tmp_path / "out.jsonl")
    assert kept == rows[:AT] + rows[AT + 1 :]
    last = jsonl(tmp_path / "out.jsonl.changes.jsonl")[-1]
    assert last["change"].startswith("row removed")
    assert last["place"].endswith(f":{AT + 1}")
    assert counts["rows removed"] == 1


def test_a_clean_file_is_copied_as_it_is(tmp_path):
    rows = flag(CLEAN[:ROWS])
    audit_fix.write(run(write_jsonl(tmp_path / "in.jsonl", rows)), tmp_path / "out.jsonl", Settings())
    assert jsonl(tmp_path / "out.jsonl") == rows
    with pytest.raises(UserError, match="exists already"):
        audit_fix.write(run(tmp_path / "in.jsonl"), tmp_path / "out.jsonl", Settings())
    with pytest.raises(UserError, match="of its kind"):
        audit_fix.write(run(tmp_path / "in.jsonl"), tmp_path / "out.parquet", Settings())


# ---------------------------------------------------------------- single texts


@pytest.mark.parametrize(
    "text",
    [
        "Größe und Länge: ein Überblick über naïve Verfahren — «très bien», 25 °C.",
        "Сколько будет два плюс два? Ответ: четыре.",
        "图是由顶点和边组成的结构。",
        "می‌خواهم",
        "if a < b and c > d: return x <y>",
        "👩‍👩‍👧 family of three",
        "AT&T and R&D; a & b",
    ],
)
def test_honest_text_of_any_language_is_clean(text):
    assert text_defects(2, text) in ((), ("T04",))
    assert mend(text) == text


def test_mending_takes_out_what_it_names():
    assert mend("<b>A</b> &amp;lt;b&amp;gt; cafÃ© itâ€™s\u200b\x07 ok") == "A café it’s ok"
    assert mend("query: query: what is this") == "what is this"
    assert title_twice("Alan Turing Alan Turing was born") == "Alan Turing"
    assert title_twice("very very good") == ""
    assert [script(t) for t in ("abc", "где", "图形", "カナと漢字", "123")] == ["LATIN", "CYRILLIC", "CJK", "CJK", ""]


def test_every_form_comes_back_unchanged_from_an_empty_plan():
    for form, make in (("flagembedding", flag), ("st-ntuple", ntuple), ("st-list", labelled), ("st-pair", pair)):
        row = make(CLEAN[:1])[0]
        assert forms.detect(row) == form
        assert forms.rebuild(form, row, forms.Plan(), str) == row


# ---------------------------------------------------------------- command line


def call(*args: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "error", "-m", "miner", "audit", *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True)


def test_hostile_text_is_harmless_in_the_terminal(tmp_path):
    rows = flag(CLEAN[:ROWS])
    rows[AT]["neg"][1] = "\x1b[31mred\x1b[0m \x07\u202e [bold]markup[/bold] :smile: \x9b2J text\n\r over the line"
    rows[AT]["query"] = ""
    done = call(write_jsonl(tmp_path / "[red]x[/red].jsonl", rows))
    assert done.returncode == 1, done.stderr
    assert not [c for c in done.stdout if not c.isprintable() and c != "\n"]
    assert "[bold]" in done.stdout
    assert "[red]x[/red].jsonl: flagembedding" in done.stdout
    assert max(map(len, done.stdout.splitlines()[1:])) <= 80
    assert "T01" in done.stdout
    assert "T06" in done.stdout
    done = call(tmp_path / "[red]x[/red].jsonl", "--json")
    assert not [c for c in done.stdout if not c.isprintable() and c != "\n"]
    values = [one["value"] for found in json.loads(done.stdout)["findings"] for one in found["places"]]
    assert rows[AT]["neg"][1] in values  # nothing is lost in JSON


def test_exit_codes_for_ci(tmp_path):
    rows = flag(CLEAN[:ROWS])
    path = write_jsonl(tmp_path / "flag.jsonl", rows)
    done = call(path, "--json")
    assert (done.returncode, json.loads(done.stdout)["findings"]) == (0, [])
    rows[AT]["neg"][1] = f"<p>{rows[AT]['neg'][1]}</p>"
    write_jsonl(path, rows)
    assert call(path).returncode == 0
    assert call(path, "--fail-on", "warning").returncode == 1
    done = call(tmp_path / "none.jsonl")
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)


# ---------------------------------------------------------------- estimates


def animals(folder: Path, false: int) -> Path:
    """Eight queries; of `false` of them the second negative answers the query, in other words than the positive."""
    rows = []
    names = list(toy.ANIMALS)
    for i, (name, (_, food, _)) in enumerate(toy.ANIMALS.items()):
        others = [f"The {other} sleeps {toy.ANIMALS[other][2]} a day." for other in (names[i - 1], names[i - 2])]
        if i < false:
            others[1] = f"Favourite food of the {name}: {food}."
        rows.append(
            {"query": f"favourite food of the {name}", "pos": [f"The {name} likes to eat {food} most."], "neg": others}
        )
    return write_jsonl(folder / "animals.jsonl", flag_plain(rows))


def flag_plain(rows: list[Row]) -> list[Row]:
    return [{**row, "prompt": ""} for row in rows]


@pytest.mark.parametrize(("false", "found"), [(0, False), (6, True)])
def test_an_encoder_estimates_the_share_of_false_negatives(tmp_path, false, found):
    job = config.load(toy.job(tmp_path))
    report = run(animals(tmp_path, false), job=job)
    told = report.measured["encoder"]
    assert (told["queries"], told["negatives"]) == (8, 16)
    above = told["shares"]["above the positive"]
    assert above["share"] == false / 16
    assert above["low"] <= above["share"] <= above["high"]
    assert ("D03" in codes(report)) == found
    # The other negatives speak of sleep: no closer than another animal's food.
    assert told["shares"]["no closer than a random passage"]["share"] == 1 - false / 16
    assert "D05" in codes(report)


def test_a_judge_grades_a_sample_and_the_interval_is_exact(tmp_path, monkeypatch):
    monkeypatch.setenv("TOY_KEY", "sk-toy-secret")

    def reply(body: dict[str, Any]) -> Any:
        passage = loopback.parts(body)["PASSAGE"]
        grade = 3 if passage.startswith("Favourite food") else 0
        return 200, {}, loopback.completion(json.dumps({"evidence": passage[:20], "grade": grade}))

    with loopback.Loopback(reply) as server:
        path = toy.job(tmp_path, llm=toy.llm(server.url), judge={"enabled": True})
        options = {"job": config.load(path), "encoder_sample": 0, "judge_sample": 8}
        first = run(animals(tmp_path, 8), **options)
        asked = len(server.bodies)
        again = run(animals(tmp_path, 8), **options)
    told = first.measured["judge"]
    assert (told["asked"], told["failed"]) == (8, 0)
    assert told["share"] == told["relevant"] / 8
    assert 0 < told["relevant"] < 8  # one negative a query, drawn by its digest
    assert (told["low"], told["high"]) == pytest.approx(bounds.exact_interval(told["relevant"], 8))
    assert again.measured["judge"] == told
    assert len(server.bodies) == asked  # paid once
    with pytest.raises(UserError, match=r"judge\.enabled is false"):
        run(animals(tmp_path, 8), job=config.load(toy.job(tmp_path)), encoder_sample=0, judge_sample=8)
