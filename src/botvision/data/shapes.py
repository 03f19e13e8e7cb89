"""Two generated instance-segmentation sets in COCO format: `shapes` and `shapes-context`.

`shapes` asks for six kinds of shape, whatever their color, texture, size and pose. In
`shapes-context` the class of a ring depends on whether a square is visible anywhere in the image,
so that a detector that sees only the ring cannot tell `ring_a` from `ring_b`.
"""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from faster_coco_eval.core import mask as rle
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from botvision.errors import UserError

Floats = NDArray[np.floating[Any]]

SHAPES_CLASSES = ("circle", "square", "triangle", "ring")
CONTEXT_CLASSES = ("circle", "square", "triangle", "ring_a", "ring_b")

MIN_IMAGE_SIZE = 64  # below it the smallest shapes have fewer pixels than MIN_AREA
MIN_AREA = 30  # visible pixels
MIN_VISIBLE = 0.7  # of the shape's pixels in the frame
MIN_SCALE, MAX_SCALE = 0.20, 0.60  # diameter of the circumscribed circle / image side


# OKLab (B. Ottosson, 2020) to the cube roots of cone responses, and those to linear sRGB.
LAB_TO_LMS = np.array(
    (
        (1, 0.3963377774, 0.2158037573),
        (1, -0.1055613458, -0.0638541728),
        (1, -0.0894841775, -1.2914855480),
    )
)
LMS_TO_RGB = np.array(
    (
        (4.0767416621, -3.3077115913, 0.2309699292),
        (-1.2684380046, 2.6097574011, -0.3413193965),
        (-0.0041960863, -0.7034186147, 1.7076147010),
    )
)


def write_shapes(
    root: Path,
    *,
    context: bool = False,
    train: int = 600,
    val: int = 100,
    image_size: int = 160,
    seed: int = 0,
) -> None:
    """Write a generated set as a COCO folder.

    The folder holds `train/000000.jpg`, ..., `val/000000.jpg`, ... and
    `annotations/instances_{train,val}.json`. A mask is the visible pixels of its instance, as
    compressed run lengths; masks of one image do not overlap. Image i of a split depends on
    (context, image_size, seed, split, i) only: a small set is the beginning of a large one, and
    writing twice produces the same bytes.

    Args:
        root: the folder to write; it is made when missing, and files of the same name are
            overwritten.
        context: write `shapes-context` in place of `shapes`.
        train: number of training images.
        val: number of validation images.
        image_size: side of the square images in pixels, at least 64.
        seed: seed of the set.

    Raises:
        UserError: image_size is below 64, or train, val or seed is negative.
    """
    if image_size < MIN_IMAGE_SIZE:
        raise UserError(f"image_size is {image_size}: must be at least {MIN_IMAGE_SIZE}")
    if min(train, val, seed) < 0:
        raise UserError(f"train={train}, val={val}, seed={seed}: give no negative number")
    classes = CONTEXT_CLASSES if context else SHAPES_CLASSES
    (root / "annotations").mkdir(parents=True, exist_ok=True)
    for split_index, (split, count) in enumerate((("train", train), ("val", val))):
        (root / split).mkdir(exist_ok=True)
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for i in range(count):
            rng = np.random.default_rng([seed, split_index, i])
            picture, instances = _sample(rng, image_size, context)
            name = f"{i:06d}.jpg"
            picture.save(root / split / name, quality=95, subsampling=0)
            images.append(
                {"id": i + 1, "file_name": name, "width": image_size, "height": image_size}
            )
            for class_name, mask in instances:
                run_lengths = rle.encode(np.asfortranarray(mask, dtype=np.uint8))
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": i + 1,
                        "category_id": classes.index(class_name) + 1,
                        "bbox": rle.toBbox(run_lengths).tolist(),
                        "area": int(mask.sum()),
                        "iscrowd": 0,
                        "segmentation": {
                            "size": [image_size, image_size],
                            "counts": run_lengths["counts"].decode("ascii"),
                        },
                    }
                )
        dataset = {
            "info": {
                "description": f"botvision {'shapes-context' if context else 'shapes'} {split}",
                "version": "1",
                "seed": seed,
            },
            "licenses": [],
            "images": images,
            "annotations": annotations,
            "categories": [
                {"id": k, "name": class_name, "supercategory": "shape"}
                for k, class_name in enumerate(classes, start=1)
            ],
        }
        (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(dataset))


