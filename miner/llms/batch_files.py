"""The OpenAI Batch API's file forms: request lines out, answer lines in."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from miner.errors import UserError
from miner.ledger import Request
from miner.llms import completion
from miner.readers import rows

FORM = "an answers file has the Batch API's output form"


class Line(NamedTuple):
    """One answer line. `response` is None where the line tells of a failure, and `error` says which."""

    key: str
    response: dict[str, Any] | None
    error: str
    about: dict[str, str]


def request_line(request: Request) -> dict[str, Any]:
    return {"custom_id": request.key, "method": "POST", "url": "/v1/chat/completions", "body": request.body}


def read_answers(path: Path) -> Iterator[Line]:
    """The lines of an answers file. Raises UserError for a file that is broken or not of this form."""
    for row in rows.read(path):
        key = row.values.get("custom_id")
        if not isinstance(key, str):
            raise UserError(f"{row.place}: no custom_id; {FORM}")
        if not row.values.keys() & {"response", "error"}:
            raise UserError(f"{row.place}: neither response nor error, so no answer (a request?); {FORM}")
        yield Line(key, *_outcome(row.values), _about(row.values.get("miner")))


def _about(value: Any) -> dict[str, str]:
    return {name: str(text) for name, text in value.items()} if isinstance(value, dict) else {}


def _outcome(values: dict[str, Any]) -> tuple[dict[str, Any] | None, str]:
    error, response = values.get("error"), values.get("response")
    if error:
        return None, _reason(error)
    if not isinstance(response, dict) or not isinstance(response.get("body"), dict):
        return None, "the line holds no response"
    body, status = response["body"], response.get("status_code", 200)
    if status != 200:
        return None, f"HTTP {status}: {_reason(body.get('error') or body)}"
    try:
        return completion(body), ""
    except (ValueError, RecursionError) as failure:
        return None, f"the response is no chat completion ({failure})"


def _reason(error: Any) -> str:
    text = str(error.get("message") or error.get("code") or error) if isinstance(error, dict) else str(error)
    return " ".join(text.encode("utf-8", "replace").decode().split())[:200]
