"""Precision over recall: the curves that COCO's AP is the mean of."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from botvision.files import make_folder, write_text

RECALLS = np.linspace(0, 1, 101)
# Of COCO's ten thresholds, 0.50 to 0.95, those that a curve is the mean over.
IOUS = {"0.50": slice(0, 1), "0.75": slice(5, 6), "0.50:0.95": slice(0, 10)}
MEAN = "(mean)"


@dataclass(frozen=True)
class PrecisionRecall:
    """Of boxes or of masks: objects of all sizes, at the highest limit of detections per image.

    As COCO has it, the precision at a recall is the best at that recall or a higher one, and 0
    where the recall is not reached.
    """

    classes: tuple[str, ...]
    """Those that the data has objects of."""
    precision: NDArray[np.float64]
    """(10, 101, classes): IoU thresholds, recalls."""
    scores: NDArray[np.float64]
    """Likewise: the score of the detection that reaches the recall; 0 where none does."""

    @classmethod
    def of(
        cls, names: list[str], precision: NDArray[np.float64], scores: NDArray[np.float64]
    ) -> PrecisionRecall:
        """From arrays like the attributes, of all classes, with -1 for one without objects.

        Args:
            names: names of all classes.
            precision: (10, 101, all classes): IoU thresholds, recalls.
            scores: (10, 101, all classes): the scores at these recalls.

        Returns:
            The curves of the classes that the data has objects of.
        """
        there = precision[0, 0] > -1
        classes = tuple(name for name, has in zip(names, there, strict=True) if has)
        return cls(classes, precision[:, :, there], scores[:, :, there])

    def mean(self, iou: str) -> NDArray[np.float64]:
        """The precision's mean over the classes; its own mean is their AP.

        Args:
            iou: a key of ``IOUS``.

        Returns:
            (101,) float64, one value per recall in ``RECALLS``.
        """
        return np.asarray(self.precision[IOUS[iou]].mean(axis=(0, 2)))

    def of_class(self, iou: str, index: int) -> NDArray[np.float64]:
        """(101,): the precision of one class, by its place in ``classes``."""
        return np.asarray(self.precision[IOUS[iou], :, index].mean(axis=0))


def write_precision_recall(folder: Path, curves: Mapping[str, PrecisionRecall]) -> Path:
    """Write ``precision_recall.csv``: kind, class, IoU, recall, precision, score.

    A curve's 101 rows follow each other. The mean over the classes is the class ``(mean)``. A score
    stands where one detection has it: of one class at one threshold, if the recall is reached.

    Args:
        folder: made when missing.
        curves: by kind, ``bbox`` and ``segm``.

    Returns:
        The path of the file.
    """
    make_folder(folder)
    text = io.StringIO()
    table = csv.writer(text)
    table.writerow(["kind", "class", "iou", "recall", "precision", "score"])

    def write(
        kind: str, name: str, iou: str, precision: NDArray[np.float64], scores: list[str]
    ) -> None:
        for recall, value, score in zip(RECALLS, precision, scores, strict=True):
            table.writerow([kind, name, iou, f"{recall:.2f}", f"{value:.6f}", score])

    unknown = [""] * len(RECALLS)
    for kind, curve in curves.items():
        for iou, thresholds in IOUS.items():
            if curve.classes:
                write(kind, MEAN, iou, curve.mean(iou), unknown)
            for k, name in enumerate(curve.classes):
                precision, scores = curve.of_class(iou, k), unknown
                if thresholds.stop - thresholds.start == 1:
                    found = zip(curve.scores[thresholds.start, :, k], precision, strict=True)
                    scores = [f"{score:.6f}" if value > 0 else "" for score, value in found]
                write(kind, name, iou, precision, scores)
    path = folder / "precision_recall.csv"
    write_text(path, text.getvalue())
    return path
