"""Fully sharded training: each process holds a part of every weight, gradient and momentum."""

from __future__ import annotations

import lightning as L
import torch
from lightning.pytorch import Callback
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor

from botvision.config import TrainConfig
from botvision.models import stage_blocks


def shard_if_wanted(module: L.LightningModule, model: nn.Module, config: TrainConfig) -> None:
    """Shard a module's model over the processes, a residual block at a time; once only.

    Args:
        module: the Lightning module in training, whose strategy provides the device mesh.
        model: the module's network, which is changed in place.
        config: settings of the run. The model is not changed unless ``strategy`` is fsdp and there
            are several processes. With ``norm`` sync, its batch norm is synchronized as well.
    """
    alone = config.devices * config.nodes == 1
    if config.strategy != "fsdp" or alone or isinstance(model, FSDPModule):
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
