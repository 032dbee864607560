"""What every section of the job file shares."""

from __future__ import annotations

import os
import re
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict

from miner.errors import UserError

ENV = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")


class Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=(), allow_inf_nan=False)


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


def _only_by_name(value: str | None) -> str | None:
    if value is not None and not ENV.fullmatch(value):
        raise ValueError("a key stands in the job file only as ${NAME} of an environment variable")
    return value


def _address(value: str | None) -> str | None:
    if value is not None and not is_address(value):
        raise ValueError("not a web address; write http(s)://host:port/v1")
    return value


KeyName = Annotated[str | None, AfterValidator(_only_by_name)]
Address = Annotated[str | None, AfterValidator(_address)]
