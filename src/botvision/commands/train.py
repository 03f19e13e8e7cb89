"""``botvision train``: from a COCO folder to a run folder."""

from __future__ import annotations

import dataclasses
import functools
import math
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from botvision.config import Task, TrainConfig
from botvision.data.coco import CocoData, CocoDataset, find_splits, load_split, merge_categories
from botvision.data.jitter import LargeScaleJitter
from botvision.data.loading import FittedImages, eval_loader, train_loader, worker_count
from botvision.data.sources import open_data
from botvision.errors import UserError
from botvision.evaluation.callback import CocoEvaluation
from botvision.evaluation.coco import Metrics
from botvision.evaluation.report import print_metrics, write_results
from botvision.models import load_weights
from botvision.training.callbacks import EventLog
from botvision.training.module import DetectorModule
from botvision.training.run import RunFolder
from botvision.training.saved import ModelCard, save_model
from botvision.training.trainer import resolve_device, resolve_precision, training_trainer
from botvision.visualize.curves import plot_curves


def train(config: TrainConfig, *, resume: bool = False, console: Console | None = None) -> Path:
    """Train a detector, evaluate it on the validation split if there is one, and write the run.

    Args:
        config: all settings.
        resume: go on from the run folder's last checkpoint, if it has one.
        console: where to say what happens; the terminal by default.

    Returns:
        The run folder.

    Raises:
        UserError: a fault in the data, the settings or the weights file, or a non-finite loss.
    """
    console = console or Console()
    say = functools.partial(console.print, highlight=False, soft_wrap=True)
    splits = find_splits(open_data(config.data))
    if "train" not in splits:
        raise UserError(
            f"{config.data}: has no training split, only {', '.join(splits)}; name its file "
            "annotations/instances_train.json"
        )
    data = load_split(splits["train"])
    val = load_split(splits["val"]) if "val" in splits else None
    task = _task(config.task, data, val)
    config = _resolve(config)
    run = RunFolder(config.out or _new_folder(config))
    start = run.begin(resume=resume)
    steps = config.max_steps or math.ceil(config.epochs * len(data) / config.batch_size)
    if start >= steps and run.has_ended(steps):
        say(f"{run.path}: complete, {start} of {steps} steps; raise --epochs to go on")
        return run.path

    categories = merge_categories(*(d for d in (data, val) if d is not None))
    for part in (data, val):
        if part is not None:
            say(part.summary())
    say(str(categories))

    torch.manual_seed(config.seed)
    card = ModelCard.of(config, task, categories)
    detector = card.build()
    parameters = sum(p.numel() for p in detector.parameters())
    backbone: Any = detector.backbone
    if config.weights is not None:
        say(str(load_weights(backbone.body, config.weights)))
    say(
        f"{config.model}, {parameters / 1e6:.2f} M parameters, {task}, {config.image_size} px; "
        f"{steps} steps of {config.batch_size} images, learning rate {config.peak_lr:.4g}, "
        f"{config.device}, precision {config.precision}",
    )
    if start:
        say(f"going on from step {start}")
    resolved = {
        "task": task,
        "steps": steps,
        "learning_rate": config.peak_lr,
        "parameters": parameters,
        "categories": dict(zip(categories.ids, categories.names, strict=True)),
    }
    run.write_config(config, resolved)

    workers = worker_count(config.workers, config.device != "cpu")
    loader = train_loader(
        CocoDataset(
            data,
            categories,
            jitter=LargeScaleJitter(config.image_size, config.jitter, config.flip),
            masks=task == "segmentation",
            seed=config.seed,
        ),
        batch_size=config.batch_size,
        steps=steps,
        start=start,
        seed=config.seed,
        workers=workers,
        pin_memory=config.device == "cuda",
    )
    annotations = data.annotations
    file_of = dict(zip(annotations.image_ids.tolist(), annotations.file_names, strict=True))
    module = DetectorModule(detector, config, steps, file_of)
    evaluation = None
    if val is not None:

        def on_metrics(step: int, metrics: Metrics, best: bool) -> None:
            run.log("eval", step, **{k: v for k, v in metrics.items() if k != "per_class"})
            run.write_metrics({"step": step, "split": "val", "images": len(val), **metrics})
            if best:
                save_model(run.weights, detector, card)

        evaluation = CocoEvaluation(
            val,
            categories,
            masks=task == "segmentation",
            max_detections=config.detector.max_detections,
            on_metrics=on_metrics,
        )
    trainer = training_trainer(
        config,
        run,
        steps,
        [EventLog(run, len(data), config.batch_size), *([evaluation] if evaluation else [])],
    )
    val_loader = (
        eval_loader(FittedImages(val, config.image_size), batch_size=1, workers=workers)
        if val is not None
        else None
    )
    trainer.fit(
        module,
        loader,
        val_loader if config.eval_steps else None,
        ckpt_path=run.checkpoint if start else None,
        weights_only=False,
    )
    trainer.save_checkpoint(run.checkpoint)
    if evaluation is None or val_loader is None:
        save_model(run.weights, detector, card)
    else:
        if evaluation.step != steps:
            trainer.validate(module, val_loader, verbose=False)
        write_results(run.predictions, evaluation.results)
        print_metrics(console, evaluation.metrics)
    plot_curves(run.events, run.plots)
    run.end(steps)
    say(f"run written to {run.path}")
    return run.path


def _task(wanted: Task | None, *data: CocoData | None) -> Task:
    """What was asked for, or what the annotations allow."""
    if wanted is not None:
        return wanted
    return "segmentation" if all(d is None or d.has_masks for d in data) else "detection"


def _resolve(config: TrainConfig) -> TrainConfig:
    """Settle what the machine decides, and refuse what cannot work."""
    if config.image_size % 32 or config.image_size < 64:
        raise UserError(
            f"--image-size {config.image_size}: give a multiple of 32, 64 at least; the pyramid "
            "halves the image five times"
        )
    for flag, value in (("batch-size", config.batch_size), ("max-steps", config.max_steps)):
        if value is not None and value < 1:
            raise UserError(f"--{flag} {value}: give at least 1")
    device = resolve_device(config.device)
    if config.norm == "sync" and device != "cuda":
        raise UserError(
            f"--norm sync: torch synchronises batch norm over GPUs only, not on {device}; use "
            "plain or frozen"
        )
    return dataclasses.replace(
        config,
        device=device,
        precision=resolve_precision(config.precision, device),
    )


def _new_folder(config: TrainConfig) -> Path:
    """runs/DATA-MODEL, or the first of runs/DATA-MODEL-2, ... that is free."""
    name = f"{Path(config.data).name.split('.')[0]}-{config.model}"
    path, number = Path("runs") / name, 1
    while path.exists():
        number += 1
        path = Path("runs") / f"{name}-{number}"
    return path
