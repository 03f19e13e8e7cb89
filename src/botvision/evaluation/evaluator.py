"""The interface of everything that measures a model on a split."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

from rich.console import Console

Metrics = dict[str, Any]


class Evaluator(Protocol):
    """Metrics over one pass through a split.

    ``botvision.train`` and ``botvision.evaluate`` take further ones as ``evaluators=[...]``; what
    ``compute`` returns joins the metrics of the task. One Lightning callback drives all of them.
    """

    def reset(self) -> None:
        """Forget the last pass."""

    def update(self, predictions: Any, batch: Any) -> None:
        """Add a batch.

        Args:
            predictions: of a detector, for each image a dict of ``boxes`` (n, 4) float64, xyxy in
                pixels of the image, ``labels`` (n,) int64, from 1, ``scores`` (n,) float32 and, for
                segmentation, ``masks`` (n, 1, 28, 28), probabilities inside the box; of a
                classifier the logits (B, classes), float32.
            batch: of a detector, the PIL images and their ids; of a classifier, the images, uint8
                (B, 3, S, S), and their labels (B,).
        """

    def compute(self) -> Metrics:
        """Metrics of the pass by name: numbers, or dicts of them.

        Every process calls it after its part of the images; a metric over all of them has to be
        gathered here.
        """

    def report(self, folder: Path, console: Console) -> None:
        """Print the last metrics, and write files about them into ``folder``."""


class TaskEvaluator(Evaluator, Protocol):
    """The evaluator of a task, which decides whether a model is the best so far."""

    @property
    def score(self) -> float:
        """The main metric of the last pass; larger is better."""
