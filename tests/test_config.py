"""The job file: its defaults, its errors, its schema, and the template that `miner init` writes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from pydantic import BaseModel

from miner import config, template
from miner.config import Job
from miner.errors import UserError

SMALLEST = "data: {path: data}\nllm: {model: m}\n"
ENDPOINT = {
    "backend": "openai",
    "concurrency": 64,
    "timeout_s": 120.0,
    "attempts": 6,
    "outage_s": 600.0,
    "structured": "auto",
    "repair": True,
    "shorten": False,
    "replicas": [],
    "batch": {"lines": 50_000, "bytes": 200_000_000, "poll_s": 60.0, "wait": True},
    "vllm": {"engine": {}, "chat_template_kwargs": {}, "chunk": 512},
} | dict.fromkeys(
    ["base_url", "api_key", "identity", "answers", "rpm", "tpm", "tokenizer", "hedge_s", "price", "prices"], None
)
RETRIEVER = ("name", "depth", "rank_min", "rank_max", "quota", "file", "language")
DEFAULTS = {
    "data": {
        "format": "auto",
        "split": "train",
        "subset": None,
        "revision": None,
        "corpus": None,
        "columns": {"query": "query", "positive": "positive"}
        | dict.fromkeys(["negative", "query_id", "doc_id", "title"], None),
        "corpus_columns": {"doc_id": "_id", "title": "title", "text": "text"},
        "relevant_from": 1,
        "firewall": [],
    },
    "encoder": {"model": "BAAI/bge-small-en-v1.5", "backend": "auto", "max_length": 512, "batch_tokens": 1500}
    | {"threads": 0, "trust_remote_code": False, "revision": None, "onnx_file": None, "tokenizer_file": None}
    | {"query_prefix": None, "passage_prefix": None, "pooling": None, "device": None, "precision": "fp32"}
    | dict.fromkeys(["query_suffix", "instruction", "dimensions", "base_url", "api_key", "identity", "max_chars"], None)
    | {"batch_size": 64, "request_tokens": 32_000, "concurrency": 8, "timeout_s": 60.0, "attempts": 6}
    | {"passages_file": None, "queries_file": None},
    "mining": {"depth": 100, "rank_min": 1, "rank_max": None, "margin_absolute": None, "margin_relative": 0.05}
    | {"score_min": None, "score_max": None, "sample": "top", "negatives": 7, "block": 512, "margin_on": "rocchio"}
    | {"fusion": "rrf", "rrf_k": 60, "temperature": 0.05, "bands": 3, "mmr_lambda": 0.7, "max_uses": None}
    | {"retrievers": [{"kind": "dense", "weight": 1.0} | dict.fromkeys(RETRIEVER, None)]}
    | {"index": {"kind": "auto", "memory_gb": None, "recall_target": 0.95, "sample": 200, "refine": 4, "gpu": True}},
    "teacher": None,
    "filters": dict.fromkeys(
        ["near_duplicate_jaccard", "near_duplicate_cosine", "answers", "twin_queries", "group"], None
    ),
    "llm": ENDPOINT,
    "budget": dict.fromkeys(["max_cost", "max_tokens", "max_requests"], None),
    "engine": {"kind": "local", "address": "auto", "workers": None, "cpus": 1.0, "gpus": 0.0, "shards": None},
    "judge": {"enabled": True, "prompt": "graded", "pool": None, "relevant_from": 2, "irrelevant_to": 1, "llm": None}
    | {"max_chars": 4000, "relevant_p": 0.5, "irrelevant_p": 0.5, "reference": True, "evidence": "require", "pack": 8}
    | {"orders": 1, "rungs": [], "false_negatives": "drop", "max_false_negatives": None, "uncalibrated": False}
    | {"canaries": {"rate": 0.0, "golden": None, "min": 20, "window": 100, "halt_recall": 0.7}},
    "generator": {"enabled": False, "prompt": "counterfactual", "max_share": 0.25, "max_chars": 4000, "llm": None}
    | {"facets": ["entity", "quantity", "condition", "scope", "polarity"], "strategies": [], "samples": 1}
    | {
        "checks": {"talk": True, "language": True, "length": 2.0, "facet": True, "too_easy": 0.05, "template": 0.1}
        | {"near_duplicate_jaccard": 0.8, "near_duplicate_cosine": None},
        "style_refuse": 0.75,
    },
    "export": {"formats": ["flagembedding", "st-ntuple", "st-triplet"], "min_negatives": 1, "positives": "together"}
    | {"prompt": "", "scores": True, "score_of": "retriever", "score_scale": "raw", "compression": "none"}
    | dict.fromkeys(
        ["max_negatives", "ntuple_negatives", "rows_per_shard", "name", "license", "license_note", "copy_to"], None
    )
    | {"dev_share": 0.0, "language": []},
    "seed": 13,
    "previous": None,
    "vector_cache": None,
    "prompts": None,
}


def load(folder: Path, text: str = SMALLEST, *overrides: str) -> Job:
    (folder / "data").mkdir(exist_ok=True)
    (folder / "job.yaml").write_text(text, encoding="utf-8")
    return config.load(folder / "job.yaml", list(overrides))


def refusal(folder: Path, text: str, *overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        load(folder, text, *overrides)
    return str(caught.value).removeprefix(str(folder))


# ---------------------------------------------------------------- defaults


def test_data_and_model_are_enough_and_the_rest_has_these_defaults(tmp_path):
    found = load(tmp_path).model_dump(mode="json")
    assert found.pop("job") == str(tmp_path / "job.job")
    assert found["data"].pop("path") == str(tmp_path / "data")
    assert found["llm"].pop("model") == "m"
    assert found == DEFAULTS


@pytest.mark.parametrize(
    ("text", "told"), [("llm: {model: m}", "data: Field required"), ("data: {path: x}", "llm.model is not set")]
)
def test_less_is_not_enough(tmp_path, text, told):
    assert told in refusal(tmp_path, text)


def test_without_llm_stages_no_model_is_needed(tmp_path):
    assert load(tmp_path, "data: {path: data}\njudge: {enabled: false}\n").pool_size == 7


def test_the_pool_is_twice_the_negatives_where_a_judge_takes_some_away(tmp_path):
    assert load(tmp_path).pool_size == 2 * 7
    assert load(tmp_path, SMALLEST, "judge.pool=30").pool_size == 30
    assert load(tmp_path, SMALLEST, "judge.enabled=false", "judge.pool=30").pool_size == 7


def test_a_job_cannot_be_changed_after_loading(tmp_path):
    with pytest.raises(ValueError, match="frozen"):
        load(tmp_path).seed = 1


# ---------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ("sed: 1", ":3: unknown key sed; did you mean seed?"),
        ("mining:\n  depth: 5\n  negative: 2", ":5: unknown key mining.negative; did you mean negatives?"),
        ("judge:\n  llm:\n    modle: x", ":5: unknown key judge.llm.modle; did you mean model?"),
        ("mining: {rank_min: 9, rank_max: 3}", ":3: mining: rank_max 3 is below rank_min 9"),
        ("mining: {rank_min: 101}", ":3: mining: rank_min 101 is beyond depth 100"),
        ("mining: {score_min: 0.5, score_max: 0.25}", ":3: mining: score_max 0.25 is below score_min 0.5"),
        ("mining: {depth: many}", ":3: mining.depth: Input should be a valid integer"),
        ("judge: {irrelevant_to: 2}", ":3: judge: irrelevant_to 2 must be below relevant_from 2"),
        ("judge: {pool: 3}", "judge.pool 3 is below mining.negatives 7"),
        ("judge: {enabled: false}\ngenerator: {enabled: true}", "generator.enabled needs judge.enabled"),
        (
            "export: {formats: [csv]}",
            ":3: export.formats.0: Input should be 'flagembedding', 'flagembedding-reranker',",
        ),
    ],
)
def test_a_wrong_value_is_told_with_its_line(tmp_path, more, told):
    assert told in refusal(tmp_path, SMALLEST + more)


def test_a_key_is_never_written_into_a_job_file_nor_shown(tmp_path):
    told = refusal(tmp_path, "data: {path: data}\nllm:\n  model: m\n  api_key: sk-secret\n")
    assert "only as ${NAME}" in told
    assert "sk-secret" not in told


# ---------------------------------------------------------------- --set


@pytest.mark.parametrize(
    ("override", "trail", "expected"),
    [
        ("seed=7", "seed", 7),
        ("mining.depth=20", "mining.depth", 20),
        ("mining.margin_relative=null", "mining.margin_relative", None),
        ("mining.margin_relative=", "mining.margin_relative", None),
        ("mining.margin_absolute=1e-1", "mining.margin_absolute", 0.1),
        ("llm.model=a=b:c", "llm.model", "a=b:c"),
        ("judge.llm.model=other", "judge.llm.model", "other"),
        ("judge.enabled=false", "judge.enabled", False),
        ("export.formats=[st-triplet]", "export.formats", ("st-triplet",)),
        ("encoder.query_prefix='query: '", "encoder.query_prefix", "query: "),
        ("encoder.passage_prefix=[x", "encoder.passage_prefix", "[x"),
        ("mining={depth: 30}", "mining.depth", 30),
    ],
)
def test_set_overrides_a_value(tmp_path, override, trail, expected):
    found = load(tmp_path, SMALLEST, override)
    for name in trail.split("."):
        found = getattr(found, name)
    assert found == expected


def test_of_two_overrides_the_last_holds(tmp_path):
    assert load(tmp_path, SMALLEST + "seed: 1", "seed=2", "seed=3").seed == 3


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("seed", "--set seed: write key=value"),
        ("=1", "write key=value"),
        ("seed.x=1", "--set seed.x: seed is a value, not a section"),
        ("mining.dept=1", "--set mining.dept: unknown key mining.dept; did you mean depth?"),
    ],
)
def test_a_wrong_override_is_told(tmp_path, override, told):
    assert told in refusal(tmp_path, SMALLEST + "seed: 1", override)


# ---------------------------------------------------------------- paths


def test_relative_paths_count_from_the_job_file(tmp_path, monkeypatch):
    folder = tmp_path / "sub"
    for name in ("data", "model", "own", "elsewhere"):
        (tmp_path / name).mkdir(parents=True)
    for name in ("m.onnx", "t.json", "p.md"):
        (tmp_path / name).touch()
    folder.mkdir()
    text = """
