"""rates.yaml, what models, GPUs and cores do, each with its source; and the cluster file of `miner estimate`."""

from __future__ import annotations

import importlib.resources
import re
from datetime import date
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from miner import sizing, yaml_file
from miner.errors import UserError


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Rate(_Strict):
    value: float = Field(gt=0)
    unit: str
    kind: Literal["measured", "published", "derived"]
    date: date
    source: str


class Model(_Strict):
    """weights, parameters: millions."""

    weights: float = Field(gt=0)
    parameters: float = Field(gt=0)
    dimension: int = Field(ge=1)


class Gpu(_Strict):
    """bf16, fp32: TFLOP/s, dense; price: dollars an hour."""

    bf16: float = Field(gt=0)
    fp32: float = Field(gt=0)
    memory_gb: float = Field(gt=0)
    price: float = Field(ge=0)


class GpuSource(_Strict):
    of: str
    source: str
    read_on: date
    kind: Literal["published"]


class Book(_Strict):
    models: dict[str, Model]
    gpus: dict[str, Gpu]
    gpu_sources: list[GpuSource]
    rates: dict[str, Rate]


class ClusterFile(_Strict):
    """cores, memory_gb, gpus and price are of one node; llm: billions of parameters of the model that its GPUs serve.

    price: dollars an hour, null: of its GPUs, or of its cores, in rates.yaml. models, gpus, rates: more, or others.
    """

    nodes: int = Field(1, ge=1)
    cores: int = Field(ge=1)
    memory_gb: float = Field(gt=0)
    gpus: int = Field(0, ge=0)
    gpu: str | None = None
    price: float | None = Field(None, ge=0)
    llm: float | None = Field(None, gt=0)
    models: dict[str, Model] = {}
    known_gpus: dict[str, Gpu] = {}
    rates: dict[str, float] = {}


Read = TypeVar("Read", bound=BaseModel)


def book() -> Book:
    return _read(Path(str(importlib.resources.files("miner"))) / "rates.yaml", Book)


def cluster_file(path: Path) -> tuple[ClusterFile, Book]:
    """The file, and the rates with what it changes in them. Raises UserError, in one line with the place."""
    found, known = _read(path, ClusterFile), book()
    for name, value in found.rates.items():
        if name not in known.rates:
            raise UserError(f"{path}: rates.{name}: no such rate; the rates are {', '.join(known.rates)}")
        if value <= 0:
            raise UserError(f"{path}: rates.{name}: {value:g} is not above 0; write a positive number")
    changed = {name: known.rates[name].model_copy(update={"value": value}) for name, value in found.rates.items()}
    known = known.model_copy(
        update={
            "rates": {**known.rates, **changed},
            "models": {**known.models, **found.models},
            "gpus": {**known.gpus, **found.known_gpus},
        }
    )
    if bool(found.gpus) != (found.gpu is not None):
        raise UserError(f"{path}: gpus {found.gpus} and gpu {found.gpu or 'null'}: set both, or neither")
    if found.gpu is not None and found.gpu not in known.gpus:
        raise UserError(f"{path}: gpu {found.gpu}: not one of {', '.join(known.gpus)}; describe it under known_gpus")
    if found.llm is not None and not found.gpus:
        raise UserError(f"{path}: llm {found.llm:g}: nodes without a GPU serve no model; set gpus, or leave llm out")
    return found, known


def cluster(path: Path, found: ClusterFile, known: Book, workers: int) -> sizing.Cluster:
    """workers: processes that search on a node."""
    gpu = known.gpus[found.gpu] if found.gpu else None
    price = found.price
    if price is None:
        price = gpu.price * found.gpus if gpu else known.rates["core_price"].value * found.cores
    made = None
    if gpu is not None:
        made = sizing.Gpu(str(found.gpu), gpu.bf16 * 1e12, gpu.fp32 * 1e12, gpu.memory_gb)
        each = sizing.replica_gpus((found.llm or 0) * 1e9, gpu.memory_gb, known.rates["llm_fill"].value)
        if each > found.gpus:
            raise UserError(
                f"{path}: llm {found.llm:g}: needs {each} {found.gpu} on one node, which has {found.gpus}; take a"
                " smaller model or other nodes"
            )
    return sizing.Cluster(path.stem, found.nodes, found.cores, found.memory_gb, price, found.gpus, made, workers)


def model(name: str, known: Book, path: Path) -> sizing.Model:
    """The longest name in the rates that stands in the model's. Raises UserError."""
    own = re.split(r"[/\\]", name.rstrip("/\\"))[-1].lower()
    fitting = [key for key in known.models if key.lower() in own]
    if not fitting:
        raise UserError(
            f"{path}: the size of model {name} is not known; add it under models:"
            f" {{{own}: {{weights: …, parameters: …, dimension: …}}}} (millions)"
        )
    found = known.models[max(fitting, key=len)]
    return sizing.Model(found.weights * 1e6, found.parameters * 1e6, found.dimension)


def _read(path: Path, form: type[Read]) -> Read:
    try:
        raw, lines = yaml_file.read(path)
    except UserError as error:
        raise UserError(str(error).replace("a job file is", "a cluster file is").split("; `miner init")[0]) from None
    try:
        return form.model_validate(raw)
    except ValidationError as error:
        first: Any = error.errors()[0]
        place = tuple(str(part) for part in first["loc"])
        line = f":{lines[place]}" if place in lines else ""
        what = (
            f"no such key; the keys are {', '.join(form.model_fields)}"
            if first["type"] == "extra_forbidden"
            else (f"{first['msg'][:1].lower()}{first['msg'][1:]}")
        )
        raise UserError(f"{path}{line}: {'.'.join(place)}: {what}") from None
