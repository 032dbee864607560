"""Which language a text is in, by py3langid (BSD-3, 97 languages, offline; extra `languages`)."""

from __future__ import annotations

import importlib.util
from functools import lru_cache
from typing import Any

HINT = "pip install 'miner[languages]'"
SEEN = 400  # characters of a text that are looked at: the time goes with them
LEAST, SURE = 30, 0.9  # letters, and probability, below which nothing is said


def installed() -> bool:
    return importlib.util.find_spec("py3langid") is not None


@lru_cache(maxsize=1)
def _identifier() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


@lru_cache(maxsize=1 << 12)
def language(text: str) -> str:
    """The ISO 639-1 code; "" for a text too short to tell, or in doubt. A letter without case counts for three, since
    such scripts say more with each. Raises ImportError without the extra."""
    seen = text[:SEEN]
    if sum(1 if letter.upper() != letter.lower() else 3 for letter in seen if letter.isalpha()) < LEAST:
        return ""
    name, probability = _identifier().classify(seen)
    return str(name) if probability >= SURE else ""
