"""Measure the training throughput of Mask R-CNN, compared with torchvision's detector.

    python benchmarks/detection.py --json benchmarks/results/detection-cuda.json

A step consists of a forward pass, a backward pass and an SGD update. All steps use the same images
of ellipses, and no layer is frozen. Anchors, proposals and the samples of the losses are equal. The
settings in which the detectors differ are in the result (``DIFFERENCES``).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from torch import Tensor, nn
from torchvision.models.detection import maskrcnn_resnet50_fpn

from botvision.bench.measure import Measurement, measure
from botvision.bench.report import header
from botvision.config import DetectorConfig
from botvision.detection import build_detector
from botvision.device import DTYPES, autocast
from botvision.files import write_text
from botvision.terminal import terminal

THEIRS = "torchvision's maskrcnn_resnet50_fpn"
OBJECTS = 7  # per image, as in COCO
CLASSES = 80

DIFFERENCES = {
    "feature pyramid": "batch norm after each of its 8 convolutions in ours, none in torchvision's",
    "RoIAlign on a CPU": "a sparse product in ours, torchvision's operator in torchvision's",
    "mask head": "regions padded to a multiple of 16 in ours",
    "input": "uint8 images in ours, float32 images with a resize to the same size in torchvision's",
}

Target = dict[str, Tensor]


def pictures(count: int, size: int, device: str) -> tuple[list[Tensor], list[Target]]:
    """Return noise images with ellipses, uint8 (3, size, size), and the targets of a detector."""
    generator = torch.Generator().manual_seed(0)
    y, x = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    images, targets = [], []
    for _ in range(count):
        image = torch.randint(0, 256, (3, size, size), dtype=torch.uint8, generator=generator)
        places = torch.rand(OBJECTS, 4, generator=generator)
        masks = []
        for left, top, width, height in places.tolist():
            a, b = size * (0.02 + 0.1 * width), size * (0.02 + 0.1 * height)
            middle = size * (0.25 + 0.5 * left), size * (0.25 + 0.5 * top)
            masks.append(((x - middle[0]) / a) ** 2 + ((y - middle[1]) / b) ** 2 <= 1)
            image[:, masks[-1]] //= 2
        stacked = torch.stack(masks)
        rows, columns = stacked.any(dim=2).int(), stacked.any(dim=1).int()
        first, last = (lambda m: m.argmax(dim=1)), (lambda m: size - m.flip(1).argmax(dim=1))
        boxes = torch.stack([first(columns), first(rows), last(columns), last(rows)], dim=1)
        labels = torch.randint(1, CLASSES + 1, (OBJECTS,), generator=generator)
        target = {"boxes": boxes.float(), "labels": labels, "masks": stacked.to(torch.uint8)}
        images.append(image.to(device))
        targets.append({name: value.to(device) for name, value in target.items()})
    return images, targets


def models(size: int, device: str) -> dict[str, nn.Module]:
    """Return the detectors by name."""
    theirs = maskrcnn_resnet50_fpn(
        weights=None,
        weights_backbone=None,
        num_classes=CLASSES + 1,
        min_size=size,
        max_size=size,
        rpn_post_nms_top_n_train=DetectorConfig().rpn_post_nms[0],
    )
    ours = {name: build_detector(name, CLASSES, size) for name in ("resnet50", "botnet50")}
    return {
        name: model.to(device, memory_format=torch.channels_last).train()
        for name, model in {THEIRS: theirs, **ours}.items()
    }


def step(
    model: nn.Module, images: list[Tensor], targets: list[Target], precision: Any
) -> Callable[[], Tensor]:
    """Return a function that runs one training step and returns its loss."""
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9)
    device = images[0].device.type

    def run() -> Tensor:
        with autocast(device, precision):
            losses: dict[str, Tensor] = model(images, [dict(target) for target in targets])
            loss = torch.stack(list(losses.values())).sum()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    return run


def row(name: str, precision: str, batch_size: int, measured: Measurement) -> dict[str, Any]:
    rate = None if measured.median_ms is None else 1e3 * batch_size / measured.median_ms
    return {
        "model": name,
        "precision": precision,
        "images_per_second": rate,
        "runs": measured.runs,
        "median_ms": measured.median_ms,
        "spread_ms": measured.spread_ms,
        "peak_mib": measured.peak_mib,
        "failure": measured.failure,
    }


def detection(
    *,
    image_size: int,
    batch_size: int,
    precision: list[str],
    seconds: float,
    device: str,
    json_file: Path | None,
) -> None:
    """Measure the steps alternately, print the results and write them to a file."""
    console = terminal()
    images, targets = pictures(batch_size, image_size, device)
    # torchvision's detector expects pixels in [0, 1]. The conversion is not timed.
    floats = [image / 255 for image in images]
    settings = {
        "image_size": image_size,
        "batch_size": batch_size,
        "objects": OBJECTS,
        "differences": DIFFERENCES,
        "seconds": seconds,
        "device": device,
    }
    rows: list[dict[str, Any]] = []
    for kind in precision:
        torch.manual_seed(0)
        steps = {
            name: step(model, floats if name == THEIRS else images, targets, kind)
            for name, model in models(image_size, device).items()
        }
        measured = measure(steps, seconds=seconds, device=device)
        rows += [row(name, kind, batch_size, m) for name, m in measured.items()]
    table = Table("model", "precision")
    for column in ("images/s", "median ms", "interquartile range", "peak MiB"):
        table.add_column(column, justify="right")
    for line in rows:
        if line["failure"]:
            console.print(f"{line['model']}, {line['precision']}: {line['failure']}")
            continue
        figures = [line[key] for key in ("images_per_second", "median_ms", "spread_ms", "peak_mib")]
        table.add_row(line["model"], line["precision"], *(f"{figure:.4g}" for figure in figures))
    console.print(table, soft_wrap=False)
    if json_file is not None:
        content = {**header("detection", settings), "rows": rows}
        write_text(json_file, json.dumps(content, indent=2) + "\n")


def main() -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--image-size", type=int, default=1024, help="pixels, square")
    batch_size = 8 if device == "cuda" else 1
    parser.add_argument("--batch-size", type=int, default=batch_size, help="images per step")
    parser.add_argument("--precision", nargs="+", default=["32", "bf16"], choices=list(DTYPES))
    parser.add_argument("--seconds", type=float, default=60, help="time budget per precision")
    parser.add_argument("--device", default=device, choices=["cpu", "cuda"])
    parser.add_argument("--json", type=Path, dest="json_file", help="result file")
    detection(**vars(parser.parse_args()))


if __name__ == "__main__":
    main()
