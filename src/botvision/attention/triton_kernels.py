"""Triton kernels; ``botvision.attention.triton_attention`` describes how they work."""

# Triton has no types, and its kernels have no annotations except constexpr.
# mypy: disable-error-code="import-untyped, import-not-found, no-untyped-def, untyped-decorator"
# mypy: disable-error-code="no-untyped-call"

import triton
import triton.language as tl

_LOG2E = tl.constexpr(1.4426950408889634)  # The hardware has exp2 and no exp.
# Maps come in many sizes: do not recompile for those that happen to be multiples of 16.
_SIZES = ("tokens", "height", "width")


@triton.jit
def _offset(image_head, heads, image_stride, head_stride):
    # image_head, and so the offset, has 64 bits: a batch can exceed 2^31 elements.
    return (image_head // heads) * image_stride + (image_head % heads) * head_stride


@triton.jit
def _load(pointer, cells, valid, stride, dim: tl.constexpr, block_d: tl.constexpr):
    """Load the channels of ``cells``, (cells, block_d); zeros where not ``valid``."""
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
    """Load the height logits of a tile, -inf below the image.

    Returns:
        One number per query if the tile contains one image row, else one per query and key, with
        the keys along ``axis``.
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
def forward(
    q, k, v, height_logits, width_logits, out, log_sum_exp,
    scale, image_stride, head_stride, token_stride, heads, tokens, height, width, padded_width,
    dim: tl.constexpr, block_d: tl.constexpr, block_m: tl.constexpr,
    rows: tl.constexpr, block_w: tl.constexpr, precision: tl.constexpr,
):  # fmt: skip
    """Attend with a block of queries of one image and head."""
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
def backward_queries(
    q, k, v, height_logits, width_logits, out, log_sum_exp, grad,
    row_mean, grad_q, grad_height, grad_width,
    scale, image_stride, head_stride, token_stride, heads, tokens, height, width, padded_width,
    dim: tl.constexpr, block_d: tl.constexpr, block_m: tl.constexpr,
    rows: tl.constexpr, block_w: tl.constexpr, precision: tl.constexpr,
):  # fmt: skip
    """Compute the gradients of a block of queries and its position logits, and ``row_mean``."""
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
    # sum_j p_ij dp_ij, which the softmax subtracts from every gradient of row i.
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
        # The next tiles of columns have their own sums, which the caller adds up.
        grad_height += image_heads.to(tl.int64) * height * tokens

    _store(grad_q + outputs, result * scale, queries, inside, heads * dim, dim, block_d)


@triton.jit(do_not_specialize=_SIZES)
def backward_keys(
    q, k, v, height_logits, width_logits, log_sum_exp, grad, row_mean, grad_k, grad_v,
    scale, image_stride, head_stride, token_stride, heads, tokens, height, width, padded_width,
    dim: tl.constexpr, block_d: tl.constexpr, block_m: tl.constexpr,
    rows: tl.constexpr, block_w: tl.constexpr, precision: tl.constexpr,
):  # fmt: skip
    """Compute the gradients of a tile of keys and values; logits are (keys, queries) here."""
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
