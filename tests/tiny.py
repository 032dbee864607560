"""Tiny random checkpoints of the real architectures: the code path of a family without its weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import toy

TEXTS = [
    "what sound does a cat make",
    "The koala sleeps 21 hours a day, and eats eucalyptus leaves when it is awake.",
    "owl",
    "favourite food of the horse",
    "The bat squeaks when it wants attention. " * 8,
]
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}


def bert(folder: Path, **more: Any) -> Path:
    """A BERT folder in transformers' form, without any file of sentence-transformers."""
    from transformers import BertConfig, BertModel

    size = tokenizer(folder, ["[PAD]", "[UNK]", "[CLS]", "[SEP]"])
    return save(BertModel, BertConfig(vocab_size=size, **SIZES, **{"initializer_range": 0.3, **more}), folder)


def xlm_roberta(folder: Path) -> Path:
    """The architecture of BGE-M3: positions start behind the padding index, and there are no token types."""
    from transformers import XLMRobertaConfig, XLMRobertaModel

    size = tokenizer(folder, ["<s>", "<pad>", "</s>", "<unk>"])
    more = {"type_vocab_size": 1, "max_position_embeddings": 514, "initializer_range": 0.3}
    return save(XLMRobertaModel, XLMRobertaConfig(vocab_size=size, **SIZES, **more), folder)


def roberta(folder: Path) -> Path:
    from transformers import RobertaConfig, RobertaModel

    size = tokenizer(folder, ["<s>", "<pad>", "</s>", "<unk>"])
    more = {"type_vocab_size": 1, "max_position_embeddings": 514, "initializer_range": 0.3}
    return save(RobertaModel, RobertaConfig(vocab_size=size, **SIZES, **more), folder)


def mpnet(folder: Path) -> Path:
    from transformers import MPNetConfig, MPNetModel

    size = tokenizer(folder, ["<s>", "<pad>", "</s>", "<unk>"])
    more = {"max_position_embeddings": 514, "initializer_range": 0.3}
    return save(MPNetModel, MPNetConfig(vocab_size=size, **SIZES, **more), folder)


def distilbert(folder: Path) -> Path:
    from transformers import DistilBertConfig, DistilBertModel

    size = tokenizer(folder, ["[PAD]", "[UNK]", "[CLS]", "[SEP]"])
    sizes = {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64, "initializer_range": 0.3}
    return save(DistilBertModel, DistilBertConfig(vocab_size=size, **sizes), folder)


def qwen3(folder: Path) -> Path:
    """The architecture of Qwen3-Embedding: a decoder, read at its last token."""
    from transformers import Qwen3Config, Qwen3Model

    size = tokenizer(folder, ["<pad>", "<unk>", "<end>"])
    more = {"num_key_value_heads": 2, "head_dim": 8, "initializer_range": 0.3, "pad_token_id": 0}
    return save(Qwen3Model, Qwen3Config(vocab_size=size, **SIZES, **more), folder)


def cross_encoder(folder: Path, *, outputs: int = 1, **more: Any) -> Path:
    """The architecture of bge-reranker: an XLM-R that reads <s> query </s></s> passage </s>."""
    from transformers import XLMRobertaConfig, XLMRobertaForSequenceClassification

    size = pair_tokenizer(folder, ["<s>", "<pad>", "</s>", "<unk>"], "<s> $A </s> </s> $B </s>", types=False)
    sizes = {"vocab_size": size, "type_vocab_size": 1, "max_position_embeddings": 514, "num_labels": outputs}
    made = XLMRobertaConfig(**sizes, **SIZES, **{"initializer_range": 0.3, **more})
    return save(XLMRobertaForSequenceClassification, made, folder)


def bert_cross_encoder(folder: Path) -> Path:
    """The architecture of ms-marco-MiniLM: a BERT that tells query and passage apart by token types."""
    from transformers import BertConfig, BertForSequenceClassification

    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    size = pair_tokenizer(folder, names, "[CLS] $A [SEP] $B:1 [SEP]:1", types=True)
    made = BertConfig(vocab_size=size, num_labels=1, initializer_range=0.3, **SIZES)
    return save(BertForSequenceClassification, made, folder)


def pair_tokenizer(folder: Path, special: list[str], form: str, *, types: bool) -> int:
    """`tokenizer`, which also puts two texts together as `form` says. Returns the vocabulary's size."""
    from tokenizers import processors
    from transformers import AutoTokenizer

    size = tokenizer(folder, special)
    fast = AutoTokenizer.from_pretrained(folder)
    single = form.split(" $B")[0].removesuffix(" </s>") if special[0] == "<s>" else form.split(" $B")[0]
    named = [(token, fast.convert_tokens_to_ids(token)) for token in special if token in form]
    fast.backend_tokenizer.post_processor = processors.TemplateProcessing(single, form, named)
    fast.model_input_names = ["input_ids", *(["token_type_ids"] if types else []), "attention_mask"]
    fast.save_pretrained(folder)
    return size


def save(kind: Any, config: Any, folder: Path) -> Path:
    import torch

    torch.manual_seed(0)
    kind(config).eval().save_pretrained(folder)
    return folder


def tokenizer(folder: Path, special: list[str]) -> int:
    """Train WordPiece on the toy texts and save it with the family's special tokens. Returns the vocabulary's size."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    first, last = (special[2], special[3]) if special[0] == "[PAD]" else (special[0], special[2])
    unknown = next(token for token in special if "unk" in token.lower())
    made = Tokenizer(models.WordPiece(unk_token=unknown))
    made.normalizer = normalizers.BertNormalizer()
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    words = [text for facts in toy.ANIMALS.items() for text in (facts[0], *facts[1])]
    made.train_from_iterator([*TEXTS, *words], trainers.WordPieceTrainer(vocab_size=300, special_tokens=special))
    ends = f"$A {last}" if "<end>" in special else f"{first} $A {last}"
    named = [(token, made.token_to_id(token)) for token in (first, last)]
    made.post_processor = processors.TemplateProcessing(single=ends, special_tokens=named)
    padding = next(token for token in special if "pad" in token.lower())
    fast = PreTrainedTokenizerFast(tokenizer_object=made, unk_token=unknown, pad_token=padding, model_max_length=512)
    fast.save_pretrained(folder)
    return made.get_vocab_size()


def modules(folder: Path, *, dense: int | None = None) -> None:
    """Add the files of sentence-transformers: mean pooling, and a Dense module of `dense` outputs."""
    listed = [("", "Transformer"), ("1_Pooling", "Pooling"), *([("2_Dense", "Dense")] if dense else [])]
    rows = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (path, kind) in enumerate(listed)
    ]
    put(folder / "modules.json", rows)
    put(folder / "1_Pooling/config.json", {"word_embedding_dimension": 32, "pooling_mode_mean_tokens": True})
    if dense:
        import torch
        from safetensors.torch import save_file

        shape = {"in_features": 32, "out_features": dense, "bias": False}
        put(folder / "2_Dense/config.json", {**shape, "activation_function": "torch.nn.modules.linear.Identity"})
        torch.manual_seed(1)
        save_file({"linear.weight": torch.randn(dense, 32)}, str(folder / "2_Dense/model.safetensors"))


def put(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")
