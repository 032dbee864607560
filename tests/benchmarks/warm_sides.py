"""The processes of warm.py: warm_sides.py data|fill|st|flag WORK …; none of them encodes a text."""

from __future__ import annotations

import hashlib
import importlib.util
import sys
import time
from pathlib import Path
from typing import Any

import common
import numpy as np

DIMENSION, CLUSTER, MARGIN, NEGATIVES, DEPTH = 384, 60, 0.05, 15, 150
Array = np.ndarray[Any, Any]


def data(work: Path, passages: str, queries: str, passage_vectors: str, query_vectors: str) -> None:
    """Vectors, and a BEIR folder of texts that only number them; query i has passage i as its positive."""
    if passage_vectors:
        docs = np.load(passage_vectors)[: int(passages)]
        asked = np.load(query_vectors)[: min(int(queries), len(docs))]
    else:
        docs, asked = simulate(int(passages), min(int(queries), int(passages)))
    np.save(work / "passages.npy", docs)
    np.save(work / "queries.npy", asked)
    folder = work / "data"
    common.write_jsonl(
        folder / "corpus.jsonl", ({"_id": f"p{i:07d}", "text": f"passage {i}"} for i in range(len(docs)))
    )
    common.write_jsonl(
        folder / "queries.jsonl", ({"_id": f"q{i:07d}", "text": f"query {i}"} for i in range(len(asked)))
    )
    common.write_qrels(folder / "qrels" / "train.tsv", ((f"q{i:07d}", f"p{i:07d}", 1) for i in range(len(asked))))


def simulate(passages: int, queries: int) -> tuple[Array, Array]:
    """Passages around centres; queries near their own passage, some of them as near to its neighbours."""
    rng = np.random.default_rng(13)
    centres = _unit(rng.standard_normal((max(passages // CLUSTER, 1), DIMENSION), np.float32))
    home = centres[rng.integers(len(centres), size=passages)]
    own = _unit(rng.standard_normal((passages, DIMENSION), np.float32))
    share = rng.uniform(0, 0.9, (queries, 1)).astype(np.float32)
    stray = _unit(rng.standard_normal((queries, DIMENSION), np.float32))
    return _unit(home + 0.9 * own), _unit(home[:queries] + share * own[:queries] + 0.9 * stray)


def _unit(vectors: Array) -> Array:
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), np.float32)


def texts(work: Path) -> tuple[list[str], list[str]]:
    counts = [len(np.load(work / f"{kind}.npy", mmap_mode="r")) for kind in ("passages", "queries")]
    return [f"passage {i}" for i in range(counts[0])], [f"query {i}" for i in range(counts[1])]


def fill(work: Path, model: str) -> None:
    """Put the vectors where miner and sentence-transformers keep theirs."""
    from miner.vector_cache import VectorCache, keys

    (folder,) = (path for path in (work / "vector-cache").iterdir() if path.is_dir())
    cache = VectorCache(folder)
    for kind, words in zip(("passages", "queries"), texts(work), strict=True):
        vectors, key = np.load(work / f"{kind}.npy", mmap_mode="r"), keys(words, len(words))
        for start in range(0, len(words), 2048):  # the size of miner's own shards
            cache.append(key[start : start + 2048], np.asarray(vectors[start : start + 2048]))
    passages, queries = texts(work)
    target = work / "st-cache"
    target.mkdir()
    base = _sentence_transformer(model).model_card_data.base_model or ""
    for name, words in (("query", queries), ("corpus", passages)):
        # The name that mine_hard_negatives looks for; where it changes, `st` fails, since it may not encode.
        key = hashlib.sha256(repr((base, None, None, words)).encode()).hexdigest()
        np.save(
            target / f"{name}_embeddings_{key}.npy",
            np.load(work / f"{'queries' if name == 'query' else 'passages'}.npy"),
        )


def _sentence_transformer(model: str) -> Any:
    from sentence_transformers import SentenceTransformer

    loaded = SentenceTransformer(model, device="cpu")

    def refuse(*_: Any, **__: Any) -> None:
        raise SystemExit("the cached embeddings were not found: a text was to be encoded")

    loaded.encode_document = loaded.encode_query = refuse
    return loaded


def st(work: Path, search: str, model: str) -> None:
    from datasets import Dataset
    from sentence_transformers.util import mine_hard_negatives

    passages, queries = texts(work)
    loaded = _sentence_transformer(model)
    pairs = Dataset.from_dict({"query": queries, "positive": passages[: len(queries)]})
    start = time.perf_counter()
    mined = mine_hard_negatives(
        pairs,
        loaded,
        corpus=passages,
        range_max=DEPTH,
        relative_margin=MARGIN,
        num_negatives=NEGATIVES,
        output_format="n-tuple",  # the fastest of its formats
        output_scores=True,
        use_faiss=search == "faiss",
        cache_folder=str(work / "st-cache"),
    )
    common.say(f"\ncall_s={time.perf_counter() - start:.2f} rows={len(mined)}")
    mined.to_parquet(str(work / "st.parquet"))


class _Known:
    """Stands for FlagEmbedding's model: the vectors of texts that end in their row number."""

    def __init__(self, work: Path) -> None:
        self._vectors = {kind: np.load(work / f"{kind}.npy") for kind in ("passages", "queries")}

    def encode(self, words: list[str]) -> Array:
        return self._vectors["passages"][[int(word.split()[1]) for word in words]]

    def encode_queries(self, words: list[str]) -> Array:
        return self._vectors["queries"][[int(word.split()[1]) for word in words]]


def flag(work: Path, script: str, _model: str) -> None:
    """FlagEmbedding's own search and selection, from its script."""
    spec = importlib.util.spec_from_file_location("hn_mine", script)
    assert spec is not None, script
    assert spec.loader is not None, script
    hn_mine = importlib.util.module_from_spec(spec)
    sys.modules["hn_mine"] = hn_mine
    spec.loader.exec_module(hn_mine)
    passages, queries = texts(work)
    rows = ({"query": q, "pos": [p]} for q, p in zip(queries, passages, strict=False))
    common.write_jsonl(work / "flag.jsonl", rows)
    start = time.perf_counter()
    hn_mine.find_knn_neg(
        _Known(work), str(work / "flag.jsonl"), str(work / "flag-out.jsonl"), passages, [0, DEPTH], NEGATIVES
    )
    common.say(f"\ncall_s={time.perf_counter() - start:.2f} rows={len(queries)}")


if __name__ == "__main__":
    {"data": data, "fill": fill, "st": st, "flag": flag}[sys.argv[1]](Path(sys.argv[2]), *sys.argv[3:])
