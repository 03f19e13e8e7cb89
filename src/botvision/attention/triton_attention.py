"""The attention in a fused Triton kernel for CUDA GPUs, with two kernels for its gradients.

The kernels have been checked in Triton's interpreter and compiler. They have not run on a GPU yet,
so ``impl="auto"`` does not select them.

The algorithm is FlashAttention (Dao et al., 2022; gradients as in FlashAttention-2, Dao, 2023, but
without atomics, so that runs are bitwise reproducible). Tiles of keys follow the image: ``rows``
image rows by ``block_w`` image columns. The width logits of a block of queries then stay in
registers while the kernel moves down the image, and the height logits are one number per query and
image row.
"""

# Triton has no types.
# mypy: disable-error-code="import-untyped, import-not-found, no-untyped-call, untyped-decorator"

from math import ceil
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
import triton
from torch import Tensor

from botvision.attention.flops import count_products
from botvision.attention.implementation import Implementation, zero_logits
from botvision.attention.triton_kernels import backward_keys, backward_queries, forward


# Constants for torch.compile, which cannot trace how Triton reads its settings.
@torch.compiler.assume_constant_result
def available(device: torch.device) -> bool:
    """Return whether the kernels run on a device: on CUDA, or on any in Triton's interpreter.

    The interpreter is slow and for tests only. As of Triton 3.9, its bfloat16 products are wrong.
    """
    cuda = device.type == "cuda" and torch.version.hip is None
    return cuda or bool(triton.knobs.runtime.interpret)


def fits(q: Tensor) -> bool:
    """Return whether the kernels support the device, head size and dtype of q (B, heads, N, d)."""
    dtypes = (torch.float16, torch.bfloat16, torch.float32)
    return 16 <= q.shape[-1] <= 128 and q.dtype in dtypes and not _is_old(q.device)


