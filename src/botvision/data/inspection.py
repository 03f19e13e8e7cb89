"""One pass over the images of a split: what can be read, and what is identical."""

from __future__ import annotations

import contextlib
import hashlib
import os
import warnings
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from PIL import Image

from botvision.data.detection import DetectionData
from botvision.data.images import DECODE_ERRORS, open_stored
from botvision.data.pixel_survey import ONE_PICTURE
from botvision.data.pixels import as_unsigned, is_deep
from botvision.errors import UserError


@dataclass(frozen=True)
class ImageFacts:
    """Size, pixels and hash of one image."""

    name: str
    error: str | None
    """Why it cannot be used, in one line without its name; None if it can."""
    size: tuple[int, int] = (0, 0)
    """Width and height in pixels."""
    mode: str = ""
    """Pillow's mode of the stored pixels."""
    deep: bool = False
    """Whether the stored pixels have more than 8 bits."""
    low: float = 0.0
    high: float = 0.0
    """The least and the greatest stored value of any channel."""
    contrast: float = 0.0
    """The greatest difference between two values of one channel."""
    pages: int = 1
    digest: bytes = b""
    """Hash of the decoded pixels: equal for identical images, whatever their files are."""


def inspect(data: Any, index: int) -> ImageFacts:
    """Read one image of a split as training does, which may fail.

    Args:
        data: a ``DetectionData`` or ``ClassificationData``. If it has ``image_file``, the stored
            pixels are inspected, else the RGB image.
        index: index of the image.

    Returns:
        The facts of the image.
    """
    name = data.image_name(index) if hasattr(data, "image_name") else f"image {index}"
    file = data.image_file(index) if hasattr(data, "image_file") else None
    try:
        image = data.image(index) if isinstance(data, DetectionData) else data[index][0]
    except UserError as error:
        reason = str(error).removeprefix(f"{file}: ").removeprefix(f"{name}: ")
        return ImageFacts(name, reason.replace(f" '{file}'", ""))
    stored, mode, pages = image, image.mode, 1
    if file is not None:
        with contextlib.suppress(*DECODE_ERRORS), open_stored(file) as opened:
            mode = opened.mode
            pages = 1 if opened.format in ONE_PICTURE else getattr(opened, "n_frames", 1)
            if is_deep(opened):
                opened.load()
                stored = as_unsigned(opened).copy()
    digest = hashlib.blake2b(f"{stored.mode} {image.size}".encode(), digest_size=16)
    digest.update(stored.tobytes())
    channels = _extrema(stored)
    return ImageFacts(
        name,
        error=None,
        size=image.size,
        mode=mode,
        deep=is_deep(stored),
        low=min(low for low, _ in channels),
        high=max(high for _, high in channels),
        contrast=max(high - low for low, high in channels),
        pages=pages,
        digest=digest.digest(),
    )


def _extrema(image: Image.Image) -> list[tuple[float, float]]:
    """The least and the greatest finite value of each channel."""
    if is_deep(image):
        values = np.asarray(image)
        finite = values[np.isfinite(values)]
        return [(float(finite.min()), float(finite.max()))] if finite.size else [(0.0, 0.0)]
    extrema: Any = image.getextrema()
    return list(extrema) if isinstance(extrema[0], tuple) else [extrema]


def inspect_all(data: Any, workers: int = -1) -> Iterator[ImageFacts]:
    """Read all images of a split, several at a time.

    Args:
        data: a ``DetectionData`` or ``ClassificationData``.
        workers: number of threads. -1 selects it automatically.

    Yields:
        The facts of each image, in order.
    """
    threads = workers if workers > 0 else min(8, os.cpu_count() or 1)
    # `open_stored` changes the filters of warnings, which all threads share.
    with warnings.catch_warnings(), ThreadPoolExecutor(threads) as pool:
        yield from pool.map(partial(inspect, data), range(len(data)))


def identical(facts: Iterable[ImageFacts]) -> list[list[int]]:
    """Groups of at least two indices of identical images, the first ones first."""
    groups: dict[bytes, list[int]] = {}
    for index, image in enumerate(facts):
        if image.error is None:
            groups.setdefault(image.digest, []).append(index)
    return [group for group in groups.values() if len(group) > 1]
