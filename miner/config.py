"""The job file: one frozen model, read from YAML, with a one-line error for whatever is wrong in it."""

from __future__ import annotations

import difflib
import os
import re
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from miner import yaml_file
from miner.errors import UserError
from miner.yaml_file import Trail

ENV = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")


class Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=(), allow_inf_nan=False)


class Columns(Model):
    """Which columns of a pairs file (or of a data set) hold what."""

    query: str = Field("query", description="Column of the query text.")
    positive: str = Field("positive", description="Column of the positive passage, or of a list of them.")
    negative: str | None = Field(None, description="Column of passages known as not relevant (text or list).")
    query_id: str | None = Field(None, description="Column of query ids; ids come from content hashes without.")
    doc_id: str | None = Field(None, description="Column of the positive's id; content hashes without.")
    title: str | None = Field(None, description="Column of the positive's title.")


class CorpusColumns(Model):
    """Columns of `data.corpus`."""

    doc_id: str | None = Field("_id", description="Column of the passage id; null: ids from content hashes.")
    title: str | None = Field("title", description="Column of the title; may be absent from the file.")
    text: str = Field("text", description="Column of the passage text.")


class Data(Model):
    """Where queries, passages and judgments come from."""

    path: str = Field(
        min_length=1, description="BEIR folder, JSONL/CSV/Parquet file (.gz accepted), saved data set or hub id."
    )
    format: Literal["auto", "beir", "flagembedding", "pairs", "datasets"] = Field(
        "auto", description="How to read `path`; auto decides by what lies there."
    )
    split: str = Field("train", description="qrels/<split>.tsv of a BEIR folder, or the split of a data set.")
    subset: str | None = Field(None, description="Configuration name of a hub data set.")
    revision: str | None = Field(None, description="Commit or tag of a hub data set.")
    corpus: str | None = Field(None, description="JSONL/CSV/Parquet file of further passages.")
    columns: Columns = Columns()  # type: ignore[call-arg]
    corpus_columns: CorpusColumns = CorpusColumns()  # type: ignore[call-arg]
    relevant_from: int = Field(1, description="Qrels at or above this relevance are positives.")


class Encoder(Model):
    """The model that turns texts into vectors, and how it reads them."""

    model: str = Field(
        "BAAI/bge-small-en-v1.5",
        description="Hub id, local folder, or package:NAME/FOLDER of a model inside a Python package.",
    )
    backend: Literal["auto", "onnx", "torch"] = Field(
        "auto", description="auto: onnx where an ONNX file is found, else torch."
    )
    revision: str | None = Field(None, description="Commit or tag on the hub.")
    onnx_file: str | None = Field(None, description="Local ONNX file (or package:NAME/FILE) in place of the model's.")
    tokenizer_file: str | None = Field(None, description="Local tokenizer.json (or package:NAME/FILE).")
    query_prefix: str | None = Field(None, description="Text before each query; null: the family's own.")
    passage_prefix: str | None = Field(None, description="Text before each passage; null: the family's own.")
    pooling: Literal["cls", "mean", "last"] | None = Field(None, description="null: the model's own.")
    max_length: int = Field(512, ge=8, description="Longest input in tokens; longer texts are cut.")
    batch_tokens: int = Field(1500, ge=16, description="Token budget of an onnx batch, padding counted.")
    threads: int = Field(0, ge=0, le=4096, description="Threads of ONNX Runtime; 0: one a core.")
    device: str | None = Field(None, description="torch device, for example cuda:0; null: the best there is.")
    trust_remote_code: bool = Field(False, description="Run Python code that a hub model brings along.")


class Mining(Model):
    """Which passages near a query may become its negatives."""

    depth: int = Field(
        100, ge=1, le=10_000_000, description="Passages looked at per query, known positives not counted."
    )
    rank_min: int = Field(1, ge=1, description="First rank that may enter the pool (1 is the best).")
    rank_max: int | None = Field(None, ge=1, description="Last rank that may enter the pool.")
    margin_absolute: float | None = Field(None, ge=0, le=1e6, description="Keep score <= lowest positive score - m.")
    margin_relative: float | None = Field(
        0.05, ge=0, le=1e6, description="Keep score <= s - r*abs(s), s being the lowest positive score."
    )
    score_min: float | None = Field(None, ge=-1e6, le=1e6, description="Lowest score that may enter the pool.")
    score_max: float | None = Field(None, ge=-1e6, le=1e6, description="Highest score that may enter the pool.")
    sample: Literal["top", "random"] = Field("top", description="How the pool is drawn from what is left.")
    negatives: int = Field(7, ge=1, le=10_000, description="Hard negatives wanted per query.")
    block: int = Field(1024, ge=1, description="Queries searched at once.")

    @model_validator(mode="after")
    def _window(self) -> Mining:
        if self.rank_max is not None and self.rank_max < self.rank_min:
            raise ValueError(f"rank_max {self.rank_max} is below rank_min {self.rank_min}")
        if self.rank_min > self.depth:
            raise ValueError(f"rank_min {self.rank_min} is beyond depth {self.depth}")
        if None not in (self.score_min, self.score_max) and self.score_max < self.score_min:  # type: ignore[operator]
            raise ValueError(f"score_max {self.score_max} is below score_min {self.score_min}")
        return self


