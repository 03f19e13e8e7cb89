"""The optimizer, and what is random about a step."""

from __future__ import annotations

from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from timm import optim as timm_optim
from torch import nn

from botvision.config import TrainConfig
from botvision.data.samplers import seed_everything
from botvision.models import no_weight_decay
from botvision.training.schedule import learning_rate_factor


def seed_batch(module: L.LightningModule, config: TrainConfig, batch_idx: int) -> None:
    """Seed by step and piece of it, whichever process or part of the step that is.

    Args:
        module: the module in training, which provides the step and the rank of the process.
        config: settings of the run.
        batch_idx: Lightning's index of the micro-batch.
    """
    processes = config.devices * config.nodes
    piece = batch_idx % config.accumulate * processes + module.global_rank
    torch.manual_seed(seed_everything(config.seed, module.global_step, piece))


def make_optimizer(model: nn.Module, config: TrainConfig, steps: int) -> OptimizerLRScheduler:
    """SGD or AdamW, with weight decay for the weights of convolutions and linear layers only.

    Args:
        model: the network to train.
        config: settings of the run. With ``decay_all``, weight decay applies to every parameter.
        steps: number of training steps of the run.

    Returns:
        Lightning's dictionary: the optimizer, and a schedule that is updated at every step.
    """
    groups: Any = model.parameters()
    decay = config.weight_decay
    if not config.decay_all:
        groups = timm_optim.param_groups_weight_decay(  # type: ignore[attr-defined]
            model, decay, no_weight_decay_list=no_weight_decay(model)
        )
    optimizer: torch.optim.Optimizer
    if config.optimizer == "sgd":
        optimizer = torch.optim.SGD(
            groups,
            config.peak_lr,
            momentum=config.momentum,
            nesterov=config.nesterov,
            weight_decay=decay,
        )
    else:
        optimizer = torch.optim.AdamW(groups, config.peak_lr, weight_decay=decay)
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: learning_rate_factor(step, steps, config)
    )
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def current_settings(trainer: L.Trainer) -> list[dict[str, Any]]:
    """Return the settings of the optimizer's parameter groups, such as the learning rate."""
    return [
        {name: value for name, value in group.items() if name != "params"}
        for group in trainer.optimizers[0].param_groups
    ]


def restore_settings(trainer: L.Trainer, settings: list[dict[str, Any]]) -> None:
    """Give a resumed run the settings that it was started with, not those of its checkpoint.

    Args:
        trainer: the trainer, which has loaded the checkpoint.
        settings: those of ``current_settings`` before.
    """
    schedule: Any = trainer.lr_scheduler_configs[0].scheduler
    schedule.base_lrs = [group["initial_lr"] for group in settings]
    for group, own, factor in zip(
        trainer.optimizers[0].param_groups, settings, schedule.lr_lambdas, strict=True
    ):
        group.update(own)
        group["lr"] = own["initial_lr"] * factor(schedule.last_epoch)
