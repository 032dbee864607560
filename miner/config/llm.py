"""`llm`, `judge`, `generator`: who is asked, and what answers mean."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from miner.config.base import Address, KeyName, Model


class Price(Model):
    """US dollars for a million tokens."""

    input: float = Field(ge=0, description="Prompt tokens.")
    output: float = Field(ge=0, description="Completion tokens.")
    cached_input: float | None = Field(None, ge=0, description="Prompt tokens read from a cache; null: as input.")
    batch_discount: float = Field(0.5, ge=0, lt=1, description="Taken off by the Batch API.")


class Replica(Model):
    """One server, or one key, of several that serve the same model."""

    base_url: Address = Field(None, description="null: llm.base_url.")
    api_key: KeyName = Field(None, description="Only as ${NAME}; null: llm.api_key.")
    weight: float = Field(1.0, gt=0, description="Share of the requests, beside the other replicas.")
    rpm: int | None = Field(None, ge=1, description="Requests a minute; null: llm.rpm.")
    tpm: int | None = Field(None, ge=1, description="Tokens a minute; null: llm.tpm.")


class Batch(Model):
    """backend openai-batch: the Batch API of OpenAI and of servers that copy it."""

    lines: int = Field(50_000, ge=1, le=50_000, description="Most requests of one batch.")
    bytes: int = Field(200_000_000, ge=1_000_000, le=200_000_000, description="Largest file of one batch.")
    poll_s: float = Field(60.0, gt=0, description="Seconds between two looks at the batches.")
    wait: bool = Field(True, description="false: submit and end with exit code 3; the next run collects.")


class Vllm(Model):
    """backend vllm: the model in this process, on this machine's GPUs."""

    engine: dict[str, Any] = Field({}, description="Arguments of vllm.LLM, such as tensor_parallel_size.")
    chat_template_kwargs: dict[str, Any] = Field(
        {}, description="Options of the chat template, such as enable_thinking: false."
    )
    chunk: int = Field(512, ge=1, description="Requests given to the engine at once, and committed together.")


class Endpoint(Model):
    """Where answers come from."""

    backend: Literal["openai", "openai-batch", "vllm", "recorded"] = Field(
        "openai",
        description="openai: any OpenAI-compatible server; openai-batch: the Batch API; vllm: in this process;"
        " recorded: replay `answers`.",
    )
    model: str = Field(description="Model name as the server knows it; vllm: folder or hub id.")
    base_url: Address = Field(None, description="null: OPENAI_BASE_URL, else the OpenAI API.")
    api_key: KeyName = Field(None, description="Only as ${NAME}; null: OPENAI_API_KEY.")
    replicas: tuple[Replica, ...] = Field((), description="Several servers or keys that serve the same model.")
    identity: str | None = Field(
        None, description="Name of the endpoint in request keys; null: host and path of base_url."
    )
    answers: str | None = Field(None, description="File of recorded answers (OpenAI Batch output form, .gz accepted).")
    concurrency: int = Field(
        64, ge=1, description="Most requests in flight, of each replica; how many the server takes is found out."
    )
    rpm: int | None = Field(None, ge=1, description="Requests a minute at most.")
    tpm: int | None = Field(None, ge=1, description="Tokens a minute at most, prompt and completion.")
    tokenizer: str | None = Field(
        None, description="tokenizer.json (file, folder or hub id) for exact token counts; null: they are estimated."
    )
    timeout_s: float = Field(120.0, gt=0, description="Longest wait for one answer.")
    attempts: int = Field(6, ge=1, description="Tries of one request before it is given up.")
    outage_s: float = Field(
        600.0, ge=0, description="How long a server may give no answer at all before the run is stopped."
    )
    hedge_s: float | None = Field(
        None, gt=0, description="Ask a second time where no answer came for so long, and take the first; costs double."
    )
    structured: Literal["auto", "json_schema", "json_object", "none"] = Field(
        "auto", description="How the answer's form is asked for; auto: the strongest that the server takes."
    )
    repair: bool = Field(True, description="Ask once more, with the error, where an answer breaks the schema.")
    shorten: bool = Field(
        False, description="Where a request is too long for the model, ask once with half the passage; marked."
    )
    price: Price | None = Field(None, description="null: looked up in `prices`; unknown is shown as unknown.")
    prices: str | None = Field(None, description="Price file (YAML) in place of the shipped one.")
    batch: Batch = Batch()  # type: ignore[call-arg]
    vllm: Vllm = Vllm()  # type: ignore[call-arg]

    @model_validator(mode="after")
    def _answers(self) -> Endpoint:
        if self.backend == "recorded" and self.answers is None:
            raise ValueError("backend recorded needs `answers`, the file to replay")
        return self


class Budget(Model):
    """What the whole job may spend, over all its runs. Every request is reserved before it is sent."""

    max_cost: float | None = Field(None, gt=0, description="US dollars.")
    max_tokens: int | None = Field(None, ge=1, description="Prompt and completion tokens.")
    max_requests: int | None = Field(None, ge=1, description="Requests sent, repeats included.")


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
