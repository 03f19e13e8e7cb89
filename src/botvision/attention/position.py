"""Position tables: learned, one per axis, shared by all heads (paper, section 3.2, Figure 4).

The position term of a logit is the sum of a number per image row and a number per image column, so
a query needs H + W of them instead of H * W.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from botvision.attention.products import exact_products
from botvision.config import TableResize


def relative_logits(
    q: Tensor, height_rel: Tensor, width_rel: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """Compute the logits of relative positions, with table index key - query + (L - 1).

    Args:
        q: queries on their map (B, heads, H, W, d).
        height_rel: (2H-1, d).
        width_rel: (2W-1, d).
        scale: factor of the result.

    Returns:
        Height logits (B, heads, H, W, H) and width logits (B, heads, H, W, W), whose last axis is
        the key's row or column; float32 (float64 for a float64 ``q``).
    """
    height, width = q.shape[2:4]
    return _logits(q, _by_offset(height_rel, height), _by_offset(width_rel, width), scale)


def absolute_logits(
    q: Tensor, height_abs: Tensor, width_abs: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """Compute the logits of absolute positions (``q r_abs`` in the paper's Table 4).

    Args:
        q: queries on their map (B, heads, H, W, d).
        height_abs: (H, d), indexed by the key's row.
        width_abs: (W, d), indexed by the key's column.
        scale: factor of the result.

    Returns:
        See ``relative_logits``.
    """
    height, width = q.shape[2:4]
    by_row, by_column = height_abs.expand(height, -1, -1), width_abs.expand(width, -1, -1)
    return _logits(q, by_row, by_column, scale)


def _by_offset(table: Tensor, length: int) -> Tensor:
    """Select the row ``key - query + L - 1`` of a (2L-1, d) table for each query and key.

    By views, because gradients of indexing are slow: the table, padded by one row and repeated, is
    read in pieces of its original length, so that it shifts by one row from query to query.

    Returns:
        (L, L, d), indexed by query and key.
    """
    rows = F.pad(table, (0, 0, 0, 1)).expand(length, -1, -1).flatten(0, 1)
    return rows[:-length].view(length, 2 * length - 1, -1)[:, length - 1 :]


def _logits(q: Tensor, by_row: Tensor, by_column: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Products of q with the vectors of [query, key], (H, H, d) and (W, W, d), per axis."""
    dtype = torch.promote_types(q.dtype, torch.float32)
    by_row, by_column = by_row.to(dtype) * scale, by_column.to(dtype) * scale
    apply = _AxisLogits.apply if torch.is_grad_enabled() else _axis_logits
    rows_first, columns_first = q.permute(0, 2, 3, 1, 4), q.permute(0, 3, 2, 1, 4)
    height_logits: Tensor = apply(rows_first, by_row)
    width_logits: Tensor = apply(columns_first, by_column)
    return height_logits.permute(0, 3, 1, 2, 4), width_logits.permute(0, 3, 2, 1, 4)


def _axis_logits(q: Tensor, vectors: Tensor) -> Tensor:
    """(B, L, M, heads, d) and (L, L, d) to (B, L, M, heads, L) in the dtype of ``vectors``."""
    with exact_products():
        products = q.to(vectors.dtype).flatten(2, 3) @ vectors.mT
    return products.view(*q.shape[:4], -1)


class _AxisLogits(torch.autograd.Function):
    """``_axis_logits`` without a saved float32 copy of q, and with gradients in q's dtype."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, vectors: Tensor) -> Tensor:
        ctx.save_for_backward(q, vectors)
        return _axis_logits(q, vectors)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        q, vectors = ctx.saved_tensors
        grad = grad.to(q.dtype).flatten(2, 3)
        grad_q = (grad @ vectors.to(q.dtype)).view(q.shape)
        grad_vectors = grad.mT @ q.flatten(2, 3)
        return grad_q, grad_vectors.sum(dim=0, dtype=vectors.dtype)


def resize_relative(table: Tensor, length: int, resize: TableResize) -> Tensor:
    """Resize a (2L-1, d) table for a map of ``length`` cells.

    Args:
        table: relative positions, (2L-1, d).
        length: cells of the map along the axis.
        resize: ``"slice"`` keeps the center of the table, so an offset of two cells keeps its row.
            A map larger than the table's has offsets that the table lacks, and interpolates.
            ``"interpolate"`` stretches the table, so an offset across the whole map keeps its row.

    Returns:
        (2*length-1, d).
    """
    cells = (table.shape[0] + 1) // 2
    reach: Any = torch.sym_min(cells, length) if resize == "slice" else cells
    return _resample(table, cells - reach, reach, length, rows=2 * length - 1)


def resize_absolute(table: Tensor, length: int, resize: TableResize) -> Tensor:
    """Resize an (L, d) table for a map of ``length`` cells.

    Args:
        table: absolute positions, (L, d).
        length: cells of the map along the axis.
        resize: ``"slice"`` keeps the first cells, because a smaller image is at the top left of its
            padded canvas; otherwise as in ``resize_relative``.

    Returns:
        (length, d).
    """
    cells = table.shape[0]
    reach: Any = torch.sym_min(cells, length) if resize == "slice" else cells
    return _resample(table, 0, reach, length, rows=length)


def _resample(table: Tensor, first: int, reach: int, length: int, *, rows: int) -> Tensor:
    """Interpolate the table linearly at ``first + i * (reach - 1) / (length - 1)``.

    There is no branch on the size, so that an exported program accepts any size.

    Returns:
        (rows, d).
    """
    if not torch.compiler.is_exporting() and rows == table.shape[0]:
        return table
    numerator = torch.arange(rows, device=table.device) * (reach - 1)
    denominator: Any = torch.sym_max(length - 1, 1)
    lower = numerator // denominator
    between = (numerator - lower * denominator).to(table.dtype) / denominator
    upper = (lower + 1).clamp(max=table.shape[0] - 1 - first)
    return torch.lerp(table[first + lower], table[first + upper], between[:, None])


class RelativePosition(nn.Module):
    """The tables ``height_rel`` (2H-1, d) and ``width_rel`` (2W-1, d), drawn from N(0, 1/d).

    The authors' code passed d^-0.5 as the mean of the initializer; they note that it was meant as
    the standard deviation, as it is here.

    Args:
        feat_size: height and width (H, W) of the map, cells.
        head_dim: channels per head, d.
        table_resize: how maps of other sizes use the tables, see ``resize_relative``.
    """

    def __init__(
        self, feat_size: tuple[int, int], head_dim: int, table_resize: TableResize
    ) -> None:
        super().__init__()
        height, width = feat_size
        self.table_resize: TableResize = table_resize
        self.height_rel = nn.Parameter(torch.empty(2 * height - 1, head_dim))
        self.width_rel = nn.Parameter(torch.empty(2 * width - 1, head_dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw both tables again."""
        for table in (self.height_rel, self.width_rel):
            nn.init.normal_(table, std=table.shape[-1] ** -0.5)

    def tables(self, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Return both tables, resized for a map of ``size`` (H, W) cells."""
        return (
            resize_relative(self.height_rel, size[0], self.table_resize),
            resize_relative(self.width_rel, size[1], self.table_resize),
        )

    def forward(self, q: Tensor, *, scale: float = 1.0) -> tuple[Tensor, Tensor]:
        """Return ``relative_logits`` of queries (B, heads, H, W, d), times ``scale``."""
        height_rel, width_rel = self.tables((q.shape[2], q.shape[3]))
        return relative_logits(q, height_rel, width_rel, scale)


class AbsolutePosition(nn.Module):
    """The tables ``height_abs`` (H, d) and ``width_abs`` (W, d), drawn from N(0, 1/d).

    Args:
        feat_size: height and width (H, W) of the map, cells.
        head_dim: channels per head, d.
        table_resize: how maps of other sizes use the tables, see ``resize_absolute``.
    """

    def __init__(
        self, feat_size: tuple[int, int], head_dim: int, table_resize: TableResize
    ) -> None:
        super().__init__()
        height, width = feat_size
        self.table_resize: TableResize = table_resize
        self.height_abs = nn.Parameter(torch.empty(height, head_dim))
        self.width_abs = nn.Parameter(torch.empty(width, head_dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw both tables again."""
        for table in (self.height_abs, self.width_abs):
            nn.init.normal_(table, std=table.shape[-1] ** -0.5)

    def forward(self, q: Tensor, *, scale: float = 1.0) -> tuple[Tensor, Tensor]:
        """Return ``absolute_logits`` of queries (B, heads, H, W, d), times ``scale``."""
        height_abs = resize_absolute(self.height_abs, q.shape[2], self.table_resize)
        width_abs = resize_absolute(self.width_abs, q.shape[3], self.table_resize)
        return absolute_logits(q, height_abs, width_abs, scale)
