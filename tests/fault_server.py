"""A chat completion server that misbehaves by a script: one asyncio loop, in a thread or in a process of its own.

    with FaultServer(share=0.3, faults=TRANSIENT) as server: …      # a thread of this process
    with Spawned(delay_s=0.05) as server: …                         # a process of its own
    python tests/fault_server.py --port 8000 --script '{"share": 0.3, "faults": ["500", "reset"]}'

What happens to a request hangs on its messages and on how often they came before, and on nothing else: so the same
request meets the same faults in the same order at every run, and gets the same answer in the end. Both kinds of server
are watched and changed over HTTP: GET /counts, GET /stats (with every request), POST /control (a piece of script).
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import hashlib
import http.client
import json
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields
from email.utils import formatdate
from functools import partial
from pathlib import Path
from typing import Any

from loopback import FENCED, sensible

from miner.ledger import Request

# Faults that pass: the next try may succeed.
TRANSIENT = (
    *("429", "429_seconds", "429_date", "429_reset", "408", "409", "500", "502", "503", "504", "529", "hang", "reset"),
    *("close", "hang_up", "malformed", "truncated", "empty_choices", "null", "error_200", "no_message"),
)
# Answers of a model, good or bad, which a later try would not change.
NATURES = ("broken", "broken_always", "refusal", "filter_finish", "length", "filter_400", "too_long", "400", "422")
STOPS = ("401", "402", "403", "404_model", "quota")
CUT = 5000  # bytes that a reply which is cut midway promised
SAFE = "Reply with JSON alone: the grade of this passage, 0 to 3."


# ---------------------------------------------------------------- requests and their answers


def requests(count: int, chars: int = 200, start: int = 0, form: bool = False, **more: Any) -> Iterator[Request]:
    """Requests that the server grades; made one by one. form: they ask for a JSON schema."""
    for number in range(start, start + count):
        text = f"<{number}> " + hashlib.sha256(str(number).encode()).hexdigest() * (chars // 64 + 1)
        user = {"role": "user", "content": text[: max(chars, 12)]}
        body: dict[str, Any] = {"model": "toy", "messages": [{"role": "system", "content": SAFE}, user]}
        body |= {"max_tokens": 20, **more}
        if form:
            schema = {"name": "grade", "strict": True, "schema": GRADE_SCHEMA}
            body["response_format"] = {"type": "json_schema", "json_schema": schema}
        yield Request(digest(body), body, {"task": "test", "number": str(number)})


GRADE_SCHEMA = {
    "type": "object",
    "properties": {"evidence": {"type": "string"}, "grade": {"type": "integer"}},
    "required": ["evidence", "grade"],
    "additionalProperties": False,
}


def check(response: dict[str, Any]) -> str:
    """What is wrong with the form of an answer, or "". A refusal and an answer that was cut have no form to mend."""
    choice = response["choices"][0]
    if choice["finish_reason"] != "stop" or choice["message"].get("refusal"):
        return ""
    try:
        return "" if json.loads(choice["message"]["content"])["grade"] in range(4) else "grade is not from 0 to 3"
    except (ValueError, KeyError, TypeError) as error:
        return f"no grade: {error!r}"


def digest(body: dict[str, Any]) -> str:
    """What makes a request the same: its messages. The form asked for is not among them, a backend may change it."""
    return hashlib.sha256(json.dumps(body["messages"]).encode()).hexdigest()[:32]


def is_repair(body: dict[str, Any]) -> bool:
    return any(message["role"] == "assistant" for message in body["messages"])


def is_probe(body: dict[str, Any]) -> bool:
    """No work of a job: a backend wants to know whether the server is alive, and what forms of answers it takes."""
    text = question(body)
    return not text.startswith("<") and not FENCED.search(text)


def question(body: dict[str, Any]) -> str:
    """The first thing that the user says: a repair repeats it."""
    return next((m["content"] for m in body["messages"] if m["role"] == "user"), "")


def answer(body: dict[str, Any]) -> str:
    """The right answer, from the question alone."""
    text = question(body)
    asked = {"messages": [{"content": text}]}
    if is_probe(body):
        schema = schema_of(body)
        return json.dumps({name: EXAMPLES[schema["properties"][name]["type"]] for name in schema["required"]})
    if FENCED.search(text):  # the prompt of a real job
        reply = sensible(asked)
        assert isinstance(reply, tuple)
        content: str = json.loads(reply[2])["choices"][0]["message"]["content"]
        return content
    return json.dumps({"evidence": "", "grade": hashlib.sha256(text.encode()).digest()[0] % 4})


EXAMPLES = {"boolean": True, "integer": 0, "number": 0.5, "string": "hello", "array": [], "object": {}}
GREETING = {"properties": {"greeting": {"type": "string"}}, "required": ["greeting"]}


def schema_of(body: dict[str, Any]) -> dict[str, Any]:
    """The schema that a request asks for, in whatever form; a greeting where it asks for none."""
    wanted = body.get("response_format") or {}
    found = (body.get("structured_outputs") or {}).get("json") or wanted.get("schema") or GREETING
    schema: dict[str, Any] = wanted.get("json_schema", {}).get("schema", found)
    return schema


def usage(body: dict[str, Any]) -> tuple[int, int]:
    """Prompt and completion tokens: fewer than bytes, as everywhere."""
    size = sum(len(str(message["content"])) for message in body["messages"])
    return size // 4 + 8, 10


def completion(body: dict[str, Any], content: str, finish: str = "stop", model: str = "", **message: Any) -> bytes:
    prompt, written = usage(body)
    said = {"role": "assistant", "content": content, **message}
    reply = {
        "id": "fault",
        "object": "chat.completion",
        "created": 0,
        "model": model or body.get("model", ""),
        "choices": [{"index": 0, "finish_reason": finish, "message": said}],
        "usage": {"prompt_tokens": prompt, "completion_tokens": written, "total_tokens": prompt + written},
    }
    return json.dumps(reply).encode()


def error(message: str, **more: Any) -> bytes:
    return json.dumps({"error": {"message": message, **more}}).encode()


def clean(body: dict[str, Any]) -> dict[str, Any]:
    """The chat completion object of a server without faults."""
    whole: dict[str, Any] = json.loads(completion(body, answer(body)))
    return whole


@contextlib.contextmanager
def no_longer_than(seconds: float) -> Iterator[None]:
    """Fail where a run hangs, instead of waiting for ever. In the main thread alone."""

    def late(*_: object) -> None:
        raise TimeoutError(f"the run took more than {seconds:g} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


# ---------------------------------------------------------------- the script


@dataclass
class Script:
    """What the server does. Every field can be changed while it runs.

    share of the tries meet one of `faults`, but none after the first `most` tries of a request. nature_share of the
    requests get one of `natures`, for ever; a repair mends "broken". plans: [{"where": text in the question, "after":
    requests seen before, "replies": one for each try, "forever": the last one again and again, "repairs": for repairs
    too}], the first that fits goes before the rest. concurrent, rate: more gets a 429 (rate: requests a second, from a
    bucket that holds `burst`); announce: each reply has x-ratelimit headers. takes: forms of answers that the server
    knows, null: all; refuses_with: status for others; ignores: forms that it takes and does not keep to.
    """

    seed: int = 0
    delay_s: float = 0.0
    slow_s: float = 0.3
    retry_after_s: float = 0.05
    share: float = 0.0
    faults: tuple[str, ...] = TRANSIENT
    most: int = 3
    nature_share: float = 0.0
    natures: tuple[str, ...] = NATURES
    plans: tuple[dict[str, Any], ...] = ()
    concurrent: int | None = None
    rate: float | None = None
    burst: float = 10.0
    announce: bool = False
    takes: tuple[str, ...] | None = None
    ignores: tuple[str, ...] = ()
    refuses_with: int = 400

    def update(self, **changes: Any) -> None:
        known = {item.name for item in fields(self)}
        for name, value in changes.items():
            if name not in known:
                raise ValueError(f"no such field: {name}")
            setattr(self, name, tuple(value) if isinstance(value, list) else value)

    def chance(self, *what: object) -> float:
        raw = hashlib.sha256(":".join(map(str, (self.seed, *what))).encode()).digest()
        return int.from_bytes(raw[:7]) / (1 << 56)

    def choice(self, key: str, nth: int, body: dict[str, Any], seen: int) -> str:
        """What the n-th try (from 0) of a request gets: the name of a fault, or "ok"."""
        for plan in self.plans:
            if is_repair(body) and not plan.get("repairs"):
                continue
            if plan.get("where", "") in question(body) and seen >= plan.get("after", 0):
                replies = plan["replies"]
                if nth < len(replies) or plan.get("forever"):
                    return str(replies[min(nth, len(replies) - 1)])
                break
        nature = "ok" if is_probe(body) else self._nature(body)
        if nth < self.most and self.chance(key, nth) < self.share:
            fault = self.faults[int(self.chance("which", key, nth) * len(self.faults))]
            return nature if fault == "slow" and nature != "ok" else fault
        return nature

    def _nature(self, body: dict[str, Any]) -> str:
        """The answer that the model has for a request, at every try: good, or of one bad kind."""
        first = digest({"messages": body["messages"][:2]})  # of a repair: what it repairs
        nature = "ok"
        if self.natures and self.chance("nature", first) < self.nature_share:
            nature = self.natures[int(self.chance("which nature", first) * len(self.natures))]
        return "ok" if is_repair(body) and nature != "broken_always" else nature


# ---------------------------------------------------------------- the replies

Parts = tuple[int, dict[str, str], bytes]
# How servers word it.
TOO_LONG = {
    "too_long_openai": "This model's maximum context length is 128000 tokens. However, your messages have 129000.",
    "too_long_llama": "the request exceeds the available context size. try increasing the context size",
    "too_long_vllm": "The decoder prompt (length 9000) is longer than the maximum model length of 4096.",
    "too_long_anthropic": "prompt is too long: 210000 tokens > 200000 maximum",
}


def _status(status: int, message: str, headers: dict[str, str] | None = None, **more: Any) -> Parts:
    return status, headers or {}, error(message, **more)


def refusals(script: Script, body: dict[str, Any]) -> dict[str, Callable[[], Parts]]:
    """Name -> status, headers and content of the replies that are no answers."""
    long = {name: partial(_status, 400, words) for name, words in TOO_LONG.items()}
    soon = f"{script.retry_after_s:g}"
    milliseconds = f"{script.retry_after_s * 1000:.0f}ms"
    reset = {"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": milliseconds}
    return {
        "429": lambda: _status(429, "slow down"),
        "429_seconds": lambda: _status(429, "slow down", {"retry-after": soon}),
        "429_date": lambda: _status(429, "slow down", {"retry-after": formatdate(time.time() + 1, usegmt=True)}),
        "429_reset": lambda: _status(429, "slow down", reset),
        "filter_400": lambda: _status(400, "blocked by the content filter", code="content_filter"),
        "too_long": lambda: _status(
            400, "the model's context has 4096 tokens, the request more", code="context_length_exceeded"
        ),
        **long,
        "404_model": lambda: _status(404, "The model `toy` does not exist", code="model_not_found"),
        "quota": lambda: _status(429, "You exceeded your current quota", code="insufficient_quota"),
        "malformed": lambda: (200, {}, b"<html>welcome</html>"),
        "empty_choices": lambda: (200, {}, b'{"id": "x", "choices": []}'),
        "null": lambda: (200, {}, b"null"),
        "no_message": lambda: (200, {}, b'{"choices": [{"index": 0}]}'),
        "error_200": lambda: (200, {}, error("overloaded")),
        "truncated": lambda: (200, {}, completion(body, answer(body))[:-30]),
    }


def answers(body: dict[str, Any]) -> dict[str, Callable[[], bytes]]:
    """Name -> the chat completion of a model that answers, well or not."""
    return {
        "ok": lambda: completion(body, answer(body)),
        "slow": lambda: completion(body, answer(body)),
        "last_in_window": lambda: completion(body, answer(body)),
        "broken": lambda: completion(body, '{"evidence": "", "grade": "high"}'),
        "broken_always": lambda: completion(body, '{"evidence": ""'),
        "refusal": lambda: completion(body, "", refusal="I will not"),
        "filter_finish": lambda: completion(body, "", "content_filter"),
        "length": lambda: completion(body, '{"evidence": "the', "length"),
        "wrong_model": lambda: completion(body, answer(body), model="another"),
    }


def form_of(body: dict[str, Any]) -> str:
    """none, json_object, json_object_schema, structured_outputs or json_schema."""
    if "structured_outputs" in body:
        return "structured_outputs"
    wanted = body.get("response_format") or {"type": "none"}
    return str(wanted["type"]) + ("_schema" if wanted["type"] == "json_object" and "schema" in wanted else "")


# ---------------------------------------------------------------- the server


@dataclass
class Seen:
    """One request: when it came (seconds, monotonic), how often it was answered in full, how often charged."""

    arrived: list[float] = field(default_factory=list)
    completed: int = 0
    charged: int = 0
    probe: bool = False


@dataclass
class State:
    script: Script
    seen: dict[str, Seen] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)
    kinds: Counter[str] = field(default_factory=Counter)
    forms: Counter[str] = field(default_factory=Counter)
    drops: list[tuple[str, float, float]] = field(default_factory=list)
    in_flight: int = 0
    peak: int = 0
    tokens: float = 0.0
    filled_at: float = field(default_factory=time.monotonic)
    last_at: float = 0.0

    def admits(self) -> bool:
        """Is there room for one more? Called with the request counted in flight."""
        script, now = self.script, time.monotonic()
        if script.concurrent is not None and self.in_flight > script.concurrent:
            return False
        if script.rate is None:
            return True
        self.tokens = min(script.burst, self.tokens + (now - self.filled_at) * script.rate)
        self.filled_at = now
        if self.tokens < 1:
            return False
        self.tokens -= 1
        return True

    def headers(self) -> dict[str, str]:
        script = self.script
        if not script.announce or script.rate is None:
            return {}
        lacking = max(0.0, 1 - self.tokens) / script.rate
        return {
            "x-ratelimit-limit-requests": f"{script.rate * 60:.0f}",
            "x-ratelimit-remaining-requests": f"{int(self.tokens)}",
            "x-ratelimit-reset-requests": f"{lacking * 1000:.0f}ms",
        }

    def summary(self) -> dict[str, Any]:
        names = ("arrivals", "completed", "wasted", "probes", "prompt_tokens", "completion_tokens")
        more = {"in_flight": self.in_flight, "peak": self.peak, "now": time.monotonic(), "last_at": self.last_at}
        return {name: self.counts[name] for name in names} | more

    def everything(self) -> dict[str, Any]:
        keys = {
            key: {"arrived": seen.arrived, "completed": seen.completed, "charged": seen.charged}
            for key, seen in self.seen.items()
            if not seen.probe
        }
        more = {"kinds": self.kinds, "forms": self.forms, "drops": self.drops, "keys": keys}
        return self.summary() | more


class Connection(asyncio.Protocol):
    """HTTP/1.1 with keep-alive; the next request is read when the last one is answered, as clients do it."""

    def __init__(self, state: State, live: set[Connection]) -> None:
        self.state, self.live = state, live
        self.buffer = bytearray()
        self.timer: asyncio.TimerHandle | None = None
        self.key = ""  # of the request that is being answered, or was answered last
        self.busy = False
        self.answered_at = 0.0

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.live.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self.live.discard(self)
        if self.timer is not None:
            self.timer.cancel()
        if self.key:
            age = 0.0 if self.busy else time.monotonic() - self.answered_at
            self.state.drops.append((self.key, age, time.monotonic()))
        self._done()

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        end = self.buffer.find(b"\r\n\r\n")
        if end < 0:
            return
        head = bytes(self.buffer[:end]).decode("latin-1")
        lines = head.split("\r\n")
        length = next((int(line[15:]) for line in lines if line[:15].lower() == "content-length:"), 0)
        if len(self.buffer) < end + 4 + length:
            return
        content = bytes(self.buffer[end + 4 : end + 4 + length])
        del self.buffer[: end + 4 + length]
        method, path, _ = lines[0].split(" ")
        if method == "GET" or path == "/control":
            return self._control(path, content)
        self._chat(json.loads(content))

    def _control(self, path: str, content: bytes) -> None:
        if path == "/control":
            self.state.script.update(**json.loads(content))
            self.state.tokens = min(self.state.tokens, self.state.script.burst)
        whole = path == "/stats"
        self._write(200, {}, json.dumps(self.state.everything() if whole else self.state.summary()).encode())

    def _chat(self, body: dict[str, Any]) -> None:
        state = self.state
        self.key, self.busy = digest(body), True
        now = time.monotonic()
        seen = state.seen.setdefault(self.key, Seen(probe=is_probe(body)))
        state.in_flight += 1
        state.peak = max(state.peak, state.in_flight)
        if is_probe(body):
            state.counts["probes"] += 1
        else:
            state.counts["arrivals"] += 1
            state.forms[form_of(body)] += 1
        state.last_at = now
        full = not state.admits()
        kind = (
            "full"
            if full
            else state.script.choice(self.key, len(seen.arrived), body, state.counts["arrivals"] - (not is_probe(body)))
        )
        # A request that found no room never met its fault: the next try does.
        if not full:
            seen.arrived.append(now)
        if not full and state.script.takes is not None and form_of(body) not in state.script.takes:
            kind = "form"
        if not is_probe(body):
            state.kinds[kind] += 1
        self._reply(kind, body, seen)

    def _reply(self, kind: str, body: dict[str, Any], seen: Seen) -> None:
        script, state = self.state.script, self.state
        if kind == "full":
            state.counts["wasted"] += 1
            return self._later(0.0, 429, state.headers(), error("too many requests"))
        if kind == "form":
            return self._later(0.0, script.refuses_with, {}, error("response_format is not known here"))
        if form_of(body) in script.ignores:
            body = {name: body[name] for name in body if name not in ("response_format", "structured_outputs")}
        known = answers(body)
        if kind in known or kind in ("reset", "close", "truncated", "hang"):  # the model worked, so it is charged
            prompt, written = usage(body)
            state.counts["prompt_tokens"] += prompt
            state.counts["completion_tokens"] += written
            seen.charged += 1
        if kind in known:
            headers = state.headers()
            if kind == "last_in_window":
                headers = {"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": f"{script.slow_s:g}s"}
            delay = script.slow_s if kind == "slow" else script.delay_s
            return self._later(delay, 200, headers, known[kind](), seen)
        if kind in ("hang", "hang_up", "reset", "close"):
            return self._break(kind)
        other = refusals(script, body)
        status, headers, content = other[kind]() if kind in other else _status(int(kind), f"HTTP {kind} by script")
        if status == 429:
            state.counts["wasted"] += 1
        self._later(0.0, status, headers, content)

    def _break(self, kind: str) -> None:
        if kind == "hang":
            return  # for ever
        if kind == "hang_up":
            self.transport.close()
            return
        self.transport.write(_head(200, {}, CUT) + b'{"choices": [{"message": {"content": "{')
        if kind == "close":
            self.transport.close()
            return
        self.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.timer = asyncio.get_running_loop().call_later(0.005, self.transport.abort)

    def _later(
        self, delay_s: float, status: int, headers: dict[str, str], content: bytes, seen: Seen | None = None
    ) -> None:
        if delay_s:
            loop = asyncio.get_running_loop()
            self.timer = loop.call_later(delay_s, self._write, status, headers, content, seen)
        else:
            self._write(status, headers, content, seen)

    def _write(self, status: int, headers: dict[str, str], content: bytes, seen: Seen | None = None) -> None:
        if self.transport.is_closing():
            return
        if seen is not None:
            seen.completed += 1
            self.state.counts["probes_completed" if seen.probe else "completed"] += 1
        self._done()  # before the reply: the client may ask again as soon as it has this one
        self.transport.write(_head(status, headers, len(content)) + content)

    def _done(self) -> None:
        if self.busy:
            self.busy, self.answered_at = False, time.monotonic()
            self.state.in_flight -= 1


def _head(status: int, headers: dict[str, str], length: int) -> bytes:
    lines = [f"HTTP/1.1 {status} X", "content-type: application/json", f"content-length: {length}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


async def serve(script: Script, port: int, ready: Callable[[int], None], stop: asyncio.Event) -> None:
    live: set[Connection] = set()
    state = State(script)
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Connection(state, live), "127.0.0.1", port, backlog=1024)
    ready(server.sockets[0].getsockname()[1])
    await stop.wait()
    server.close()
    for connection in list(live):
        connection.transport.abort()
    await asyncio.sleep(0)  # lets each connection be told


class Watched:
    """What a server in a thread and one in a process have in common."""

    port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def _call(self, method: str, path: str, content: bytes | None = None) -> dict[str, Any]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        with contextlib.closing(connection):
            connection.request(method, path, content)
            found: dict[str, Any] = json.loads(connection.getresponse().read())
        return found

    def counts(self) -> dict[str, Any]:
        """arrivals, completed, wasted (429), probes, prompt_tokens, completion_tokens, in_flight, peak, now.

        A probe is no arrival and is not completed. Tokens are charged for whatever the model worked on, probes too.
        """
        return self._call("GET", "/counts")

    def stats(self) -> dict[str, Any]:
        """The counts with kinds (of reply), forms (of answer asked for), drops and keys: {digest: its Seen}; no probes.

        drops: (digest, age, when) of each connection that went away: the request it was answering (age 0), or the one
        that it had answered `age` seconds before.
        """
        return self._call("GET", "/stats")

    def change(self, **script: Any) -> None:
        self._call("POST", "/control", json.dumps(script).encode())

    def until(self, when: Callable[[dict[str, Any]], bool], wait_s: float = 30.0) -> dict[str, Any]:
        """The counts at the first look at which `when` holds."""
        deadline = time.monotonic() + wait_s
        while not when(found := self.counts()):
            assert time.monotonic() < deadline, f"the moment never came: {found}"
            time.sleep(0.002)
        return found


class FaultServer(Watched):
    """The server in a thread of this process."""

    def __init__(self, **script: Any) -> None:
        self.script = Script(**script)

    def __enter__(self) -> FaultServer:
        started = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._stop = asyncio.Event()

        def ready(port: int) -> None:
            self.port = port
            started.set()

        def work() -> None:
            self._loop.run_until_complete(serve(self.script, 0, ready, self._stop))
            self._loop.close()

        self._thread = threading.Thread(target=work, daemon=True)
        self._thread.start()
        assert started.wait(30)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(30)


class Spawned(Watched):
    """The server in a process of its own, so that it takes no time from a client in this one."""

    def __init__(self, **script: Any) -> None:
        self.command = [sys.executable, str(Path(__file__).resolve()), "--script", json.dumps(script)]

    def __enter__(self) -> Spawned:
        self._process = subprocess.Popen(self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        self.port = int(self._process.stdout.readline())
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate(timeout=30)  # closes its stdin, which ends it


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--port", type=int, default=0)
    options.add_argument("--script", default="{}", help="JSON, see Script")
    given = options.parse_args()
    script = Script()
    script.update(**json.loads(given.script))

    async def run() -> None:
        stop = asyncio.Event()
        asyncio.get_running_loop().add_reader(0, stop.set)  # its stdin is closed, or the process that holds it is dead
        await serve(script, given.port, lambda port: print(port, flush=True), stop)  # noqa: T201

    asyncio.run(run())


if __name__ == "__main__":
    main()
