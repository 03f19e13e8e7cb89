"""One training step of a classifier."""

from __future__ import annotations

import lightning as L
import torch
import torch.nn.functional as F
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from timm.data.mixup import Mixup
from torch import Tensor, nn

from botvision.config import ClassificationConfig
from botvision.data.image_folder import ClassificationBatch
from botvision.errors import UserError
from botvision.tasks.checkpoint import ClassifierSpec
from botvision.training.fsdp import shard_if_wanted
from botvision.training.optimizer import make_optimizer, seed_batch


class ClassifierInference(L.LightningModule):
    """A classifier under Lightning's validation loop, from uint8 images."""

    def __init__(self, model: nn.Module, card: ClassifierSpec) -> None:
        """Take the model, and its card for the colours that it wants."""
        super().__init__()
        self.model = model
        for name, values in (("mean", card.mean), ("std", card.std)):
            scaled = 255 * torch.tensor(values).view(1, -1, 1, 1)
            self.register_buffer(name, scaled, persistent=False)

    def normalised(self, images: Tensor) -> Tensor:
        """uint8 (B, 3, S, S) to float32, channels-last, of the mean and deviation of training."""
        mean, std = self.get_buffer("mean"), self.get_buffer("std")
        images = images.contiguous(memory_format=torch.channels_last)
        return (images.float() - mean) / std

    def validation_step(self, batch: ClassificationBatch, batch_idx: int) -> Tensor:
        """Logits (B, classes), float32."""
        logits: Tensor = self.model(self.normalised(batch[0]))
        return logits.float()


class ClassifierModule(ClassifierInference):
    """A classifier in training: mixed images, smoothed labels, one cross-entropy."""

    def __init__(
        self, model: nn.Module, card: ClassifierSpec, config: ClassificationConfig, steps: int
    ) -> None:
        """Take the model, its card, the settings and the run's steps."""
        super().__init__(model, card)
        self.config = config
        self.steps = steps
        self.mix = None
        if config.mixup or config.cutmix:
            self.mix = Mixup(  # type: ignore[no-untyped-call]
                config.mixup,
                config.cutmix,
                label_smoothing=config.smoothing,
                num_classes=len(card.classes),
            )

    def configure_model(self) -> None:
        """Share the model out among the processes, if that is wanted."""
        shard_if_wanted(self, self.model, self.config)

    def on_train_batch_start(self, batch: ClassificationBatch, batch_idx: int) -> None:
        """Seed what is random in the step, so that a resumed run draws alike."""
        seed_batch(self, self.config, batch_idx)

    def training_step(self, batch: ClassificationBatch, batch_idx: int) -> dict[str, Tensor]:
        """Cross-entropy of a batch.

        Raises:
            UserError: the loss is not finite.
        """
        images, targets = self.normalised(batch[0]), batch[1]
        if self.mix is not None:
            images, targets = self.mix(images, targets)  # targets (B, classes), smoothed
            loss = F.cross_entropy(self.model(images).float(), targets)
        else:
            logits = self.model(images).float()
            loss = F.cross_entropy(logits, targets, label_smoothing=self.config.smoothing)
        if not torch.isfinite(loss):
            raise UserError(
                f"the loss is not finite at step {self.global_step}; lower --lr, lengthen "
                "--warmup-steps, or set --clip-norm"
            )
        self.log("loss", loss.detach(), prog_bar=True, logger=False, batch_size=len(images))
        return {"loss": loss}

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """See :func:`make_optimizer`."""
        return make_optimizer(self.model, self.config, self.steps)
