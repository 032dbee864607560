"""BGE-M3's three outputs of one forward pass: a vector of the text, weights of its tokens, vectors of its tokens.

The backbone is XLM-RoBERTa; two linear layers beside it, sparse_linear.pt and colbert_linear.pt, make the token
outputs (https://arxiv.org/abs/2402.03216, section 3.1; equal to FlagEmbedding's BGEM3FlagModel, see tests/test_m3.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from miner import config
from miner.encoders import Kind, Vectors
from miner.encoders.files import TOKENIZERS, package_path
from miner.encoders.onnx import batches
from miner.errors import UserError
from miner.models import explained, snapshot
from miner.ragged_cache import SPARSE, Ragged, spread
from miner.store import file_digest
from miner.vector_cache import Array

HEADS = ("sparse_linear.pt", "colbert_linear.pt")
WEIGHTS = ("model*.safetensors", "pytorch_model*.bin")
NEEDED = ["config.json", "*.safetensors*", "pytorch_model*", *HEADS, *TOKENIZERS, "*token*.json"]
# What the reference leaves out of the token weights; the mask token, which no text has, is not among them.
SPECIAL = ("cls_token", "eos_token", "pad_token", "unk_token")
# Settings of other backends that would have no effect here, with their defaults.
UNREAD: dict[str, str | None] = {"onnx_file": None, "tokenizer_file": None, "precision": "fp32"}
UNREAD |= {"query_suffix": None, "instruction": None, "dimensions": None}
KINDS: tuple[Kind, ...] = ("query", "passage")


@dataclass(frozen=True)
class Outputs:
    """Of n texts, in their order. `multi` is None where it was not asked for.

    dense: float32[n, d], L2-normalised. sparse: SPARSE rows, tokens ascending, weights above 0, no special tokens.
    multi: float16[total, d'] rows, one L2-normalised vector for each token but the first (the CLS position).
    """

    dense: Vectors
    sparse: Ragged
    multi: Ragged | None


def find(settings: config.Encoder) -> Path:
    """The folder that `encoder.model` names, or its snapshot from the hub with the files needed here."""
    named = settings.model
    folder = package_path(named) if named.startswith("package:") else Path(named)
    if folder.is_dir():
        return folder
    return snapshot(f"encoder.model {named}", named, settings.revision)(NEEDED)


def fingerprint(settings: config.Encoder, folder: Path) -> dict[str, Any]:
    """All that decides the three outputs besides the text, by content and never by path: JSON-able.

    Keys that begin with `query_` or `passage_` count for that kind of text alone.
    """
    _check(settings, folder)
    names = ["config.json", *HEADS, *TOKENIZERS, "tokenizer_config.json", "special_tokens_map.json"]
    files = [folder / name for name in names if (folder / name).is_file()] + _weights(folder)
    return {
        "backend": "m3",
        "files": {path.name: file_digest(path) for path in files},
        **{f"{kind}_prefix": _prefix(settings, kind) for kind in KINDS},
        "max_length": settings.max_length,
    }


def load(settings: config.Encoder, folder: Path) -> M3:
    """Raises UserError where the folder has no sparse and multi-vector heads, or torch cannot load what it has."""
    _check(settings, folder)
    with explained(f"encoder.model {settings.model}", "torch cannot load it"):
        return M3(settings, folder)


class M3:
    """Also an Encoder, of the vector alone. float32 throughout; the token vectors are stored as `multi_dtype`."""

    multi_dtype = np.float16

    def __init__(self, settings: config.Encoder, folder: Path) -> None:
        import torch
        from transformers import AutoModel, AutoTokenizer
        from transformers.utils.logging import disable_progress_bar

        disable_progress_bar()
        self._settings = settings
        self._device = settings.device or _best_device()
        trust = settings.trust_remote_code
        network = AutoModel.from_pretrained(str(folder), trust_remote_code=trust)
        self._network = network.float().eval().to(self._device)
        self._tokenizer = AutoTokenizer.from_pretrained(str(folder), trust_remote_code=trust)
        self.dimension = int(network.config.hidden_size)
        states = [torch.load(folder / name, map_location="cpu", weights_only=True) for name in HEADS]
        self._sparse, self._multi = (_linear(state, self.dimension, self._device) for state in states)
        named = self._tokenizer.special_tokens_map
        special = [self._tokenizer.convert_tokens_to_ids(named[name]) for name in SPECIAL if name in named]
        self._special = np.array(special, np.int64)
        # RoBERTa's positions start behind the padding index, so that many of them and one are never used.
        positions = int(network.config.max_position_embeddings) - int(network.config.pad_token_id or 0) - 1
        self._longest = min(settings.max_length, positions, int(self._tokenizer.model_max_length))

    def encode(self, texts: list[str], kind: Kind) -> Vectors:
        """float32[n, d], L2-normalised, in the order of `texts`."""
        return self.encode_all(texts, kind, multi=False).dense

    def encode_all(self, texts: list[str], kind: Kind = "passage", multi: bool = True) -> Outputs:
        """One pass over `texts`, in batches of similar length; multi False leaves the token vectors out.

        Texts beyond max_length tokens are cut. Raises UserError for a text of no tokens, and where torch fails.
        """
        with explained(f"encoder.model {self._settings.model}", "torch cannot run it"):
            tokens = self._tokens(texts, kind)
            lengths = np.array([len(row) for row in tokens], np.int64)
            dense = np.empty((len(texts), self.dimension), np.float32)
            vectors = self._room(np.maximum(lengths - 1, 0)) if multi else None
            weighted = [np.empty((3, 0))]
            order = sorted(range(len(tokens)), key=lambda i: (lengths[i], tokens[i]))
            for run in batches([len(tokens[i]) for i in order], self._settings.batch_tokens):
                rows = np.array([order[i] for i in run])
                dense[rows], weights, found = self._run([tokens[i] for i in rows], multi)
                weighted.append(self._kept(rows, [tokens[i] for i in rows], weights))
                if vectors is not None:
                    held = np.arange(1, lengths[rows].max())[None] < lengths[rows][:, None]
                    vectors.values[spread(vectors.offsets[rows], held.sum(1))] = found[held]
        return Outputs(dense, _sparse(np.concatenate(weighted, axis=1), len(texts)), vectors)

    def _tokens(self, texts: list[str], kind: Kind) -> list[list[int]]:
        if not texts:
            return []
        prefix = _prefix(self._settings, kind)
        read = self._tokenizer([prefix + text for text in texts], truncation=True, max_length=self._longest)
        tokens: list[list[int]] = read["input_ids"]
        if [] in tokens:
            text = ascii(texts[tokens.index([])][:60])
            raise UserError(f"encoder.model {self._settings.model}: a {kind} has no tokens: {text}; take it out")
        return tokens

    def _room(self, lengths: Array) -> Ragged:
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        width = int(self._multi.out_features)
        return Ragged(np.empty((int(offsets[-1]), width), self.multi_dtype), offsets)

    def _run(self, tokens: list[list[int]], multi: bool) -> tuple[Array, Array, Array]:
        """float32[b, d], float32[b, t] (0 or more, the padding's too), and float32[b, t - 1, d'] or an empty array."""
        import torch
        from torch.nn.functional import normalize

        longest = max(map(len, tokens))
        padding = self._tokenizer.pad_token_id
        ids = torch.tensor([row + [padding] * (longest - len(row)) for row in tokens], device=self._device)
        mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in tokens], device=self._device)
        with torch.inference_mode():
            hidden = self._network(input_ids=ids, attention_mask=mask).last_hidden_state
            dense = normalize(hidden[:, 0], dim=-1)
            weights = torch.relu(self._sparse(hidden))[..., 0]
            vectors = normalize(self._multi(hidden[:, 1:]), dim=-1) if multi else hidden[:0]
        return dense.cpu().numpy(), weights.cpu().numpy(), vectors.cpu().numpy()

    def _kept(self, rows: Array, tokens: list[list[int]], weights: Array) -> Array:
        """float64[3, m] of row, token and weight (all exact there), special tokens and zero weights left out."""
        lengths = np.array([len(row) for row in tokens])
        flat = np.concatenate([np.array(row, np.int64) for row in tokens])
        held = weights[np.arange(weights.shape[1])[None] < lengths[:, None]]
        keep = (held > 0) & ~np.isin(flat, self._special)
        return np.stack([np.repeat(rows, lengths)[keep], flat[keep], held[keep]])


def _sparse(weighted: Array, count: int) -> Ragged:
    """float64[3, m] of row, token, weight -> the highest weight of each token in each row."""
    rows, tokens, weights = weighted[:, np.lexsort(weighted[::-1])]
    last = np.ones(len(rows), bool)
    last[:-1] = (np.diff(rows) != 0) | (np.diff(tokens) != 0)
    values = np.empty(int(last.sum()), SPARSE)
    values["token"], values["weight"] = tokens[last], weights[last]
    offsets = np.searchsorted(rows[last], np.arange(count + 1)).astype(np.int64)
    return Ragged(values, offsets)


def _prefix(settings: config.Encoder, kind: Kind) -> str:
    """BGE-M3 was trained without prefixes, so that there are only those of the job file."""
    return (settings.query_prefix if kind == "query" else settings.passage_prefix) or ""


def _check(settings: config.Encoder, folder: Path) -> None:
    if settings.backend not in ("auto", "torch"):
        raise UserError(
            f"encoder.backend {settings.backend}: retrievers of kind sparse and multivector run through torch; set it"
            " to torch, or leave these retrievers out"
        )
    for name, default in UNREAD.items():
        if (value := getattr(settings, name)) != default:
            raise UserError(f"encoder.{name} {value}: not for the token outputs of BGE-M3; take it out")
    lacking = [name for name in HEADS if not (folder / name).is_file()]
    if lacking:
        raise UserError(
            f"encoder.model {settings.model}: it has no sparse and multi-vector heads (no {' and no '.join(lacking)} in"
            f" {folder}); take BAAI/bge-m3 or a model trained from it, or leave out retrievers of these kinds"
        )
    if not _weights(folder):
        raise UserError(f"encoder.model {settings.model}: no *.safetensors and no pytorch_model*.bin in {folder}")


def _weights(folder: Path) -> list[Path]:
    return next((found for pattern in WEIGHTS if (found := sorted(folder.glob(pattern)))), [])


def _linear(state: Any, width: int, device: str) -> Any:
    import torch

    layer = torch.nn.Linear(width, int(state["weight"].shape[0]))
    layer.load_state_dict(state)
    return layer.float().eval().to(device)


def _best_device() -> str:
    import torch

    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"
