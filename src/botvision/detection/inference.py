"""What a detector finds in whole images: every view of them, brought together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torchvision.models.detection import FasterRCNN
from torchvision.ops import batched_nms

from botvision.data.transforms import CropResizeFlip
from botvision.detection.tta import TTA
from botvision.errors import UserError

Detection = dict[str, Tensor]

# A box within this share of its tile's side of the tile's border may be the rest of an object that
# the border cuts: where exactly its edge lies is the detector's guess.
_BORDER = 1 / 64


def limit_detections(
    detector: FasterRCNN, score_threshold: float, max_detections: int | None
) -> None:
    """Set from which score on, and how many, detections are kept of an image and of each view.

    Raises:
        UserError: a threshold outside [0, 1], or less than one detection; None leaves the
            detector's own number.
    """
    if not 0 <= score_threshold <= 1:
        raise UserError(f"--score-threshold {score_threshold:g}: give a number from 0 to 1")
    if max_detections is not None:
        if max_detections < 1:
            raise UserError(f"--max-detections {max_detections}: give at least 1")
        detector.roi_heads.detections_per_img = max_detections
    detector.roi_heads.score_thresh = score_threshold


@torch.inference_mode()
def detect(
    detector: FasterRCNN,
    images: Sequence[Image.Image],
    views: TTA,
    *,
    batch_size: int = 1,
) -> list[Detection]:
    """What is found in each image, the best first.

    The findings of several views go through one more non-maximum suppression, class by class, at
    the detector's own threshold. Of a tile those are left out that touch one of its borders inside
    the image: a neighbour or the whole image shows more of the object.

    Args:
        detector: in eval mode. How many detections it keeps of an image, and from which score on,
            holds for each view and for what they give together.
        images: RGB, of any size.
        views: how each image is looked at.
        batch_size: views that are on the device at once.

    Returns:
        For each image, on the CPU, ``boxes`` (n, 4) float64, xyxy in pixels of the image,
        ``labels`` (n,) int64, ``scores`` (n,) float32, and of a segmentation model ``masks``
        (n, 1, 28, 28), probabilities inside the box in the precision that the model ran in.

    Raises:
        UserError: the backbone takes no larger canvas than its own, which a scale calls for.
    """
    device = next(detector.parameters()).device
    found: list[list[Detection]] = [[] for _ in images]
    seen = [(i, view) for i, image in enumerate(images) for view in views.of(*image.size)]
    by_canvas: dict[int, list[tuple[int, CropResizeFlip]]] = {}
    for i, view in seen:
        by_canvas.setdefault(_canvas(detector, view), []).append((i, view))
    for canvas, group in by_canvas.items():
        for first in range(0, len(group), batch_size):
            batch = group[first : first + batch_size]
            pixels = [view.image(images[i]).to(device) for i, view in batch]
            for (i, view), detection in zip(batch, _run(detector, pixels, canvas), strict=True):
                found[i].append(_in_image(detection, view, images[i].size))
    heads = detector.roi_heads
    return [_merged(parts, heads.nms_thresh, heads.detections_per_img) for parts in found]


def _canvas(detector: FasterRCNN, view: CropResizeFlip) -> int:
    """The detector's own canvas, or the next multiple of 64 on which a larger view lies.

    Of 64, not 32: torchvision takes p6's stride for the canvas over its cells, rounded down.
    """
    own: int = detector.transform.size
    side = max(view.height, view.width)
    return own if side <= own else -(-side // 64) * 64


def _run(detector: FasterRCNN, pixels: list[Tensor], canvas: int) -> list[Detection]:
    transform: Any = detector.transform
    own = transform.size
    transform.size = canvas
    try:
        detections: list[Detection] = detector(pixels)
    except (RuntimeError, AssertionError) as error:
        if canvas == own:
            raise
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"--scales: the model does not run on {canvas}x{canvas} pixels instead of its "
            f"{own}x{own} ({reason}); give smaller scales"
        ) from error
    finally:
        transform.size = own
    return detections


def _in_image(detection: Detection, view: CropResizeFlip, size: tuple[int, int]) -> Detection:
    """A view's detections in pixels of the image, whose width and height are ``size``."""
    found = {name: value.cpu() for name, value in detection.items()}
    boxes = found["boxes"].double()
    if view.flip:
        x0, y0, x1, y1 = boxes.unbind(1)
        boxes = torch.stack([view.width - x1, y0, view.width - x0, y1], dim=1)
        if "masks" in found:
            found["masks"] = found["masks"].flip(-1)
    left, top, right, bottom = view.box
    scale = torch.tensor([right - left, bottom - top]) / torch.tensor([view.width, view.height])
    found["boxes"] = boxes * scale.double().repeat(2) + torch.tensor([left, top]).repeat(2)
    margin = _BORDER * max(right - left, bottom - top)
    inner = torch.tensor([left > 0, top > 0, right < size[0], bottom < size[1]])
    if not inner.any():
        return found
    near = (found["boxes"] - torch.tensor(view.box)).abs() <= margin
    whole = ~(near & inner).any(dim=1)
    return {name: value[whole] for name, value in found.items()}


def _merged(parts: list[Detection], nms_threshold: float, limit: int) -> Detection:
    """Several views' detections as one; those of a single view as they are."""
    if len(parts) == 1:
        return parts[0]
    found = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    # In float64: torchvision tells classes apart by moving them far away from each other.
    best = batched_nms(found["boxes"], found["scores"].double(), found["labels"], nms_threshold)
    return {name: value[best[:limit]] for name, value in found.items()}
