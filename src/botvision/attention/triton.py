"""The same attention in one fused kernel for CUDA GPUs, and two more for its gradients.

FlashAttention (Dao et al., 2022; the gradients as in its second version, Dao, 2023, but without
atomics: runs repeat to the bit) whose tiles of keys lie along the image, ``rows`` image rows by
``block_w`` image columns. So what columns add to a block of queries stays in registers while the
kernel walks down the image, and what rows add is one number per query and image row.
"""

# Triton has no types, and its kernels no annotations but constexpr.
# mypy: disable-error-code="import-untyped, import-not-found, no-untyped-def, untyped-decorator"
# mypy: disable-error-code="no-untyped-call"

from math import ceil
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from botvision.attention.flops import count_products

_LOG2E = tl.constexpr(1.4426950408889634)  # The hardware has exp2 and no exp.
# Maps come in many sizes: do not compile anew where one happens to be a multiple of 16.
_SIZES = ("tokens", "height", "width")


# Constants for torch.compile, which cannot trace how Triton reads its settings.
@torch.compiler.assume_constant_result
def available(device: torch.device) -> bool:
    """Whether the kernels run there: on CUDA, and anywhere in Triton's interpreter.

    The interpreter is slow and for tests; as of Triton 3.9 it gets products of bfloat16 wrong.
    """
    cuda = device.type == "cuda" and torch.version.hip is None
    return cuda or bool(triton.knobs.runtime.interpret)


def fits(q: Tensor) -> bool:
    """Whether the kernels take queries (B, heads, N, d) of this head size and dtype."""
    dtypes = (torch.float16, torch.bfloat16, torch.float32)
    return 16 <= q.shape[-1] <= 128 and q.dtype in dtypes and not _is_old(q.device)


@torch.compiler.assume_constant_result
def _is_old(device: torch.device) -> bool:
    """Whether it is a GPU from before Ampere, without bfloat16 and asynchronous copies."""
    return device.type == "cuda" and torch.cuda.get_device_properties(device).major < 8


def attend(
    q: Tensor, k: Tensor, v: Tensor, height_logits: Tensor, width_logits: Tensor, scale: float
) -> Tensor:
    """Same arguments, result and gradients as :func:`botvision.attention.reference.attend`.

    Raises:
        ValueError: the device, the head size or the dtype is not one the kernels are made for.
    """
    if not (available(q.device) and fits(q)):
        raise ValueError(
            "the triton attention needs a CUDA GPU of compute capability 8.0 or later and heads of "
            f"16 to 128 channels in float16, bfloat16 or float32, not {q.shape[-1]} channels in "
            f"{q.dtype} on {q.device}"
        )
    out: Tensor = _attention(q, k, v, height_logits, width_logits, scale)[0]
    return out


