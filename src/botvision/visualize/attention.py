"""Where a query cell of an attention layer looks, drawn over the image."""

from collections.abc import Sequence

import matplotlib
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from PIL import Image, ImageOps

from botvision.errors import UserError
from botvision.text import printable
from botvision.visualize.figures import figure_image

DPI = 160
PANEL_INCHES = 2.0
PANEL_PIXELS = 480
INK = "#333333"
COLORS = "inferno"

Picture = npt.NDArray[np.float64]


def attention_figure(
    image: Image.Image,
    weights: npt.NDArray[np.floating],
    queries: Sequence[tuple[float, float]],
    titles: Sequence[str] | None = None,
) -> Image.Image:
    """Draw the attention of some query points, one row each.

    A row has the image with the point marked, the mean over the heads, then every head. The maps
    are enlarged (bicubic) to the image and laid over it darkened; the panels of a row share one
    color scale, whose zero is black and whose steps follow the square root of the weight, so that
    a broad map stays visible next to a sharp one.

    Args:
        image: the picture the map covers edge to edge, of any PIL mode that converts to RGB.
        weights: (heads, H, W, H, W), any float dtype, of query row, query column, key row, key
            column: each [head, row, column] map sums to one.
        queries: (x, y) points in pixels of ``image``; the cell under each is the query.
        titles: one name per query, written left of its row; the points' coordinates when None.

    Returns:
        The figure, an RGB image whose panels are 320 pixels wide.

    Raises:
        UserError: a query lies outside the image.
        ValueError: the weights have another shape, there is no query, or the titles are not as
            many as the queries.
    """
    if weights.ndim != 5 or weights.shape[1:3] != weights.shape[3:]:
        raise ValueError(f"weights must be (heads, H, W, H, W), not {weights.shape}")
    names = [f"({x:g}, {y:g})" for x, y in queries] if titles is None else list(titles)
    if not names or len(names) != len(queries):
        raise ValueError(f"{len(queries)} queries and {len(names)} titles: one each, at least one")

    heads, rows, columns = weights.shape[:3]
    small = ImageOps.contain(image.convert("RGB"), (PANEL_PIXELS, PANEL_PIXELS))
    scale = small.width / image.width
    headings = ["query", "mean of heads", *(f"head {head + 1}" for head in range(heads))]

    figure, grid = _panels(len(queries), len(headings), small.height / small.width)
    for axes, heading in zip(grid[0], headings, strict=True):
        axes.set_title(heading, fontsize=9.5, color=INK, pad=5)
    for panels, name, (x, y) in zip(grid, names, queries, strict=True):
        if not (0 <= x < image.width and 0 <= y < image.height):
            raise UserError(
                f"query ({x:g}, {y:g}): outside the image of {image.width} x {image.height} "
                "pixels; give x,y inside it, counted from the top left"
            )
        cell = int(y * rows / image.height), int(x * columns / image.width)
        maps = weights[:, cell[0], cell[1]].astype(np.float64)
        maps = np.concatenate([maps.mean(axis=0, keepdims=True), maps])
        peak = float(maps.max())
        norm = PowerNorm(0.5, vmin=0, vmax=peak, clip=True)
        panels[0].imshow(np.asarray(small))
        panels[0].set_ylabel(printable(name), fontsize=9.5, color=INK)
        for axes, weight in zip(panels[1:], maps, strict=True):
            axes.imshow(_overlay(small, weight, norm))
        for axes in panels:
            _mark(axes, x * scale, y * scale)
        _color_bar(figure, panels[-1], norm, peak)
    return figure_image(figure, DPI)


def _panels(rows: int, columns: int, aspect: float) -> tuple[Figure, list[list[Axes]]]:
    """Return a figure of bare axes, sized so that the panels touch a narrow gap."""
    gap, left, right, top, bottom = 0.07, 0.35, 0.75, 0.35, 0.1
    height = PANEL_INCHES * aspect
    size = (
        left + columns * (PANEL_INCHES + gap) - gap + right,
        bottom + rows * (height + gap) - gap + top,
    )
    figure = Figure(figsize=size, dpi=DPI, facecolor="white")
    grid = figure.subplots(
        rows,
        columns,
        squeeze=False,
        gridspec_kw={
            "left": left / size[0],
            "right": 1 - right / size[0],
            "bottom": bottom / size[1],
            "top": 1 - top / size[1],
            "wspace": gap / PANEL_INCHES,
            "hspace": gap / height,
        },
    )
    for axes in grid.flat:
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
    return figure, grid.tolist()


def _overlay(image: Image.Image, weight: Picture, norm: PowerNorm) -> Picture:
    """Return the (height, width, 3) darkened image under one (H, W) map, in [0, 1]."""
    enlarged = Image.fromarray(weight.astype(np.float32)).resize(
        image.size, Image.Resampling.BICUBIC
    )
    level = np.asarray(norm(np.asarray(enlarged)), dtype=np.float64)
    color = matplotlib.colormaps[COLORS](level)[..., :3]
    gray = np.asarray(image.convert("L"), dtype=np.float64)[..., None] / 255
    # Strong attention hides the picture, weak attention leaves it readable.
    cover = 0.4 + 0.55 * level[..., None]
    return np.asarray((1 - cover) * 0.7 * gray + cover * color)


def _mark(axes: Axes, x: float, y: float) -> None:
    axes.plot(x, y, "o", markersize=7, markerfacecolor="none", color="black", markeredgewidth=2.6)
    axes.plot(x, y, "o", markersize=7, markerfacecolor="none", color="white", markeredgewidth=1.3)


def _color_bar(figure: Figure, axes: Axes, norm: PowerNorm, peak: float) -> None:
    place = axes.inset_axes((1.05, 0.06, 0.05, 0.88))
    bar = figure.colorbar(ScalarMappable(norm, COLORS), cax=place)
    ticks = np.linspace(0, 1, 3) ** 2 * peak
    bar.set_ticks(list(ticks), labels=[f"{tick:.2g}" for tick in ticks])
    bar.outline.set_visible(False)
    place.tick_params(labelsize=7.5, colors=INK, length=2)
