"""AdamW (Loshchilov and Hutter, 2019) with decay for matrices only, and clipping by the norm of the whole gradient."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from gradatim.config.settings import OptimizerConfig
from gradatim.config.settings_task import TaskConfig
from gradatim.config.tuned import share_of_rate
from gradatim.train.learning_rate import learning_rate
from gradatim.train.weights import is_unused


def build_optimizer(model: nn.Module, config: OptimizerConfig, task: TaskConfig | None = None) -> torch.optim.AdamW:
    """Fused AdamW over two groups: matrices and embeddings decay towards zero, biases and norms do not.

    Under a task's layer-wise rates there are two for each layer, with its ``share`` of the rate.
    """
    layers = len(getattr(model, "blocks", ()))
    groups: dict[tuple[bool, float], list[nn.Parameter]] = {(True, 1.0): [], (False, 1.0): []}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            share = 1.0 if task is None else share_of_rate(name, task, layers)
            groups.setdefault((parameter.dim() >= 2, share), []).append(parameter)
    listed = [
        {"params": held, "weight_decay": config.weight_decay if decays else 0.0, "share": share}
        for (decays, share), held in groups.items()
    ]
    return torch.optim.AdamW(listed, lr=config.lr, betas=config.betas, eps=config.eps, fused=True)


def set_learning_rate(optimizer: torch.optim.Optimizer, config: OptimizerConfig, steps: int, step: int) -> float:
    """Write the rate of this step into the optimizer, and return it; each group takes its share."""
    rate = learning_rate(config, steps, step)
    for group in optimizer.param_groups:
        group["lr"] = rate * group["share"]
    return rate


def gradient_norm(parameters: Iterable[nn.Parameter]) -> Tensor:
    """Euclidean norm of all gradients together."""
    norms = torch._foreach_norm([parameter.grad for parameter in parameters if parameter.grad is not None])
    total: Tensor = torch.linalg.vector_norm(torch.stack([norm.double() for norm in norms]))
    return total


def clip_gradients(parameters: Iterable[nn.Parameter], norm: float, limit: float | None) -> None:
    """Scale all gradients so that their norm is at most ``limit``."""
    if limit is not None and norm > limit:
        torch._foreach_mul_([p.grad for p in parameters if p.grad is not None], limit / norm)


def optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The moments by the name of their parameter: ``blocks.0.mlp.up.weight/exp_avg`` and ``…/exp_avg_sq``."""
    names: dict[Tensor, str] = {parameter: name for name, parameter in model.named_parameters()}
    return {
        f"{names[parameter]}/{key}": value
        for parameter, state in optimizer.state.items()
        for key, value in state.items()
        if key != "step"
    }


def load_optimizer(
    model: nn.Module, optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor], updates: int
) -> None:
    """Restore moments; every parameter has been updated equally often, so one number stands for all step counters."""
    named = dict(model.named_parameters())
    for key, value in tensors.items():
        name, moment = key.rsplit("/", 1)
        if name not in named and is_unused(name):
            continue
        state = optimizer.state[named[name]]
        state[moment] = value.to(named[name].device)
        state["step"] = torch.tensor(float(updates), dtype=torch.float32, device=named[name].device)
