"""The whole job file, and what contradicts itself between its sections."""

from __future__ import annotations

from pydantic import Field, model_validator

from miner.config.base import Model
from miner.config.data import Data
from miner.config.encoder import Encoder
from miner.config.engine import Engine
from miner.config.export import Export
from miner.config.llm import Budget, Endpoint, Generator, Judge
from miner.config.mining import Filters, Mining, Teacher


class Job(Model):
    """A miner job. Relative paths count from the job file."""

    data: Data
    encoder: Encoder = Encoder()  # type: ignore[call-arg]
    mining: Mining = Mining()  # type: ignore[call-arg]
    teacher: Teacher | None = Field(None, description="Cross-encoder that scores candidates.")
    filters: Filters = Filters()  # type: ignore[call-arg]
    llm: Endpoint | None = Field(None, description="Endpoint of the LLM stages.")
    budget: Budget = Budget()  # type: ignore[call-arg]
    judge: Judge = Judge()  # type: ignore[call-arg]
    generator: Generator = Generator()  # type: ignore[call-arg]
    export: Export = Export()  # type: ignore[call-arg]
    engine: Engine = Engine()  # type: ignore[call-arg]
    seed: int = Field(13, ge=0, lt=1 << 63, description="Seed of every random choice.")
    job: str | None = Field(
        None, description="Folder of the job; null: the job file's name with .job in place of .yaml."
    )
    vector_cache: str | None = Field(None, description="Folder of vectors shared by jobs; null: inside the job.")
    previous: str | None = Field(
        None, description="Folder of an earlier job on the same data: answers that it paid for are used again."
    )
    prompts: str | None = Field(None, description="Folder searched for prompts before the shipped ones.")

    @model_validator(mode="after")
    def _contradictions(self) -> Job:
        for name, stage in (("judge", self.judge), ("generator", self.generator)):
            if stage.enabled and stage.llm is None and self.llm is None:
                raise ValueError(f"llm.model is not set: name a model, or set {name}.enabled: false")
        if self.generator.enabled and not self.judge.enabled:
            raise ValueError("generator.enabled needs judge.enabled: nothing generated is kept unjudged")
        if self.generator.enabled and self.encoder.backend == "precomputed":
            raise ValueError("generator.enabled needs an encoder that can encode what is written, not precomputed")
        if self.mining.margin_on == "teacher" and self.teacher is None:
            raise ValueError("mining.margin_on: teacher needs teacher.model")
        if self.export.score_of == "teacher" and self.teacher is None:
            raise ValueError("export.score_of: teacher needs teacher.model")
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
    def token_outputs(self) -> bool:
        """Are BGE-M3's sparse or multi-vector outputs wanted?"""
        return any(retriever.kind in ("sparse", "multivector") for retriever in self.mining.retrievers)

    @property
    def pool_size(self) -> int:
        """Candidates per query that reach the judge, or the export where the judge is off."""
        if not self.judge.enabled:
            return self.mining.negatives
        return self.judge.pool or 2 * self.mining.negatives
