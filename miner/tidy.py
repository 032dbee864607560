"""Answers that no finished step rests on any more, moved out of the ledger into a file that can be taken in again."""

from __future__ import annotations

from typing import Any

from miner import engine, judge_steps, store
from miner.errors import UserError
from miner.steps import Context

RESTING = ("judgments", "synthetic", "synthetic_judgments")


def gc(context: Context, dry_run: bool) -> dict[str, Any]:
    """Counts of answers and of unused ones, and the archive's name. Raises UserError where a step is not finished:
    then nobody can tell what it will use."""
    planned = {step.name for step in engine.plan(context.job)}
    stale = [name for name, why, _ in engine.states(context) if why and name.startswith(RESTING)]
    if stale:
        raise UserError(
            f"ledger gc: step {stale[0]} is not finished, so its answers are still wanted; run the job first"
        )
    used = set(judge_steps.keys_used(context))
    if "synthetic" in planned:
        used |= set(context.table("synthetic", "synthetic").column("request_key").to_pylist())
    lines = context.ledger.lines()
    unused = [line for line in lines if not {line["custom_id"], line["miner"].get("repairs")} & used]
    count, archive = len(context.ledger), None
    if unused and not dry_run:
        archive = store.unused_name(context.folder.root / "ledger-archive.jsonl.gz")
        store.write_jsonl(archive, unused)
        context.ledger.forget(line["custom_id"] for line in unused)
        context.ledger.vacuum()
    return {"answers": count, "unused": len(unused), "archive": archive and str(archive)}
