"""Bits, values and pages of the images of a data set, from a sample."""

from __future__ import annotations

import math
import os
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from botvision.config import PixelRange
from botvision.data.images import DECODE_ERRORS, open_stored
from botvision.data.pixels import Pixels, as_unsigned, is_deep

# Images of each file extension whose headers are read, images whose pixels are read, and pixels of
# each of them.
_HEADERS, _DECODED, _PER_IMAGE = 500, 100, 100_000
# The values between these percentiles become 0 to 255, so a few hot pixels do not darken the rest.
_PERCENTILES = (0.1, 99.9)
# Formats whose further pages are previews, or layers of the first page.
ONE_PICTURE = ("MPO", "PSD")


@runtime_checkable
class StoredImages(Protocol):
    """Data whose images are files, which ``pixels`` determines how to read."""

    pixels: Pixels

    def __len__(self) -> int:
        """Number of images."""

    def image_name(self, index: int) -> str:
        """The name of the image at ``index``, with the extension of its file."""

    def image_file(self, index: int) -> Path | BinaryIO:
        """The file of the image at ``index``, as a path or opened."""


@dataclass
class ImageFileList:
    """Image files by their paths, as ``StoredImages``."""

    files: Sequence[Path]
    pixels: Pixels

    def __len__(self) -> int:
        return len(self.files)

    def image_name(self, index: int) -> str:
        """The path."""
        return str(self.files[index])

    def image_file(self, index: int) -> Path:
        """The path."""
        return self.files[index]


@dataclass(frozen=True)
class PixelSurvey:
    """Contents of a sample of images.

    Args:
        images: number of images whose headers were read.
        integers: number of them that have integers of more than 8 bits.
        floats: number of them that have floats.
        pages: number of them that have several pages.
        colors16: number of them that have colors of 16 bits, which Pillow reads as 8 bits.
        range: the values at ``PERCENTILES``. None without images of more than 8 bits.
    """

    images: int
    integers: int
    floats: int
    pages: int
    colors16: int
    range: PixelRange | None

    def notices(self, pixels: Pixels) -> list[str]:
        """Describe in a line each what a user should know of images that are read as ``pixels``."""
        lines = []
        kinds = [
            f"{count} of {self.images} sampled images have {kind}"
            for count, kind in (
                (self.integers, "integers of more than 8 bits"),
                (self.floats, "floats"),
            )
            if count
        ]
        if self.range is not None:
            lines.append(f"{' and '.join(kinds)}; {self._scaling(self.range, pixels)}")
        if self.colors16:
            lines.append(
                f"{self.colors16} of {self.images} sampled images have colors of 16 bits, of which "
                "Pillow reads the upper 8"
            )
        if self.pages:
            lines.append(
                f"{self.pages} of {self.images} sampled images have several pages; page "
                f"{pixels.page} is used, counted from 0 (`page`)"
            )
        return lines

    def _scaling(self, used: PixelRange, pixels: Pixels) -> str:
        low, high = used
        narrow = ""
        if not self.floats and high - low < 65536 / 4:
            narrow = f" ({high - low + 1:.0f} of 65536 levels)"
        values = f"{low:g} to {high:g}{narrow}"
        if pixels.range is None:
            return (
                f"they use {values}; without a pixel range integers are read as 0 to 65535, "
                "and floats as 0 to 1 or 0 to 255 (`pixel_range`)"
            )
        if pixels.range == used:
            return f"their values {values} become 0 to 255 (`pixel_range`)"
        given = " to ".join(f"{value:g}" for value in pixels.range)
        return f"they use {values}, and {given} become 0 to 255 (`pixel_range`)"


def survey_pixels(data: StoredImages, page: int = 0, *, decoded: int = _DECODED) -> PixelSurvey:
    """Read a sample of the images, the same in every call.

    The headers of up to 500 images of each file extension are read, evenly spaced, and up to
    100,000 pixels of each of up to ``decoded`` images with more than 8 bits. Their range is from
    the 0.1 to the 99.9 percentile of these pixels, or the whole range if the two are equal.

    Args:
        data: the images.
        page: page of multi-page files.
        decoded: number of images whose pixels are read.

    Returns:
        What they contain. Images that cannot be read are left out.
    """
    of_extension: defaultdict[str, list[int]] = defaultdict(list)
    for index in range(len(data)):
        extension = os.path.splitext(data.image_name(index))[1]  # noqa: PTH122, not always a path
        of_extension[extension.lower()].append(index)
    headers = [
        (index, header)
        for indices in of_extension.values()
        for index in _spread(indices, _HEADERS)
        if (header := _header(data.image_file(index), page)) is not None
    ]
    deep = [index for index, header in headers if header.is_deep]
    return PixelSurvey(
        images=len(headers),
        integers=sum(header.is_deep and not header.is_float for _, header in headers),
        floats=sum(header.is_float for _, header in headers),
        pages=sum(header.has_pages for _, header in headers),
        colors16=sum(header.has_16_bit_colors for _, header in headers),
        range=_range([_values(data.image_file(index), page) for index in _spread(deep, decoded)]),
    )


@dataclass(frozen=True)
class _Header:
    is_deep: bool
    is_float: bool
    has_pages: bool
    has_16_bit_colors: bool


def _header(file: Path | BinaryIO, page: int) -> _Header | None:
    """Read what an image is; None if it cannot be read."""
    if isinstance(file, Path) and not file.is_file():
        return None
    try:
        with open_stored(file, page) as image:
            pages = image.format not in ONE_PICTURE and getattr(image, "is_animated", False)
            colors = image.mode.startswith(("RGB", "LA", "CMYK"))
            return _Header(
                is_deep(image),
                image.mode == "F",
                pages,
                colors and ";16" in str(getattr(image, "tile", "")),
            )
    except DECODE_ERRORS:
        return None


def _values(file: Path | BinaryIO, page: int) -> NDArray[np.float64]:
    """Return finite values of an image of more than 8 bits; none if it cannot be read."""
    try:
        with open_stored(file, page) as image:
            share = math.sqrt(_PER_IMAGE / (image.width * image.height))
            size = [max(1, round(side * min(1.0, share))) for side in image.size]
            # A grid of pixels as they are, without a copy of all.
            grid = as_unsigned(image).resize((size[0], size[1]), Image.Resampling.NEAREST)
            values = np.asarray(grid).reshape(-1)
    except DECODE_ERRORS:
        return np.empty(0)
    finite: NDArray[np.float64] = values[np.isfinite(values)].astype(np.float64)
    return finite


def _range(values: list[NDArray[np.float64]]) -> PixelRange | None:
    pooled = np.concatenate([np.empty(0), *values])
    if not pooled.size:
        return None
    for percentiles in (_PERCENTILES, (0, 100)):
        # Values that occur, so that integers stay integers.
        low, high = np.percentile(pooled, percentiles, method="nearest").tolist()
        if low < high:
            return low, high
    return low, low + 1


def _spread(items: Sequence[int], count: int) -> Sequence[int]:
    """Return at most ``count`` items, evenly spaced."""
    return [items[k * len(items) // count] for k in range(count)] if len(items) > count else items
