"""The OpenAI Batch API: half the price, an answer within a day, and a run that may end while its batches go on.

Each batch is noted in the ledger before it is submitted, and carries the id of that note. So whenever a run ends, the
next one finds every batch again, and submits no request of an open batch a second time.

What is reserved in the budget stands in the rows of a batch and not in the meter: another run may collect it.
"""

from __future__ import annotations

import logging
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from typing import Any, NamedTuple

import openai
from openai.types import Batch

from miner import provider
from miner.config import Endpoint, secret
from miner.errors import BudgetReached, ProviderStop, UserError
from miner.ledger import Answer, Charge, Request, Usage
from miner.llms import identity
from miner.llms.batch_desk import Desk
from miner.llms.batch_files import Draft, Intent, Intents, Line, Row, encode, request_line
from miner.meter import Meter, dollars, used

log = logging.getLogger("miner")
Done = Callable[[Request, Answer], None]
OVER = {"completed", "expired", "cancelled", "failed"}
NOT_COLLECTED = "batch submitted, not collected yet; run again to collect"
FULL_QUEUE = "token_limit_exceeded"  # of tokens that may wait at the provider: there is room when a batch is over
LOG_S = 30.0


class Fate(NamedTuple):
    """What becomes of a request without an answer: asked `again`, or given up where that is None.

    free: it cost nothing, so its reservation is given back. stop: why no further request can succeed, or "".
    """

    again: Row | None
    error: str
    free: bool
    stop: str = ""


def fate(row: Row, line: Line | None, status: str, attempts: int) -> Fate:
    """line: the failure that was told of the request, if any. status: of its batch. attempts: the most there may be."""
    later = None if row.attempts >= attempts else row._replace(attempts=row.attempts + 1)
    if line is None:
        return Fate(later, f"the batch, {status}, came back without this request", status != "completed")
    refused = line.status_code >= 400
    if provider.is_final(line):
        return Fate(row, line.error, True, line.error)
    if row.shorter and not row.mark and provider.TOO_LONG.search(line.error):
        return Fate(row._replace(mark="shortened"), line.error, True)
    if (refused and line.status_code not in provider.RETRY_STATUS) or line.code == "content_filter":
        return Fate(None, line.error, True)
    return Fate(later, line.error, refused or line.code in ("batch_expired", "batch_cancelled"))


def _total(rows: Iterable[Row]) -> Charge:
    charges = [row.charge for row in rows if row.charge is not None]
    cost = sum(charge.cost or 0.0 for charge in charges)
    return Charge(sum(charge.tokens for charge in charges), cost, len(charges))


class BatchBackend:
    def __init__(self, endpoint: Endpoint, meter: Meter, key: str) -> None:
        self._endpoint, self._meter, self._key = endpoint, meter, key

    def answer(self, requests: Iterable[Request], done: Done) -> None:
        stream = iter(requests)
        first = next(stream, None)
        if first is None:
            return
        with openai.OpenAI(
            api_key=self._key,
            base_url=self._endpoint.base_url,
            max_retries=0,
            timeout=self._endpoint.timeout_s,
        ) as client:
            desk = Desk(client, self._endpoint)
            intents = Intents(self._meter.ledger, str(client.base_url), self._endpoint.model)
            _Wave(self._endpoint, self._meter, desk, intents, done, first).run(stream)


