"""Large-scale jitter: a random scale, crop and flip of an image with its boxes and masks."""

from dataclasses import dataclass

import numpy as np

from botvision.data.transforms import CropResizeFlip
from botvision.errors import UserError


@dataclass(frozen=True)
class LargeScaleJitter:
    """Scale jitter as in the paper's detection code base.

    s is drawn uniformly from `scale`; the image is fitted, keeping its aspect ratio, inside a box
    of s times `size`; where it is then larger than `size`, a random crop of `size` is taken, whose
    borders are rounded to whole pixels of the image; with `flip`, half of the images are mirrored.

    Where the image is smaller than `size` it stays smaller. The model pads with zeros on the right
    and at the bottom after normalization; zeros before it would be black, not the mean color.

    Raises UserError unless 0 < scale[0] <= scale[1] and `size` is positive.
    """

    size: int | tuple[int, int]
    """Pixels: the side of a square, or (height, width)."""
    scale: tuple[float, float] = (0.8, 1.25)
    flip: bool = True

    def __post_init__(self) -> None:
        if not 0 < self.scale[0] <= self.scale[1] or min(self._size) < 1:
            raise UserError(
                f"scale jitter {self.scale} at image size {self.size}: give a positive size and "
                "two scales, the smaller first, such as 0.1 and 2.0"
            )

    @property
    def _size(self) -> tuple[int, int]:
        return (self.size, self.size) if isinstance(self.size, int) else self.size

    def sample(self, rng: np.random.Generator, height: int, width: int) -> CropResizeFlip:
        """Draw the view of an image of `height` by `width` pixels; never larger than `size`.

        Args:
            rng: source of the random numbers.
            height: height of the image in pixels.
            width: width of the image in pixels.

        Returns:
            The part of the image, the height and width it is resized to, and whether it is
            mirrored.
        """
        s = rng.uniform(*self.scale)
        fit = min(
            max(round(s * limit), 1) / side
            for limit, side in zip(self._size, (height, width), strict=True)
        )
        top, bottom, seen_height = _crop(rng, height, fit, self._size[0])
        left, right, seen_width = _crop(rng, width, fit, self._size[1])
        flip = self.flip and bool(rng.random() < 0.5)
        return CropResizeFlip((left, top, right, bottom), seen_height, seen_width, flip)


def _crop(rng: np.random.Generator, side: int, fit: float, limit: int) -> tuple[int, int, int]:
    """Along one side of the image: where the view starts and ends in it, and the view's pixels."""
    scaled = max(round(side * fit), 1)
    seen = min(scaled, limit)
    span = max(round(side * seen / scaled), 1)
    start = int(rng.integers(0, side - span, endpoint=True))
    return start, start + span, seen
