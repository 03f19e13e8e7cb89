"""Reading and checking one COCO annotation file."""

import json
import math
import pickle
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from faster_coco_eval import mask as coco_mask
from numpy.typing import NDArray

from botvision.data.categories import Categories
from botvision.data.rle import run_lengths
from botvision.data.transforms import Segmentation
from botvision.errors import UserError

T = TypeVar("T")


class Packed:
    """A sequence of objects in one block of bytes, each unpickled when it is asked for.

    Worker processes share such a block, where millions of small Python objects would be copied
    into each of them as their reference counts change.
    """

    def __init__(self, items: Sequence[Any]) -> None:
        chunks = [pickle.dumps(item, pickle.HIGHEST_PROTOCOL) for item in items]
        self._ends = np.cumsum([0] + [len(chunk) for chunk in chunks])
        self._bytes = b"".join(chunks)

    def __getitem__(self, index: int) -> Any:
        return pickle.loads(self._bytes[self._ends[index] : self._ends[index + 1]])


@dataclass(frozen=True)
class Annotations:
    """The content of a COCO annotation file, with the objects sorted by image.

    Crowd regions and degenerate annotations are counted, not kept.
    """

    file: Path
    categories: Categories
    image_ids: NDArray[np.int64]
    """(images,), in the order of the file."""
    file_names: tuple[str, ...]
    sizes: NDArray[np.int64]
    """(images, 2): width, height."""
    first: NDArray[np.int64]
    """(images + 1,): image i has the objects first[i] up to, not including, first[i + 1]."""
    boxes: NDArray[np.float64]
    """(objects, 4): xyxy in pixels."""
    category_ids: NDArray[np.int64]
    """(objects,)."""
    segmentations: Packed
    """Of each object, polygons or a compressed RLE, or None where the file gives none."""
    unmasked: int | None
    """Id of the first object without a segmentation; None if all have one."""
    crowds: int
    degenerate: int


class _Image(NamedTuple):
    id: int
    file_name: str
    width: int
    height: int


class _Object(NamedTuple):
    id: int
    image: int
    category_id: int
    crowd: bool
    box: tuple[float, float, float, float]
    segmentation: Segmentation | None
    degenerate: bool


