"""The multi-head self-attention layer of a BoT block (paper, Figure 4)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from botvision.attention import reference
from botvision.attention.functional import attend, check_impl, no_autocast
from botvision.attention.implementation import Implementation
from botvision.attention.position import AbsolutePosition, RelativePosition
from botvision.config import TableResize

Position = Literal["relative", "absolute", "none"]


class RelativeAttention2d(nn.Module):
    """Global multi-head self-attention over a feature map, (B, dim, H, W) -> (B, dim, H', W').

    The logits are ``q k^T + q r^T`` with a learned ``r`` per axis (paper, sections 3.2 and 4.3).
    The layer has three 1x1 projections without bias, no output projection and no dropout; positions
    enter the logits only. Parameter names and shapes are those of timm's ``BottleneckAttn``, so its
    weights load unchanged (with ``scale_position=False`` for weights trained with timm's default).

    Logits and softmax are float32 (float64 for a float64 module), also in half precision.

    Args:
        dim: input and output channels.
        feat_size: height and width of the feature map for which the position tables are made. The
            layer accepts maps of any size.
        num_heads: attention heads, each of ``dim / num_heads`` channels.
        position: ``"relative"`` (the paper), ``"absolute"`` (its ablation) or ``"none"``.
        content: whether to include the term ``q k^T``; ``False`` keeps the position term only
            (paper, Table 4).
        scale_position: whether to scale the position term by d^-0.5, like the content term.
        stride: 1, or 2 to average 2x2 positions after the attention, rounding up (caption of the
            paper's Table 1).
        table_resize: how a map smaller than ``feat_size`` uses the tables. ``"slice"`` keeps
            offsets in feature-map cells (for detection, where objects keep their size);
            ``"interpolate"`` keeps offsets relative to the map (for classification, where a smaller
            input shows the same picture). A larger map always interpolates.
        impl: ``"auto"``, one of ``botvision.attention.implementations(device)``, or an
            ``botvision.attention.Implementation``.

    Raises:
        ValueError: ``dim`` is not a multiple of ``num_heads``, an option is unknown, or there is
            no content term and no position term.
    """

    def __init__(
        self,
        dim: int,
        feat_size: int | tuple[int, int],
        *,
        num_heads: int = 4,
        position: Position = "relative",
        content: bool = True,
        scale_position: bool = True,
        stride: int = 1,
        table_resize: TableResize = "slice",
        impl: str | Implementation = "auto",
    ) -> None:
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"dim {dim} is not a multiple of num_heads {num_heads}")
        if stride not in (1, 2):
            raise ValueError(f"stride is 1 or 2, not {stride}")
        if table_resize not in ("slice", "interpolate"):
            raise ValueError(f'table_resize is "slice" or "interpolate", not {table_resize!r}')
        if not content and position == "none":
            raise ValueError("attention needs a content term, a position term, or both")
        check_impl(impl)
        self.dim = dim
        self.num_heads = num_heads
        self.content = content
        self.impl = impl
        self.scale = (dim // num_heads) ** -0.5
        self.scale_position = scale_position
        self.qkv = nn.Conv2d(dim, 3 * dim, kernel_size=1, bias=False)
        feat_size = (feat_size, feat_size) if isinstance(feat_size, int) else feat_size
        head_dim = dim // num_heads
        self.pos_embed: RelativePosition | AbsolutePosition | None
        if position == "relative":
            self.pos_embed = RelativePosition(feat_size, head_dim, table_resize)
        elif position == "absolute":
            self.pos_embed = AbsolutePosition(feat_size, head_dim, table_resize)
        elif position == "none":
            self.pos_embed = None
        else:
            raise ValueError(f'position is "relative", "absolute" or "none", not {position!r}')
        # ceil_mode: an odd map must match the strided 1x1 convolution of the shortcut.
        self.pool = nn.AvgPool2d(2, ceil_mode=True) if stride == 2 else nn.Identity()
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the projections from N(0, 0.01^2), as the authors' code does, and the tables."""
        nn.init.normal_(self.qkv.weight, std=0.01)
        if self.pos_embed is not None:
            self.pos_embed.reset_parameters()

    def no_weight_decay(self) -> set[str]:
        """Return the names of the position tables, as timm's optimizers expect."""
        if self.pos_embed is None:
            return set()
        return {name for name, _ in self.pos_embed.named_parameters("pos_embed")}

    def forward(self, x: Tensor) -> Tensor:
        """Attend over the whole map.

        Args:
            x: feature map (B, dim, H, W). A channels-last ``x`` is fastest: it is not copied.

        Returns:
            (B, dim, H, W), or (B, dim, ceil(H / 2), ceil(W / 2)) with ``stride=2``, channels-last.
        """
        batch, _, height, width = x.shape
        q, k, v, height_logits, width_logits = self._terms(x)
        with no_autocast(x.device):
            out = attend(q, k, v, height_logits, width_logits, scale=self.scale, impl=self.impl)
        # (B, heads, N, d) -> (B, H, W, heads * d): the heads are concatenated.
        out = out.transpose(1, 2).reshape(batch, height, width, self.dim).permute(0, 3, 1, 2)
        pooled: Tensor = self.pool(out)
        return pooled

    def probabilities(self, x: Tensor) -> Tensor:
        """Compute the attention weights, for visualization and analysis.

        All N x N weights of every image and head are in memory.

        Args:
            x: feature map (B, dim, H, W).

        Returns:
            (B, heads, H, W, H, W) in float32 (float64 for a float64 module), query first. The
            weights of each query sum to one.
        """
        height, width = x.shape[-2:]
        q, k, _, height_logits, width_logits = self._terms(x)
        with no_autocast(x.device):
            weights = reference.probabilities(q, k, height_logits, width_logits, self.scale)
        return weights.reshape(-1, self.num_heads, height, width, height, width)

    def _terms(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None]:
        """Return q, k and v (B, heads, N, d) and the position logits (B, heads, N, H or W)."""
        batch, _, height, width = x.shape
        # Channels-last, so that the channels of a head are adjacent in memory; only other maps are
        # copied.
        qkv = self.qkv(x.contiguous(memory_format=torch.channels_last))
        qkv = qkv.permute(0, 2, 3, 1).contiguous()
        # Of the channels, q, k and v are outermost and heads second.
        qkv = qkv.view(batch, height * width, 3, self.num_heads, self.dim // self.num_heads)
        q, k, v = (part.transpose(1, 2) for part in qkv.unbind(2))
        height_logits = width_logits = None
        if self.pos_embed is not None:
            with no_autocast(x.device):
                queries = q.reshape(*q.shape[:2], height, width, -1)
                scale = self.scale if self.scale_position else 1.0
                by_row, by_column = self.pos_embed(queries, scale=scale)
            height_logits, width_logits = by_row.flatten(2, 3), by_column.flatten(2, 3)
        # Without content q k^T is zero, in every implementation.
        return q if self.content else torch.zeros_like(q), k, v, height_logits, width_logits
