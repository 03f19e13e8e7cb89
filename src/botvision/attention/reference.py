"""The formula as written, with all logits in memory.

It is differentiable by autograd and exportable. Memory grows with the square of the tokens.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from botvision.attention.implementation import Implementation


def accurate(tensor: Tensor) -> Tensor:
    """Cast to float32, except float64: half-precision logits would lose their fraction."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def probabilities(
    q: Tensor, k: Tensor, height_logits: Tensor | None, width_logits: Tensor | None, scale: float
) -> Tensor:
    """Softmax of ``scale q k^T + height_logits + width_logits`` over all H*W keys.

    Args:
        q: queries (B, heads, N, d).
        k: keys (B, heads, N, d).
        height_logits: (B, heads, N, H), the term that each query adds to all keys of a row of the
            map; float32 or float64. ``None`` without positions.
        width_logits: (B, heads, N, W), the term that each query adds to all keys of a column.
            ``None`` without positions.
        scale: factor of ``q k^T``.

    Returns:
        (B, heads, N, N) in float32 (float64 for float64); element (i, j) is the weight of key j for
        query i, and each row sums to one.
    """
    position = torch.zeros((), dtype=accurate(q).dtype, device=q.device)
    if height_logits is not None and width_logits is not None:
        position = (height_logits.unsqueeze(-1) + width_logits.unsqueeze(-2)).flatten(-2)
        position = position.flatten(0, 1)
    queries, keys = q.flatten(0, 1), k.flatten(0, 1)
    if q.dtype.itemsize <= 2 and torch.is_grad_enabled():
        logits: Tensor = _Logits.apply(position, queries, keys, scale)
    else:
        logits = _logits(position, queries, keys, scale)
    return logits.softmax(dim=-1).reshape(*q.shape[:3], k.shape[2])


def _logits(position: Tensor, q: Tensor, k: Tensor, scale: float) -> Tensor:
    return torch.baddbmm(position, accurate(q), accurate(k).transpose(1, 2), alpha=scale)


class _Logits(torch.autograd.Function):
    """Float32 logits of half-precision q and k, with gradients from half-precision products."""

    @staticmethod
    def forward(ctx: Any, position: Tensor, q: Tensor, k: Tensor, scale: float) -> Tensor:
        ctx.save_for_backward(q, k)
        ctx.scale = scale
        return _logits(position, q, k, scale)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k = ctx.saved_tensors
        half = grad.to(q.dtype)
        # Matrix libraries copy the transposed factor of a product: make it the small one.
        grad_k = (q.transpose(1, 2) @ half).transpose(1, 2)
        position = grad if ctx.needs_input_grad[0] else None
        return position, (half @ k) * ctx.scale, grad_k * ctx.scale, None


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    height_logits: Tensor | None,
    width_logits: Tensor | None,
    scale: float,
) -> Tensor:
    """Compute ``probabilities(q, k, height_logits, width_logits, scale) @ v``.

    Args:
        q: see ``probabilities``, like all other arguments but ``v``.
        k: keys.
        v: values (B, heads, N, d).
        height_logits: position logits of the rows, or ``None``.
        width_logits: position logits of the columns, or ``None``.
        scale: factor of ``q k^T``.

    Returns:
        (B, heads, N, d) in the dtype of ``v``.
    """
    weights = probabilities(q, k, height_logits, width_logits, scale)
    return torch.matmul(weights.to(v.dtype), v)


IMPLEMENTATION = Implementation("reference", attend)
