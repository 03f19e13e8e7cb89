"""The demo: train on the built-in shapes, evaluate, and draw the results."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console

from botvision.attention import RelativeAttention2d
from botvision.data.detection import DetectionData
from botvision.data.formats import detection_splits
from botvision.data.transforms import CropResizeFlip, fit_image
from botvision.detection import Detector
from botvision.files import make_folder
from botvision.tasks.load import DetectionModel, load
from botvision.tasks.train import train
from botvision.terminal import print_text, terminal
from botvision.training.run import Run
from botvision.visualize.attention import attention_figure
from botvision.visualize.curves import plot_curves
from botvision.visualize.figures import save_image
from botvision.visualize.overlays import contact_sheet, draw_instances

_IMAGES_SHOWN = 6
_QUERIES_SHOWN = 3


def demo(
    out: str | Path = "runs/demo",
    *,
    data: str = "shapes",
    recipe: str = "demo",
    console: Console | None = None,
    **settings: Any,
) -> Run:
    """Train on the built-in shapes, evaluate on unseen ones, and draw the results.

    An interrupted demo is resumed. A complete demo only draws its pictures again.

    Args:
        out: run folder.
        data: name of a built-in data set, or other detection data with masks.
        recipe: name of a recipe.
        console: where to print. By default the terminal or notebook.
        settings: further settings of ``train``, such as ``max_steps=100``.

    Returns:
        The run.
    """
    console = console or terminal()
    run = train(data, recipe=recipe, out=out, resume=True, console=console, **settings)
    model = load(run)
    assert isinstance(model, DetectionModel)
    val = detection_splits(data)["val"](None)
    make_folder(run.predictions)
    counts = [len(val.objects(index).boxes) for index in range(len(val))]
    busiest = sorted(range(len(val)), key=lambda index: -counts[index])[:_IMAGES_SHOWN]
    overlays = run.predictions / "overlays.png"
    rows = [_overlays(model, val, index) for index in busiest]
    plot_curves(run.events_file, run.plots)
    save_image(contact_sheet(rows, ["image", "ground truth", "prediction"]), overlays)
    save_image(_attention(model, val, busiest[0]), run.plots / "attention.png")
    metrics = run.metrics
    ap50 = metrics["segm"]["AP50"]
    print_text(console, f"mask AP50 {ap50:.3f} on {metrics['images']} unseen images; pictures:")
    for path in (overlays, *sorted(run.plots.glob("*.png"))):
        print_text(console, f"  {path}")
    return run


def _overlays(model: DetectionModel, data: DetectionData, index: int) -> list[Image.Image]:
    """Return the image, its ground truth and the prediction as pictures."""
    image, objects = data.image(index), data.objects(index)
    whole = CropResizeFlip.fit(*image.size, max(image.size))
    masks, _ = whole.masks([mask for mask in objects.segmentations if mask is not None])
    truth = draw_instances(
        image,
        objects.boxes,
        _names(model, objects.category_ids),
        masks=masks.whole().bool().numpy(),
    )
    (prediction,) = model.predict(image)
    return [draw_instances(image, [], []), truth, prediction.draw()]


def _names(model: DetectionModel, category_ids: NDArray[np.int64]) -> list[str]:
    categories = model.spec.categories
    names = dict(zip(categories.ids, categories.names, strict=True))
    return [names[category] for category in category_ids.tolist()]


def _attention(model: DetectionModel, data: DetectionData, index: int) -> Image.Image:
    """Draw the attention of the positions at the centers of the largest objects."""
    size = model.spec.image_size
    image, objects = data.image(index), data.objects(index)
    fitted = fit_image(image, size)
    canvas = Image.new("RGB", (size, size))
    canvas.paste(Image.fromarray(fitted.permute(1, 2, 0).numpy()))
    boxes = objects.boxes * (fitted.shape[-1] / image.width)
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    largest = areas.argsort()[::-1][:_QUERIES_SHOWN]
    return attention_figure(
        canvas,
        attention_weights(model.module, fitted.to(model.device)),
        [((x0 + x1) / 2, (y0 + y1) / 2) for x0, y0, x1, y1 in boxes[largest].tolist()],
        _names(model, objects.category_ids[largest]),
    )


def attention_weights(detector: Detector, image: torch.Tensor) -> NDArray[np.float32]:
    """Return the attention weights of the first attention layer for one image.

    Returns:
        (heads, H, W, H, W), float32, over the detector's square canvas. The query axes come first.
    """
    modules = detector.backbone.modules()
    layer = next(module for module in modules if isinstance(module, RelativeAttention2d))
    inputs: list[torch.Tensor] = []
    handle = layer.register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    with torch.inference_mode():
        detector([image])
        handle.remove()
        weights: NDArray[np.float32] = layer.probabilities(inputs[0])[0].cpu().numpy()
    return weights
