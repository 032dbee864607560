"""Throughput of the online LLM engine against a loopback server that answers after 50 ms.

    python tests/benchmarks/llm_engine.py --requests 3000 --rounds 3
    python tests/benchmarks/llm_engine.py --requests 2000 --rounds 1 --curator VENV/bin/python

Sides, in turn, each a fresh process with a fresh server (a process too):

- miner: `ask` of miner.llms with its ledger, meter and adaptive window, as a job calls it;
- bare: a loop over the same client, 64 tasks, `chat.completions.create`, answers kept in a list;
- bare raw: the same with `with_raw_response`, so that the client makes no pydantic objects;
- curator: bespokelabs-curator, in an environment of its own, its cache fresh; words stand in for its tokens, as the
  machine has no access to tiktoken's files.

Seconds are those between the first request and the last answer, imports left out; for curator, of the whole call. The
ledger of miner holds every answer when the time is taken; `bare` has nothing on disk.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
MODEL, KEY = "gpt-4o-mini", "sk-none"


Took = tuple[float, float]  # wall seconds, processor seconds


def miner_side(url: str, count: int, concurrency: int) -> Took:
    from fault_server import check, requests

    from miner import llms
    from miner.config import Endpoint
    from miner.ledger import Ledger
    from miner.meter import Meter

    importlib.import_module("miner.llms.openai")  # not part of the time
    with tempfile.TemporaryDirectory() as folder:
        endpoint = Endpoint(model="toy", base_url=url, structured="none", concurrency=concurrency)
        ledger = Ledger(Path(folder) / "ledger.sqlite")
        meter = Meter(endpoint, ledger)
        ask = llms.asker(lambda: llms.load(endpoint, meter), meter, lambda _: None)
        start, busy = time.perf_counter(), time.process_time()
        answered = sum(reply.response is not None for reply in ask(lambda: requests(count), check))
        took = time.perf_counter() - start, time.process_time() - busy
        ledger.close()
    assert answered == count
    return took


def bare_side(url: str, count: int, concurrency: int, raw: bool = False) -> Took:
    import openai
    from fault_server import requests

    kept: list[Any] = []

    async def worker(client: openai.AsyncOpenAI, left: Iterator[Any]) -> None:
        for request in left:
            if raw:
                reply = await client.chat.completions.with_raw_response.create(**request.body)
                kept.append(json.loads(reply.content))
            else:
                kept.append(await client.chat.completions.create(**request.body))

    async def all_of_them() -> None:
        left = requests(count)
        async with openai.AsyncOpenAI(base_url=url, api_key=KEY, max_retries=0) as client:
            await asyncio.gather(*(worker(client, left) for _ in range(concurrency)))

    start, busy = time.perf_counter(), time.process_time()
    asyncio.run(all_of_them())
    assert len(kept) == count
    return time.perf_counter() - start, time.process_time() - busy


CURATOR = """
import json, sys, time
url, count, concurrency = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
import tiktoken

class Words:  # stands in for the encoding that tiktoken would download: cheaper than the real one
    def encode(self, text, **_):
        return text.split()

tiktoken.get_encoding = tiktoken.encoding_for_model = lambda *_: Words()
from bespokelabs import curator

class Judge(curator.LLM):
    def prompt(self, row):
        return [{"role": "system", "content": row["system"]}, {"role": "user", "content": row["user"]}]
    def parse(self, row, response):
        return {"answer": response}

