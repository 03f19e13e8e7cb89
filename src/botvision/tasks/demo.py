"""``botvision demo``: from nothing to pictures worth showing, on the built-in shapes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console

from botvision.attention import RelativeAttention2d
from botvision.config import DetectionConfig
from botvision.data.coco import CocoData, find_splits, load_split
from botvision.data.formats import open_data
from botvision.data.images import open_image
from botvision.data.transforms import CropResizeFlip, fit_image
from botvision.detection import Detector, detect
from botvision.evaluation.coco import image_results
from botvision.tasks.checkpoint import DetectorSpec, load_model
from botvision.tasks.predict import draw_results
from botvision.tasks.train import train
from botvision.training.run import RunFolder
from botvision.visualize.attention import attention_figure
from botvision.visualize.curves import plot_curves
from botvision.visualize.overlays import contact_sheet, draw_instances

_IMAGES_SHOWN = 6
_QUERIES_SHOWN = 3


def demo(config: DetectionConfig, *, console: Console | None = None) -> Path:
    """Train on unseen-by-validation shapes, evaluate, and draw overlays, curves and attention.

    An interrupted demo goes on where it stopped; a complete one draws its pictures again.

    Args:
        config: the recipe's settings, with ``out``.
        console: where to say what happens; the terminal by default.

    Returns:
        The run folder.
    """
    console = console or Console()
    run = RunFolder(train(config, resume=True, console=console))
    detector, card = load_model(run.path)
    assert isinstance(detector, Detector) and isinstance(card, DetectorSpec)
    data = load_split(find_splits(open_data(config.data))["val"])
    run.predictions.mkdir(exist_ok=True)
    indices = _busiest(data, _IMAGES_SHOWN)
    rows = [_overlays(detector, card, data, index) for index in indices]
    overlays = run.predictions / "overlays.png"
    contact_sheet(rows, ["image", "ground truth", "prediction"]).save(overlays)
    plot_curves(run.events, run.plots)
    _attention(detector, card, data, indices[0]).save(run.plots / "attention.png")
    metrics = json.loads(run.metrics.read_text(encoding="utf-8"))
    ap50 = metrics["segm"]["AP50"]
    console.print(f"mask AP50 {ap50:.3f} on {metrics['images']} unseen pictures; look at")
    for path in (overlays, *sorted(run.plots.glob("*.png"))):
        console.print(f"  {path}", highlight=False, soft_wrap=True)
    return run.path


def _busiest(data: CocoData, number: int) -> list[int]:
    """Images with the most objects: they show the most."""
    first = data.annotations.first
    counts = (first[1:] - first[:-1]).tolist()
    return sorted(range(len(data)), key=lambda index: -counts[index])[:number]


def _overlays(
    detector: Detector, card: DetectorSpec, data: CocoData, index: int
) -> list[Image.Image]:
    """The image, its ground truth and what the detector finds."""
    annotations = data.annotations
    image = open_image(data.image_path(index))
    rows = range(annotations.first[index], annotations.first[index + 1])
    whole = CropResizeFlip((0, 0, image.width, image.height), image.height, image.width)
    masks, _ = whole.masks([annotations.segmentations[row] for row in rows])
    names = dict(zip(card.categories.ids, card.categories.names, strict=True))
    truth = draw_instances(
        image,
        annotations.boxes[rows.start : rows.stop],
        [names[int(annotations.category_ids[row])] for row in rows],
        masks=masks.whole().bool().numpy(),
    )
    (found,) = detect(detector, [image], score_threshold=0.5)
    results = image_results(found, 0, (image.height, image.width))
    plain = draw_instances(image, [], [])
    return [plain, truth, draw_results(image, results, card.categories)]


def _attention(detector: Detector, card: DetectorSpec, data: CocoData, index: int) -> Image.Image:
    """What the cells at the centres of the largest objects take from the whole picture."""
    fitted = fit_image(open_image(data.image_path(index)), card.image_size)
    canvas = Image.new("RGB", (card.image_size, card.image_size))
    canvas.paste(Image.fromarray(fitted.permute(1, 2, 0).numpy()))
    annotations = data.annotations
    rows = slice(annotations.first[index], annotations.first[index + 1])
    boxes = annotations.boxes[rows] * (fitted.shape[-1] / int(annotations.sizes[index][0]))
    names = dict(zip(card.categories.ids, card.categories.names, strict=True))
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    largest = areas.argsort()[::-1][:_QUERIES_SHOWN]
    return attention_figure(
        canvas,
        attention_weights(detector, fitted),
        [((x0 + x1) / 2, (y0 + y1) / 2) for x0, y0, x1, y1 in boxes[largest].tolist()],
        [names[int(annotations.category_ids[rows][k])] for k in largest],
    )


def attention_weights(detector: Detector, image: torch.Tensor) -> NDArray[np.float32]:
    """The first attention layer's weights for one image as the detector sees it.

    Returns:
        (heads, H, W, H, W), query first, over the detector's square canvas.
    """
    modules = detector.backbone.modules()
    layer = next(module for module in modules if isinstance(module, RelativeAttention2d))
    inputs: list[torch.Tensor] = []
    handle = layer.register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    with torch.inference_mode():
        detector([image])
        handle.remove()
        weights: NDArray[np.float32] = layer.probabilities(inputs[0])[0].numpy()
    return weights
