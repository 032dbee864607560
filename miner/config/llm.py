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
    """backend vllm: the model in this process, on this machine's GPUs; on Ray, in each of the workers."""

    engine: dict[str, Any] = Field({}, description="Arguments of vllm.LLM, such as tensor_parallel_size.")
    chat_template_kwargs: dict[str, Any] = Field(
        {}, description="Options of the chat template, such as enable_thinking: false."
    )
    chunk: int = Field(512, ge=1, description="Requests given to the engine at once, and committed together.")


class Endpoint(Model):
    """Where answers come from."""

    backend: Literal["openai", "openai-batch", "vllm", "recorded"] = Field(
        "openai",
        description="openai: any OpenAI-compatible server; openai-batch: the Batch API; vllm: in this process, or"
        " in a cluster's workers; recorded: replay `answers`.",
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
        if self.backend in ("openai-batch", "vllm"):
            for name in ("replicas", "rpm", "tpm", "hedge_s"):
                if getattr(self, name):
                    raise ValueError(f"{name} is for backend openai; backend {self.backend} does not read it")
        return self


class Budget(Model):
    """What the whole job may spend, over all its runs. Every request is reserved before it is sent."""

    max_cost: float | None = Field(None, gt=0, description="US dollars.")
    max_tokens: int | None = Field(None, ge=1, description="Prompt and completion tokens.")
    max_requests: int | None = Field(None, ge=1, description="Requests sent, repeats included.")


class Canaries(Model):
    """Pairs whose answer is known, mixed into the judging: what the judge still recognises is measured as it works."""

    rate: float = Field(0.0, ge=0, le=0.5, description="Canaries for each pair that is judged; 0: none.")
    golden: str | None = Field(
        None, description="Golden file whose relevant pairs are canaries too, beside the other positives of queries."
    )
    min: int = Field(20, ge=1, description="Fewest answered canaries on which the run is halted.")
    window: int = Field(100, ge=1, description="The last so many answered canaries count.")
    halt_recall: float = Field(
        0.7, ge=0, le=1, description="Halt where the judge surely recognises less of them (one-sided 95%); 0: never."
    )

    @model_validator(mode="after")
    def _window(self) -> Canaries:
        if self.window < self.min:
            raise ValueError(f"window {self.window} is below min {self.min}: the run could never be halted")
        return self


class Rung(Model):
    """A cheaper judge that is asked before judge.prompt, and settles what it is sure of. null: as in `judge`."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]*$", description="Its files are in judgments_NAME.")
    kind: Literal["llm", "teacher"] = Field("llm", description="teacher: by the scores of `teacher`; asks nobody.")
    prompt: str = Field("graded", description="Name in prompts/judge, or the path of a prompt file.")
    llm: Endpoint | None = Field(None, description="Endpoint of this rung; null: llm.")
    settles: Literal["both", "relevant", "irrelevant"] = Field(
        "both", description="The verdicts that are final here; all else goes to the next rung."
    )
    relevant_from: int | None = Field(None, ge=1, le=3, description="Grades from here on are relevant.")
    irrelevant_to: int | None = Field(None, ge=0, le=2, description="Grades up to here are irrelevant.")
    relevant_p: float | None = Field(None, ge=0, le=1, description="Probabilities of Yes from here on are relevant.")
    irrelevant_p: float | None = Field(None, ge=0, le=1, description="Probabilities up to here are irrelevant.")
    above: float | None = Field(None, description="kind teacher: scores from here on are relevant.")
    below: float | None = Field(None, description="kind teacher: scores up to here are irrelevant.")
    unit: Literal["score", "percentile"] = Field(
        "score", description="kind teacher: what above and below count, of the scores of the whole pool."
    )

    @model_validator(mode="after")
    def _kinds(self) -> Rung:
        bounds = [bound for bound in (self.below, self.above) if bound is not None]
        if self.name == "judge":
            raise ValueError("name judge is that of the last rung, which is judge.prompt itself; take another")
        if (self.kind == "teacher") != bool(bounds):
            raise ValueError("above and below are for kind teacher, which needs one of them")
        if self.kind == "teacher" and self.llm is not None:
            raise ValueError("a rung of kind teacher asks no LLM; leave llm out")
        if bounds != sorted(set(bounds)):
            raise ValueError(f"below {self.below} must be under above {self.above}")
        if self.unit == "percentile" and not all(0 <= bound <= 100 for bound in bounds):
            raise ValueError("percentiles are from 0 to 100")
        return self


# What a rung may set for itself.
OWN = ("relevant_from", "irrelevant_to", "relevant_p", "irrelevant_p")


class Judge(Model):
    """The LLM's grades, and what they mean."""

    enabled: bool = Field(True, description="false: mined negatives are exported unjudged, and marked so.")
    prompt: str = Field("graded", description="Name in prompts/judge, or the path of a prompt file.")
    pool: int | None = Field(None, ge=1, description="Candidates judged per query; null: twice mining.negatives.")
    relevant_from: int = Field(2, ge=1, le=3, description="Grades from here on are relevant.")
    irrelevant_to: int = Field(1, ge=0, le=2, description="Grades up to here are irrelevant.")
    relevant_p: float = Field(
        0.5, ge=0, le=1, description="Of a binary prompt: probabilities of Yes from here on are relevant."
    )
    irrelevant_p: float = Field(
        0.5, ge=0, le=1, description="Of a binary prompt: probabilities up to here are irrelevant, unless relevant."
    )
    max_chars: int = Field(4000, ge=100, description="Longest passage shown, in characters; longer ones are cut.")
    reference: bool = Field(
        True, description="Show a known positive beside the passage; false: the prompt gets an empty one."
    )
    evidence: Literal["require", "downgrade"] = Field(
        "require",
        description="A relevant grade whose quote is not in the passage: require makes the answer unparsable,"
        " downgrade makes the verdict unsure. Neither makes a negative.",
    )
    pack: int = Field(8, ge=1, le=64, description="Of a packed or listwise prompt: most passages in one request.")
    orders: Literal[1, 2] = Field(
        1,
        description="2: ask each pack in both directions; where the two disagree the verdict is unsure. Of a binary"
        " prompt that can show its texts in two orders: ask in both; the mean of the probabilities counts.",
    )
    rungs: tuple[Rung, ...] = Field(
        (),
        description="Cheaper judges in order, each with name and prompt; `prompt` and `llm` above are the last one,"
        " which decides what they leave open, and all that is generated.",
    )
    false_negatives: Literal["drop", "relabel", "report"] = Field(
        "drop",
        description="Candidates judged relevant are never negatives. drop: not used; relabel: exported as positives;"
        " report: listed in decisions/false_negatives-*.",
    )
    max_false_negatives: int | None = Field(
        None, ge=0, description="A query with more candidates judged relevant is set aside whole; null: no limit."
    )
    canaries: Canaries = Canaries()  # type: ignore[call-arg]
    uncalibrated: bool = Field(
        False, description="Export though `miner calibrate judge` does not vouch for this judge; the data card says so."
    )
    llm: Endpoint | None = Field(None, description="Endpoint of this stage alone.")

    @model_validator(mode="after")
    def _grades(self) -> Judge:
        if self.irrelevant_to >= self.relevant_from:
            raise ValueError(f"irrelevant_to {self.irrelevant_to} must be below relevant_from {self.relevant_from}")
        if self.irrelevant_p > self.relevant_p:
            raise ValueError(f"irrelevant_p {self.irrelevant_p} must not be above relevant_p {self.relevant_p}")
        return self

    @model_validator(mode="after")
    def _rungs(self) -> Judge:
        names = [rung.name for rung in self.rungs]
        if double := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"rungs: the name {double[0]} is there twice; give each its own")
        for rung in self.rungs:
            own = self.of(rung)
            if own.irrelevant_to >= own.relevant_from or own.irrelevant_p > own.relevant_p:
                raise ValueError(f"rung {rung.name}: what is irrelevant must lie below what is relevant")
        return self

    def of(self, rung: Rung) -> Judge:
        """The judge that a rung is: without rungs, with its own prompt, endpoint and bounds."""
        own = {name: value for name in OWN if (value := getattr(rung, name)) is not None}
        return self.model_copy(update={**own, "prompt": rung.prompt, "llm": rung.llm, "rungs": ()})


