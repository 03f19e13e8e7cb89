"""The attention in tiles of queries, for CPUs: memory is linear in the tokens.

The position term of a tile of logits is the outer sum of its rows of ``height_logits`` and
``width_logits``, so only one tile of it exists at a time. The backward pass recomputes each tile,
as FlashAttention does (Dao et al., 2022, section 3.1). Both passes are custom operators, so that
``torch.compile`` does not unroll the loops.
"""

from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from botvision.attention.flops import count_products
from botvision.attention.implementation import Implementation, zero_logits
from botvision.attention.products import rounding_allowed
from botvision.attention.tiles import buffer_for, outer_sum, softmax, tiles

# Logits per tile: 4 Mi values are 16 MiB in float32. Smaller tiles repack the keys too often;
# larger ones do not fit into the caches.
TILE_LOGITS = 4 * 2**20

# The backward pass has two tiles in memory. A head of a 40x40 map fits into one of this size.
BACKWARD_TILE_LOGITS = 5 * 2**19

# In float32, the matrix library is faster than the fused kernel from this number of tokens on.
_MATRIX_TOKENS = 1024


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

    Raises:
        ValueError: the device is not a CPU. Only the fused CPU kernel adds a float32 bias to
            half-precision products.
    """
    if not supports(q.device):
        raise ValueError(f"the chunked attention runs on a CPU only, not on {q.device}")
    if height_logits is None or width_logits is None:
        height_logits, width_logits = zero_logits(q)
    out: Tensor = _attention(q, k, v, height_logits, width_logits, scale)
    return out


def supports(device: torch.device) -> bool:
    """Return whether the device is a CPU."""
    return device.type == "cpu"


IMPLEMENTATION = Implementation("chunked", attend, supports)


@torch.library.custom_op("botvision::chunked_attention", mutates_args=())
def _attention(
    q: Tensor, k: Tensor, v: Tensor, height_logits: Tensor, width_logits: Tensor, scale: float
) -> Tensor:
    out = _like_a_map(q, k, v, height_logits, width_logits, scale)
    buffer = buffer_for(q, height_logits.dtype, TILE_LOGITS)
    fused = q.dtype.itemsize <= 2 or q.shape[-2] < _MATRIX_TOKENS
    for heads, queries in tiles(q, TILE_LOGITS):
        if not fused:
            keys, values = _matrices(k[heads]), _matrices(v[heads])
        for tile in ((*heads, rows) for rows in queries):
            bias = outer_sum(height_logits[tile], width_logits[tile], buffer)
            if fused:
                out[tile] = F.scaled_dot_product_attention(
                    q[tile], k[heads], v[heads], attn_mask=bias, scale=scale
                )
            else:
                weights = softmax(bias, _matrices(q[tile]), keys, scale)
                out[tile] = (weights @ values).view_as(out[tile])
    return out


def _like_a_map(
    q: Tensor, k: Tensor, v: Tensor, height_logits: Tensor, width_logits: Tensor, scale: float
) -> Tensor:
    """(B, heads, N, d) over the memory of a channels-last map (B, N, heads, d)."""
    batch, heads, tokens, dim = v.shape
    return v.new_empty(batch, tokens, heads, dim).transpose(1, 2)


def _matrices(part: Tensor) -> Tensor:
    """(b, h, n, d) to (b * h, n, d), in float32 (float64 stays), each matrix dense."""
    dtype = torch.promote_types(part.dtype, torch.float32)
    return part.to(dtype, memory_format=torch.contiguous_format).flatten(0, 1)


@torch.library.custom_op("botvision::chunked_attention_backward", mutates_args=())
def _attention_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    height_logits: Tensor,
    width_logits: Tensor,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    # For bfloat16, this needs no rounded copies of the tiles, and is exact for factors that were
    # bfloat16 before.
    with rounding_allowed() if q.dtype == torch.bfloat16 else nullcontext():
        return _gradients(grad, q, k, v, height_logits, width_logits, scale)


def _gradients(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    height_logits: Tensor,
    width_logits: Tensor,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    size = (height_logits.shape[-1], width_logits.shape[-1])
    grad_q, grad_k, grad_v, grad_height, grad_width = _like_the_inputs(
        grad, q, k, v, height_logits, width_logits, scale
    )
    dtype = height_logits.dtype
    weights_buffer, grad_buffer = (buffer_for(q, dtype, BACKWARD_TILE_LOGITS) for _ in range(2))

    for heads, rows_of_queries in tiles(q, BACKWARD_TILE_LOGITS):
        keys, values = _matrices(k[heads]), _matrices(v[heads])
        grad_keys, grad_values = torch.zeros_like(keys), torch.zeros_like(values)
        for tile in ((*heads, rows) for rows in rows_of_queries):
            queries, upstream = _matrices(q[tile]), _matrices(grad[tile])
            bias = outer_sum(height_logits[tile], width_logits[tile], weights_buffer)
            weights = softmax(bias, queries, keys, scale)
            grad_values.baddbmm_(weights.mT, upstream)
            logits_grad = grad_buffer[: weights.numel()].view_as(weights)
            torch.bmm(upstream, values.mT, out=logits_grad)
            torch.ops.aten._softmax_backward_data.out(
                logits_grad, weights, -1, weights.dtype, grad_input=logits_grad
            )
            grid = logits_grad.view(*height_logits[tile].shape[:3], *size)
            torch.sum(grid, dim=-1, out=grad_height[tile])
            torch.sum(grid, dim=-2, out=grad_width[tile])
            grad_q[tile] = (logits_grad @ keys).mul_(scale).view_as(q[tile])
            grad_keys.baddbmm_(logits_grad.mT, queries, alpha=scale)
        grad_k[heads] = grad_keys.view_as(k[heads])
        grad_v[heads] = grad_values.view_as(v[heads])
    return grad_q, grad_k, grad_v, grad_height, grad_width


def _like_the_inputs(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    height_logits: Tensor,
    width_logits: Tensor,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    q, k, v, by_row, by_column = map(torch.empty_like, (q, k, v, height_logits, width_logits))
    return q, k, v, by_row, by_column


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.scale = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return *_attention_backward(grad, *ctx.saved_tensors, ctx.scale), None


_attention.register_fake(_like_a_map)
_attention_backward.register_fake(_like_the_inputs)
_attention.register_autograd(_backward, setup_context=_save)

count_products(torch.ops.botvision.chunked_attention, 2)
count_products(torch.ops.botvision.chunked_attention_backward, 5)
