"""One training step of a detector."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn

from botvision.config import DetectionConfig
from botvision.data.coco import Batch, EvalBatch
from botvision.detection import Detector, detect
from botvision.errors import UserError
from botvision.training.fsdp import shard_if_wanted
from botvision.training.optimizer import make_optimizer, seed_batch


class DetectorInference(L.LightningModule):
    """A detector under Lightning's validation loop.

    Args:
        detector: the detector.
        **settings: keyword arguments of :func:`detect`.
    """

    def __init__(self, detector: Detector, **settings: Any) -> None:
        super().__init__()
        self.detector = detector
        self.settings = settings

    def validation_step(self, batch: EvalBatch, batch_idx: int) -> dict[str, Any]:
        """Detect: {"detections": one dict an image}, as :func:`detect` gives them."""
        images, _ = batch
        return {"detections": detect(self.detector, images, **self.settings)}


class DetectorModule(DetectorInference):
    """A detector in training: losses, the stop on a non-finite one, optimiser and schedule."""

    def __init__(
        self,
        detector: Detector,
        config: DetectionConfig,
        steps: int,
        file_of: Mapping[int, str],
        frozen: Iterable[nn.Module] = (),
    ) -> None:
        """Take the detector, the settings, the run's steps, and the images' files by id.

        ``frozen``: parts that keep their weights, and their batch norms the statistics.
        """
        super().__init__(detector)
        self.config = config
        self.steps = steps
        self.file_of = file_of
        self.frozen = list(frozen)
        for part in self.frozen:
            part.requires_grad_(False)

    def configure_model(self) -> None:
        """Share the detector out among the processes, if that is wanted."""
        shard_if_wanted(self, self.detector, self.config)

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Seed what is random inside the model by the step, so that a resumed run draws alike."""
        for part in self.frozen:
            part.eval()
        seed_batch(self, self.config, batch_idx)

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """Sum the detector's losses of a batch.

        Raises:
            UserError: the loss is not finite; names the images of the batch.
        """
        images, targets = batch
        targets = [
            {**target, "masks": target["masks"].whole()} if "masks" in target else target
            for target in targets
        ]
        losses: dict[str, Tensor] = self.detector(images, targets)
        loss = torch.stack(list(losses.values())).sum()
        if not torch.isfinite(loss):
            files = ", ".join(self.file_of[int(target["image_id"])] for target in targets)
            parts = ", ".join(f"{name} {value:.3g}" for name, value in losses.items())
            raise UserError(
                f"the loss is not finite at step {self.global_step} ({parts}) on the images "
                f"{files}; look at their boxes, lower --lr, or set --clip-norm"
            )
        shown = {name: value.detach() for name, value in losses.items()}
        self.log_dict(
            {"loss": loss.detach(), **shown}, prog_bar=True, logger=False, batch_size=len(images)
        )
        return {"loss": loss, **shown}

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """See :func:`make_optimizer`."""
        return make_optimizer(self.detector, self.config, self.steps)
