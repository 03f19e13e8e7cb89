"""Masks of the instances in an image, kept where the instances are."""

from typing import NamedTuple

import torch
from torch import Tensor


class Masks(NamedTuple):
    """n masks of one image, each cropped to its instance.

    A whole mask of each is mostly zeros: at 1024 px a megabyte an instance, to be written by the
    process that reads the image and carried to the one that trains.
    """

    pixels: Tensor
    """uint8, 0 or 1, (sum of height x width,): the columns of each crop, from left to right."""
    crops: tuple[tuple[int, int, int, int], ...]
    """Of each mask: top and left in the image, height and width."""
    height: int
    """Of the image, pixels."""
    width: int

    def whole(self) -> Tensor:
        """Masks of the whole image, uint8 (n, height, width), on the device of the pixels."""
        masks = self.pixels.new_zeros((len(self.crops), self.height, self.width))
        parts = torch.split(self.pixels, [height * width for _, _, height, width in self.crops])
        for mask, part, (top, left, height, width) in zip(masks, parts, self.crops, strict=True):
            mask[top : top + height, left : left + width] = part.view(width, height).T
        return masks
