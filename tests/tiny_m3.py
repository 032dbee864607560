"""A tiny random checkpoint of BGE-M3: XLM-RoBERTa, its special tokens all named, and the two linear layers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import tiny

SPECIAL = ["<s>", "<pad>", "</s>", "<unk>"]
NAMES = {"bos_token": "<s>", "cls_token": "<s>", "eos_token": "</s>", "sep_token": "</s>", "pad_token": "<pad>"}


def m3(folder: Path) -> Path:
    """Hidden size 32, positions up to 512 tokens; the same files at every call. Every letter is known."""
    import torch
    from transformers import XLMRobertaConfig, XLMRobertaModel

    size = tokenizer(folder)
    more: dict[str, Any] = {"type_vocab_size": 1, "max_position_embeddings": 514, "initializer_range": 0.3}
    tiny.save(XLMRobertaModel, XLMRobertaConfig(vocab_size=size, **tiny.SIZES, **more), folder)
    torch.manual_seed(2)
    for name, width in (("sparse_linear.pt", 1), ("colbert_linear.pt", 32)):
        torch.save(torch.nn.Linear(32, width).state_dict(), folder / name)
    return folder


def tokenizer(folder: Path) -> int:
    """WordPiece over the words and letters of tiny.TEXTS (a trained one differs from run to run)."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = sorted({word for text in tiny.TEXTS for word in text.lower().replace(",", "").replace(".", "").split()})
    letters = "abcdefghijklmnopqrstuvwxyz"
    vocabulary = dict.fromkeys([*SPECIAL, *letters, *(f"##{letter}" for letter in letters), ",", *words[::2]])
    made = Tokenizer(models.WordPiece({word: i for i, word in enumerate(vocabulary)}, unk_token="<unk>"))
    made.normalizer = normalizers.BertNormalizer()
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)])
    PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>", model_max_length=512, **NAMES).save_pretrained(
        folder
    )
    return len(json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"])
