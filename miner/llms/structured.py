"""How a server is told the form of the answer. What it takes is found out once with a tiny request and kept in the
ledger: some servers refuse a JSON schema with HTTP 500, and some take it and ignore it.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import Any, Literal

Form = Literal["json_schema", "structured_outputs", "json_object_schema", "json_object", "none"]
# Strongest first. structured_outputs: vLLM's own; json_object_schema: llama-cpp-python's.
FORMS: tuple[Form, ...] = ("json_schema", "structured_outputs", "json_object_schema", "json_object", "none")
PROBE = {
    "messages": [{"role": "user", "content": 'Say hello as JSON: {"greeting": "hello"}'}],
    "temperature": 0,
    "max_tokens": 40,
    "response_format": {
        "type": "json_schema",
        "json_schema": {
            "name": "probe",
            "strict": True,
            "schema": {
                "type": "object",
                "properties": {"ok": {"type": "boolean"}},
                "required": ["ok"],
                "additionalProperties": False,
            },
        },
    },
}
Post = Callable[[dict[str, Any]], Awaitable[dict[str, Any] | None]]


def wire(body: dict[str, Any], form: Form) -> dict[str, Any]:
    """The body of a request as a server that takes `form` reads it. A body that asks for no schema stays as it is."""
    asked = body.get("response_format")
    if form == "json_schema" or not isinstance(asked, dict) or asked.get("type") != "json_schema":
        return body
    schema = asked["json_schema"]["schema"]
    rest = {name: value for name, value in body.items() if name != "response_format"}
    if form == "structured_outputs":
        return {**rest, "structured_outputs": {"json": schema}}
    if form == "json_object_schema":
        return {**rest, "response_format": {"type": "json_object", "schema": schema}}
    return {**rest, "response_format": {"type": "json_object"}} if form == "json_object" else rest


async def probe(model: str, post: Post) -> Form:
    """The strongest form that the server takes and keeps to; else the strongest that it takes.

    post: sends a body and gives the completion, or None where the server refuses it for good. Raises what `post` does.
    """
    taken: list[Form] = []
    for form in FORMS[:-1]:
        response = await post({"model": model, **wire(PROBE, form)})
        if response is not None:
            taken.append(form)
            if _keeps_to(response, form):
                return form
    return taken[0] if taken else "none"


def _keeps_to(response: dict[str, Any], form: Form) -> bool:
    try:
        value = json.loads(response["choices"][0]["message"].get("content") or "")
    except ValueError:
        return False
    return isinstance(value, dict) and (form == "json_object" or isinstance(value.get("ok"), bool))
