"""Whatever a user can get wrong ends in one line that names the place, the value and the remedy; never a traceback.

Each case breaks one thing in a toy job. Its last text is the message to expect: pieces in order, split at " … ".
"""

from __future__ import annotations

from pathlib import Path

import pytest
import toy
from breaking import (
    JUDGED,
    both,
    case,
    check,
    corpus,
    job_file,
    message_fits,
    nothing,
    packed,
    pairs,
    prompt,
    qrels,
    queries,
    remove,
    settings,
    write,
)

from miner import config, encoders, readers
from miner.errors import UserError
from miner.stages import corpus as stage

SCHEMA = "schema: {properties: {evidence: {type: string}, grade: {type: integer}}}"
FRONT = f"name: own\ntask: judge\ninputs: [query, passage]\n{SCHEMA}"
USER = "{{ query }} {{ passage }}"
LINES = "".join(f'{{"query": "question {i}", "positive": "answer {i}"}}\n' for i in range(400)).encode()
POS = '{"query": "q1", "pos": ["a cat"]}\n'
UTF_16 = '{"_id": "x", "text": "a"}\n'
UNUSED = {"onnx_file": None, "tokenizer_file": None}

BEIR = [
    case("doc_id twice", corpus('{"_id": "cat-food", "text": "x"}\n'), "corpus.jsonl:26: … 'cat-food' … make the ids"),
    case(
        "query_id twice", queries('{"_id": "q-cat-food", "text": "x"}\n'), "ies.jsonl:17: … 'q-cat-food' … make the ids"
    ),
    case("broken JSON", corpus('{"_id": "x" "y"}\n'), 'corpus.jsonl:26: broken JSON (Expecting … one whole … "x" "y"'),
    case("truncated", corpus('{"_id": "x", "te'), 'corpus.jsonl:26: broken JSON … may be cut off: {"_id": "x", "te'),
    case("Latin-1 JSONL", corpus(b'{"_id": "caf\xe9"}\n'), "corpus.jsonl:26: not UTF-8 (byte 0xe9); convert the file"),
    case("UTF-16", write("data/corpus.jsonl", UTF_16.encode("utf-16")), "corpus.jsonl:1: not UTF-8 (byte 0xff); conv"),
    case("empty corpus", write("data/corpus.jsonl", ""), "corpus.jsonl: the file holds no rows"),
    case("no corpus", remove("data/corpus.jsonl"), "data/corpus.jsonl: a BEIR folder needs this file"),
    settings("no split", "data.split=x", "x.tsv: … data.split may be train, v.2", write("data/qrels/v.2.tsv.gz", "")),
    case("surrogate in text", corpus(r'{"_id": "x", "text": "\ud83d"}'), r"jsonl:26: … (\ud83d); repair the encoding"),
    case("id null", corpus('{"_id": null, "text": "x"}'), "corpus.jsonl:26: _id is not an id: null; write a text or a"),
    case(
        "two grades", qrels("q-cat-food\tcat-food\t0\n"), "tsv:18: … 'q-cat-food' … 'cat-food' … 1 before and 0 here; "
    ),
    case(
        "score word", qrels("q-cat-food\tcat-voice\thigh\n"), "train.tsv:18: the score 'high' is not a whole number; wr"
    ),
    case(
        "no judgment fits",
        write("data/qrels/train.tsv", "q-cat-food\tnowhere\t1\n"),
        "no query has a positive … train.tsv:1: q-cat-food nowhere (missing_passage); check that the ids",
    ),
    case(
        "no gzip",
        both(remove("data/corpus.jsonl"), write("data/corpus.jsonl.gz", "plain")),
        "corpus.jsonl.gz: broken gzip after line 0 … compress the file again",
    ),
    case(
        "failing disk",
        both(remove("data/corpus.jsonl"), lambda f: (f / "data/corpus.jsonl").symlink_to("/proc/self/mem")),
        "corpus.jsonl: cannot read (Input/output error); check the file",
    ),
]

