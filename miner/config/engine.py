"""Where the work of a job is done. Nothing here changes a result, so no step is stale because of it."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from miner.config.base import Model


class Engine(Model):
    """On this machine, or on a Ray cluster."""

    kind: Literal["local", "ray"] = Field("local", description="local: this process; ray: the workers of a cluster.")
    address: str = Field(
        "auto",
        description="ray: the cluster: auto (RAY_ADDRESS, else the one running here), HOST:PORT, ray://HOST:PORT, or"
        " local, which starts one in this process.",
    )
    workers: int | None = Field(
        None, ge=1, description="ray: most workers at once; null: as many as there is room for."
    )
    cpus: float = Field(1, gt=0, description="ray: CPU cores that a worker reserves, and uses.")
    gpus: float = Field(
        0, ge=0, description="ray: GPUs that a worker reserves, for encoders, teachers and vLLM engines."
    )
    shards: int | None = Field(
        None, ge=1, description="ray: parts of the dense index, one worker each; null: as many as workers."
    )

    @model_validator(mode="after")
    def _contradictions(self) -> Engine:
        fields = type(self).model_fields.items()
        told = [name for name, field in fields if getattr(self, name) != field.default]
        if self.kind == "local" and told:
            raise ValueError(f"engine.{told[0]} needs engine.kind: ray")
        return self
