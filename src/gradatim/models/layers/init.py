"""Initial weights that depend on nothing but (seed, parameter name, row): every layout starts from the same model.

A parameter is drawn in blocks of ``ROWS`` rows, each from a generator of its own, so that a process which holds some rows
draws only their blocks, and adding a parameter elsewhere moves none of the others.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from gradatim.models.neural import NeuralLanguageModel

ROWS = 64


@dataclass(frozen=True, slots=True)
class Init:
    """How a parameter is drawn: N(0, scale²), U(-scale, scale), or all equal to ``scale``."""

    kind: str
    """``normal``, ``uniform`` or ``constant``."""
    scale: float


def initialise(model: NeuralLanguageModel, seed: int) -> None:
    """Draw every parameter of a model in place, as its ``initial(name)`` says."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            init = model.initial(name)
            if init.kind == "constant":
                parameter.fill_(init.scale)
                continue
            for block, first in enumerate(range(0, parameter.shape[0], ROWS)):
                generator = torch.Generator().manual_seed(seed_of(seed, name, block))
                rows = torch.empty(min(ROWS, parameter.shape[0] - first), *parameter.shape[1:])
                if init.kind == "normal":
                    rows.normal_(0.0, init.scale, generator=generator)
                else:
                    rows.uniform_(-init.scale, init.scale, generator=generator)
                parameter[first : first + ROWS] = rows.to(parameter)


def seed_of(*parts: object) -> int:
    """A 63-bit seed from a description, the same on every machine."""
    digest = hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
