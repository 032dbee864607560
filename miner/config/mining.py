"""`mining` with its retrievers, `teacher` and `filters`: which passages near a query may become its negatives."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from miner.config.base import Model


class Retriever(Model):
    """One way to find near-misses."""

    kind: Literal["dense", "bm25", "sparse", "multivector", "run"] = Field(
        "dense",
        description="dense: the encoder and FAISS; bm25: words; sparse, multivector: BGE-M3's other two outputs"
        " (multivector ranks what the others found); run: a TREC run, or an earlier job.",
    )
    name: str | None = Field(None, pattern="^[a-z0-9_]{1,32}$", description="Name in all tables; null: the kind.")
    depth: int | None = Field(None, ge=1, le=10_000_000, description="Passages per query; null: mining.depth.")
    rank_min: int | None = Field(None, ge=1, description="First rank of its window; null: mining.rank_min.")
    rank_max: int | None = Field(None, ge=1, description="Last rank of its window; null: mining.rank_max.")
    weight: float = Field(1.0, gt=0, le=1e6, description="Its share in the fusion.")
    quota: int | None = Field(None, ge=1, description="Of each pool, at most so many from it; needs fusion: union.")
    file: str | None = Field(None, description="Of kind run: a TREC run file (.gz accepted), or the folder of a job.")
    language: str | None = Field(
        None,
        description="Of kind bm25: ISO code of the stemmer and stop words (en, de, fr, …); null: words as they are.",
    )

    @property
    def label(self) -> str:
        return self.name or self.kind

    @model_validator(mode="after")
    def _file(self) -> Retriever:
        if (self.kind == "run") != (self.file is not None):
            raise ValueError("a retriever of kind run needs `file`" if self.file is None else "`file` is for kind run")
        if self.language is not None and self.kind != "bm25":
            raise ValueError("`language` is for kind bm25")
        return self


class Index(Model):
    """The FAISS index of the dense retriever."""

    kind: Literal["auto", "flat", "pq", "hnsw", "ivf-flat", "ivf-pq"] = Field(
        "auto",
        description="flat is exact, pq scans codes of 4 bits (from some 100,000 passages on); auto takes flat unless"
        " size or memory forbid, and says what it took and why.",
    )
    memory_gb: float | None = Field(
        None, gt=0, description="Memory that the index may take; null: half of what the machine has."
    )
    recall_target: float = Field(
        0.95, gt=0, le=1, description="The search is widened until this recall is reached on a sample."
    )
    sample: int = Field(200, ge=1, description="Queries on which the recall against exact search is measured.")
    refine: int = Field(4, ge=1, description="ivf-pq: passages whose exact scores are computed, in multiples of depth.")
    gpu: bool = Field(True, description="Use a GPU where faiss has one.")


class Teacher(Model):
    """A cross-encoder that scores the best candidates and all positives."""

    model: str = Field(description="Hub id or folder of a cross-encoder, for example BAAI/bge-reranker-v2-m3.")
    revision: str | None = Field(None, description="Commit or tag on the hub.")
    depth: int = Field(50, ge=1, description="Candidates scored per query, best ranks first.")
    max_length: int = Field(512, ge=8, description="Longest pair in tokens; the passage is cut.")
    batch_tokens: int = Field(8192, ge=16, description="Token budget of a batch, padding counted.")
    device: str | None = Field(None, description="torch device, for example cuda:0; null: the best there is.")
    trust_remote_code: bool = Field(False, description="Run Python code that a hub model brings along.")


class Filters(Model):
    """Candidates that are refused for what they say, not for how they rank."""

    near_duplicate_jaccard: float | None = Field(
        None,
        gt=0,
        le=1,
        description="Refuse what shares so much of its word 3-shingles with a positive or a better candidate.",
    )
    near_duplicate_cosine: float | None = Field(
        None, gt=0, le=1, description="Refuse what is so close to a positive or to a better candidate, by the encoder."
    )
    answers: str | None = Field(
        None, description="Field of the queries that holds answer strings (QA data); refuse passages that contain one."
    )
    twin_queries: float | None = Field(
        None, gt=0, le=1, description="Refuse positives of other queries whose cosine to this one is at least this."
    )
    group: str | None = Field(
        None, description="Field of the passages (a document's id, for example); refuse siblings of a positive."
    )


class Mining(Model):
    """Which passages near a query may become its negatives."""

    retrievers: tuple[Retriever, ...] = Field(
        (Retriever.model_validate({"kind": "dense"}),), min_length=1, description="Ways to find near-misses."
    )
    fusion: Literal["rrf", "weighted", "union"] = Field(
        "rrf",
        description="Order of what several retrievers found: rrf: sum of weight/(rrf_k + rank); weighted: sum of weight"
        " times the score scaled to 0..1 in each list; union: by turns, best ranks first.",
    )
    rrf_k: int = Field(60, ge=1, le=1_000_000, description="The constant of rrf.")
    depth: int = Field(
        100, ge=1, le=10_000_000, description="Passages looked at per query, known positives not counted."
    )
    rank_min: int = Field(1, ge=1, description="First rank that may enter the pool (1 is the best).")
    rank_max: int | None = Field(None, ge=1, description="Last rank that may enter the pool.")
    margin_on: Literal["rocchio", "dense", "teacher"] = Field(
        "rocchio",
        description="Whose scores the margins are about: rocchio: the mean of the cosines with the query and with its"
        " nearest positive; dense: the cosine with the query; teacher: the teacher's (score_min and score_max too).",
    )
    margin_absolute: float | None = Field(None, ge=0, le=1e6, description="Keep score <= lowest positive score - m.")
    margin_relative: float | None = Field(
        0.05, ge=0, le=1e6, description="Keep score <= s - r*abs(s), s being the lowest positive score."
    )
    score_min: float | None = Field(None, ge=-1e6, le=1e6, description="Lowest score that may enter the pool.")
    score_max: float | None = Field(None, ge=-1e6, le=1e6, description="Highest score that may enter the pool.")
    sample: Literal["top", "random", "softmax", "bands", "mmr"] = Field(
        "top",
        description="How the pool is drawn from what is left: the best ranks; at random; at random by"
        " exp(score/temperature); evenly from score bands; the best by rank and difference (MMR).",
    )
    temperature: float = Field(0.05, gt=0, le=1e6, description="Of sample: softmax.")
    bands: int = Field(3, ge=2, le=10, description="Of sample: bands; 3 are called hard, medium, easy.")
    mmr_lambda: float = Field(0.7, ge=0, le=1, description="Of sample: mmr; 1 is closeness alone, 0 difference alone.")
    max_uses: int | None = Field(None, ge=1, description="In how many pools one passage may be, at most.")
    negatives: int = Field(7, ge=1, le=10_000, description="Hard negatives wanted per query.")
    block: int = Field(512, ge=1, description="Queries searched at once.")
    index: Index = Index()  # type: ignore[call-arg]

    @model_validator(mode="after")
    def _window(self) -> Mining:
        labels = [retriever.label for retriever in self.retrievers]
        if len(labels) > len(set(labels)):
            raise ValueError(f"two retrievers are called {max(labels, key=labels.count)}; give each a name")
        if labels and all(retriever.kind == "multivector" for retriever in self.retrievers):
            raise ValueError("multivector ranks what others found; add another retriever")
        for retriever in self.retrievers:
            depth, first, last = self.window(retriever)
            of = f"{retriever.label}: " if len(labels) > 1 else ""
            if last is not None and last < first:
                raise ValueError(f"{of}rank_max {last} is below rank_min {first}")
            if first > depth:
                raise ValueError(f"{of}rank_min {first} is beyond depth {depth}")
            if retriever.quota is not None and self.fusion != "union":
                raise ValueError(f"{of}quota needs fusion: union")
        if None not in (self.score_min, self.score_max) and self.score_max < self.score_min:  # type: ignore[operator]
            raise ValueError(f"score_max {self.score_max} is below score_min {self.score_min}")
        return self

    def window(self, retriever: Retriever) -> tuple[int, int, int | None]:
        """(depth, rank_min, rank_max) of a retriever."""
        return (
            retriever.depth or self.depth,
            retriever.rank_min or self.rank_min,
            retriever.rank_max or self.rank_max,
        )
