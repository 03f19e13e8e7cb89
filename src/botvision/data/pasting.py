"""A detector's 28x28 mask inside its box, as pixels of the image, as RLE and as polygons.

Of NumPy only, and of the pixels around the object only: torchvision's ``paste_masks_in_image``
makes the whole image, mostly zeros, which is hundreds of megabytes per mask of a large image.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from contourpy import FillType, contour_generator
from numpy.typing import NDArray

from botvision.data.rle import encode_patch

Floats = NDArray[np.floating[Any]]


def paste_mask(
    mask: Floats, box: Floats, size: tuple[int, int]
) -> tuple[int, int, NDArray[np.float32]]:
    """The probabilities of the pixels around an object, as torchvision pastes them.

    Args:
        mask: (28, 28) probabilities inside the box.
        box: (4,) xyxy in pixels of the image.
        size: height and width of the image.

    Returns:
        Top and left of a part of the image, and its (h, w) probabilities.
    """
    # A cell of zeros around the mask, so that the box grows by as much.
    padded: NDArray[np.float32] = np.pad(mask.astype(np.float32), 1)
    scale = np.float32(padded.shape[0] / mask.shape[0])
    x0, y0, x1, y1 = box.astype(np.float32)
    half_width, half_height = (x1 - x0) * np.float32(0.5), (y1 - y0) * np.float32(0.5)
    x, y = (x1 + x0) * np.float32(0.5), (y1 + y0) * np.float32(0.5)
    half_width, half_height = half_width * scale, half_height * scale
    left, right = int(x - half_width), int(x + half_width)
    top, bottom = int(y - half_height), int(y + half_height)
    rows = _bilinear(padded.shape[0], max(bottom - top + 1, 1))
    columns = _bilinear(padded.shape[1], max(right - left + 1, 1))
    first_row, first_column = max(top, 0), max(left, 0)
    rows = rows[first_row - top : max(min(bottom + 1, size[0]) - top, 0)]
    columns = columns[first_column - left : max(min(right + 1, size[1]) - left, 0)]
    pasted = np.asarray(rows @ padded @ columns.T, np.float32)
    return first_row, first_column, pasted


def _bilinear(length: int, resized: int) -> NDArray[np.float32]:
    """(resized, length): each row has the weights of the two cells that a pixel lies between."""
    step = np.float32(length / resized)
    centers = (np.arange(resized, dtype=np.float32) + np.float32(0.5)) * step - np.float32(0.5)
    centers = np.maximum(centers, 0)
    lower = centers.astype(int)
    upper = np.minimum(lower + 1, length - 1)
    weights = np.zeros((resized, length), np.float32)
    pixels = np.arange(resized)
    weights[pixels, upper] = centers - lower
    weights[pixels, lower] += 1 - (centers - lower)
    return weights


def encode_mask(mask: Floats, box: Floats, size: tuple[int, int]) -> dict[str, Any]:
    """The pixels whose probability is above one half, as compressed RLE over the whole image.

    Args:
        mask: (28, 28) probabilities inside the box.
        box: (4,) xyxy in pixels of the image.
        size: height and width of the image.

    Returns:
        COCO's RLE: ``size``, [height, width], and ``counts``, a str.
    """
    top, left, pasted = paste_mask(mask, box, size)
    return encode_patch(pasted > 0.5, top, left, size)


def mask_polygons(mask: Floats, box: Floats, size: tuple[int, int]) -> list[list[float]]:
    """The mask as COCO's polygons: its outer contours, without its holes.

    COCO's polygons cannot express a hole; RLE can. A contour runs where the probability between
    the pixels' centers is one half.

    Args:
        mask: (28, 28) probabilities inside the box.
        box: (4,) xyxy in pixels of the image.
        size: height and width of the image.

    Returns:
        A list x, y, x, y, ... for each part, in pixels of the image, whose edges are 0 and the
        width or height; to a hundredth. No part where no probability is above one half.
    """
    top, left, pasted = paste_mask(mask, box, size)
    closed = np.pad(pasted, 1)
    height, width = closed.shape
    # The first pixel of the padded patch has its center half a pixel outside of it.
    x, y = left - 0.5 + np.arange(width), top - 0.5 + np.arange(height)
    contours: Any = contour_generator(x, y, closed, fill_type=FillType.OuterOffset).filled(0.5, 2.0)
    limits = np.array(size[::-1])
    return [
        # The outer contour comes first, and its last point is its first.
        np.clip(points[: offsets[1] - 1], 0, limits).round(2).ravel().tolist()
        for points, offsets in zip(*contours, strict=True)
    ]
