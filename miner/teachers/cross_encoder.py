"""Cross-encoder with one output through transformers, on CPU or GPU.

Everything runs in float32, whatever the weights are stored in: scores of one cache must not depend on the device that
was free. Scores are the raw logits; the sigmoid that sentence-transformers and FlagEmbedding may put on top keeps the
order and would press the margins between good passages together.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from miner import config
from miner.encoders.onnx import batches
from miner.errors import UserError
from miner.models import explained
from miner.teachers import Scores
from miner.teachers.files import Files

# The tokenizer's own objects are some 100 bytes a token, so only so many pairs are in that form at a time.
TOKENIZED = 512
Array = np.ndarray[Any, Any]


def load(settings: config.Teacher, files: Files) -> CrossEncoder:
    return CrossEncoder(settings, files)


class CrossEncoder:
    def __init__(self, settings: config.Teacher, files: Files) -> None:
        self._settings = settings
        self._limit = files.max_length
        with explained(f"teacher.model {settings.model}", "torch cannot load it"):
            self._tokenizer, self._model = _parts(settings, files)
        types = getattr(self._model.config, "type_vocab_size", 2)
        typed = "token_type_ids" in self._tokenizer.model_input_names and types > 1
        self._names = ["input_ids", *(["token_type_ids"] if typed else [])]
        self._padding = np.array([self._tokenizer.pad_token_id, self._tokenizer.pad_token_type_id][: len(self._names)])
        self.score([("x", "two lengths, so one is padded"), ("x", "y")])

    def score(self, pairs: list[tuple[str, str]]) -> Scores:
        """float32[n]: the raw logit of each (query, passage), in the order of `pairs`.

        Raises UserError where torch cannot run the model, or the model gives no finite number.
        """
        out = np.empty(len(pairs), np.float32)
        starts = range(0, len(pairs), TOKENIZED)
        tokens = [found for start in starts for found in self._tokens(pairs[start : start + TOKENIZED])]
        order = sorted(range(len(tokens)), key=lambda i: (tokens[i].shape[1], tokens[i].tobytes()))
        with explained(f"teacher.model {self._settings.model}", "torch cannot run it"):
            # Longest first: where memory does not suffice, it shows in the first batch.
            for rows in reversed(list(batches([tokens[i].shape[1] for i in order], self._settings.batch_tokens))):
                chosen = [order[i] for i in rows]
                out[chosen] = self._run([tokens[i] for i in chosen])
        self._refuse_nan(pairs, out)
        return out

    def _tokens(self, pairs: list[tuple[str, str]]) -> list[Array]:
        """int32[inputs, tokens] of each pair: the passage is cut, and the query where it leaves no room for any."""
        free = self._limit - self._tokenizer.num_special_tokens_to_add(pair=True)
        queries = list(dict.fromkeys(query for query, _ in pairs))
        cut: dict[str, Any] = {"truncation": True, "max_length": self._limit, "return_attention_mask": False}
        lengths = [len(ids) for ids in self._tokenizer(queries, add_special_tokens=False, **cut)["input_ids"]]
        room = {query: free > length for query, length in zip(queries, lengths, strict=True)}
        out: list[Array] = [np.empty((0, 0), np.int32)] * len(pairs)
        # The tokenizer raises where only_second would have to cut a passage to nothing.
        for has_room, how in ((True, "only_second"), (False, "longest_first")):
            rows = [row for row, (query, _) in enumerate(pairs) if room[query] is has_room]
            if rows:
                texts = [[pairs[row][side] for row in rows] for side in (0, 1)]
                found = self._tokenizer(*texts, **{**cut, "truncation": how})
                for row, *inputs in zip(rows, *(found[name] for name in self._names), strict=True):
                    out[row] = np.array(inputs, np.int32)
        return out

    def _run(self, tokens: list[Array]) -> Scores:
        import torch

        width = max(t.shape[1] for t in tokens)
        filled = np.empty((len(self._names), len(tokens), width), np.int64)
        filled[:] = self._padding[:, None, None]
        mask = np.zeros((len(tokens), width), np.int64)
        for row, t in enumerate(tokens):
            start = width - t.shape[1] if self._tokenizer.padding_side == "left" else 0
            filled[:, row, start : start + t.shape[1]] = t
            mask[row, start : start + t.shape[1]] = 1
        feeds = dict(zip([*self._names, "attention_mask"], [*filled, mask], strict=True))
        device = self._model.device
        with torch.inference_mode():
            logits = self._model(**{k: torch.from_numpy(v).to(device) for k, v in feeds.items()}).logits
        if tuple(logits.shape) != (len(tokens), 1):
            raise ValueError(f"outputs of shape {tuple(logits.shape)} for {len(tokens)} pairs, one each is wanted")
        return np.asarray(logits[:, 0].float().cpu().numpy(), np.float32)

    def _refuse_nan(self, pairs: list[tuple[str, str]], scores: Scores) -> None:
        wrong = np.flatnonzero(~np.isfinite(scores))
        if len(wrong):
            query, passage = pairs[wrong[0]]
            raise UserError(
                f"teacher.model {self._settings.model}: score {scores[wrong[0]]} for query {query[:60]!a} and"
                f" passage {passage[:60]!a}; its weights are broken, take another model"
            )


def _parts(settings: config.Teacher, files: Files) -> tuple[Any, Any]:
    """Tokenizer and network, ready to run."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    how = {"trust_remote_code": settings.trust_remote_code}
    tokenizer = AutoTokenizer.from_pretrained(str(files.folder), **how)
    if tokenizer.pad_token_id is None:
        raise UserError(f"teacher.model {settings.model}: its tokenizer has no padding token; add pad_token to it")
    network, told = AutoModelForSequenceClassification.from_pretrained(
        str(files.folder), output_loading_info=True, **how
    )
    if lacking := sorted(told["missing_keys"]):
        # transformers would fill them at random.
        raise UserError(f"teacher.model {settings.model}: no weights for {', '.join(lacking[:3])}; not a whole model")
    best = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    return tokenizer, network.float().eval().to(settings.device or best)
