"""The learning rate as a pure function of the step: nothing to save, nothing to restore."""

from __future__ import annotations

import math

from gradatim.config.settings import OptimizerConfig


def learning_rate(config: OptimizerConfig, steps: int, step: int) -> float:
    """Rate of update number ``step`` (0 is the first) of a run of ``steps``.

    All schedules rise linearly over ``warmup`` updates, then: *constant* stays; *linear* and *cosine* (Loshchilov and
    Hutter 2017) fall to ``min_lr`` at the end; *inverse-sqrt* falls as 1/√step (Vaswani et al. 2017);
    *warmup-stable-decay* stays and falls linearly over the last ``decay_steps`` (Hu et al. 2024).
    """
    if step < config.warmup:
        return config.lr * (step + 1) / config.warmup
    done = (step - config.warmup) / max(1, steps - config.warmup)  # 0 … 1 after warm-up
    fall = config.lr - config.min_lr
    if config.schedule == "linear":
        return config.min_lr + fall * (1 - done)
    if config.schedule == "cosine":
        return config.min_lr + fall * 0.5 * (1 + math.cos(math.pi * done))
    if config.schedule == "inverse-sqrt":
        start = max(1, config.warmup)
        return config.lr * math.sqrt(start / max(start, step + 1))
    if config.schedule == "warmup-stable-decay":
        decay = config.decay_steps if config.decay_steps is not None else max(1, steps // 10)
        left = steps - step
        return config.lr if left > decay else config.min_lr + fall * left / decay
    return config.lr
