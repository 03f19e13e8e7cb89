"""The data loader of an evaluation, over all processes, and the processes that load data."""

from __future__ import annotations

import signal
from collections.abc import Callable
from typing import Any

from torch.utils.data import DataLoader, Dataset

from botvision.errors import UserError

_SECONDS_AFTER_SIGTERM = 60


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

    Args:
        dataset: the images.
        collate_fn: makes a batch of samples.
        batch_size: samples per batch.
        workers: processes that load them.
        rank: number of this process.
        processes: number of processes.

    Returns:
        The loader of this process, in the order of ``dataset``. The last batch may be smaller.

    Raises:
        UserError: there are fewer images than processes.
    """
    if len(dataset) < processes:  # type: ignore[arg-type]
        raise UserError(
            f"there are {len(dataset)} images to evaluate for {processes} processes; add images, "  # type: ignore[arg-type]
            "or give fewer devices",
            parameter="devices",
        )
    return DataLoader(
        dataset,
        batch_size=batch_size,
        sampler=range(rank, len(dataset), processes),  # type: ignore[arg-type]
        num_workers=workers,
        collate_fn=collate_fn,
        worker_init_fn=outlive_signals,
    )


def outlive_signals(worker: int) -> None:
    """Let a process that loads data work on while its parent finishes a step after a signal.

    A terminal or Slurm sends a signal to all processes. The parent ends its loaders when it has
    finished, by SIGTERM only if they do not answer.

    Args:
        worker: number of the process.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "SIGUSR1"):  # not on Windows
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, lambda number, frame: signal.alarm(_SECONDS_AFTER_SIGTERM))
