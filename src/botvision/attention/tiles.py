"""Tiles of the logits: which queries they contain, and how their weights are computed."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import torch
from torch import Tensor

Heads = tuple[slice, slice]


def tiles(q: Tensor, tile_logits: int) -> Iterator[tuple[Heads, list[slice]]]:
    """Yield slices of (images, heads), each with the slices of queries that tile it.

    A tile is one or more whole images or, for larger maps, some queries of one image and head.

    Args:
        q: queries (B, heads, N, d).
        tile_logits: maximum number of logits per tile, unless one query exceeds it.

    Yields:
        (images, heads) and the queries of each tile.
    """
    batch, heads, tokens, _ = q.shape
    images = tile_logits // (heads * tokens**2)
    if images:
        for b in range(0, batch, images):
            yield (slice(b, b + images), slice(None)), [slice(None)]
        return
    rows = max(1, tile_logits // tokens)
    for b, h in product(range(batch), range(heads)):
        queries = [slice(row, row + rows) for row in range(0, tokens, rows)]
        yield (slice(b, b + 1), slice(h, h + 1)), queries


def buffer_for(q: Tensor, dtype: torch.dtype, tile_logits: int) -> Tensor:
    """Allocate memory for the logits of any tile: allocation per tile takes as long as filling.

    Args:
        q: queries (B, heads, N, d).
        dtype: dtype of the logits.
        tile_logits: maximum number of logits per tile.

    Returns:
        A one-dimensional tensor.
    """
    batch, heads, tokens, _ = q.shape
    length = min(max(tile_logits, tokens), batch * heads * tokens**2)
    return torch.empty(length, dtype=dtype, device=q.device)


def outer_sum(height_logits: Tensor, width_logits: Tensor, buffer: Tensor) -> Tensor:
    """Add the logits of rows and columns.

    Args:
        height_logits: (b, h, n, H).
        width_logits: (b, h, n, W).
        buffer: memory of the result.

    Returns:
        (b, h, n, H * W).
    """
    by_row, by_column = height_logits.unsqueeze(-1), width_logits.unsqueeze(-2)
    shape = (*by_row.shape[:-1], by_column.shape[-1])
    out = buffer[: torch.Size(shape).numel()].view(shape)
    torch.add(by_row, by_column, out=out)
    return out.flatten(-2)


def softmax(bias: Tensor, queries: Tensor, keys: Tensor, scale: float) -> Tensor:
    """Compute the softmax of ``scale queries keys^T + bias`` in the memory of ``bias``.

    Args:
        bias: position logits (b, h, n, N).
        queries: (b * h, n, d) in the dtype of ``bias``.
        keys: (b * h, N, d), the same dtype.
        scale: factor of the product.

    Returns:
        (b * h, n, N).
    """
    logits = bias.flatten(0, 1).baddbmm_(queries, keys.mT, alpha=scale)
    return torch.softmax(logits, dim=-1, out=logits)
