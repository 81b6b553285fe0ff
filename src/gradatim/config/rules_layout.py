"""Rules of the layout: what tensor, pipeline and data parallelism ask of the model and the batch.

All are judged before any process starts, and each says the nearest numbers that would do. What a schedule can take is
asked of ``schedules/`` itself, whose reasons are told here in terms of the config's fields.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from gradatim.config.derived import feed_forward_width
from gradatim.config.nearby import closest, divisors, either, multiples
from gradatim.config.settings import BertConfig, GptConfig, NgramConfig, RecurrentConfig, RunConfig
from gradatim.config.settings_translators import Seq2SeqConfig, TransformerConfig, TranslateLmConfig

if TYPE_CHECKING:
    from gradatim.config.rules import Rules

SIZES = ("tp", "pp", "dp")
WHY_ALONE = {
    NgramConfig: "n-grams are counted in one pass over the text, in one process",
    RecurrentConfig: "a recurrent model reads its text as one stream, step by step, in one process",
    Seq2SeqConfig: "a recurrent translator works step by step, in one process",
    TranslateLmConfig: "a translator that is one language model trains in one process",
}
"""Why a kind of model trains in one process."""


def layout(config: RunConfig, rules: Rules) -> None:
    """Every reason why a layout cannot be had."""
    if config.batch_tokens is None:
        _batch(config, rules)
    if isinstance(config.model, TransformerConfig):
        _encoder_decoder(config, config.model, rules)
        return
    if not isinstance(config.model, (GptConfig, BertConfig)):
        _alone(config, rules)
        return
    _tensor(config, config.model, rules)
    _pipeline(config, config.model, rules)
    _schedule(config, rules)
    _zero(config, rules)


def _zero(config: RunConfig, rules: Rules) -> None:
    rules.require(
        config.layout.zero < 2,
        "layout.zero",
        "training shards the optimizer's state over dp at most; stages 2 and 3 are the planner's business",
        allowed="0 or 1",
        attempt="--layout.zero 1",
    )


def _alone(config: RunConfig, rules: Rules) -> None:
    """Models that are not cut: one process, without anything that asks for several."""
    why = WHY_ALONE.get(type(config.model), "this model is small, and trains in one process")
    for name, only in {**dict.fromkeys((*SIZES, "chunks"), "1"), "zero": "0 or 1", "recompute": "none"}.items():
        value = getattr(config.layout, name)
        rules.require(
            str(value) in only.split(" or "),
            f"layout.{name} model.kind",
            why if name in SIZES else f"layout.{name} is of Transformers",
            allowed=only if name == "zero" else f"{only}, or kind gpt or bert",
            attempt=f"--layout.{name} {only[:1] if name == 'zero' else only}",
        )


def _encoder_decoder(config: RunConfig, model: TransformerConfig, rules: Rules) -> None:
    """Encoder and decoder are cut by tensor and data parallelism, and stay in one stage."""
    _tensor(config, model, rules)
    _zero(config, rules)
    why = "a decoder needs the whole encoder at hand, so the two are one stage"
    for name, only in {"pp": 1, "chunks": 1, "sequence_parallel": False}.items():
        rules.require(
            getattr(config.layout, name) == only,
            f"layout.{name} model.kind",
            why if name != "sequence_parallel" else "source and target differ in length, and are not cut by positions",
            allowed=str(only).lower(),
            attempt=f"--layout.{name} {str(only).lower()}",
        )


def _batch(config: RunConfig, rules: Rules) -> None:
    """The batch is shared by replicas, and a replica's share by microbatches."""
    dp, microbatch, batch = config.layout.dp, config.layout.microbatch, config.global_batch
    if batch % dp:
        whole = batch // microbatch if microbatch is not None and batch % microbatch == 0 else batch
        sizes = divisors(whole, dp)
        rules.require(
            False,
            "layout.dp global_batch",
            "replicas must share the batch evenly",
            allowed=f"dp {either(sizes)}, or global_batch {either(multiples(dp * (microbatch or 1), batch))}",
            attempt=f"--layout.dp {sizes[0]}",
        )
    elif microbatch is not None:
        share = batch // dp
        sizes = divisors(share, microbatch)
        rules.require(
            share % microbatch == 0,
            "layout.microbatch global_batch" + (" layout.dp" if dp > 1 else ""),
            "microbatches must share the batch evenly"
            if dp == 1
            else "microbatches must share a replica's part evenly",
            allowed=f"microbatch {either(sizes)}, or global_batch {either(multiples(dp * microbatch, batch))}",
            attempt=f"--layout.microbatch {sizes[0]}",
        )


