"""What a step allocates and what it says to other ranks, watched from below: every operation passes by here.

An ``Observer`` is a dispatch mode of torch: it sees each operation's results, whether they are fake or real, forward,
backward or in the optimizer. A storage counts once, from the operation that made it until nobody holds it any more,
which a weak reference tells; so tensors saved for the backward pass count as long as they are saved, and views nothing.
Collectives are operations too (``c10d``), so those of any layer, of the pipeline and of the optimizer are seen in this
one place. A *silent* observer answers them itself, as done at once, and nothing is sent.
"""

from __future__ import annotations

import contextlib
import itertools
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from gradatim.models.layers import core
from gradatim.parallel import collectives

PERSISTENT = ("weights", "gradients", "optimizer")
"""Kinds that are no activations."""
WEIGHT_GRADIENTS = "weight gradients"
"""The kind of what autograd has computed for a parameter, until it is added to the parameter's gradient."""


@dataclass(slots=True, eq=False)
class Held:
    """Memory that something holds."""

    bytes: int
    kind: str
    """What for; may become known after it was made."""


@dataclass(frozen=True, slots=True)
class Message:
    """A collective, or one end of a transfer."""

    kind: str
    """all-reduce, all-gather, reduce-scatter, broadcast, send or receive."""
    group: str
    """Name of its axis; ``world`` for all ranks."""
    bytes: int
    """Of the whole tensor: what is summed, what is cut, what gathering makes, or what is sent."""
    during: str
    """The pipeline's action, such as ``2F0``; empty outside of them."""


@dataclass(frozen=True, slots=True)
class Peak:
    """When most is held."""

    activations: int
    """Bytes beyond weights, gradients and optimizer state, at their highest."""
    by_kind: dict[str, int]
    """Those bytes by what they are for, largest first."""
    everything: int
    """Bytes of all kinds at their highest, which may be at another moment."""


