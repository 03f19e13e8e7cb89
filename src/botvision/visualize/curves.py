"""The curves of a run, drawn from its event file."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, LogLocator, MaxNLocator, NullLocator, StrMethodFormatter

from botvision.errors import UserError
from botvision.files import make_folder
from botvision.text import shortened
from botvision.visualize.figures import save_figure

DPI = 160
INK = "#333333"
LABEL_POINTS = 8.5
# Okabe and Ito's colors, which stay apart for color-blind readers; the total comes in black.
TOTAL = "#111111"
PARTS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
# Curves of the evaluations, by picture: task (a dict of the event, or the event itself), metric,
# name, color and line.
Curve = tuple[str | None, str, str, str, str]
AP_CURVES: tuple[Curve, ...] = (
    ("bbox", "AP50", "box AP50", "#0072b2", "--"),
    ("bbox", "AP", "box AP", "#0072b2", "-"),
    ("segm", "AP50", "mask AP50", "#d55e00", "--"),
    ("segm", "AP", "mask AP", "#d55e00", "-"),
)
ACCURACY_CURVES: tuple[Curve, ...] = (
    (None, "top5", "top-5", "#d55e00", "-"),
    (None, "top1", "top-1", "#0072b2", "-"),
)

Values = npt.NDArray[np.float64]
Event = dict[str, Any]


def plot_curves(events: Path, folder: Path) -> list[Path]:
    """Draw a run's training loss, and its AP or accuracy where it was evaluated.

    ``folder/loss.png`` has the loss and every ``loss_*`` part (each step faint, a centered running
    mean over 1/40 of the run clear) over the learning rate; ``folder/ap.png`` has the AP and AP50
    of boxes and masks, ``folder/accuracy.png`` a classifier's top-1 and top-5; each is written only
    when there are such evaluations. Lines that are not JSON are skipped, for a killed process may
    leave one; of two events at one step, which a resumed run leaves, the later counts.

    Args:
        events: a run's ``metrics.jsonl``, one JSON object a line. ``{"event": "train", "step",
            "loss", "loss_*", "lr"}`` and ``{"event": "eval", "step", "bbox": {"AP", "AP50"},
            "segm": {...}, "top1", "top5"}`` are drawn, other events skipped.
        folder: where the PNG files go; made when missing.

    Returns:
        The paths written, ``loss.png`` first.

    Raises:
        UserError: there is no such file, or it has no train event.
    """
    if not events.is_file():
        raise UserError(f"{events}: no such file; give the metrics.jsonl of a training run")
    records = _read_events(events)
    train = _by_step(record for record in records if record["event"] == "train")
    evaluations = _by_step(record for record in records if record["event"] == "eval")
    if not train:
        raise UserError(f"{events}: has no train event to draw; train for at least one logged step")

    make_folder(folder)
    written = [folder / "loss.png"]
    save_figure(_loss_figure(train), written[0], DPI)
    for name, label, curves in (
        ("ap.png", "average precision", AP_CURVES),
        ("accuracy.png", "accuracy", ACCURACY_CURVES),
    ):
        drawn = [
            e for e in evaluations if any((task or metric) in e for task, metric, *_ in curves)
        ]
        if drawn:
            written.append(folder / name)
            save_figure(_evaluation_figure(drawn, curves, label), written[-1], DPI)
    return written


def _read_events(path: Path) -> list[Event]:
    records: list[Event] = []
    with path.open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            try:
                record = json.loads(line)
            except json.JSONDecodeError:
                continue
            if isinstance(record, dict) and "event" in record and type(record.get("step")) is int:
                records.append(record)
    return records


def _by_step(records: Iterable[Event]) -> list[Event]:
    latest = {record["step"]: record for record in records}
    return [latest[step] for step in sorted(latest)]


def _loss_figure(train: list[Event]) -> Figure:
    figure = Figure(figsize=(7.2, 4.8), facecolor="white")
    grid = figure.add_gridspec(
        2, 1, height_ratios=(3.8, 1), hspace=0.12, left=0.1, right=0.83, top=0.97, bottom=0.1
    )
    losses = figure.add_subplot(grid[0])
    rates = figure.add_subplot(grid[1], sharex=losses)

    steps = _column(train, "step")
    marker = "o-" if len(train) == 1 else "-"  # one point makes no line
    parts = sorted({key for event in train for key in event if key.startswith("loss_")})
    ends: list[tuple[str, str, float]] = []
    for index, key in enumerate(["loss", *parts]):
        color = PARTS[(index - 1) % len(PARTS)] if index else TOTAL
        values = _column(train, key)
        smooth = _running_mean(values)
        losses.plot(steps, values, color=color, alpha=0.15, linewidth=0.7)
        losses.plot(steps, smooth, marker, color=color, linewidth=1.4 if index else 1.9)
        name = shortened(key.removeprefix("loss_"), 20).replace("_", " ") if index else "total"
        ends.append((name, color, _last(smooth)))
    # The parts differ by orders of magnitude, so a linear scale would show the total alone.
    losses.set_yscale("log")
    losses.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    losses.yaxis.set_minor_locator(NullLocator())
    losses.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    losses.set_ylabel("loss", color=INK)
    losses.tick_params(labelbottom=False)

    rates.plot(steps, _column(train, "lr"), marker, color=INK, linewidth=1.4)
    rates.set_ylim(bottom=0)
    rates.yaxis.set_major_locator(MaxNLocator(2, steps=[1, 2, 5, 10]))
    rates.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    rates.set_ylabel("learning rate", color=INK)
    for axes in (losses, rates):
        tidy(axes)
    _label_steps(rates, steps)
    _label_ends(losses, ends)
    figure.align_ylabels()
    return figure


def _evaluation_figure(evaluations: list[Event], curves: tuple[Curve, ...], label: str) -> Figure:
    figure = Figure(figsize=(7.2, 4.2), facecolor="white")
    axes = figure.add_axes((0.1, 0.12, 0.7, 0.84))
    steps = _column(evaluations, "step")
    ends: list[tuple[str, str, float]] = []
    for task, metric, name, color, style in curves:
        # COCO's evaluation gives -1 where there is nothing to find.
        values = _column([event.get(task, {}) if task else event for event in evaluations], metric)
        values = np.where(values < 0, np.nan, values)
        if np.isnan(values).all():
            continue
        axes.plot(
            steps,
            values,
            style,
            color=color,
            linewidth=1.6,
            marker="o",
            markersize=3.5,
            markeredgewidth=0,
        )
        last = _last(values)
        ends.append((f"{name} {last:.3f}", color, last))
    axes.set_ylim(bottom=0)
    axes.set_ylabel(label, color=INK)
    tidy(axes)
    _label_steps(axes, steps)
    _label_ends(axes, ends)
    return figure


def _column(events: list[Event], key: str) -> Values:
    """Return one key's values, NaN where an event has no number."""
    values = [event.get(key) if isinstance(event, dict) else None for event in events]
    return np.array([v if isinstance(v, int | float) else np.nan for v in values], dtype=np.float64)


