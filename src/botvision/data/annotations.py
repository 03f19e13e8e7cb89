"""Reading and checking one COCO annotation file."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import math
from array import array
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from botvision.data.categories import Categories
from botvision.data.json_values import Malformed, field, flag, load_json, number, shown, text, whole
from botvision.data.segmentations import (
    ABSENT,
    EMPTY,
    FAR,
    REACH,
    SOUND,
    SegmentationReader,
    Segmentations,
)
from botvision.data.skipped import BadEntryError, Skipped
from botvision.errors import UserError

T = TypeVar("T")

# Why an object is left out.
NO_AREA = "box without area or not finite"
OUTSIDE = "box outside the image"
FAR_AWAY = "coordinates far outside the image"
NO_MASK_AREA = "mask without area"
NO_MASK = "no mask"

_MAX_SIDE = 200_000
_MAX_PIXELS = 2**31


@dataclass(frozen=True)
class Annotations:
    """The content of a COCO annotation file, with the objects sorted by image.

    Training, evaluation and summaries use these objects and no others. Crowd regions are among
    them, since evaluation ignores what is found there.
    """

    file: Path
    categories: Categories
    image_ids: tuple[int, ...]
    """(images,), in the order of the file; of any size."""
    file_names: tuple[str, ...]
    sizes: NDArray[np.int64]
    """(images, 2): width, height."""
    first: NDArray[np.int64]
    """(images + 1,): image i has the objects first[i] up to, not including, first[i + 1]."""
    boxes: NDArray[np.float64]
    """(objects, 4): left, top, width and height in pixels."""
    areas: NDArray[np.float64]
    """(objects,): the file's in pixels; NaN where that is no positive number."""
    category_ids: NDArray[np.int64]
    """(objects,)."""
    crowd: NDArray[np.bool_]
    """(objects,)."""
    segmentations: Segmentations
    masks: NDArray[np.uint8]
    """(objects,): ``SOUND``, ``ABSENT``, ``EMPTY`` or ``FAR``."""
    left_out_of: Mapping[str, NDArray[np.int64]]
    """By reason, the index of the image of each object that was left out."""
    upright: tuple[int, ...]
    """Indices of the images that some box leaves, while all fit with width and height swapped."""

    @property
    def left_out(self) -> dict[str, int]:
        """Number of objects that were left out, by reason."""
        return {reason: len(images) for reason, images in self.left_out_of.items()}

    @property
    def instances(self) -> int:
        """Number of objects, without crowd regions."""
        return int((~self.crowd).sum())

    @property
    def reaching_out(self) -> NDArray[np.bool_]:
        """(objects,): whether the box leaves the image by more than a pixel."""
        low, high = self.boxes[:, :2], self.boxes[:, :2] + self.boxes[:, 2:]
        leaves = (low < -1) | (high > self.sizes[self.image_of()] + 1)
        objects: NDArray[np.bool_] = leaves.any(axis=1) & ~self.crowd
        return objects

    def image_of(self) -> NDArray[np.int64]:
        """(objects,): index of each object's image."""
        return np.repeat(np.arange(len(self.sizes)), np.diff(self.first))

    def without_masks(self) -> Annotations:
        """The same objects without their masks."""
        segmentations, masks = _no_masks(len(self.boxes))
        return dataclasses.replace(self, segmentations=segmentations, masks=masks)

    def with_masks(self) -> Annotations:
        """Only the objects whose mask is sound; the others are counted as left out."""
        images, left_out = self.image_of(), dict(self.left_out_of)
        for reason, kind in {NO_MASK: ABSENT, NO_MASK_AREA: EMPTY, FAR_AWAY: FAR}.items():
            if (rows := self.masks == kind).any():
                earlier = left_out.get(reason, np.empty(0, np.int64))
                left_out[reason] = np.concatenate((earlier, images[rows]))
        return self._rows(self.masks == SOUND, left_out)

    def without_images(self, images: Collection[int]) -> Annotations:
        """Everything but some images and their objects.

        Args:
            images: indices of the images.

        Returns:
            The other images, with new indices.
        """
        kept = np.ones(len(self.sizes), np.bool_)
        kept[list(images)] = False
        index = np.cumsum(kept) - 1
        left_out = {reason: index[i[kept[i]]] for reason, i in self.left_out_of.items()}
        some = self._rows(kept[self.image_of()], {r: i for r, i in left_out.items() if len(i)})
        return dataclasses.replace(
            some,
            image_ids=tuple(i for i, there in zip(self.image_ids, kept, strict=True) if there),
            file_names=tuple(n for n, there in zip(self.file_names, kept, strict=True) if there),
            sizes=self.sizes[kept],
            first=some.first[np.append(kept, True)],
            upright=tuple(int(index[image]) for image in self.upright if kept[image]),
        )

    def _rows(
        self, kept: NDArray[np.bool_], left_out: Mapping[str, NDArray[np.int64]]
    ) -> Annotations:
        return dataclasses.replace(
            self,
            first=np.concatenate(([0], np.cumsum(kept)))[self.first],
            boxes=self.boxes[kept],
            areas=self.areas[kept],
            category_ids=self.category_ids[kept],
            crowd=self.crowd[kept],
            segmentations=self.segmentations[kept],
            masks=self.masks[kept],
            left_out_of=left_out,
        )


