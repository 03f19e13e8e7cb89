"""Accuracy and calibration of a classifier inside Lightning's validation loop."""

from __future__ import annotations

import csv
import io
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from lightning.pytorch import Callback
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torchmetrics import MeanMetric
from torchmetrics.classification import (
    MulticlassAccuracy,
    MulticlassCalibrationError,
    MulticlassConfusionMatrix,
)

from botvision.data.image_folder import ClassificationBatch
from botvision.files import write_text
from botvision.training.trainer import SCORE

Metrics = dict[str, Any]

# Longer lists of classes are left to metrics.json.
_CLASSES_SHOWN = 20
_CALIBRATION_BINS = 15


class ClassificationEvaluator(Callback):
    """Sums up a validation run, over all processes, and computes the metrics at its end.

    ``metrics``, ``confusion`` (true class, predicted class) and ``step`` hold the last run's. In
    training ``on_metrics`` is called with the step, the metrics and whether their top-1 is the best
    so far; the best survives a resume. Metrics, as shares of one: ``top1``; ``top5``; ``loss``, the
    cross-entropy; ``calibration_error``, the expected one over 15 bins of confidence (Guo et al.,
    2017); ``per_class``, ``accuracy`` and ``images`` of each; and ``images_per_second`` of the
    whole loop, loading included.
    """

    def __init__(
        self,
        classes: Sequence[str],
        *,
        on_metrics: Callable[[int, Metrics, bool], None] | None = None,
    ) -> None:
        """Take the classes in the order of the labels."""
        self.classes = classes
        self.on_metrics = on_metrics
        count = len(classes)
        self.sums: dict[str, Any] = {
            "confusion": MulticlassConfusionMatrix(count),
            "top5": MulticlassAccuracy(count, top_k=min(5, count), average="micro"),
            "calibration_error": MulticlassCalibrationError(count, n_bins=_CALIBRATION_BINS),
            "loss": MeanMetric(),
        }
        self.best = -1.0
        self.metrics: Metrics = {}
        self.confusion = torch.zeros(count, count, dtype=torch.int64)
        self.step = -1
        self.started = 0.0

    def on_validation_epoch_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Forget the last run."""
        for metric in self.sums.values():
            metric.to(module.device)
            metric.reset()
        self.started = time.perf_counter()

    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        module: L.LightningModule,
        outputs: Any,
        batch: ClassificationBatch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Add a batch's logits."""
        logits: Tensor = outputs
        labels = batch[1].to(logits.device)
        for name in ("confusion", "top5"):
            self.sums[name].update(logits, labels)
        self.sums["calibration_error"].update(logits.softmax(dim=-1), labels)
        self.sums["loss"].update(F.cross_entropy(logits, labels), weight=len(labels))

    def on_validation_epoch_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Dtype the metrics."""
        values = {name: metric.compute().cpu() for name, metric in self.sums.items()}
        self.confusion = confusion = values.pop("confusion")
        images, right = confusion.sum(dim=1), confusion.diag()
        total = int(images.sum())
        self.metrics = {
            "top1": int(right.sum()) / total,
            **{name: float(value) for name, value in values.items()},
            "images_per_second": total / (time.perf_counter() - self.started),
            "per_class": {
                name: {"accuracy": int(right[k]) / max(1, int(images[k])), "images": int(images[k])}
                for k, name in enumerate(self.classes)
            },
        }
        self.step = trainer.global_step
        # Equal in all processes: a mean leaves it as it is.
        module.log(SCORE, self.metrics["top1"], logger=False, sync_dist=True)
        best = self.metrics["top1"] > self.best
        self.best = max(self.best, self.metrics["top1"])
        if self.on_metrics is not None:
            self.on_metrics(trainer.global_step, self.metrics, best)

    def state_dict(self) -> dict[str, Any]:
        """Keep the best accuracy in checkpoints."""
        return {"best": self.best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the best accuracy back from a checkpoint."""
        self.best = state_dict["best"]


def write_confusion(folder: Path, classes: Sequence[str], confusion: Tensor) -> Path:
    """Write ``confusion.csv``: a row for each true class, a column for each predicted one."""
    folder.mkdir(parents=True, exist_ok=True)
    text = io.StringIO()
    rows = csv.writer(text)
    rows.writerow(["true / predicted", *classes])
    rows.writerows([name, *row] for name, row in zip(classes, confusion.tolist(), strict=True))
    path = folder / "confusion.csv"
    write_text(path, text.getvalue())
    return path


def print_class_metrics(console: Console, metrics: Metrics) -> None:
    """Print a table of the metrics, and one of the classes if they are few."""
    names = ("top1", "top5", "loss", "calibration_error", "images_per_second")
    formats = (".2%", ".2%", ".3f", ".3f", ".0f")
    table = Table()
    for name in ("top-1", "top-5", "loss", "calibration error", "images/s"):
        table.add_column(name, justify="right")
    table.add_row(*(format(metrics[n], f) for n, f in zip(names, formats, strict=True)))
    console.print(table)
    classes = metrics["per_class"]
    if len(classes) > _CLASSES_SHOWN:
        return
    table = Table("class")
    for name in ("accuracy", "images"):
        table.add_column(name, justify="right")
    for name, values in classes.items():
        accuracy = f"{values['accuracy']:.1%}" if values["images"] else "-"
        table.add_row(name, accuracy, str(values["images"]))
    console.print(table)
