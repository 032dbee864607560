"""The data card of an export: a README.md with the hub's front matter. The same facts give the same text."""

from __future__ import annotations

import math
import re
import shlex
import unicodedata
from typing import Any

import jinja2
import yaml

Facts = dict[str, Any]
NO_JUDGE = "The judge was not calibrated: its agreement with people is not known."
# Of each file of sentence-transformers, a loss that reads it as it is.
LOSSES = {
    "st-triplet": "MultipleNegativesRankingLoss",
    "st-ntuple": "MultipleNegativesRankingLoss",
    "st-labeled-pair": "CrossEncoder BinaryCrossEntropyLoss",
    "st-labeled-list": "CrossEncoder LambdaLoss",
    "st-scored-pair": "CoSENTLoss",
    "st-scored-list": "CrossEncoder ListNetLoss",
}
NO_STYLE = "The style of positives and negatives was not audited."


def card(facts: Facts) -> str:
    """Markdown. What `facts` holds is listed in `export_steps.facts`; judge and style may be lacking.

    Texts from outside are cleaned of control characters and escaped, so that none becomes a heading, a link or HTML.
    """
    front = yaml.safe_dump(_front(facts), sort_keys=False, allow_unicode=True, default_flow_style=False, width=1000)
    calls = {name: _opened(facts["files"], name) for name in facts["rows"]}
    pooling = {"last": "last_token"}.get(facts["train"]["pooling"], facts["train"]["pooling"])  # FlagEmbedding's word
    more = {
        "pooling": pooling,
        "calls": calls,
        "listed": [file[0] for file in _listed(facts["files"])],
        "losses": LOSSES,
    }
    body = _environment().from_string(TEMPLATE).render(**facts, **more, no_judge=NO_JUDGE, no_style=NO_STYLE)
    return f"---\n{front}---\n\n{body}\n"


def escape(value: Any) -> str:
    """One line of plain text as Markdown that shows it as it is."""
    text = " ".join(_clean(str(value)).split())
    text = re.sub(
        r"([\\`*_{}\[\]|#~$!])", r"\\\1", text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    )
    text = re.sub(r"^([-+=])", r"\\\1", text)
    text = re.sub(r"^(\d+)([.)]) ", r"\1\\\2 ", text)
    return re.sub(r"(?i)\b(https?|www)(:|\.)", r"\1\\\2", text)


def shell(value: Any) -> str:
    """One word of a shell command in a fenced block: it holds no line break."""
    return shlex.quote(" ".join(_clean(str(value)).split()))


def _clean(text: str) -> str:
    """Control and format characters (terminal escapes, bidirectional overrides) become spaces."""
    return "".join(" " if unicodedata.category(char) in ("Cc", "Cf", "Cs", "Zl", "Zp") else char for char in text)


def _number(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return escape("" if value is None else value)
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined)
    environment.filters |= {"md": escape, "sh": shell, "number": _number, "py": lambda value: repr(_clean(str(value)))}
    return environment


def _front(facts: Facts) -> Facts:
    found: Facts = {"pretty_name": " ".join(_clean(facts["title"]).split())}
    if facts["license"]:
        found["license"] = facts["license"]
    if facts["language"]:
        found["language"] = list(facts["language"])
    found["task_categories"] = ["text-retrieval", "sentence-similarity"]
    found["size_categories"] = [size_category(max(facts["rows"].values(), default=0))]
    found["tags"] = ["hard-negatives", "information-retrieval"]
    configs: dict[str, list[dict[str, str]]] = {}
    for name, split, path in _listed(facts["files"]):
        configs.setdefault(name, []).append({"split": split, "path": path})
    found["configs"] = [{"config_name": name, "data_files": files} for name, files in configs.items()]
    if found["configs"]:
        found["configs"][0]["default"] = True
    return found


def _listed(files: list[Any]) -> list[Any]:
    """Files of one kind: `datasets` opens all configurations of a repository with the builder of the first one's files.

    Parquet where there are training files of that kind, else the kind of the first format.
    """
    builders = [opener(path)[0] for _, _, path in files]
    parquet = any(b == "parquet" and f[0] != "provenance" for b, f in zip(builders, files, strict=True))
    wanted = "parquet" if parquet else builders[0]
    return [file for builder, file in zip(builders, files, strict=True) if builder == wanted]


def opener(path: str) -> tuple[str, dict[str, str]]:
    """The builder of `datasets.load_dataset` that reads a file, and its further arguments."""
    if path.endswith(".tsv"):
        return "csv", {"sep": "\t"}
    return ("parquet" if path.endswith(".parquet") else "json"), {}


def _opened(files: list[Any], name: str) -> str:
    """The call that opens one configuration's files, run in their folder."""
    paths = {split: path for found, split, path in files if found == name}
    builder, more = opener(next(iter(paths.values())))
    words = "".join(f", {key}={value!r}" for key, value in more.items())
    return f"load_dataset({builder!r}, data_files={paths!r}{words})"


