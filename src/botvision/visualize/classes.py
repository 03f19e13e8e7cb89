"""Pictures of a classifier's work: what it sees in images, and which classes it confuses."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure
from PIL import Image

from botvision.text import shortened
from botvision.visualize.curves import DPI, INK, LABEL_POINTS
from botvision.visualize.figures import figure_image, save_figure

COLUMNS = 4
_THUMBNAIL = 256
_NAME_LENGTH = 28
# With more classes the names no longer fit the axes.
NAMED_CLASSES = 40


def prediction_sheet(
    images: Sequence[Image.Image], top: Sequence[Sequence[tuple[str, float]]]
) -> Image.Image:
    """A contact sheet: every image over a bar for each of its best classes.

    Args:
        images: of any size, at least one.
        top: for each image names and probabilities, the best first.

    Returns:
        The sheet, an RGB image with up to four columns.
    """
    columns = min(COLUMNS, len(images))
    rows = -(-len(images) // columns)
    figure = Figure(figsize=(2.6 * columns, 3.7 * rows), facecolor="white")
    grid = figure.add_gridspec(
        2 * rows,
        columns,
        height_ratios=[2.4, 1.3] * rows,
        left=0.02,
        right=0.98,
        top=1 - 0.08 / rows,
        bottom=0.06 / rows,
        hspace=0.06,
        wspace=0.12,
    )
    for index, (image, classes) in enumerate(zip(images, top, strict=True)):
        row, column = divmod(index, columns)
        picture = image.copy()
        picture.thumbnail((_THUMBNAIL, _THUMBNAIL))
        axes = figure.add_subplot(grid[2 * row, column])
        axes.imshow(np.asarray(picture), interpolation="nearest")
        axes.set_axis_off()
        bars = figure.add_subplot(grid[2 * row + 1, column])
        names = [name for name, _ in classes]
        bars.barh(range(len(names)), [p for _, p in classes], color="#a9c4ff", height=0.82)
        for place, (name, probability) in enumerate(classes):
            text = f"{shortened(name, _NAME_LENGTH)}  {probability:.1%}"
            bars.text(0.02, place, text, va="center", fontsize=LABEL_POINTS, color=INK)
        bars.set_xlim(0, 1)
        bars.set_ylim(4.6, -0.6)
        bars.set_axis_off()
    return figure_image(figure, DPI * 0.75)


def draw_confusion(classes: Sequence[str], confusion: npt.ArrayLike, path: Path) -> None:
    """Draw a confusion matrix, each row as shares of its true class.

    Args:
        classes: names in the order of the labels.
        confusion: (C, C) counts, true class first.
        path: a PNG file.
    """
    counts = np.asarray(confusion, dtype=np.float64)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    named = len(classes) <= NAMED_CLASSES
    side = min(14.0, 3.2 + 0.32 * len(classes))
    figure = Figure(figsize=(side + 0.8, side), facecolor="white", layout="constrained")
    axes = figure.add_subplot()
    shown = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(shown, ax=axes, shrink=0.8, label="share of the true class")
    axes.set_xlabel("predicted", color=INK)
    axes.set_ylabel("true", color=INK)
    if named:
        names = [shortened(name, _NAME_LENGTH) for name in classes]
        axes.set_xticks(range(len(classes)), names, rotation=90, fontsize=LABEL_POINTS)
        axes.set_yticks(range(len(classes)), names, fontsize=LABEL_POINTS)
    if len(classes) <= 12:
        for (row, column), share in np.ndenumerate(shares):
            color = "white" if share > 0.5 else INK
            text = f"{share:.0%}" if share >= 0.005 else ""
            axes.text(column, row, text, ha="center", va="center", fontsize=7, color=color)
    save_figure(figure, path, DPI)
