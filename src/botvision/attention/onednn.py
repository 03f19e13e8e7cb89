"""The attention with every product by oneDNN, for CPUs with AVX-512 and without AMX.

Like ``botvision.attention.chunked``, it computes the logits in tiles of queries. On maps of fewer
than ``KEPT_TOKENS`` positions, the forward pass keeps the weights for the backward pass; on larger
ones, the backward pass computes them again. Logits and softmax are float32. For bfloat16 inputs,
the logits are products of exact float32 copies, and all other products are bfloat16 with float32
sums. Both passes are custom operators, so that ``torch.compile`` does not unroll the loops.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from botvision.attention.implementation import Implementation, zero_logits
from botvision.attention.products import keeps_float32, rounding_allowed
from botvision.attention.tiles import buffer_for, outer_sum, softmax, tiles
from botvision.environment import cpu_capabilities

# Logits per tile: 6 MiB in float32.
TILE_LOGITS = 3 * 2**19

# From this number of tokens on, the backward pass computes the weights again: keeping them takes
# more memory than the tiles.
KEPT_TOKENS = 1700


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
        ValueError: the device is not a CPU on which oneDNN's float32 products stay float32.
    """
    if not supports(q.device):
        raise ValueError(
            "the onednn attention runs on a CPU with AVX-512 and without AMX only, not on "
            f"{'this CPU' if q.device.type == 'cpu' else q.device}"
        )
    if height_logits is None or width_logits is None:
        height_logits, width_logits = zero_logits(q)
    inputs = (q, k, v, height_logits, width_logits)
    trained = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in inputs)
    keep = trained and q.shape[-2] < KEPT_TOKENS
    if torch.compiler.is_compiling():
        out: Tensor = _attention(*inputs, scale, keep)[0]
        return out
    # Without the overhead of a custom operator, which takes 7 % of a training step on a 7x7 map.
    eager: Tensor = _Attention.apply(*inputs, scale, keep)
    return eager


def supports(device: torch.device) -> bool:
    """Return whether the device is a CPU on which oneDNN's float32 products stay float32."""
    return device.type == "cpu" and keeps_float32()


IMPLEMENTATION = Implementation("onednn", attend, supports)


def _forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    height_logits: Tensor,
    width_logits: Tensor,
    scale: float,
    keep: bool,
) -> tuple[Tensor, Tensor]:
    out, kept = _outputs(q, k, v, height_logits, width_logits, scale, keep)
    buffer = buffer_for(q, height_logits.dtype, TILE_LOGITS)
    with rounding_allowed():
        for heads, queries in tiles(q, TILE_LOGITS):
            keys, values = _matrices(k[heads]), _matrices(v[heads], kept.dtype)
            for tile in ((*heads, rows) for rows in queries):
                bias = outer_sum(height_logits[tile], width_logits[tile], buffer)
                weights = softmax(bias, _matrices(q[tile]), keys, scale)
                if keep:
                    weights = kept[tile].flatten(0, 1).copy_(weights)
                else:
                    weights = weights.to(kept.dtype)
                out[tile] = torch.bmm(weights, values).view_as(out[tile])
    return out, kept


def _outputs(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    height_logits: Tensor,
    width_logits: Tensor,
    scale: float,
    keep: bool,
) -> tuple[Tensor, Tensor]:
    """The result, over the memory of a channels-last map, and the weights or an empty tensor."""
    batch, heads, tokens, dim = v.shape
    out = v.new_empty(batch, tokens, heads, dim).transpose(1, 2)
    shape = (batch, heads, tokens, tokens) if keep else (0,)
    return out, q.new_empty(shape, dtype=_product_dtype(q))


