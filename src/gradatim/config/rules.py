"""Rules that a config must keep beyond the type of each field: ranges, and what fields owe each other.

They are judged after overrides have merged, all at once. A rule names the fields it reads; one whose field
could not be read stays silent, since that is reported already. Each says the nearest values that would do.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Set
from typing import Any

from gradatim.config.describe import scalar_text
from gradatim.config.nearby import divisors, either, multiples
from gradatim.config.rules_layout import layout
from gradatim.config.rules_lora import lora
from gradatim.config.rules_pairs import PAIR_CORPORA, TRANSLATORS, is_pairs, pairs
from gradatim.config.rules_task import TABLES, task
from gradatim.config.settings import BertConfig, GptConfig, NgramConfig, RecurrentConfig, RunConfig
from gradatim.errors import Problem

BUILT_IN = ("python-manual", "installed-docs")
"""Corpora that every installation has; each brings its own validation and test parts."""

SHORTEST_ROW = 8
"""Tokens of the shortest context that BERT is pretrained with."""
POSITIVE, COUNT, SHARE = "(0, inf)", "[1, 2147483647]", "[0, 1)"
RANGES: dict[str, str] = {
    "seed": "[0, 4294967295]",
    "steps": COUNT,
    "global_batch": COUNT,
    "batch_tokens": COUNT,
    "context": COUNT,
    "max_skipped_steps": "[0, inf)",
    "model.order": COUNT,
    "model.additive_count": POSITIVE,
    "model.window": COUNT,
    "model.d_model": COUNT,
    "model.d_embedding": COUNT,
    "model.d_ff": COUNT,
    "model.n_layers": COUNT,
    "model.n_encoder_layers": COUNT,
    "model.n_heads": COUNT,
    "model.n_kv_heads": COUNT,
    "model.dropout": SHARE,
    "model.attention_dropout": SHARE,
    "model.label_smoothing": SHARE,
    "model.embedding_dropout": SHARE,
    "model.weight_drop": SHARE,
    "model.rope_theta": POSITIVE,
    "model.norm_eps": POSITIVE,
    "model.vocab_multiple": COUNT,
    "model.masked": "(0, 1)",
    "model.short": "[0, 1]",
    "model.first_length": COUNT,
    "model.first_steps": "[0, inf)",
    "data.tokenizer.vocab_size": "[2, 2147483647]",
    "data.tokenizer.min_count": COUNT,
    "data.held_out": SHARE,
    "task.lm_weight": "[0, inf)",
    "task.layer_decay": "(0, 1]",
    "task.frozen_layers": "[0, 2147483647]",
    "optimizer.lr": POSITIVE,
    "optimizer.min_lr": "[0, inf)",
    "optimizer.warmup": "[0, inf)",
    "optimizer.decay_steps": COUNT,
    "optimizer.betas": SHARE,
    "optimizer.eps": POSITIVE,
    "optimizer.weight_decay": "[0, inf)",
    "optimizer.clip": POSITIVE,
    "lora.rank": COUNT,
    "lora.alpha": POSITIVE,
    "lora.dropout": SHARE,
    "layout.tp": COUNT,
    "layout.pp": COUNT,
    "layout.dp": COUNT,
    "layout.chunks": COUNT,
    "layout.microbatch": COUNT,
    "layout.split": COUNT,
    "layout.timeout": "(0, 604800]",
    "evaluation.every": COUNT,
    "evaluation.tokens": COUNT,
    "evaluation.patience": COUNT,
    "checkpoint.every": COUNT,
    "checkpoint.keep": COUNT,
}
"""The interval each number lies in; null, where a field admits it, always does."""


def problems(
    config: RunConfig,
    places: Mapping[str, str] | None = None,
    broken: Set[str] = frozenset(),
    to_train: bool = True,
) -> list[Problem]:
    """Everything in ``config`` that breaks a rule.

    ``places`` says where a dotted field was set (``my.yaml:3``); rules on a field in ``broken`` are left out.
    Without ``to_train`` there need be no text: imported models have none.
    """
    ranges = Rules(config, places or {}, set(broken))
    for path, interval in RANGES.items():
        _in_range(ranges, path, interval)
    # A number out of its range is one problem, not also the cause of others: the rules below see its default.
    for path in ranges.failed:
        config = _with_default(config, path.split("."))
    rules = Rules(config, places or {}, broken | ranges.failed)
    if to_train:
        _text(config, rules)
    for group in (_model, _start, lora, _optimizer, layout, _data, pairs, task, _evaluation):
        group(config, rules)
    return ranges.found + rules.found


class Rules:
    """Collects what fails, and knows where each field was set."""

    def __init__(self, config: RunConfig, places: Mapping[str, str], broken: Set[str]) -> None:
        self.config, self.places, self.broken = config, places, broken
        self.found: list[Problem] = []
        self.failed: set[str] = set()

    def get(self, path: str) -> Any:
        """The value at a dotted path; None where this kind of model has no such field."""
        value: Any = self.config
        for name in path.split("."):
            value = getattr(value, name, None)
        return value

    def readable(self, path: str) -> bool:
        """Whether neither the field nor a section above it was in error."""
        parts = path.split(".")
        return not any(".".join(parts[: i + 1]) in self.broken for i in range(len(parts)))

    def require(self, kept: bool, fields: str, what: str, *, allowed: str = "", attempt: str = "") -> None:
        """Note a problem unless ``kept``. ``fields``: what the rule reads, dotted, the one to mend first."""
        paths = fields.split()
        if kept:
            return
        self.failed.update(paths)
        if not all(map(self.readable, paths)):
            return
        set_at = [self.places[path] for path in paths if path in self.places]
        where = next((place for place in set_at if place.startswith("--")), (set_at or paths)[0])
        got = ", ".join(f"{path} {scalar_text(self.get(path))}" for path in paths)
        self.found.append(Problem(where=where, what=what, got=got, allowed=allowed, attempt=attempt))


def _with_default(section: Any, path: list[str]) -> Any:
    """The section with the default at a dotted path."""
    name, *rest = path
    inner = _with_default(getattr(section, name), rest) if rest else getattr(type(section)(), name)
    return dataclasses.replace(section, **{name: inner})


def _in_range(rules: Rules, path: str, interval: str) -> None:
    """Hold every number at ``path`` to an interval such as ``[0, 1)``."""
    value = rules.get(path)
    value = None if isinstance(value, str) else value  # one of the words that stand beside numbers
    low, high = (float(bound) for bound in interval[1:-1].split(","))
    open_low, open_high = interval[0] == "(", interval[-1] == ")"
    for number in value if isinstance(value, tuple) else [] if value is None else [value]:
        kept = (low < number if open_low else low <= number) and (number < high if open_high else number <= high)
        below, above = interval_text(interval).split(" and ")[0], interval_text(interval).split(" and ")[-1]
        bound, closed, words = (low, not open_low, below) if number <= low else (high, not open_high, above)
        attempt = f"--{path} {bound:.15g}" if closed and not isinstance(value, tuple) else ""
        rules.require(kept, path, f"{path} is out of range", allowed=words, attempt=attempt)


def interval_text(interval: str) -> str:
    """``[0, 1)`` as ``at least 0 and below 1``; an infinite bound is none."""
    low, high = (float(bound) for bound in interval[1:-1].split(","))
    words = [f"above {low:g}" if interval[0] == "(" else f"at least {low:g}"]
    if math.isfinite(high):
        words.append(f"below {high:g}" if interval[-1] == ")" else f"at most {high:.15g}")
    return " and ".join(words)


def _model(config: RunConfig, rules: Rules) -> None:
    model = config.model
    if isinstance(model, RecurrentConfig):
        rules.require(
            config.data.packing == "across",
            "data.packing model.kind",
            "a recurrent model reads its text as one stream, across the ends of documents",
            allowed="across",
            attempt="--data.packing across",
        )
    if isinstance(model, BertConfig):
        _bert(config, rules)
    if not isinstance(model, (GptConfig, BertConfig)):
        return
    heads = min(model.n_heads, model.d_model)
    rules.require(
        model.d_model % model.n_heads == 0,
        "model.n_heads model.d_model",
        "the heads must share the width evenly",
        allowed=f"n_heads {either(divisors(model.d_model, heads))}, "
        f"or d_model {either(multiples(heads, model.d_model))}",
        attempt=f"--model.n_heads {divisors(model.d_model, heads)[0]}",
    )
    if isinstance(model, BertConfig):
        return
    groups = divisors(model.n_heads, model.n_kv_heads or 1)
    rules.require(
        model.n_heads % (model.n_kv_heads or model.n_heads) == 0,
        "model.n_kv_heads model.n_heads",
        "each head of keys and values serves equally many query heads",
        allowed=f"n_kv_heads {either(groups)}",
        attempt=f"--model.n_kv_heads {groups[0]}",
    )
    rules.require(
        model.positions != "rotary" or model.d_model // model.n_heads % 2 == 0,
        "model.d_model model.n_heads model.positions",
        "rotary positions turn pairs, so a head's width (d_model / n_heads) must be even",
        allowed=f"d_model {either(multiples(2 * heads, model.d_model))}",
        attempt="--model.positions learned",
    )


def _bert(config: RunConfig, rules: Rules) -> None:
    rules.require(
        config.data.tokenizer.kind == "wordpiece" or config.data.tokenizer.path is not None,
        "data.tokenizer.kind model.kind",
        "BERT needs a tokenizer with [CLS], [SEP], [MASK] and [PAD]",
        allowed="wordpiece, or data.tokenizer.path with a tokenizer.json of that kind",
        attempt="--data.tokenizer.kind wordpiece",
    )
    rules.require(
        config.context >= SHORTEST_ROW,
        "context model.kind",
        "a row holds [CLS], A, [SEP], B and [SEP], and blanks among them",
        allowed=f"at least {SHORTEST_ROW}",
        attempt=f"--context {SHORTEST_ROW}",
    )
    first = config.model.first_length if isinstance(config.model, BertConfig) else None
    rules.require(
        first is None or SHORTEST_ROW <= first <= max(config.context, SHORTEST_ROW),
        "model.first_length context",
        "rows begin short and end as long as the context",
        allowed=f"{SHORTEST_ROW} to {config.context}, or null",
        attempt=f"--model.first_length {max(SHORTEST_ROW, config.context // 4)}",
    )


def _start(config: RunConfig, rules: Rules) -> None:
    rules.require(
        config.init_from is None or not isinstance(config.model, NgramConfig),
        "init_from model.kind",
        "n-grams are counted, so there is nothing to start from",
        allowed="null, or a network",
        attempt="--init_from null",
    )
    rules.require(
        config.init_from != "",
        "init_from",
        "the path is empty",
        allowed="a run, a Hugging Face directory, or null",
        attempt="--init_from null",
    )
    if config.word_vectors == "drawn":
        return
    for kept, field, what in (
        (not isinstance(config.model, (NgramConfig, *TRANSLATORS)), "model.kind",
         "vectors are counted for networks that read one text; this kind is not one"),
        (config.init_from is None, "init_from", "the embedding comes with the weights to start from"),
        (config.task.kind == "none", "task.kind", "vectors are counted in text, and a task has a table"),
    ):  # fmt: skip
        rules.require(kept, f"word_vectors {field}", what, allowed="drawn", attempt="--word_vectors drawn")


def _optimizer(config: RunConfig, rules: Rules) -> None:
    optimizer, steps = config.optimizer, config.steps
    rules.require(
        optimizer.warmup <= steps,
        "optimizer.warmup steps",
        "the rate would still be rising when the run ends",
        allowed=f"at most {steps}",
        attempt=f"--optimizer.warmup {steps // 10}",
    )
    rules.require(
        optimizer.min_lr <= optimizer.lr,
        "optimizer.min_lr optimizer.lr",
        "the final rate lies above the peak",
        allowed=f"at most {optimizer.lr:g}",
        attempt=f"--optimizer.min_lr {optimizer.lr / 10:g}",
    )
    rest = steps - optimizer.warmup
    rules.require(
        optimizer.schedule != "warmup-stable-decay" or rest < 1 or (optimizer.decay_steps or 1) <= rest,
        "optimizer.decay_steps steps optimizer.warmup",
        "the final fall does not fit between warm-up and end",
        allowed=f"at most {rest}",
        attempt=f"--optimizer.decay_steps {max(rest // 10, 1)}",
    )


def _text(config: RunConfig, rules: Rules) -> None:
    if config.data.train_source and not is_pairs(config.data) and not isinstance(config.model, TRANSLATORS):
        rules.require(
            False,
            "data.train_source model.kind",
            "this kind of model learns from plain text, not from pairs",
            allowed="kind translate-lm, seq2seq or transformer",
            attempt="the recipe transformer, or --data.train FILE",
        )
        return
    rules.require(
        bool(config.data.train) or is_pairs(config.data),
        "data.train",
        "there is nothing to learn from",
        allowed=f"{', '.join(BUILT_IN)} or files" if config.task.kind == "none" else "tables with text and labels",
        attempt=f"--data.train {BUILT_IN[0]}" if config.task.kind == "none" else "--data.train FILE",
    )


def _data(config: RunConfig, rules: Rules) -> None:
    data = config.data
    for split in ("valid", "test"):
        both = sorted(set(data.train) & set(getattr(data, split)))
        rules.require(
            not both,
            f"data.{split} data.train",
            f"{split} holds text that is learned from ({', '.join(both)}), so it would flatter the model",
            allowed="other files than data.train",
            attempt=f'--data.{split} ""',
        )
    tokenizer = data.tokenizer
    if tokenizer.path is not None:
        return
    rules.require(
        tokenizer.vocab_size is not None or tokenizer.kind in ("char", "word"),
        "data.tokenizer.vocab_size data.tokenizer.kind",
        "pieces can be merged without end, so this kind needs a size",
        allowed="a whole number",
        attempt="--data.tokenizer.vocab_size 8192",
    )
    rules.require(
        tokenizer.kind != "bpe" or tokenizer.vocab_size is None or tokenizer.vocab_size >= 257,
        "data.tokenizer.vocab_size data.tokenizer.kind",
        "byte-level BPE starts from 256 bytes and the mark between documents",
        allowed="at least 257",
        attempt="--data.tokenizer.vocab_size 257",
    )
    rules.require(
        tokenizer.kind != "wordpiece" or tokenizer.vocab_size is None or tokenizer.vocab_size >= 6,
        "data.tokenizer.vocab_size data.tokenizer.kind",
        "of a WordPiece vocabulary [PAD], [UNK], [CLS], [SEP] and [MASK] are five",
        allowed="at least 6",
        attempt="--data.tokenizer.vocab_size 8192",
    )


def _evaluation(config: RunConfig, rules: Rules) -> None:
    data = config.data
    brought = set(data.train) & {*BUILT_IN, *PAIR_CORPORA, *TABLES}
    held_out = bool(data.valid or data.valid_source or brought) or data.split == "component"
    rules.require(
        config.evaluation.patience is None or held_out,
        "evaluation.patience data.valid",
        "without validation text there is no best, so nothing to be patient for",
        allowed="null, or some data.valid",
        attempt="--evaluation.patience null",
    )