def size_category(rows: int) -> str:
    """The hub's words: n<1K, 1K<n<10K, … 1B<n<10B."""
    if rows < 1000:
        return "n<1K"
    power = min(int(math.log10(rows) + 1e-12), 9)
    low, high = (f"{10 ** (p % 3)}{'KMBT'[p // 3 - 1]}" for p in (power, power + 1))
    return f"{low}<n<{high}"


TEMPLATE = """\
# {{ title | md }}

Queries with passages that answer them and hard negatives: passages that rank high and do not answer. Mined from
{{ source.name | md }} ({{ source.passages | number }} passages, {{ source.queries | number }} queries) with
miner {{ reproduce.miner | md }}.

| | |
|---|---|
| queries exported | {{ exported.queries | number }} |
| positives | {{ exported.positives | number }} |
| hard negatives | {{ exported.negatives | number }} ({{ exported.fewest }} to {{ exported.most }} a query) |
{% if relabelled %}
| of the positives, candidates that the judge found relevant | {{ relabelled | number }} |
{% endif %}
{% if exported.dev_queries %}
| queries held out in `dev` | {{ exported.dev_queries | number }} |
{% endif %}

## Files

| name | rows | opened in this folder with |
|---|---|---|
{% for name, count in rows.items() %}
| `{{ name }}` | {{ count | number }} | `{{ calls[name] }}` |
{% endfor %}

From the hub, `load_dataset("OWNER/NAME", "{{ listed[0] }}")` opens {{ listed | unique | join(", ") }};
of the others write the paths as `hf://datasets/OWNER/NAME/PATH`.

{% if exported.dev_queries %}
The `dev` files hold whole clusters of queries: queries that share a positive, or whose words are nearly the same, are
never on both sides. The passages are those of one corpus.

{% endif %}
## How it was made

| role | model | |
|---|---|---|
{% for model in models %}
| {{ model.role }} | {{ model.name | md }} | {{ model.detail | md }} |
{% endfor %}
{% for prompt in prompts %}
| prompt of the {{ prompt.stage }} | {{ prompt.name | md }} | version {{ prompt.version | md }} |
{% endfor %}

| setting | value |
|---|---|
{% for name, value in settings.items() %}
| {{ name | md }} | {{ value | md }} |
{% endfor %}

What became of the candidates:

| source and reason | candidates |
|---|---|
{% for name, count in candidates.items() %}
| {{ name | md }} | {{ count | number }} |
{% endfor %}

| queries | count |
|---|---|
{% for name, count in outcomes.items() %}
| {{ name | md }} | {{ count | number }} |
{% endfor %}
{% for name, count in lost.items() %}
| {{ name | md }} | {{ count | number }} |
{% endfor %}

### Agreement of the judge

{% if judge %}
| | |
|---|---|
{% for name, value in judge.items() %}
| {{ name | md }} | {{ value | number }} |
{% endfor %}
{% elif judged %}
{{ no_judge }}
{% for reason in unvouched %}

- {{ reason | md }}
{% endfor %}
{% else %}
No judge was used: the negatives are unjudged, and some of them may be relevant.
{% endif %}

### Style audit

{% if style %}
| | |
|---|---|
{% for name, value in style.items() %}
| {{ name | md }} | {{ value | number }} |
{% endfor %}
{% else %}
{{ no_style }}
{% endif %}

## Scores

{{ scores.of | md }}, between {{ scores.low | number }} and {{ scores.high | number }}. Scale in the files:
{{ scores.scale }}{% if scores.scale == "minmax" %}, 0 is the lowest and 1 the highest of these{% endif %}.
Half of the queries have a standard deviation of their exported scores above {{ scores.spread | number }}.

{% if scores.spread > 0 %}
For distillation: the softmax of the scores as exported gives the best passage of a query a weight of
{{ scores.top | number }} on average. Divided by a temperature of {{ scores.spread | number }} it is
{{ scores.top_advised | number }}. FlagEmbedding takes the softmax of what stands in the file, so
{% if scores.top < 0.5 %}
its targets are nearly flat here: give it a teacher's logits, or divide the scores by that temperature.
{% else %}
its targets are peaked already.
{% endif %}

sentence-transformers' `DistillKLDivLoss` divides the model's scores and these by the same `temperature`.
{% else %}
All scores of a query are equal: there is nothing to distil.
{% endif %}

## How to train with it

{% if "flagembedding" in rows %}
FlagEmbedding, embedder:

    torchrun --nproc_per_node 1 -m FlagEmbedding.finetune.embedder.encoder_only.base \\
      --model_name_or_path {{ train.model | sh }} --train_data {{ train.paths["flagembedding"] | sh }} \\
      --cache_path cache --train_group_size {{ train.group }}{% if train.prompt %} \\
      --query_instruction_for_retrieval {{ train.prompt | sh }}{% endif %} --query_max_len 64 \\
      --passage_max_len 256 --per_device_train_batch_size 16 --learning_rate 1e-5 --num_train_epochs 1 \\
      --temperature 0.02 --sentence_pooling_method {{ pooling }} \\
      --normalize_embeddings True --output_dir out

{% endif %}
{% if "flagembedding-m3" in rows %}
FlagEmbedding, BGE-M3 with its three outputs
{%- if not train.taught %} (the scores are the retriever's: no teacher scored all passages){% endif %}:

    torchrun --nproc_per_node 1 -m FlagEmbedding.finetune.embedder.encoder_only.m3 \\
      --model_name_or_path BAAI/bge-m3 --train_data {{ train.paths["flagembedding-m3"] | sh }} \\
      --cache_path cache --train_group_size {{ train.group }} --knowledge_distillation True \\
      --kd_loss_type m3_kd_loss --unified_finetuning True --use_self_distill True \\
      --same_dataset_within_batch True --query_max_len 64 --passage_max_len 512 \\
      --per_device_train_batch_size 4 --learning_rate 1e-5 --num_train_epochs 1 --temperature 0.02 \\
      --output_dir out

{% endif %}
{% if "flagembedding-reranker" in rows %}
FlagEmbedding, reranker:

    torchrun --nproc_per_node 1 -m FlagEmbedding.finetune.reranker.encoder_only.base \\
      --model_name_or_path BAAI/bge-reranker-base \\
      --train_data {{ train.paths["flagembedding-reranker"] | sh }} --cache_path cache \\
      --train_group_size {{ train.group }} --query_max_len 64 --passage_max_len 448 \\
      --per_device_train_batch_size 4 --learning_rate 6e-5 --num_train_epochs 1 --output_dir out

{% endif %}
{% for name, loss in losses.items() if name in rows %}
{% if loop.first %}
sentence-transformers:

{% endif %}
    # {{ name }}
    from datasets import load_dataset
    data = load_dataset("parquet", data_files={{ train.paths[name] | py }}, split="train")
{% if loss.startswith("CrossEncoder") %}
    from sentence_transformers.cross_encoder import CrossEncoder, CrossEncoderTrainer
    from sentence_transformers.cross_encoder.losses import {{ loss.split()[1] }}
    model = CrossEncoder({{ train.model | py }}, num_labels=1)
    trainer = CrossEncoderTrainer(model=model, train_dataset=data, loss={{ loss.split()[1] }}(model))
{% else %}
    from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer
    from sentence_transformers.sentence_transformer.losses import {{ loss }}
    model = SentenceTransformer({{ train.model | py }})
    trainer = SentenceTransformerTrainer(model=model, train_dataset=data, loss={{ loss }}(model))
{% endif %}
    trainer.train()

{% endfor %}
{% if "tevatron" in rows %}
Tevatron:

    python -m tevatron.retriever.driver.train --model_name_or_path {{ train.model | sh }} \\
      --dataset_name tevatron --corpus_name tevatron-corpus --train_group_size {{ train.group }} \\
      --query_max_len 64 --passage_max_len 256 --per_device_train_batch_size 8 --learning_rate 1e-5 \\
      --num_train_epochs 1 --temperature 0.02 --normalize --pooling {{ train.pooling }} --output_dir out

{% endif %}
{% if "tevatron-legacy" in rows %}
Tevatron, older form:

    python -m tevatron.retriever.driver.train --model_name_or_path {{ train.model | sh }} --dataset_name json \\
      --dataset_path {{ train.paths["tevatron-legacy"] | sh }} --train_group_size {{ train.group }} \\
      --query_max_len 64 --passage_max_len 256 --per_device_train_batch_size 8 --learning_rate 1e-5 \\
      --num_train_epochs 1 --temperature 0.02 --normalize --pooling {{ train.pooling }} --output_dir out

{% endif %}
A row has at least {{ train.group - 1 }} negatives, so a group size of {{ train.group }} repeats none.

## How to reproduce it

| | |
|---|---|
| miner | {{ reproduce.miner | md }} |
| settings of the job | SHA-256 {{ reproduce.job }} |
| corpus, queries and qrels as read | SHA-256 {{ reproduce.data }} |
| seed | {{ reproduce.seed }} |

The same data, settings and answers of the models give the same files, byte for byte: `miner run JOB.yaml`.

## Licence

{% if license %}
{{ license | md }}{% if license_note %}. {{ license_note | md }}{% endif %}

{% elif license_note %}
{{ license_note | md }}

{% else %}
No licence is stated. The texts are under the conditions of the data they come from.
{% endif %}"""
