"""Lightning's trainer as this project uses it."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import lightning as L
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import (
    EarlyStopping,
    EMAWeightAveraging,
    ModelCheckpoint,
    RichProgressBar,
)
from lightning.pytorch.strategies import ModelParallelStrategy, Strategy

from botvision.config import Device, Dtype, TrainConfig
from botvision.errors import UserError
from botvision.training.callbacks import ProgressLines, ends_inside_a_step
from botvision.training.fsdp import WholeEvaluation
from botvision.training.run import RunFolder

# What an evaluation logs for early stopping: its main metric, larger being better.
SCORE = "score"

_PRECISIONS: dict[str, Any] = {"32": "32-true", "bf16": "bf16-mixed", "16": "16-mixed"}


def resolve_device(device: Device) -> Device:
    """``"auto"`` is the accelerator that is there, else the CPU.

    Raises:
        UserError: the device that was asked for is not there.
    """
    available: dict[Device, bool] = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if device == "auto":
        return next(name for name, there in available.items() if there)
    if not available[device]:
        raise UserError(f"--device {device}: not available here; `botvision doctor` says why")
    return device


def quiet_lightning() -> None:
    """Silence Lightning's hints on topics that this project has settled."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    logging.getLogger("lightning.fabric").setLevel(logging.WARNING)
    for message in (
        ".*does not have many workers.*",
        ".*Checkpoint directory .* exists and is not empty.*",
        ".*have no `val_dataloader`.*",
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
    """A trainer that only validates."""
    quiet_lightning()
    return L.Trainer(
        accelerator="gpu" if device == "cuda" else device,
        devices=1,
        precision=_PRECISIONS[precision],
        logger=False,
        callbacks=[*callbacks],
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=sys.stderr.isatty(),
    )


def this_process(config: TrainConfig) -> tuple[int, int]:
    """Number of this process and how many train together, as torchrun, Slurm or Lightning say.

    Lightning starts the other processes of a machine itself, unless torchrun or Slurm did.
    """
    processes = config.devices * config.nodes
    if processes == 1:
        return 0, 1
    names = ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID")
    number = {name: int(os.environ[name]) for name in names if name in os.environ}
    rank = number.get("NODE_RANK", 0) * config.devices + number.get("LOCAL_RANK", 0)
    if "LOCAL_RANK" not in number:
        rank = number.get("SLURM_PROCID", rank)
    return number.get("RANK", rank), processes


class _ProgressBar(RichProgressBar):
    """Lightning's bar over the run's steps, which to Lightning are one epoch of no known last."""

    def _get_train_description(self, current_epoch: int) -> str:
        return "training"


class _Checkpoint(ModelCheckpoint):
    """Between steps only: a part of a step leaves gradients that no checkpoint holds."""

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Save if it is time."""
        if not ends_inside_a_step(trainer, batch_idx):
            super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)


class _EarlyStopping(EarlyStopping):
    """Lightning's, but a resumed run has the patience that it is given now."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over the count and the best score."""
        super().load_state_dict({**state_dict, "patience": self.patience})


class _LastCheckpoint(Callback):
    """At the end, before the moving average of the weights takes the place of the weights."""

    def __init__(self, run: RunFolder) -> None:
        """Take the run."""
        self.run = run

    def on_train_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Save."""
        trainer.save_checkpoint(self.run.checkpoint)


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
    config: TrainConfig, run: RunFolder, steps: int, callbacks: Sequence[Callback]
) -> L.Trainer:
    """A trainer of ``steps`` steps that Lightning sees as one epoch.

    So a checkpoint in the middle of a pass over the data needs no special case: which images come
    next is a function of the step (``StepBatches``).
    """
    quiet_lightning()
    checkpoints: dict[str, Any] = {
        "dirpath": run.checkpoint.parent,
        "filename": run.checkpoint.stem,
        "enable_version_counter": False,
    }
    shown = _ProgressBar() if sys.stderr.isatty() else ProgressLines(steps)
    return L.Trainer(
        accelerator="gpu" if config.device == "cuda" else config.device,
        devices=config.devices,
        num_nodes=config.nodes,
        strategy=_strategy(config),
        precision=_PRECISIONS[config.precision],
        max_epochs=-1,
        max_steps=steps,
        accumulate_grad_batches=config.accumulate,
        gradient_clip_val=config.clip_norm or None,
        val_check_interval=config.eval_steps * config.accumulate or None,
        check_val_every_n_epoch=None if config.eval_steps else 1,
        num_sanity_val_steps=0,
        sync_batchnorm=config.norm == "sync",
        use_distributed_sampler=False,
        logger=False,
        enable_model_summary=False,
        enable_progress_bar=sys.stderr.isatty(),
        callbacks=[
            *callbacks,
            WholeEvaluation(),
            # After the evaluation, which logs what it watches.
            *(
                [_EarlyStopping(SCORE, patience=config.patience, mode="max")]
                if config.patience
                else []
            ),
            shown,
            _LastCheckpoint(run),
            # After the evaluation, which saves the weights that the average has put in place.
            *([EMAWeightAveraging(decay=config.ema_decay)] if config.ema_decay else []),
            _Checkpoint(every_n_train_steps=config.checkpoint_steps, **checkpoints),
            _Checkpoint(
                train_time_interval=timedelta(minutes=config.checkpoint_minutes), **checkpoints
            ),
        ],
    )
