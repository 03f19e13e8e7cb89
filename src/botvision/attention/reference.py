"""The formula, as written: every logit exists at once.

Clear, differentiable by autograd and exportable; memory grows with the square of the tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor


def probabilities(
    q: Tensor, k: Tensor, height_logits: Tensor | None, width_logits: Tensor | None
) -> Tensor:
    """Softmax over all H*W keys jointly of ``q k^T + height_logits + width_logits``.

    Args:
        q: scaled queries (B, heads, N, d).
        k: keys (B, heads, N, d).
        height_logits: (B, heads, N, H), what each query adds to every key of an image row.
        width_logits: (B, heads, N, W), what each query adds to every key of an image column.

    Returns:
        (B, heads, N, N), each row summing to one; cell (i, j) is what query i takes from key j.
    """
    logits = q @ k.transpose(-2, -1)
    if height_logits is not None and width_logits is not None:
        position = height_logits.unsqueeze(-1) + width_logits.unsqueeze(-2)
        logits = logits + position.flatten(-2)
    return logits.softmax(dim=-1)


def attend(
    q: Tensor, k: Tensor, v: Tensor, height_logits: Tensor | None, width_logits: Tensor | None
) -> Tensor:
    """``probabilities(...) @ v``: (B, heads, N, d)."""
    return torch.matmul(probabilities(q, k, height_logits, width_logits), v)
