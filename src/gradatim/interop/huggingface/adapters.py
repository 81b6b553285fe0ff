"""Low-rank adapters as the ``peft`` library keeps them, written from a run and read beside the weights they change.

    adapter_config.json  adapter_model.safetensors  tokenizer.json  tokenizer_config.json  README.md

An adapter is two tensors, ``base_model.model.MODULE.lora_A.weight`` [r, in] and ``….lora_B.weight`` [out, r], also
where the module's own weight is ``[in, out]``. Ours of ``qkv`` is there one of GPT-2's ``c_attn``, or three that share
A; ours of q, k and v alone are three, or lie side by side in one of GPT-2: B A = Σ B_i A_i is again a product, of the
stacked A and of the B beside each other.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from gradatim.config.settings import BertConfig, GptConfig, ModelConfig
from gradatim.errors import DataError, Problem
from gradatim.interop.huggingface.adapter_config import ADAPTER_WEIGHTS, AdapterSettings
from gradatim.interop.huggingface.names import Source, heads, part
from gradatim.models.layers.lora import together

PREFIX = "base_model.model."
ENDS = (".lora_A.weight", ".lora_B.weight")
Adapters = Mapping[str, tuple[Tensor, Tensor]]
"""A and B of a layer by target."""


def their_adapters(
    source: Source, adapters: Adapters, outputs: int, config: ModelConfig
) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Name of each of their modules that a layer's adapters belong to, with A and B.

    Args:
        source: where the layer's weight comes from.
        adapters: of the layer.
        outputs: rows of the layer's weight.
        config: of the model.
    """
    assert isinstance(config, (GptConfig, BertConfig))
    queries, kv = heads(config)
    found: dict[str, list[tuple[Tensor, Tensor]]] = {}
    for target, (a, b) in adapters.items():
        whole = together({target: b.t()}, outputs, queries // kv, config.d_model // queries).t().contiguous()
        pieces = part(replace(source, turned=False), whole, config)
        for place, (name, piece) in enumerate(zip(source.theirs, pieces, strict=True)):
            if len(pieces) == 1 or target == "qkv" or target == "qkv"[place]:
                found.setdefault(name.removesuffix(".weight"), []).append((a, piece))
    for module, held in found.items():
        yield module, torch.cat([a for a, _ in held]), torch.cat([b for _, b in held], 1)


# --------------------------------------------------------------------------- reading


@dataclass(frozen=True, slots=True)
class Added:
    """What is to be added to one of their weights."""

    file: Path
    module: str
    scale: float

    def to(self, weight: Tensor, turned: bool) -> Tensor:
        """W + scale · B A, in float32 at least; ``turned`` where W is ``[in, out]``."""
        with safe_open(self.file, framework="pt") as file:
            a, b = (file.get_tensor(f"{PREFIX}{self.module}{end}").double() for end in ENDS)
        more = self.scale * (b @ a)
        kind = torch.promote_types(weight.dtype, torch.float32)
        found: Tensor = (weight.double() + (more.t() if turned else more)).to(kind)
        return found


def read_adapters(
    directory: Path, settings: AdapterSettings, shapes: Mapping[str, tuple[tuple[int, ...], bool]], prefix: str
) -> dict[str, Added]:
    """What a directory's adapters add, by the full name of the weight; the tensors are judged by their headers.

    Args:
        directory: that holds them.
        settings: of the adapters.
        shapes: of the weights that can have adapters, and whether they are ``[in, out]``.
        prefix: what their names begin with, which those of a body alone lack.

    Raises:
        DataError: no file of adapters, or tensors that are missing, misshapen or belong to nothing.
    """
    file = directory / ADAPTER_WEIGHTS
    if not file.is_file():
        pickled = (directory / "adapter_model.bin").is_file()
        what = "the adapters are pickled, and opening a pickle can run any program; it was not opened"
        what = what if pickled else "there are no adapters"
        raise DataError(Problem(where=str(directory), what=what, allowed=ADAPTER_WEIGHTS))
    try:
        with safe_open(file, framework="pt") as opened:
            held = {key: tuple(opened.get_slice(key).get_shape()) for key in list(opened.keys())}
    except (SafetensorError, OSError) as error:
        what = f"this is not a readable safetensors file ({error})"
        raise DataError(Problem(where=str(file), what=what, attempt="fetch it again")) from None
    found: dict[str, Added] = {}
    problems = []
    for key, shape in sorted(held.items()):
        end = next((end for end in ENDS if key.endswith(end)), None)
        module = key.removeprefix(PREFIX).removesuffix(end or "")
        name = next((n for n in (f"{module}.weight", f"{prefix}{module}.weight") if n in shapes), None)
        if not key.startswith(PREFIX) or end is None or name is None:
            what, attempt = f"the model has no place for {key}", "adapters of the blocks' linear layers alone"
            problems.append(Problem(where=str(file), what=what, got=str(list(shape)), attempt=attempt))
            continue
        (one, two), turned = shapes[name]
        into, out = (one, two) if turned else (two, one)
        rank = settings.rank_of(module)
        wanted = (rank, into) if end == ENDS[0] else (out, rank)
        twin = f"{PREFIX}{module}{ENDS[1] if end == ENDS[0] else ENDS[0]}"
        if shape != wanted:
            what = f"{key} has another shape"
            problems.append(Problem(where=str(file), what=what, got=str(list(shape)), allowed=str(list(wanted))))
        if twin not in held:
            problems.append(Problem(where=str(file), what=f"there is no tensor {twin}", attempt="fetch it again"))
        found[name] = Added(file, module, settings.scale(module, rank))
    if problems:
        raise DataError(*problems)
    return found
