"""vLLM in this process: no server, no port. Requests go to the engine in chunks that are committed one after another.

A chat body means here what it means to vLLM's own server: the same sampling parameters, the same refusal of a request
that has no room in the model's context, the same form of answer. Only the engine's own defaults are not asked for: what
a body does not say is OpenAI's default.
"""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any, NamedTuple, Protocol

from miner.config import Endpoint
from miner.errors import BudgetReached, ProviderStop, UserError
from miner.ledger import Answer, Request
from miner.llms.vllm_chat import chat_completion, in_order, sampling
from miner.meter import Meter, completion_limit

log = logging.getLogger("miner")
# So many chunks are read ahead and put in order together.
LOOK_AHEAD = 8
# No known chat template adds more tokens than this to the texts of its messages.
AROUND = 1024
# Without a limit a small model fills an answer with white space. Only a named grammar backend has this switch.
DENSE_JSON = {"backend": "xgrammar", "disable_any_whitespace": True}
# The log goes where miner's goes. Forked children of a process that has used OpenMP hang, so they are spawned. The
# engine shares this process (its workers of several GPUs do not): in one of its own it outlives a kill of miner and
# keeps the memory, a kill of it is waited out for ever (both seen with 0.32), and what shares a batch is up to chance.
ENVIRONMENT = {
    "VLLM_LOGGING_STREAM": "ext://sys.stderr",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
}


# ---------------------------------------------------------------- the engine


class Refused(Exception):
    """The engine takes one of the requests of a call for no request at all; nothing of the call was answered."""


class Engine(Protocol):
    """What the backend needs of vllm.LLM."""

    version: str
    limit: int  # tokens of prompt and answer together

    def length(self, messages: list[dict[str, str]]) -> int:
        """Tokens of a prompt, rendered by the model's chat template."""

    def chat(self, conversations: list[list[dict[str, str]]], parameters: list[dict[str, Any]]) -> list[Any]:
        """One vllm.RequestOutput each, in order. Raises Refused, and ProviderStop where the engine is lost."""

    def close(self) -> None:
        """Give the memory back."""


class Vllm:
    """A loaded vllm.LLM. options: of the chat template."""

    def __init__(self, llm: Any, version: str, options: dict[str, Any]) -> None:
        self.version = version
        self.limit = int(llm.llm_engine.model_config.max_model_len)
        self._llm = llm
        self._options = options

    def length(self, messages: list[dict[str, str]]) -> int:
        import jinja2

        troubles: tuple[type[Exception], ...] = (*_errors()[0], jinja2.TemplateError)
        own = getattr(self._llm, "chat_template", None)
        options = {**({"chat_template": own} if own else {}), **self._options}
        try:
            return len(
                self._llm.get_tokenizer().apply_chat_template(
                    messages, add_generation_prompt=True, tokenize=True, return_dict=False, **options
                )
            )
        except troubles as error:
            raise UserError(
                f"llm.model: its chat template cannot be used ({_line(error)}); give one as chat_template in"
                " llm.vllm.engine"
            ) from None

    def chat(self, conversations: list[list[dict[str, str]]], parameters: list[dict[str, Any]]) -> list[Any]:
        refusals, losses = _errors()
        ready = [_sampling_params(arguments) for arguments in parameters]
        try:
            outputs: list[Any] = self._llm.chat(
                conversations, ready, use_tqdm=False, chat_template_kwargs=self._options or None
            )
        except refusals as error:  # before anything was generated
            if self._llm.llm_engine.has_unfinished_requests():
                raise _lost(error) from None
            raise Refused(_line(error)) from None
        except losses as error:
            raise _lost(error) from None
        return outputs

    def close(self) -> None:
        from vllm.distributed import cleanup_dist_env_and_memory

        self._llm.llm_engine.engine_core.shutdown()
        self._llm = None
        cleanup_dist_env_and_memory()


def _sampling_params(arguments: dict[str, Any]) -> Any:
    from vllm.sampling_params import SamplingParams, StructuredOutputsParams

    form = arguments.get("structured_outputs")
    try:
        limits = StructuredOutputsParams(**form) if form else None
        return SamplingParams(**{**arguments, "structured_outputs": limits})
    except _errors()[0] as error:
        raise UserError(
            f"prompt sampling: vLLM does not take it ({_line(error)}); mend the prompt's sampling"
        ) from None


