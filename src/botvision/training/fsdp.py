"""Fully sharded training: each process holds a part of every weight, gradient and momentum."""

from __future__ import annotations

import lightning as L
import torch
from lightning.pytorch import Callback
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor

from botvision.config import TrainConfig
from botvision.errors import UserError
from botvision.models import stage_blocks


def is_sharded(config: TrainConfig) -> bool:
    """Return whether the weights are shared out: with fsdp and several processes."""
    return config.strategy == "fsdp" and config.devices * config.nodes > 1


def check_sharding(config: TrainConfig, groups: list[list[int]]) -> None:
    """Refuse to resume sharded from a checkpoint that was not sharded.

    torch numbers an optimizer's parameters group by group. Lightning's checkpoints of sharded
    weights number them in the order of the model, and it expects that order when it loads one: it
    would give weights the momentum of others.

    Args:
        config: settings of the run.
        groups: the parameter groups of the checkpoint's optimizer, as numbers of parameters.

    Raises:
        UserError: the numbers are torch's, and the run is to be sharded.
    """
    numbers = [number for group in groups for number in group]
    if is_sharded(config) and len(groups) > 1 and numbers == sorted(numbers):
        raise UserError(
            "cannot resume a checkpoint that one process or ddp has saved; resume with ddp",
            parameter="strategy",
            value=config.strategy,
        )


def shard_if_wanted(module: L.LightningModule, model: nn.Module, config: TrainConfig) -> None:
    """Shard a module's model over the processes, a residual block at a time; once only.

    Args:
        module: the Lightning module in training, whose strategy provides the device mesh.
        model: the module's network, which is changed in place.
        config: settings of the run. The model is not changed unless ``strategy`` is fsdp and there
            are several processes. With ``norm`` sync, its batch norm is synchronized as well.
    """
    if not is_sharded(config) or isinstance(model, FSDPModule):
        return
    if config.norm == "sync":  # which Lightning does for its other strategies
        nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]
    # Sharding takes weights of this format alone; maps stay channels-last.
    model.to(memory_format=torch.contiguous_format)
    assert module.device_mesh is not None
    mesh = module.device_mesh["data_parallel"]
    for block in stage_blocks(model):
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)


class WholeEvaluation(Callback):
    """Whole weights in every process during an evaluation.

    Processes have different numbers of images to evaluate, so they cannot gather the weights
    together image by image.
    """

    def on_validation_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Gather the weights."""
        for part in _sharded(module):
            part.set_reshard_after_forward(False, recurse=False)
            part.unshard()

    def on_validation_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Keep one's own part of them."""
        for part in _sharded(module):
            part.reshard()
            part.set_reshard_after_forward(True, recurse=False)


def _sharded(module: nn.Module) -> list[FSDPModule]:
    return [part for part in module.modules() if isinstance(part, FSDPModule)]


def whole_tensors(model: nn.Module) -> dict[str, Tensor]:
    """A model's state; of a sharded one every process has to ask for it together."""
    return {
        name: tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        for name, tensor in model.state_dict().items()
    }
