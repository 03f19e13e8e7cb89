"""Data sets in COCO format: a folder with `annotations/*.json` and folders of images."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ExifTags, Image

from botvision.config import DetectionTask
from botvision.data.annotations import NO_MASK, Annotations, read_annotations
from botvision.data.detection import DetectionData, Objects
from botvision.data.image_files import ImageFiles
from botvision.data.images import DECODE_ERRORS, open_image, open_stored
from botvision.data.pixels import Pixels
from botvision.data.segmentations import ABSENT
from botvision.data.skipped import BadEntryError, Skipped
from botvision.errors import UserError

# COCO's own files that do not describe objects.
OTHER_TASKS = ("captions_", "person_keypoints_", "panoptic_", "stuff_", "image_info_")
LAYOUT = (
    "expected annotations/instances_train.json and annotations/instances_val.json, with the "
    "images in train/ and val/ or in images/"
)


@dataclass(frozen=True)
class Split:
    """One annotation file of a COCO folder."""

    name: str
    """`train`, `val`, `test`, or the file's own name without `instances_` and `.json`."""
    annotations: Path
    root: Path


def find_splits(root: Path) -> dict[str, Split]:
    """Find the splits of a COCO folder, by name.

    They are the files `annotations/instances_*.json` or, where there is none, every
    `annotations/*.json` but those of COCO's other tasks.

    Args:
        root: the folder that contains `annotations`.

    Returns:
        The splits by name. A name that starts with train, val or test is shortened to that:
        `train2017` is `train`, `valid` is `val`.

    Raises:
        UserError: `root` is not a COCO folder, or two files are the same split.
    """
    files = sorted((root / "annotations").glob("*.json"))
    files = [f for f in files if f.name.startswith("instances_")] or [
        f for f in files if not f.name.startswith(OTHER_TASKS)
    ]
    if not files:
        raise UserError(f"{root}: not a folder in COCO format; {LAYOUT}")
    splits: dict[str, Split] = {}
    for file in files:
        stem = _stem(file)
        name = next((n for n in ("train", "val", "test") if stem.startswith(n)), stem)
        if name in splits:
            raise UserError(
                f"{file}: is the split '{name}' and so is {splits[name].annotations}; "
                "keep one of them in the folder"
            )
        splits[name] = Split(name, file, root)
    return splits