data: {path: ../data, corpus: ../more.jsonl}
encoder: {model: ../model, onnx_file: ../m.onnx, tokenizer_file: ../t.json}
llm: {model: m, backend: recorded, answers: ../answers.jsonl}
judge: {prompt: ../p.md, llm: {model: m, backend: recorded, answers: more.jsonl}}
job: ../x.job
vector_cache: ../cache
prompts: ../own
"""
    (folder / "job.yaml").write_text(text)
    monkeypatch.chdir(tmp_path / "elsewhere")
    job = config.load(Path("../sub/job.yaml"))
    assert (job.data.path, job.data.corpus) == (f"{folder}/../data", f"{folder}/../more.jsonl")
    assert job.encoder.model == f"{folder}/../model"
    assert (job.encoder.onnx_file, job.encoder.tokenizer_file) == (f"{folder}/../m.onnx", f"{folder}/../t.json")
    assert (job.llm.answers, job.judge.llm.answers) == (f"{folder}/../answers.jsonl", f"{folder}/more.jsonl")
    assert job.judge.prompt == f"{folder}/../p.md"
    assert (job.job, job.vector_cache, job.prompts) == (f"{folder}/../x.job", f"{folder}/../cache", f"{folder}/../own")


def test_hub_ids_packages_and_whole_paths_stay_as_they_are(tmp_path):
    text = f"data: {{path: mteb/scifact}}\nllm: {{model: m}}\nencoder: {{model: 'package:a/b'}}\njob: {tmp_path}/j\n"
    job = load(tmp_path, text)
    assert (job.data.path, job.encoder.model, job.job) == ("mteb/scifact", "package:a/b", f"{tmp_path}/j")
    assert load(tmp_path).encoder.model == "BAAI/bge-small-en-v1.5"


def test_the_working_directory_is_never_read_by_mistake(tmp_path, monkeypatch):
    (tmp_path / "here/data").mkdir(parents=True)
    (tmp_path / "job.yaml").write_text(SMALLEST)
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(UserError, match=f"data is in the working directory, but .* {tmp_path}/data"):
        config.load(tmp_path / "job.yaml")


# ---------------------------------------------------------------- schema and template


def models(model: type[BaseModel]) -> dict[str, type[BaseModel]]:
    """Every section's model by its name, Job's among them."""
    found = {model.__name__: model}
    for field in model.model_fields.values():
        for kind in (field.annotation, *getattr(field.annotation, "__args__", ())):
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                found |= models(kind)
    return found


SCHEMA = Job.model_json_schema()
KEYWORDS = {
    "pattern",
    *("type", "enum", "const", "anyOf", "items", "properties", "required", "additionalProperties", "$ref", "$defs"),
    *("title", "description", "default", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"),
    *("minLength", "minItems"),
}
TYPES = {"object", "array", "string", "integer", "number", "boolean", "null"}


# What goes through to another library: any key may stand there.
FREE = ("Engine", "Chat Template Kwargs")


def check(node: dict) -> None:
    """The rules of JSON Schema 2020-12 for the keywords that are used here."""
    assert node.keys() <= KEYWORDS
    assert {node.get("type", "null")} <= TYPES
    assert node.get("$ref", "#/$defs/Data").removeprefix("#/$defs/") in SCHEMA["$defs"]
    assert set(node.get("required", ())) <= node.get("properties", {}).keys()
    if node.get("title") not in FREE:
        assert node.get("additionalProperties", False) is False, "an unknown key is an error"
    assert "enum" not in node or node["enum"]
    for inner in (*node.get("properties", {}).values(), *node.get("$defs", {}).values(), *node.get("anyOf", ())):
        check(inner)
    if "items" in node:
        check(node["items"])


def test_the_schema_is_one_and_explains_every_key():
    check(SCHEMA)
    sections = models(Job)
    assert SCHEMA["$defs"].keys() == sections.keys() - {"Job"}
    for name, model in sections.items():
        shown = SCHEMA if name == "Job" else SCHEMA["$defs"][name]
        assert shown["properties"].keys() == model.model_fields.keys()
        for key, rule in shown["properties"].items():
            behind = SCHEMA["$defs"].get(rule.get("$ref", "").removeprefix("#/$defs/"), {})
            assert (rule.get("description") or behind.get("description", "")).strip().endswith("."), f"{name}.{key}"


def test_the_template_is_the_default_job(tmp_path):
    assert load(tmp_path, template.job_file()) == load(tmp_path, SMALLEST.replace("model: m", "model: gpt-4.1-mini"))


def test_the_template_with_every_comment_taken_away_still_is(tmp_path):
    whole = re.sub("^# ", "", template.job_file(), flags=re.MULTILINE)
    assert load(tmp_path, whole) == load(tmp_path, template.job_file())


def test_the_template_shows_every_key():
    def keys(value: object) -> object:
        return {k: keys(v) for k, v in value.items()} if isinstance(value, dict) else None

    required = {"data": {"path": "", **DEFAULTS["data"]}, "llm": {"model": "", **ENDPOINT}, "job": None}
    whole = re.sub("^# ", "", template.job_file(), flags=re.MULTILINE)
    assert keys(yaml.safe_load(whole)) == keys(DEFAULTS | required)


def test_the_template_explains_every_key():
    lines = template.job_file().splitlines()
    for number, line in enumerate(lines):
        if re.fullmatch(r"# +\w+: .+", line):
            assert re.match(r"# +# \w", lines[number - 1]), line
