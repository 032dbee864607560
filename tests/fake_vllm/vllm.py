"""As much of the package vllm as miner.llms.vllm asks of it: an engine that answers from the request alone.

FAKE_VLLM_LOG: a file to which each conversation that is asked is appended, a line of JSON. FAKE_VLLM_DELAY: seconds a
call takes. A passage with POISON is refused, one with DEADLY ends the process, one with LONG is cut off.
"""

from __future__ import annotations

import json
import os
import sys
import time
from dataclasses import dataclass, field
from types import ModuleType, SimpleNamespace
from typing import Any

from loopback import sensible

__version__ = "0.0-fake"


@dataclass
class EngineArgs:
    model: str = ""
    enable_prefix_caching: bool = True
    structured_outputs_config: dict[str, Any] = field(default_factory=dict)
    max_model_len: int = 4096
    tensor_parallel_size: int = 1


class Parameters:
    def __init__(self, **arguments: Any) -> None:
        self.__dict__.update(arguments)


class Dead(Exception):
    pass


class LLM:
    def __init__(self, model: str, max_model_len: int = 4096, use_tqdm_on_load: bool = False, **_: Any) -> None:
        if "missing" in model:
            raise OSError(f"{model}: no such model")
        self.llm_engine = SimpleNamespace(
            model_config=SimpleNamespace(max_model_len=max_model_len),
            has_unfinished_requests=lambda: False,
            engine_core=SimpleNamespace(shutdown=lambda: None),
        )

    def get_tokenizer(self) -> Any:
        return SimpleNamespace(
            apply_chat_template=lambda messages, **_: [0] * sum(len(m["content"].split()) for m in messages)
        )

    def chat(self, conversations: list[Any], parameters: list[Any], **_: Any) -> list[Any]:
        texts = [json.dumps(conversation) for conversation in conversations]
        if any("POISON" in text for text in texts):
            raise ValueError("a poisoned passage")
        if any("DEADLY" in text for text in texts):
            os._exit(1)
        time.sleep(float(os.environ.get("FAKE_VLLM_DELAY", "0")))
        with open(os.environ["FAKE_VLLM_LOG"], "a") as log:  # noqa: PTH123 - one write a line, of many processes
            log.write("".join(text + "\n" for text in texts))
        return [output(conversation) for conversation in conversations]


def output(conversation: list[dict[str, str]]) -> Any:
    """As the loopback server would judge it."""
    cut = "LONG" in json.dumps(conversation)
    answer = json.loads(sensible({"messages": conversation})[2])["choices"][0]["message"]["content"]
    one = SimpleNamespace(
        index=0,
        text=answer[:9] if cut else answer,
        token_ids=[1, 2, 3],
        finish_reason="length" if cut else "stop",
        logprobs=None,
    )
    return SimpleNamespace(outputs=[one], prompt_token_ids=[0] * 7, num_cached_tokens=None)


def module(name: str, **content: Any) -> None:
    made = ModuleType(name)
    made.__dict__.update(content)
    sys.modules[name] = made


module("vllm.sampling_params", SamplingParams=Parameters, StructuredOutputsParams=Parameters)
module("vllm.v1.engine.exceptions", EngineDeadError=Dead, EngineGenerateError=Dead)
module("vllm.exceptions", VLLMClientError=Dead)
module("vllm.distributed", cleanup_dist_env_and_memory=lambda: None)
