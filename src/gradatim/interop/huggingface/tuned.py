"""Fine-tuned models as their library knows them: which class, which head, and what config.json says besides.

Their classes of GPT-2 and Llama read a row at its last token that is no padding, so a token that is nothing else is
needed there: the vocabulary gets one more word, whose vector is zero. Choices are rows of their own with one score
each, which for BERT is the class for multiple choice and for the others that for sequences with one label.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from gradatim.config.settings import BertConfig, ModelConfig
from gradatim.config.settings_task import TaskKind
from gradatim.config.tuned import AnyModelConfig, TunedConfig
from gradatim.errors import ConfigError, Problem
from gradatim.interop.huggingface.names import Architecture, Source, sources
from gradatim.text.tokenizer import Tokenizer

PADDING = "<|pad|>"
FAMILIES = {"gpt2": "GPT2", "llama": "Llama", "bert": "Bert"}
_CLASSES: dict[TaskKind, tuple[str, str]] = {
    "classify": ("SequenceClassification", "text-classification"),
    "regress": ("SequenceClassification", "text-classification"),
    "tag": ("TokenClassification", "token-classification"),
    "span": ("QuestionAnswering", "question-answering"),
    "choice": ("MultipleChoice", "multiple-choice"),
}


def body_of(model: AnyModelConfig) -> ModelConfig:
    """The model without its task."""
    return model.body if isinstance(model, TunedConfig) else model


def head_class(model: TunedConfig) -> str:
    """What follows the family's name in their class: ``SequenceClassification``."""
    if model.task == "choice" and not isinstance(model.body, BertConfig):
        return "SequenceClassification"
    return _CLASSES[model.task][0]


def pipeline_tag(model: TunedConfig) -> str:
    """What their hub calls the task."""
    return _CLASSES[model.task][1]


def needs_padding(model: AnyModelConfig) -> bool:
    """Whether the exported vocabulary has a word more."""
    return isinstance(model, TunedConfig) and not isinstance(model.body, BertConfig)


def refuse_mean(model: AnyModelConfig) -> None:
    """Their classes have no mean.

    Raises:
        ConfigError: the model reads a row by the mean of its vectors.
    """
    if isinstance(model, TunedConfig) and model.mean:
        what = "their classes read a row by one of its tokens, and this model by the mean of all"
        attempt = "keep the run: gradatim predict; or tune one with --task.pooling own"
        raise ConfigError(Problem(where="task.pooling", what=what, got="mean", allowed="own", attempt=attempt))


def tuned_sources(architecture: Architecture, model: TunedConfig, vocab_size: int, context: int) -> list[Source]:
    """The origin of each parameter, in the order of the model; the auxiliary loss's output matrix stays behind."""
    body = replace(model.body, pairs="next-sentence") if isinstance(model.body, BertConfig) else model.body
    bare = sources(architecture, body, vocab_size, context)
    head = _head(architecture, model)
    kept = {"head.pooler.": "bert", "head.norm.": "gpt"}
    found = [source for source in bare if not source.ours.startswith("head.")]
    family = "bert" if architecture == "bert" else "gpt"
    of_rows = head in ("classifier", "score") and model.task != "tag"
    for source in bare:
        start = next((start for start in kept if source.ours.startswith(start)), None)
        if start is not None and kept[start] == family and (family == "gpt" or of_rows):
            found.append(source)
    if architecture == "llama" and model.task == "span":  # that class alone calls the body by another name
        found = [replace(s, theirs=tuple(_moved(name) for name in s.theirs)) for s in found]
    ends = ("weight",) if head == "score" and model.task != "tag" else ("weight", "bias")
    return found + [Source(f"head.classifier.{end}", (f"{head}.{end}",)) for end in ends]


def _moved(name: str) -> str:
    return "transformer." + name.removeprefix("model.")


def _head(architecture: Architecture, model: TunedConfig) -> str:
    if model.task == "span":
        return "qa_outputs"
    if architecture == "bert" or (architecture == "gpt2" and model.task == "tag"):
        return "classifier"
    return "score"


def tuned_settings(
    architecture: Architecture, model: TunedConfig, labels: Sequence[str], vocab_size: int, dropout: float
) -> dict[str, Any]:
    """What config.json says of the task; ``vocab_size`` without the word for padding."""
    names = list(labels) if model.task in ("classify", "tag") else [f"LABEL_{i}" for i in range(model.outputs)]
    found: dict[str, Any] = {
        "architectures": [f"{FAMILIES[architecture]}For{head_class(model)}"],
        "id2label": {str(number): name for number, name in enumerate(names)},
        "label2id": {name: number for number, name in enumerate(names)},
        "classifier_dropout": dropout,
    }
    if model.task in ("classify", "regress"):
        found["problem_type"] = "regression" if model.task == "regress" else "single_label_classification"
    if needs_padding(model):
        found |= {"vocab_size": vocab_size + 1, "pad_token_id": vocab_size}
    return found


def row_template(tokenizer: Tokenizer, delimiter: str | None) -> dict[str, Any]:
    """A post-processor that lays rows out as GPT's tasks do: opening A boundary, opening A delimiter B boundary.

    Args:
        tokenizer: of the run.
        delimiter: text between two texts; None for the boundary.
    """
    known: dict[str, Any] = {}

    def mark(ids: list[int]) -> list[dict[str, Any]]:
        """Tokens of the template's own, which may be none."""
        tokens = [str(tokenizer.engine.id_to_token(number)) for number in ids]
        if not ids:
            return []
        known["".join(tokens)] = {"id": "".join(tokens), "ids": ids, "tokens": tokens}
        return [{"SpecialToken": {"id": "".join(tokens), "type_id": 0}}]

    begin, end = mark([tokenizer.opening]), mark([tokenizer.boundary])
    between = end if delimiter is None else mark(tokenizer.encode(delimiter))
    a, b = ([{"Sequence": {"id": name, "type_id": 0}}] for name in ("A", "B"))
    return {
        "type": "TemplateProcessing", "single": [*begin, *a, *end], "pair": [*begin, *a, *between, *b, *end],
        "special_tokens": known,
    }  # fmt: skip
