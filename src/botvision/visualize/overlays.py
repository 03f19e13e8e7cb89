"""Instances drawn over their image, and such drawings laid out side by side."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import matplotlib
import numpy as np
import numpy.typing as npt
from PIL import Image, ImageColor, ImageDraw, ImageFilter, ImageFont, ImageOps

from botvision.text import printable

SHORTEST_SIDE = 480
LONGEST_ENLARGED_SIDE = 4096
CROWD = 40
FILL_OPACITY = 0.35
CELL_SIDE = 640
# No longer text fits an image, and measuring it takes time.
_LONGEST_TEXT = 1000

# Next to each other in the list means far apart in hue and lightness, since neighbors in an
# image often have neighboring indices.
PALETTE = tuple(
    ImageColor.getrgb(code)
    for code in (
        "#ff4b4b",
        "#2fd6e8",
        "#ffd21f",
        "#5a6bff",
        "#5fdc4a",
        "#f032e6",
        "#ff9a2e",
        "#2c9cff",
        "#d6f24a",
        "#b14aff",
        "#19c9a0",
        "#ff7eb6",
        "#b8894b",
        "#a9c4ff",
    )
)

Box = tuple[int, int, int, int]
Color = tuple[int, ...]


def draw_instances(
    image: Image.Image,
    boxes: npt.ArrayLike,
    labels: Sequence[str],
    scores: npt.ArrayLike | None = None,
    masks: Iterable[npt.NDArray[np.bool_]] | None = None,
) -> Image.Image:
    """Return an RGB copy of ``image`` with its instances drawn over it.

    An image whose shorter side is below 480 px is first enlarged (bicubic) by the smallest integer
    factor that reaches it, unless the longer side would pass 4096 px; masks and boxes follow. An
    instance's color depends on its index only. If there are more than 40 instances, the name tags
    are left out, the lines are thinner, and the boxes are left out too where there are masks.

    Args:
        image: the picture, of any PIL mode that converts to RGB.
        boxes: (n, 4), xyxy in pixels of ``image``; what lies outside the image is cut off.
        labels: n class names.
        scores: (n,) confidences shown after the names, or None for ground truth.
        masks: n boolean arrays (height, width) of ``image``, or None. Read one at a time, so a
            generator that decodes each mask when asked keeps one in memory.

    Raises:
        ValueError: the counts differ, or a mask has another size than the image.
    """
    corners = np.asarray(boxes, dtype=np.float64).reshape(-1, 4)
    count = len(corners)
    texts = _tag_texts(labels, scores)
    if len(texts) != count:
        raise ValueError(f"{count} boxes but {len(texts)} labels")

    factor = _enlargement(image.size)
    size = (image.width * factor, image.height * factor)
    canvas = image.convert("RGB").resize(size, Image.Resampling.BICUBIC)
    crowded = count > CROWD

    if masks is not None:
        outline = max(1, round(min(size) / (640 if crowded else 320)))
        canvas = _paint_masks(canvas, masks, count, factor, outline)
    pixels = _pixel_boxes(corners * factor, size)
    draw = ImageDraw.Draw(canvas)
    if masks is None or not crowded:
        line = max(1, round(min(size) / (640 if crowded else 480)))
        for index, box in enumerate(pixels):
            draw.rectangle(box, outline=_color(index), width=line)
    if not crowded:
        _draw_tags(draw, pixels, texts, size)
    return canvas


def contact_sheet(rows: Sequence[Sequence[Image.Image]], titles: Sequence[str]) -> Image.Image:
    """Return the images as a grid on white, one title over each column.

    Every image is scaled, keeping its aspect, to fit a 640 px square; the cells then all take the
    size of the widest and the tallest, with the images centered in them.

    Args:
        rows: one sequence of images per row, each as long as ``titles``.
        titles: the column titles.

    Raises:
        ValueError: there is no row, or a row has another length than ``titles``.
    """
    if not rows or any(len(row) != len(titles) for row in rows):
        raise ValueError(f"each of at least one row must have {len(titles)} images, as the titles")
    fitted = [[fit_cell(picture) for picture in row] for row in rows]
    width = max(picture.width for row in fitted for picture in row)
    height = max(picture.height for row in fitted for picture in row)
    gap, header = CELL_SIDE // 40, CELL_SIDE // 12

    sheet = Image.new(
        "RGB",
        (gap + len(titles) * (width + gap), header + len(rows) * (height + gap)),
        "white",
    )
    draw = ImageDraw.Draw(sheet)
    font = text_font(header // 2)
    for column, title in enumerate(titles):
        left = gap + column * (width + gap)
        text = fit_text(printable(title), font, width)
        draw.text((left + width / 2, header / 2), text, fill="#222222", font=font, anchor="mm")
        for row, pictures in enumerate(fitted):
            picture = pictures[column]
            x = left + (width - picture.width) // 2
            y = header + row * (height + gap) + (height - picture.height) // 2
            sheet.paste(picture, (x, y))
    return sheet


def fit_cell(picture: Image.Image) -> Image.Image:
    """Return an RGB picture, scaled to fit the square cell of a contact sheet."""
    square = (CELL_SIDE, CELL_SIDE)
    return ImageOps.contain(picture.convert("RGB"), square, Image.Resampling.LANCZOS)


def _color(index: int) -> Color:
    return PALETTE[index % len(PALETTE)]


def text_font(size: int) -> ImageFont.FreeTypeFont:
    """Return the font of all texts in pictures, ``size`` pixels high."""
    # Matplotlib ships this font, so the drawing is the same on every system.
    path = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
    return ImageFont.truetype(path, size)


def _enlargement(size: tuple[int, int]) -> int:
    wanted = -(-SHORTEST_SIDE // min(size))
    return max(1, min(wanted, LONGEST_ENLARGED_SIDE // max(size)))


def _tag_texts(labels: Sequence[str], scores: npt.ArrayLike | None) -> list[str]:
    names = [printable(label) for label in labels]
    if scores is None:
        return names
    values = np.asarray(scores, dtype=np.float64)
    return [f"{name} {score:.2f}" for name, score in zip(names, values, strict=True)]


def _paint_masks(
    canvas: Image.Image,
    masks: Iterable[npt.NDArray[np.bool_]],
    count: int,
    factor: int,
    outline: int,
) -> Image.Image:
    """Fill and outline each mask; only the surroundings of a mask are touched."""
    width, height = canvas.width // factor, canvas.height // factor
    pixels = np.array(canvas)
    painted = 0
    for index, mask in enumerate(masks):
        if mask.shape != (height, width):
            raise ValueError(f"mask {index} has shape {mask.shape}, the image {(height, width)}")
        painted += 1
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        if not len(rows):
            continue
        top, bottom, left, right = rows[0], rows[-1] + 1, columns[0], columns[-1] + 1
        inside = _enlarge_mask(mask[top:bottom, left:right], factor)
        rim = inside & ~_erode(inside, outline)
        region = pixels[top * factor : bottom * factor, left * factor : right * factor]
        color = np.array(_color(index))
        blend = (1 - FILL_OPACITY) * region[inside] + FILL_OPACITY * color
        region[inside] = blend.round().astype(np.uint8)
        region[rim] = color
    if painted != count:
        raise ValueError(f"{count} boxes but {painted} masks")
    return Image.fromarray(pixels)


def _enlarge_mask(mask: npt.NDArray[np.bool_], factor: int) -> npt.NDArray[np.bool_]:
    """Return a (height, width) mask, enlarged with smooth edges instead of blocks."""
    # The border of zeros lets the edges of the crop be interpolated like any other.
    padded = Image.fromarray(np.pad(mask, 1).astype(np.uint8) * 255)
    smooth = padded.resize(
        (padded.width * factor, padded.height * factor), Image.Resampling.BICUBIC
    )
    return np.asarray(smooth)[factor:-factor, factor:-factor] > 127


def _erode(mask: npt.NDArray[np.bool_], radius: int) -> npt.NDArray[np.bool_]:
    padded = Image.fromarray(np.pad(mask, radius).astype(np.uint8) * 255)
    eroded = padded.filter(ImageFilter.MinFilter(2 * radius + 1))
    return np.asarray(eroded)[radius:-radius, radius:-radius] > 127


def _pixel_boxes(corners: npt.NDArray[np.float64], size: tuple[int, int]) -> list[Box]:
    """Return inclusive pixel corners inside the image."""
    boxes: list[Box] = []
    for x0, y0, x1, y1 in corners:
        left, top = (int(np.clip(v, 0, s - 1)) for v, s in zip((x0, y0), size, strict=True))
        right, bottom = (
            int(np.clip(np.ceil(v) - 1, low, s - 1))
            for v, low, s in zip((x1, y1), (left, top), size, strict=True)
        )
        boxes.append((left, top, right, bottom))
    return boxes


def _draw_tags(
    draw: ImageDraw.ImageDraw, boxes: Sequence[Box], texts: Sequence[str], size: tuple[int, int]
) -> None:
    """Draw each text on a plate of its color, at the corner where it hides least of the rest."""
    font = text_font(max(12, round(min(size) / 40)))
    pad = max(2, round(font.size / 5))
    height = sum(font.getmetrics()) + pad
    taken: list[Box] = []

    def cost(spot: Box) -> float:
        # A hidden name is worse than a hidden object, whose outline often still shows.
        names = sum(_hidden(other, spot) for other in taken)
        return 3 * names + sum(_hidden(box, spot) for box in boxes)

    for index, (box, text) in enumerate(zip(boxes, texts, strict=True)):
        text = fit_text(text, font, size[0] - 2 * pad)
        width = round(font.getlength(text)) + 2 * pad
        left, top, right, bottom = box
        spots = [
            _plate(x, y, width, height, size)
            for y in (top - height, top, bottom + 1, bottom + 1 - height)
            for x in (left, right + 1 - width)
        ]
        plate = min(spots, key=cost)
        taken.append(plate)
        red, green, blue = _color(index)
        dark_text = 0.299 * red + 0.587 * green + 0.114 * blue > 120
        draw.rectangle(plate, fill=_color(index))
        middle = ((plate[0] + plate[2] + 1) / 2, (plate[1] + plate[3] + 1) / 2)
        draw.text(middle, text, fill="black" if dark_text else "white", font=font, anchor="mm")


def fit_text(text: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    """Return a text that fits a width.

    Args:
        text: the text, in one line.
        font: font that it is drawn with.
        width: greatest width in pixels.

    Returns:
        The text, cut with an ellipsis if it is wider.
    """
    longest = text[:_LONGEST_TEXT]
    if font.getlength(longest) <= width and longest == text:
        return text
    text = longest
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text + "…"


def _plate(x: int, y: int, width: int, height: int, size: tuple[int, int]) -> Box:
    """Return the tag's inclusive corners, moved into the image where they would leave it."""
    left = max(0, min(x, size[0] - width))
    top = max(0, min(y, size[1] - height))
    return left, top, left + width - 1, top + height - 1


def _hidden(box: Box, plate: Box) -> float:
    """Return the share of ``box`` that lies under ``plate``."""
    width = min(box[2], plate[2]) - max(box[0], plate[0]) + 1
    height = min(box[3], plate[3]) - max(box[1], plate[1]) + 1
    area = (box[2] - box[0] + 1) * (box[3] - box[1] + 1)
    return max(0, width) * max(0, height) / area
