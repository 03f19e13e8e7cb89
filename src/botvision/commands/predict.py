"""``botvision predict``: masks, boxes, names and scores on images, or their classes."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from faster_coco_eval import mask as coco_mask
from PIL import Image
from rich.console import Console
from torchvision.models.detection import FasterRCNN

from botvision.commands.classify import predict_classes
from botvision.config import Device
from botvision.data.categories import Categories
from botvision.data.images import open_image
from botvision.data.loading import fit_image, to_tensor
from botvision.errors import UserError
from botvision.evaluation.coco import image_results
from botvision.files import write_text
from botvision.training.saved import ClassifierCard, DetectorCard, load_model
from botvision.training.trainer import resolve_device
from botvision.visualize.overlays import draw_instances


def detect(
    detector: FasterRCNN, image: Image.Image, image_size: int, *, score_threshold: float
) -> list[dict[str, Any]]:
    """Detections of one RGB image in COCO's result format, best first, labels for category ids.

    Args:
        detector: in eval mode.
        image: of any size.
        image_size: longer side at which the detector sees it, pixels.
        score_threshold: detections below it are left out.
    """
    seen = to_tensor(fit_image(image, image_size))
    device = next(detector.parameters()).device
    with torch.inference_mode():
        (found,) = detector([seen.to(device)])
    kept = found["scores"] >= score_threshold
    found = {name: value[kept] for name, value in found.items()}
    scale = torch.tensor([image.width, image.height]) / torch.tensor(seen.shape[:0:-1])
    return image_results(found, 0, scale, (image.height, image.width))


def draw_results(
    image: Image.Image, results: list[dict[str, Any]], categories: Categories
) -> Image.Image:
    """The image with what :func:`detect` found in it."""
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
    score_threshold: float = 0.5,
    max_detections: int | None = None,
    device: Device = "auto",
    out: Path | None = None,
    console: Console | None = None,
) -> Path:
    """Detect on images, or classify them; write pictures of it and one ``predictions.json``.

    The JSON is a list with, for each image, ``file``, ``width``, ``height`` and of a detector
    ``instances``: ``class``, ``category_id`` (of the training data), ``score``, ``bbox`` (x, y,
    width, height in pixels) and, for a segmentation model, ``segmentation`` (compressed RLE); of a
    classifier ``classes``: the five best, each with ``class`` and ``probability``.

    Args:
        run: run folder, or its ``best.safetensors``.
        images: files, or folders whose images are taken.
        score_threshold: detections below it are left out.
        max_detections: kept an image; the run's own number by default.
        device: where to run.
        out: folder to write to; ``RUN/predictions`` by default.
        console: where to say what happens; the terminal by default.

    Returns:
        The folder.

    Raises:
        UserError: no such run; or images that cannot be read, after the others were done.
    """
    console = console or Console()
    device = resolve_device(device)
    model, card = load_model(run)
    folder = out or (run if run.is_dir() else run.parent) / "predictions"
    folder.mkdir(parents=True, exist_ok=True)
    unread: list[UserError] = []
    opened = _opened(images, unread)
    if isinstance(card, ClassifierCard):
        listed = predict_classes(model, card, opened, folder, device, console)
    else:
        assert isinstance(model, FasterRCNN)
        if max_detections is not None:
            model.roi_heads.detections_per_img = max_detections
        listed = _predict_instances(
            model.to(device), card, opened, folder, score_threshold, console
        )
    write_text(folder / "predictions.json", json.dumps(listed))
    console.print(f"written to {folder}", highlight=False, soft_wrap=True)
    if unread:
        more = f" (and {len(unread) - 1} more files)" if len(unread) > 1 else ""
        raise UserError(f"{unread[0]}{more}")
    return folder


def _opened(images: list[Path], unread: list[UserError]) -> Iterator[tuple[Path, Image.Image]]:
    """The images that can be read; the faults of the others go to ``unread``."""
    for path in _files(images):
        try:
            yield path, open_image(path)
        except UserError as error:
            unread.append(error)


def _predict_instances(
    detector: FasterRCNN,
    card: DetectorCard,
    images: Iterable[tuple[Path, Image.Image]],
    folder: Path,
    score_threshold: float,
    console: Console,
) -> list[dict[str, Any]]:
    """The instances of every image, and an overlay of each in ``folder``."""
    listed: list[dict[str, Any]] = []
    taken: set[str] = set()
    for path, image in images:
        results = detect(detector, image, card.image_size, score_threshold=score_threshold)
        overlay = folder / f"{_free_name(path.stem, taken)}.png"
        draw_results(image, results, card.categories).save(overlay)
        listed.append(
            {
                "file": str(path),
                "width": image.width,
                "height": image.height,
                "instances": [_instance(result, card.categories) for result in results],
            }
        )
        console.print(f"{path}: {_counts(listed[-1])}", highlight=False, soft_wrap=True)
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