def _tensor(config: RunConfig, model: GptConfig | BertConfig | TransformerConfig, rules: Rules) -> None:
    """What is cut into tp equal parts: heads, width of the feed-forward layer, vocabulary, perhaps the context."""
    tp = config.layout.tp
    width = feed_forward_width(model)
    wide = "the feed-forward width" + (f", {width}," if model.d_ff is None else "")
    parts = {"model.n_heads": (model.n_heads, "the heads")}
    if isinstance(model, GptConfig) and model.n_kv_heads is not None:
        parts["model.n_kv_heads"] = (model.n_kv_heads, "the heads of keys and values")
    parts["model.d_ff"] = (width, wide)
    parts["model.vocab_multiple"] = (model.vocab_multiple, "the padded vocabulary, a multiple of vocab_multiple,")
    if config.layout.sequence_parallel:
        parts["context"] = (config.context, "the context, by sequence parallelism,")
        if isinstance(model, BertConfig) and model.first_length is not None:
            parts["model.first_length"] = (model.first_length, "the first rows, by sequence parallelism,")
    common = math.gcd(*(size for size, _ in parts.values()))
    for path, (size, words) in parts.items():
        if size % tp == 0:
            continue
        others = multiples(tp, size)
        if path in ("model.n_heads", "model.n_kv_heads"):  # which must divide what they share
            whole = model.d_model if path == "model.n_heads" else model.n_heads
            near = (max(size // tp, 1), size // tp + 1)
            others = [tp * d for n in near for d in divisors(whole // tp, n)] if whole % tp == 0 else []
        instead = f", or {path.removeprefix('model.')} {either(others)}" if others else ""
        rules.require(
            False,
            f"layout.tp {path}",
            f"{words} must fall into tp equal parts",
            allowed=f"tp {either(divisors(size, tp))}{instead}",
            attempt=f"--layout.tp {divisors(common, tp)[0]}",
        )


def _pipeline(config: RunConfig, model: GptConfig | BertConfig, rules: Rules) -> None:
    """Layers against stages and chunks."""
    pp, chunks, split, layers = config.layout.pp, config.layout.chunks, config.layout.split, model.n_layers
    rules.require(
        chunks == 1 or pp > 1,
        "layout.chunks layout.pp",
        "chunks interleave the stages of a pipeline, and here is one stage",
        allowed="chunks 1, or pp 2 and more",
        attempt="--layout.chunks 1",
    )
    fewer = f"--layout.chunks {layers // pp}" if chunks > 1 and layers >= pp else f"--layout.pp {layers // chunks or 1}"
    enough = pp * chunks <= layers
    rules.require(
        enough,
        "layout.pp model.n_layers" + (" layout.chunks" if chunks > 1 else ""),
        f"each {'chunk of each stage' if chunks > 1 else 'stage'} needs a layer, {pp * chunks} in all",
        allowed=f"n_layers {pp * chunks} and more, or pp · chunks at most {layers}",
        attempt=fewer,
    )
    if not isinstance(split, tuple) or not enough:
        return
    rules.require(
        len(split) == pp * chunks and sum(split) == layers,
        "layout.split model.n_layers layout.pp layout.chunks",
        "every layer must be in one chunk",
        allowed=f"{pp * chunks} numbers that add up to {layers}; here {len(split)} that add up to {sum(split)}",
        attempt="--layout.split uniform",
    )


def _schedule(config: RunConfig, rules: Rules) -> None:
    """What the schedule can take; it is none of anybody's where there is one stage."""
    from gradatim.schedules import schedule_problems  # here, since schedules/ imports config/

    how = config.layout
    share = config.global_batch // how.dp
    size = how.microbatch or share
    if how.pp == 1 or config.global_batch % how.dp or share % size:
        return
    count = share // size
    for problem in schedule_problems(how.schedule, how.pp, count, how.chunks):
        if problem.where == "chunks":
            fits = count % how.pp == 0
            rules.require(
                False,
                "layout.chunks layout.schedule",
                problem.what,
                allowed=problem.allowed,
                attempt="--layout.schedule interleaved" if fits else "--layout.chunks 1",
            )
        elif problem.where == "microbatches":
            batches = multiples(how.dp * how.pp * size, config.global_batch)
            sizes = divisors(share // how.pp, size) if share % how.pp == 0 else []
            instead = f"microbatch {either(sizes)}, or " if sizes else ""
            rules.require(
                False,
                "layout.microbatch global_batch layout.dp layout.pp layout.schedule",
                problem.what,
                allowed=f"{problem.allowed} of them: {instead}global_batch {either(batches)}",
                attempt=f"--layout.microbatch {sizes[0]}"
                if sizes
                else f"--global_batch {closest(batches, config.global_batch)}",
            )
        else:
            rules.require(
                False,
                "layout.microbatch global_batch layout.pp layout.chunks",
                problem.what,
                allowed=problem.allowed,
                attempt="--layout.microbatch null",
            )
