"""Two evaluations side by side: what flipped, whether it can be chance, and what it costs; and a check for continuous
integration that one is not worse than the other."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, Literal

from miner import agreement, prompt_eval, prompt_files, prompts
from miner.config import Judge
from miner.errors import UserError
from miner.prompts import Prompt
from miner.readers import rows as lines
from miner.resampling import SAMPLES, Interval

Row = dict[str, Any]
Outcome = Literal["pass", "regression", "inconclusive"]
MEASURES = ("kappa", "kappa_quadratic", "precision_irrelevant", "recall_irrelevant", "auc_score")
EXIT = {"pass": 0, "regression": 1, "inconclusive": 3}


@dataclass(frozen=True)
class Run:
    """A run folder, read."""

    folder: Path
    summary: Row
    results: list[Row]
    prompt: Prompt

    @property
    def name(self) -> str:
        return f"{self.summary['prompt']}@{self.summary['version']}"


# ---------------------------------------------------------------- find runs


def read_summary(folder: Path) -> Row:
    path = folder / "summary.json"
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError:
        raise UserError(
            f"{folder}: no summary.json in it, so no run of `miner prompt eval`; name a run folder"
        ) from None
    except ValueError as error:
        raise UserError(f"{path}: broken JSON ({error}); run the evaluation again") from None
    if not isinstance(found, dict) or not {"prompt", "version", "model", "golden", "judge"} <= found.keys():
        raise UserError(f"{path}: not the summary of an evaluation; run `miner prompt eval` again")
    return found


def read_run(folder: Path) -> Run:
    summary = read_summary(folder)
    results = [row.values for row in lines.read(folder / "results.jsonl")]
    return Run(folder, summary, results, prompts.parse_file(folder / "prompt.md"))


def runs_in(root: Path) -> Iterator[tuple[Path, Row]]:
    """Run folders below a folder with their summaries, by name."""
    for path in sorted(root.glob("*/summary.json")):
        yield path.parent, read_summary(path.parent)


def candidates(name: str, root: Path, own: Path | None) -> list[tuple[Path, Row]]:
    """The runs that a name can mean: a run folder, NAME@VERSION, a version, or a prompt's name.

    A name means the present text of the prompt where that has runs, else all its versions.
    """
    for folder in (Path(name), root / name):
        if (folder / "summary.json").is_file():
            return [(folder, read_summary(folder))]
    known = list(runs_in(root))
    called, _, version = name.rpartition("@")
    found = [(f, s) for f, s in known if s["version"].startswith(version) and s["prompt"] == called] if called else []
    found = found or [(f, s) for f, s in known if len(name) >= 6 and s["version"].startswith(name)]
    found = found or [(f, s) for f, s in known if s["prompt"] == name]
    if not found:
        names = sorted({f"{s['prompt']}@{s['version']}" for _, s in known})
        raise UserError(f"{name}: no run of that name in {root}; there are {', '.join(names) or 'none'}")
    return [one for one in found if _is_present(one[1], name, own)] or found


def _is_present(summary: Row, name: str, own: Path | None) -> bool:
    try:
        return bool(prompt_files.find(name, own).version == summary["version"])
    except UserError:
        return False


def resolve(first: str, second: str, root: Path, own: Path | None) -> tuple[Run, Run]:
    """The two runs that are meant: of one golden set and, where it decides, of one model. Raises UserError."""
    all_pairs = list(product(candidates(first, root, own), candidates(second, root, own)))
    same = [(a, b) for a, b in all_pairs if a[1]["golden"]["digest"] == b[1]["golden"]["digest"]]
    if not same:
        raise UserError(f"{first}, {second}: no two runs on the same golden pairs; evaluate both on one file")
    same_model = [(a, b) for a, b in same if a[1]["model"] == b[1]["model"]] or same
    apart = [(a, b) for a, b in same_model if a[0].resolve() != b[0].resolve()] or same_model
    if len(apart) > 1:
        names = ", ".join(dict.fromkeys(str(folder) for pair in apart for folder, _ in pair))
        raise UserError(f"{first}, {second}: several runs fit; name two of these folders: {names}")
    (a, _), (b, _) = apart[0]
    return read_run(a), read_run(b)


def one(name: str, root: Path, own: Path | None) -> Run:
    """The one run that a name means. Raises UserError where there are several."""
    found = candidates(name, root, own)
    if len(found) > 1:
        names = ", ".join(str(folder) for folder, _ in found)
        raise UserError(f"{name}: several runs fit; name one of these folders: {names}")
    return read_run(found[0][0])


# ---------------------------------------------------------------- compare


def compare(first: Run, second: Run, seed: int = prompt_eval.SEED, samples: int = SAMPLES) -> Row:
    """Second against first on the pairs that both judged. Raises UserError where they cannot be compared."""
    if first.summary["judge"] != second.summary["judge"]:
        raise UserError(
            f"{first.folder}, {second.folder}: judged by other bounds or lengths"
            f" ({first.summary['judge']}, {second.summary['judge']}); evaluate one again with the settings of the other"
        )
    pairs = paired(first.results, second.results)
    if not pairs:
        raise UserError(f"{first.folder}, {second.folder}: no pair is in both; evaluate both on one golden file")
    judge = first.summary["judge"]
    return {
        "first": _side(first),
        "second": _side(second),
        "pairs": len(pairs),
        **significance(pairs, judge["relevant_from"], judge["irrelevant_to"], seed, samples),
        "text_diff": prompt_files.text_diff(first.prompt, second.prompt),
        "flips": [_flip(a, b) for a, b in pairs if a["verdict"] != b["verdict"]],
        "spent": _spent(first.summary["spent"], second.summary["spent"]),
    }


def paired(first: list[Row], second: list[Row]) -> list[tuple[Row, Row]]:
    """The results of the same pair with the same human grade in both, by (query_id, doc_id)."""
    others = {(row["query_id"], row["doc_id"]): row for row in second}
    both = [(row, others[key]) for row in first if (key := (row["query_id"], row["doc_id"])) in others]
    same = [(a, b) for a, b in both if a["human"] == b["human"]]
    return sorted(same, key=lambda pair: (pair[0]["query_id"], pair[0]["doc_id"]))


def significance(
    pairs: list[tuple[Row, Row]],
    relevant_from: int,
    irrelevant_to: int,
    seed: int,
    samples: int,
    names: tuple[str, ...] = MEASURES,
) -> Row:
    """McNemar's exact test on who was right, and the differences second - first with query-clustered intervals."""
    only_first = sum(a["right"] and not b["right"] for a, b in pairs)
    only_second = sum(b["right"] and not a["right"] for a, b in pairs)
    one, two = (prompt_eval.judged([pair[side] for pair in pairs]) for side in (0, 1))
    differences = {
        name: agreement.difference(one, two, name, relevant_from, irrelevant_to, seed, samples) for name in names
    }
    return {
        "right": {"only_first": only_first, "only_second": only_second, "both": _both(pairs)},
        "mcnemar_p": agreement.mcnemar(only_first, only_second),
        "differences": {name: _numbers(interval) for name, interval in differences.items()},
        "changed": sum(a["grade"] != b["grade"] for a, b in pairs),
    }


