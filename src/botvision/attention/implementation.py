"""The interface of an attention implementation."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Attend = Callable[[Tensor, Tensor, Tensor, Tensor | None, Tensor | None, float], Tensor]


def _everywhere(device: torch.device) -> bool:
    return True


@dataclass(frozen=True)
class Implementation:
    """One way to compute the attention.

    Pass an instance as ``impl`` to ``botvision.attention.RelativeAttention2d``,
    ``botvision.attention.relative_attention_2d``, ``botvision.to_botnet`` or
    ``botvision.models.insert_bot``. It needs no registration.

    Args:
        name: name for messages, and for selection by name if the implementation is built in.
        attend: function ``attend(q, k, v, height_logits, width_logits, scale)`` that returns
            (B, heads, N, d) in the dtype of ``v``. The arguments are those of
            ``botvision.attention.reference.attend``. Both logits are ``None`` for attention
            without positions; an implementation that needs them can use ``zero_logits``.
        supports: function that returns whether the implementation runs on a device. By default it
            runs everywhere.
    """

    name: str
    attend: Attend
    supports: Callable[[torch.device], bool] = _everywhere


def zero_logits(q: Tensor) -> tuple[Tensor, Tensor]:
    """Return position logits of zero for queries (B, heads, N, d).

    Zeros fit a map of any height and width. These are for H * W = N with the smallest H + W.

    Returns:
        (B, heads, N, H) and (B, heads, N, W), float32 (float64 for a float64 ``q``).
    """
    tokens = q.shape[-2]
    height = math.isqrt(tokens)
    while tokens % height:
        height -= 1
    dtype = torch.promote_types(q.dtype, torch.float32)
    sides = (height, tokens // height)
    by_row, by_column = (q.new_zeros(*q.shape[:-1], side, dtype=dtype) for side in sides)
    return by_row, by_column