def _errors() -> tuple[tuple[type[Exception], ...], tuple[type[Exception], ...]]:
    """What vLLM raises for a request that it does not take, and for an engine that is no more."""
    from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

    # An engine in this process fails with whatever its model's code raises.
    inside = (RuntimeError, AssertionError, LookupError, AttributeError, OSError, MemoryError)
    losses = (EngineDeadError, EngineGenerateError, *inside)
    try:
        from vllm.exceptions import VLLMClientError
    except ImportError:  # an older vLLM: they are ValueErrors
        return (ValueError, TypeError), losses
    return (ValueError, TypeError, VLLMClientError), losses


def _lost(error: Exception) -> ProviderStop:
    return ProviderStop(
        f"the vLLM engine stopped ({_line(error)}); its log above has the cause. What was answered is kept; run again"
    )


def _line(error: Exception) -> str:
    return " ".join((str(error) or type(error).__name__).split())[:300]


# ---------------------------------------------------------------- the backend


class Row(NamedTuple):
    """A request as it is asked: `body` is its own, or the shorter one, and then `mark` says so."""

    request: Request
    body: dict[str, Any]
    parameters: dict[str, Any]
    mark: str = ""


class VllmBackend:
    """Answers come chunk by chunk: a kill loses the chunk that is being generated, and no other.

    Ctrl-C ends the run behind the chunk that is being generated; a second one ends it at once.
    """

    def __init__(self, engine: Engine, endpoint: Endpoint, meter: Meter) -> None:
        self._engine = engine
        self._chunk = endpoint.vllm.chunk
        self._meter = meter
        self._answered = 0

    def answer(self, requests: Iterable[Request], done: Callable[[Request, Answer], None]) -> None:
        with _interrupts() as interrupted:
            for chunk in _chunks(iter(requests), self._chunk):
                rows = [row for row in (self._fitting(request, done) for request in chunk) if row]
                rows, stop = self._reserve(rows)
                self._answer_chunk(rows, done)
                if stop is not None:
                    raise stop
                if interrupted():
                    raise KeyboardInterrupt

    def close(self) -> None:
        """Give the memory back, which another model may need."""
        self._engine.close()

    # ------------------------------------------------------------ room in the context

    def _fitting(self, request: Request, done: Callable[[Request, Answer], None]) -> Row | None:
        """The row to ask, or None where the prompt is too long; then the request is done, for good."""
        needed = self._needed(request.body)
        if needed <= self._engine.limit:
            return Row(request, request.body, sampling(request.body, request.key))
        if request.shorter is not None and self._needed(request.shorter) <= self._engine.limit:
            return Row(request, request.shorter, sampling(request.shorter, request.key), "shortened")
        reason = f"too long: prompt and answer can take {needed} tokens, the model has {self._engine.limit}"
        done(request, Answer(None, reason, attempts=0, final=True, endpoint="vllm"))
        return None

    def _needed(self, body: dict[str, Any]) -> int:
        """Tokens of the prompt and the longest answer, or more of them where there is room: a token has a byte or more.

        Exact until a first chunk is answered, so that a chat template that cannot be used is told first.
        """
        answer = completion_limit({**body, "n": 1}) or 1
        if answer >= self._engine.limit:
            raise UserError(
                f"prompt sampling: max_tokens {answer} leaves no room for a prompt, the model has {self._engine.limit}"
                " tokens (llm.vllm.engine.max_model_len); lower max_tokens"
            )
        most = sum(len(str(m.get("content") or "").encode("utf-8", "replace")) for m in body["messages"]) + AROUND
        sure = self._answered and most + answer <= self._engine.limit
        return answer + (most if sure else self._engine.length(body["messages"]))

    def _reserve(self, rows: list[Row]) -> tuple[list[Row], BudgetReached | None]:
        """The rows that the budget has room for, and what to raise when they are answered."""
        for number, row in enumerate(rows):
            try:
                self._meter.reserve(row.request)
            except BudgetReached as stop:
                return rows[:number], stop
        return rows, None

    # ------------------------------------------------------------ one chunk

    def _answer_chunk(self, rows: list[Row], done: Callable[[Request, Answer], None]) -> None:
        """Generate, then commit. What was answered before the engine was lost is committed too."""
        for row in rows:
            self._meter.ledger.sent(row.request, "vllm")
        self._meter.ledger.flush()
        found: list[tuple[Row, Answer]] = []
        try:
            self._ask(rows, found)
        except (ProviderStop, UserError):
            kept = {row.request.key for row, answer in found if answer.response is not None}
            for row in rows:
                if row.request.key not in kept:
                    self._meter.release(row.request)
            self._commit([pair for pair in found if pair[1].response is not None], done)
            raise
        self._commit(found, done)

    def _commit(self, found: list[tuple[Row, Answer]], done: Callable[[Request, Answer], None]) -> None:
        answered = sum(answer.response is not None for _, answer in found)
        if len(found) > 1 and not answered and not self._answered:
            for row, _ in found:
                self._meter.release(row.request)
            raise ProviderStop(
                f"vLLM refuses every request ({found[0][1].error}); mend the prompt's sampling or llm.vllm.engine"
            )
        self._answered += answered
        for row, answer in found:
            if answer.response is None:
                self._meter.release(row.request)
            done(row.request, answer)

    def _ask(self, rows: list[Row], found: list[tuple[Row, Answer]]) -> None:
        """Append an answer for each row. A call that is refused is halved, until the row is alone that spoils it."""
        if not rows:
            return
        start = time.monotonic()
        try:
            outputs = self._engine.chat([row.body["messages"] for row in rows], [row.parameters for row in rows])
        except Refused as refusal:
            if len(rows) == 1:
                found.append((rows[0], Answer(None, f"vLLM refuses it: {refusal}", final=True, endpoint="vllm")))
                return
            half = len(rows) // 2
            self._ask(rows[:half], found)
            self._ask(rows[half:], found)
            return
        seconds = time.monotonic() - start
        found += [(row, self._read(row, output, seconds)) for row, output in zip(rows, outputs, strict=True)]

    def _read(self, row: Row, output: Any, seconds: float) -> Answer:
        ended = next((o.finish_reason for o in output.outputs if o.finish_reason in (None, "abort", "error")), "")
        if ended != "":
            return Answer(None, f"vLLM broke it off ({ended})", seconds=seconds, endpoint="vllm")
        response = chat_completion(output, row.request, row.parameters.get("logprobs"), self._engine.version)
        return Answer(response, seconds=seconds, mark=row.mark, endpoint="vllm")


