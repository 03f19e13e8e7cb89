"""A crop, resize and flip of an image with its boxes and masks."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, reduce
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from faster_coco_eval import mask as coco_mask
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor

from botvision.data.masks import Masks
from botvision.data.rle import decode_columns

# Polygons as lists of x, y, x, y, ... in pixels, or COCO's compressed RLE.
Segmentation = list[list[float]] | dict[str, Any]
# Top and left in the view, and the uint8 (h, w) mask of that part of it.
_Patch = tuple[int, int, NDArray[np.uint8]]


@dataclass(frozen=True)
class CropResizeFlip:
    """The part of an image that is seen, the size it is seen at, and whether it is mirrored.

    Coordinates are those of pixel edges: an image of width w spans 0 to w.
    """

    box: tuple[int, int, int, int]
    """Left, top, right and bottom of the part that is seen, in pixels of the image."""
    height: int
    width: int
    flip: bool = False

    @classmethod
    def fit(cls, width: int, height: int, size: int) -> "CropResizeFlip":
        """The whole image of `width` by `height` pixels, its longer side resized to `size`.

        Args:
            width: width of the image in pixels.
            height: height of the image in pixels.
            size: longer side of the view in pixels.

        Returns:
            The view, with the aspect ratio of the image, not mirrored.
        """
        return cls.resized((0, 0, width, height), size / max(width, height))

    @classmethod
    def resized(
        cls, box: tuple[int, int, int, int], scale: float, flip: bool = False
    ) -> "CropResizeFlip":
        """The part `box` of an image, each side `scale` times its length, a pixel at least.

        Args:
            box: left, top, right and bottom in pixels of the image.
            scale: pixels of the view per pixel of the image.
            flip: whether the view is mirrored.

        Returns:
            The view, whose sides are rounded to whole pixels.
        """
        left, top, right, bottom = box
        height, width = (max(1, round(side * scale)) for side in (bottom - top, right - left))
        return cls(box, height, width, flip)

    @cached_property
    def _origin(self) -> NDArray[np.float64]:
        return np.array(self.box[:2])

    @cached_property
    def _scale(self) -> NDArray[np.float64]:
        left, top, right, bottom = self.box
        return np.array([self.width / (right - left), self.height / (bottom - top)])

    def image(self, image: Image.Image) -> Tensor:
        """Crop, resize and flip an RGB image, bilinear with anti-aliasing.

        The values are Pillow's; torch computes them several times as fast, in channels-last memory,
        in which pictures come.

        Args:
            image: the whole image.

        Returns:
            The view, uint8 (3, height, width), channels-last.
        """
        cropped = pil_to_tensor(image.crop(self.box))
        if self.flip:
            cropped = cropped.flip(-1)
        # A batch with the strides of channels-last memory, which `cropped[None]` has not.
        batch = cropped.permute(1, 2, 0)[None].permute(0, 3, 1, 2)
        size = (self.height, self.width)
        return F.interpolate(batch, size, mode="bilinear", antialias=True)[0]

    def boxes(self, boxes: NDArray[np.float64]) -> NDArray[np.float64]:
        """Boxes (n, 4), xyxy in pixels of the image, as xyxy in pixels of the view, clipped."""
        seen = (boxes.reshape(-1, 2, 2) - self._origin) * self._scale
        seen = np.clip(seen, 0, [self.width, self.height]).reshape(-1, 4)
        if self.flip:
            seen[:, [0, 2]] = self.width - seen[:, [2, 0]]
        return seen

    def masks(self, segmentations: Sequence[Segmentation]) -> tuple[Masks, NDArray[np.bool_]]:
        """Masks of the view, m of them, and which of the n segmentations they are.

        Polygons are moved as coordinates and drawn at the size of the view; RLEs are decoded and
        resized one at a time around the object, bilinearly, and cut at one half.

        Args:
            segmentations: n polygons or RLEs in pixels of the image.

        Returns:
            The m masks, and a bool array (n,). It is False for a segmentation with no pixel in the
            view, whose mask is left out.
        """
        patches = [
            self._polygon_patch(s) if isinstance(s, list) else self._rle_patch(s)
            for s in segmentations
        ]
        crops, pixels = [], [np.empty(0, np.uint8)]
        for top, left, patch in filter(None, patches):
            height, width = patch.shape
            crops.append((top, self.width - left - width if self.flip else left, height, width))
            pixels.append((patch[:, ::-1] if self.flip else patch).T.ravel())
        masks = Masks(
            torch.from_numpy(np.concatenate(pixels)), tuple(crops), self.height, self.width
        )
        return masks, np.array([patch is not None for patch in patches], dtype=np.bool_)

    def _polygon_patch(self, parts: list[list[float]]) -> _Patch | None:
        points = [(np.reshape(p, (-1, 2)) - self._origin) * self._scale for p in parts]
        # On the whole view: moved to a smaller canvas, a point may be rounded to another pixel.
        rles = coco_mask.frPyObjects([p.ravel().tolist() for p in points], self.height, self.width)
        boxes = coco_mask.toBbox(rles).astype(int)
        boxes = boxes[boxes[:, 2] > 0]
        if not len(boxes):
            return None
        left, top = boxes[:, :2].min(axis=0)
        right, bottom = (boxes[:, :2] + boxes[:, 2:]).max(axis=0)
        # The library's own union of parts takes longer than the rest of this.
        drawn = [decode_columns(rle, left, right)[top:bottom] for rle in rles]
        return int(top), int(left), reduce(np.bitwise_or, drawn)

    def _rle_patch(self, rle: dict[str, Any]) -> _Patch | None:
        bounds = coco_mask.toBbox(rle)
        low, high = bounds[:2], bounds[:2] + bounds[2:]
        # The pixels of the view that the object's bounding box touches.
        first = np.maximum(np.floor((low - self._origin) * self._scale), 0)
        last = np.minimum(np.ceil((high - self._origin) * self._scale), [self.width, self.height])
        if (first >= last).any():
            return None
        image_size = np.array(rle["size"][::-1])
        start = first / self._scale + self._origin
        stop = np.minimum(last / self._scale + self._origin, image_size)
        # The filter reaches this far beyond the pixels that it resizes.
        reach = np.maximum(1, 1 / self._scale)
        x0, y0 = np.maximum(np.floor(start - reach), 0).astype(int).tolist()
        x1, y1 = np.minimum(np.ceil(stop + reach), image_size).astype(int).tolist()
        piece = Image.fromarray(decode_columns(rle, x0, x1)[y0:y1] * np.uint8(255))
        resized = piece.resize(
            (last - first).astype(int).tolist(),
            Image.Resampling.BILINEAR,
            box=(start[0] - x0, start[1] - y0, stop[0] - x0, stop[1] - y0),
        )
        patch = (np.asarray(resized) >= 128).astype(np.uint8)
        return (int(first[1]), int(first[0]), patch) if patch.any() else None


def fit_image(image: Image.Image, size: int) -> Tensor:
    """Resize so that the longer side has `size` pixels: uint8 (3, h, w)."""
    return CropResizeFlip.fit(*image.size, size).image(image)
