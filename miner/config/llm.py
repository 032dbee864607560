"""`llm`, `judge`, `generator`: who is asked, and what answers mean."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from miner.config.base import Address, KeyName, Model


class Endpoint(Model):
    """Where answers come from."""

    backend: Literal["openai", "recorded"] = Field(
        "openai", description="openai: any OpenAI-compatible server; recorded: replay `answers`."
    )
    model: str = Field(description="Model name as the server knows it.")
    base_url: Address = Field(None, description="null: OPENAI_BASE_URL, else the OpenAI API.")
    api_key: KeyName = Field(None, description="Only as ${NAME}; null: OPENAI_API_KEY.")
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
