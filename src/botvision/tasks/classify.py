"""``botvision eval`` and ``predict`` of a classifier."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from rich.console import Console
from torch import nn
from torch.utils.data import Subset

from botvision.attention.position import AbsolutePosition, RelativePosition
from botvision.config import Device, Dtype, TableResize
from botvision.data.image_folder import (
    ClassificationDataset,
    collate_classification,
    eval_transform,
    find_classification_splits,
    readable_names,
)
from botvision.data.loaders import eval_loader, worker_count
from botvision.data.samplers import sample_images
from botvision.device import autocast
from botvision.errors import UserError
from botvision.evaluation.classification import (
    ClassificationEvaluator,
    Metrics,
    print_class_metrics,
    write_confusion,
)
from botvision.evaluation.report import print_limit
from botvision.tasks.checkpoint import ClassifierSpec
from botvision.tasks.classification import ClassifierInference
from botvision.training.run import RunFolder
from botvision.training.trainer import evaluation_trainer
from botvision.visualize.classes import draw_confusion, draw_predictions

TOP = 5
_SHEET_IMAGES = 24


def refuse_flags(run: Path, kind: str, **flags: object) -> None:
    """Raise UserError if a flag is given that means something for ``kind`` alone, not for ``run``.

    None and False are a flag that is not given.
    """
    for name, value in flags.items():
        if value is not None and value is not False:
            flag = f"--{name.replace('_', '-')}"
            raise UserError(f"{flag}: is for {kind} alone, which {run} is not; leave it out")


def evaluate_classifier(
    model: nn.Module,
    card: ClassifierSpec,
    run: Path,
    data: str,
    *,
    split: str | None,
    limit: int | None,
    image_size: int | None,
    table_resize: TableResize | None,
    batch_size: int,
    device: Device,
    precision: Dtype,
    workers: int,
    out: Path | None,
    console: Console,
) -> Metrics:
    """Accuracy and calibration on class folders; arguments as of ``evaluate``."""
    splits = find_classification_splits(data)
    if split is None:
        split = next(name for name in ("val", "test", "train") if name in splits)
    if split not in splits:
        raise UserError(f"--split {split}: {data} has only {', '.join(splits)}")
    if image_size is not None:
        card = dataclasses.replace(card, image_size=image_size)
    if table_resize is not None:
        for module in model.modules():
            if isinstance(module, RelativePosition | AbsolutePosition):
                module.table_resize = table_resize
    images = splits[split](card.classes)
    console.print(
        f"{images.summary()}, seen at {card.image_size} px, {device}, precision {precision}",
        highlight=False,
        soft_wrap=True,
    )
    chosen = sample_images(len(images), limit)
    print_limit(console, len(chosen), len(images))
    names = readable_names(card.classes)
    evaluation = ClassificationEvaluator(names)
    loader = eval_loader(
        Subset(
            ClassificationDataset(images, eval_transform(card.image_size, card.crop_share)), chosen
        ),
        collate_classification,
        batch_size=batch_size,
        workers=worker_count(workers, device != "cpu"),
    )
    evaluation_trainer(device, precision, [evaluation]).validate(
        ClassifierInference(model, card), loader, verbose=False
    )
    run_folder = RunFolder(out or (run if run.is_dir() else run.parent))
    run_folder.path.mkdir(parents=True, exist_ok=True)
    settings = {
        "split": split,
        "images": len(chosen),
        "images_in_split": len(images),
        "image_size": card.image_size,
        "precision": precision,
    }
    run_folder.write_metrics({**settings, **evaluation.metrics})
    write_class_report(run_folder, evaluation)
    print_class_metrics(console, evaluation.metrics)
    console.print(f"written to {run_folder.metrics}", highlight=False, soft_wrap=True)
    return evaluation.metrics


def write_class_report(run: RunFolder, evaluation: ClassificationEvaluator) -> None:
    """Write the confusion matrix of an evaluation, as numbers and as a picture."""
    write_confusion(run.predictions, evaluation.classes, evaluation.confusion)
    run.plots.mkdir(parents=True, exist_ok=True)
    draw_confusion(evaluation.classes, evaluation.confusion, run.plots / "confusion.png")


def classifier(
    model: nn.Module, card: ClassifierSpec, device: Device, precision: Dtype
) -> Callable[[Sequence[Image.Image]], list[list[dict[str, Any]]]]:
    """What gives images' best classes: ``class`` and ``probability``, the best first."""
    module = ClassifierInference(model, card).to(device)
    transform = eval_transform(card.image_size, card.crop_share)
    names = readable_names(card.classes)

    def classify(images: Sequence[Image.Image]) -> list[list[dict[str, Any]]]:
        seen = torch.stack([transform(image) for image in images]).to(device)
        with torch.inference_mode():
            with autocast(device, precision):
                logits = module.validation_step((seen, torch.empty(0)), 0)
            best = logits.softmax(dim=-1).topk(min(TOP, len(names)))
        return [
            [{"class": names[i], "probability": p} for i, p in zip(*row, strict=True)]
            for row in zip(best.indices.tolist(), best.values.tolist(), strict=True)
        ]

    return classify


def predict_classes(
    model: nn.Module,
    card: ClassifierSpec,
    batches: Iterable[list[tuple[Path, Image.Image]]],
    folder: Path,
    device: Device,
    precision: Dtype,
    console: Console,
) -> list[dict[str, Any]]:
    """The best classes of every image, and a sheet of the first 24: ``predictions.png``."""
    classify = classifier(model, card, device, precision)
    listed: list[dict[str, Any]] = []
    shown: list[Image.Image] = []
    start = time.perf_counter()
    for batch in batches:
        found = classify([image for _, image in batch])
        for (path, image), best in zip(batch, found, strict=True):
            size = {"width": image.width, "height": image.height}
            listed.append({"file": str(path), **size, "classes": best})
            if len(shown) < _SHEET_IMAGES:
                shown.append(image)
            text = ", ".join(f"{c['class']} {c['probability']:.1%}" for c in best[:2])
            console.print(f"{path}: {text}", highlight=False, soft_wrap=True)
    if shown:
        print_rate(console, len(listed), time.perf_counter() - start, "reading and classifying")
        top = [[(c["class"], c["probability"]) for c in row["classes"]] for row in listed]
        draw_predictions(shown, top[: len(shown)], folder / "predictions.png")
    return listed


def print_rate(console: Console, images: int, seconds: float, what: str) -> None:
    """Say how many images a second went through ``what``."""
    console.print(
        f"{images / seconds:.3g} images per second ({what})", highlight=False, soft_wrap=True
    )
