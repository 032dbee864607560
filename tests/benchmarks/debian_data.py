"""English descriptions of Debian's packages as a BEIR folder: the one-line synopsis asks, the description answers.

On a Debian or Ubuntu machine: apt-get -o Acquire::Languages=en update
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import common

LISTS = Path("/var/lib/apt/lists")
HELPER = "/usr/lib/apt/apt-helper"  # unpacks lz4


def write(out: Path, passages: int, queries: int) -> None:
    """The first `passages` distinct descriptions; the synopses of `queries` of them, evenly spread."""
    found = dict[str, tuple[str, str]]()
    for package, synopsis, text in _entries():
        found.setdefault(text, (package, synopsis))
    # Numbered: a package that was updated may have two descriptions.
    rows = [(f"{n:05}-{package}", synopsis, text) for n, (text, (package, synopsis)) in enumerate(found.items())]
    rows = rows[:passages]
    if len(rows) < passages:
        raise SystemExit(f"{LISTS}: {len(rows)} descriptions; run: apt-get -o Acquire::Languages=en update")
    asked = [rows[at * len(rows) // queries] for at in range(queries)]
    common.write_jsonl(out / "corpus.jsonl", ({"_id": p, "title": "", "text": text} for p, _, text in rows))
    common.write_jsonl(out / "queries.jsonl", ({"_id": f"q-{p}", "text": synopsis} for p, synopsis, _ in asked))
    common.write_qrels(out / "qrels" / "train.tsv", ((f"q-{p}", p, 1) for p, _, _ in asked))


def _entries() -> Iterator[tuple[str, str, str]]:
    """(package, synopsis, description on one line)."""
    for path in sorted(LISTS.glob("*_main_i18n_Translation-en*")):
        done = subprocess.run([HELPER, "cat-file", str(path)], capture_output=True, text=True, check=True)
        for entry in done.stdout.split("\n\n"):
            package, _, rest = entry.removeprefix("Package: ").partition("\n")
            synopsis, _, text = rest.partition("Description-en: ")[2].partition("\n")
            words = " ".join(word for word in text.split() if word != ".")
            if synopsis and words:
                yield package.strip(), synopsis, words
