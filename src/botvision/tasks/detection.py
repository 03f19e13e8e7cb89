"""Detection and instance segmentation: training step, data and settings, evaluation."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.utils.data import Subset

from botvision.attention import Implementation
from botvision.config import DetectionConfig, DetectionTask, EvaluateConfig
from botvision.data.categories import Categories
from botvision.data.detection import (
    Batch,
    DetectionData,
    DetectionDataset,
    EvalBatch,
    WholeImages,
    collate,
    merge_categories,
)
from botvision.data.fingerprint import fingerprint
from botvision.data.formats import DetectionSource, detection_splits
from botvision.data.jitter import LargeScaleJitter
from botvision.data.loaders import eval_loader
from botvision.data.samplers import sample_images
from botvision.data.skipped import BadEntryError
from botvision.detection import Detector
from botvision.detection.inference import detect
from botvision.detection.tta import TTA
from botvision.detection.weights import load_detector_weights
from botvision.device import Process, worker_count
from botvision.errors import UserError
from botvision.evaluation.coco import CocoEvaluator
from botvision.tasks.bad_data import BadData
from botvision.tasks.checkpoint import DetectorSpec, save_model
from botvision.tasks.task import EvaluationPass, choose_split, pixel_notices, settle_pixels
from botvision.training.activation_checkpoint import recompute_blocks
from botvision.training.fsdp import shard_if_wanted
from botvision.training.loop import Training, Validation
from botvision.training.optimizer import make_optimizer, seed_batch
from botvision.visualize.precision_recall import plot_precision_recall

# COCO metrics rank all detections, so evaluation uses a lower threshold than prediction.
EVALUATION_THRESHOLD = 0.001


class DetectionInference(L.LightningModule):
    """A detector for Lightning's validation loop.

    Args:
        detector: detector to run.
        tta: test-time augmentation. By default none.
        batch_size: number of augmented views per batch.
        score_threshold: minimum score of a detection. By default the detector's own.
        max_detections: maximum detections per image. By default the detector's own.
    """

    def __init__(
        self,
        detector: Detector,
        *,
        tta: TTA | None = None,
        batch_size: int = 1,
        score_threshold: float | None = None,
        max_detections: int | None = None,
    ) -> None:
        super().__init__()
        self.detector = detector
        self.options: dict[str, Any] = {
            "tta": tta or TTA(),
            "batch_size": batch_size,
            "score_threshold": score_threshold,
            "max_detections": max_detections,
        }

    def validation_step(self, batch: EvalBatch, batch_idx: int) -> dict[str, Any]:
        """Return the detections of whole images, see ``detect``."""
        images, _ = batch
        return {"predictions": detect(self.detector, images, **self.options)}


class DetectionModule(DetectionInference):
    """A detector in training: loss, check for non-finite losses, optimizer and schedule.

    Args:
        detector: detector to train.
        config: settings of the run.
        steps: number of training steps of the run.
        data: training split, used for image names in error messages.
        frozen: modules whose weights and batch norm statistics stay fixed.
    """

    def __init__(
        self,
        detector: Detector,
        config: DetectionConfig,
        steps: int,
        data: DetectionData,
        frozen: Iterable[nn.Module] = (),
    ) -> None:
        super().__init__(detector)
        self.config, self.steps, self.data = config, steps, data
        self.frozen = list(frozen)
        for part in self.frozen:
            part.requires_grad_(False)

    def configure_model(self) -> None:
        """Shard the detector over the processes if the strategy is fsdp."""
        shard_if_wanted(self, self.detector, self.config)

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Seed the random numbers of the step, so that a resumed run draws the same ones."""
        for part in self.frozen:
            part.eval()
        seed_batch(self, self.config, batch_idx)

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """Return the sum of the detector's losses for a batch, and each of them.

        Raises:
            UserError: the loss is not finite. The message names the images of the batch.
        """
        images, targets = batch
        targets = [
            {**target, "masks": target["masks"].whole()} if "masks" in target else target
            for target in targets
        ]
        losses: dict[str, Tensor] = self.detector(images, targets)
        loss = torch.stack(list(losses.values())).sum()
        if not torch.isfinite(loss):
            files = ", ".join(self.data.image_name(int(target["index"])) for target in targets)
            parts = ", ".join(f"{name} {value:.3g}" for name, value in losses.items())
            raise UserError(
                f"the loss is not finite at step {self.global_step} ({parts}) on the images "
                f"{files}; check their boxes, lower `lr`, or set `clip_norm`"
            )
        shown = {name: value.detach() for name, value in losses.items()}
        self.log_dict(
            {"loss": loss.detach(), **shown}, prog_bar=True, logger=False, batch_size=len(images)
        )
        return {"loss": loss, **shown}

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """See ``make_optimizer``."""
        return make_optimizer(self.detector, self.config, self.steps)


