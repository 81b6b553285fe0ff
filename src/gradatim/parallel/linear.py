"""Linear layers cut by columns and by rows, with the communication that joins them to the layers around.

    column   y_i = x W_iᵀ + b_i          rank i has some outputs; ∂x is summed over ranks (f)
    row      y = Σ_i x_i W_iᵀ + b        rank i has some inputs;  y is summed over ranks (g)

A column layer, anything element by element or head by head, and a row layer are together one layer that communicates
once going forward and once going backward (Shoeybi et al. 2019, arXiv:1909.08053). Under sequence parallelism x and y
are cut along the sequence, and the sums become an all-gather before columns and a reduce-scatter after rows
(Korthikanti et al. 2022, arXiv:2205.05198); x is then kept as the part it came as, and gathered again going backward.

f and g stand inside the layers' own autograd functions, not beside them, so that the sum of ∂x is under way while ∂W is
computed. Weight gradients can also wait in a ``WeightGradients`` queue: the W of zero-bubble schedules (Qi et al. 2023,
arXiv:2401.10241).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from gradatim.models.layers.working import autocast_dtype, in_type
from gradatim.parallel.collectives import begin_gather, begin_scatter, begin_sum, uncompiled
from gradatim.parallel.mesh import Axis


@dataclass(frozen=True, slots=True)
class Pending:
    """Products ∂Wᵢ = ∂yᵢᵀ x that have not been computed."""

    weights: tuple[nn.Parameter, ...]
    grads: tuple[Float[Tensor, "n out"], ...]
    x: Float[Tensor, "b t into"]
    gather: Axis | None
    """Over which ranks x is still a part of the sequence."""


class WeightGradients:
    """Where the linear layers of a chunk leave weight gradients for later.

    Between I and W a layer's input and output gradient are kept. Biases, norms and embeddings finish with I.
    """

    def __init__(self) -> None:
        self._holding = False
        self._held: list[Pending] = []
        self._ready: list[Callable[[nn.Parameter], None]] = []

    @property
    def holding(self) -> bool:
        """Whether layers are to leave their products here."""
        return self._holding

    @contextlib.contextmanager
    def hold(self) -> Iterator[None]:
        """Inside, backward passes compute gradients of inputs and leave those of weights."""
        self._holding = True
        try:
            yield
        finally:
            self._holding = False

    def add(self, pending: Pending) -> None:
        """Leave a layer's products."""
        self._held.append(pending)

    def pop(self) -> list[Pending]:
        """What was left since the last call, in the order of the backward pass."""
        held, self._held = self._held, []
        return held

    @torch.no_grad()
    def run(self, pending: Sequence[Pending]) -> None:
        """Compute products and add them to ``parameter.grad``; every rank of a tensor-parallel group alike."""
        # Each gather is on its way while the products before it are computed.
        coming = [None if each.gather is None else begin_gather(each.x, each.gather) for each in pending[:1]]
        for i, each in enumerate(pending):
            coming += [None if n.gather is None else begin_gather(n.x, n.gather) for n in pending[i + 1 : i + 2]]
            arrived, coming[i] = coming[i], None  # the parts go once they are put together
            x = (each.x if arrived is None else arrived.wait()).flatten(0, -2)
            del arrived
            for weight, grad in zip(each.weights, each.grads):
                _accumulate(weight, grad, x)
                for function in self._ready:
                    function(weight)

    def on_ready(self, function: Callable[[nn.Parameter], None]) -> None:
        """Have a function called with each weight that ``run`` has added to."""
        self._ready.append(function)


def _accumulate(weight: nn.Parameter, grad: Float[Tensor, "n out"], x: Float[Tensor, "n into"]) -> None:
    if weight.grad is None:
        weight.grad = torch.mm(grad.t(), x).to(weight.dtype)
    elif weight.grad.dtype == grad.dtype:
        weight.grad.addmm_(grad.t(), x)
    else:
        weight.grad.add_(torch.mm(grad.t(), x))


class ParallelLinear(nn.Module):
    """What both kinds share: a weight ``[out into]`` of which this rank holds a part, and how it talks.

    Args:
        whole: the layer it takes the place of, whose parameters it takes over (and which are then cut).
        axis: the tensor-parallel ranks; one alone is a plain linear layer with a queue.
        sequence_parallel: whether activations outside are cut along the sequence.
        queue: where weight gradients may be left.
    """

    def __init__(
        self, whole: nn.Linear, axis: Axis, *, sequence_parallel: bool = False, queue: WeightGradients | None = None
    ) -> None:
        super().__init__()
        self.weight: nn.Parameter = cast(nn.Parameter, whole.weight)
        self.bias: nn.Parameter | None
        self.register_parameter("bias", cast(nn.Parameter | None, whole.bias))
        self.axis, self.queue = axis, queue
        self.sequence_parallel = sequence_parallel and axis.size > 1


class ColumnLinear(ParallelLinear):
    """Some of the outputs: ``[b t into]`` to ``[b t out_local]``; under sequence parallelism from ``[b t/tp into]``."""

    def forward(self, x: Float[Tensor, "b s into"]) -> Float[Tensor, "b t out_local"]:
        """The outputs of this rank, at all positions."""
        return columns(x, (self,))[0]


