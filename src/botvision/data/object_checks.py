"""Objects of a split that are probably wrong, although they can be used."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from faster_coco_eval import mask as coco_mask
from numpy.typing import NDArray

from botvision.data.coco import CocoData
from botvision.data.segmentations import ABSENT

# Least IoU of a box and the extent of its mask, unless their edges are this close, in pixels.
_FIT, _NEAR = 0.5, 2


def suspicious_objects(data: CocoData) -> Iterator[tuple[str, str, NDArray[np.int64]]]:
    """Find objects that are probably wrong.

    Args:
        data: the split.

    Yields:
        A kind of fault, its description, and the index of the image of each such object.
    """
    a = data.annotations
    yield from (
        ("left out", f"objects left out, {reason}", images)
        for reason, images in a.left_out_of.items()
    )
    images = a.image_of()
    rows = np.flatnonzero(~a.crowd)
    yield "outside", "boxes that reach out of their image", images[a.reaching_out]
    boxes = a.boxes[rows]
    small = (boxes[:, 2:] < 1).any(axis=1)
    yield "small", "boxes less than a pixel wide or high", images[rows[small]]
    keys = np.column_stack((images[rows], a.category_ids[rows], boxes))
    _, first = np.unique(keys, axis=0, return_index=True)
    repeated = np.setdiff1d(np.arange(len(rows)), first)
    yield "repeated", "objects with the class and box of another one", images[rows[repeated]]
    misfits = [row for row in rows.tolist() if _mask_iou(data, row, int(images[row])) < _FIT]
    yield "misfit", "boxes that do not fit the mask of their object", images[misfits]


def without_mask(data: CocoData) -> NDArray[np.int64]:
    """Index of the image of each object that has no mask."""
    a = data.annotations
    images: NDArray[np.int64] = a.image_of()[(a.masks == ABSENT) & ~a.crowd]
    return images


def _mask_iou(data: CocoData, row: int, image: int) -> float:
    """IoU of an object's box and the extent of its mask; 1 if it has none or is off by little."""
    a = data.annotations
    width, height = a.sizes[image].tolist()
    mask = a.segmentations.mask(row, height, width)
    if mask is None:
        return 1.0
    if isinstance(mask, list):
        points = np.concatenate([np.reshape(part, (-1, 2)) for part in mask])
        low, high = points.min(axis=0), points.max(axis=0)
    else:
        extent = coco_mask.toBbox(mask)
        low, high = extent[:2], extent[:2] + extent[2:]
    left, top, own_width, own_height = a.boxes[row]
    corner = np.array([left + own_width, top + own_height])
    edges = np.abs(np.concatenate((low - [left, top], high - corner)))
    if (edges <= _NEAR).all():
        return 1.0
    common = np.minimum(high, corner) - np.maximum(low, [left, top])
    overlap = float(np.prod(np.maximum(common, 0)))
    union = own_width * own_height + float(np.prod(high - low)) - overlap
    return overlap / union if union > 0 else 0.0


def box_sides(data: CocoData) -> NDArray[np.float64]:
    """Square roots of the areas of the objects' boxes, in pixels."""
    boxes = data.annotations.boxes[~data.annotations.crowd]
    sides: NDArray[np.float64] = np.sqrt(boxes[:, 2] * boxes[:, 3])
    return sides