class Endpoint(Model):
    """Where answers come from."""

    backend: Literal["openai", "recorded"] = Field(
        "openai", description="openai: any OpenAI-compatible server; recorded: replay `answers`."
    )
    model: str = Field(description="Model name as the server knows it.")
    base_url: str | None = Field(None, description="null: OPENAI_BASE_URL, else the OpenAI API.")
    api_key: str | None = Field(None, description="Only as ${NAME}; null: OPENAI_API_KEY.")
    identity: str | None = Field(
        None, description="Name of the endpoint in request keys; null: host and path of base_url."
    )
    answers: str | None = Field(None, description="File of recorded answers (OpenAI Batch output form, .gz accepted).")
    concurrency: int = Field(16, ge=1, description="Requests in flight.")
    timeout_s: float = Field(120.0, gt=0, description="Longest wait for one answer.")
    attempts: int = Field(6, ge=1, description="Tries of one request before it is given up for this run.")
    structured: Literal["json_schema", "json_object", "none"] = Field(
        "json_schema", description="How the answer's form is asked for."
    )

    @field_validator("api_key")
    @classmethod
    def _only_by_name(cls, value: str | None) -> str | None:
        if value is not None and not ENV.fullmatch(value):
            raise ValueError("a key stands in the job file only as ${NAME} of an environment variable")
        return value

    @field_validator("base_url")
    @classmethod
    def _address(cls, value: str | None) -> str | None:
        if value is not None and not is_address(value):
            raise ValueError("not a web address; write http(s)://host:port/v1")
        return value

    @model_validator(mode="after")
    def _answers(self) -> Endpoint:
        if self.backend == "recorded" and self.answers is None:
            raise ValueError("backend recorded needs `answers`, the file to replay")
        return self


class Judge(Model):
    """The LLM's grades, and what they mean."""

    enabled: bool = Field(True, description="false: mined negatives are exported unjudged, and marked so.")
    prompt: str = Field("graded", description="Name in prompts/judge, or the path of a prompt file.")
    pool: int | None = Field(None, ge=1, description="Candidates judged per query; null: twice mining.negatives.")
    relevant_from: int = Field(2, ge=1, le=3, description="Grades from here on are relevant.")
    irrelevant_to: int = Field(1, ge=0, le=2, description="Grades up to here are irrelevant.")
    max_chars: int = Field(4000, ge=100, description="Longest passage shown, in characters; longer ones are cut.")
    llm: Endpoint | None = Field(None, description="Endpoint of this stage alone.")

    @model_validator(mode="after")
    def _grades(self) -> Judge:
        if self.irrelevant_to >= self.relevant_from:
            raise ValueError(f"irrelevant_to {self.irrelevant_to} must be below relevant_from {self.relevant_from}")
        return self


class Generator(Model):
    """Negatives written by an LLM where mining fell short."""

    enabled: bool = Field(False, description="Write negatives where mining fell short.")
    prompt: str = Field("counterfactual", description="Name in prompts/generate, or the path of a prompt file.")
    max_share: float = Field(0.25, gt=0, le=1, description="Largest share of synthetic negatives in a query.")
    facets: tuple[str, ...] = Field(
        ("entity", "quantity", "condition", "scope", "polarity"), min_length=1, description="Facets in turn."
    )
    max_chars: int = Field(4000, ge=100, description="Longest positive shown, in characters.")
    llm: Endpoint | None = Field(None, description="Endpoint of this stage alone.")


