"""COCO results and metrics."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from contourpy import FillType, contour_generator
from faster_coco_eval import COCO, COCOeval_faster
from faster_coco_eval import mask as coco_mask
from numpy.typing import NDArray
from torch import Tensor
from torchvision.models.detection.roi_heads import expand_boxes, expand_masks

from botvision.data.rle import encode_patch
from botvision.evaluation.precision_recall import PrecisionRecall

Metrics = dict[str, Any]

_AREAS = {"s": 1, "m": 2, "l": 3}


def encode_mask(mask: Tensor, box: Tensor, size: tuple[int, int]) -> dict[str, Any]:
    """One mask of a detector as compressed RLE over the whole image.

    Args:
        mask: (1, 28, 28) probabilities inside the box.
        box: (4,) xyxy in pixels of the image.
        size: height and width of the image.
    """
    top, left, pasted = _paste(mask, box, size)
    return encode_patch(pasted > 0.5, top, left, size)


def mask_polygons(mask: Tensor, box: Tensor, size: tuple[int, int]) -> list[list[float]]:
    """One mask of a detector as COCO's polygons: its outer contours, without its holes.

    COCO's polygons cannot express a hole; RLE can. A contour runs where the probability between
    the pixels' centres is one half.

    Args:
        mask: (1, 28, 28) probabilities inside the box.
        box: (4,) xyxy in pixels of the image.
        size: height and width of the image.

    Returns:
        A list x, y, x, y, ... for each part, in pixels of the image, whose edges are 0 and the
        width or height; to a hundredth. No part where no probability is above one half.
    """
    top, left, pasted = _paste(mask, box, size)
    closed = np.pad(pasted, 1)
    height, width = closed.shape
    # Of the padded patch the first pixel's centre is half a pixel outside it.
    x, y = left - 0.5 + np.arange(width), top - 0.5 + np.arange(height)
    contours: Any = contour_generator(x, y, closed, fill_type=FillType.OuterOffset).filled(0.5, 2.0)
    limits = np.array(size[::-1])
    return [
        # The outer contour comes first, and its last point is its first.
        np.clip(points[: offsets[1] - 1], 0, limits).round(2).ravel().tolist()
        for points, offsets in zip(*contours, strict=True)
    ]


def _paste(
    mask: Tensor, box: Tensor, size: tuple[int, int]
) -> tuple[int, int, NDArray[np.float32]]:
    """Top and left in the image, and the probabilities there: what torchvision pastes.

    Its ``paste_masks_in_image`` gives the whole image, mostly zeros: of a large image hundreds of
    megabytes for every mask.
    """
    padded, scale = expand_masks(mask[None], 1)
    x0, y0, x1, y1 = expand_boxes(box[None], scale)[0].to(torch.int64).tolist()
    shape = (max(y1 - y0 + 1, 1), max(x1 - x0 + 1, 1))
    resized = F.interpolate(padded, size=shape, mode="bilinear", align_corners=False)[0, 0]
    left, right = max(x0, 0), min(x1 + 1, size[1])
    top, bottom = max(y0, 0), min(y1 + 1, size[0])
    return top, left, resized[top - y0 : bottom - y0, left - x0 : right - x0].float().numpy()


def image_results(
    detection: Mapping[str, Tensor], image_id: int, size: tuple[int, int]
) -> list[dict[str, Any]]:
    """The detections of one image in COCO's result format, with labels for category ids.

    Masks are pasted and encoded one at a time, so memory holds one at its full size.

    Args:
        detection: boxes (n, 4) xyxy in pixels of the image, labels (n,), scores (n,), and masks
            (n, 1, 28, 28) for a segmentation model; on the CPU.
        image_id: of the annotation file.
        size: height and width of the image.
    """
    boxes = detection["boxes"]
    masks = detection.get("masks")
    results = []
    for i, (label, score) in enumerate(
        zip(detection["labels"].tolist(), detection["scores"].tolist(), strict=True)
    ):
        left, top, right, bottom = boxes[i].tolist()
        result = {
            "image_id": image_id,
            "category_id": label,
            "bbox": [left, top, right - left, bottom - top],
            "score": score,
        }
        if masks is not None:
            result["segmentation"] = encode_mask(masks[i], boxes[i].float(), size)
        results.append(result)
    return results


def load_ground_truth(annotations: Path) -> COCO:
    """The annotation file, with the area and iscrowd that some writers leave out."""
    truth = COCO(json.loads(annotations.read_text(encoding="utf-8")))
    for annotation in truth.anns.values():
        annotation.setdefault("iscrowd", 0)
        if "area" in annotation:
            continue
        if annotation.get("segmentation"):
            annotation["area"] = float(coco_mask.area(truth.annToRLE(annotation)))
        else:
            annotation["area"] = annotation["bbox"][2] * annotation["bbox"][3]
    return truth


def coco_metrics(
    truth: COCO,
    results: list[dict[str, Any]],
    *,
    masks: bool,
    max_detections: int = 100,
    images: Sequence[int] | None = None,
) -> tuple[Metrics, dict[str, PrecisionRecall]]:
    """COCO's metrics of ``results`` against ``truth``, and the curves behind them.

    Args:
        truth: the annotations.
        results: COCO's result format, with the annotation file's category ids.
        masks: also ``segm``. Its size classes of unmatched detections go by box area, as
            pycocotools' ``loadRes`` has it for results with both boxes and masks.
        max_detections: kept an image, the best first (100 in COCO's definition).
        images: ids of the images that count; all by default.

    Returns:
        ``{"bbox": {"AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR<max>", "ARs",
        "ARm", "ARl"}, "segm": the same, "per_class": {name: {"bbox": {"AP", ..., "APl"}, ...}}}``,
        each in [0, 1], -1 where there is nothing to find; and the curves by the same kinds.
    """
    metrics: Metrics = {}
    curves: dict[str, PrecisionRecall] = {}
    per_class: dict[str, dict[str, dict[str, float]]] = {}
    detections = truth.loadRes(results)
    for kind in ("bbox", "segm") if masks else ("bbox",):
        evaluation = COCOeval_faster(truth, detections, kind, print_function=lambda *_: None)
        evaluation.params.maxDets = sorted({1, min(10, max_detections), max_detections})
        if images is not None:
            evaluation.params.imgIds = list(images)
        evaluation.evaluate()
        evaluation.accumulate()
        precision, recall = evaluation.eval["precision"], evaluation.eval["recall"]
        metrics[kind] = _precisions(precision) | _recalls(recall, evaluation.params.maxDets)
        names = [truth.cats[category]["name"] for category in evaluation.params.catIds]
        for k, name in enumerate(names):
            per_class.setdefault(name, {})[kind] = _precisions(precision[:, :, [k]])
        scores = evaluation.eval["scores"][:, :, :, 0, -1]
        curves[kind] = PrecisionRecall.of(names, precision[:, :, :, 0, -1], scores)
    metrics["per_class"] = per_class
    return metrics, curves


def _precisions(precision: NDArray[np.float64]) -> dict[str, float]:
    """From (IoU, recall, class, area, limit).

    IoU 0.50 to 0.95 in steps of 0.05; areas all, small, medium and large.
    """
    return {
        "AP": _mean(precision[:, :, :, 0, -1]),
        "AP50": _mean(precision[0, :, :, 0, -1]),
        "AP75": _mean(precision[5, :, :, 0, -1]),
        **{f"AP{a}": _mean(precision[:, :, :, i, -1]) for a, i in _AREAS.items()},
    }


def _recalls(recall: NDArray[np.float64], limits: list[int]) -> dict[str, float]:
    """From (IoU, class, area, limit)."""
    overall = {f"AR{n}": _mean(recall[:, :, 0, i]) for i, n in enumerate(limits)}
    return overall | {f"AR{a}": _mean(recall[:, :, i, -1]) for a, i in _AREAS.items()}


def _mean(values: NDArray[np.float64]) -> float:
    """Mean over what exists; COCO writes -1 where no object is to be found."""
    found = values[values > -1]
    return float(found.mean()) if found.size else -1.0