def _sample(
    rng: np.random.Generator, size: int, context: bool
) -> tuple[Image.Image, list[tuple[str, NDArray[np.bool_]]]]:
    """Draw one image; return it with the class name and visible mask of each instance."""
    shapes = (
        _context_shapes(rng) if context else rng.choice(SHAPES_CLASSES, rng.integers(2, 6)).tolist()
    )
    canvas = _background(rng, size)
    visible: list[NDArray[np.bool_]] = []
    areas: list[int] = []  # in the frame, before other shapes cover it
    for shape in shapes:
        while True:
            x, y, distance = _place(rng, shape, size)
            mask = distance < 0
            left = [old & ~mask for old in visible]
            if mask.sum() >= MIN_AREA and all(
                m.sum() >= max(MIN_AREA, MIN_VISIBLE * a) for m, a in zip(left, areas, strict=True)
            ):
                break
        visible = [*left, mask]
        areas.append(int(mask.sum()))
        _paint(rng, canvas, x, y, distance)
    grain = rng.standard_normal(canvas.shape, dtype=np.float32)
    canvas += rng.uniform(0.005, 0.02) * grain
    pixels = (canvas.clip(0, 1) * 255).round().astype(np.uint8)
    if context:
        ring = "ring_a" if "square" in shapes else "ring_b"
        shapes = [ring if shape == "ring" else shape for shape in shapes]
    return Image.fromarray(pixels), list(zip(shapes, visible, strict=True))


def _context_shapes(rng: np.random.Generator) -> list[str]:
    """Draw the shapes of a `shapes-context` image: a ring, a square in half the images, others.

    The numbers of shapes and of rings have the same distribution with and without a square.

    Returns:
        The names of 2 to 6 shapes, in random order.
    """
    others = rng.choice(["ring", "square", "circle", "triangle"], rng.integers(5)).tolist()
    shapes = ["ring", "square", *others]
    if rng.random() < 0.5:
        fill = rng.choice(["circle", "triangle"], len(shapes)).tolist()
        shapes = [fill[k] if shape == "square" else shape for k, shape in enumerate(shapes)]
    rng.shuffle(shapes)
    return shapes


def _place(rng: np.random.Generator, shape: str, size: int) -> tuple[Floats, Floats, Floats]:
    """Draw a pose; return the shape's own x, y and the signed distance to its edge, in pixels.

    Returns:
        Three arrays (size, size), float32. The distance is negative inside the shape.
    """
    radius = size / 2 * math.exp(rng.uniform(math.log(MIN_SCALE), math.log(MAX_SCALE)))
    angle, stretch = rng.uniform(0, 2 * math.pi), math.exp(rng.uniform(-0.12, 0.12))
    cos, sin = math.cos(angle), math.sin(angle)
    centers = np.arange(size, dtype=np.float32) + np.float32(0.5)
    dx = centers - rng.uniform(radius / 2, size - radius / 2)
    dy = centers[:, None] - rng.uniform(radius / 2, size - radius / 2)
    x = (cos * dx + sin * dy) / stretch
    y = (cos * dy - sin * dx) * stretch
    return x, y, _signed_distance(shape, x / radius, y / radius) * radius


def _signed_distance(shape: str, x: Floats, y: Floats) -> Floats:
    """Return the distance to the edge of a shape whose circumscribed circle has radius 1."""
    if shape == "circle":
        return np.hypot(x, y) - 1
    if shape == "ring":
        return np.abs(np.hypot(x, y) - 0.76) - 0.24
    # A regular polygon: in the sector of the nearest side, the distance to that side.
    half = math.pi / {"triangle": 3, "square": 4}[shape]
    radius = np.hypot(x, y)
    angle = np.abs((np.arctan2(y, x) + half) % (2 * half) - half)
    return radius * np.cos(half - angle) - math.cos(half)


def _paint(
    rng: np.random.Generator, canvas: Floats, x: Floats, y: Floats, distance: Floats
) -> None:
    """Paint a shape over the canvas in place, with a soft shadow around it."""
    size = len(canvas)
    reached = distance < 0.08 * size  # the shadow has faded out beyond
    rows, columns = np.flatnonzero(reached.any(1)), np.flatnonzero(reached.any(0))
    window = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
    x, y, distance, canvas = x[window], y[window], distance[window], canvas[window]

    behind = canvas[distance < 0].mean(0)
    # The most distinct of a few colors, so that a shape can be told from what it covers.
    colors = [_color(rng, (0.45, 0.88), (0.09, 0.17)) for _ in range(4)]
    color = max(colors, key=lambda c: float(np.abs(c - behind).sum()))
    other = color * rng.uniform(0.55, 0.8) if rng.random() < 0.5 else 1 - (1 - color) * 0.45
    rim = 1 - 0.2 * np.exp(-np.abs(distance) / (0.008 * size))
    weight = _texture(rng, x, y, size)
    paint = (color + weight[..., None] * (other - color)) * rim[..., None]
    canvas *= 1 - 0.4 * np.exp(-distance.clip(0) / (0.02 * size))[..., None]
    canvas += (0.5 - distance).clip(0, 1)[..., None] * (paint - canvas)


