"""Inference on whole images: all augmented views of an image, merged."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from PIL import Image
from torchvision.ops import batched_nms

from botvision.data.transforms import CropResizeFlip
from botvision.detection.detector import Detection, Detector
from botvision.detection.tta import TTA
from botvision.device import is_out_of_memory
from botvision.errors import UserError

# A box this close to the border of its tile, as a fraction of the tile's side, may be part of an
# object that the border cuts. The exact position of its edge is an estimate of the detector.
_BORDER = 1 / 64


def check_limits(score_threshold: float | None, max_detections: int | None) -> None:
    """Check settings of ``detect`` before any image is read.

    Raises:
        UserError: ``score_threshold`` is outside [0, 1], or ``max_detections`` is less than 1.
    """
    if score_threshold is not None and not 0 <= score_threshold <= 1:
        raise UserError(
            "give a number from 0 to 1", parameter="score_threshold", value=f"{score_threshold:g}"
        )
    if max_detections is not None and max_detections < 1:
        raise UserError("must be at least 1", parameter="max_detections", value=max_detections)


@torch.inference_mode()
def detect(
    detector: Detector,
    images: Sequence[Image.Image],
    *,
    score_threshold: float | None = None,
    max_detections: int | None = None,
    tta: TTA = TTA(),  # noqa: B008, it is frozen
    batch_size: int = 1,
) -> list[Detection]:
    """Detect objects in images. The detector is not changed.

    Detections of several views are merged by non-maximum suppression per class, at the detector's
    own threshold. A detection that touches the border of its tile inside the image is removed,
    because a neighboring tile or the whole image shows more of the object.

    Args:
        detector: a detector in eval mode.
        images: RGB images of any size.
        score_threshold: score that a detection must exceed. By default the detector's own.
        max_detections: maximum detections per view and per image. By default the detector's own.
        tta: test-time augmentation. By default the detector runs on the whole image only.
        batch_size: number of augmented views per batch.

    Returns:
        The detections of each image on the CPU, sorted by descending score: ``boxes`` (n, 4)
        float64, xyxy in pixels of the image, ``labels`` (n,) int64, ``scores`` (n,) float32 and,
        for a Mask R-CNN, ``masks`` (n, 1, 28, 28), probabilities inside the box in the precision of
        the model.

    Raises:
        UserError: ``score_threshold`` is outside [0, 1], ``max_detections`` is less than 1, or a
            scale requires a larger canvas than the backbone supports.
    """
    check_limits(score_threshold, max_detections)
    device = next(detector.parameters()).device
    own_size = detector.image_size
    found: list[list[Detection]] = [[] for _ in images]
    by_canvas: dict[int, list[tuple[int, CropResizeFlip]]] = {}
    for i, image in enumerate(images):
        for view in tta.views(*image.size, own_size):
            by_canvas.setdefault(_canvas_size(view, own_size), []).append((i, view))
    for canvas_size, views in by_canvas.items():
        for first in range(0, len(views), batch_size):
            batch = views[first : first + batch_size]
            pixels = [view.image(images[i]).to(device) for i, view in batch]
            try:
                detections: list[Detection] = detector(
                    pixels,
                    score_threshold=score_threshold,
                    max_detections=max_detections,
                    canvas_size=canvas_size,
                )
            except (RuntimeError, AssertionError) as error:
                if canvas_size == own_size or is_out_of_memory(error):
                    raise
                raise _canvas_error(canvas_size, own_size, error) from error
            for (i, view), detection in zip(batch, detections, strict=True):
                found[i].append(_in_image(detection, view, images[i].size))
    heads = detector.roi_heads
    limit = heads.detections_per_img if max_detections is None else max_detections
    return [_merged(parts, heads.nms_thresh, limit) for parts in found]


def _canvas_size(view: CropResizeFlip, own_size: int) -> int:
    """Return the detector's own size, or the next multiple of 64 for a larger view.

    A multiple of 32 is not enough: torchvision computes the stride of p6 as the canvas size divided
    by the number of its cells, rounded down.
    """
    side = max(view.height, view.width)
    return own_size if side <= own_size else -(-side // 64) * 64


def _canvas_error(canvas_size: int, own_size: int, error: Exception) -> UserError:
    reason = str(error).strip().partition("\n")[0]
    return UserError(
        f"the model does not run on {canvas_size}x{canvas_size} pixels instead of its "
        f"{own_size}x{own_size} ({reason}); give smaller scales",
        parameter="scales",
    )


def _in_image(detection: Detection, view: CropResizeFlip, size: tuple[int, int]) -> Detection:
    """Move a view's detections to pixels of the image, whose width and height are ``size``."""
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
    """Merge the detections of several views. Detections of a single view are not changed."""
    if len(parts) == 1:
        return parts[0]
    found = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    # In float64, because torchvision separates classes by adding large offsets to their boxes.
    best = batched_nms(found["boxes"], found["scores"].double(), found["labels"], nms_threshold)
    return {name: value[best[:limit]] for name, value in found.items()}
