"""Precision over recall of a detector's boxes and masks."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.typing import LineStyleType

from botvision.evaluation.precision_recall import RECALLS, PrecisionRecall
from botvision.files import make_folder
from botvision.text import shortened
from botvision.visualize.curves import DPI, INK, LABEL_POINTS, PARTS, TOTAL, Values, tidy
from botvision.visualize.figures import save_figure

# Name and, where no class is drawn beside it, color: as in the curves of a training.
KINDS = {"bbox": ("boxes", "#0072b2"), "segm": ("masks", "#d55e00")}
STYLES: dict[str, LineStyleType] = {"0.50": "-", "0.75": "--", "0.50:0.95": ":"}
_NAME_LENGTH = 16


def plot_precision_recall(curves: Mapping[str, PrecisionRecall], folder: Path) -> Path:
    """Draw ``precision_recall.png``: a panel for boxes and one for masks, legends with the AP.

    The mean over the classes at IoU 0.50, at 0.75 and over 0.50:0.95, and each class at IoU 0.50 if
    they are two to six: more have no colors of their own, and one is its own mean.

    Args:
        curves: by kind, ``bbox`` and ``segm``.
        folder: where the PNG file goes; made when missing.

    Returns:
        The path of the PNG file.
    """
    figure = Figure(figsize=(4.3 * len(curves), 5), facecolor="white", layout="constrained")
    space = {"wspace": 0.06}
    panels = figure.subplots(1, len(curves), sharey=True, squeeze=False, gridspec_kw=space)[0]
    for axes, (kind, curve) in zip(panels, curves.items(), strict=True):
        _draw(axes, curve, *KINDS[kind])
    panels[0].set_ylabel("precision", color=INK)
    make_folder(folder)
    path = folder / "precision_recall.png"
    save_figure(figure, path, DPI)
    return path


def _draw(axes: Axes, curve: PrecisionRecall, title: str, color: str) -> None:
    count = len(curve.classes)
    drawn = curve.classes if 1 < count <= len(PARTS) else ()
    of = "no objects" if not count else f"mean over {count} classes"
    of = shortened(curve.classes[0], _NAME_LENGTH) if count == 1 else of
    axes.set_title(f"{title}: {of}", color=INK, fontsize=LABEL_POINTS + 1.5, loc="left")
    for index, name in enumerate(shortened(name, _NAME_LENGTH) for name in drawn):
        _line(axes, curve.of_class("0.50", index), name, PARTS[index], "-", 1.2)
    for iou, style in STYLES.items() if count else ():
        name = f"mean, IoU {iou}" if drawn else f"IoU {iou}"
        _line(axes, curve.mean(iou), name, TOTAL if drawn else color, style, 1.9)
    tidy(axes)
    axes.set(xlim=(0, 1), ylim=(0, 1.02))
    axes.set_xlabel("recall", color=INK, fontsize=LABEL_POINTS + 1)
    if count:
        axes.legend(
            title="AP, of classes at IoU 0.50" if drawn else "AP",
            loc="upper center",
            bbox_to_anchor=(0.5, -0.13),
            ncols=2,
            frameon=False,
            fontsize=LABEL_POINTS,
            title_fontsize=LABEL_POINTS,
            labelcolor=INK,
        )


def _line(
    axes: Axes, precision: Values, name: str, color: str, style: LineStyleType, width: float
) -> None:
    # Up to the first recall that is not reached: lines along the axis would hide it.
    end = np.count_nonzero(precision) + 1
    label = f"{name}  {precision.mean():.3f}"
    axes.plot(
        RECALLS[:end], precision[:end], color=color, linestyle=style, linewidth=width, label=label
    )
