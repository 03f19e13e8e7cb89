"""COCO's metrics of a detector."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch.distributed
from faster_coco_eval import COCO, COCOeval_faster
from faster_coco_eval import mask as coco_mask
from numpy.typing import NDArray
from rich.console import Console
from torch import Tensor

from botvision.data.categories import Categories
from botvision.data.detection import DetectionData, EvalBatch
from botvision.data.pasting import encode_mask
from botvision.errors import UserError
from botvision.evaluation.evaluator import Metrics
from botvision.evaluation.labels import LabelMap
from botvision.evaluation.precision_recall import PrecisionRecall, write_precision_recall
from botvision.evaluation.report import print_metrics, write_results

_AREAS = {"s": 1, "m": 2, "l": 3}


class CocoEvaluator:
    """COCO's metrics of a detector on a split.

    ``results``, ``metrics`` and ``curves`` hold the last pass.

    Args:
        data: the split.
        categories: the model's, which the labels of its detections mean.
        masks: whether the model has masks.
        max_detections: maximum detections per image (100 in COCO's definition).
        image_ids: of the images that are evaluated; all by default.

    Raises:
        UserError: the model has masks and an object has none, or no class is common.
    """

    def __init__(
        self,
        data: DetectionData,
        categories: Categories,
        *,
        masks: bool,
        max_detections: int,
        image_ids: Sequence[int] | None = None,
    ) -> None:
        if masks and not data.has_masks:
            raise UserError(
                f"{data.name}: not every object has a mask ({data.unmasked}), which a segmentation "
                "model is evaluated by; add it, or use a detector of boxes"
            )
        self.labels = LabelMap.between(categories, data)
        self.truth = coco_ground_truth(data.ground_truth())
        self.masks, self.max_detections, self.image_ids = masks, max_detections, image_ids
        self.results: list[dict[str, Any]] = []
        self.metrics: Metrics = {}
        self.curves: dict[str, PrecisionRecall] = {}

    @property
    def score(self) -> float:
        """Mask AP, or box AP of a model without masks."""
        return float(self.metrics["segm" if self.masks else "bbox"]["AP"])

    def reset(self) -> None:
        """Forget the last pass."""
        self.results = []

    def update(self, predictions: Sequence[Mapping[str, Tensor]], batch: EvalBatch) -> None:
        """Add the detections of a batch, see ``Evaluator``."""
        for image, image_id, detection in zip(*batch, predictions, strict=True):
            for result in image_results(detection, image_id, (image.height, image.width)):
                category = self.labels.category_of.get(result["category_id"])
                if category is not None:
                    self.results.append({**result, "category_id": category})

    def compute(self) -> Metrics:
        """See ``coco_metrics``; over the detections of all processes."""
        self.results = _gathered(self.results)
        self.metrics, self.curves = coco_metrics(
            self.truth,
            self.results,
            masks=self.masks,
            max_detections=self.max_detections,
            image_ids=self.image_ids,
        )
        return self.metrics

    def report(self, folder: Path, console: Console) -> None:
        """Write ``results.json`` and ``precision_recall.csv``, print the tables."""
        write_results(folder, self.results)
        write_precision_recall(folder, self.curves)
        print_metrics(console, self.metrics)


def _gathered(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The results of all processes; each evaluated other images."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return results
    parts: list[list[dict[str, Any]]] = [[] for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather_object(parts, results)
    return list(itertools.chain(*parts))


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

    Returns:
        n dicts with ``image_id``, ``category_id``, ``bbox`` and ``score``, and with
        ``segmentation`` for a segmentation model. A ``bbox`` is [left, top, width, height] in
        pixels of the image, and a ``segmentation`` is a compressed RLE.
    """
    boxes = detection["boxes"]
    masks = detection["masks"][:, 0].float().numpy() if "masks" in detection else None
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
            result["segmentation"] = encode_mask(masks[i], boxes[i].numpy(), size)
        results.append(result)
    return results


@dataclass(frozen=True)
class GroundTruth:
    """Annotations as COCO's evaluation needs them: images, classes and objects numbered from 1.

    COCO's evaluation treats the id 0 as no object, and confuses ids beyond 2**53.
    """

    index: COCO
    image_of: dict[int, int]
    """Number of each image id."""
    category_of: dict[int, int]
    """Number of each category id."""


def coco_ground_truth(content: dict[str, Any]) -> GroundTruth:
    """Number the content of an annotation file, see ``DetectionData.ground_truth``.

    Args:
        content: ``images``, ``annotations`` and ``categories``. The ids of annotations are not
            used. An absent ``iscrowd`` is 0, an absent ``area`` is that of the mask or the box.

    Returns:
        The ground truth.
    """
    image_of = {image["id"]: k for k, image in enumerate(content["images"], start=1)}
    categories = sorted(content["categories"], key=lambda category: category["id"])
    category_of = {category["id"]: k for k, category in enumerate(categories, start=1)}
    annotations = [
        {
            **annotation,
            "id": k,
            "image_id": image_of[annotation["image_id"]],
            "category_id": category_of[annotation["category_id"]],
            "iscrowd": int(annotation.get("iscrowd", 0)),
        }
        for k, annotation in enumerate(content["annotations"], start=1)
    ]
    truth = COCO(
        {
            "images": [{**image, "id": image_of[image["id"]]} for image in content["images"]],
            "annotations": annotations,
            "categories": [{**c, "id": category_of[c["id"]]} for c in categories],
        }
    )
    for annotation in annotations:
        if "area" in annotation:
            continue
        if annotation.get("segmentation"):
            annotation["area"] = float(coco_mask.area(truth.annToRLE(annotation)))
        else:
            annotation["area"] = annotation["bbox"][2] * annotation["bbox"][3]
    return GroundTruth(truth, image_of, category_of)


def coco_metrics(
    truth: GroundTruth,
    results: list[dict[str, Any]],
    *,
    masks: bool,
    max_detections: int = 100,
    image_ids: Sequence[int] | None = None,
) -> tuple[Metrics, dict[str, PrecisionRecall]]:
    """COCO's metrics of ``results`` against ``truth``, and the curves behind them.

    Args:
        truth: the annotations.
        results: COCO's result format, with the image and category ids of the annotation file.
        masks: also ``segm``. Its size classes of unmatched detections go by box area, as
            pycocotools' ``loadRes`` has it for results with both boxes and masks.
        max_detections: maximum detections per image, the best first (100 in COCO's definition).
        image_ids: of the images that count; all by default.

    Returns:
        ``{"bbox": {"AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR<max>", "ARs",
        "ARm", "ARl"}, "segm": the same, "per_class": {name: {"bbox": {"AP", ..., "APl"}, ...}}}``,
        each in [0, 1], -1 where there is nothing to find; and the curves by the same kinds.
    """
    metrics: Metrics = {}
    curves: dict[str, PrecisionRecall] = {}
    per_class: dict[str, dict[str, dict[str, float]]] = {}
    # Copies, since loadRes writes into what it is given.
    numbered = [
        {
            **result,
            "image_id": truth.image_of[result["image_id"]],
            "category_id": truth.category_of[result["category_id"]],
        }
        for result in results
    ]
    detections = truth.index.loadRes(numbered)
    for kind in ("bbox", "segm") if masks else ("bbox",):
        evaluation = COCOeval_faster(truth.index, detections, kind, print_function=lambda *_: None)
        evaluation.params.maxDets = sorted({1, min(10, max_detections), max_detections})
        if image_ids is not None:
            evaluation.params.imgIds = [truth.image_of[image] for image in image_ids]
        evaluation.evaluate()
        evaluation.accumulate()
        precision, recall = evaluation.eval["precision"], evaluation.eval["recall"]
        metrics[kind] = _precisions(precision) | _recalls(recall, evaluation.params.maxDets)
        names = [truth.index.cats[category]["name"] for category in evaluation.params.catIds]
        for k, name in enumerate(names):
            per_class.setdefault(name, {})[kind] = _precisions(precision[:, :, [k]])
        scores = evaluation.eval["scores"][:, :, :, 0, -1]
        curves[kind] = PrecisionRecall.of(names, precision[:, :, :, 0, -1], scores)
    metrics["per_class"] = per_class
    return metrics, curves


def _precisions(precision: NDArray[np.float64]) -> dict[str, float]:
    """From (IoU, recall, class, area, limit).

    IoU 0.50 to 0.95 in steps of 0.05; areas all, small, medium and large.

    Returns:
        ``AP``, ``AP50``, ``AP75``, ``APs``, ``APm`` and ``APl`` at the highest limit, in [0, 1], or
        -1 where there are no objects.
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
