"""Small facts that ranks tell each other, as JSON in tensors of bytes: nothing that is received is ever unpickled.

For names, sizes and failures, now and then; whatever is large or frequent goes as tensors.
"""

from __future__ import annotations

import json
import zlib
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from gradatim.parallel.mesh import Mesh


def exchange(value: Any, mesh: Mesh) -> list[Any]:
    """Every rank's value, by rank, on every rank.

    Args:
        value: what JSON can hold.
        mesh: all its ranks call this alike.
    """
    if mesh.world == 1:
        return [value]
    device = _device()
    mine = _bytes(value).to(device)
    sizes = [torch.zeros(1, dtype=torch.int64, device=device) for _ in range(mesh.world)]
    dist.all_gather(sizes, torch.tensor([len(mine)], device=device), group=mesh.everyone)
    lengths = [int(size) for size in sizes]
    # Groups gather equal sizes only.
    padded = torch.zeros(max(lengths), dtype=torch.uint8, device=device)
    padded[: len(mine)] = mine
    found = [torch.empty_like(padded) for _ in lengths]
    dist.all_gather(found, padded, group=mesh.everyone)
    return [_value(text[:length]) for text, length in zip(found, lengths)]


def tell(value: Any, mesh: Mesh) -> Any:
    """The first rank's value, on every rank; what the others pass is not looked at."""
    if mesh.world == 1:
        return value
    device = _device()
    mine = _bytes(value if mesh.rank == 0 else None).to(device)
    length = torch.tensor([len(mine)], device=device)
    dist.broadcast(length, 0, group=mesh.everyone)
    text = mine if mesh.rank == 0 else torch.empty(int(length), dtype=torch.uint8, device=device)
    dist.broadcast(text, 0, group=mesh.everyone)
    return _value(text)


def _device() -> torch.device:
    """One whose tensors the group of all ranks moves."""
    return torch.device("cpu" if dist.get_backend() == "gloo" else "cuda")  # the current one


def _bytes(value: Any) -> Tensor:
    return torch.frombuffer(bytearray(zlib.compress(json.dumps(value).encode(), 1)), dtype=torch.uint8)


def _value(text: Tensor) -> Any:
    return json.loads(zlib.decompress(text.cpu().numpy().tobytes()))