@torch.compiler.assume_constant_result
def _is_old(device: torch.device) -> bool:
    """Return whether a GPU is older than Ampere: no bfloat16, no asynchronous copies."""
    return device.type == "cuda" and torch.cuda.get_device_properties(device).major < 8


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
        ValueError: the kernels do not support the device, the head size or the dtype.
    """
    if not (available(q.device) and fits(q)):
        raise ValueError(
            "the triton attention needs a CUDA GPU of compute capability 8.0 or later and heads of "
            f"16 to 128 channels in float16, bfloat16 or float32, not {q.shape[-1]} channels in "
            f"{q.dtype} on {q.device}"
        )
    if height_logits is None or width_logits is None:
        height_logits, width_logits = zero_logits(q)
    out: Tensor = _attention(q, k, v, height_logits, width_logits, scale)[0]
    return out


IMPLEMENTATION = Implementation("triton", attend, available)


class _Launch(NamedTuple):
    """Block sizes and launch options of a kernel."""

    queries: int
    keys: int
    warps: int
    stages: int


# For the forward pass, the gradients of queries and those of keys. Chosen from the compiler's
# output for heads of 128 channels, not by measurement. In half precision no inner loop spills
# registers, except that of the keys in tiles of 8 columns; with twice the queries or keys all do.
# A program has 227 KiB of shared memory on Hopper, 99 KiB or more on older GPUs.
_HALF = (_Launch(128, 64, 8, 3), _Launch(128, 64, 8, 2), _Launch(32, 128, 8, 2))
_HALF_BEFORE_HOPPER = (_Launch(128, 64, 8, 2), _Launch(64, 64, 8, 2), _Launch(32, 64, 8, 2))
_SINGLE = (_Launch(64, 32, 8, 2), _Launch(32, 32, 8, 2), _Launch(32, 32, 8, 1))


def _launches(q: Tensor) -> tuple[_Launch, _Launch, _Launch]:
    if q.dtype == torch.float32:
        return _SINGLE
    if q.is_cuda:
        device = torch.cuda.get_device_properties(q.device)
        if device.shared_memory_per_block_optin < 200 * 1024:
            return _HALF_BEFORE_HOPPER
    return _HALF


def _block_w(height: int, width: int, keys: int) -> int:
    """Return the columns per tile of ``keys`` keys for which the fewest keys lie off the image.

    Among equals the widest, whose tiles have the fewest image rows.
    """
    widths = [block_w for block_w in (64, 32, 16, 8) if block_w <= keys]
    return min(widths, key=lambda w: ceil(width / w) * w * ceil(height * w / keys) * (keys // w))


def _prepare(
    q: Tensor, k: Tensor, v: Tensor, height_logits: Tensor, width_logits: Tensor
) -> tuple[list[Tensor], int]:
    """Return the tensors in the layout that the kernels expect, and ``block_w``.

    q, k and v have the same strides and adjacent channels. height_logits becomes (B, heads, H, N),
    so that values of neighboring queries are adjacent. width_logits is (B, heads, N, W), with W
    padded to whole tiles by -inf.
    """
    height, width = height_logits.shape[-1], width_logits.shape[-1]
    block_w = _block_w(height, width, _launches(q)[0].keys)
    if not (q.stride() == k.stride() == v.stride() and q.stride(-1) == 1):
        q, k, v = map(_as_map, (q, k, v))
    if width % block_w:
        width_logits = F.pad(width_logits, (0, -width % block_w), value=-float("inf"))
    return [q, k, v, height_logits.mT.contiguous(), width_logits.contiguous()], block_w


def _as_map(tensor: Tensor) -> Tensor:
    """Return (B, heads, N, d) in the memory layout of a channels-last map (B, N, heads, d)."""
    return tensor.transpose(1, 2).contiguous().transpose(1, 2)


def _run(
    kernel: Any, launch: _Launch, blocks: int, block_w: int, scale: float, tensors: list[Tensor]
) -> None:
    """Run ``kernel`` on ``blocks`` blocks per image and head."""
    q, height_logits, width_logits = tensors[0], tensors[3], tensors[4]
    batch, heads, tokens, dim = q.shape
    height = height_logits.shape[-2]
    sizes = (heads, tokens, height, tokens // height, width_logits.shape[-1])
    tf32 = torch.backends.cuda.matmul.fp32_precision == "tf32"
    with torch.cuda.device_of(q):
        kernel[(batch * heads * blocks,)](
            *tensors,
            scale,
            *q.stride()[:3],
            *sizes,
            dim=dim,
            block_d=triton.next_power_of_2(dim),
            block_m=launch.queries,
            rows=launch.keys // block_w,
            block_w=block_w,
            precision="tf32" if tf32 else "ieee",
            num_warps=launch.warps,
            num_stages=launch.stages,
            enable_fp_fusion=True,
        )


@torch.library.custom_op("botvision::triton_attention", mutates_args=())
def _attention(
    q: Tensor, k: Tensor, v: Tensor, height_logits: Tensor, width_logits: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    out, log_sum_exp = _outputs(q, k, v, height_logits, width_logits, scale)
    inputs, block_w = _prepare(q, k, v, height_logits, width_logits)
    launch, _, _ = _launches(q)
    blocks = ceil(q.shape[2] / launch.queries)
    _run(forward, launch, blocks, block_w, scale, [*inputs, out, log_sum_exp])
    return out, log_sum_exp


def _outputs(
    q: Tensor, k: Tensor, v: Tensor, height_logits: Tensor, width_logits: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """Allocate the result (B, heads, N, d), channels-last, and log-sum-exps (B, heads, N)."""
    batch, heads, tokens, dim = q.shape
    out = q.new_empty(batch, tokens, heads, dim).transpose(1, 2)
    return out, q.new_empty(batch, heads, tokens, dtype=torch.float32)


@torch.library.custom_op("botvision::triton_attention_backward", mutates_args=())
def _attention_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    height_logits: Tensor,
    width_logits: Tensor,
    out: Tensor,
    log_sum_exp: Tensor,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    inputs, block_w = _prepare(q, k, v, height_logits, width_logits)
    grad, out = _as_map(grad), _as_map(out)
    grad_q, grad_k, grad_v, grad_height, grad_width = _gradients(
        grad, q, k, v, height_logits, width_logits, out, log_sum_exp, scale
    )
    height, width = height_logits.shape[-1], width_logits.shape[-1]
    column_tiles = ceil(width / block_w)
    row_sums = grad_height.mT[None]
    if column_tiles > 1:
        row_sums = row_sums.new_empty(column_tiles, *row_sums.shape[1:])
    row_mean = torch.empty_like(log_sum_exp)

    _, of_queries, of_keys = _launches(q)
    tensors = [*inputs, out, log_sum_exp, grad, row_mean, grad_q, row_sums, grad_width]
    blocks = ceil(q.shape[2] / of_queries.queries)
    _run(backward_queries, of_queries, blocks, block_w, scale, tensors)
    tensors = [*inputs, log_sum_exp, grad, row_mean, grad_k, grad_v]
    blocks = ceil(height / (of_keys.keys // block_w)) * column_tiles
    _run(backward_keys, of_keys, blocks, block_w, scale, tensors)
    if column_tiles > 1:
        torch.sum(row_sums, dim=0, out=grad_height.mT)
    return grad_q, grad_k, grad_v, grad_height, grad_width


def _gradients(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    height_logits: Tensor,
    width_logits: Tensor,
    out: Tensor,
    log_sum_exp: Tensor,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Allocate the gradients: of q, k and v channels-last, grad_height with queries innermost."""
    batch, heads, tokens, dim = q.shape
    grad_q, grad_k, grad_v = (
        q.new_empty(batch, tokens, heads, dim).transpose(1, 2) for _ in range(3)
    )
    by_row = height_logits.new_empty(batch, heads, height_logits.shape[-1], tokens).mT
    by_column = torch.empty_like(width_logits, memory_format=torch.contiguous_format)
    return grad_q, grad_k, grad_v, by_row, by_column


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.scale = inputs
    ctx.save_for_backward(*tensors, *output)
    ctx.mark_non_differentiable(output[1])


def _backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    return *_attention_backward(grad, *ctx.saved_tensors, ctx.scale), None


_attention.register_fake(_outputs)
_attention_backward.register_fake(_gradients)
_attention.register_autograd(_backward, setup_context=_save)


def _autocast(
    q: Tensor, k: Tensor, v: Tensor, height_logits: Tensor, width_logits: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """Cast only q, k and v: the kernels expect float32 logits."""
    device = q.device.type
    q, k, v = (t.to(torch.get_autocast_dtype(device)) for t in (q, k, v))
    with torch.autocast(device, enabled=False):
        results: tuple[Tensor, Tensor] = _attention(q, k, v, height_logits, width_logits, scale)
    return results


# torch.library.register_autocast would cast the logits too.
_library = torch.library.Library("botvision", "FRAGMENT")
_library.impl("triton_attention", _autocast, "AutocastCPU")
_library.impl("triton_attention", _autocast, "AutocastCUDA")

count_products(torch.ops.botvision.triton_attention, 2)
count_products(torch.ops.botvision.triton_attention_backward, 5)