class DetectionTraining:
    """The data and checked settings of a detection training run.

    Args:
        config: settings of the run.
        data: name of the data set, as in ``config.data``, or its splits as objects.
        impl: custom attention implementation.
        box_head: custom box head, see ``build_detector``.

    Raises:
        UserError: the data or the settings contain an error.
    """

    def __init__(
        self,
        config: DetectionConfig,
        data: DetectionSource,
        *,
        impl: Implementation | None = None,
        box_head: nn.Module | None = None,
    ) -> None:
        _check(config)
        splits = detection_splits(data)
        if "train" not in splits:
            raise UserError(
                f"{config.data}: has no training split, only {', '.join(splits)}; name its "
                "annotation file annotations/instances_train.json"
            )
        self.bad_data = BadData(config)

        def opened(name: str) -> DetectionData:
            opener = functools.partial(splits[name], config.task)
            return self.bad_data.open(name, lambda skipped: opener(skipped=skipped))

        try:
            self.train = opened("train")
            self.val = opened("val") if "val" in splits else None
        except BadEntryError as error:
            raise UserError(
                f"{error}; `botvision check {data}` lists all such errors, `bad_data` skip leaves "
                "them out"
            ) from error
        self.images = len(self.train)
        if self.train.num_objects == 0:
            raise UserError(f"{self.train.name}: has no objects to train on; add annotations to it")
        there = [split for split in (self.train, self.val) if split is not None]
        self.categories = merge_categories(*there)
        self.summary = [*(split.summary() for split in there), *self.bad_data.summary()]
        if any(split.num_suspicious for split in there):
            self.summary.append(f"run `botvision check {config.data}` to see these objects")
        self.summary.append(str(self.categories))
        self.task: DetectionTask = config.task or _task_of(there)
        config, notices = settle_pixels(config, self.train, self.val)
        self.summary += notices
        self.config = dataclasses.replace(config, task=self.task)
        self.impl, self.box_head = impl, box_head

    @functools.cached_property
    def resolved(self) -> dict[str, Any]:
        """The task, the categories by id, and a fingerprint of each split."""
        splits = {"train": self.train, "val": self.val}
        return {
            "task": self.task,
            "categories": dict(zip(self.categories.ids, self.categories.names, strict=True)),
            "data": {k: fingerprint(split) for k, split in splits.items() if split is not None},
        }

    def training(self, steps: int, process: Process) -> Training:
        """Build the detector, its data sets and its validation."""
        config, masks = self.config, self.task == "segmentation"
        if process.rank == 0:
            self.bad_data.write()
        torch.manual_seed(config.seed)
        given = {"impl": self.impl, "box_head": self.box_head}
        objects = [name for name, value in given.items() if value is not None]
        spec = DetectorSpec.of(config, self.task, self.categories, objects)
        detector = spec.build(impl=self.impl, box_head=self.box_head)
        summary = list(self.summary)
        if config.weights is not None:
            names = self.categories.names
            summary.append(str(load_detector_weights(detector, config.weights, names)))
        summary.append(f"{config.model}, {self.task}, {config.image_size} px")
        if config.grad_checkpointing:
            recompute_blocks(detector.backbone.body)
        validation = None
        if self.val is not None:
            validation = _validation(
                self.val,
                "val",
                range(len(self.val)),
                self.categories,
                masks=masks,
                max_detections=config.detector.max_detections,
                workers=worker_count(config.workers, config.device),
                process=process,
            )
        frozen = detector.backbone.first_stages(config.freeze_stages)
        return Training(
            model=detector,
            module=DetectionModule(detector, config, steps, self.train, frozen),
            dataset=DetectionDataset(
                self.train,
                self.categories,
                jitter=LargeScaleJitter(config.image_size, config.jitter, config.flip),
                masks=masks,
                max_instances=config.max_instances,
                seed=config.seed,
            ),
            collate_fn=collate,
            images=self.images,
            validation=validation,
            save=functools.partial(save_model, detector, spec),
            summary=summary,
            resolved=self.resolved,
        )


