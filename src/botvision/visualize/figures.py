"""How figures become files and images."""

from __future__ import annotations

import warnings
from io import BytesIO
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from botvision.files import atomic


def save_figure(figure: Figure, path: Path, dpi: float) -> None:
    """Write a figure as a PNG file, whole or not at all.

    Args:
        figure: the figure. A ``$`` in its texts is a dollar sign and starts no formula.
        path: the PNG file. A link in its place is replaced.
        dpi: dots per inch.
    """
    with atomic(path) as temporary:
        temporary.write_bytes(_png(figure, dpi).getbuffer())


def figure_image(figure: Figure, dpi: float) -> Image.Image:
    """Return a figure as an RGB image, with the texts as in ``save_figure``."""
    return Image.open(_png(figure, dpi)).convert("RGB")


def save_image(image: Image.Image, path: Path) -> None:
    """Write an image as a PNG file, whole or not at all. A link in its place is replaced."""
    with atomic(path) as temporary:
        image.save(temporary, format="PNG")


def _png(figure: Figure, dpi: float) -> BytesIO:
    for text in figure.findobj(Text):
        assert isinstance(text, Text)
        text.set_parse_math(False)
    buffer = BytesIO()
    with warnings.catch_warnings():
        # A letter that the font does not have is drawn as a box.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure.savefig(buffer, format="png", dpi=dpi)
    return buffer
