"""The attention by PyTorch's ``flex_attention``, which generates a fused kernel.

It has no gradients on a CPU. It sums the gradients of the position logits in an order that changes
from run to run.
"""

from __future__ import annotations

import functools
import importlib.util
from typing import Any

import torch
from torch import Tensor

from botvision.attention.implementation import Implementation


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    height_logits: Tensor | None,
    width_logits: Tensor | None,
    scale: float,
) -> Tensor:
    """Compute what ``botvision.attention.reference.attend`` computes, gradients included.

    Args:
        q: queries (B, heads, N, d).
        k: keys, same shape.
        v: values, same shape.
        height_logits: (B, heads, N, H), or ``None`` without positions.
        width_logits: (B, heads, N, W), or ``None`` without positions.
        scale: factor of ``q k^T``.

    Returns:
        (B, heads, N, d) in the dtype of ``v``.
    """
    if height_logits is None or width_logits is None:
        plain: Tensor = _compiled()(q, k, v, scale=scale)
        return plain
    width = width_logits.shape[-1]

    def add_position(logit: Tensor, b: Tensor, h: Tensor, query: Tensor, key: Tensor) -> Tensor:
        by_row = height_logits[b, h, query, key // width]
        return logit + by_row + width_logits[b, h, query, key % width]

    out: Tensor = _compiled()(q, k, v, score_mod=add_position, scale=scale)
    return out


def supports(device: torch.device) -> bool:
    """Return whether the device is a GPU and Triton, which compiles the kernel, is installed."""
    return device.type == "cuda" and importlib.util.find_spec("triton") is not None


IMPLEMENTATION = Implementation("flex", attend, supports)


@functools.cache
def _compiled() -> Any:
    from torch.nn.attention.flex_attention import flex_attention  # The import takes half a second.

    return torch.compile(flex_attention)
