"""Draw leaks-SET.svg anew from the recorded tables: leak rate over hardness, the area of a point its yield.

python tests/benchmarks/leaks_plot.py
"""

from __future__ import annotations

import re
from pathlib import Path

import leaks

HERE = Path(__file__).resolve().parent
ROW = re.compile(
    r"^\| (?P<name>[^|]+?) \| (?P<kept>[\d.]+) \| (?P<rate>[\d.]+)% \[[^]]*\] \| (?P<hard>[\d.]+) \|", re.M
)


def main() -> None:
    text = (HERE / "README.md").read_text(encoding="utf-8")
    for section in re.split(r"^### ", text, flags=re.M)[1:]:
        title = section.splitlines()[0]
        rows = {row["name"]: row for row in ROW.finditer(section)}
        if rows and "hidden positives" in title:
            points = {n: (float(r["hard"]), float(r["rate"]) / 100, float(r["kept"])) for n, r in rows.items()}
            leaks.plot(title, points, HERE / f"leaks-{title.split(':')[0]}.svg")


if __name__ == "__main__":
    main()
