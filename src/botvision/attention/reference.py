"""The formula, as written: every logit exists at once.

Clear, differentiable by autograd and exportable; memory grows with the square of the tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor


def accurate(tensor: Tensor) -> Tensor:
    """The tensor in float32 (float64 stays): half-precision logits would lose their fraction."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def probabilities(
    q: Tensor, k: Tensor, height_logits: Tensor | None, width_logits: Tensor | None, scale: float
) -> Tensor:
    """Softmax over all H*W keys jointly of ``scale q k^T + height_logits + width_logits``.

    Args:
        q: queries (B, heads, N, d).
        k: keys (B, heads, N, d).
        height_logits: (B, heads, N, H), what each query adds to every key of an image row; float32
            or float64.
        width_logits: (B, heads, N, W), what each query adds to every key of an image column.
        scale: of the content logits.

    Returns:
        (B, heads, N, N) in float32 (float64 for float64), each row summing to one; cell (i, j) is
        what query i takes from key j.
    """
    queries, keys = accurate(q).flatten(0, 1), accurate(k).flatten(0, 1).transpose(1, 2)
    position = queries.new_zeros(1)
    if height_logits is not None and width_logits is not None:
        position = (height_logits.unsqueeze(-1) + width_logits.unsqueeze(-2)).flatten(-2)
        position = position.flatten(0, 1)
    logits = torch.baddbmm(position, queries, keys, alpha=scale)
    return logits.softmax(dim=-1).reshape(*q.shape[:3], k.shape[2])


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    height_logits: Tensor | None,
    width_logits: Tensor | None,
    scale: float,
) -> Tensor:
    """``probabilities(...) @ v``: (B, heads, N, d), in the dtype of ``v`` (B, heads, N, d)."""
    weights = probabilities(q, k, height_logits, width_logits, scale)
    return torch.matmul(weights.to(v.dtype), v)
