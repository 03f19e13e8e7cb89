"""The same attention by a plain fused kernel without a bias: positions ride on the channels.

A query is lengthened by its H row and W column numbers, a key by the one-hot codes of its row and
column; their product then holds the position term. For half-precision inputs the numbers come as
two channels each, the rounded value and what rounding left, so that the logits stay accurate.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def attend(
    q: Tensor, k: Tensor, v: Tensor, height_logits: Tensor, width_logits: Tensor, scale: float
) -> Tensor:
    """Same arguments, result and gradients as :func:`botvision.attention.reference.attend`.

    PyTorch's flash kernel for CUDA takes up to 256 channels: with heads of 128 a map of 64x64 in
    float32, of 32x32 in half precision; beyond, it takes a kernel of less speed.
    """
    height, width = height_logits.shape[-1], width_logits.shape[-1]
    rows = torch.eye(height, dtype=q.dtype, device=q.device).repeat_interleave(width, dim=0)
    columns = torch.eye(width, dtype=q.dtype, device=q.device).repeat(height, 1)
    codes = torch.cat([rows, columns], dim=-1)
    # The kernel scales the whole product.
    position = torch.cat([height_logits, width_logits], dim=-1) / scale
    parts = [position.to(q.dtype)]
    if q.dtype.itemsize <= 2:
        parts.append((position - parts[0]).to(q.dtype))
    codes = codes.repeat(1, len(parts)).expand(*k.shape[:2], -1, -1)
    out = F.scaled_dot_product_attention(
        torch.cat([q, *parts], dim=-1),
        torch.cat([k, codes], dim=-1),
        F.pad(v, (0, codes.shape[-1])),
        scale=scale,
    )
    return out[..., : v.shape[-1]]