class _Wave:
    """One call of `answer`.

    open: the batches that the provider works on. abroad: key of each request in a batch of an earlier run -> does this
    wave want it? left: batches that are over, with rows to ask again. short: set when the budget has ended. about: all
    that progress must know of a request: the requests of one wave are repairs of others, or none is.
    """

    def __init__(
        self, endpoint: Endpoint, meter: Meter, desk: Desk, intents: Intents, done: Done, first: Request
    ) -> None:
        self.endpoint, self.meter, self.ledger = endpoint, meter, meter.ledger
        self.desk, self.intents, self.done, self.first = desk, intents, done, first
        self.name = identity(endpoint)
        self.about = {name: value for name, value in first.about.items() if name == "repairs"}
        self.open: dict[str, Intent] = {}
        self.abroad: dict[str, bool] = {}
        self.left: list[Intent] = []
        self.short: BudgetReached | None = None
        self.logged_at = time.monotonic()

    def run(self, stream: Iterator[Request]) -> None:
        told = self._look_at_earlier()
        earlier = list(self.open)
        tries = {row.key: row for intent in self.left for row in self.intents.rows(intent, shorter=False)}
        self._submit(self._fresh(stream if told else chain([self.first], stream), tries))
        self.left = [kept for intent in self.left if (kept := self._unused(intent, tries)) is not None]
        if self.endpoint.batch.wait:
            self._forget_unwanted(earlier)
            self.left = []
            self._wait()
        if self.short is not None:
            raise self.short

    # ------------------------------------------------------------ batches of earlier runs

    def _look_at_earlier(self) -> bool:
        """Collect what is over, before anything new is sent. Is `first`, already off the stream, done with?

        The others are still in the stream, whose source leaves out what the ledger has by then.
        """
        told = False

        def deliver(request: Request, answer: Answer) -> None:
            nonlocal told
            is_first = request.key == self.first.key
            told = told or is_first
            (self.done if is_first else self.meter.put)(request, answer)

        for noted in self.intents.all():
            intent = self._reconciled(noted)
            if intent is not None and intent.state == "sent":
                batch = self.desk.look(intent, self.intents.folder)
                if batch.status in OVER:
                    self._collect(intent, batch, deliver)
                else:
                    self.open[intent.id] = intent
                    self.abroad |= {row.key: False for row in self.intents.rows(intent, shorter=False)}
            elif intent is not None:
                self.left.append(intent)
        return told

    def _reconciled(self, intent: Intent) -> Intent | None:
        """After a crash: was the batch submitted? If not, its requests are free, and so is their money."""
        if intent.state == "intended" and (found := self.desk.find(intent)) is not None:
            log.info("batch %s found at the provider; a run ended while it was submitted", found)
            return self._sent(intent, found)
        if intent.state not in ("writing", "intended"):
            return intent
        taken = _total(self.intents.rows(intent, shorter=False))
        kept = self.intents.keep(intent, (row._replace(charge=None) for row in self.intents.rows(intent)))
        if taken.requests:  # after the note: a kill in between must not give money back twice
            self.ledger.release(taken, sent=False)
        if intent.input_file:
            self.desk.delete(intent.input_file)
        return kept

    def _forget_unwanted(self, earlier: list[str]) -> None:
        """Do not wait for earlier batches that hold nothing asked for now; a later run looks at them.

        Where the budget ended the stream, nobody knows what would have been asked for, and all are waited for.
        """
        for name in earlier if self.short is None else []:
            if not any(self.abroad[row.key] for row in self.intents.rows(self.open[name], shorter=False)):
                del self.open[name]

    def _unused(self, intent: Intent, tries: dict[str, Row]) -> Intent | None:
        """Drop the rows that are now part of a new batch, or answered."""
        rows = (row for row in self.intents.rows(intent) if row.key in tries)
        return self.intents.keep(intent, (row for row in rows if not self.ledger.has(row.key)))

    # ------------------------------------------------------------ submitting

    def _fresh(self, stream: Iterator[Request], tries: dict[str, Row]) -> Iterator[tuple[Request, Row]]:
        """The requests that no open batch holds, each with its row; rows that were used go out of `tries`."""
        for request in stream:
            if request.key not in self.abroad:
                row = tries.get(request.key, Row(request.key))
                yield request, row._replace(shorter=request.shorter)
                tries.pop(request.key, None)
            else:
                self.abroad[request.key] = True
                if not self.endpoint.batch.wait:
                    self.done(request, Answer(None, NOT_COLLECTED))

    def _submit(self, asked: Iterator[tuple[Request, Row]]) -> None:
        """Fill and submit one batch after the other. Where the budget ends, what fits is submitted."""
        draft: Draft | None = None
        limits = self.endpoint.batch
        try:
            for request, row in asked:
                shown = Request(request.key, row.shorter if row.mark and row.shorter else request.body)
                line = encode(request_line(shown))
                if len(line) > limits.bytes:
                    self.done(request, Answer(None, f"larger than llm.batch.bytes ({limits.bytes})", final=True))
                    continue
                if draft is not None and not draft.has_room(len(line), limits.lines, limits.bytes):
                    full, draft = draft, None
                    self._send(full)
                charge = self._reserve(shown)
                draft = draft or self.intents.draft()
                self._add(draft, line, request, row._replace(charge=charge))
        except BudgetReached as error:
            self.short = error
        except BaseException:
            if draft is not None:
                draft.close()
            raise
        if draft is not None:
            self._send(draft)

    def _add(self, draft: Draft, line: bytes, request: Request, row: Row) -> None:
        draft.add(line, row)
        self.ledger.sent(request, self.name, "intended")
        if not self.endpoint.batch.wait:
            self.done(request, Answer(None, NOT_COLLECTED))

    def _reserve(self, request: Request) -> Charge | None:
        """Take the request out of the budget. From here on its row knows the charge, and the meter does not."""
        self.meter.reserve(request, batched=True)
        self.meter.lost(request)
        budget = self.meter.budget
        limited = budget.max_cost or budget.max_tokens or budget.max_requests
        return self.meter.charge(request.body, batched=True) if limited else None

    def _send(self, draft: Draft) -> None:
        draft.close()
        intent = self.intents.write(draft.intent, state="intended", lines=draft.lines)
        intent = self.intents.write(intent, input_file=self.desk.upload(self.intents.path(intent, "upload")))
        batch = self.desk.create(intent, {"miner_ledger": self._ledger_id()})
        log.info("batch %s submitted: %d requests", batch, intent.lines)
        self.open[intent.id] = self._sent(intent, batch)

    def _ledger_id(self) -> str:
        known = self.ledger.note("ledger id")
        if known is None:
            known = uuid.uuid4().hex
            self.ledger.write_note("ledger id", known)
        return str(known)

    def _sent(self, intent: Intent, batch: str) -> Intent:
        for row in self.intents.rows(intent, shorter=False):
            self.ledger.sent(Request(row.key, {}), self.name)
        intent = self.intents.write(intent, state="sent", batch=batch)
        self.intents.path(intent, "upload").unlink(missing_ok=True)
        return intent

    # ------------------------------------------------------------ collecting

    def _wait(self) -> None:
        """Poll until no batch is open; what came back without an answer is submitted again. Ctrl-C leaves all open."""
        while self.open:
            seen = {name: self.desk.look(intent, self.intents.folder) for name, intent in self.open.items()}
            over = [name for name in seen if seen[name].status in OVER]
            room = [self._collect(self.open.pop(name), seen[name], self._deliver) for name in over]
            if any(room):
                self._ask_again()
            elif self.left and not self.open:
                raise ProviderStop("the provider's queue is too short for one batch; lower llm.batch.lines")
            if self.open:
                self._log([seen[name] for name in self.open if name in seen])
                time.sleep(self.endpoint.batch.poll_s)

    def _deliver(self, request: Request, answer: Answer) -> None:
        (self.done if self.abroad.get(request.key, True) else self.meter.put)(request, answer)

    def _log(self, batches: list[Batch]) -> None:
        if time.monotonic() - self.logged_at < LOG_S:
            return
        self.logged_at = time.monotonic()
        states = ", ".join(f"{count} {name}" for name, count in sorted(Counter(b.status for b in batches).items()))
        counts = [batch.request_counts for batch in batches if batch.request_counts]
        done = sum((count.completed or 0) + (count.failed or 0) for count in counts)
        log.info("batches: %s; %d of %d requests done", states, done, sum(self.open[n].lines for n in self.open))

    def _collect(self, intent: Intent, batch: Batch, deliver: Done) -> bool:
        """Take what a batch that is over brought; what it lacks goes to `left`. False where the provider had no room.

        Raises ProviderStop where the batch was refused as a whole, or a line says that no further one can succeed.
        """
        rows = {row.key: row for row in self.intents.rows(intent, shorter=False)}
        failures = self._take_answers(intent, batch, rows, deliver)
        code, refused = self.desk.refusal(batch)
        free: list[Row] = []
        stops: list[str] = []

        def again() -> Iterator[Row]:
            for row in self.intents.rows(intent):
                if row.key not in rows or self.ledger.has(row.key):
                    continue
                line = failures.get(row.key)
                whole = Fate(row, refused, True) if refused and line is None else None
                found = whole or fate(row, line, batch.status, self.endpoint.attempts)
                stops.extend([found.stop] if found.stop else [])
                free.extend([row._replace(shorter=None)] if found.free else [])
                if found.again is None:
                    answer = Answer(None, found.error, row.attempts, final=True, endpoint=self.name)
                    deliver(self._request(row.key), answer)
                else:
                    yield found.again._replace(charge=None)

        kept = self.intents.keep(intent, again())
        if free:  # after the note: a kill in between must not give money back twice
            self.ledger.release(_total(free))
        self.left += [kept] if kept else []
        if intent.input_file:
            self.desk.delete(intent.input_file)
        self._tell(intent, batch, len(rows), kept.lines if kept else 0)
        if refused and code != FULL_QUEUE:
            raise ProviderStop(f"batch {intent.batch} was refused as a whole ({refused}); mend the job and run again")
        if stops:
            raise ProviderStop(f"the provider refuses every request ({stops[0]}); check key, quota and model")
        return not refused

    def _tell(self, intent: Intent, batch: Batch, unanswered: int, again: int) -> None:
        answered = f"{intent.lines - unanswered} of {intent.lines} answered"
        log.info("batch %s %s: %s, %d to ask again", intent.batch, batch.status, answered, again)

    def _take_answers(self, intent: Intent, batch: Batch, rows: dict[str, Row], deliver: Done) -> dict[str, Line]:
        """Deliver each answer and take its row out of `rows`. Returns the failures, by key."""
        failures: dict[str, Line] = {}
        answered: set[str] = set()
        odd: Counter[str] = Counter()
        for what, file_id in (("output", batch.output_file_id), ("errors", batch.error_file_id)):
            for line in self.desk.download(file_id, self.intents.path(intent, what)):
                if line is None:
                    odd["unreadable"] += 1
                elif line.key in answered or line.key in failures:
                    odd["doubled"] += 1
                elif line.key not in rows:
                    odd["foreign"] += 1
                if line is None or line.key not in rows:
                    continue
                if line.response is None:
                    failures.setdefault(line.key, line)
                else:
                    answered.add(line.key)
                    self._take(rows.pop(line.key), line.response, deliver)
        if odd:
            counts = ", ".join(f"{count} {name}" for name, count in sorted(odd.items()))
            log.warning("batch %s: lines ignored: %s", intent.batch, counts)
        return failures

    def _take(self, row: Row, response: dict[str, Any], deliver: Done) -> None:
        if self.ledger.has(row.key):  # a run was killed while it collected
            return
        answer = Answer(response, "", row.attempts, mark=row.mark, endpoint=self.name, batched=True)
        deliver(self._request(row.key), answer)
        if row.charge is not None:
            price, (prompt, completion, cached) = self.meter.price, used(response)
            cost = None if price is None else dollars(price, prompt, completion, cached, batched=True)
            self.ledger.settle(row.charge, Usage(prompt, completion, cached, cost))

    def _request(self, key: str) -> Request:
        return Request(key, self.ledger.request(key) or {"messages": []}, self.about)

    # ------------------------------------------------------------ asking again

    def _ask_again(self) -> None:
        """Submit what came back without an answer, and nothing else. What nobody here asks for stays in its rows."""
        left, self.left = self.left, []
        tries = {row.key: row for intent in left for row in self.intents.rows(intent, shorter=False)}

        def asked() -> Iterator[tuple[Request, Row]]:
            for intent in left:
                for row in self.intents.rows(intent):
                    body = self.ledger.request(row.key)
                    if body is not None and self.abroad.get(row.key, True):
                        yield Request(row.key, body, self.about, row.shorter), row
                        tries.pop(row.key, None)

        self._submit(asked())
        for intent in left:
            self._unused(intent, tries)


def load(endpoint: Endpoint, meter: Meter) -> BatchBackend:
    name, key = endpoint.api_key or "OPENAI_API_KEY", secret(endpoint.api_key, "OPENAI_API_KEY")
    if not key:
        raise UserError(f"{name} is not set; export it, or name another variable in llm.api_key")
    return BatchBackend(endpoint, meter, provider.checked_key(name, key))
