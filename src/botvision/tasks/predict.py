"""``botvision predict``: masks, boxes, names and scores on images, or their classes."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from faster_coco_eval import mask as coco_mask
from PIL import Image
from rich.console import Console

from botvision.config import Device, MaskFormat, Precision
from botvision.data.categories import Categories
from botvision.data.images import open_image
from botvision.detection import TTA, Detector, detect
from botvision.detection.inference import check_limits
from botvision.device import autocast, resolve_precision
from botvision.errors import UserError
from botvision.evaluation.coco import image_results, mask_polygons
from botvision.files import write_text
from botvision.tasks.checkpoint import ClassifierSpec, load_model
from botvision.tasks.classify import predict_classes, print_rate, refuse_flags
from botvision.training.trainer import resolve_device
from botvision.visualize.overlays import draw_instances

_Opened = tuple[Path, Image.Image]


def draw_results(
    image: Image.Image, results: list[dict[str, Any]], categories: Categories
) -> Image.Image:
    """The image with what was found in it, results of it in COCO's format, labels for ids."""
    boxes = np.array([result["bbox"] for result in results], dtype=np.float64).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    with_masks = bool(results) and "segmentation" in results[0]
    masks = (coco_mask.decode(result["segmentation"]).astype(bool) for result in results)
    return draw_instances(
        image,
        boxes,
        [categories.name(result["category_id"]) for result in results],
        [result["score"] for result in results],
        masks if with_masks else None,
    )


def predict(
    run: Path,
    images: list[Path],
    *,
    score_threshold: float | None = None,
    max_detections: int | None = None,
    batch_size: int = 1,
    flip: bool = False,
    scales: Sequence[float] | None = None,
    tile: int | None = None,
    mask_format: MaskFormat | None = None,
    device: Device = "auto",
    precision: Precision = "auto",
    out: Path | None = None,
    console: Console | None = None,
) -> Path:
    """Detect on images, or classify them; write pictures of it and one ``predictions.json``.

    The JSON is a list with, for each image, ``file``, ``width``, ``height`` and of a detector
    ``instances``: ``class``, ``category_id`` (of the training data), ``score``, ``bbox`` (x, y,
    width, height in pixels) and, for a segmentation model, ``segmentation``, as ``mask_format``
    says; of a classifier ``classes``: the five best, each with ``class`` and ``probability``.

    Args:
        run: run folder, or its ``best.safetensors``.
        images: files, or folders whose images are taken.
        score_threshold: a detector's detections below it are left out; 0.5 by default.
        max_detections: that a detector keeps of an image, and of each view of it; the run's own
            number by default.
        batch_size: images, or views of them, that the model sees at once.
        flip: a detector also sees every view mirrored.
        scales: at which a detector sees the images, as shares of its image size; 1 by default.
        tile: of this many pixels a side are the tiles that a detector sees besides the image.
        mask_format: ``"rle"``, compressed, by default; or ``"polygon"``, a list x, y, x, y, ... in
            pixels for each part's outer contour: COCO's polygons cannot express holes.
        device: where to run.
        precision: as of a training.
        out: folder to write to; ``RUN/predictions`` by default.
        console: where to say what happens; the terminal by default.

    Returns:
        The folder.

    Raises:
        UserError: no such run; an argument that is wrong, or means nothing for this kind of model;
            or images that cannot be read, after the others were done.
    """
    console = console or Console()
    device = resolve_device(device)
    compute = resolve_precision(precision, device)
    if batch_size < 1:
        raise UserError(f"--batch-size {batch_size}: give at least 1")
    model, card = load_model(run)
    folder = out or (run if run.is_dir() else run.parent) / "predictions"
    unread: list[UserError] = []
    opened = _opened(images, unread)
    if isinstance(card, ClassifierSpec):
        refuse_flags(
            run,
            "detectors",
            score_threshold=score_threshold,
            max_detections=max_detections,
            flip=flip,
            scales=scales,
            tile=tile,
            mask_format=mask_format,
        )
        folder.mkdir(parents=True, exist_ok=True)
        batches = _read_ahead(opened, batch_size)
        listed = predict_classes(model, card, batches, folder, device, compute, console)
    else:
        assert isinstance(model, Detector)
        if card.task == "detection":
            refuse_flags(run, "segmentation models", mask_format=mask_format)
        check_limits(score_threshold, max_detections)
        tta = TTA(flip, (1.0,) if scales is None else tuple(scales), tile)
        folder.mkdir(parents=True, exist_ok=True)
        listed = _predict_instances(
            model.to(device),
            _read_ahead(opened, batch_size, tta),
            {
                "score_threshold": 0.5 if score_threshold is None else score_threshold,
                "max_detections": max_detections or card.detector.max_detections,
                "tta": tta,
                "batch_size": batch_size,
            },
            card.categories,
            mask_format or "rle",
            folder,
            autocast(device, compute),
            console,
        )
    write_text(folder / "predictions.json", json.dumps(listed))
    console.print(f"written to {folder}", highlight=False, soft_wrap=True)
    if unread:
        more = f" (and {len(unread) - 1} more files)" if len(unread) > 1 else ""
        raise UserError(f"{unread[0]}{more}")
    return folder


