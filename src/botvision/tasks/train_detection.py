"""``botvision train`` on COCO-format data."""

from __future__ import annotations

import dataclasses

import torch
from rich.console import Console

from botvision.config import DetectionConfig
from botvision.data.coco import (
    CocoDataset,
    WholeImages,
    collate,
    find_splits,
    load_split,
    merge_categories,
)
from botvision.data.formats import open_data
from botvision.data.jitter import LargeScaleJitter
from botvision.data.loaders import eval_loader, worker_count
from botvision.detection.weights import load_detector_weights
from botvision.errors import UserError
from botvision.evaluation.callback import CocoEvaluator
from botvision.evaluation.coco import Metrics
from botvision.evaluation.report import print_metrics, write_results
from botvision.tasks.checkpoint import DetectorSpec, save_model
from botvision.tasks.detection import DetectorModule
from botvision.tasks.task import Job
from botvision.training.activation_checkpoint import recompute_blocks
from botvision.training.run import RunFolder
from botvision.training.trainer import this_process


class DetectionSetup:
    """A COCO folder, read and checked."""

    def __init__(self, config: DetectionConfig) -> None:
        """Read the annotations.

        Raises:
            UserError: a fault in the data or the settings.
        """
        if config.image_size % 32 or config.image_size < 64:
            raise UserError(
                f"--image-size {config.image_size}: give a multiple of 32, 64 at least; the "
                "pyramid halves the image five times"
            )
        if config.compile and config.grad_checkpointing:
            raise UserError(
                "--compile with --grad-checkpointing: a compiled backbone chooses itself what it "
                "computes again; give one of the two"
            )
        if config.max_instances < 0:
            raise UserError(
                f"--max-instances {config.max_instances}: give at least 1, or 0 for all"
            )
        splits = find_splits(open_data(config.data))
        if "train" not in splits:
            raise UserError(
                f"{config.data}: has no training split, only {', '.join(splits)}; name its file "
                "annotations/instances_train.json"
            )
        self.train = load_split(splits["train"])
        self.val = load_split(splits["val"]) if "val" in splits else None
        self.images = len(self.train)
        data = [d for d in (self.train, self.val) if d is not None]
        self.categories = merge_categories(*data)
        self.summary = [*(d.summary() for d in data), str(self.categories)]
        masks = all(d.has_masks for d in data)
        task = config.task or ("segmentation" if masks else "detection")
        self.config = dataclasses.replace(config, task=task)

    def job(self, run: RunFolder, steps: int) -> Job:
        """Build the detector and what surrounds it."""
        config, data, val = self.config, self.train, self.val
        task = config.task
        assert task is not None
        masks = task == "segmentation"
        torch.manual_seed(config.seed)
        card = DetectorSpec.of(config, task, self.categories)
        detector = card.build()
        summary = list(self.summary)
        if config.weights is not None:
            names = self.categories.names
            summary.append(str(load_detector_weights(detector, config.weights, names)))
        if config.grad_checkpointing:
            recompute_blocks(detector.backbone.body)
        evaluation = val_loader = None
        rank, processes = this_process(config)
        if val is not None:

            def on_metrics(step: int, metrics: Metrics, best: bool) -> None:
                run.log("eval", step, **{k: v for k, v in metrics.items() if k != "per_class"})
                run.write_metrics({"step": step, "split": "val", "images": len(val), **metrics})
                if best:
                    save_model(run.weights, detector, card, writes=run.writes)

            evaluation = CocoEvaluator(
                val,
                self.categories,
                masks=masks,
                max_detections=config.detector.max_detections,
                on_metrics=on_metrics,
            )
            val_loader = eval_loader(
                WholeImages(val),
                collate,
                batch_size=1,
                workers=worker_count(config.workers, config.device != "cpu"),
                rank=rank,
                processes=processes,
            )

        def report(run: RunFolder, console: Console) -> None:
            if evaluation is not None:
                write_results(run.predictions, evaluation.results)
                print_metrics(console, evaluation.metrics)

        annotations = data.annotations
        file_of = dict(zip(annotations.image_ids.tolist(), annotations.file_names, strict=True))
        return Job(
            model=detector,
            card=card,
            module=DetectorModule(
                detector,
                config,
                steps,
                file_of,
                frozen=detector.backbone.first_stages(config.freeze_stages),
            ),
            dataset=CocoDataset(
                data,
                self.categories,
                jitter=LargeScaleJitter(config.image_size, config.jitter, config.flip),
                masks=masks,
                max_instances=config.max_instances,
                seed=config.seed,
            ),
            collate_fn=collate,
            val_loader=val_loader,
            evaluation=evaluation,
            report=report,
            summary=summary,
            resolved={
                "task": task,
                "categories": dict(zip(self.categories.ids, self.categories.names, strict=True)),
            },
        )