class Export(Model):
    """The training files."""

    formats: tuple[Literal["flagembedding", "st-ntuple", "st-triplet"], ...] = Field(
        ("flagembedding", "st-ntuple", "st-triplet"), min_length=1, description="Training files to write."
    )
    min_negatives: int = Field(1, ge=1, description="Queries with fewer negatives are set aside.")
    ntuple_negatives: int | None = Field(
        None, ge=1, description="Negatives of an n-tuple row; null: mining.negatives, at most 4."
    )
    prompt: str = Field(
        "", description="FlagEmbedding's `prompt`: put before each query in training, in place of the trainer's option."
    )
    scores: bool = Field(True, description="Write the retriever's scores beside positives and negatives.")


class Job(Model):
    """A miner job. Relative paths count from the job file."""

    data: Data
    encoder: Encoder = Encoder()  # type: ignore[call-arg]
    mining: Mining = Mining()  # type: ignore[call-arg]
    llm: Endpoint | None = Field(None, description="Endpoint of the LLM stages.")
    judge: Judge = Judge()  # type: ignore[call-arg]
    generator: Generator = Generator()  # type: ignore[call-arg]
    export: Export = Export()  # type: ignore[call-arg]
    seed: int = Field(13, ge=0, lt=1 << 63, description="Seed of every random choice.")
    job: str | None = Field(
        None, description="Folder of the job; null: the job file's name with .job in place of .yaml."
    )
    vector_cache: str | None = Field(None, description="Folder of vectors shared by jobs; null: inside the job.")
    prompts: str | None = Field(None, description="Folder searched for prompts before the shipped ones.")

    @model_validator(mode="after")
    def _contradictions(self) -> Job:
        for name, stage in (("judge", self.judge), ("generator", self.generator)):
            if stage.enabled and stage.llm is None and self.llm is None:
                raise ValueError(f"llm.model is not set: name a model, or set {name}.enabled: false")
        if self.generator.enabled and not self.judge.enabled:
            raise ValueError("generator.enabled needs judge.enabled: nothing generated is kept unjudged")
        if self.judge.pool is not None and self.judge.pool < self.mining.negatives:
            raise ValueError(f"judge.pool {self.judge.pool} is below mining.negatives {self.mining.negatives}")
        for name in ("min_negatives", "ntuple_negatives"):
            if (getattr(self.export, name) or 0) > self.mining.negatives:
                raise ValueError(
                    f"export.{name} {getattr(self.export, name)} is above mining.negatives {self.mining.negatives}:"
                    " no query could have so many"
                )
        return self

    @property
    def pool_size(self) -> int:
        """Candidates per query that reach the judge, or the export where the judge is off."""
        if not self.judge.enabled:
            return self.mining.negatives
        return self.judge.pool or 2 * self.mining.negatives


def load(path: Path, overrides: list[str] | None = None) -> Job:
    """Read a job file. Paths inside come back absolute.

    overrides: `key.sub=value` items, the value read as YAML. Raises UserError.
    """
    raw, lines = yaml_file.read(path)
    given = dict(_override(raw, item) for item in overrides or [])
    places = {trail: f"{path}:{line}" for trail, line in lines.items()} | given
    _refuse_env(raw, str(path), places)
    try:
        job = Job.model_validate(raw)
    except ValidationError as error:
        raise UserError(_explain(error, str(path), places)) from None
    return _absolute(job, path)


def _override(raw: dict[str, Any], item: str) -> tuple[Trail, str]:
    """Put `key.sub=value` in; the key's path, and what to call the place. Never shows the value: it may be a key."""
    dotted, equals, value = item.partition("=")
    place = f"--set {re.match(r'[^=: ]*', item).group()}"  # type: ignore[union-attr]
    *parents, last = dotted.strip().split(".")
    if not equals or not all([*parents, last]):
        raise UserError(f"{place}: write key=value, for example mining.depth=200")
    node = raw
    for key in parents:
        if node.get(key) is None:
            node[key] = {}
        node = node[key]
        if not isinstance(node, dict):
            raise UserError(f"{place}: {key} is a value, not a section; name the key alone")
    try:
        node[last] = yaml.safe_load(value)
    except (yaml.YAMLError, ValueError):
        node[last] = value
    return (*parents, last), place


def _refuse_env(node: Any, file: str, places: dict[Trail, str], trail: Trail = ()) -> None:
    if isinstance(node, dict | list):
        for key, value in node.items() if isinstance(node, dict) else enumerate(node):
            _refuse_env(value, file, places, (*trail, str(key)))
    elif isinstance(node, str) and ENV.search(node) and trail[-1] != "api_key":
        raise UserError(
            f"{_place(trail, file, places)}: {'.'.join(trail)}: ${{NAME}} is for secrets (api_key) only;"
            " write the value"
        )