def read_annotations(
    file: Path, *, masks: bool = True, skipped: list[Skipped] | None = None
) -> Annotations:
    """Read and check a COCO annotation file.

    Numbers may be text, such as "12". Annotation ids are not used. Objects are left out if their
    box has no area, is outside of the image, or reaches out of it by more than ten times its size.

    Args:
        file: the annotation file.
        masks: whether segmentations are read. Otherwise they are ignored, whatever they are.
        skipped: malformed images and annotations are appended to this list and left out; without
            it, the first of them is an error.

    Returns:
        The checked content.

    Raises:
        UserError: the file cannot be read or is not JSON, an entry is malformed, there are no
            images or no categories, two of them have the same id, two categories have the same
            name, an annotation refers to an image or category that the file does not list, an RLE
            does not fit its image, or all boxes are in 0..1.
    """
    with _no_garbage_collection():
        content = load_json(file)
        if not isinstance(content, dict):
            raise UserError(
                f"{file}: is not a COCO annotation file; it should contain one JSON object"
            )
        named = _read_all(file, content, "categories", _category)
        images = _read_all(file, content, "images", _image, skipped)
        for what, values in (("categories", named), ("images", images)):
            if not values:
                raise UserError(f"{file}: lists no {what}; export the objects in COCO format again")
            seen: set[int] = set()
            for id_, *_ in values:
                if id_ in seen:
                    raise UserError(f"{file}: two {what} have the id {id_}; give each its own")
                seen.add(id_)
        objects = _Objects(images, {id_ for id_, *_ in named}, masks=masks)
        _read_all(file, content, "annotations", objects.add, skipped)
        del content
    return objects.finish(file, named)


@contextlib.contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Millions of new objects, none of them garbage, would be searched again and again."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _read_all(
    file: Path,
    content: dict[str, Any],
    section: str,
    read: Callable[[dict[str, Any]], T],
    skipped: list[Skipped] | None = None,
) -> list[T]:
    """Read the entries of a section, and forget them; name or skip a malformed one."""
    entries = content.pop(section, None)
    if not isinstance(entries, list):
        raise UserError(f"{file}: has no list '{section}'; is it a COCO file of object instances?")
    values = []
    for place, entry in enumerate(entries):
        try:
            if type(entry) is not dict:
                raise Malformed(f"is {shown(entry)}, which is not an object")
            values.append(read(entry))
        except Malformed as error:
            what = f"{section}[{place}]{_id(entry)}"
            if skipped is None:
                raise BadEntryError(
                    f"{file}: {what}: {error}; correct that entry or export again"
                ) from None
            skipped.append(Skipped(what, str(error)))
        entries[place] = None
    return values


def _id(entry: Any) -> str:
    """The id of a malformed entry for its message, if it has one."""
    has = isinstance(entry, dict) and isinstance(entry.get("id"), int | str)
    return f" with the id {shown(entry['id'])}" if has else ""


def _category(entry: dict[str, Any]) -> tuple[int, str, str]:
    id_ = whole(field(entry, "id"), "'id'")
    if not -(2**63) <= id_ < 2**63:
        raise Malformed(f"'id' is {shown(id_)}, which does not fit in 64 bits")
    parent = entry.get("supercategory")
    return id_, text(field(entry, "name"), "'name'"), parent if isinstance(parent, str) else "none"


def _image(entry: dict[str, Any]) -> tuple[int, str, int, int]:
    id_ = whole(field(entry, "id"), "'id'")
    name = text(field(entry, "file_name"), "'file_name'")
    width, height = (whole(field(entry, key), f"'{key}'") for key in ("width", "height"))
    if not (0 < width <= _MAX_SIDE and 0 < height <= _MAX_SIDE and width * height <= _MAX_PIXELS):
        raise Malformed(f"has the size {shown(width)} x {shown(height)}, which no image has")
    return id_, name, width, height


