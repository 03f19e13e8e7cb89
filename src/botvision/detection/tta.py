"""Test-time augmentation: the views of an image that a detector runs on."""

import math
from dataclasses import dataclass

from botvision.data.transforms import CropResizeFlip
from botvision.errors import UserError

_SMALLEST_TILE = 32


@dataclass(frozen=True)
class TTA:
    """Test-time augmentation. By default the only view is the whole image.

    The detector runs on the whole image and, with ``tile``, on its tiles: at every scale and, with
    ``flip``, also mirrored.

    Args:
        flip: also mirror every view.
        scales: positive scales of the views. At scale 1, the longer side of the image, or the side
            of a tile, is resized to the detector's image size.
        tile: side of the tiles in pixels of the image, at least 32. An image that is not larger
            than a tile has no tiles. Neighboring tiles overlap by at least a quarter of their side,
            so an object up to that size is completely inside one of them.

    Raises:
        UserError: there is no scale, a scale is not a positive number, or a tile is smaller than 32
            pixels.
    """

    flip: bool = False
    scales: tuple[float, ...] = (1.0,)
    tile: int | None = None

    def __post_init__(self) -> None:
        for scale in self.scales:
            if not 0 < scale < math.inf:
                raise UserError(
                    "give positive numbers, such as 0.75 1 1.25",
                    parameter="scales",
                    value=f"{scale:g}",
                )
        if not self.scales:
            raise UserError("give at least one number, such as 1", parameter="scales")
        if self.tile is not None and self.tile < _SMALLEST_TILE:
            raise UserError(
                f"must be at least {_SMALLEST_TILE}, the side of a tile in pixels of the image",
                parameter="tile",
                value=self.tile,
            )

    def views(self, width: int, height: int, image_size: int) -> list[CropResizeFlip]:
        """Return the augmented views of an image, the whole image first.

        Args:
            width: width of the image, pixels.
            height: height of the image, pixels.
            image_size: side of the detector's canvas, pixels.

        Returns:
            The views: for each part of the image every scale, and for each scale the view and its
            mirror image.
        """
        parts = [((0, 0, width, height), max(width, height))]
        if self.tile is not None and max(width, height) > self.tile:
            parts += [(box, self.tile) for box in _tiles(width, height, self.tile)]
        return [
            CropResizeFlip.resized(box, max(1, round(scale * image_size)) / side, flip)
            for box, side in parts
            for scale in self.scales
            for flip in ((False, True) if self.flip else (False,))
        ]


def _tiles(width: int, height: int, side: int) -> list[tuple[int, int, int, int]]:
    return [
        (left, top, min(left + side, width), min(top + side, height))
        for top in _starts(height, side)
        for left in _starts(width, side)
    ]


def _starts(length: int, side: int) -> list[int]:
    """Return evenly spaced starts of the fewest tiles that cover ``length`` and share a quarter."""
    step = side - side // 4
    gaps = max(0, -((side - length) // step))
    return [i * (length - side) // max(gaps, 1) for i in range(gaps + 1)]