rows = [dict(zip(("system", "user"), line)) for line in json.load(open(sys.argv[4]))]
judge = Judge(
    model_name="gpt-4o-mini", backend="openai", generation_params={"max_tokens": 20},
    backend_params={"base_url": url, "max_concurrent_requests": concurrency, "max_requests_per_minute": 10_000_000,
                    "max_tokens_per_minute": 10_000_000_000, "max_retries": 2},
)
start, busy = time.perf_counter(), time.process_time()
found = judge(rows)
took = time.perf_counter() - start, time.process_time() - busy
found = getattr(found, "dataset", found)
assert len(found) == count, len(found)
print("SECONDS", *took)
"""


def curator_side(python: str, url: str, count: int, concurrency: int) -> Took:
    from fault_server import requests

    with tempfile.TemporaryDirectory() as folder:
        texts = [[message["content"] for message in request.body["messages"]] for request in requests(count)]
        rows, program = Path(folder) / "rows.json", Path(folder) / "curator_side.py"
        rows.write_text(json.dumps(texts), encoding="utf-8")
        program.write_text(CURATOR, encoding="utf-8")
        own = {"OPENAI_API_KEY": KEY, "OPENAI_BASE_URL": url, "CURATOR_CACHE_DIR": folder, "TELEMETRY_ENABLED": "0"}
        done = subprocess.run(
            [python, program, url, str(count), str(concurrency), rows],
            env={**os.environ, **own},
            capture_output=True,
            text=True,
            timeout=900,
        )
    if done.returncode:
        raise SystemExit(f"curator: {done.stderr[-3000:]}")
    wall, busy = map(float, done.stdout.split("SECONDS")[1].split()[:2])
    return wall, busy


SIDES: dict[str, Callable[..., Took]] = {
    "miner": miner_side,
    "bare": bare_side,
    "bare raw": lambda *given: bare_side(*given, raw=True),
}


def one(side: str, count: int, concurrency: int, delay_s: float, curator: str) -> Took:
    """Seconds of one side in a fresh process, against a fresh server that must have completed every request once."""
    from fault_server import Spawned

    with Spawned(delay_s=delay_s) as server:
        if side == "curator":
            took = curator_side(curator, server.url, count, concurrency)
        else:
            command = [sys.executable, __file__, "--side", side, "--url", server.url, "--requests", str(count)]
            command += ["--concurrency", str(concurrency)]
            done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OPENAI_API_KEY": KEY})
            if done.returncode:
                raise SystemExit(f"{side}: {done.stderr[-3000:]}")
            wall, busy = map(float, done.stdout.split())
            took = wall, busy
        counts = server.counts()
    assert counts["completed"] + counts["probes"] >= count, counts
    return took


def median(took: list[Took], which: int) -> float:
    return statistics.median(each[which] for each in took)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--requests", type=int, default=3000)
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--concurrency", type=int, default=64)
    options.add_argument("--delay", type=float, default=0.05, help="seconds that the server takes")
    options.add_argument("--curator", default="", help="python of an environment with bespokelabs-curator")
    options.add_argument("--side", default="", help=argparse.SUPPRESS)
    options.add_argument("--url", default="", help=argparse.SUPPRESS)
    given = options.parse_args()
    if given.side:
        took = SIDES[given.side](given.url, given.requests, given.concurrency)
        sys.stdout.write(f"{took[0]} {took[1]}\n")
        return
    sides = [*SIDES, *(["curator"] if given.curator else [])]
    times: dict[str, list[Took]] = {side: [] for side in sides}
    for _, side in itertools.product(range(given.rounds), sides):
        times[side].append(one(side, given.requests, given.concurrency, given.delay, given.curator))
    told = f"{given.requests} requests, {given.concurrency} at once, server {given.delay * 1000:g} ms"
    sys.stdout.write(
        f"{told}, load {os.getloadavg()[1]:.1f}\n\n"
        "| side | rounds | wall s | range s | requests/s | wall / miner | CPU s | CPU / miner |\n"
        "|---|---|---|---|---|---|---|---|\n"
    )
    for side in sides:
        wall, busy = median(times[side], 0), median(times[side], 1)
        spread = "-".join(f"{end([each[0] for each in times[side]]):.2f}" for end in (min, max))
        ratios = wall / median(times["miner"], 0), busy / median(times["miner"], 1)
        row = [side, len(times[side]), f"{wall:.2f}", spread, f"{given.requests / wall:.0f}", f"{ratios[0]:.2f}"]
        sys.stdout.write("| " + " | ".join(map(str, [*row, f"{busy:.2f}", f"{ratios[1]:.2f}"])) + " |\n")


if __name__ == "__main__":
    main()