def _texture(rng: np.random.Generator, x: Floats, y: Floats, size: int) -> Floats:
    """Return the share (0..1) of a shape's second color at its own coordinates, in pixels."""
    kind = rng.choice(["plain", "stripes", "checks", "dots", "gradient", "noise"])
    frequency = 2 * math.pi / (size * rng.uniform(0.045, 0.09))
    u, v = x * frequency, y * frequency
    share: Floats = np.zeros_like(x)
    if kind == "stripes":
        share = 0.5 + 2 * np.sin(u)
    elif kind == "checks":
        share = 0.5 + 3 * np.sin(u / 1.5) * np.sin(v / 1.5)
    elif kind == "dots":
        # A dot in the middle would make a small circle look like a ring: four stand around it.
        share = -2 * (np.cos(u) + np.cos(v)) - 1.2
    elif kind == "gradient":
        share = 0.5 + x / (0.3 * size)
    elif kind == "noise":
        share = 3 * _smooth_noise(rng, x.shape, size / 32) - 1
    return np.clip(share, 0, 1)


def _background(rng: np.random.Generator, size: int) -> Floats:
    """Draw a background (size, size, 3) in 0..1: a gradient, noise, blobs and scribbles."""
    angle, lightness = rng.uniform(0, 2 * math.pi), rng.uniform(0.32, 0.88)
    ramp = np.linspace(-1, 1, size, dtype=np.float32)
    weight = 0.5 + 0.35 * (math.cos(angle) * ramp + math.sin(angle) * ramp[:, None])
    weight += 0.8 * _smooth_noise(rng, weight.shape, size / 4) - 0.4
    a, b = (_color(rng, (lightness - 0.1, lightness + 0.1), (0.02, 0.07)) for _ in range(2))
    canvas = a + weight.clip(0, 1)[..., None] * (b - a)
    canvas += rng.uniform(0.03, 0.12) * _smooth_noise(rng, weight.shape, size / 32)[..., None]

    # Twice the size, then halved: smooth edges.
    pixels = (canvas.clip(0, 1) * 255).astype(np.uint8)
    picture = Image.fromarray(pixels).resize((2 * size, 2 * size))
    draw = ImageDraw.Draw(picture)
    for _ in range(rng.integers(2, 6)):
        color = _color(rng, (lightness - 0.15, lightness + 0.15), (0.02, 0.1))
        draw.polygon(_blob(rng, 2 * size), fill=_rgb(color))
    for _ in range(rng.integers(3, 9)):
        color = _color(rng, (0.3, 0.9), (0.03, 0.15))
        width = int(rng.integers(2, size // 20 + 2))
        draw.line(_scribble(rng, 2 * size), fill=_rgb(color), width=width, joint="curve")
    return np.asarray(picture.reduce(2), dtype=np.float32) / 255


def _blob(rng: np.random.Generator, size: int) -> list[float]:
    """Draw a wavy closed outline in a frame of side `size`: x, y, x, y, ..."""
    turn = np.linspace(0, 2 * math.pi, 48)
    radius = np.full(48, size * rng.uniform(0.04, 0.22))
    for k in (2, 3):
        radius *= 1 + rng.uniform(0.15, 0.35) * np.cos(k * turn + rng.uniform(0, 2 * math.pi))
    center = rng.uniform(0, size, (2, 1))
    points: list[float] = (
        (center + radius * np.stack((np.cos(turn), np.sin(turn)))).T.ravel().tolist()
    )
    return points


def _scribble(rng: np.random.Generator, size: int) -> list[float]:
    """Draw a winding open line in a frame of side `size`: x, y, x, y, ..."""
    turns = rng.normal(rng.normal(0, 0.12), 0.15, rng.integers(6, 40))
    heading = rng.uniform(0, 2 * math.pi) + np.cumsum(turns)
    steps = 0.02 * size * np.stack((np.cos(heading), np.sin(heading)))
    points: list[float] = (rng.uniform(0, size, (2, 1)) + np.cumsum(steps, 1)).T.ravel().tolist()
    return points


def _smooth_noise(rng: np.random.Generator, shape: tuple[int, ...], period: float) -> Floats:
    """Return noise of shape (height, width), about 0..1, that varies over `period` pixels."""
    height, width = shape
    cells = rng.random((math.ceil(height / period), math.ceil(width / period)), dtype=np.float32)
    grown = Image.fromarray(cells).resize((width, height), Image.Resampling.BICUBIC)
    noise: Floats = np.asarray(grown)
    return noise


def _color(
    rng: np.random.Generator, lightness: tuple[float, float], chroma: tuple[float, float]
) -> Floats:
    """Draw a color of any hue in OKLCH (lightness 0..1), as sRGB (3,) in 0..1."""
    hue = rng.uniform(0, 2 * math.pi)
    level, strength = rng.uniform(*lightness), rng.uniform(*chroma)
    lab = np.array((level, strength * math.cos(hue), strength * math.sin(hue)))
    linear = (LMS_TO_RGB @ (LAB_TO_LMS @ lab) ** 3).clip(0, 1)
    srgb: Floats = np.where(linear < 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return srgb.astype(np.float32)


def _rgb(color: Floats) -> tuple[int, int, int]:
    red, green, blue = (int(255 * c) for c in color)
    return red, green, blue
