"""The step that has the generator write what mining and judging left short."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from miner import encoders, ranking, store
from miner.judge_steps import counted, judged_parts, plain, references, warn, write_failures
from miner.records import SYNTHETIC, content_id, texts
from miner.stages import synthetic
from miner.steps import Context, Done

Array = np.ndarray[Any, Any]


def run_synthetic(run: Context, work: Path) -> Done:
    wanted = demands(run)
    counts: dict[str, Counter[str]] = {"status": Counter(), "copy_of": Counter(), "tokens": Counter()}
    missing: Counter[str] = Counter()
    with run.asking("generator", "generate", len(wanted)) as ask:
        table = synthetic.run(
            lambda: iter(wanted), run.prompt("generator"), run.endpoint("generator"), run.job.generator, ask
        )
    table = synthetic.mark_copies(table, texts(run.table("corpus", "passages")))
    if any(table.column("text").to_pylist()):
        table = synthetic.score(table, _query_vectors(run), encoders.load(run.job.encoder, run.job.token_outputs))
    store.write_batches(work / "synthetic.parquet", SYNTHETIC, counted([table], counts, missing))
    write_failures(work)
    warn(run, "generate", missing)
    return Done({"rows": table.num_rows, **plain(counts)}, complete=not missing)


def demands(run: Context, judged: bool = True) -> list[synthetic.Demand]:
    """What the generator is to write. judged: false where the judge has not answered yet: then the most it may be."""
    reference, wanted = references(run), run.job.mining.negatives
    found = []
    for part, answers in judged_parts(run) if judged else ((part, None) for part in run.parts("candidates", "part")):
        taken = _taken(store.read_table(part), answers, wanted) if judged else Counter[str]()
        for query_id in sorted(set(positives_of(part).column("query_id").to_pylist())):
            count = synthetic.wanted(wanted - taken[query_id], wanted, run.job.generator)
            for facet in synthetic.facets(int(content_id(query_id), 16), count, run.job.generator):
                doc_id = reference[query_id]
                found.append(synthetic.Demand(query_id, run.queries[query_id], doc_id, run.passages[doc_id], facet))
    return found


def _taken(table: pa.Table, judged: pa.Table | None, wanted: int) -> Counter[str]:
    """Mined negatives by query. An answer that is still to come may admit its passage, so it counts as one."""
    slots = ranking.slots(table, judged, wanted).tolist()
    taken = Counter(q for q, slot in zip(table.column("query_id").to_pylist(), slots, strict=True) if slot)
    if judged is not None:
        taken.update(judged.filter(pc.equal(judged.column("status"), "missing")).column("query_id").to_pylist())
    return taken


def positives_of(part: Path) -> pa.Table:
    return store.read_table(part.with_name(part.name.replace("part-", "positives-")))


def _query_vectors(run: Context) -> Callable[[list[str]], Array]:
    vectors_ = np.load(run.folder.step("vectors") / "queries.npy", mmap_mode="r")
    row = {query_id: i for i, query_id in enumerate(run.table("corpus", "queries").column("query_id").to_pylist())}
    return lambda ids: np.asarray(vectors_[[row[i] for i in ids]])
