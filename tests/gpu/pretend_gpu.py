"""A device that is not the CPU, without hardware: tensors that say ``gpu`` and compute on the CPU inside.

What a GPU refuses is refused here: an operation on tensors of two devices. An operation's numbers are the CPU's.
Importing this makes the device known to torch, for the rest of the process.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.utils import backend_registration
from torch.utils._python_dispatch import return_and_correct_aliasing
from torch.utils._pytree import tree_iter, tree_map_only


class _Module(backend_registration._DummyBackendModule):  # type: ignore[misc]
    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16]

    def get_rng_state(self, device: object = None) -> torch.Tensor:
        return torch.get_rng_state()

    def set_rng_state(self, state: torch.Tensor, device: object = None) -> None:
        torch.set_rng_state(state)


backend_registration._setup_privateuseone_for_python_backend("gpu", _Module())
torch.inference_mode = torch.no_grad  # type: ignore[misc,assignment]  # whose tensors cannot be wrapped
torch.__future__.set_swap_module_params_on_conversion(True)  # these tensors cannot trade their data for a CPU's
GPU = torch.device("gpu", 0)
_library = torch.library.Library("_", "IMPL")
_library.fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")


class OnGpu(torch.Tensor):
    """Shape and type of ``inner``, and another device."""

    inner: torch.Tensor

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> OnGpu:
        made: OnGpu = torch.Tensor._make_wrapper_subclass(
            cls, inner.shape, strides=inner.stride(), storage_offset=inner.storage_offset(), dtype=inner.dtype,
            device=GPU,
        )  # fmt: skip
        made.inner = inner
        return made

    def tolist(self) -> Any:
        return self.inner.tolist()

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(func, args, kwargs or {})


ACROSS = {"_to_copy", "copy_"}
"""What may read one device and write another."""


def run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Do an operation on the CPU, and say that its results are where its operands were, or where they are wanted."""
    name = func._schema.name.split("::")[1]
    given = [x for x in tree_iter((args, kwargs)) if isinstance(x, torch.Tensor)]
    there = any(isinstance(x, OnGpu) for x in given)
    here = [x for x in given if not isinstance(x, OnGpu) and x.dim()]
    if there and here and name not in ACROSS:
        raise RuntimeError(f"{name}: a tensor of {tuple(here[0].shape)} is on the CPU, another on the GPU")
    device = kwargs.get("device")
    target = there if device is None else torch.device(device).type == "gpu"
    if name == "copy_":
        target = isinstance(args[0], OnGpu)
    if device is not None:
        kwargs = {**kwargs, "device": torch.device("cpu")}
    plain_args, plain = tree_map_only(OnGpu, lambda x: x.inner, (args, kwargs))
    found = func(*plain_args, **plain)
    if target:
        found = tree_map_only(torch.Tensor, OnGpu, found)
        return return_and_correct_aliasing(func, args, kwargs, found)
    return found


def _empty(*args: Any, **kwargs: Any) -> OnGpu:
    return OnGpu(torch.empty(*args, **{**kwargs, "device": "cpu"}))


def _empty_strided(*args: Any, **kwargs: Any) -> OnGpu:
    return OnGpu(torch.empty_strided(*args, **{**kwargs, "device": "cpu"}))


def _copy_from(given: torch.Tensor, to: torch.Tensor, non_blocking: bool = False) -> torch.Tensor:
    inner = to.inner if isinstance(to, OnGpu) else to
    inner.copy_(given.inner if isinstance(given, OnGpu) else given)
    return to


torch.library.impl("aten::_copy_from", "privateuseone", _copy_from)
torch.library.impl("aten::empty.memory_format", "privateuseone", _empty)
torch.library.impl("aten::empty_strided", "privateuseone", _empty_strided)
