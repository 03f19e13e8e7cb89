"""Accuracy and calibration of a classifier."""

from __future__ import annotations

import csv
import io
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torchmetrics import MeanMetric
from torchmetrics.classification import (
    MulticlassAccuracy,
    MulticlassCalibrationError,
    MulticlassConfusionMatrix,
)

from botvision.data.classification import ClassificationBatch
from botvision.evaluation.evaluator import Metrics
from botvision.files import make_folder, write_text
from botvision.terminal import cell

# Longer lists of classes are left to metrics.json.
_CLASSES_SHOWN = 20
_CALIBRATION_BINS = 15


class ClassificationEvaluator:
    """Accuracy and calibration of a classifier on a split, over all processes.

    ``metrics`` and ``confusion`` (true class, predicted class) hold the last pass. Metrics, as
    shares of one: ``top1``; ``top5``; ``loss``, the cross-entropy; ``calibration_error``, the
    expected one over 15 bins of confidence (Guo et al., 2017); ``per_class``, ``accuracy`` and
    ``images`` of each; and ``images_per_second`` of the whole loop, loading included.

    Args:
        classes: names in the order of the labels.
    """

    def __init__(self, classes: Sequence[str]) -> None:
        self.classes = classes
        count = len(classes)
        self.sums: dict[str, Any] = {
            "confusion": MulticlassConfusionMatrix(count),
            "top5": MulticlassAccuracy(count, top_k=min(5, count), average="micro"),
            "calibration_error": MulticlassCalibrationError(count, n_bins=_CALIBRATION_BINS),
            "loss": MeanMetric(),
        }
        self.metrics: Metrics = {}
        self.confusion = torch.zeros(count, count, dtype=torch.int64)
        self.started = 0.0

    @property
    def score(self) -> float:
        """Top-1 accuracy."""
        return float(self.metrics["top1"])

    def reset(self) -> None:
        """Forget the last pass."""
        for metric in self.sums.values():
            metric.reset()
        self.started = time.perf_counter()

    def update(self, predictions: Tensor, batch: ClassificationBatch) -> None:
        """Add the logits of a batch, see ``Evaluator``."""
        labels = batch[1].to(predictions.device)
        for metric in self.sums.values():
            metric.to(predictions.device)
        for name in ("confusion", "top5"):
            self.sums[name].update(predictions, labels)
        self.sums["calibration_error"].update(predictions.softmax(dim=-1), labels)
        self.sums["loss"].update(F.cross_entropy(predictions, labels), weight=len(labels))

    def compute(self) -> Metrics:
        """The metrics of the pass."""
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
        return self.metrics

    def report(self, folder: Path, console: Console) -> None:
        """Write ``confusion.csv``, print the tables."""
        write_confusion(folder, self.classes, self.confusion)
        print_classification_metrics(console, self.metrics)


def write_confusion(folder: Path, classes: Sequence[str], confusion: Tensor) -> Path:
    """Write ``confusion.csv``: a row for each true class, a column for each predicted one.

    Args:
        folder: folder of the file; made when missing.
        classes: names in the order of the labels.
        confusion: (C, C) counts, true class first.

    Returns:
        The path of the file.
    """
    make_folder(folder)
    text = io.StringIO()
    rows = csv.writer(text)
    rows.writerow(["true / predicted", *classes])
    rows.writerows([name, *row] for name, row in zip(classes, confusion.tolist(), strict=True))
    path = folder / "confusion.csv"
    write_text(path, text.getvalue())
    return path


def print_classification_metrics(console: Console, metrics: Metrics) -> None:
    """Print a table of the metrics, and one of the classes if they are few."""
    names = ("top1", "top5", "loss", "calibration_error", "images_per_second")
    formats = (".2%", ".2%", ".3f", ".3f", ".0f")
    table = Table()
    for name in ("top-1", "top-5", "loss", "calibration error", "images/s"):
        table.add_column(name, justify="right")
    table.add_row(*(format(metrics[n], f) for n, f in zip(names, formats, strict=True)))
    console.print(table, soft_wrap=False)
    classes = metrics["per_class"]
    if len(classes) > _CLASSES_SHOWN:
        return
    table = Table("class")
    for name in ("accuracy", "images"):
        table.add_column(name, justify="right")
    for name, values in classes.items():
        accuracy = f"{values['accuracy']:.1%}" if values["images"] else "-"
        table.add_row(cell(name), accuracy, str(values["images"]))
    console.print(table, soft_wrap=False)
