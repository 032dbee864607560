"""The HTML text of a report: one file that needs no network, with its data inside and its own script pinned by hash.

The data are base64 of gzip of JSON, so no text of a corpus can end the element that it stands in. The scripts are those
of miner/report/, and the page's policy allows these very bytes and nothing else.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import html
import json
import re
from importlib import resources
from typing import Any

FIRST = "theme.js"  # runs before the page is drawn, or a dark page would flash white
SCRIPTS = (
    "dom.js",
    "text.js",
    "words.js",
    "data.js",
    "filter.js",
    "marks.js",
    "list.js",
    "overview.js",
    "card.js",
    "filterbar.js",
    "decisions.js",
    "marked.js",
    "comparison.js",
    "main.js",
)
_SLOT = re.compile(r"\{\{(\w+)\}\}")


def page(payload: dict[str, Any]) -> str:
    """One self-contained HTML page that shows a payload.

    payload: what report_data makes, JSON-able, without NaN (ValueError). The same payload gives the same text. Its
    SHA-256 stands in the page as the name under which a browser keeps the reader's marks.
    """
    # ASCII: half a surrogate pair, which a text may hold, has an escape in JSON and no UTF-8.
    data = json.dumps(payload, separators=(",", ":"), allow_nan=False).encode("ascii")
    first, script = _file(FIRST), _script()
    slots = {
        "policy": _policy(first, script),
        "title": html.escape(" ".join(str(payload.get("title", "")).split())),
        "style": _file("page.css"),
        "first": first,
        "script": script,
        "hash": hashlib.sha256(data).hexdigest()[:32],
        "payload": base64.b64encode(gzip.compress(data, 6, mtime=0)).decode(),
    }
    return _SLOT.sub(lambda found: slots[found[1]], _file("page.html"))


def _file(name: str) -> str:
    return (resources.files("miner") / "report" / name).read_text(encoding="utf-8")


def _script() -> str:
    """All parts in one function of their own: they share names, and the page has no global of theirs."""
    parts = "\n".join(_file(name) for name in SCRIPTS)
    return f'(() => {{\n"use strict";\n{parts}}})();\n'


def _policy(*scripts: str) -> str:
    """Nothing may be loaded, sent or run but these scripts. Styles stand in the page and in its plots."""
    pins = (base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in scripts)
    allowed = " ".join(f"'sha256-{pin}'" for pin in pins)
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none';"
        " require-trusted-types-for 'script'; trusted-types plot"
    )