def read_annotations(file: Path) -> Annotations:
    """Read and check a COCO annotation file.

    An annotation is degenerate if its box has no width or height, or its mask no polygon of three
    points or no RLE pixel. `"segmentation": []` is degenerate as well where another annotation has
    a mask, but where none has, as detection-only exports write it, it means no segmentation.

    Args:
        file: the annotation file.

    Returns:
        The checked content, without crowd regions and degenerate annotations.

    Raises:
        UserError: the file cannot be read or is not JSON, an entry lacks a key or is malformed,
            there are no images or no categories, two images or categories have the same id, two
            categories have the same name, an annotation refers to an image or category that the
            file does not list, or an RLE cannot be read or has another size than its image.
    """
    content = _load(file)

    def read_image(entry: dict[str, Any]) -> _Image:
        size = int(entry["width"]), int(entry["height"])
        return _Image(int(entry["id"]), str(entry["file_name"]), *size)

    pairs = _read(file, content, "categories", lambda c: (int(c["id"]), str(c["name"])))
    categories = Categories.from_pairs(pairs, str(file))
    images = _read(file, content, "images", read_image)
    for what, entries in (("categories", pairs), ("images", images)):
        if not entries:
            raise UserError(f"{file}: lists no {what}; export the objects in COCO format again")

    index_of: dict[int, int] = {}
    for index, image in enumerate(images):
        if index_of.setdefault(image.id, index) != index:
            raise UserError(f"{file}: two images have the id {image.id}; give each its own")

    any_mask = any(
        isinstance(entry, dict) and entry.get("segmentation") and not entry.get("iscrowd")
        for entry in content.get("annotations") or ()
    )

    def read_object(entry: dict[str, Any]) -> _Object:
        image, category = index_of.get(int(entry["image_id"])), int(entry["category_id"])
        if image is None or category not in categories.label_of:
            key = "image_id" if image is None else "category_id"
            raise UserError(
                f"{file}: annotation {entry.get('id')} has {key} {entry[key]}, which the file does "
                "not list; add it or remove the annotation"
            )
        x, y, width, height = (float(value) for value in entry["bbox"])
        degenerate = not (math.isfinite(x + y + width + height) and width > 0 and height > 0)
        crowd = bool(entry.get("iscrowd"))
        mask = entry.get("segmentation")
        if mask is not None and any_mask and not crowd:
            mask = _usable(mask, images[image])
            degenerate |= not mask
        box = (x, y, x + width, y + height)
        return _Object(int(entry["id"]), image, category, crowd, box, mask or None, degenerate)

    found = _read(file, content, "annotations", read_object)
    objects = sorted((o for o in found if not o.crowd and not o.degenerate), key=lambda o: o.image)
    return Annotations(
        file=file,
        categories=categories,
        image_ids=np.array([image.id for image in images], dtype=np.int64),
        file_names=tuple(image.file_name for image in images),
        sizes=np.array([(image.width, image.height) for image in images], dtype=np.int64),
        first=np.searchsorted([o.image for o in objects], np.arange(len(images) + 1)),
        boxes=np.array([o.box for o in objects], dtype=np.float64).reshape(-1, 4),
        category_ids=np.array([o.category_id for o in objects], dtype=np.int64),
        segmentations=Packed([o.segmentation for o in objects]),
        unmasked=next((o.id for o in objects if o.segmentation is None), None),
        crowds=sum(o.crowd for o in found),
        degenerate=sum(o.degenerate and not o.crowd for o in found),
    )


def _load(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_bytes())
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror}); check the path") from None
    except ValueError as error:
        raise UserError(f"{file}: is not JSON ({error}); export or copy the file again") from None
    if not isinstance(content, dict):
        raise UserError(f"{file}: is not a COCO annotation file; it should hold one JSON object")
    return content


def _read(
    file: Path, content: dict[str, Any], section: str, parse: Callable[[dict[str, Any]], T]
) -> list[T]:
    """Every entry of a section, parsed; a fault in one is reported with its place."""
    entries = content.get(section)
    if not isinstance(entries, list):
        raise UserError(f"{file}: has no list '{section}'; is it a COCO file of object instances?")
    parsed = []
    for place, entry in enumerate(entries):
        try:
            parsed.append(parse(entry))
        except KeyError as error:
            raise UserError(
                f"{file}: {section}[{place}] has no {error}; correct that entry or export again"
            ) from None
        except UserError:
            raise
        except (AttributeError, TypeError, ValueError) as error:
            raise UserError(
                f"{file}: {section}[{place}] is malformed ({error}); correct that entry or export "
                "again"
            ) from error
    return parsed


def _usable(mask: list[list[float]] | dict[str, Any], image: _Image) -> Segmentation | None:
    """The parts of a polygon that enclose something, or the RLE compressed; None if empty."""
    if isinstance(mask, list):
        return [p for p in mask if len(p) >= 6 and len(p) % 2 == 0 and math.isfinite(sum(p))]
    if list(mask["size"]) != [image.height, image.width]:
        raise ValueError(
            f"the RLE's size is {mask['size']}, the image's [{image.height}, {image.width}]"
        )
    if not mask["counts"]:
        return None
    uncompressed = isinstance(mask["counts"], list)
    runs = np.array(mask["counts"], np.int64) if uncompressed else run_lengths(mask["counts"])
    if runs.sum() != image.height * image.width or runs.min() < 0:
        raise ValueError("the RLE's counts do not add up to the size of the image")
    if uncompressed:
        mask = coco_mask.frPyObjects(mask, image.height, image.width)
    return mask if runs[1::2].any() else None
