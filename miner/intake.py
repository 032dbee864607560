"""Take a file of answers into a job: whatever its order, with rows missing, doubled, failed or foreign."""

from __future__ import annotations

from pathlib import Path

from miner import engine
from miner.llms import batch_files
from miner.llms.recorded import RecordedBackend
from miner.steps import Context


def take(context: Context, path: Path) -> dict[str, int]:
    """Run the LLM steps with the file as the only source of answers; counts by what became of each line.

    The first five add up to the lines of the file; "still missing" is what `miner requests` would write now.
    """
    backend = RecordedBackend(batch_files.read_answers(path))
    before = len(context.ledger)
    known = {key for key in backend.lines if context.ledger.has(key)}
    context.backend = lambda endpoint, meter: backend
    names = [step.name for step in engine.plan(context.job)]
    engine.advance(context, "synthetic_judgments" if "synthetic_judgments" in names else "judgments")
    used = {key for key in backend.lines if context.ledger.has(key)}
    failed = {key for key, line in backend.lines.items() if line.response is None}
    return {
        "taken in": len(context.ledger) - before,
        "known before": len(known),
        "failed": len(failed - known),
        "doubled": backend.doubled,
        "foreign": len(backend.lines.keys() - used - failed),
        "still missing": len(engine.pending(context)),
    }
