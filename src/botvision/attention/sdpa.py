"""The attention by PyTorch's ``scaled_dot_product_attention``, with the positions on the channels.

Queries are extended by their H row logits and W column logits, keys by the one-hot codes of their
row and column; the product of the two then contains the position term, so fused kernels without a
bias can run it. For half-precision inputs each position logit uses two channels, the rounded value
and the rounding error, so that the logits stay accurate.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
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

    On CUDA, PyTorch's FlashAttention kernel needs half precision and at most 256 channels: with 128
    channels per head, a map of at most 32x32. Otherwise PyTorch selects another kernel.

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
        return F.scaled_dot_product_attention(q, k, v, scale=scale)
    height, width = height_logits.shape[-1], width_logits.shape[-1]
    rows = torch.eye(height, dtype=q.dtype, device=q.device).repeat_interleave(width, dim=0)
    columns = torch.eye(width, dtype=q.dtype, device=q.device).repeat(height, 1)
    codes = torch.cat([rows, columns], dim=-1)
    # The kernel scales the whole product.
    position = torch.cat([height_logits, width_logits], dim=-1) / scale
    limit = torch.finfo(q.dtype).max  # float16 ends at 65504
    parts = [position.clamp(-limit, limit).to(q.dtype)]
    if q.dtype.itemsize <= 2:
        parts.append((position - parts[0]).clamp(-limit, limit).to(q.dtype))
    codes = codes.repeat(1, len(parts)).expand(*k.shape[:2], -1, -1)
    out = F.scaled_dot_product_attention(
        torch.cat([q, *parts], dim=-1),
        torch.cat([k, codes], dim=-1),
        F.pad(v, (0, codes.shape[-1])),
        scale=scale,
    )
    return out[..., : v.shape[-1]]


IMPLEMENTATION = Implementation("sdpa", attend)
