"""Canaries in a step that judges: where they stand among its pairs, and what its judge makes of them as it works."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from miner import canaries, golden, llms, store
from miner.bounds import exact_interval
from miner.canaries import JudgeDrift, Watch
from miner.config import Judge
from miner.ledger import Answer, Request
from miner.records import JUDGMENTS, fold
from miner.stages import judgments
from miner.stages.judgments import Pair, Pairs
from miner.steps import Context

log = logging.getLogger("miner")
CANARIES = pa.schema([*JUDGMENTS, ("source", pa.string())])


class Canaries:
    """The canaries of one step: where they stand, and what came of them so far."""

    def __init__(self, run: Context, pairs: Pairs, reference: dict[str, str], what: str) -> None:
        judge = run.job.judge
        self.what, self.prompt, self.judge, self.seed = what, run.prompt("judge"), judge, run.job.seed
        self.settings = judge.canaries
        self._pairs = pairs
        sizes = Counter(pair.query_id for pair in pairs())
        self.queries, self.wanted = len(sizes), round(judge.canaries.rate * sizes.total())
        own = _other_positives(run, sizes, reference)
        self.alone = self.queries - len({pair.query_id for pair in own})
        chosen = canaries.drawn([*own, *_golden_pairs(judge)], self.wanted, self.seed)
        self.own: dict[str, list[Pair]] = {}
        for pair in chosen:
            if pair.canary == "positive":
                self.own.setdefault(pair.query_id, []).append(pair)
        self.golden = [pair for pair in chosen if pair.canary == "golden"]
        self.watch = Watch(self.settings.window, self.settings.min, self.settings.halt_recall)
        self.flying: dict[str, list[Pair]] = {}
        if len(chosen) < self.settings.min:
            run.warnings.append(
                f"{what}: only {len(chosen)} canaries, and {self.settings.min} are needed to tell drift; raise"
                " judge.canaries.rate, or name a golden file"
            )

    def pairs(self) -> Iterator[Pair]:
        return canaries.mixed(self._pairs(), self.own, self.golden, self.queries, self.seed)

    def notice(self, request: Request, shown: list[Pair]) -> None:
        if any(pair.canary for pair in shown):
            self.flying[request.key] = shown

    def look(self, request: Request, answer: Answer) -> None:
        """Count the canaries of an answer that has just come."""
        shown = self.flying.get(request.key)
        if shown is None or answer.response is None:
            return
        shape = tuple(range(len(shown)))
        reply = llms.Reply(request, answer.response, answer.error)
        for pair, said in zip(shown, judgments.read(shown, [shape], [reply], self.prompt, self.judge), strict=True):
            if pair.canary and said.parsed.status == "ok":
                self.watch.add(said.verdict == "relevant")
                if self.watch.seen % self.settings.min == 0:
                    log.info("%s: %s", self.what, self.watch.line)

    def drift(self, line: str) -> JudgeDrift:
        return JudgeDrift(
            f"{self.what}: {line}, surely below judge.canaries.halt_recall {self.settings.halt_recall:g}: the judge no"
            " longer recognises relevant passages; what was answered is kept. Look at the server and its model; answers"
            " given since it changed are in the ledger"
        )

    def report(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        """Counts over all canaries of the step. Raises JudgeDrift where their recall is too low as a whole."""
        readable = [row for row in rows if row["status"] == "ok"]
        hits = sum(row["verdict"] == "relevant" for row in readable)
        least, limit = self.settings.min, self.settings.halt_recall
        if canaries.drifted(hits, len(readable), least, limit):
            raise self.drift(canaries.told(hits, len(readable)))
        found = {
            "wanted": self.wanted,
            "asked": len(rows),
            "readable": len(readable),
            "recognised": hits,
            "golden": sum(row["source"] == "golden" for row in rows),
            "queries without one of their own": self.alone,
        }
        if readable:
            low, high = exact_interval(hits, len(readable))
            numbers = {"recall": hits / len(readable), "recall low": low, "recall high": high}
            found |= {name: round(value, 4) for name, value in numbers.items()}
        return found


def _other_positives(run: Context, queries: Counter[str], reference: dict[str, str]) -> list[Pair]:
    """The positives of the judged queries that are not shown as reference, nor a copy of what is."""
    found = []
    for part in run.parts("candidates", "positives"):
        for row in store.read_table(part, ["query_id", "doc_id"]).to_pylist():
            query_id, doc_id = row["query_id"], row["doc_id"]
            if query_id in queries and doc_id != reference[query_id]:
                shown, text = run.passages[reference[query_id]], run.passages[doc_id]
                if fold(shown) != fold(text):
                    found.append(Pair(query_id, doc_id, run.queries[query_id], shown, text, "positive"))
    return found


def _golden_pairs(judge: Judge) -> list[Pair]:
    if judge.canaries.golden is None:
        return []
    pairs = golden.read(Path(judge.canaries.golden), labelled=False)
    relevant = [pair for pair in pairs if pair.grade is not None and pair.grade >= judge.relevant_from]
    return [Pair(p.query_id, p.doc_id, p.query, p.positive, p.passage, "golden") for p in relevant]


class Watched:
    """A backend that takes no further request once the judge has drifted; what is in flight comes home."""

    def __init__(self, backend: llms.Backend, birds: Canaries) -> None:
        self._backend, self._birds = backend, birds

    def close(self) -> None:
        getattr(self._backend, "close", lambda: None)()

    def answer(self, requests: Iterable[Request], done: Callable[[Request, Answer], None]) -> None:
        watch = self._birds.watch

        def looked_at(request: Request, answer: Answer) -> None:
            done(request, answer)
            self._birds.look(request, answer)

        def until_drift() -> Iterator[Request]:
            for request in requests:
                if watch.drifted:
                    return
                yield request

        self._backend.answer(until_drift(), looked_at)
        if watch.drifted:
            raise self._birds.drift(watch.line)
