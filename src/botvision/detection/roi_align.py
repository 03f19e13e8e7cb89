"""RoIAlign over a feature pyramid, on a CPU as a weighted sum of rows of the feature map.

torchvision's operator runs its backward pass on one core and reads a channel at a time. As a sparse
product, the same sums are one call of ``torch.nn.functional.embedding_bag``, which reads all
channels of a cell at once and whose backward pass uses every core.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import MultiScaleRoIAlign
from torchvision.ops.poolers import LevelMapper

# Sampling points per side of an output cell, as in Detectron.
_SAMPLES = 2


class PyramidRoIAlign(MultiScaleRoIAlign):  # type: ignore[misc]
    """RoIAlign over p2 to p5 that knows the strides of the pyramid.

    torchvision infers the strides from the unpadded size of the first images that it sees. On a
    padded canvas those scales are wrong.

    Args:
        strides: stride of each level, in pixels.
        output_size: side of the pooled regions, in cells.
    """

    def __init__(self, strides: Sequence[int], output_size: int) -> None:
        super().__init__([str(i) for i in range(len(strides))], output_size, _SAMPLES)
        self.scales = [1 / stride for stride in strides]
        self.map_levels = LevelMapper(k_min=2, k_max=len(strides) + 1)

    def forward(
        self, x: dict[str, Tensor], boxes: list[Tensor], image_shapes: list[tuple[int, int]]
    ) -> Tensor:
        """Pool the regions, each from the pyramid level that suits its size.

        Args:
            x: pyramid levels by name, each (B, channels, h, w).
            boxes: regions (n, 4) per image, xyxy in pixels of the canvas.
            image_shapes: not used on a CPU.

        Returns:
            (n of all images, channels, output_size, output_size) in the dtype of the levels.
        """
        features = [x[name] for name in self.featmap_names]
        if features[0].device.type != "cpu" or torch.compiler.is_exporting():
            pooled: Tensor = super().forward(x, boxes, image_shapes)
            return pooled
        images = torch.cat([torch.full((len(of_image),), i) for i, of_image in enumerate(boxes)])
        regions = torch.cat(boxes)
        levels = self.map_levels(boxes)
        rows = [torch.where(levels == level)[0] for level in range(len(features))]
        parts = [
            roi_align(level, regions[of_level], images[of_level], self.output_size[0], scale)
            for level, of_level, scale in zip(features, rows, self.scales, strict=True)
        ]
        return torch.cat(parts)[torch.cat(rows).argsort()]


def roi_align(features: Tensor, boxes: Tensor, images: Tensor, size: int, scale: float) -> Tensor:
    """Compute torchvision's ``roi_align`` with 2 by 2 samples per cell and ``aligned=False``.

    Each output cell is the sum of 16 rows of the feature map, 4 for each of its bilinear samples.

    Args:
        features: (B, channels, h, w), fastest in channels-last layout.
        boxes: (n, 4), xyxy in pixels of the canvas.
        images: (n,), index of the image of each box.
        size: side of the output, in cells.
        scale: cells of the feature map per pixel.

    Returns:
        (n, channels, size, size) in channels-last layout and in the dtype of ``features``. Sums are
        computed in float32, or in float64 for float64 features.
    """
    channels, height, width = features.shape[1:]
    dtype = torch.promote_types(features.dtype, torch.float32)
    left, top, right, bottom = (boxes.to(dtype) * scale).unbind(1)
    rows, row_weights = _samples(top, bottom, height, size)
    columns, column_weights = _samples(left, right, width, size)
    rows = (images[:, None, None] * height + rows) * width
    cells = rows[:, :, None, :, None] + columns[:, None, :, None, :]
    weights = row_weights[:, :, None, :, None] * column_weights[:, None, :, None, :]
    pooled = F.embedding_bag(
        cells.reshape(-1, 4 * _SAMPLES**2),
        features.permute(0, 2, 3, 1).reshape(-1, channels).to(dtype),
        per_sample_weights=weights.reshape(-1, 4 * _SAMPLES**2),
        mode="sum",
    )
    return pooled.view(-1, size, size, channels).permute(0, 3, 1, 2).to(features.dtype)


def _samples(start: Tensor, end: Tensor, length: int, size: int) -> tuple[Tensor, Tensor]:
    """Return indices and weights (n, size, 2 * _SAMPLES) of linear interpolation along one side."""
    step = (end - start).clamp(min=1) / size / _SAMPLES
    points = torch.arange(size * _SAMPLES, device=start.device) + 0.5
    position = start[:, None] + points * step[:, None]
    # Samples outside the map count as zero. NaN fails the comparison too.
    inside = (position >= -1) & (position <= length)
    position = torch.where(inside, position, 0).clamp(0, length - 1)
    low = position.floor()
    fraction = position - low
    indices = torch.stack([low, (low + 1).clamp(max=length - 1)], dim=-1).long()
    weights = torch.stack([1 - fraction, fraction], dim=-1) * inside[..., None] / _SAMPLES
    return indices.view(-1, size, 2 * _SAMPLES), weights.view(-1, size, 2 * _SAMPLES)
