"""Conversion of pixels to 8-bit RGB."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from botvision.config import PixelRange
from botvision.errors import UserError

# Pixels that are scaled at once.
_CHUNK = 1 << 20
# Tags of TIFF: BitsPerSample and SampleFormat, which is 1 for unsigned integers.
_BITS, _SAMPLE_FORMAT = 258, 339


@dataclass(frozen=True)
class Pixels:
    """How the pixels of an image file become 8-bit RGB.

    8-bit images are not changed by ``range``. Grayscale values v of more than 8 bits become
    255 (v - low) / (high - low), rounded and clipped to 0 to 255. NaN becomes 0.

    Args:
        range: (low, high), the values that become 0 and 255. None stands for 0 to 65535 in images
            of integers and, in each image of floats, for 0 to 1, or 0 to 255 if a value is above 1.
        page: page of a multi-page file, such as a TIFF stack or an animated GIF, from 0.

    Raises:
        UserError: ``range`` is not an increasing pair of finite numbers, or ``page`` is negative.
    """

    range: PixelRange | None = None
    page: int = 0

    def __post_init__(self) -> None:
        if self.range is not None:
            low, high = self.range
            if not (math.isfinite(low) and math.isfinite(high) and low < high):
                raise UserError(
                    "must be two finite numbers, the first below the second",
                    parameter="pixel_range",
                    value=f"{low:g} {high:g}",
                )
        if self.page < 0:
            raise UserError("pages count from 0", parameter="page", value=self.page)

    def to_rgb(self, image: Image.Image) -> Image.Image:
        """Convert an image of any mode to RGB, or raise ValueError for one such as LAB."""
        if is_deep(image):
            return self._scaled(image)
        if image.mode == "P" and "transparency" in image.info:
            # Straight to RGB, Pillow warns that the transparency is lost, which is what is wanted.
            image = image.convert("RGBA")
        return image if image.mode == "RGB" else image.convert("RGB")

    def _scaled(self, image: Image.Image) -> Image.Image:
        rgb = Image.new("RGB", image.size)
        low, high = self.range or _default_range(image)
        for top, values in _strips(image):
            with np.errstate(all="ignore"):  # some NaN, and the largest floats minus others
                shares = (values.astype(np.float64) - low) / (high - low)
            shares = np.clip(np.nan_to_num(shares, nan=0.0), 0, 1)
            gray = Image.fromarray(np.rint(shares * 255).astype(np.uint8))
            rgb.paste(gray.convert("RGB"), (0, top))
        return rgb


def _default_range(image: Image.Image) -> PixelRange:
    if image.mode != "F":
        return 0, 65535
    return (0, 255) if any((values > 1).any() for _, values in _strips(image)) else (0, 1)


def _strips(image: Image.Image) -> Iterator[tuple[int, NDArray[Any]]]:
    """Yield the first row and the values of each strip, to avoid a copy of the whole image."""
    rows = max(1, _CHUNK // max(1, image.width))
    for top in range(0, image.height, rows):
        box = (0, top, image.width, min(top + rows, image.height))
        yield top, np.asarray(image.crop(box))


def is_deep(image: Image.Image) -> bool:
    """Return whether an image has more than 8 bits per pixel and channel, as integers or floats."""
    return image.mode in ("I", "F") or image.mode.startswith("I;16")


def as_unsigned(image: Image.Image) -> Image.Image:
    """Return a TIFF of unsigned 32-bit integers as floats, if Pillow reads values as negative."""
    tags = getattr(image, "tag_v2", {})
    if image.mode != "I" or tags.get(_BITS) != (32,) or tags.get(_SAMPLE_FORMAT, (1,)) != (1,):
        return image
    extrema: Any = image.getextrema()
    if extrema[0] >= 0:
        return image
    return Image.fromarray(np.asarray(image).view(np.uint32).astype(np.float32))
