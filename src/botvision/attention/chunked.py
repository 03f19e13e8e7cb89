"""The same attention, a few query rows at a time: memory linear in the tokens.

The forward keeps only the output and the log-sum-exp of each query; the backward recomputes each
chunk of probabilities from it, as FlashAttention does (Dao et al., 2022, section 3.1).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

# Logits alive at once, over all images and heads: 4 Mi values are 16 MiB in float32.
CHUNK_LOGITS = 4 * 2**20


def attend(
    q: Tensor, k: Tensor, v: Tensor, height_logits: Tensor | None, width_logits: Tensor | None
) -> Tensor:
    """Same arguments, result and gradients as :func:`botvision.attention.reference.attend`."""
    out: Tensor = _ChunkedAttention.apply(q, k, v, height_logits, width_logits)
    return out


def _chunks(q: Tensor) -> Iterator[slice]:
    batch, heads, tokens, _ = q.shape
    rows = max(1, CHUNK_LOGITS // max(1, batch * heads * tokens))
    for start in range(0, tokens, rows):
        yield slice(start, min(start + rows, tokens))


def _logits(
    q: Tensor, k: Tensor, height_logits: Tensor | None, width_logits: Tensor | None, rows: slice
) -> Tensor:
    logits = q[:, :, rows] @ k.transpose(-2, -1)
    if height_logits is not None and width_logits is not None:
        grid = logits.view(*logits.shape[:-1], height_logits.shape[-1], width_logits.shape[-1])
        grid += height_logits[:, :, rows].unsqueeze(-1)
        grid += width_logits[:, :, rows].unsqueeze(-2)
    return logits


class _ChunkedAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        height_logits: Tensor | None,
        width_logits: Tensor | None,
    ) -> Tensor:
        out = torch.empty_like(v)
        log_sum_exp = q.new_empty(q.shape[:-1])
        for rows in _chunks(q):
            logits = _logits(q, k, height_logits, width_logits, rows)
            log_sum_exp[:, :, rows] = logits.logsumexp(dim=-1)
            weights = logits.sub_(log_sum_exp[:, :, rows].unsqueeze(-1)).exp_()
            out[:, :, rows] = weights @ v
        ctx.save_for_backward(q, k, v, height_logits, width_logits, out, log_sum_exp)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad_out,) = grads
        q, k, v, height_logits, width_logits, out, log_sum_exp = ctx.saved_tensors
        grad_q = torch.empty_like(q)
        grad_k, grad_v = torch.zeros_like(k), torch.zeros_like(v)
        has_position = height_logits is not None
        grad_height = torch.empty_like(height_logits) if has_position else None
        grad_width = torch.empty_like(width_logits) if has_position else None
        # sum_j p_ij dp_ij: what the softmax subtracts from every gradient of row i.
        row_mean = (grad_out * out).sum(dim=-1, keepdim=True)
        for rows in _chunks(q):
            logits = _logits(q, k, height_logits, width_logits, rows)
            weights = logits.sub_(log_sum_exp[:, :, rows].unsqueeze(-1)).exp_()
            grad_v += weights.transpose(-2, -1) @ grad_out[:, :, rows]
            grad_logits = grad_out[:, :, rows] @ v.transpose(-2, -1)
            grad_logits.sub_(row_mean[:, :, rows]).mul_(weights)
            grad_q[:, :, rows] = grad_logits @ k
            grad_k += grad_logits.transpose(-2, -1) @ q[:, :, rows]
            if grad_height is not None and grad_width is not None:
                size = (grad_height.shape[-1], grad_width.shape[-1])
                grid = grad_logits.view(*grad_logits.shape[:-1], *size)
                grad_height[:, :, rows] = grid.sum(dim=-1)
                grad_width[:, :, rows] = grid.sum(dim=-2)
        return grad_q, grad_k, grad_v, grad_height, grad_width
