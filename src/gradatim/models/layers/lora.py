"""Low-rank adapters beside the linear layers of a model whose own weights stay as they are (Hu et al. 2021).

    y = W x + b + (alpha / rank) · B (A dropout(x))          W, b fixed; A [rank, in] and B [out, rank] learned

B begins at zero, so that training begins with the model as it was (arXiv:2106.09685, section 4.1). Of a fixed weight
there is neither gradient nor moment, and the backward pass needs no input of its layer; a tenth of a percent of the
numbers is trained, which is how a model of 7 billion fits one GPU.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager

import torch
from jaxtyping import Float
from torch import Tensor, nn

from gradatim.config.settings_lora import LoraConfig
from gradatim.models.layers.attention import SelfAttention
from gradatim.models.layers.dropout import dropout
from gradatim.models.layers.feed_forward import FeedForward
from gradatim.models.layers.linear import Linear, linear
from gradatim.models.neural import NeuralModel
from gradatim.shapes.lora import LAYERS, MARK, is_adapter


class Adapter(nn.Module):
    """B A x, without the factor."""

    def __init__(self, inputs: int, outputs: int, rank: int) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.empty(rank, inputs))
        self.b = nn.Parameter(torch.empty(outputs, rank))

    def forward(self, x: Float[Tensor, "*n i"]) -> Float[Tensor, "*n o"]:
        """Through the narrow middle."""
        return linear(linear(x, self.a), self.b)


class AdaptedLinear(Linear):
    """A linear layer with a fixed weight and adapters beside it, of all its outputs or of queries, keys, values.

    Rows of a ``qkv`` weight are grouped by key-value head (``SelfAttention``), so outputs of such an adapter are put
    there. The layer works on a share of its inputs or outputs as well; ``enter`` and ``leave`` are for whoever cuts it.
    """

    def __init__(self, plain: nn.Linear, *, scale: float, dropout: float, group: int, head_dim: int) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = plain.in_features, plain.out_features
        self.weight, self.bias = plain.weight, plain.bias
        self.lora = nn.ModuleDict()
        self.scale, self.dropout, self.group, self.head_dim = scale, dropout, group, head_dim
        self.enter: Callable[[Tensor], Tensor] = _same
        """What happens to the input, once for all layers that share it."""
        self.leave: Callable[[Tensor], Tensor] | None = None
        """What happens to the product before the bias is added."""
        self.random: Callable[[], AbstractContextManager[object]] = contextlib.nullcontext
        """Where dropout draws from, for a share of the inputs that must not draw what others do."""

    def forward(self, x: Float[Tensor, "*n i"]) -> Float[Tensor, "*n o"]:
        """The layer and what its adapters add."""
        return self.local(self.enter(x))

    def local(self, x: Float[Tensor, "*n i"]) -> Float[Tensor, "*n o"]:
        """The same of an input that has entered already."""
        y = linear(x, self.weight, self.bias if self.leave is None else None)
        if len(self.lora):
            y = y + self.added(self._dropped(x)) * self.scale
        if self.leave is None:
            return y
        y = self.leave(y)
        return y if self.bias is None else y + self.bias.to(y.dtype)

    def added(self, x: Float[Tensor, "*n i"]) -> Float[Tensor, "*n o"]:
        """What the adapters add, without the factor."""
        parts = {target: adapter(x) for target, adapter in self.lora.items()}
        return together(parts, len(self.weight), self.group, self.head_dim)

    def _dropped(self, x: Tensor) -> Tensor:
        if not (self.dropout and self.training):
            return x
        with self.random():
            return dropout(x, self.dropout, self.training)


def _same(x: Tensor) -> Tensor:
    return x


def adapt(model: NeuralModel, lora: LoraConfig, heads: tuple[str, ...] = ()) -> None:
    """Fix every weight of a model and set adapters beside the layers that ``lora`` names; their numbers are not drawn.

    What begins with one of ``heads`` goes on being trained.

    Every matrix of a block becomes an ``AdaptedLinear``, some without an adapter.
    """
    assert lora.rank is not None
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith(heads) if heads else False)
    for module in list(model.blocks.modules()):
        group, head_dim = 0, 0
        if isinstance(module, SelfAttention):
            group, head_dim = module.group, module.head_dim
        if not isinstance(module, (SelfAttention, FeedForward)):
            continue
        for inner, plain in list(module.named_children()):
            if not isinstance(plain, nn.Linear):
                continue
            layer = AdaptedLinear(
                plain, scale=lora.alpha / lora.rank, dropout=lora.dropout, group=group, head_dim=head_dim
            )
            setattr(module, inner, layer)
            for target in lora.targets:
                if LAYERS[target].endswith(f".{inner}"):
                    layer.lora[target] = Adapter(plain.in_features, _outputs(layer, target), lora.rank)


def _outputs(layer: AdaptedLinear, target: str) -> int:
    """Outputs of an adapter."""
    if target not in ("q", "k", "v"):
        return layer.out_features
    per_head = layer.out_features // (layer.group + 2)
    return per_head * layer.group if target == "q" else per_head


def stored(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that a checkpoint holds: of an adapted model those that are trained, of any other all."""
    named = dict(model.named_parameters())
    if not any(map(is_adapter, named)):
        return named
    return {name: parameter for name, parameter in named.items() if parameter.requires_grad}


def layers_of(named: Mapping[str, Tensor]) -> dict[str, dict[str, tuple[Tensor, Tensor]]]:
    """A and B of the adapters among some parameters, by layer and target."""
    found: dict[str, dict[str, tuple[Tensor, Tensor]]] = {}
    for name in filter(is_adapter, named):
        layer, _, rest = name.partition(MARK)
        if rest.endswith(".a"):
            target = rest.removesuffix(".a")
            found.setdefault(layer, {})[target] = (named[name], named[f"{layer}{MARK}{target}.b"])
    return found


def merged(
    weight: Float[Tensor, "o i"],
    adapters: Mapping[str, tuple[Float[Tensor, "r i"], Float[Tensor, "o r"]]],
    scale: float,
    group: int,
    head_dim: int,
) -> Float[Tensor, "o i"]:
    """W + scale · B A of a whole layer, added in float64 and of W's type again.

    Args:
        weight: the layer's.
        adapters: A and B by target.
        scale: alpha / rank.
        group: query heads to a key-value head, where the layer is ``qkv``.
        head_dim: width of a head, likewise.
    """
    products = {target: (b.double() @ a.double()).t() for target, (a, b) in adapters.items()}
    return (weight.double() + scale * together(products, len(weight), group, head_dim).t()).to(weight.dtype)


def together(
    parts: Mapping[str, Float[Tensor, "*n _"]], outputs: int, group: int, head_dim: int
) -> Float[Tensor, "*n o"]:
    """Outputs of a layer's adapters as its own lie: of ``qkv`` each key-value head's queries, its key, its value."""
    first = next(iter(parts.values()))
    if not parts.keys() & {"q", "k", "v"}:
        return first
    found = []  # n kv heads k
    for target, heads in (("q", group), ("k", 1), ("v", 1)):
        shape = (*first.shape[:-1], outputs // ((group + 2) * head_dim), heads, head_dim)
        found.append(parts[target].reshape(shape) if target in parts else first.new_zeros(shape))
    return torch.cat(found, -2).flatten(-3)
