"""What differs between the tasks, ready for the training loop that they share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import lightning as L
from rich.console import Console
from torch import nn
from torch.utils.data import DataLoader, Dataset

from botvision.config import TrainConfig
from botvision.tasks.checkpoint import ModelSpec
from botvision.training.run import RunFolder


@dataclass(frozen=True)
class Job:
    """A model about to be trained.

    Args:
        model: drawn at random, or loaded.
        card: its description, for the weights file.
        module: one step of it.
        dataset: of the training split, by keys (epoch, index).
        collate_fn: makes a batch of its samples.
        val_loader: the validation split, if there is one.
        evaluation: the callback that evaluates on it; its ``step`` is when it last did.
        report: writes and prints what the last evaluation found.
        summary: lines about data and weights.
        resolved: for the run's config.yaml.
    """

    model: nn.Module
    card: ModelSpec
    module: L.LightningModule
    dataset: Dataset[Any]
    collate_fn: Callable[[list[Any]], Any]
    val_loader: DataLoader[Any] | None
    evaluation: Any
    report: Callable[[RunFolder, Console], None]
    summary: list[str]
    resolved: dict[str, Any]


class Setup(Protocol):
    """Data and settings of one run, read and checked; ``job`` builds what trains on them."""

    images: int

    @property
    def config(self) -> TrainConfig:
        """The settings, what the data decides settled."""

    def job(self, run: RunFolder, steps: int) -> Job:
        """Build the model and what surrounds it, for a run of ``steps`` steps."""