@triton.jit
def _offset(image_head, heads, image_stride, head_stride):
    # image_head is 64 bits wide, and with it the offset: a batch can exceed 2^31 elements.
    return (image_head // heads) * image_stride + (image_head % heads) * head_stride


@triton.jit
def _load(pointer, cells, valid, stride, dim: tl.constexpr, block_d: tl.constexpr):
    """The channels of ``cells``, (cells, block_d); zeros for those that are not ``valid``."""
    channels = tl.arange(0, block_d)
    mask = valid[:, None] & (channels < dim)[None, :]
    return tl.load(pointer + cells[:, None] * stride + channels[None, :], mask=mask, other=0.0)


@triton.jit
def _store(pointer, values, cells, valid, stride, dim: tl.constexpr, block_d: tl.constexpr):
    channels = tl.arange(0, block_d)
    mask = valid[:, None] & (channels < dim)[None, :]
    values = values.to(pointer.dtype.element_ty)
    tl.store(pointer + cells[:, None] * stride + channels[None, :], values, mask=mask)


@triton.jit
def _by_row(
    height_logits, row, height, queries, tokens, tile_row, axis: tl.constexpr, rows: tl.constexpr
):
    """What the image rows of a tile add: -inf below the image.

    A number per query if the tile has one row, else one per query and key, these along ``axis``.
    """
    for r in tl.static_range(rows):
        pointer = height_logits + (row + r) * tokens + queries
        in_image = row + r < height
        numbers = tl.load(pointer, mask=queries < tl.where(in_image, tokens, 0), other=0.0)
        numbers = tl.expand_dims(tl.where(in_image, numbers, -float("inf")), axis)
        if r == 0:  # noqa: SIM108 - there is no result yet
            result = numbers
        else:
            result = tl.where(tile_row >= r, numbers, result)
    return result


@triton.jit(do_not_specialize=_SIZES)
def _forward(
    q, k, v, height_logits, width_logits, out, log_sum_exp,
    scale, image_stride, head_stride, token_stride, heads, tokens, height, width, padded_width,
    dim: tl.constexpr, block_d: tl.constexpr, block_m: tl.constexpr,
    rows: tl.constexpr, block_w: tl.constexpr, precision: tl.constexpr,
):  # fmt: skip
    """A block of queries of one image and head."""
    blocks = tl.cdiv(tokens, block_m)
    image_head = (tl.program_id(0) // blocks).to(tl.int64)
    inputs = _offset(image_head, heads, image_stride, head_stride)
    outputs = _offset(image_head, heads, tokens * heads * dim, dim)
    height_logits += image_head * height * tokens
    width_logits += image_head * tokens * padded_width

    queries = tl.program_id(0) % blocks * block_m + tl.arange(0, block_m)
    inside = queries < tokens
    tile_row = tl.arange(0, rows * block_w) // block_w
    tile_column = tl.arange(0, rows * block_w) % block_w
    q_block = _load(q + inputs, queries, inside, token_stride, dim, block_d)

    maximum = tl.full([block_m], -float("inf"), tl.float32)
    total = tl.zeros([block_m], tl.float32)
    result = tl.zeros([block_m, block_d], tl.float32)
    for column in range(0, width, block_w):
        pointer = width_logits + queries[:, None] * padded_width + column + tile_column[None, :]
        by_column = tl.load(pointer, mask=inside[:, None], other=0.0)
        for row in range(0, height, rows):
            keys = (row + tile_row) * width + column + tile_column
            valid = (row + tile_row < height) & (column + tile_column < width)
            k_tile = _load(k + inputs, keys, valid, token_stride, dim, block_d)
            v_tile = _load(v + inputs, keys, valid, token_stride, dim, block_d)
            by_row = _by_row(
                height_logits, row, height, queries, tokens, tile_row[None, :], 1, rows
            )
            products = tl.dot(q_block, tl.trans(k_tile), input_precision=precision)
            logits = products * scale + by_column + by_row
            # The first key of a tile is always in the image, so the maximum is finite.
            new_maximum = tl.maximum(maximum, tl.max(logits, 1))
            weights = tl.exp2(logits * _LOG2E - (new_maximum * _LOG2E)[:, None])
            shrink = tl.exp2((maximum - new_maximum) * _LOG2E)
            maximum = new_maximum
            total = total * shrink + tl.sum(weights, 1)
            weights = weights.to(v_tile.dtype)
            result = tl.dot(weights, v_tile, result * shrink[:, None], input_precision=precision)

    result *= (1.0 / total)[:, None]
    _store(out + outputs, result, queries, inside, heads * dim, dim, block_d)
    tl.store(log_sum_exp + image_head * tokens + queries, maximum + tl.log(total), mask=inside)


@triton.jit(do_not_specialize=_SIZES)
def _backward_queries(
    q, k, v, height_logits, width_logits, out, log_sum_exp, grad,
    row_mean, grad_q, grad_height, grad_width,
    scale, image_stride, head_stride, token_stride, heads, tokens, height, width, padded_width,
    dim: tl.constexpr, block_d: tl.constexpr, block_m: tl.constexpr,
    rows: tl.constexpr, block_w: tl.constexpr, precision: tl.constexpr,
):  # fmt: skip
    """A block of queries: its gradients, those of its position logits, and its ``row_mean``."""
    blocks = tl.cdiv(tokens, block_m)
    image_heads = tl.num_programs(0) // blocks
    image_head = (tl.program_id(0) // blocks).to(tl.int64)
    inputs = _offset(image_head, heads, image_stride, head_stride)
    outputs = _offset(image_head, heads, tokens * heads * dim, dim)
    height_logits += image_head * height * tokens
    grad_height += image_head * height * tokens
    width_logits += image_head * tokens * padded_width
    grad_width += image_head * tokens * width

    queries = tl.program_id(0) % blocks * block_m + tl.arange(0, block_m)
    inside = queries < tokens
    tile_row = tl.arange(0, rows * block_w) // block_w
    tile_column = tl.arange(0, rows * block_w) % block_w
    q_block = _load(q + inputs, queries, inside, token_stride, dim, block_d)
    upstream = _load(grad + outputs, queries, inside, heads * dim, dim, block_d)
    out_block = _load(out + outputs, queries, inside, heads * dim, dim, block_d)
    # sum_j p_ij dp_ij: what the softmax subtracts from every gradient of row i.
    mean = tl.sum(upstream.to(tl.float32) * out_block.to(tl.float32), 1)
    statistics = image_head * tokens + queries
    tl.store(row_mean + statistics, mean, mask=inside)
    normalizer = tl.load(log_sum_exp + statistics, mask=inside, other=0.0)

    result = tl.zeros([block_m, block_d], tl.float32)
    for column in range(0, width, block_w):
        pointer = width_logits + queries[:, None] * padded_width + column + tile_column[None, :]
        by_column = tl.load(pointer, mask=inside[:, None], other=0.0)
        column_sum = tl.zeros([block_m, rows * block_w], tl.float32)
        for row in range(0, height, rows):
            keys = (row + tile_row) * width + column + tile_column
            valid = (row + tile_row < height) & (column + tile_column < width)
            k_tile = _load(k + inputs, keys, valid, token_stride, dim, block_d)
            v_tile = _load(v + inputs, keys, valid, token_stride, dim, block_d)
            by_row = _by_row(
                height_logits, row, height, queries, tokens, tile_row[None, :], 1, rows
            )
            products = tl.dot(q_block, tl.trans(k_tile), input_precision=precision)
            logits = products * scale + by_column
            weights = tl.exp2(logits * _LOG2E + (by_row - normalizer[:, None]) * _LOG2E)
            grad_weights = tl.dot(upstream, tl.trans(v_tile), input_precision=precision)
            grad_logits = weights * (grad_weights - mean[:, None])
            column_sum += grad_logits
            for r in tl.static_range(rows):
                row_sum = tl.sum(tl.where((tile_row == r)[None, :], grad_logits, 0.0), 1)
                row_pointer = grad_height + (row + r) * tokens + queries
                tl.store(row_pointer, row_sum, queries < tl.where(row + r < height, tokens, 0))
            grad_logits = grad_logits.to(k_tile.dtype)
            result = tl.dot(grad_logits, k_tile, result, input_precision=precision)
        columns = column + tl.arange(0, block_w)
        tl.store(
            grad_width + queries[:, None] * width + columns[None, :],
            tl.sum(tl.reshape(column_sum, [block_m, rows, block_w]), 1),
            mask=inside[:, None] & (columns < width)[None, :],
        )
        # The next tiles of columns have sums of their own, which the caller adds.
        grad_height += image_heads.to(tl.int64) * height * tokens

    _store(grad_q + outputs, result * scale, queries, inside, heads * dim, dim, block_d)


@triton.jit(do_not_specialize=_SIZES)
def _backward_keys(
    q, k, v, height_logits, width_logits, log_sum_exp, grad, row_mean, grad_k, grad_v,
    scale, image_stride, head_stride, token_stride, heads, tokens, height, width, padded_width,
    dim: tl.constexpr, block_d: tl.constexpr, block_m: tl.constexpr,
    rows: tl.constexpr, block_w: tl.constexpr, precision: tl.constexpr,
):  # fmt: skip
    """A tile of keys and values: their gradients. The logits are transposed, (keys, queries)."""
    column_tiles = tl.cdiv(width, block_w)
    tiles = tl.cdiv(height, rows) * column_tiles
    tile = tl.program_id(0) % tiles
    image_head = (tl.program_id(0) // tiles).to(tl.int64)
    inputs = _offset(image_head, heads, image_stride, head_stride)
    outputs = _offset(image_head, heads, tokens * heads * dim, dim)
    height_logits += image_head * height * tokens
    width_logits += image_head * tokens * padded_width

    row = tile // column_tiles * rows
    column = tile % column_tiles * block_w
    tile_row = tl.arange(0, rows * block_w) // block_w
    tile_column = tl.arange(0, rows * block_w) % block_w
    keys = (row + tile_row) * width + column + tile_column
    valid = (row + tile_row < height) & (column + tile_column < width)
    k_tile = _load(k + inputs, keys, valid, token_stride, dim, block_d)
    v_tile = _load(v + inputs, keys, valid, token_stride, dim, block_d)
    columns = column + tl.arange(0, block_w)

    k_sum = tl.zeros([rows * block_w, block_d], tl.float32)
    v_sum = tl.zeros([rows * block_w, block_d], tl.float32)
    for start in range(0, tokens, block_m):
        queries = start + tl.arange(0, block_m)
        inside = queries < tokens
        q_block = _load(q + inputs, queries, inside, token_stride, dim, block_d)
        upstream = _load(grad + outputs, queries, inside, heads * dim, dim, block_d)
        pointer = width_logits + queries[None, :] * padded_width + columns[:, None]
        by_column = tl.load(pointer, mask=inside[None, :], other=0.0)
        by_column = tl.broadcast_to(by_column[None, :, :], [rows, block_w, block_m])
        by_column = tl.reshape(by_column, [rows * block_w, block_m])
        by_row = _by_row(height_logits, row, height, queries, tokens, tile_row[:, None], 0, rows)
        statistics = image_head * tokens + queries
        # Queries beyond the image have no upstream, so their weights do not matter.
        normalizer = tl.load(log_sum_exp + statistics, mask=inside, other=0.0)
        mean = tl.load(row_mean + statistics, mask=inside, other=0.0)

        products = tl.dot(k_tile, tl.trans(q_block), input_precision=precision)
        logits = products * scale + by_column
        weights = tl.exp2(logits * _LOG2E + (by_row - normalizer[None, :]) * _LOG2E)
        v_sum = tl.dot(weights.to(v_tile.dtype), upstream, v_sum, input_precision=precision)
        grad_weights = tl.dot(v_tile, tl.trans(upstream), input_precision=precision)
        grad_logits = (weights * (grad_weights - mean[None, :])).to(k_tile.dtype)
        k_sum = tl.dot(grad_logits, q_block, k_sum, input_precision=precision)

    _store(grad_k + outputs, k_sum * scale, keys, valid, heads * dim, dim, block_d)
    _store(grad_v + outputs, v_sum, keys, valid, heads * dim, dim, block_d)


class _Launch(NamedTuple):
    """What one program takes at a time, and how it runs."""

    queries: int
    keys: int
    warps: int
    stages: int


# Of the forward and of the gradients of queries and of keys, by what the compiler says of heads of
# 128 channels, not by measurement. In half precision no inner loop spills registers, except that of
# the keys in tiles of 8 columns; with twice the queries or keys each would. A program has 227 KiB
# of shared memory on Hopper, 99 or more on older GPUs.
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
    """Columns of a tile of ``keys`` keys that leave the fewest keys outside the image.

    Of equals the widest, which has the fewest image rows to tell apart.
    """
    widths = [block_w for block_w in (64, 32, 16, 8) if block_w <= keys]
    return min(widths, key=lambda w: ceil(width / w) * w * ceil(height * w / keys) * (keys // w))


def _prepare(
    q: Tensor, k: Tensor, v: Tensor, height_logits: Tensor, width_logits: Tensor
) -> tuple[list[Tensor], int]:
    """The tensors as the kernels want them, and ``block_w``.

    q, k and v with the same strides and channels that lie together; height_logits
    (B, heads, H, N), so that the numbers of neighbouring queries lie together; width_logits
    (B, heads, N, W) with W filled up to whole tiles by -inf.
    """
    height, width = height_logits.shape[-1], width_logits.shape[-1]
    block_w = _block_w(height, width, _launches(q)[0].keys)
    if not (q.stride() == k.stride() == v.stride() and q.stride(-1) == 1):
        q, k, v = map(_as_map, (q, k, v))
    if width % block_w:
        width_logits = F.pad(width_logits, (0, -width % block_w), value=-float("inf"))
    return [q, k, v, height_logits.mT.contiguous(), width_logits.contiguous()], block_w


def _as_map(tensor: Tensor) -> Tensor:
    """(B, heads, N, d) over the memory of a channels-last map (B, N, heads, d)."""
    return tensor.transpose(1, 2).contiguous().transpose(1, 2)


def _run(
    kernel: Any, launch: _Launch, blocks: int, block_w: int, scale: float, tensors: list[Tensor]
) -> None:
    """Run ``kernel`` for ``blocks`` blocks of every image and head."""
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
    _run(_forward, launch, blocks, block_w, scale, [*inputs, out, log_sum_exp])
    return out, log_sum_exp


def _outputs(
    q: Tensor, k: Tensor, v: Tensor, height_logits: Tensor, width_logits: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """A result (B, heads, N, d), channels-last, and log-sum-exps of the logits (B, heads, N)."""
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
    _run(_backward_queries, of_queries, blocks, block_w, scale, tensors)
    tensors = [*inputs, log_sum_exp, grad, row_mean, grad_k, grad_v]
    blocks = ceil(height / (of_keys.keys // block_w)) * column_tiles
    _run(_backward_keys, of_keys, blocks, block_w, scale, tensors)
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
    """Empty ones: those of q, k and v are channels-last, grad_height has its queries innermost."""
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
    """Cast q, k and v alone: the kernels take logits in float32."""
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