class Observer(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Watches all operations while it is active (``with observer:``).

    Args:
        silent: whether communication is recorded only, not done.
        scalar: asked for the number that a tensor without data would hold, where a program wants to know.
    """

    def __init__(self, *, silent: bool = False, scalar: Callable[[torch.dtype], Any] | None = None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.silent, self.scalar = silent, scalar
        self.kind = "other"
        """Of what is made while no module is at work."""
        self.action = ""
        """See ``Message.during``."""
        self.messages: list[Message] = []
        self._modules: list[str] = []
        self._held: dict[int, tuple[Any, Held]] = {}
        self._before: list[Held] = []
        self._log: list[tuple[Held, int]] = []
        """+1 made, -1 freed, 0 kept as a gradient from now on."""

    # ------------------------------------------------------------------ memory

    def start(self) -> None:
        """Forget what has happened; what is held is held still."""
        self._before = [held for _, held in self._held.values()]
        self._log.clear()
        self.messages.clear()

    def label(self, tensor: Tensor | None, kind: str) -> None:
        """Say what a tensor's memory is for."""
        if tensor is not None:
            self._of(tensor).kind = kind

    def keep(self, tensor: Tensor | None) -> None:
        """Say that a tensor's memory has become a gradient."""
        if tensor is not None:
            self._log.append((self._of(tensor), 0))

    def bytes_of(self, tensors: Iterable[Tensor | None]) -> int:
        """Bytes of the memory that tensors lie in, shared memory once."""
        return sum(held.bytes for held in {self._of(tensor) for tensor in tensors if tensor is not None})

    def _of(self, tensor: Tensor) -> Held:
        storage = tensor.untyped_storage()
        key = id(storage)
        if key not in self._held:
            held = Held(storage.nbytes(), self._modules[-1] if self._modules else self.kind)
            self._held[key] = weakref.ref(storage, partial(self._freed, key)), held
            self._log.append((held, 1))
        return self._held[key][1]

    def _freed(self, key: int, _: Any) -> None:
        self._log.append((self._held.pop(key)[1], -1))

    def peak(self) -> Peak:
        """The highest level since ``start``; of activations, with what they were for."""
        level = highest = everything = most = last = 0
        for at, (_, activation, change) in enumerate(self._changes()):
            level, everything = level + activation, everything + change
            most = max(most, everything)
            if level > highest:
                highest, last = level, at
        kinds: Counter[str] = Counter()
        for held, activation, _ in itertools.islice(self._changes(), last + 1):
            kinds[held.kind] += activation
        return Peak(highest, {kind: size for kind, size in kinds.most_common() if size}, most)

    def _changes(self) -> Iterator[tuple[Held, int, int]]:
        """What changed, by how many bytes of activations, and of everything."""
        gradients: set[Held] = set()
        for held, change in [*((held, 1) for held in self._before), *self._log]:
            counts = held not in gradients and held.kind not in PERSISTENT
            if change == 0:
                gradients.add(held)
                yield held, -held.bytes if counts else 0, 0
            else:
                yield held, change * held.bytes if counts else 0, change * held.bytes

    # ------------------------------------------------------------------ operations

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """See the result of an operation; answer it where that is asked for."""
        if func.namespace == "c10d":
            return self._communicate(func, args, kwargs or {})
        if self.scalar is not None and func is torch.ops.aten._local_scalar_dense.default:
            return self.scalar(args[0].dtype)
        made = func(*args, **(kwargs or {}))
        self._see(made)
        if func is torch.ops.aten._to_copy.default and self._of(args[0]).kind == "weights":
            self.label(made, "copies of weights")
        return made

    def _see(self, made: Any) -> None:
        if isinstance(made, Tensor):
            self._of(made)
        elif isinstance(made, (tuple, list)):
            for each in made:
                self._see(each)

    def _communicate(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        name = func.name().removeprefix("c10d::")
        if name in _KINDS:
            kind, largest = _KINDS[name]
            size = sum(tensor.nbytes for tensor in _tensors(args[largest]))
            self.messages.append(Message(kind, _group_of(args), size, self.action))
            if kind == "receive":
                for tensor in _tensors(args[0]):
                    self.label(tensor, "transfers")
        if not self.silent:
            return func(*args, **kwargs)
        done = _done()
        return done if len(func._schema.returns) == 1 else (args[0], done)

    # ------------------------------------------------------------------ models

    @contextlib.contextmanager
    def attend(self, parts: Iterable[tuple[nn.Module, str]]) -> Iterator[None]:
        """What these modules make while they work is of the kind said; the innermost at work decides."""
        handles = []
        for module, kind in parts:
            handles.append(module.register_forward_pre_hook(partial(self._enter, kind)))
            handles.append(module.register_forward_hook(self._leave, always_call=True))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _enter(self, kind: str, *_: Any) -> None:
        self._modules.append(kind)

    def _leave(self, *_: Any) -> None:
        self._modules.pop()


_KINDS = {
    "allreduce_": ("all-reduce", 0),
    "allgather_": ("all-gather", 0),
    "_allgather_base_": ("all-gather", 0),
    "reduce_scatter_": ("reduce-scatter", 1),
    "_reduce_scatter_base_": ("reduce-scatter", 1),
    "broadcast_": ("broadcast", 0),
    "send": ("send", 0),
    "recv_": ("receive", 0),
}
"""Operation: the kind it is, and which argument holds the whole tensor."""


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        for each in value:
            yield from _tensors(each)


def _group_of(args: Any) -> str:
    """The axis that a collective runs over: meshes name their groups."""
    boxed = next(arg for arg in args if isinstance(arg, torch.ScriptObject))  # a group comes before an operation
    name: str = dist.ProcessGroup.unbox(boxed).group_desc
    return "world" if name == "default_pg" else name


def _done() -> Any:
    """Work that is over."""
    future: torch.futures.Future[None] = torch.futures.Future()
    future.set_result(None)
    made: Any = torch._C._distributed_c10d
    return made._create_work_from_future(future).boxed()


# ---------------------------------------------------------------------- other devices


@contextlib.contextmanager
def as_on_gpus() -> Iterator[None]:
    """Have tensors of the CPU communicate and attend as those of a GPU do.

    On CPUs ranks exchange parts directly (``collectives``, ``shards``), short attention runs in float32, and attention
    with dropout keeps its scores (``models/layers/core``), which takes other messages and other memory. A GPU's fused
    kernels keep no scores: of what they drop they draw anew. Here they are watched without dropout, which keeps the
    same tensors.
    """
    directly, in_full, fused = collectives.exchanges_directly, core.computed_in_full, core.fused
    collectives.exchanges_directly, core.computed_in_full = lambda x: False, lambda q, k: False
    core.fused = lambda q, k, v, mask, causal, dropout: fused(q, k, v, mask, causal, 0.0)
    try:
        yield
    finally:
        collectives.exchanges_directly, core.computed_in_full, core.fused = directly, in_full, fused
