"""Layers with adapters cut by columns and by rows.

    column   y_i = (W_i + s B_i A) f(x) + b_i          row   y = g(Σ_i (W_i + s B A_i) x_i) + b

An adapter is cut as its layer is, so its product joins the layer's before either is communicated, and costs no message
of its own going forward or backward. The half that is not cut (A beside columns, B beside rows) gets a share of its
gradient on every rank; ``shapes/lora.py`` says so, and ``Gradients`` sums it. f and g are those of plain layers
(``collectives.py``): weights that stay as they are leave no other work that a sum could hide behind.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import cast

from jaxtyping import Float
from torch import Tensor, nn

from gradatim.models.layers.lora import AdaptedLinear
from gradatim.parallel.collectives import combine, gather, scatter, spread
from gradatim.parallel.mesh import Axis
from gradatim.shapes import COLUMN, Split


def share(layer: AdaptedLinear, split: Split, axis: Axis, sequence_parallel: bool) -> None:
    """Have a layer work as one of its shards, whose parameters are still whole."""
    if split == COLUMN:
        layer.enter = partial(gather if sequence_parallel else spread, axis=axis)
    else:
        layer.leave = partial(scatter if sequence_parallel else combine, axis=axis)


def adapted_columns(x: Float[Tensor, "b s into"], layers: Sequence[nn.Module]) -> list[Float[Tensor, "b t out_local"]]:
    """Several column layers of one input, which enters once."""
    adapted = [cast(AdaptedLinear, layer) for layer in layers]
    x = adapted[0].enter(x)
    return [layer.local(x) for layer in adapted]
