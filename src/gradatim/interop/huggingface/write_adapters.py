"""A run's adapters as a directory that ``peft.PeftModel.from_pretrained(model, DIR)`` loads."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from gradatim import __version__
from gradatim.config.settings_task import TaskKind
from gradatim.config.tuned import TunedConfig, model_of
from gradatim.errors import ConfigError, LaunchError, Problem
from gradatim.interop.huggingface.adapter_config import ADAPTER_CONFIG, ADAPTER_WEIGHTS, adapter_config
from gradatim.interop.huggingface.adapters import ENDS, PREFIX, their_adapters
from gradatim.interop.huggingface.names import sources
from gradatim.interop.huggingface.settings import architecture_of
from gradatim.interop.huggingface.tuned import body_of, tuned_sources
from gradatim.interop.huggingface.write import Exported, refuse_filled, write_tokenizer
from gradatim.models.layers.lora import layers_of
from gradatim.shapes import parameters
from gradatim.train.adapted import base_of
from gradatim.train.checkpoint import Checkpoint
from gradatim.train.run_directory import MODEL, Run

TASKS: dict[TaskKind, str] = {
    "classify": "SEQ_CLS", "regress": "SEQ_CLS", "tag": "TOKEN_CLS", "span": "QUESTION_ANS",
}  # fmt: skip
"""What the library calls a task; of what it has no name for, it is told none."""


def export_adapters(run: Run, checkpoint: Checkpoint, directory: Path) -> Exported:
    """Write a run's adapters, and a task's head, which the library calls modules to save.

    Raises:
        ConfigError: the run has no adapters, or the directory holds something already.
        CheckpointError: an adapter or the base cannot be read.
        LaunchError: the directory cannot be written.
    """
    config, lora, words = run.config, run.config.lora, run.tokenizer.vocab_size
    if lora.rank is None:
        what, attempt = "this run has no adapters: all its weights were trained", "--format hf"
        raise ConfigError(Problem(where=str(run.directory), what=what, allowed="a run with lora.rank", attempt=attempt))
    architecture, model = architecture_of(config.model, str(run.directory)), model_of(config, len(run.labels))
    refuse_filled(directory)
    tuned = isinstance(model, TunedConfig)
    found = (
        tuned_sources(architecture, model, words, config.context)
        if isinstance(model, TunedConfig)
        else sources(architecture, config.model, words, config.context)
    )
    held = checkpoint.tensors(MODEL)
    rows = {shape.name: shape.shape[0] for shape in parameters(model, words, config.context)}
    tensors: dict[str, Tensor] = {}
    modules: set[str] = set()
    several: dict[str, int] = {}
    heads: list[str] = []
    adapted = layers_of(held)
    for source in found:
        layer = source.ours.removesuffix(".weight")
        if source.ours in held:
            (name,) = source.theirs
            tensors[PREFIX + name] = held[source.ours]
            heads.append(name.rpartition(".")[0])
        elif source.ours.endswith(".weight") and layer in adapted:
            for module, a, b in their_adapters(source, adapted[layer], rows[source.ours], body_of(model)):
                tensors |= {f"{PREFIX}{module}{end}": t.contiguous().clone() for end, t in zip(ENDS, (a, b))}
                end = _end(module)
                modules.add(end)
                if len(a) > lora.rank:
                    several[end] = len(a) // lora.rank
    base = Path(base_of(run).where)
    task_type = TASKS.get(config.task.kind) if tuned else None if architecture == "bert" else "CAUSAL_LM"
    facts = adapter_config(
        architecture, str(base) if (base / "config.json").is_file() else None, task_type, lora.rank, lora.alpha,
        lora.dropout, sorted(modules), several, list(dict.fromkeys(heads)),
    )  # fmt: skip
    try:
        directory.mkdir(parents=True, exist_ok=True)
        save_file(tensors, directory / ADAPTER_WEIGHTS, metadata={"format": "pt"})
        (directory / ADAPTER_CONFIG).write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
        write_tokenizer(run.tokenizer, config, model, directory)
        (directory / "README.md").write_text(_card(run, checkpoint, facts["base_model_name_or_path"]), encoding="utf-8")
    except OSError as error:
        what = f"the directory cannot be written ({error.strerror or error})"
        raise LaunchError(Problem(where=str(directory), what=what, attempt="another directory")) from None
    count = sum(torch.Size(tensor.shape).numel() for tensor in tensors.values())
    files = (ADAPTER_WEIGHTS, ADAPTER_CONFIG, "tokenizer.json", "tokenizer_config.json", "README.md")
    return Exported(directory=str(directory), architecture=architecture, files=files, parameters=count)


def _end(module: str) -> str:
    """What all layers' modules of one kind end with: ``transformer.h.0.attn.c_attn`` gives ``attn.c_attn``."""
    names = module.split(".")
    number = next(place for place, name in enumerate(names) if name.isdecimal())
    return ".".join(names[number + 1 :])


def _card(run: Run, checkpoint: Checkpoint, base: str | None) -> str:
    lora, loss = run.config.lora, checkpoint.manifest.valid_loss
    named = f"base_model: {base}\n" if base else ""
    return f"""---
library_name: peft
{named}tags: [gradatim, lora]
---

# {run.directory.name}

Low-rank adapters (rank {lora.rank}, alpha {lora.alpha:g}, beside {", ".join(lora.targets)}), trained with gradatim \
{__version__} for {checkpoint.step:,} updates{"" if loss is None else f" to a validation loss of {loss:.4f} nats"}.

```python
from peft import PeftModel

model = PeftModel.from_pretrained(model, "DIR")  # of the model that they were trained beside
```

They change what a model says, not what it is fit for: nobody has tested the two together for any use.
"""