OTHER_DATA = [
    pairs("gzip spoiled", "p.jsonl.gz", packed(LINES, spoil=400), "p.jsonl.gz: broken gzip after line … compress the"),
    pairs("no Parquet", "p.parquet", "PAR1 and more", "p.parquet: not a readable Parquet file ( … ); write it again"),
    pairs("kind of file", "p.xlsx", "PK", "p.xlsx: unknown kind of file; use .jsonl, .csv, .tsv or .parquet"),
    pairs("no column", "p.csv", "q,positive\na,b\n", "p.csv:2: no column 'query'; the row has 'q', 'positive'; rename"),
    pairs("open quote", "p.csv", 'query,positive\na,b\nc,"d\ne,f\n', "p.csv:3: broken CSV ( … ); check the quotes"),
    pairs(
        "no negatives", "p.csv", "query,positive\na,b\n", "csv:2: … 'n' … columns.negative", columns={"negative": "n"}
    ),
    pairs("pos a text", "p.jsonl", POS + '{"query": "q", "pos": "a"}', 'p.jsonl:2: pos is a text, not a list of … "a"'),
    case(
        "folder of nothing", write("p/notes.bin", "x"), "data.path … /p, split train: cannot load (", data={"path": "p"}
    ),
    settings("no such path", "data.path=./nosuch", "data.path ./nosuch: no such file or folder"),
    settings("no such data set", "data.path=no/such", "data.path no/such, split train: cannot load ( … Hub"),
]

JOB_FILE = [
    case("no job file", remove("job.yaml"), "job.yaml: no such job file; `miner init … writes one"),
    case("folder", both(remove("job.yaml"), lambda f: (f / "job.yaml").mkdir()), "job.yaml: a folder, not a job file"),
    case(
        "below a file",
        write("file", ""),
        "file/job.yaml: cannot read (Not a directory); check",
        "mine FOLDER/file/job.yaml",
    ),
    job_file("UTF-16 job", "data: {path: data}\n".encode("utf-16"), "job.yaml:1: not UTF-8 (byte 0xff); save the job"),
    job_file("Latin-1 job", b"data: {path: data}\n# caf\xe9\n", "job.yaml:2: not UTF-8 (byte 0xe9); save the job"),
    job_file("empty job", "", "job.yaml: a job file is a mapping of keys to values; `miner init` writes one"),
    job_file("YAML syntax", "data:\n  path: [data\nmining:\n", "job.yaml:3: not valid YAML: expected ',' or ']'"),
    job_file("NUL in YAML", "data:\n  path: a\0\n", "job.yaml: not valid YAML: … special characters are not allowed"),
    job_file(
        "key twice", "seed: 1\ndata: {path: data}\nseed: 2\n", "job.yaml:3: seed stands in line 1 already; keep one"
    ),
    job_file("no data", "seed: 1\njudge: {enabled: false}\n", "job.yaml: data: Field required"),
    job_file("number as key", "data: {path: data}\n1: 2\n", "job.yaml:2: 1: "),
    job_file("unknown key", "mining:\n  depht: 5\n", "job.yaml:2: unknown key mining.depht; did you mean depth?"),
    job_file(
        "deep key", "judge:\n  llm:\n    modell: m\n", "job.yaml:3: unknown key judge.llm.modell; did you mean model?"
    ),
    job_file(
        "wrong type", "data: {path: d}\nmining:\n  depth: x\n", "job.yaml:3: mining.depth: … integer … (given: 'x')"
    ),
    job_file("section a value", "data: data\n", "job.yaml:1: data: a section, so keys with values go here"),
    job_file(
        "pooling",
        "data: {path: d}\nencoder:\n  pooling: max\n",
        "job.yaml:3: encoder.pooling: … 'cls', 'mean' or … 'max'",
    ),
    job_file("nan", "data: {path: d}\nmining:\n  score_min: .nan\n", "job.yaml:3: mining.score_min: … finite number"),
    job_file("empty path", "data: {path: ''}\n", "job.yaml:1: data.path: … at least 1 character (given: '')"),
    job_file(
        "ranks",
        "data: {path: d}\nmining: {rank_min: 5, rank_max: 2}\n",
        "yaml:2: mining: rank_max 2 is below rank_min 5",
    ),
    job_file(
        "no model", "data: {path: d}\n", "job.yaml: … llm.model is not set: name a model, or set judge.enabled: false"
    ),
    job_file(
        "variable", "data: {path: d}\nllm:\n  model: ${M}\n", "job.yaml:3: llm.model: ${NAME} is for secrets (api_key)"
    ),
    job_file(
        "address",
        "data: {path: d}\nllm: {model: m, base_url: 'host:8a'}\n",
        "yaml:2: llm.base_url: … http(s)://host:port/v1 … 'host:8a'",
    ),
    job_file(
        "no home", "data: {path: ~nosuch/x}\njudge: {enabled: false}\n", "~nosuch/x: no such user's home; write the"
    ),
    settings("no folder of prompts", "prompts=own", "prompts: … own: no such folder; make it, or leave the key out"),
    settings(
        "too large", "mining.depth=99999999999999999999", "--set mining.depth: … less than … 99999999999999999999)"
    ),
    settings("too many", "export.ntuple_negatives=9", "export.ntuple_negatives 9 is above mining.negatives 3"),
    settings("option without =", "mining.depth", "--set mining.depth: write key=value, for example"),
    settings("option unknown", "mining.depht=5", "--set mining.depht: unknown key mining.depht; did you mean depth?"),
    settings(
        "option below a value", "encoder.model.x=5", "--set encoder.model.x: model is a value, not a section; name"
    ),
    settings("option value", "mining.depth=deep", "--set mining.depth: mining.depth: … integer … (given: 'deep')"),
]

