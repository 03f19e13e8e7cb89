"""Rows of the attention benchmark as curves over the size of the map."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter
from matplotlib.typing import LineStyleType

from botvision.bench.rows import CONVOLUTION, NO_POSITIONS, TIMM, AttentionRow
from botvision.visualize.curves import DPI, INK, LABEL_POINTS, PARTS, TOTAL, tidy

PRECISIONS = {"32": "float32", "bf16": "bfloat16", "16": "float16"}
# Baselines. The implementations have the other colors.
COMPARED: dict[str, tuple[str, LineStyleType]] = {
    TIMM: (TOTAL, "-"),
    NO_POSITIONS: ("#888888", "--"),
    CONVOLUTION: ("#888888", ":"),
}


def plot_attention(rows: Sequence[AttentionRow], path: Path) -> None:
    """Plot time and peak memory per image over the cells of the map, on logarithmic axes.

    Each precision has a row of panels: time and memory for each mode. Rings mark the
    implementation that ``impl="auto"`` would choose.

    Args:
        rows: Rows to plot, of any modes, precisions and maps.
        path: PNG file to write.
    """
    precisions = list(dict.fromkeys(row.precision for row in rows))
    modes = list(dict.fromkeys(row.mode for row in rows))
    subjects = list(dict.fromkeys(row.subject for row in rows))
    own = [subject for subject in subjects if subject not in COMPARED]
    colors: dict[str, tuple[str, LineStyleType]] = {
        subject: (PARTS[i % len(PARTS)], "-") for i, subject in enumerate(own)
    }
    styles = {**colors, **COMPARED}

    width, height = 1.0 + 5.4 * len(modes), 1.3 + 2.5 * len(precisions)
    figure = Figure(figsize=(width, height), facecolor="white", layout="constrained")
    panels = figure.subplots(
        len(precisions), 2 * len(modes), sharex=True, sharey="col", squeeze=False
    )
    for line, precision in enumerate(precisions):
        for column, mode in enumerate(modes):
            shown = [row for row in rows if (row.precision, row.mode) == (precision, mode)]
            for offset, name in enumerate(("median_ms", "peak_mib")):
                axes = panels[line, 2 * column + offset]
                for subject in subjects:
                    mine = [row for row in shown if row.subject == subject]
                    _draw(axes, mine, name, styles[subject])
                _label(axes, last=line == len(precisions) - 1)
                if line == 0:
                    what = ("time, ms per image", "peak memory, MiB per image")[offset]
                    axes.set_title(f"{mode}: {what}", color=INK, fontsize=LABEL_POINTS + 1)
        panels[line, 0].set_ylabel(PRECISIONS[precision], color=INK)
        panels[line, 0].yaxis.label.set_fontsize(LABEL_POINTS + 2)

    handles = [
        Line2D([], [], color=styles[s][0], linestyle=styles[s][1], linewidth=1.6, label=s)
        for s in subjects
    ]
    handles.append(
        Line2D(
            [], [], color=INK, linestyle="", marker="o", fillstyle="none", label="chosen by auto"
        )
    )
    figure.legend(
        handles=handles,
        loc="outside upper center",
        ncols=min(len(handles), 5 * len(modes)),
        frameon=False,
        fontsize=LABEL_POINTS + 0.5,
        labelcolor=INK,
    )
    figure.savefig(path, dpi=DPI)


def _draw(
    axes: Axes, rows: list[AttentionRow], name: str, style: tuple[str, LineStyleType]
) -> None:
    """Draw the line of one subject, without the maps where it failed."""
    points = sorted(
        (row.height * row.width, getattr(row, name) / row.batch_size, row.auto)
        for row in rows
        if row.failure is None
    )
    color, line = style
    cells, values = [p[0] for p in points], [p[1] for p in points]
    axes.plot(cells, values, linestyle=line, color=color, linewidth=1.5, marker=".", markersize=4)
    chosen = [p for p in points if p[2]]
    axes.plot([p[0] for p in chosen], [p[1] for p in chosen], "o", color=color, fillstyle="none")


def _label(axes: Axes, *, last: bool) -> None:
    axes.set_xscale("log")
    axes.set_yscale("log")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(LogLocator(subs=(1, 3)))
        axis.set_minor_locator(NullLocator())
        axis.set_major_formatter(StrMethodFormatter("{x:g}"))
    tidy(axes)
    if last:
        axes.set_xlabel("cells of the map", color=INK, fontsize=LABEL_POINTS)