def _running_mean(values: Values) -> Values:
    """Return the centered mean over 1/40 of the values, over the finite ones that are there."""
    window = np.ones(2 * (len(values) // 80) + 1)
    finite = np.isfinite(values)
    count = np.convolve(finite, window, mode="same")
    total = np.convolve(np.where(finite, values, 0), window, mode="same")
    return np.asarray(np.where(count > 0, total / np.maximum(count, 1), np.nan))


def _last(values: Values) -> float:
    finite = values[np.isfinite(values)]
    return float(finite[-1]) if len(finite) else float("nan")


def tidy(axes: Axes) -> None:
    """Give a panel the project's grid, spines and ticks."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#999999")
    axes.grid(color="#e6e6e6", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.tick_params(colors=INK, labelsize=LABEL_POINTS, length=3, color="#999999")
    axes.yaxis.label.set_fontsize(LABEL_POINTS + 1)


def _label_steps(axes: Axes, steps: Values) -> None:
    axes.set_xlim(0, max(1, 1.01 * steps[-1]))
    axes.xaxis.set_major_locator(MaxNLocator(7, integer=True))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.set_xlabel("step", color=INK, fontsize=LABEL_POINTS + 1)


def _label_ends(axes: Axes, ends: list[tuple[str, str, float]]) -> None:
    """Write each curve's name right of its last value, pushed apart where they would overlap."""
    scale = axes.transData + axes.transAxes.inverted()
    named = [
        (float(scale.transform((0, value))[1]), name, color)
        for name, color, value in ends
        if np.isfinite(value)
    ]
    named.sort()
    gap = 1.35 * LABEL_POINTS / (axes.get_window_extent().height * 72 / axes.figure.dpi)
    heights = [height for height, _, _ in named]
    for index in range(1, len(heights)):
        heights[index] = max(heights[index], heights[index - 1] + gap)
    ceiling = 1.0
    for index in reversed(range(len(heights))):
        heights[index] = min(heights[index], ceiling)
        ceiling = heights[index] - gap
    for height, (_, name, color) in zip(heights, named, strict=True):
        axes.text(
            1.015,
            height,
            name,
            color=color,
            fontsize=LABEL_POINTS,
            va="center",
            transform=axes.transAxes,
        )