class RowLinear(ParallelLinear):
    """From some of the inputs: ``[b t into_local]`` to ``[b t out]``; under sequence parallelism ``[b t/tp out]``."""

    @uncompiled
    def forward(self, x: Float[Tensor, "b t into_local"]) -> Float[Tensor, "b s out"]:
        """All outputs, summed over ranks; the bias is added once, after the sum."""
        y: Tensor = _Row.apply(x, self, _low(x), self.weight, self.bias)  # type: ignore[no-untyped-call]
        return y


@uncompiled
def columns(x: Float[Tensor, "b s into"], layers: Sequence[nn.Module]) -> tuple[Float[Tensor, "b t out_local"], ...]:
    """Several column layers of one input (SwiGLU's gate and up): it is gathered once, and its gradient summed once."""
    parallel = [cast(ColumnLinear, layer) for layer in layers]
    weights = [layer.weight for layer in parallel]
    biases = [layer.bias for layer in parallel]
    ys: tuple[Tensor, ...] = _Columns.apply(x, parallel, _low(x), *weights, *biases)  # type: ignore[no-untyped-call]
    return ys


def _low(x: Tensor) -> torch.dtype | None:
    """What autocast would compute in: it leaves float64 alone."""
    return None if x.dtype == torch.float64 else autocast_dtype(x)


def _of(layer: nn.Module, dtype: torch.dtype) -> Tensor:
    return in_type(cast(Tensor, layer.weight), dtype)


def _to(x: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    return None if x is None else x.to(dtype)


class _Columns(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, layers: Sequence[ColumnLinear], low: torch.dtype | None, *tensors: Tensor | None
    ) -> tuple[Tensor, ...]:
        first = layers[0]
        weights, biases = tensors[: len(layers)], tensors[len(layers) :]
        x = x.to(low or x.dtype)
        ctx.layers = layers
        ctx.save_for_backward(x, *weights)
        whole = begin_gather(x, first.axis).wait() if first.sequence_parallel else x
        return tuple(F.linear(whole, _of(layer, x.dtype), _to(b, x.dtype)) for layer, b in zip(layers, biases))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        x, *weights = ctx.saved_tensors
        layers: Sequence[ColumnLinear] = ctx.layers
        axis, sequence, queue = layers[0].axis, layers[0].sequence_parallel, layers[0].queue
        needs_x, needs = ctx.needs_input_grad[0], ctx.needs_input_grad[3:]
        holds = queue is not None and queue.holding
        rows = [grad.flatten(0, -2) for grad in grads]
        x_coming = begin_gather(x, axis) if sequence and not holds else None
        grad_coming = None
        if needs_x:
            grad_x = torch.mm(rows[0], _of(layers[0], x.dtype))
            for grad, layer in zip(rows[1:], layers[1:]):
                grad_x.addmm_(grad, _of(layer, x.dtype))
            grad_x = grad_x.view(*grads[0].shape[:-1], -1)
            grad_coming = (begin_scatter if sequence else begin_sum)(grad_x, axis)
        found: list[Tensor | None] = [None] * len(needs)
        if queue is not None and holds:
            gather = axis if sequence else None
            # detached: a graph that is done would hold its chunk's input
            queue.add(Pending(tuple(layer.weight for layer in layers), tuple(rows), x.detach(), gather))
        else:
            whole = (x if x_coming is None else x_coming.wait()).flatten(0, -2)
            for i, (grad, weight) in enumerate(zip(rows, weights)):
                if needs[i]:
                    found[i] = torch.mm(grad.t(), whole).to(weight.dtype)
        for i, (grad, layer) in enumerate(zip(rows, layers), start=len(layers)):
            if layer.bias is not None and needs[i]:
                found[i] = grad.sum(0, dtype=layer.bias.dtype)
        return None if grad_coming is None else grad_coming.wait(), None, None, *found


class _Row(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, layer: RowLinear, low: torch.dtype | None, weight: Tensor, bias: Tensor | None
    ) -> Tensor:
        x = x.to(low or x.dtype)
        ctx.layer = layer
        ctx.save_for_backward(x, weight)
        y = torch.mm(x.flatten(0, -2), _of(layer, x.dtype).t()).view(*x.shape[:-1], -1)
        y = (begin_scatter if layer.sequence_parallel else begin_sum)(y, layer.axis).wait()
        return y if bias is None else y.add_(bias.to(y.dtype))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        x, weight = ctx.saved_tensors
        layer: RowLinear = ctx.layer
        needs_x, _, _, needs_weight, needs_bias = ctx.needs_input_grad
        coming = begin_gather(grad, layer.axis) if layer.sequence_parallel else None
        grad_x = grad_weight = grad_bias = None
        if layer.bias is not None and needs_bias:  # of this rank's positions, where they are cut
            grad_bias = grad.flatten(0, -2).sum(0, dtype=layer.bias.dtype)
        rows = (grad if coming is None else coming.wait()).flatten(0, -2)
        if needs_x:
            grad_x = torch.mm(rows, _of(layer, x.dtype)).view(x.shape)
        if layer.queue is not None and layer.queue.holding:
            layer.queue.add(Pending((layer.weight,), (rows,), x.detach(), None))
        elif needs_weight:
            grad_weight = torch.mm(rows.t(), x.flatten(0, -2)).to(weight.dtype)
        return grad_x, None, None, grad_weight, grad_bias
