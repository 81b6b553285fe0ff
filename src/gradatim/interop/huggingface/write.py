"""A run as a Hugging Face directory: what ``AutoModel….from_pretrained(DIR)`` loads without code of ours.

    config.json  model.safetensors (or several, with an index)  tokenizer.json  tokenizer_config.json  README.md

Weights are read from the checkpoint one file's worth at a time, whatever layout saved it.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from gradatim import __version__
from gradatim.config.settings import BertConfig, RunConfig
from gradatim.config.tuned import AnyModelConfig, TunedConfig, model_of
from gradatim.errors import ConfigError, LaunchError, Problem
from gradatim.interop.huggingface.directory import CONFIG, INDEX, WEIGHTS, in_parts
from gradatim.interop.huggingface.names import Architecture, Source, part, sources
from gradatim.interop.huggingface.settings import architecture_of, settings_json
from gradatim.interop.huggingface.tuned import (
    PADDING,
    body_of,
    head_class,
    needs_padding,
    pipeline_tag,
    refuse_mean,
    row_template,
    tuned_settings,
    tuned_sources,
)
from gradatim.shapes import parameters
from gradatim.text.tokenizer import Tokenizer
from gradatim.train.checkpoint import Checkpoint
from gradatim.train.run_directory import Run

SHARD_BYTES = 5 * 10**9
"""Largest file of weights, as the library's own default."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Exported:
    """What was written."""

    directory: str
    architecture: str
    files: tuple[str, ...]
    parameters: int


def export_directory(run: Run, checkpoint: Checkpoint, directory: Path, shard_bytes: int = SHARD_BYTES) -> Exported:
    """Write a run's model as a Hugging Face directory.

    Raises:
        ConfigError: the model is none of theirs, or the directory holds something already.
        CheckpointError: a weight cannot be read.
        LaunchError: the directory cannot be written.
    """
    config, tokenizer = run.config, run.tokenizer
    architecture = architecture_of(config.model, str(run.directory))
    refuse_filled(directory)
    model, words = model_of(config, len(run.labels)), tokenizer.vocab_size
    refuse_mean(model)
    if isinstance(model, TunedConfig):
        found = tuned_sources(architecture, model, words, config.context)
    else:
        found = sources(architecture, config.model, words, config.context)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        read = run.weights(checkpoint)[1]
        files, dtype, count = _weights(read, model, found, tokenizer, config.context, directory, shard_bytes)
        facts = settings_json(
            architecture, config.model, words, config.context, dtype, tokenizer.boundary, tokenizer.opening
        )
        if isinstance(model, TunedConfig):
            facts |= tuned_settings(architecture, model, run.labels, words, model.body.dropout)
        _json(directory / CONFIG, facts)
        write_tokenizer(tokenizer, config, model, directory)
        (directory / "README.md").write_text(card(run, checkpoint, architecture, count, model), encoding="utf-8")
    except OSError as error:
        what = f"the directory cannot be written ({error.strerror or error})"
        raise LaunchError(Problem(where=str(directory), what=what, attempt="another directory")) from None
    others = (CONFIG, "tokenizer.json", "tokenizer_config.json", "README.md")
    return Exported(directory=str(directory), architecture=architecture, files=(*files, *others), parameters=count)


def refuse_filled(directory: Path) -> None:
    """Raise ConfigError where a directory holds something already."""
    if directory.is_dir() and any(directory.iterdir()):
        what = "there is something in this directory already"
        raise ConfigError(Problem(where=str(directory), what=what, attempt="a directory that is empty or new"))


def _weights(
    read: Callable[[str], Tensor], config: AnyModelConfig, found: list[Source], tokenizer: Tokenizer, context: int,
    directory: Path, shard_bytes: int,
) -> tuple[list[str], str, int]:  # fmt: skip
    """The files of weights, the name of their type, and how many numbers they hold."""
    words = tokenizer.vocab_size
    shapes = {shape.name: shape.shape for shape in parameters(config, words, context)}
    by_name = {source.ours: source for source in found}
    first = read(found[0].ours).dtype
    sizes = {name: torch.Size(shape).numel() * first.itemsize for name, shape in shapes.items()}
    groups = in_parts(list(by_name), sizes, shard_bytes)
    names = [WEIGHTS] if len(groups) == 1 else [
        f"model-{i + 1:05d}-of-{len(groups):05d}.safetensors" for i in range(len(groups))
    ]  # fmt: skip
    index: dict[str, str] = {}
    total = count = 0
    for file, group in zip(names, groups, strict=True):
        tensors: dict[str, Tensor] = {}
        for name in group:
            source = by_name[name]
            ours = read(name)
            if source.words:
                ours = ours[:words]
                if needs_padding(config):
                    ours = torch.cat([ours, ours.new_zeros(1, *ours.shape[1:])])
            tensors |= zip(source.theirs, part(source, ours, body_of(config)), strict=True)
        save_file(tensors, directory / file, metadata={"format": "pt"})
        index |= dict.fromkeys(tensors, file)
        total += sum(tensor.nbytes for tensor in tensors.values())
        count += sum(tensor.numel() for tensor in tensors.values())
    if len(names) > 1:
        _json(directory / INDEX, {"metadata": {"total_size": total}, "weight_map": dict(sorted(index.items()))})
        names = [*names, INDEX]
    return names, str(first).removeprefix("torch."), count