class _Objects:
    """Collects the annotations of a file."""

    def __init__(
        self, images: list[tuple[int, str, int, int]], category_ids: set[int], *, masks: bool
    ) -> None:
        self.images, self.category_ids = images, category_ids
        self.index_of = {image[0]: index for index, image in enumerate(images)}
        self.masks = SegmentationReader() if masks else None
        self.boxes, self.areas, self.crowd = array("d"), array("d"), bytearray()
        self.categories, self.places = array("q"), array("q")

    def add(self, entry: dict[str, Any]) -> None:
        """Add the object of an annotation."""
        image_id = whole(field(entry, "image_id"), "'image_id'")
        category = whole(field(entry, "category_id"), "'category_id'")
        image = self.index_of.get(image_id)
        if image is None or category not in self.category_ids:
            key = "image_id" if image is None else "category_id"
            raise Malformed(f"has {key} {shown(entry[key])}, which the file does not list")
        box = field(entry, "bbox")
        if type(box) is not list:
            raise Malformed(f"'bbox' is {shown(box)}, not a list")
        if len(box) != 4:
            raise Malformed(f"'bbox' has {len(box)} numbers, not four")
        box = [number(value, "a number of 'bbox'") for value in box]
        crowd = flag(entry.get("iscrowd"), "'iscrowd'")
        if self.masks is not None:
            _, _, width, height = self.images[image]
            self.masks.add(entry.get("segmentation"), height, width)
        self.boxes.extend(box)
        self.areas.append(_area(entry.get("area")))
        self.crowd.append(crowd)
        self.categories.append(category)
        self.places.append(image)

    def finish(self, file: Path, named: list[tuple[int, str, str]]) -> Annotations:
        """Check the boxes and the masks, and sort the objects by image."""
        sizes = np.array([image[2:] for image in self.images], np.int64)
        place_of = np.frombuffer(self.places, np.int64)
        boxes = np.frombuffer(self.boxes).reshape(-1, 4)
        category_ids = np.frombuffer(self.categories, np.int64)
        crowd = np.frombuffer(self.crowd, np.bool_)
        if (np.abs(boxes) <= 1.001).all() and (boxes % 1 != 0).any() and (sizes > 2).all():
            raise UserError(
                f"{file}: all boxes are in 0..1, as fractions of the image; COCO's boxes are in "
                "pixels, multiply them by the width and height"
            )
        faults, kept = _checked(boxes, sizes[place_of])
        if self.masks is None:
            segmentations, masks = _no_masks(len(boxes))
        else:
            segmentations, masks = self.masks.finish(sizes[place_of])
        rows = np.flatnonzero(kept)
        rows = rows[np.argsort(place_of[rows], kind="stable")]
        return Annotations(
            file=file,
            categories=_without_root(file, named, set(np.unique(category_ids).tolist())),
            image_ids=tuple(image[0] for image in self.images),
            file_names=tuple(image[1] for image in self.images),
            sizes=sizes,
            first=np.searchsorted(place_of[rows], np.arange(len(sizes) + 1)),
            boxes=boxes[rows],
            areas=np.frombuffer(self.areas)[rows],
            category_ids=category_ids[rows],
            crowd=crowd[rows],
            segmentations=segmentations[rows],
            masks=masks[rows],
            left_out_of={reason: place_of[rows] for reason, rows in faults.items() if rows.any()},
            upright=_upright(boxes, place_of, sizes),
        )


def _area(value: Any) -> float:
    """The area, or NaN if it is not a positive number."""
    try:
        area = number(value, "'area'")
    except Malformed:
        return math.nan
    return area if 0 < area < math.inf else math.nan


def _no_masks(objects: int) -> tuple[Segmentations, NDArray[np.uint8]]:
    none = np.zeros((objects, 2), np.int64)
    return (
        Segmentations(np.empty(0), np.zeros(1, np.int64), none, b"", none),
        np.full(objects, ABSENT, np.uint8),
    )


def _checked(
    boxes: NDArray[np.float64], sizes: NDArray[np.int64]
) -> tuple[dict[str, NDArray[np.bool_]], NDArray[np.bool_]]:
    """Which boxes cannot be used, by reason, and which can."""
    with np.errstate(all="ignore"):
        low, high = boxes[:, :2], boxes[:, :2] + boxes[:, 2:]
        sound = np.isfinite(high).all(axis=1) & (high > low).all(axis=1)
        reach = REACH * sizes.max(axis=1, keepdims=True, initial=0)
        near = ((low >= -reach) & (high <= sizes + reach)).all(axis=1)
        inside = ((high > 0) & (low < sizes)).all(axis=1)
    faults = {NO_AREA: ~sound, FAR_AWAY: sound & ~near, OUTSIDE: sound & near & ~inside}
    return faults, sound & near & inside


def _upright(
    boxes: NDArray[np.float64], place_of: NDArray[np.int64], sizes: NDArray[np.int64]
) -> tuple[int, ...]:
    """Images that a box leaves by more than a pixel, while all fit if the sides are swapped."""
    with np.errstate(all="ignore"):
        high = boxes[:, :2] + boxes[:, 2:]
        leaves = (high > sizes[place_of] + 1).any(axis=1)
        fits = (high <= sizes[place_of, ::-1] + 1).all(axis=1)
    candidates = set(place_of[leaves].tolist()) - set(place_of[~fits].tolist())
    return tuple(sorted(candidates))


def _without_root(file: Path, named: list[tuple[int, str, str]], used: set[int]) -> Categories:
    """The categories without Roboflow's root, the unused supercategory of all others."""
    for id_, name, parent in named:
        others = [other for other in named if other[0] != id_]
        root = id_ not in used and parent in ("", "none") and others
        if root and all(other[2] == name for other in others):
            named = others
            break
    return Categories.from_pairs(((id_, name) for id_, name, _ in named), str(file))