def _chunks(requests: Iterator[Request], size: int) -> Iterator[list[Request]]:
    while window := in_order(islice(requests, size * LOOK_AHEAD)):
        for start in range(0, len(window), size):
            yield window[start : start + size]


@contextmanager
def _interrupts() -> Iterator[Callable[[], bool]]:
    """Yield a function that tells whether Ctrl-C was pressed. In another thread than the main one nothing is caught."""
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    pressed: list[int] = []

    def note(number: int, _: Any) -> None:
        if pressed:
            raise KeyboardInterrupt
        pressed.append(number)
        log.warning("stopping when this chunk is answered; press Ctrl-C again to stop at once")

    before = signal.signal(signal.SIGINT, note)
    try:
        yield lambda: bool(pressed)
    finally:
        signal.signal(signal.SIGINT, before)


# ---------------------------------------------------------------- loading


def load(endpoint: Endpoint, meter: Meter) -> VllmBackend:
    """Load the model. Raises UserError where vllm, the model or an argument is not there."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    try:
        import vllm
    except ImportError as error:
        raise UserError(f"backend vllm: cannot import vllm ({_line(error)}); pip install 'miner[vllm]'") from None
    arguments = _arguments(endpoint, vllm)
    start = time.monotonic()
    try:
        with _deaf():
            llm = vllm.LLM(**arguments)
    except Exception as error:  # noqa: BLE001 - the library raises nothing narrower
        raise UserError(
            f"llm.model {arguments['model']}: vLLM cannot load it ({_line(error)}); check the folder or hub id, the"
            " memory and llm.vllm.engine"
        ) from None
    log.info("vLLM %s loaded %s in %.0f s", vllm.__version__, arguments["model"], time.monotonic() - start)
    return VllmBackend(Vllm(llm, vllm.__version__, endpoint.vllm.chat_template_kwargs), endpoint, meter)


def _arguments(endpoint: Endpoint, vllm: Any) -> dict[str, Any]:
    """The arguments of vllm.LLM. `model` among the engine's own: where it lies, when llm.model is only its name."""
    known = {f.name for f in dataclasses.fields(vllm.EngineArgs)} | set(inspect.signature(vllm.LLM).parameters)
    for name in endpoint.vllm.engine:
        if name not in known - {"kwargs"}:
            near = difflib.get_close_matches(name, sorted(known), 1)
            hint = f"did you mean {near[0]}?" if near else "see the engine arguments of vLLM"
            raise UserError(f"llm.vllm.engine.{name}: vLLM {vllm.__version__} has no such engine argument; {hint}")
    own: dict[str, Any] = {
        "model": endpoint.model,
        "enable_prefix_caching": True,
        "structured_outputs_config": dict(DENSE_JSON),
        "use_tqdm_on_load": sys.stderr.isatty(),
    }
    return {**own, **endpoint.vllm.engine}


@contextmanager
def _deaf() -> Iterator[None]:
    """The engine's processes inherit a blocked SIGINT: Ctrl-C is for miner, which stops them behind a chunk."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