def _place(trail: Trail, file: str, places: dict[Trail, str]) -> str:
    """Where the key, or the nearest section around it, was written: a line of the file, or an option."""
    return next((places[trail[:n]] for n in range(len(trail), 0, -1) if trail[:n] in places), file)


def _explain(error: ValidationError, file: str, places: dict[Trail, str]) -> str:
    first = min(error.errors(), key=lambda e: e["type"] != "extra_forbidden")  # a slip may be why another key lacks
    trail = tuple(str(part) for part in first["loc"])
    place = _place(trail, file, places)
    if first["type"] == "extra_forbidden":
        known = _known_keys(trail[:-1])
        close = difflib.get_close_matches(trail[-1], known, n=1)
        hint = f"did you mean {close[0]}?" if close else f"the keys here are {', '.join(known)}"
        return f"{place}: unknown key {'.'.join(trail)}; {hint}"
    if first["type"] == "model_type":
        return f"{place}: {'.'.join(trail)}: a section, so keys with values go here, and not a value alone"
    message = first["msg"].removeprefix("Value error, ")
    value = first.get("input")
    given = f" (given: {value!r})" if isinstance(value, str | int | float | bool) and trail[-1:] != ("api_key",) else ""
    more = error.error_count() - 1
    return f"{place}: {'.'.join(trail) or 'job'}: {message}{given}" + (f" (and {more} more)" if more else "")


def _known_keys(trail: Trail) -> list[str]:
    model: type[BaseModel] = Job
    for part in trail:
        annotation = model.model_fields[part].annotation
        options = getattr(annotation, "__args__", (annotation,))
        model = next((o for o in options if isinstance(o, type) and issubclass(o, BaseModel)), Job)
    return sorted(model.model_fields)


def _absolute(job: Job, file: Path) -> Job:
    """Resolve relative paths against the job file's folder; `package:` and hub ids stay as they are."""
    base = file.resolve().parent

    def local(value: str | None, must_exist: bool = True) -> str | None:
        if value is None or value.startswith("package:"):
            return value
        try:
            path = base / Path(value).expanduser()
        except RuntimeError:
            raise UserError(f"{file}: {value}: no such user's home; write the whole path") from None
        if path.exists() or not must_exist:
            return str(path)
        if Path(value).exists():
            raise UserError(f"{file}: {value} is in the working directory, but paths count from the job file: {path}")
        return value

    def stage(name: str) -> Model:
        """A prompt by name stays a name; one by file is looked for beside the job file first."""
        section: Judge | Generator = getattr(job, name)
        prompt = local(section.prompt) if section.prompt.endswith(".md") else section.prompt
        return section.model_copy(update={"prompt": prompt, "llm": endpoint(section.llm)})

    def endpoint(llm: Endpoint | None) -> Endpoint | None:
        return llm and llm.model_copy(update={"answers": local(llm.answers, must_exist=False)})

    encoder = {name: local(getattr(job.encoder, name)) for name in ("model", "onnx_file", "tokenizer_file")}
    data = {"path": local(job.data.path), "corpus": local(job.data.corpus, must_exist=False)}
    own = local(job.prompts, must_exist=False)
    if own is not None and not Path(own).is_dir():
        raise UserError(f"{file}: prompts: {own}: no such folder; make it, or leave the key out")
    return job.model_copy(
        update={
            "data": job.data.model_copy(update=data),
            "encoder": job.encoder.model_copy(update=encoder),
            "llm": endpoint(job.llm),
            "judge": stage("judge"),
            "generator": stage("generator"),
            "job": local(job.job, must_exist=False) or str(base / f"{file.stem}.job"),
            "vector_cache": local(job.vector_cache, must_exist=False),
            "prompts": own,
        }
    )


def secret(reference: str | None, fallback: str) -> str | None:
    """The value of `${NAME}`, or of the environment variable `fallback` where no reference is given."""
    name = ENV.fullmatch(reference).group(1) if reference else fallback  # type: ignore[union-attr]
    value = os.environ.get(name)
    if reference and not value:
        raise UserError(f"environment variable {name} is not set (api_key: {reference}); export it")
    return value


def is_address(value: str) -> bool:
    """Is this the http(s) address of a server?"""
    try:
        url = urlsplit(value)
        return url.scheme in ("http", "https") and bool(url.hostname) and url.port != 0
    except ValueError:
        return False
