"""Image classification: training step, data and settings, evaluation."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from timm.data.mixup import Mixup
from torch import Tensor, nn
from torch.utils.data import Subset

from botvision.attention import Implementation
from botvision.attention.position import AbsolutePosition, RelativePosition
from botvision.config import ClassificationConfig, EvaluateConfig
from botvision.data.classification import (
    ClassificationBatch,
    ClassificationData,
    ClassificationDataset,
    collate_classification,
    eval_transform,
    readable_names,
    train_transform,
)
from botvision.data.fingerprint import fingerprint
from botvision.data.formats import ClassificationSource, classification_splits
from botvision.data.loaders import eval_loader
from botvision.data.samplers import sample_images
from botvision.device import Process, worker_count
from botvision.errors import UserError
from botvision.evaluation.classification import ClassificationEvaluator
from botvision.files import make_folder
from botvision.models import load_weights
from botvision.tasks.bad_data import BadData
from botvision.tasks.checkpoint import ClassifierSpec, save_model
from botvision.tasks.task import EvaluationPass, choose_split, pixel_notices, settle_pixels
from botvision.training.fsdp import shard_if_wanted
from botvision.training.loop import Training, Validation
from botvision.training.optimizer import make_optimizer, seed_batch
from botvision.visualize.classes import draw_confusion


class ClassificationInference(L.LightningModule):
    """A classifier for Lightning's validation loop. Accepts uint8 images.

    Args:
        model: (B, 3, S, S) to logits (B, classes).
        spec: specification of the model. Provides the mean and standard deviation of the colors.
    """

    def __init__(self, model: nn.Module, spec: ClassifierSpec) -> None:
        super().__init__()
        self.model = model
        for name, values in (("mean", spec.mean), ("std", spec.std)):
            scaled = 255 * torch.tensor(values).view(1, -1, 1, 1)
            self.register_buffer(name, scaled, persistent=False)

    def normalized(self, images: Tensor) -> Tensor:
        """Normalize uint8 images (B, 3, S, S) to float32, channels-last."""
        mean, std = self.get_buffer("mean"), self.get_buffer("std")
        images = images.contiguous(memory_format=torch.channels_last)
        return (images.float() - mean) / std

    def logits(self, images: Tensor) -> Tensor:
        """Return the logits (B, classes), float32, of uint8 images (B, 3, S, S)."""
        logits: Tensor = self.model(self.normalized(images))
        return logits.float()

    def validation_step(self, batch: ClassificationBatch, batch_idx: int) -> dict[str, Tensor]:
        """Return the logits of a batch."""
        return {"predictions": self.logits(batch[0])}


class ClassificationModule(ClassificationInference):
    """A classifier in training: cross-entropy with Mixup, CutMix and label smoothing.

    Args:
        model: model to train.
        spec: specification of the model.
        config: settings of the run.
        steps: number of training steps of the run.
    """

    def __init__(
        self, model: nn.Module, spec: ClassifierSpec, config: ClassificationConfig, steps: int
    ) -> None:
        super().__init__(model, spec)
        self.config, self.steps = config, steps
        self.mix = None
        if config.mixup or config.cutmix:
            self.mix = Mixup(  # type: ignore[no-untyped-call]
                config.mixup,
                config.cutmix,
                label_smoothing=config.smoothing,
                num_classes=len(spec.classes),
            )

    def configure_model(self) -> None:
        """Shard the model over the processes if the strategy is fsdp."""
        shard_if_wanted(self, self.model, self.config)

    def on_train_batch_start(self, batch: ClassificationBatch, batch_idx: int) -> None:
        """Seed the random numbers of the step, so that a resumed run draws the same ones."""
        seed_batch(self, self.config, batch_idx)

    def training_step(self, batch: ClassificationBatch, batch_idx: int) -> dict[str, Tensor]:
        """Return the cross-entropy of a batch.

        Raises:
            UserError: the loss is not finite.
        """
        images, targets = batch
        if self.mix is None:
            smoothing = self.config.smoothing
            loss = F.cross_entropy(self.logits(images), targets, label_smoothing=smoothing)
        else:
            mixed, targets = self.mix(self.normalized(images), targets)  # (B, classes), smoothed
            loss = F.cross_entropy(self.model(mixed).float(), targets)
        if not torch.isfinite(loss):
            raise UserError(
                f"the loss is not finite at step {self.global_step}; lower `lr`, lengthen "
                "`warmup_steps`, or set `clip_norm`"
            )
        self.log("loss", loss.detach(), prog_bar=True, logger=False, batch_size=len(images))
        return {"loss": loss}

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """See ``make_optimizer``."""
        return make_optimizer(self.model, self.config, self.steps)


class ClassificationTraining:
    """The data and checked settings of a classification training run.

    The validation split is ``val``, or ``test`` if there is no ``val``.

    Args:
        config: settings of the run.
        data: name of the data set, as in ``config.data``, or its splits as objects.
        impl: custom attention implementation.

    Raises:
        UserError: the data or the settings contain an error.
    """

    def __init__(
        self,
        config: ClassificationConfig,
        data: ClassificationSource,
        *,
        impl: Implementation | None = None,
    ) -> None:
        self.impl = impl
        splits = classification_splits(data)
        if "train" not in splits:
            raise UserError(f"{config.data}: has no training split, only {', '.join(splits)}")
        self.bad_data = BadData(config)
        self.train = self.bad_data.open("train", lambda _: splits["train"](None))
        if len(self.train.classes) < 2:
            raise UserError(
                f"{self.train.summary()}; a classifier needs at least two classes, so add a "
                "folder or label of another one"
            )
        self.held_out = next((name for name in ("val", "test") if name in splits), "")
        self.val = None
        if self.held_out:
            opener = splits[self.held_out]
            self.val = self.bad_data.open(self.held_out, lambda _: opener(self.train.classes))
        self.images = len(self.train)
        self.config, self.notices = settle_pixels(config, self.train, self.val)
        if not self.held_out:
            self.notices.append(
                "no validation split, neither val nor test with labels: the model is not evaluated"
            )
        if config.mixup or config.cutmix:
            parts = config.accumulate * config.devices * config.nodes
            if config.batch_size // parts % 2:
                raise UserError(
                    "`mixup` and `cutmix` pair the images of each micro-batch; give a "
                    f"`batch_size` that is a multiple of {2 * parts}"
                )

    @functools.cached_property
    def resolved(self) -> dict[str, Any]:
        """The task, the image size, the classes, and a fingerprint of each split."""
        spec = ClassifierSpec.of(self.config, self.train.classes)
        splits = {"train": self.train, self.held_out: self.val}
        return {
            "task": "classification",
            "image_size": spec.image_size,
            "classes": list(spec.classes),
            "data": {k: fingerprint(split) for k, split in splits.items() if split is not None},
        }

    def training(self, steps: int, process: Process) -> Training:
        """Build the classifier, its data sets and its validation."""
        config = self.config
        if process.rank == 0:
            self.bad_data.write()
        torch.manual_seed(config.seed)
        objects = ["impl"] if self.impl is not None else []
        spec = ClassifierSpec.of(config, self.train.classes, objects)
        rates = {"drop_rate": config.dropout, "drop_path_rate": config.drop_path}
        rates = {name: rate for name, rate in rates.items() if rate}
        model = spec.build(impl=self.impl, regularization=rates)
        summary = [data.summary() for data in (self.train, self.val) if data is not None]
        summary += self.notices
        summary += self.bad_data.summary()
        if config.weights is not None:
            summary.append(str(load_weights(model, config.weights)))
        summary.append(f"{config.model}, classification, {spec.image_size} px")
        validation = None
        if self.val is not None:
            validation = _validation(
                self.val,
                self.held_out,
                range(len(self.val)),
                spec,
                batch_size=config.batch_size // (config.accumulate * process.count),
                workers=worker_count(config.workers, config.device),
                process=process,
            )
        transform = train_transform(config, spec.image_size)
        return Training(
            model=model,
            module=ClassificationModule(model, spec, config, steps),
            dataset=ClassificationDataset(self.train, transform, seed=config.seed),
            collate_fn=collate_classification,
            images=self.images,
            validation=validation,
            save=functools.partial(save_model, model, spec),
            summary=summary,
            resolved=self.resolved,
        )


def _validation(
    data: ClassificationData,
    split: str,
    chosen: range | list[int],
    spec: ClassifierSpec,
    *,
    batch_size: int,
    workers: int,
    process: Process,
) -> Validation:
    """Build the evaluation of the chosen images of a split."""
    evaluator = ClassificationEvaluator(readable_names(spec.classes))
    loader = eval_loader(
        Subset(
            ClassificationDataset(data, eval_transform(spec.image_size, spec.crop_share)), chosen
        ),
        collate_classification,
        batch_size=batch_size,
        workers=workers,
        rank=process.rank,
        processes=process.count,
    )

    def draw(folder: Path) -> None:
        make_folder(folder)
        draw_confusion(evaluator.classes, evaluator.confusion, folder / "confusion.png")

    facts = {"split": split, "images": len(chosen), "images_in_split": len(data)}
    return Validation(loader, evaluator, draw, facts, [])


def classification_pass(
    model: nn.Module, spec: ClassifierSpec, data: ClassificationSource, config: EvaluateConfig
) -> EvaluationPass:
    """Build the evaluation of a saved classifier on a split.

    Args:
        model: the classifier.
        spec: specification of the classifier.
        data: name of the data set, or its splits as objects.
        config: options of the evaluation.

    Returns:
        The evaluation, ready to run.

    Raises:
        UserError: an option is invalid, the split does not exist, or its classes differ from those
            of the model.
    """
    splits = classification_splits(data)
    name = choose_split([*splits], config.split, str(data))
    if config.image_size is not None:
        spec = dataclasses.replace(spec, image_size=config.image_size)
    if config.table_resize is not None:
        for module in model.modules():
            if isinstance(module, RelativePosition | AbsolutePosition):
                module.table_resize = config.table_resize
    split = splits[name](spec.classes)
    validation = _validation(
        split,
        name,
        sample_images(len(split), config.limit),
        spec,
        batch_size=32 if config.batch_size is None else config.batch_size,
        workers=worker_count(config.workers, config.device),
        process=Process(),
    )
    validation.facts["image_size"] = spec.image_size
    summary = [
        f"{split.summary()}, seen at {spec.image_size} px",
        *pixel_notices(split, spec.pixels),
    ]
    return EvaluationPass(ClassificationInference(model, spec), validation, summary)