class Strategy(Model):
    """One way of several to write a negative."""

    prompt: str = Field(description="Name in prompts/generate, or the path of a prompt file.")
    weight: float = Field(1.0, gt=0, le=1e6, description="Its share of what is written, beside the other strategies.")
    facets: tuple[str, ...] | None = Field(
        None, min_length=1, description="Facets of a prompt that shows one; null: generator.facets."
    )
    k: int | None = Field(
        None, ge=1, le=6, description="Requirements to violate, of a prompt that shows k: 1 (null) is hardest."
    )


class Checks(Model):
    """Why a written passage is dropped before anyone pays for judging it. null or false switches a check off."""

    talk: bool = Field(True, description="Refusals, talk about the task, copies of the query, markup, placeholders.")
    language: bool = Field(True, description="Another script or language than the passage it was made from.")
    length: float | None = Field(
        2.0, gt=1, description="More than so many times the length it should have, or less than one such part of it."
    )
    facet: bool = Field(True, description="What was declared to be changed cannot be seen in the text.")
    near_duplicate_jaccard: float | None = Field(
        0.8,
        gt=0,
        le=1,
        description="So much of the word 3-shingles shared with a positive, another negative or a corpus passage.",
    )
    near_duplicate_cosine: float | None = Field(
        None, gt=0, le=1, description="So close to a positive or another negative of the query, by the encoder."
    )
    too_easy: float | None = Field(
        0.05, ge=0, le=2, description="Scored by more than this below the lowest candidate of the query's pool."
    )
    template: float | None = Field(
        0.1, gt=0, le=1, description="Largest share of a job's passages that may begin with the same three words."
    )


class Generator(Model):
    """Negatives written by an LLM where mining fell short."""

    enabled: bool = Field(False, description="Write negatives where mining fell short.")
    prompt: str = Field("counterfactual", description="Name in prompts/generate, or the path of a prompt file.")
    strategies: tuple[Strategy, ...] = Field(
        (),
        description="Several prompts in place of `prompt`, drawn by weight; recommended: requirement-violation first."
        " Facets then come in equal numbers over the job.",
    )
    samples: int = Field(
        1, ge=1, le=16, description="Passages asked for in place of each one wanted; the checks choose among them."
    )
    max_share: float = Field(0.25, gt=0, le=1, description="Largest share of synthetic negatives in a query.")
    facets: tuple[str, ...] = Field(
        ("entity", "quantity", "condition", "scope", "polarity"), min_length=1, description="Facets in turn."
    )
    max_chars: int = Field(4000, ge=100, description="Longest positive shown, in characters.")
    checks: Checks = Checks()  # type: ignore[call-arg]
    style_refuse: float | None = Field(
        0.75,
        gt=0.5,
        le=1,
        description="Leave all synthetic negatives out where a classifier tells them from mined ones with this AUC;"
        " null: warn only.",
    )
    llm: Endpoint | None = Field(None, description="Endpoint of this stage alone.")
