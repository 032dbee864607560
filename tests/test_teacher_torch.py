"""The cross-encoder through torch: transformers' own logits, batches that change nothing, cuts, one-line errors."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import tiny
from test_teacher import every_pair, go

from miner import config, teachers
from miner.errors import UserError
from miner.stages import teacher as stage
from miner.store import tree_digest

pytestmark = [
    pytest.mark.local,
    pytest.mark.skipif(importlib.util.find_spec("sentence_transformers") is None, reason="extra local not installed"),
]
LONG = " ".join(tiny.TEXTS)
PAIRS = [(query, passage) for query in (tiny.TEXTS[0], "owl", tiny.TEXTS[3]) for passage in (*tiny.TEXTS, LONG, "")]


def teacher(folder: Path, **more) -> teachers.Teacher:
    return teachers.load(config.Teacher(model=str(folder), device="cpu", **more))


def reference(folder: Path, pairs: list[tuple[str, str]], limit: int = 512) -> np.ndarray:
    """transformers' own logits, one pair at a time, so that nothing is padded.

    Lists of one text: of a bare "" tokenizers make a single text, not a pair with nothing in its second place.
    """
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder).float().eval()
    rows = []
    for pair in pairs:
        tokens = tokenizer(*([text] for text in pair), return_tensors="pt", truncation="only_second", max_length=limit)
        with torch.no_grad():
            rows.append(float(model(**tokens).logits[0, 0]))
    return np.array(rows)


class Mortal:
    """A teacher that ends with an error at its n-th call."""

    def __init__(self, living: teachers.Teacher, dies_at: int, error: BaseException | None = None) -> None:
        self._living, self._left, self._error = living, dies_at, error or KeyboardInterrupt()

    def score(self, pairs: list[tuple[str, str]]) -> teachers.Scores:
        if not self._left:
            raise self._error
        self._left -= 1
        return self._living.score(pairs)


def shape(tokens: list[np.ndarray]) -> tuple[int, int]:
    return len(tokens), max(t.shape[1] for t in tokens)


def edit(folder: Path, name: str = "config.json", **keys) -> None:
    said = {**json.loads((folder / name).read_text()), **keys}
    tiny.put(folder / name, {key: value for key, value in said.items() if value is not None})


def no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def broken_weights(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"not a weight in sight")


def no_head(folder: Path) -> None:
    from safetensors.numpy import load_file, save_file

    kept = {k: v for k, v in load_file(folder / "model.safetensors").items() if not k.startswith("classifier")}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})


def not_a_number(folder: Path) -> None:
    from safetensors.numpy import load_file, save_file

    kept = load_file(folder / "model.safetensors")
    kept["classifier.out_proj.bias"][:] = np.nan
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})


def no_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()


def no_padding(folder: Path) -> None:
    edit(folder, "tokenizer_config.json", pad_token=None)


def unknown(folder: Path) -> None:
    edit(folder, model_type="perceptron")


SPOILED = [
    (no_weights, r"no model\*\.safetensors and no pytorch_model\*\.bin in .*; not a whole model"),
    (broken_weights, "torch cannot load it"),
    (no_head, r"no weights for classifier\.dense\.bias, .*; not a whole model"),
    (not_a_number, "score nan for query 'x' and passage .*; its weights are broken"),
    (no_tokenizer, "no tokenizer in .*; not a whole model"),
    (no_padding, "no padding token; add pad_token"),
    (unknown, "torch cannot load it .*perceptron"),
]


@pytest.mark.parametrize("make", [tiny.cross_encoder, tiny.bert_cross_encoder])
def test_scores_are_the_logits_in_the_order_of_the_pairs(tmp_path, make):
    expected = reference(make(tmp_path), PAIRS)
    assert expected.max() > 0 > expected.min() or abs(expected).max() > 1, "no sigmoid could give these"
    assert expected.std() > 0.05, "the pairs can be told apart on this checkpoint"
    for budget in (16, 700, 100_000):
        scores = teacher(tmp_path, batch_tokens=budget).score(PAIRS)
        assert scores.dtype == np.float32
        assert scores == pytest.approx(expected, abs=5e-6), budget
    assert teacher(tmp_path).score([]).shape == (0,)


def test_scores_equal_those_of_sentence_transformers_without_its_sigmoid(tmp_path):
    import torch
    from sentence_transformers import CrossEncoder

    model = CrossEncoder(str(tiny.cross_encoder(tmp_path / "plain")), device="cpu")
    model.save_pretrained(str(tmp_path / "saved"))
    expected = model.predict(PAIRS, activation_fn=torch.nn.Identity(), show_progress_bar=False)
    assert abs(model.predict(PAIRS, show_progress_bar=False) - expected).max() > 0.01
    assert teacher(tmp_path / "saved").score(PAIRS) == pytest.approx(expected, abs=5e-6)


@pytest.mark.interop
def test_scores_equal_those_of_flagembedding(tmp_path):
    """Also where pairs are cut. It cuts queries at a length of its own, which none here reaches, and it reads an empty
    passage as no passage at all, where sentence-transformers and miner put an empty one in its place."""
    pairs = [pair for pair in PAIRS if pair[1]]
    reranker = pytest.importorskip("FlagEmbedding").FlagReranker
    folder = str(tiny.cross_encoder(tmp_path))
    peer = reranker(folder, use_fp16=False, devices=["cpu"], max_length=64, query_max_length=48)
    expected = peer.compute_score([list(pair) for pair in pairs], normalize=False)
    assert teacher(tmp_path, max_length=64).score(pairs) == pytest.approx(np.array(expected), abs=5e-6)


def test_a_pair_scores_alike_in_any_company(tmp_path):
    found = teacher(tiny.cross_encoder(tmp_path))
    together = found.score(PAIRS)
    assert together == pytest.approx([float(found.score([pair])[0]) for pair in PAIRS], abs=5e-6)
    assert np.array_equal(found.score(PAIRS[::-1]), together[::-1])


def test_a_batch_stays_within_its_tokens(tmp_path, monkeypatch):
    found = teacher(tiny.cross_encoder(tmp_path), batch_tokens=600)
    shapes: list[tuple[int, int]] = []
    run = found._run
    monkeypatch.setattr(found, "_run", lambda tokens: shapes.append(shape(tokens)) or run(tokens))
    found.score(PAIRS)
    assert sum(rows for rows, _ in shapes) == len(PAIRS)
    assert all(rows * width <= 600 for rows, width in shapes)
    assert [width for _, width in shapes] == sorted((width for _, width in shapes), reverse=True)


def test_the_passage_is_cut_and_not_the_query(tmp_path):
    found = teacher(tiny.cross_encoder(tmp_path), max_length=24)
    assert found.score(PAIRS) == pytest.approx(reference(tmp_path, PAIRS, 24), abs=5e-6)
    assert abs(found.score(PAIRS) - reference(tmp_path, PAIRS)).max() > 0.01
    word = found._tokens([("cat " * 19, "owl " * 50)])[0][0]
    assert len(word) == 24
    assert len(set(word[1:20])) == 1, "19 words of the query, and one of the passage"


def test_a_query_that_is_longer_than_the_limit_is_cut_too(tmp_path):
    found = teacher(tiny.cross_encoder(tmp_path), max_length=16)
    for words in (11, 12, 13, 16, 400):
        pairs = [("cat " * words, passage) for passage in ("", "owl", "owl " * 300)]
        tokens = found._tokens(pairs)
        assert max(t.shape[1] for t in tokens) <= 16
        owl = tokens[1][0][-2]
        assert [owl in t[0] for t in tokens] == [False, True, True], "some of the passage is always read"
        assert np.isfinite(found.score(pairs)).all()


def test_the_models_positions_bound_the_length(tmp_path):
    far = [("owl", "cat " * 3000)]
    found = teacher(tiny.cross_encoder(tmp_path), max_length=9000, batch_tokens=16)
    assert found.score(far) == pytest.approx(reference(tmp_path, far), abs=5e-6)
    assert teachers.fingerprint(config.Teacher(model=str(tmp_path), max_length=9000))["max_length"] == 512


def test_half_precision_weights_run_in_single_precision(tmp_path):
    import torch
    from transformers import AutoModelForSequenceClassification

    tiny.cross_encoder(tmp_path)
    network = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    network.to(torch.bfloat16).save_pretrained(tmp_path)
    assert teacher(tmp_path).score(PAIRS) == pytest.approx(reference(tmp_path, PAIRS), abs=5e-6)


def test_the_fingerprint_is_by_content_and_loads_no_torch(tmp_path):
    one = tiny.cross_encoder(tmp_path / "one")
    two = Path(shutil.copytree(one, tmp_path / "two"))
    code = "import sys, json; from miner import config, teachers; print(json.dumps(teachers.fingerprint("
    code += "config.Teacher(model=sys.argv[1])))); assert not {'torch', 'transformers'} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", code, str(one)], capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    assert found == teachers.fingerprint(config.Teacher(model=str(two), batch_tokens=99, device="cpu"))
    assert {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"} <= set(found["files"])
    assert found != teachers.fingerprint(config.Teacher(model=str(two), max_length=99))
    edit(two, hidden_act="relu")
    assert found != teachers.fingerprint(config.Teacher(model=str(two)))


def test_a_killed_run_resumes_to_the_same_bytes(tmp_path, monkeypatch):
    monkeypatch.setattr(stage, "CHUNK_PAIRS", 100)
    found = teacher(tiny.cross_encoder(tmp_path / "model"), batch_tokens=500)
    pairs = every_pair()[:450]
    go(pairs, found, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        go(pairs, Mortal(found, 2), tmp_path / "killed")
    go(pairs, found, tmp_path / "killed")
    assert tree_digest(tmp_path / "killed") == tree_digest(tmp_path / "whole")


@pytest.mark.parametrize(("spoil", "message"), SPOILED, ids=[spoil.__name__ for spoil, _ in SPOILED])
def test_a_folder_that_cannot_be_used_is_one_line(tmp_path, spoil, message):
    spoil(tiny.cross_encoder(tmp_path))
    with pytest.raises(UserError, match=message) as caught:
        teacher(tmp_path)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(f"teacher.model {tmp_path}: ")


def test_a_device_that_is_not_there_is_one_line(tmp_path):
    with pytest.raises(UserError, match="torch cannot load it") as caught:
        teachers.load(config.Teacher(model=str(tiny.cross_encoder(tmp_path)), device="abacus:3"))
    assert "\n" not in str(caught.value)


def test_memory_that_does_not_suffice_names_the_key(tmp_path, monkeypatch):
    found = teacher(tiny.cross_encoder(tmp_path))
    monkeypatch.setattr(found, "_run", Mortal(found, 0, RuntimeError("CUDA out of memory. Tried 2 GiB")).score)
    with pytest.raises(UserError, match=r"torch cannot run it \(CUDA out of memory.*; lower teacher\.batch_tokens"):
        found.score(PAIRS)


def test_code_of_a_model_is_not_run_unless_allowed(tmp_path):
    """The code that a checkpoint brings leaves a trace when it runs; it must not run on its own."""
    folder, trace = tiny.cross_encoder(tmp_path / "model"), tmp_path / "trace"
    code = f"""
        from pathlib import Path
        from transformers import XLMRobertaConfig, XLMRobertaForSequenceClassification
        Path({str(trace)!r}).touch()
        class OwnConfig(XLMRobertaConfig):
            model_type = "own"
        class OwnForSequenceClassification(XLMRobertaForSequenceClassification):
            config_class = OwnConfig
    """
    (folder / "own.py").write_text(textwrap.dedent(code), encoding="utf-8")
    classes = {"AutoConfig": "own.OwnConfig"}
    classes["AutoModelForSequenceClassification"] = "own.OwnForSequenceClassification"
    edit(folder, model_type="own", auto_map=classes)
    with pytest.raises(UserError, match=r"teacher\.trust_remote_code: true would run that code"):
        teacher(folder)
    assert not trace.exists()
    teacher(folder, trust_remote_code=True)
    assert trace.exists()
    allowed = teachers.fingerprint(config.Teacher(model=str(folder), trust_remote_code=True))
    assert "own.py" in allowed["files"]