def _both(pairs: list[tuple[Row, Row]]) -> int:
    return sum(a["right"] and b["right"] for a, b in pairs)


def _numbers(interval: Interval) -> dict[str, float | None]:
    return {name: None if math.isnan(value) else value for name, value in interval._asdict().items()}


def _side(run: Run) -> Row:
    kept = {name: run.summary[name] for name in ("prompt", "version", "model", "mode", "measures", "accepted")}
    return {"folder": str(run.folder), **kept, "orders": run.summary.get("orders", 1)}


def _flip(first: Row, second: Row) -> Row:
    names = ("query_id", "doc_id", "tag", "query", "passage", "reason", "human")
    sides = {
        side: {name: row[name] for name in ("grade", "verdict", "evidence", "status", "detail")}
        for side, row in (("first", first), ("second", second))
    }
    became = "right" if second["right"] else "wrong" if first["right"] else "otherwise wrong"
    return {**{name: first[name] for name in names}, **sides, "became": became}


def _spent(first: Row, second: Row) -> Row:
    """What second takes more than first; a cost only where both are known."""
    counted = {name: second[name] - first[name] for name in ("requests", "prompt_tokens", "completion_tokens")}
    known = first["cost"] is not None and second["cost"] is not None
    return {**counted, "cost": second["cost"] - first["cost"] if known else None}


def decide(found: Row, max_drop: float) -> Outcome:
    """Did kappa drop by more than max_drop? Told from the interval of the difference, not from its middle.

    pass: the whole interval is above -max_drop, or no answer changed; regression: all of it is below; else nobody
    knows, and more pairs are needed.
    """
    if not found["changed"]:
        return "pass"
    low, high = found["differences"]["kappa"]["low"], found["differences"]["kappa"]["high"]
    if low is None or high is None:
        return "inconclusive"
    if low >= -max_drop:
        return "pass"
    return "regression" if high < -max_drop else "inconclusive"


# ---------------------------------------------------------------- check


def check(
    prompt: Prompt, baseline: Run, runs: Path, golden: Path | None, given: dict[str, str | None], max_drop: float
) -> Row:
    """What compare says of the prompt against the baseline, with `outcome` and the bound.

    golden, given: in place of the baseline's golden file and endpoint, where these have moved. Raises UserError.
    """
    settings = like(baseline, given)
    source = {**baseline.summary["golden"], **({"path": str(golden)} if golden else {})}
    if "path" not in source:
        raise UserError(f"{baseline.folder}: does not say which golden file it was made with; give --golden FILE")
    source = {name: source.get(name) for name in ("path", "split", "limit")}
    rows, source = prompt_eval.golden_rows(source)
    folder, _ = prompt_eval.evaluate(prompt, rows, settings, runs, source)
    found = compare(baseline, read_run(folder), settings.seed, settings.samples)
    return {"outcome": decide(found, max_drop), "max_drop": max_drop, **found}


def like(run: Run, given: dict[str, str | None]) -> prompt_eval.Settings:
    """The settings of a run; `given` values of the endpoint win."""
    values = {**run.summary["endpoint"], **{name: value for name, value in given.items() if value is not None}}
    judge = Judge.model_validate({**run.summary["judge"], "orders": run.summary.get("orders", 1)})
    return prompt_eval.Settings(prompt_eval.endpoint(values), judge, 1, run.summary["seed"])
