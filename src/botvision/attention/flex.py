"""The same attention by PyTorch's ``flex_attention``, which generates a fused kernel.

It has no gradients on a CPU, and those of the position logits are summed there in an order that
changes from run to run.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor


def attend(
    q: Tensor, k: Tensor, v: Tensor, height_logits: Tensor, width_logits: Tensor, scale: float
) -> Tensor:
    """Same arguments, result and gradients as :func:`botvision.attention.reference.attend`."""
    width = width_logits.shape[-1]

    def add_position(logit: Tensor, b: Tensor, h: Tensor, query: Tensor, key: Tensor) -> Tensor:
        by_row = height_logits[b, h, query, key // width]
        return logit + by_row + width_logits[b, h, query, key % width]

    out: Tensor = _compiled()(q, k, v, score_mod=add_position, scale=scale)
    return out


@functools.cache
def _compiled() -> Any:
    from torch.nn.attention.flex_attention import flex_attention  # Takes half a second.

    return torch.compile(flex_attention)
