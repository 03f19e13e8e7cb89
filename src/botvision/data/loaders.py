"""Data loaders of a training and of an evaluation, over all processes."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from torch.utils.data import DataLoader, Dataset

from botvision.data.samplers import StepBatches
from botvision.errors import UserError


def train_loader(
    dataset: Dataset[Any],
    batches: StepBatches,
    collate_fn: Callable[[list[Any]], Any],
    *,
    workers: int = 0,
    pin_memory: bool = False,
) -> DataLoader[Any]:
    """The batches of a run; its length is the whole run's."""
    return DataLoader(
        dataset,
        batch_sampler=batches,
        num_workers=workers,
        collate_fn=collate_fn,
        pin_memory=pin_memory,
    )


def eval_loader(
    dataset: Dataset[Any],
    collate_fn: Callable[[list[Any]], Any],
    *,
    batch_size: int,
    workers: int = 0,
    rank: int = 0,
    processes: int = 1,
) -> DataLoader[Any]:
    """Every image once, over all processes: process ``rank`` has every ``processes``-th.

    Raises:
        UserError: there are fewer images than processes.
    """
    if len(dataset) < processes:  # type: ignore[arg-type]
        raise UserError(
            f"{len(dataset)} images to evaluate for {processes} processes; add images, or give "  # type: ignore[arg-type]
            "fewer --devices"
        )
    return DataLoader(
        dataset,
        batch_size=batch_size,
        sampler=range(rank, len(dataset), processes),  # type: ignore[arg-type]
        num_workers=workers,
        collate_fn=collate_fn,
    )


def worker_count(workers: int, accelerated: bool) -> int:
    """Resolve ``-1``: all cores but one (8 at most) beside an accelerator, else none.

    On a CPU the training itself uses every core, and a process beside it only slows both.
    """
    if workers >= 0:
        return workers
    return min(8, max(1, (os.cpu_count() or 2) - 1)) if accelerated else 0