def _task_of(splits: Sequence[DetectionData]) -> DetectionTask:
    """Return segmentation if all objects have masks, and detection if none has one.

    Raises:
        UserError: only some of the objects have masks.
    """
    objects = sum(split.num_objects or 0 for split in splits)
    absent = objects - sum(split.num_masks or 0 for split in splits)
    if 0 < absent < objects:
        without = next(split for split in splits if not split.has_masks)
        raise UserError(
            f"{without.name}: {absent:,} of {objects:,} objects have no mask; `task` detection "
            f"uses all boxes, `task` segmentation leaves {absent:,} objects without a mask out"
        )
    return "segmentation" if all(split.has_masks for split in splits) else "detection"


def _check(config: DetectionConfig) -> None:
    """Raise UserError for settings that cannot work."""
    if config.image_size % 32 or config.image_size < 64:
        raise UserError(
            "must be a multiple of 32 and at least 64; the pyramid halves the image five times",
            parameter="image_size",
            value=config.image_size,
        )
    if config.compile and config.grad_checkpointing:
        raise UserError(
            "cannot be combined with `grad_checkpointing`; a compiled backbone already selects "
            "what to recompute",
            parameter="compile",
        )


def _validation(
    data: DetectionData,
    split: str,
    chosen: range | list[int],
    categories: Categories,
    *,
    masks: bool,
    max_detections: int,
    workers: int,
    process: Process,
    batch_size: int = 1,
) -> Validation:
    """Build the evaluation of the chosen images of a split."""
    ids = [data.image_ids[index] for index in chosen]
    evaluator = CocoEvaluator(
        data, categories, masks=masks, max_detections=max_detections, image_ids=ids
    )
    loader = eval_loader(
        Subset(WholeImages(data), chosen),
        collate,
        batch_size=batch_size,
        workers=workers,
        rank=process.rank,
        processes=process.count,
    )

    def draw(folder: Path) -> None:
        plot_precision_recall(evaluator.curves, folder)

    facts = {"split": split, "images": len(chosen), "images_in_split": len(data)}
    return Validation(loader, evaluator, draw, facts, [*filter(None, [str(evaluator.labels)])])


def detection_pass(
    detector: Detector, spec: DetectorSpec, data: DetectionSource, config: EvaluateConfig
) -> EvaluationPass:
    """Build the evaluation of a saved detector on a split.

    Args:
        detector: the detector.
        spec: specification of the detector.
        data: name of the data set, or its splits as objects.
        config: options of the evaluation.

    Returns:
        The evaluation, ready to run.

    Raises:
        UserError: an option is invalid, the split does not exist, or it shares no class with the
            model.
    """
    threshold = EVALUATION_THRESHOLD if config.score_threshold is None else config.score_threshold
    scales = (1.0,) if config.scales is None else tuple(config.scales)
    batch_size = 1 if config.batch_size is None else config.batch_size
    module = DetectionInference(
        detector,
        tta=TTA(config.flip, scales, config.tile),
        batch_size=batch_size,
        score_threshold=threshold,
        max_detections=config.max_detections,
    )
    splits = detection_splits(data)
    name = choose_split([*splits], config.split, str(data))
    split = splits[name](spec.task)
    validation = _validation(
        split,
        name,
        sample_images(len(split), config.limit),
        spec.categories,
        masks=spec.task == "segmentation",
        max_detections=config.max_detections or spec.detector.max_detections,
        workers=worker_count(config.workers, config.device),
        process=Process(),
        batch_size=batch_size,
    )
    summary = [split.summary(), *pixel_notices(split, spec.pixels), *validation.summary]
    return EvaluationPass(module, validation, summary)
