"""How fast a server may be asked: what it takes at once, found out; fixed rates; and when to leave it alone. Pure:
the time is always given, in seconds of a monotonic clock.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

START = 8.0
CUT = 0.85
# After a refusal the window holds for a second, then grows by one request a second, and twice as fast every two
# seconds without a further refusal. So a known limit is tried seldom, and a limit that was raised is found soon.
HOLD_S, DOUBLE_S = 1.0, 2.0
# Growing by more than half a second is guessing.
MOST_GROWTH = 0.5
# Refusals in a row, without an answer between them, after which the server is left alone for a while.
PAUSE_AFTER = 8


@dataclass
class Window:
    """The number of requests that may be in flight: additive increase, multiplicative decrease on refusals (HTTP 429)
    alone (Chiu and Jain 1989), with a slow start (Jacobson 1988) until the first one.

    Refusals of requests that were sent before the last cut tell nothing new and do not cut again.
    """

    most: int
    size: float = START
    cut_at: float = -1.0
    grown_at: float = 0.0
    refusals: int = 0

    def __post_init__(self) -> None:
        self.size = min(self.size, float(self.most))

    @property
    def slots(self) -> int:
        return max(1, int(self.size))

    def answered(self, now: float, in_flight: int) -> None:
        """An answer came. in_flight: requests under way, this one included: a window that is not used does not grow."""
        self.refusals = 0
        if in_flight >= self.slots:
            if self.cut_at < 0:
                self.size += 1
            else:
                self.size += min(self._rate(now) * (now - self.grown_at), 1.0)
            self.size = min(self.size, float(self.most))
        self.grown_at = now

    def _rate(self, now: float) -> float:
        """Requests a second by which the window grows."""
        calm = now - self.cut_at - HOLD_S
        if calm < 0:
            return 0.0
        return min(float(2.0 ** min(calm / DOUBLE_S, 30.0)), max(1.0, MOST_GROWTH * self.size))

    def refused(self, now: float, sent_at: float, in_flight: int) -> bool:
        """The server refused a request for its rate. True where so many were in a row that it is better left alone."""
        self.refusals += 1
        if sent_at > self.cut_at:
            self.size = max(1.0, min(self.size, float(in_flight)) * CUT)
            self.cut_at = self.grown_at = now
        return self.refusals >= max(PAUSE_AFTER, self.slots)


FAILURES = 10
FIRST_PROBE_S, LONGEST_PROBE_S = 1.0, 30.0
# A server that has never answered in this run is given up sooner: its address is wrong, more likely than not.
START_OUTAGE_S = 20.0


@dataclass
class Breaker:
    """Leaves a server alone that gives no answers: closed, open, and a single request now and then that probes it."""

    outage_s: float
    failures: int = 0
    down_since: float | None = None
    probe_at: float = 0.0
    probing: bool = False
    ever_answered: bool = False
    _wait: float = FIRST_PROBE_S

    @property
    def closed(self) -> bool:
        return self.down_since is None

    def lets_through(self, now: float) -> bool:
        return self.closed or (not self.probing and now >= self.probe_at)

    def answered(self) -> None:
        """The server said something, be it a refusal: it is alive."""
        self.failures, self.down_since, self.probing, self._wait = 0, None, False, FIRST_PROBE_S
        self.ever_answered = True

    def failed(self, now: float) -> bool:
        """No answer came. True where the outage has lasted too long."""
        self.failures += 1
        if self.down_since is None:
            if self.failures < FAILURES:
                return False
            self.down_since = now
        elif self.probing:
            self._wait = min(self._wait * 2, LONGEST_PROBE_S)
        else:
            return False  # sent before the breaker opened
        self.probing, self.probe_at = False, now + self._wait
        patience = self.outage_s if self.ever_answered else min(self.outage_s, START_OUTAGE_S)
        return now - self.down_since >= patience


@dataclass
class Rate:
    """So much a minute, evenly spread (the generic cell rate algorithm): requests or tokens."""

    a_minute: int | None
    next_at: float = 0.0

    def wait(self, now: float, amount: float) -> float:
        """Seconds to wait before `amount` more may go; they count as gone."""
        if self.a_minute is None:
            return 0.0
        at = max(now, self.next_at)
        self.next_at = at + amount * 60.0 / self.a_minute
        return at - now

    def correct(self, amount: float) -> None:
        """So much more (or less, where negative) went than was said."""
        if self.a_minute is not None:
            self.next_at += amount * 60.0 / self.a_minute


DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")
UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def duration(text: str) -> float | None:
    """Seconds of "6m0s", "20ms" or "1.5", as rate limit headers write them; None where it is no duration."""
    parts = DURATION.findall(text.strip())
    if parts and "".join(number + unit for number, unit in parts) == text.strip():
        return sum(float(number) * UNITS[unit] for number, unit in parts)
    try:
        return max(0.0, float(text))
    except ValueError:
        return None


def exhausted(headers: Mapping[str, str]) -> float:
    """Seconds until the server takes more, where its x-ratelimit headers say that nothing remains; else 0."""
    longest = 0.0
    for what in ("requests", "tokens"):
        if headers.get(f"x-ratelimit-remaining-{what}", "").strip() == "0":
            longest = max(longest, duration(headers.get(f"x-ratelimit-reset-{what}", "")) or 0.0)
    return longest
