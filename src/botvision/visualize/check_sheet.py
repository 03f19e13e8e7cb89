"""A contact sheet of images with their annotations, each under its name and what is suspicious."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image, ImageDraw

from botvision.text import printable
from botvision.visualize.overlays import CELL_SIDE, fit_cell, fit_text, text_font

COLUMNS = 4
_LINES = 2


def captioned_sheet(
    pictures: Sequence[Image.Image], captions: Sequence[tuple[str, str]]
) -> Image.Image:
    """Return the pictures as a grid on white, each above two lines of text.

    Args:
        pictures: at least one image. Each is scaled to fit a square of 640 pixels.
        captions: two lines per picture, which are shortened to its width.

    Returns:
        The sheet, an RGB image with up to four columns.
    """
    columns = min(COLUMNS, len(pictures))
    rows = -(-len(pictures) // columns)
    gap = CELL_SIDE // 40
    line = CELL_SIDE // 20
    height = CELL_SIDE + _LINES * line
    sheet = Image.new(
        "RGB", (gap + columns * (CELL_SIDE + gap), gap + rows * (height + gap)), "white"
    )
    draw = ImageDraw.Draw(sheet)
    for place, (picture, lines) in enumerate(zip(pictures, captions, strict=True)):
        row, column = divmod(place, columns)
        left, top = gap + column * (CELL_SIDE + gap), gap + row * (height + gap)
        small = fit_cell(picture)
        x = left + (CELL_SIDE - small.width) // 2
        y = top + (CELL_SIDE - small.height) // 2
        sheet.paste(small, (x, y))
        for number, (text, color) in enumerate(zip(lines, ("#222222", "#b00020"), strict=True)):
            shown = fit_text(printable(text), text_font(line * 2 // 3), CELL_SIDE)
            middle = (left + CELL_SIDE / 2, top + CELL_SIDE + (number + 0.5) * line)
            draw.text(middle, shown, fill=color, font=text_font(line * 2 // 3), anchor="mm")
    return sheet
