"""The learning rate as a function of the step only."""

from __future__ import annotations

import math

from botvision.config import TrainConfig


def learning_rate_factor(step: int, steps: int, config: TrainConfig) -> float:
    """Share of the peak learning rate at ``step`` of ``steps``.

    Linear warm-up from ``warmup_factor`` over ``warmup_steps`` (at most half of a short run), then
    a tenth at each milestone (``"step"``, Detectron's schedule), or half a cosine down to zero
    over the rest (``"cosine"``).

    Args:
        step: number of the step, from 0.
        steps: number of training steps of the run.
        config: settings of the run.

    Returns:
        A factor from 0 to 1 of ``config.peak_lr``.
    """
    warmup = min(config.warmup_steps, steps // 2)
    if step < warmup:
        return config.warmup_factor + (1 - config.warmup_factor) * step / warmup
    if config.schedule == "step":
        passed = sum(step >= milestone * steps for milestone in config.milestones)
        return float(0.1**passed)
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))