class CocoData(DetectionData):
    """A split that was read and checked: its annotations and where its images are.

    Args:
        split: the annotation file.
        images: the folder that the file names are relative to.
        annotations: the content of the file.
        task: the task, which decides whether objects have masks. None where it does not follow from
            the data, because only some objects have masks.
    """

    pixels = Pixels()
    """How images are read, which training, evaluation and prediction set."""

    def __init__(
        self, split: Split, images: Path, annotations: Annotations, task: DetectionTask | None
    ) -> None:
        self.split, self.images, self.annotations, self.task = split, images, annotations, task
        self.categories = annotations.categories
        self.num_objects: int = annotations.instances
        absent = (annotations.masks == ABSENT) & ~annotations.crowd
        self.num_left_out = sum(annotations.left_out.values())
        self.num_suspicious = self.num_left_out + int(annotations.reaching_out.sum())
        self.num_masks: int = self.num_objects - int(absent.sum())
        if absent.any():
            image = annotations.image_of()[absent.argmax()]
            self.unmasked = f"one in {self.image_name(image)}"

    @property
    def name(self) -> str:
        """The annotation file."""
        return str(self.annotations.file)

    @property
    def image_ids(self) -> Sequence[int]:
        """The ids in the annotation file."""
        return self.annotations.image_ids

    def __len__(self) -> int:
        return len(self.annotations.file_names)

    def image_path(self, index: int) -> Path:
        """File of the image at `index`."""
        return self.images / self.annotations.file_names[index]

    image_file = image_path

    def image_name(self, index: int) -> str:
        """The file name of the image at `index`."""
        return self.annotations.file_names[index]

    def image(self, index: int) -> Image.Image:
        """Read the image at `index`; raises UserError as `open_image`."""
        width, height = self.annotations.sizes[index].tolist()
        return open_image(self.image_path(index), (width, height), pixels=self.pixels)

    def without_images(self, images: Collection[int]) -> CocoData:
        """The split without the images at some indices and their objects."""
        return CocoData(self.split, self.images, self.annotations.without_images(images), self.task)

    def objects(self, index: int) -> Objects:
        """The objects of the image at `index`, without crowd regions."""
        a = self.annotations
        rows = np.arange(a.first[index], a.first[index + 1])
        rows = rows[~a.crowd[rows]]
        boxes = a.boxes[rows]
        boxes[:, 2:] += boxes[:, :2]
        width, height = a.sizes[index].tolist()
        masks = [a.segmentations.mask(row, height, width) for row in rows]
        return Objects(boxes, a.category_ids[rows], masks)

    def ground_truth(self) -> dict[str, Any]:
        """The checked annotations as COCO's, crowd regions included, numbered from 1.

        Returns:
            See ``DetectionData.ground_truth``. There is an ``area`` where the file has one.
        """
        a = self.annotations
        ids, sizes = self.image_ids, a.sizes.tolist()
        annotations: list[dict[str, Any]] = []
        for row, image in enumerate(a.image_of().tolist()):
            width, height = sizes[image]
            entry = {
                "id": row + 1,
                "image_id": ids[image],
                "category_id": int(a.category_ids[row]),
                "bbox": a.boxes[row].tolist(),
                "iscrowd": int(a.crowd[row]),
            }
            if not np.isnan(a.areas[row]):
                entry["area"] = float(a.areas[row])
            mask = a.segmentations.mask(row, height, width)
            annotations.append(entry if mask is None else entry | {"segmentation": mask})
        images = zip(ids, sizes, strict=True)
        categories = zip(self.categories.ids, self.categories.names, strict=True)
        return {
            "images": [{"id": id_, "width": size[0], "height": size[1]} for id_, size in images],
            "annotations": annotations,
            "categories": [{"id": id_, "name": name} for id_, name in categories],
        }

    def summary(self) -> str:
        """Say in one line what the split holds and what was left out."""
        a = self.annotations
        used, known = len(np.unique(a.category_ids[~a.crowd])), len(self.categories)
        classes = f"{known} class{'es' if known > 1 else ''}"
        if used < known:
            classes = f"{used} of {classes}"
        with_objects = len(np.unique(a.image_of()[~a.crowd]))
        empty = len(self) - with_objects
        left_out, out = self.num_left_out, int(a.reaching_out.sum())
        reasons = ", ".join(f"{reason}: {count:,}" for reason, count in a.left_out.items())
        return (
            f"{self.split.name}: {_count(len(self), 'image')}"
            + (f" ({empty:,} without objects)" if empty else "")
            + f", {_count(self.num_objects, 'instance')} of {classes}"
            + (" without masks" * (self.task == "detection"))
            + (f", {_count(int(a.crowd.sum()), 'crowd region')}" if a.crowd.any() else "")
            + (f", {_count(left_out, 'object')} left out ({reasons})" if left_out else "")
            + (f", boxes that reach out of their image: {out:,}" if out else "")
        )


