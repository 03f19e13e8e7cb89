"""Which parts of an image a detector looks at, and at which sizes."""

import math
from dataclasses import dataclass

from botvision.data.transforms import CropResizeFlip
from botvision.errors import UserError

_SMALLEST_TILE = 32


@dataclass(frozen=True)
class TTA:
    """How an image is looked at: once as a whole, unless told otherwise.

    The whole image, and with `tile` its tiles besides, are each seen at every scale, and with
    `flip` also mirrored.

    Raises UserError for a scale that is no positive number or a tile below 32 pixels.
    """

    size: int
    """At scale 1 the longer side of the image, and the side of a tile, as seen; pixels."""
    flip: bool = False
    scales: tuple[float, ...] = (1.0,)
    tile: int | None = None
    """Side of the tiles in pixels of the image; an image that is no larger has none. Neighbours
    share at least a quarter of it, so that an object up to that size is whole in one of them."""

    def __post_init__(self) -> None:
        """Check the numbers."""
        for scale in self.scales:
            if not 0 < scale < math.inf:
                raise UserError(f"--scales {scale:g}: give positive numbers, such as 0.75 1 1.25")
        if not self.scales:
            raise UserError("--scales: give at least one number, such as 1")
        if self.tile is not None and self.tile < _SMALLEST_TILE:
            raise UserError(
                f"--tile {self.tile}: give at least {_SMALLEST_TILE}, the pixels of the image that "
                "a side of a tile has"
            )

    def of(self, width: int, height: int) -> list[CropResizeFlip]:
        """The views of an image of `width` by `height` pixels, the whole image first."""
        parts = [((0, 0, width, height), max(width, height))]
        if self.tile is not None and max(width, height) > self.tile:
            parts += [(box, self.tile) for box in _tiles(width, height, self.tile)]
        return [
            CropResizeFlip.resized(box, max(1, round(scale * self.size)) / side, flip)
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
    """Where the fewest tiles begin that cover `length` pixels and share a quarter, evenly."""
    step = side - side // 4
    gaps = max(0, -((side - length) // step))
    return [i * (length - side) // max(gaps, 1) for i in range(gaps + 1)]