def _matrices(part: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """(b, h, n, d) to (b * h, n, d), dense, in ``dtype`` or float32 (float64 stays)."""
    dtype = dtype or torch.promote_types(part.dtype, torch.float32)
    return torch.empty(part.shape, dtype=dtype).copy_(part).flatten(0, 1)


def _product_dtype(q: Tensor) -> torch.dtype:
    """bfloat16 if the CPU multiplies it, else float32 (float64 stays)."""
    if q.dtype == torch.bfloat16 and cpu_capabilities().get("avx512_bf16", False):
        return q.dtype
    return torch.promote_types(q.dtype, torch.float32)


def _gradients(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    height_logits: Tensor,
    width_logits: Tensor,
    kept: Tensor,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    grads = _like_the_inputs(grad, q, k, v, height_logits, width_logits, kept, scale)
    grad_q, grad_k, grad_v, grad_height, grad_width = grads
    dtype, keep = kept.dtype, kept.numel() > 0
    buffer = buffer_for(q, height_logits.dtype, 0 if keep else TILE_LOGITS)
    grad_buffer = buffer_for(q, dtype, TILE_LOGITS)
    with rounding_allowed():
        for heads, rows_of_queries in tiles(q, TILE_LOGITS):
            keys, values = _matrices(k[heads], dtype), _matrices(v[heads], dtype)
            exact_keys = keys if keep or dtype == buffer.dtype else _matrices(k[heads])
            grad_keys, grad_values = (torch.zeros_like(keys, dtype=buffer.dtype) for _ in range(2))
            for tile in ((*heads, rows) for rows in rows_of_queries):
                if keep:
                    weights = kept[tile].flatten(0, 1)
                else:
                    bias = outer_sum(height_logits[tile], width_logits[tile], buffer)
                    weights = softmax(bias, _matrices(q[tile]), exact_keys, scale).to(dtype)
                queries, upstream = _matrices(q[tile], dtype), _matrices(grad[tile], dtype)
                _add_product(grad_values, weights.mT, upstream)
                logits_grad = grad_buffer[: weights.numel()].view_as(weights)
                torch.bmm(upstream, values.mT, out=logits_grad)
                torch.ops.aten._softmax_backward_data.out(
                    logits_grad, weights, -1, dtype, grad_input=logits_grad
                )
                grid = logits_grad.view(*grad_height[tile].shape, grad_width.shape[-1])
                grad_height[tile] = grid.sum(dim=-1)
                grad_width[tile] = grid.sum(dim=-2)
                grad_q[tile] = torch.bmm(logits_grad, keys).mul_(scale).view_as(q[tile])
                _add_product(grad_keys, logits_grad.mT, queries)
            grad_k[heads] = grad_keys.mul_(scale).view_as(k[heads])
            grad_v[heads] = grad_values.view_as(v[heads])
    return grads


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    if total.dtype == left.dtype:
        total.baddbmm_(left, right)
    else:
        total += torch.bmm(left, right)


def _like_the_inputs(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    height_logits: Tensor,
    width_logits: Tensor,
    kept: Tensor,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    q, k, v, by_row, by_column = map(torch.empty_like, (q, k, v, height_logits, width_logits))
    return q, k, v, by_row, by_column


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.scale, _ = inputs
    ctx.set_materialize_grads(False)  # else a zero gradient of the kept weights is allocated
    ctx.save_for_backward(*tensors, output[1])


def _compiled_backward(ctx: Any, grad: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
    if grad is None:
        return (None,) * 7
    return *_attention_backward(grad, *ctx.saved_tensors, ctx.scale), None, None


class _Attention(torch.autograd.Function):
    """Both passes outside of compiled code."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        output = _forward(*inputs)
        _save(ctx, inputs, output)
        return output[0]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, ...]:
        if grad is None:
            return (None,) * 7
        q, k, v, height_logits, width_logits, kept = ctx.saved_tensors
        grads = _gradients(grad, q, k, v, height_logits, width_logits, kept, ctx.scale)
        return *grads, None, None


# In compiled code, both passes are operators that the compiler does not look into.
_attention = torch.library.custom_op("botvision::onednn_attention", _forward, mutates_args=())
_attention_backward = torch.library.custom_op(
    "botvision::onednn_attention_backward", _gradients, mutates_args=()
)
_attention.register_fake(_outputs)
_attention_backward.register_fake(_like_the_inputs)
_attention.register_autograd(_compiled_backward, setup_context=_save)
