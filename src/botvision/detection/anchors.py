"""Anchors in float32, and the overlap of boxes."""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList


class Anchors(AnchorGenerator):  # type: ignore[misc]
    """torchvision's anchor generator with anchors in float32 instead of the features' dtype.

    In bf16 a coordinate of 500 pixels would be off by up to 1 and one of 1000 pixels by up to 2,
    for anchors that are a dozen pixels wide.
    """

    def forward(self, image_list: ImageList, feature_maps: list[Tensor]) -> list[Tensor]:
        """Return anchors (n, 4), xyxy, float32, per image.

        Only the shapes and the device of the feature maps matter.
        """
        maps = [
            level.new_empty((), dtype=torch.float32).expand(level.shape) for level in feature_maps
        ]
        anchors: list[Tensor] = super().forward(image_list, maps)
        return anchors


def box_iou(boxes: Tensor, others: Tensor) -> Tensor:
    """Compute the intersection over union of every pair of boxes.

    The result is bit-for-bit equal to torchvision's. torchvision's function works on pairs of
    coordinates and is 3 to 4 times slower on a CPU. There, comparing all anchors with the objects
    of crowded images took a sixth of a training step.

    Args:
        boxes: (n, 4), xyxy, float32.
        others: (m, 4), xyxy, float32.

    Returns:
        (n, m), float32.
    """
    left, top, right, bottom = boxes[:, None].unbind(-1)
    lefts, tops, rights, bottoms = others.unbind(-1)
    widths = torch.minimum(right, rights).sub_(torch.maximum(left, lefts)).clamp_(min=0)
    heights = torch.minimum(bottom, bottoms).sub_(torch.maximum(top, tops)).clamp_(min=0)
    intersection = widths.mul_(heights)
    areas, other_areas = (right - left) * (bottom - top), (rights - lefts) * (bottoms - tops)
    return intersection.div_((areas + other_areas).sub_(intersection))
