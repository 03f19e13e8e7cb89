"""Lightning's trainer as this project uses it."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Sequence
from typing import Any

import lightning as L
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import EMAWeightAveraging, RichProgressBar, TQDMProgressBar
from lightning.pytorch.strategies import ModelParallelStrategy, Strategy
from rich.console import Console

from botvision.config import Device, Dtype, TrainConfig
from botvision.training.callbacks import BatchCount, ProgressLines
from botvision.training.checkpoints import AtomicCheckpointIO
from botvision.training.control import LastCheckpoint, RunControl
from botvision.training.fsdp import WholeEvaluation
from botvision.training.run import Run

_PRECISIONS: dict[str, Any] = {"32": "32-true", "bf16": "bf16-mixed", "16": "16-mixed"}


def quiet_lightning() -> None:
    """Silence Lightning's hints on topics that this project has settled."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    logging.getLogger("lightning.fabric").setLevel(logging.WARNING)
    for message in (
        ".*does not have many workers.*",
        ".*Checkpoint directory .* exists and is not empty.*",
        ".*have no `val_dataloader`.*",
        # A resumed run may have no evaluation or early stopping any more.
        ".*callbacks used to create the checkpoint need to be provided.*",
        # A run folder may have been moved.
        ".*The dirpath has changed from.*",
        # A machine of a cluster may well train outside a job.
        ".*The `srun` command is available on your system but is not used.*",
        # Which images come next is a function of the step: StepBatches goes on from there.
        ".*your dataloader is not resumable.*",
        ".*isinstance.treespec, LeafSpec.* is deprecated.*",
        # A model is shared out by fsdp alone, which refuses a moving average.
        ".*WeightAveraging callback with a model that overrides the configure_model callback.*",
        # Of 1x1 kernels, whose strides differ along sides of one element alone.
        ".*Grad strides do not match bucket view strides.*",
    ):
        warnings.filterwarnings("ignore", message)


def evaluation_trainer(
    device: Device, precision: Dtype, callbacks: Sequence[Callback]
) -> L.Trainer:
    """A trainer that only validates.

    Args:
        device: device to run on, not ``"auto"``.
        precision: 32, or bf16 or 16 for automatic mixed precision.
        callbacks: callbacks that receive the outputs, such as ``Evaluation``.

    Returns:
        A trainer on one device, without a logger and without checkpoints.
    """
    quiet_lightning()
    return L.Trainer(
        accelerator="gpu" if device == "cuda" else device,
        devices=1,
        precision=_PRECISIONS[precision],
        # One process, even in a job of Slurm, whose variables Lightning would check.
        plugins=[LightningEnvironment()],
        logger=False,
        callbacks=[*callbacks],
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=_shows_a_bar(),
    )


class _ProgressBar(RichProgressBar):
    """Lightning's bar over the run's steps, which to Lightning are one epoch of no known last."""

    def _get_train_description(self, current_epoch: int) -> str:
        return "training"


def _progress(steps: int) -> list[Callback]:
    """A bar in a terminal, Lightning's own in a notebook, else lines."""
    if Console(stderr=True).is_jupyter:
        return [TQDMProgressBar()]
    return [_ProgressBar() if sys.stderr.isatty() else ProgressLines(steps)]


def _shows_a_bar() -> bool:
    return sys.stderr.isatty() or Console(stderr=True).is_jupyter


def _strategy(config: TrainConfig) -> str | Strategy:
    processes = config.devices * config.nodes
    if processes == 1:
        return "auto"
    if config.strategy == "ddp":
        return "ddp"
    return ModelParallelStrategy(
        data_parallel_size=processes, tensor_parallel_size=1, save_distributed_checkpoint=False
    )


def training_trainer(
    config: TrainConfig, run: Run, steps: int, callbacks: Sequence[Callback], control: RunControl
) -> L.Trainer:
    """A trainer of ``steps`` steps that Lightning sees as one epoch.

    So a checkpoint in the middle of a pass over the data needs no special case: which images come
    next is a function of the step (``StepBatches``).

    Args:
        config: settings of the run, without ``"auto"`` for the device and the precision.
        run: run folder, for the checkpoints.
        steps: number of training steps of the run.
        callbacks: callbacks of the run. The progress and the last checkpoint are added.
        control: what saves, evaluates, and ends the run early.

    Returns:
        A trainer for the processes of the run, without a logger.
    """
    quiet_lightning()
    # `Processes` sets the variables of torchrun, whatever has started the processes. Lightning's
    # own environment for Slurm would handle the signals that requeue a job.
    several = config.devices * config.nodes > 1
    environment = TorchElasticEnvironment() if several else LightningEnvironment()
    return L.Trainer(
        accelerator="gpu" if config.device == "cuda" else config.device,
        devices=config.devices,
        num_nodes=config.nodes,
        strategy=_strategy(config),
        plugins=[environment, AtomicCheckpointIO()],
        precision=_PRECISIONS[config.precision],
        max_epochs=-1,
        max_steps=steps,
        accumulate_grad_batches=config.accumulate,
        gradient_clip_val=config.clip_norm or None,
        # `RunControl` decides when to evaluate and to save.
        check_val_every_n_epoch=sys.maxsize,
        enable_checkpointing=False,
        num_sanity_val_steps=0,
        sync_batchnorm=config.norm == "sync",
        use_distributed_sampler=False,
        logger=False,
        enable_model_summary=False,
        enable_progress_bar=_shows_a_bar(),
        callbacks=[
            *callbacks,
            WholeEvaluation(),
            BatchCount(),
            *_progress(steps),
            LastCheckpoint(run),
            # After the evaluation, which saves the weights that the average has put in place.
            *([EMAWeightAveraging(decay=config.ema_decay)] if config.ema_decay else []),
            control,
        ],
    )