def write_tokenizer(tokenizer: Tokenizer, config: RunConfig, model: AnyModelConfig, directory: Path) -> None:
    """``tokenizer.json`` and what the library must be told besides."""
    context = config.context
    facts = json.loads(tokenizer.engine.to_str())
    told: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": context}
    marks = tokenizer.marks
    if isinstance(config.model, BertConfig) and marks is not None:
        end = {"id": "[SEP]", "ids": [marks.end], "tokens": ["[SEP]"]}
        begin = {"id": "[CLS]", "ids": [marks.begin], "tokens": ["[CLS]"]}
        mark = [
            {"SpecialToken": {"id": name, "type_id": kind}} for name, kind in (("[CLS]", 0), ("[SEP]", 0), ("[SEP]", 1))
        ]
        a, b = ({"Sequence": {"id": name, "type_id": kind}} for name, kind in (("A", 0), ("B", 1)))
        facts["post_processor"] = {
            "type": "TemplateProcessing", "single": [mark[0], a, mark[1]], "pair": [mark[0], a, mark[1], b, mark[2]],
            "special_tokens": {"[CLS]": begin, "[SEP]": end},
        }  # fmt: skip
        names = {"pad": marks.pad, "cls": marks.begin, "sep": marks.end, "mask": marks.blank, "unk": marks.unknown}
        told |= {f"{name}_token": tokenizer.engine.id_to_token(number) for name, number in names.items()}
        told["model_input_names"] = ["input_ids", "token_type_ids", "attention_mask"]
    else:
        end_token = tokenizer.engine.id_to_token(tokenizer.boundary)
        told |= {"eos_token": end_token, "bos_token": tokenizer.engine.id_to_token(tokenizer.opening)}
        told["model_input_names"] = ["input_ids", "attention_mask"]
        if tokenizer.unknown is not None:
            told["unk_token"] = tokenizer.engine.id_to_token(tokenizer.unknown)
        if needs_padding(model):
            plain = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
            facts["added_tokens"].append({"id": tokenizer.vocab_size, "content": PADDING, **plain, "special": True})
            told["pad_token"] = PADDING
            facts["post_processor"] = row_template(tokenizer, config.task.delimiter)
    (directory / "tokenizer.json").write_text(json.dumps(facts, ensure_ascii=False) + "\n", encoding="utf-8")
    _json(directory / "tokenizer_config.json", told)


def _json(path: Path, facts: dict[str, Any]) -> None:
    path.write_text(json.dumps(facts, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


CLASSES = {"gpt2": "AutoModelForCausalLM", "llama": "AutoModelForCausalLM", "bert": "AutoModelForPreTraining"}


def card(
    run: Run, checkpoint: Checkpoint, architecture: Architecture, count: int, model: AnyModelConfig | None = None
) -> str:
    """The model card: what it is, what it was trained on and how well it does, as far as the run knows."""
    config, manifest = run.config, checkpoint.manifest
    task = "fill-mask" if architecture == "bert" else "text-generation"
    loader, unit = CLASSES[architecture], "" if architecture == "bert" else " per token"
    if isinstance(config.model, BertConfig) and config.model.pairs == "none":
        loader = "AutoModelForMaskedLM"
    if isinstance(model, TunedConfig):
        task, loader, unit = pipeline_tag(model), f"AutoModelFor{head_class(model)}", f" ({model.task})"
    loss = f"{manifest.valid_loss:.4f} nats" if manifest.valid_loss is not None else "not measured"
    rows = [
        ("architecture", architecture),
        ("parameters", f"{count:,}"),
        ("vocabulary", f"{run.tokenizer.vocab_size:,}"),
        ("context", f"{config.context:,} tokens"),
        ("trained on", ", ".join(Path(name).name or name for name in config.data.train) or "not known"),
        ("updates", f"{manifest.step:,} of {config.global_batch:,} sequences"),
        ("tokens learned from", f"{manifest.tokens:,}"),
        ("learning rate", f"{config.optimizer.lr:g}, {config.optimizer.schedule}"),
        ("validation loss", loss + (unit if manifest.valid_loss is not None else "")),
    ]
    table = "\n".join(f"| {name} | {value} |" for name, value in rows)
    return f"""---
library_name: transformers
pipeline_tag: {task}
tags: [gradatim, {architecture}]
---

# {run.directory.name}

Trained with gradatim {__version__}.

| | |
|---|---|
{table}

```python
from transformers import {loader}, AutoTokenizer

model = {loader}.from_pretrained("DIR")
tokenizer = AutoTokenizer.from_pretrained("DIR")
```

The model repeats what its text holds, mistakes and prejudices included. Nobody has tested it for any use.
"""
