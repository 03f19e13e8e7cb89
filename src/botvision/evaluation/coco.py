"""COCO results and metrics."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from faster_coco_eval import COCO, COCOeval_faster
from faster_coco_eval import mask as coco_mask
from numpy.typing import NDArray
from torch import Tensor
from torchvision.models.detection.roi_heads import paste_masks_in_image

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
    pasted = paste_masks_in_image(mask[None], box[None], size)[0, 0] > 0.5
    rle = coco_mask.encode(np.asfortranarray(pasted.numpy().view(np.uint8)))
    return {"size": list(size), "counts": _text(rle["counts"])}


def _text(counts: bytes | str) -> str:
    return counts.decode("ascii") if isinstance(counts, bytes) else counts


def image_results(
    detection: Mapping[str, Tensor], image_id: int, scale: Tensor, size: tuple[int, int]
) -> list[dict[str, Any]]:
    """The detections of one image in COCO's result format, with labels for category ids.

    Masks are pasted and encoded one at a time, so memory holds one full-size mask.

    Args:
        detection: boxes (n, 4) xyxy in pixels of the image as the detector saw it, labels (n,),
            scores (n,), and masks (n, 1, 28, 28) for a segmentation model.
        image_id: of the annotation file.
        scale: (2,) what brings x and y of the seen image to the file's image.
        size: height and width of the file's image.
    """
    boxes = detection["boxes"].cpu().double() * scale.double().repeat(2)
    masks = detection["masks"].cpu() if "masks" in detection else None
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