ENCODER = [
    settings(
        "no hub model",
        "encoder.model=no/such",
        "encoder.model no/such: not in the local hub cache … check the",
        encoder=UNUSED,
    ),
    settings(
        "no hub id", "encoder.model=a:b/c", "encoder.model a:b/c: no such folder, and not a hub id (", encoder=UNUSED
    ),
    settings("not ONNX", "encoder.onnx_file=x", "x: ONNX Runtime cannot load this file (", write("x", "no model")),
    settings("broken tokenizer", "encoder.tokenizer_file=x", "x: not a tokenizer.json (", write("x", "{")),
    settings(
        "configuration",
        "encoder.model=m",
        "m/config.json: broken JSON (",
        both(write("m/config.json", "{"), write("m/1_Pooling/config.json", '{"pooling_mode_cls_token": true}')),
    ),
]

PROMPTS = [
    settings("no prompt", "judge.prompt=nosuch", "prompt 'nosuch' (judge): no such file in … prompts/judge", **JUDGED),
    prompt("front matter", f"{FRONT}\ntemprature: 1", USER, "own.md: … temprature: Extra inputs are not permitted"),
    prompt("undeclared", FRONT, USER + "{{ positive }}", "own.md: declared inputs and used variables differ: positive"),
    prompt(
        "unknown input",
        FRONT.replace("query", "answer"),
        "{{ answer }} {{ passage }}",
        "own.md: unknown input answer; a judge prompt gets query, positive",
    ),
    prompt("template", FRONT, "{{ query }} {{ passage ", "own.md: not valid Jinja2"),
    prompt("no grade", FRONT.replace("grade", "level"), USER, "own.md: … needs the property grade of type integer"),
    settings(
        "no parts", "judge.prompt=x.md", "x.md: a prompt is front matter, then", write("x.md", "Judge this."), **JUDGED
    ),
    settings(
        "Latin-1 prompt", "judge.prompt=x.md", "x.md: not UTF-8", write("x.md", b"---\nname: caf\xe9\n---\n"), **JUDGED
    ),
]

COMMANDS = [
    case(
        "no such stage", nothing, "stage nonsense is no stage; the stages are mine, judge", "run JOB --until nonsense"
    ),
    case("stage off", nothing, "stage judge is switched off in the job file", "judge JOB"),
    case(
        "inspect too early", nothing, "job.job: nothing is mined yet; run `miner mine` first", "inspect JOB q-cat-food"
    ),
    case("status", nothing, "--set x: unknown key x; the keys here are budget, data, encoder", "status JOB --set x=1"),
    case("init over a file", nothing, "job.yaml: exists already; name another file, or --force", "init JOB"),
    case("init below a file", nothing, "job.yaml/x: cannot write, no folder there (", "init JOB/x"),
    case(
        "answers of nothing", nothing, "miner answers: name either a file to take in, or --export FILE", "answers JOB"
    ),
    case("answers from nowhere", nothing, "nosuch.jsonl: no such file", "answers JOB nosuch.jsonl", **JUDGED),
    case("answers to a file's inside", nothing, "job.yaml/x: cannot write", "answers JOB --export JOB/x"),
    case("no such option", nothing, "No such option … --untill … see miner run --help", "run JOB --untill mine"),
    case("no such command", nothing, "No such command 'xyz'; see miner --help", "xyz JOB"),
    case("no argument", nothing, "Missing argument 'JOB.yaml'; see miner mine --help", "mine"),
    case(
        "job folder a file", write("job.job", ""), "job.job: cannot make the job folder (File exists); set `job` to a"
    ),
    settings(
        "job below a file", "job=job.yaml/x", "job.yaml/x: cannot make the job folder (Not a directory); set `job`"
    ),
    settings("job in the data", "job=data", "data: not a job's folder, but it holds corpus.jsonl; set `job` to a new"),
    settings("cache a file", "vector_cache=job.yaml", "job.yaml/ … cannot write, no folder there ("),
    case("work a file", write("job.job/.work", ""), "job.job/.work … Not a directory; check the path"),
    case(
        "stamp garbage",
        write("job.job/stamps/corpus.json", "x"),
        "corpus.json: not a stamp … delete the file to redo corpus",
    ),
    case(
        "stamp of another kind",
        write("job.job/stamps/corpus.json", '{"step": "", "inputs": 1, "outputs": 2, "counts": 3, "complete": 4}'),
        "corpus.json: not a stamp … delete the file to redo corpus",
    ),
    case(
        "ledger garbage",
        write("job.job/ledger.sqlite", "x" * 700),
        "ledger.sqlite: cannot open the ledger ( … restore it",
    ),
]

