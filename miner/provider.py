"""What the clients of all paid services share: which failure is worth another try, when, and what is told of it."""

from __future__ import annotations

import math
import random
import re
import time
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlsplit

from miner.errors import UserError

OPENAI = "https://api.openai.com/v1"  # where a job names no server
RETRY_STATUS = {408, 409, 429, 500, 502, 503, 504, 529}
STOP_STATUS = {401, 402, 403, 404}
FIRST_WAIT_S, LONGEST_WAIT_S = 0.5, 60.0


# What servers say where a request has more tokens than the model reads.
TOO_LONG = re.compile(
    r"context.{0,20}(length|window|size)|(too|prompt) (long|large|many tokens)|maximum.{0,30}token"
    r"|longer than the maximum",
    re.IGNORECASE,
)


def host(address: str) -> str:
    """Host and port of a server, without the name and password that an address may hold."""
    return urlsplit(address).netloc.rpartition("@")[2]


def place(address: str) -> str:
    """Host, port and path: what keys and fingerprints call a server that was given no name."""
    url = urlsplit(address)
    return f"{url.hostname or ''}{f':{url.port}' if url.port else ''}{url.path.rstrip('/')}"


def checked_key(name: str, key: str) -> str:
    """The key, where a header can hold it. Raises UserError, which never shows it."""
    if not re.fullmatch(r"[!-~]+", key):
        raise UserError(f"{name} holds a character that no key has (a space, a line end, a letter beyond ASCII)")
    return key


def clean(text: str, key: str) -> str:
    """One short line without the key, which is taken out before the cut: half a key would not be found."""
    return " ".join(text.replace(key, "***").encode("utf-8", "replace").decode().split())[:200]


def refusal(failure: Any, key: str) -> str:
    """What a server said beside its status. failure: an openai.APIStatusError."""
    body: Any = failure.body
    message = body.get("message") if isinstance(body, dict) else body
    return f"HTTP {failure.status_code}: {clean(str(message or body or failure), key)}"


def is_final(failure: Any) -> bool:
    """Can no further request succeed? failure: an openai.APIStatusError."""
    return failure.status_code in STOP_STATUS or getattr(failure, "code", None) == "insufficient_quota"


def broken(failure: Exception, timeout_s: float, key: str) -> str:
    """What to write down of a request that got no whole reply."""
    import openai

    if isinstance(failure, TimeoutError | openai.APITimeoutError):
        return f"no answer within {timeout_s:g} s"
    cause = f" ({type(failure.__cause__).__name__})" if failure.__cause__ else ""
    return f"{type(failure).__name__}: {clean(str(failure), key)}{cause}"


def wait(attempt: int, failure: Any = None) -> float:
    """Seconds before the next try: the server's Retry-After (seconds, or a date), else exponential with full jitter."""
    given = failure.response.headers.get("retry-after") if failure is not None else None
    seconds = _seconds(given or "nan")
    if math.isnan(seconds):
        return random.uniform(0, min(LONGEST_WAIT_S, FIRST_WAIT_S * 2**attempt))
    return min(max(seconds, 0.0), LONGEST_WAIT_S)


def _seconds(given: str) -> float:
    try:
        return float(given)
    except ValueError:
        pass  # then it is a date
    try:
        return parsedate_to_datetime(given).timestamp() - time.time()
    except ValueError:
        return math.nan
