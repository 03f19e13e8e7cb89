"""What the tasks have in common: what a training, an evaluation and a saved model consist of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import lightning as L
from torch import nn
from torch.utils.data import DataLoader, Dataset

from botvision.config import (
    CLASSIFICATION_OPTIONS,
    DETECTION_OPTIONS,
    EvaluateConfig,
    PredictConfig,
    TrainConfig,
)
from botvision.device import Process
from botvision.errors import UserError
from botvision.evaluation.evaluator import TaskEvaluator
from botvision.tasks.checkpoint import ModelSpec


@dataclass(frozen=True)
class Validation:
    """One pass over a split.

    Args:
        loader: the batches of this process.
        evaluator: the task's metrics.
        draw: writes pictures of the evaluator's last pass into a folder.
        facts: ``split``, ``images`` and ``images_in_split``, for metrics.json.
        summary: lines about what the model and the data do not have in common.
    """

    loader: DataLoader[Any]
    evaluator: TaskEvaluator
    draw: Callable[[Path], None]
    facts: dict[str, Any]
    summary: list[str]


@dataclass(frozen=True)
class Training:
    """Everything that the training loop needs of a task.

    Args:
        model: drawn at random, or loaded.
        spec: its description, for the weights file.
        module: its training step.
        dataset: the training split, by keys (epoch, index).
        collate_fn: makes a batch of its samples.
        validation: on the validation split, if there is one.
        summary: lines about data and weights.
        resolved: what was resolved from the settings, for the run's config.yaml.
    """

    model: nn.Module
    spec: ModelSpec
    module: L.LightningModule
    dataset: Dataset[Any]
    collate_fn: Callable[[list[Any]], Any]
    validation: Validation | None
    summary: list[str]
    resolved: dict[str, Any]


class Task(Protocol):
    """The data and settings of one training, read and checked."""

    images: int
    """Number of training images."""

    @property
    def config(self) -> TrainConfig:
        """The settings, with what the data decides."""

    def training(self, steps: int, process: Process) -> Training:
        """Build the model and what surrounds it, for a run of ``steps`` steps."""


@dataclass(frozen=True)
class EvaluationPass:
    """An evaluation of a saved model, ready to run.

    Args:
        module: the model under Lightning's validation loop.
        validation: the split.
        summary: lines about the data, the first about its images.
    """

    module: L.LightningModule
    validation: Validation
    summary: list[str]


def choose_split(splits: Sequence[str], wanted: str | None, data: str) -> str:
    """The split to evaluate: the wanted one, by default val, else test, else the first.

    Raises:
        UserError: the data has no such split.
    """
    if wanted is None:
        return next(name for name in ("val", "test", *splits) if name in splits)
    if wanted not in splits:
        raise UserError(f"{data} has only {', '.join(splits)}", parameter="split", value=wanted)
    return wanted


def refuse_options_of_the_other_task(
    config: EvaluateConfig | PredictConfig, task: str, run: str
) -> None:
    """Raise UserError if an option is given that means nothing for the task of ``run``."""
    classifies = task == "classification"
    kind = "detectors" if classifies else "classifiers"
    options: tuple[str, ...] = DETECTION_OPTIONS if classifies else CLASSIFICATION_OPTIONS
    default = type(config)()
    for name in options:
        if getattr(config, name, None) != getattr(default, name, None):
            refuse_option(name, kind, run)
    if task == "detection" and getattr(config, "mask_format", None) is not None:
        refuse_option("mask_format", "segmentation models", run)


def refuse_option(name: str, kind: str, run: str) -> None:
    """Raise UserError: the option is only for models of a kind that ``run`` is not."""
    raise UserError(f"is for {kind} only, which {run} is not; leave it out", parameter=name)