def _opened(images: list[Path], unread: list[UserError]) -> Iterator[_Opened]:
    """The images that can be read; the faults of the others go to ``unread``."""
    for path in _files(images):
        try:
            yield path, open_image(path)
        except UserError as error:
            unread.append(error)


def _read_ahead(
    images: Iterable[_Opened], batch_size: int, tta: TTA | None = None
) -> Iterator[list[_Opened]]:
    """The images in lists that fill a batch: with ``tta``, by their augmented views.

    So that no more large images are held than are needed: one with many tiles is alone.
    """
    batch: list[_Opened] = []
    seen = 0
    for path, image in images:
        batch.append((path, image))
        # The number of views does not depend on the image size.
        seen += len(tta.views(*image.size, 1)) if tta else 1
        if seen >= batch_size:
            yield batch
            batch, seen = [], 0
    if batch:
        yield batch


def _predict_instances(
    detector: Detector,
    batches: Iterable[list[_Opened]],
    settings: dict[str, Any],
    categories: Categories,
    mask_format: MaskFormat,
    folder: Path,
    precision: torch.autocast,
    console: Console,
) -> list[dict[str, Any]]:
    """The instances of every image, and an overlay of each in ``folder``."""
    listed: list[dict[str, Any]] = []
    taken: set[str] = set()
    drawing = 0.0
    start = time.perf_counter()
    for batch in batches:
        with precision:
            found = detect(detector, [image for _, image in batch], **settings)
        for (path, image), detection in zip(batch, found, strict=True):
            size = (image.height, image.width)
            results = image_results(detection, 0, size)
            instances = [_instance(result, categories) for result in results]
            if mask_format == "polygon":
                for i, instance in enumerate(instances):
                    mask, box = detection["masks"][i], detection["boxes"][i].float()
                    instance["segmentation"] = mask_polygons(mask, box, size)
            shape = {"width": image.width, "height": image.height}
            listed.append({"file": str(path), **shape, "instances": instances})
            all_kept = len(results) == settings["max_detections"]
            full = " (all that --max-detections keeps)" if all_kept else ""
            text = f"{path}: {_counts(listed[-1])}{full}"
            console.print(text, highlight=False, soft_wrap=True)
            paused = time.perf_counter()
            overlay = folder / f"{_free_name(path.stem, taken)}.png"
            draw_results(image, results, categories).save(overlay)
            drawing += time.perf_counter() - paused
    if listed:
        seconds = time.perf_counter() - start - drawing
        what = "reading, detecting and encoding masks, without drawing"
        print_rate(console, len(listed), seconds, what)
    return listed


def _files(images: list[Path]) -> Iterable[Path]:
    """The files themselves, and in folders those with an ending of an image format."""
    endings = Image.registered_extensions()
    for path in images:
        if not path.is_dir():
            yield path
            continue
        inside = sorted(file for file in path.iterdir() if file.suffix.lower() in endings)
        if not inside:
            raise UserError(f"{path}: no image files in this folder")
        yield from inside


def _free_name(stem: str, taken: set[str]) -> str:
    name, number = stem, 1
    while name in taken:
        number += 1
        name = f"{stem}-{number}"
    taken.add(name)
    return name


def _instance(result: dict[str, Any], categories: Categories) -> dict[str, Any]:
    label = result["category_id"]
    fields = {"class": categories.name(label), "category_id": categories.ids[label - 1]}
    return fields | {k: result[k] for k in ("score", "bbox", "segmentation") if k in result}


def _counts(listed: dict[str, Any]) -> str:
    """Such as `2 circle, 1 square`."""
    names = [instance["class"] for instance in listed["instances"]]
    return ", ".join(f"{names.count(name)} {name}" for name in dict.fromkeys(names)) or "nothing"
