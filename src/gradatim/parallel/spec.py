"""What a rank holds of each parameter: its place in the whole model, and what its gradient still lacks.

Made once, when the rank's part of the model is built; initial weights, the reduction of gradients, the norm,
checkpoints and reports all read it.
"""

from __future__ import annotations

from dataclasses import dataclass

from gradatim.parallel.mesh import Axis
from gradatim.shapes import COLUMN, ROW, VOCAB, ParameterShape


@dataclass(frozen=True, slots=True)
class ParameterSpec:
    """One parameter of one chunk."""

    name: str
    """In this chunk's ``named_parameters()``."""
    global_name: str
    """In the whole model; differs for a tied copy, whose ``head.output.weight`` is ``embed.tokens.weight``."""
    shape: tuple[int, ...]
    """In the whole model."""
    offset: tuple[int, ...]
    """Where the part held here begins."""
    local: tuple[int, ...]
    """The shape of that part."""
    split: int | None
    """The dim that is sharded over tp; None where every shard holds the whole."""
    partial: bool
    """Whether each tp rank has only its share of the gradient of a whole parameter, so that they must be summed: what
    is applied to a shard of the positions (norms, row biases, positions) under sequence parallelism, and the half of an
    adapter that is not split."""
    copy: bool = False
    """Whether this is the last stage's copy of the tied embedding: not saved, not counted in the norm."""
    tied: bool = False
    """Whether it has a twin at the other end of the pipeline, with which its gradient is summed."""


def split_dim(shape: ParameterShape) -> int | None:
    """The dim of a parameter that tensor parallelism cuts: outputs, inputs, or words; weights are ``[out, in]``."""
    if shape.split in (COLUMN, VOCAB):
        return 0
    return 1 if shape.split == ROW else None


def specify(
    name: str,
    shape: ParameterShape,
    tp: Axis,
    *,
    sequence_parallel: bool = False,
    copy: bool = False,
    tied: bool = False,
) -> ParameterSpec:
    """The part that one tensor-parallel rank holds.

    Raises:
        ValueError: the dim cannot be cut into equal parts.
    """
    dim = split_dim(shape) if tp.size > 1 else None
    local, offset = list(shape.shape), [0] * len(shape.shape)
    if dim is not None:
        if local[dim] % tp.size:
            raise ValueError(f"{shape.name}: {local[dim]} of dim {dim} cannot be split over tp {tp.size}")
        local[dim] //= tp.size
        offset[dim] = tp.index * local[dim]
    partial = tp.size > 1 and dim is None and (shape.shares or (sequence_parallel and not shape.whole))
    return ParameterSpec(name, shape.name, shape.shape, tuple(offset), tuple(local), dim, partial, copy, tied)