def load_split(
    split: Split, task: DetectionTask | None = None, *, skipped: list[Skipped] | None = None
) -> CocoData:
    """Read the annotation file of a split and check that it is sound and its images are there.

    Images without objects are kept. The images are looked for in root/STEM, root/images/STEM,
    root/images and root, where STEM is the file's name without `instances_` and `.json`.

    Args:
        split: the annotation file and the root of the COCO folder.
        task: `"detection"` ignores masks, `"segmentation"` leaves out objects without one. By
            default it follows from the masks, unless only some objects have one.
        skipped: malformed entries and missing images are appended to this list and left out;
            without it, they are an error.

    Returns:
        The split. Its image folder is the first of the folders above that contains an image.

    Raises:
        UserError: the annotation file contains an error, see `read_annotations`, none of its
            objects can be used, images are missing, or the boxes of an image fit only its upright
            orientation.
    """
    annotations = read_annotations(split.annotations, masks=task != "detection", skipped=skipped)
    root, stem = split.root, _stem(split.annotations)
    folders = [root / stem, root / "images" / stem, root / "images", root]
    names = annotations.file_names
    images, files = _find(folders, names)
    if images is None:
        raise UserError(
            f"{split.annotations}: its first image, {names[0]}, is in none of "
            f"{', '.join(map(str, folders))}; move the images into one of these folders"
        )
    missing = [index for index, file in enumerate(files) if file is None]
    if missing and skipped is None:
        raise BadEntryError(
            f"{split.annotations}: {len(missing):,} of {len(names):,} image files are missing, the "
            f"first is {images / names[missing[0]]}; add them or remove their entries"
        )
    if skipped is not None:
        skipped += [Skipped(names[index], "no such image file") for index in missing]
    annotations = dataclasses.replace(annotations, file_names=tuple(f or "" for f in files))
    annotations = annotations.without_images(missing)
    turned = _turned(images, annotations)
    if turned and skipped is None:
        path = images / annotations.file_names[next(iter(turned))]
        raise BadEntryError(f"{path}: {next(iter(turned.values()))}")
    if skipped is not None:
        skipped += [Skipped(annotations.file_names[i], reason) for i, reason in turned.items()]
        annotations = annotations.without_images(turned)
    masked = annotations.masks[~annotations.crowd] != ABSENT
    if task is None and masked.size and masked.all() == masked.any():
        task = "segmentation" if masked.all() else "detection"
    if task == "segmentation":
        annotations = annotations.with_masks()
    elif task == "detection":
        annotations = annotations.without_masks()
    _check_objects(annotations)
    return CocoData(split, images, annotations, task)


def _find(folders: Iterable[Path], names: Sequence[str]) -> tuple[Path | None, list[str | None]]:
    """The first folder that contains an image, and the found names in it."""
    for folder in folders:
        files = ImageFiles(folder)
        if files.find(names[0]) is not None:
            return folder, files.find_all(names)
    for folder in folders:
        found = ImageFiles(folder).find_all(names)
        if any(found):
            return folder, found
    return None, []


def _turned(images: Path, annotations: Annotations) -> dict[int, str]:
    """Images whose boxes were drawn on the upright orientation, and what is wrong with each."""
    turned = {}  # Only images with boxes that leave them are opened.
    for index in annotations.upright:
        width, height = annotations.sizes[index].tolist()
        try:
            with open_stored(images / annotations.file_names[index]) as stored:
                orientation = stored.getexif().get(ExifTags.Base.Orientation, 1)
                as_described = stored.size == (width, height)
        except DECODE_ERRORS:
            continue  # which is reported when the image is read
        if orientation in (5, 6, 7, 8) and as_described:
            turned[index] = (
                f"its boxes fit the upright image of {height}x{width}, but {annotations.file} has "
                f"the size before the EXIF rotation, {width}x{height}; swap its width and height "
                "there"
            )
    return turned


def _check_objects(annotations: Annotations) -> None:
    """Raise UserError if objects are listed, but none of them can be used."""
    left_out, crowds = annotations.left_out, int(annotations.crowd.sum())
    if annotations.instances or not (left_out or crowds):
        return
    reasons = {**({"crowd region": crowds} if crowds else {}), **left_out}
    listed = ", ".join(f"{reason}: {count:,}" for reason, count in reasons.items())
    cure = "correct `iscrowd`" if not left_out else "correct them or export again"
    if [*left_out] == [NO_MASK]:
        cure = "add masks, or use the `task` detection"
    raise UserError(f"{annotations.file}: none of its objects can be used ({listed}); {cure}")


def _stem(file: Path) -> str:
    return file.stem.removeprefix("instances_")


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
