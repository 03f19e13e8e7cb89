"""COCO evaluation inside Lightning's validation loop, in training and on its own."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import lightning as L
import torch
import torch.distributed
from lightning.pytorch import Callback

from botvision.data.categories import Categories
from botvision.data.coco import CocoData, EvalBatch
from botvision.evaluation.coco import Metrics, coco_metrics, image_results, load_ground_truth
from botvision.evaluation.labels import LabelMap
from botvision.evaluation.precision_recall import PrecisionRecall
from botvision.training.trainer import SCORE


class CocoEvaluator(Callback):
    """Collects detections over a validation run and computes COCO's metrics at its end.

    ``results``, ``metrics``, ``curves`` and ``step`` hold the last run's. In training
    ``on_metrics`` is called with the step, the metrics and whether their main AP is the best so
    far; the best survives a resume.
    """

    def __init__(
        self,
        data: CocoData,
        categories: Categories,
        *,
        masks: bool,
        max_detections: int,
        images: Sequence[int] | None = None,
        on_metrics: Callable[[int, Metrics, bool], None] | None = None,
    ) -> None:
        """Read the annotations of ``data``; ``categories`` are the model's.

        ``images`` are the ids of those that are evaluated, by default all of ``data``.
        """
        self.labels = LabelMap.between(categories, data)
        self.truth = load_ground_truth(data.annotations.file)
        self.masks = masks
        self.max_detections = max_detections
        self.images = images
        self.on_metrics = on_metrics
        self.best = -1.0
        self.results: list[dict[str, Any]] = []
        self.metrics: Metrics = {}
        self.curves: dict[str, PrecisionRecall] = {}
        self.step = -1

    def on_validation_epoch_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Forget the last run."""
        self.results = []

    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        module: L.LightningModule,
        outputs: Any,
        batch: EvalBatch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Bring a batch's detections to COCO's format."""
        for image, image_id, detection in zip(*batch, outputs["detections"], strict=True):
            for result in image_results(detection, image_id, (image.height, image.width)):
                category = self.labels.category_of.get(result["category_id"])
                if category is not None:
                    self.results.append({**result, "category_id": category})

    def on_validation_epoch_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Dtype the metrics, of what all processes found."""
        self.results = _gathered(self.results)
        self.metrics, self.curves = coco_metrics(
            self.truth,
            [dict(result) for result in self.results],
            masks=self.masks,
            max_detections=self.max_detections,
            images=self.images,
        )
        self.step = trainer.global_step
        ap = self.metrics["segm" if self.masks else "bbox"]["AP"]
        # Equal in all processes: a mean leaves it as it is.
        module.log(SCORE, ap, logger=False, sync_dist=True)
        best = ap > self.best
        self.best = max(self.best, ap)
        if self.on_metrics is not None:
            self.on_metrics(trainer.global_step, self.metrics, best)

    def state_dict(self) -> dict[str, Any]:
        """Keep the best AP in checkpoints."""
        return {"best": self.best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the best AP back from a checkpoint."""
        self.best = state_dict["best"]


def _gathered(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The results of all processes; each evaluated other images."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return results
    parts: list[list[dict[str, Any]]] = [[] for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather_object(parts, results)
    return list(itertools.chain(*parts))