# Neighbours of the cases above, without a process of their own.
VARIANTS = [
    case("JSON array", corpus('["x", "text"]\n'), 'corpus.jsonl:26: a list … must be one JSON object: ["x", "text"]'),
    case("5000 digits", corpus(f'{{"_id": 1{"0" * 5000}}}\n'), "corpus.jsonl:26: broken JSON (Exceeds … one whole"),
    case("nested too deep", corpus("[" * 100_000 + "\n"), "corpus.jsonl:26: broken JSON (nested too deep)"),
    case("Latin-1 qrels", qrels(b"caf\xe9\tcat-food\t1\n"), "train.tsv:18: not UTF-8 (byte 0xe9); convert the file"),
    case("no queries", remove("data/queries.jsonl"), "data/queries.jsonl: a BEIR folder needs this file"),
    case("surrogate in id", queries(r'{"_id": "\udc00", "text": "x"}'), r"jsonl:17: … (\udc00); repair the encoding"),
    case("no id", queries('{"id": "x", "text": "x"}'), "s.jsonl:17: no column '_id'; the row has 'id', 'text'; rename"),
    case("text number", corpus('{"_id": "x", "text": 5}'), "corpus.jsonl:26: text is a number, not a text: 5"),
    case(
        "score half", qrels("q-cat-food\tcat-voice\t0.5\n"), "train.tsv:18: the score '0.5' is not a whole number; wr"
    ),
    case(
        "header only",
        write("data/qrels/train.tsv", "query-id\tcorpus-id\tscore\n"),
        "train.tsv: the file holds no judg",
    ),
    case(
        "spaces", qrels("q-cat-food cat-voice 1\n"), "tsv:18: 1 tab-separated fields, not query-id, … food cat-voice 1"
    ),
    pairs("long row", "p.csv", "query,positive\na,b\nc,d,e\n", "p.csv:3: 3 fields, but the header has 2; quote fields"),
    pairs("header alone", "p.csv", "query,positive\n", "p.csv: the file holds no rows"),
    pairs("column twice", "p.csv", "query,query\na,b\n", "p.csv:1: the header names 'query' twice; rename one"),
    pairs(
        "null in pos", "p.jsonl", POS + '{"query": "q", "pos": [null]}', "p.jsonl:2: pos holds null, not a text: null"
    ),
    pairs("no pos", "p.jsonl", POS + '{"query": "q"}', "p.jsonl:2: pos is null, not a list of texts"),
    pairs("whole JSON", "p.json", f"[\n{POS}]\n", "p.json:1: broken JSON … every line must be one whole JSON object"),
    pairs("Latin-1 CSV", "p.csv", b"query,positive\na,caf\xe9\n", "p.csv:2: not UTF-8 (byte 0xe9); convert the file"),
    pairs(
        "gzip cut off", "p.jsonl.gz", packed(LINES, cut=40), "p.jsonl.gz: broken gzip after line … compress the file"
    ),
    pairs("no corpus file", "p.jsonl", POS, "more.jsonl: no such file", corpus="more.jsonl"),
    settings("folder as a file", "data.format=pairs", "data: a folder, not a file"),
    settings("no folder", "encoder.model=./no", "encoder.model ./no: no such folder, and not a hub id", encoder=UNUSED),
    settings(
        "no package", "encoder.onnx_file=package:nosuch/x", "package:nosuch/x: the Python package 'nosuch' is not ins"
    ),
    settings("no tokenizer", "encoder.tokenizer_file=no.json", "encoder.tokenizer_file no.json: no such file"),
    settings(
        "no family",
        "encoder.model=m",
        "unknown family and no pooling … set encoder.pooling",
        lambda f: (f / "m").mkdir(),
    ),
    pairs(
        "all empty",
        "p.jsonl",
        '{"query": "q", "pos": []}',
        "no passage has a text; check data.path and the column names",
    ),
    settings(
        "no grade fits", "data.relevant_from=3", "no query has a positive (qrels at or above relevance 3: 0 of 16)"
    ),
    case("id float", corpus('{"_id": 1.5, "text": "x"}'), "corpus.jsonl:26: _id is not an id: 1.5; write a text"),
    case("id list", corpus('{"_id": ["x"], "text": "x"}'), 'corpus.jsonl:26: _id is not an id: ["x"]; write a text'),
    case("id bool", queries('{"_id": true, "text": "x"}'), "queries.jsonl:17: _id is not an id: true; write a text"),
    case("id empty", corpus('{"_id": "", "text": "x"}'), 'corpus.jsonl:26: _id is not an id: ""; write a text'),
    case("score nan", qrels("q-cat-food\tcat-voice\tnan\n"), "train.tsv:18: the score 'nan' is not a whole number"),
    case("score inf", qrels("q-cat-food\tcat-voice\tinf\n"), "train.tsv:18: the score 'inf' is not a whole number"),
    case("score large", qrels("q-cat-food\tcat-voice\t3000000000\n"), "train.tsv:18: the score '3000000000' is not a"),
    case("JSON number", corpus("12\n"), "corpus.jsonl:26: a number; every line must be one JSON object: 12"),
    case("UTF-16-LE", write("data/corpus.jsonl", UTF_16.encode("utf-16-le")), "corpus.jsonl:1: broken JSON"),
    case(
        "surrogate beside", corpus(r'{"_id": "x", "text": "x", "url": "\udfff"}'), r"jsonl:26: … (\udfff); repair the"
    ),
    pairs("short row", "p.tsv", "query\tpositive\na\n", "p.tsv:2: 1 fields, but the header has 2"),
    job_file("list as job", "- data\n", "job.yaml: a job file is a mapping of keys to values; `miner init` writes one"),
    job_file("no such day", "data: {path: data}\nseed: 2024-13-45\n", "job.yaml: … month … put it in quotes"),
    job_file("alias in itself", "data: &a {path: *a}\n", "job.yaml"),
    job_file("in a list", "generator:\n  facets: ['${X}']\n", "job.yaml:2: generator.facets.0: ${NAME} is for secrets"),
    settings("option without key", "mining..depth=5", "--set mining..depth: write key=value"),
    settings("package unnamed", "encoder.model='package:'", "package:: the Python package '' is not installed"),
    settings(
        "no inner package", "encoder.model=package:no.such/x", "package:no.such/x: the Python package 'no.such' is not"
    ),
    pairs("empty Parquet", "p.parquet", "", "p.parquet: not a readable Parquet file ( … ); write it again"),
    case("title list", corpus('{"_id": "x", "title": ["t"]}'), 'corpus.jsonl:26: title is a list, not a text: ["t"]'),
    settings("no ONNX file", "encoder.onnx_file=no.onnx", "encoder.onnx_file no.onnx: no such file"),
    case("blank lines", write("data/queries.jsonl", "\n \n\r\n"), "queries.jsonl: the file holds no rows"),
    job_file(
        "key far off", "mining: {zzz: 1}\n", "job.yaml:1: unknown key mining.zzz; the keys here are bands, block, de"
    ),
]


@pytest.mark.parametrize(
    ("damage", "says", "does", "job"), [*BEIR, *OTHER_DATA, *JOB_FILE, *ENCODER, *PROMPTS, *COMMANDS]
)
def test_one_line_says_what_is_wrong(damage, says, does, job, tmp_path, miner):
    toy.job(tmp_path, **job)
    damage(tmp_path)
    check(miner, tmp_path, does, says)


def read(path: Path, overrides: list[str]) -> None:
    job = config.load(path, overrides)
    encoders.fingerprint(job.encoder)
    stage.run(readers.get(readers.detect(job.data))(job.data), job.data.relevant_from)


@pytest.mark.parametrize(("damage", "says", "does", "job"), VARIANTS)
def test_its_neighbours_are_told_too(damage, says, does, job, tmp_path):
    toy.job(tmp_path, **job)
    damage(tmp_path)
    overrides = [word for word in does.split()[2:] if word != "--set"]
    with pytest.raises(UserError) as error:
        read(tmp_path / "job.yaml", overrides)
    message_fits(str(error.value), says)
