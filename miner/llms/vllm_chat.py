"""A chat body as vLLM's sampling parameters, and vLLM's outputs as chat completion objects. Pure; imports no vllm."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from miner.errors import UserError
from miner.ledger import Request

# Keys of a chat body that vllm.SamplingParams has under the same name; the second row is not OpenAI's but vLLM's.
SAME = (
    *("temperature", "top_p", "n", "seed", "stop", "presence_penalty", "frequency_penalty"),
    *("top_k", "min_p", "repetition_penalty", "min_tokens", "ignore_eos", "stop_token_ids", "bad_words"),
    *("allowed_token_ids", "include_stop_str_in_output", "skip_special_tokens", "spaces_between_special_tokens"),
)
OTHER = (
    *("model", "messages", "max_tokens", "max_completion_tokens", "logprobs", "top_logprobs"),
    *("response_format", "structured_outputs", "logit_bias"),
)
# vLLM's server writes this in place of minus infinity, which JSON has not.
LOWEST = -9999.0


# ---------------------------------------------------------------- what is asked


def sampling(body: dict[str, Any], key: str = "") -> dict[str, Any]:
    """The arguments of vllm.SamplingParams for a chat body; `structured_outputs` is a plain dict of its own arguments.

    A body that samples (temperature above 0) and has no seed gets one made from `key` (hex digits), so that its answer
    does not depend on what is asked beside it. Raises UserError for a key that means nothing here.
    """
    given = {name: value for name, value in body.items() if value is not None}
    for name in given:
        if name not in SAME and name not in OTHER:
            raise UserError(
                f"prompt sampling: {name} is no parameter of backend vllm; options of the chat template go to"
                " llm.vllm.chat_template_kwargs"
            )
    found = {name: given[name] for name in SAME if name in given}
    found["max_tokens"] = given.get("max_completion_tokens", given.get("max_tokens"))
    if given.get("logprobs"):
        found["logprobs"] = int(given.get("top_logprobs", 0))
    if "logit_bias" in given:
        found["logit_bias"] = {int(token): bias for token, bias in given["logit_bias"].items()}
    form = _form(given)
    if form:
        found["structured_outputs"] = form
    if key and "seed" not in found and found.get("temperature", 1.0) > 0:
        found["seed"] = int(key[:8], 16)
    return found


def _form(body: dict[str, Any]) -> dict[str, Any] | None:
    """What limits the answer's form; the prompt's own `structured_outputs` is more exact than a `response_format`."""
    if "structured_outputs" in body:
        return dict(body["structured_outputs"])
    wanted = body.get("response_format", {})
    if wanted.get("type") == "json_object":
        return {"json_object": True, "disable_any_whitespace": True}
    schema = wanted.get("json_schema", {}).get("schema")
    return {"json": schema, "disable_any_whitespace": True} if schema else None


def in_order(requests: Iterable[Request]) -> list[Request]:
    """Sorted by the text that the model sees, so that shared prefixes are neighbours; equal texts by key."""

    def seen(request: Request) -> tuple[Any, ...]:
        return [(str(m["role"]), str(m.get("content") or "")) for m in request.body["messages"]], request.key

    return sorted(requests, key=seen)


# ---------------------------------------------------------------- what comes back


def chat_completion(output: Any, request: Request, top: int | None, version: str) -> dict[str, Any]:
    """A vllm.RequestOutput as OpenAI's chat completion object. top: alternatives per token, None for no log probs.

    `created` is 0: the same answer has the same bytes.
    """
    choices = [
        {
            "index": one.index,
            "message": {"role": "assistant", "content": one.text},
            "logprobs": None if top is None else {"content": _logprobs(one, top)},
            "finish_reason": one.finish_reason,
        }
        for one in output.outputs
    ]
    prompt, completion = len(output.prompt_token_ids), sum(len(one.token_ids) for one in output.outputs)
    usage: dict[str, Any] = {"prompt_tokens": prompt, "completion_tokens": completion}
    usage["total_tokens"] = prompt + completion
    if output.num_cached_tokens is not None:
        usage["prompt_tokens_details"] = {"cached_tokens": output.num_cached_tokens}
    return {
        "id": f"chatcmpl-{request.key[:16]}",
        "object": "chat.completion",
        "created": 0,
        "model": request.body["model"],
        "system_fingerprint": f"vllm-{version}",
        "choices": choices,
        "usage": usage,
    }


def _logprobs(one: Any, top: int) -> list[dict[str, Any]]:
    """One entry per token of the answer; its alternatives with the likeliest first, equal ones by token number."""
    entries = []
    for token, found in zip(one.token_ids, one.logprobs or (), strict=True):
        ranked = sorted(found.items(), key=lambda item: (-item[1].logprob, item[0]))[:top]
        entries.append({**_entry(found[token]), "top_logprobs": [_entry(value) for _, value in ranked]})
    return entries


def _entry(found: Any) -> dict[str, Any]:
    token = found.decoded_token or ""
    value = float(found.logprob)
    logprob = LOWEST if math.isnan(value) else max(value, LOWEST)
    return {"token": token, "logprob": logprob, "bytes": list(token.encode("utf-8", "replace"))}
