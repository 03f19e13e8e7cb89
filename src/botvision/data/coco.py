"""Data sets in COCO format: a folder with `annotations/*.json` and folders of images."""

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from botvision.data.annotations import Annotations, read_annotations
from botvision.data.detection import DetectionData, Objects
from botvision.data.images import open_image
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
    """

    def __init__(self, split: Split, images: Path, annotations: Annotations) -> None:
        self.split, self.images, self.annotations = split, images, annotations
        self.categories = annotations.categories
        self.unmasked = annotations.unmasked

    @property
    def name(self) -> str:
        """The annotation file."""
        return str(self.annotations.file)

    @property
    def image_ids(self) -> Sequence[int]:
        """The ids in the annotation file."""
        ids: list[int] = self.annotations.image_ids.tolist()
        return ids

    def __len__(self) -> int:
        return len(self.annotations.file_names)

    def image_path(self, index: int) -> Path:
        """File of the image at `index`."""
        return self.images / self.annotations.file_names[index]

    def image_name(self, index: int) -> str:
        """The file name of the image at `index`."""
        return self.annotations.file_names[index]

    def image(self, index: int) -> Image.Image:
        """Read the image at `index`; raises UserError as `open_image`."""
        width, height = self.annotations.sizes[index].tolist()
        return open_image(self.image_path(index), (width, height))

    def objects(self, index: int) -> Objects:
        """The objects of the image at `index` that are sound."""
        a = self.annotations
        rows = range(a.first[index], a.first[index + 1])
        where = slice(rows.start, rows.stop)
        masks = [a.segmentations[row] for row in rows]
        return Objects(a.boxes[where], a.category_ids[where], masks)

    def ground_truth(self) -> dict[str, Any]:
        """The annotation file as it is, crowd regions included."""
        content: dict[str, Any] = json.loads(self.annotations.file.read_bytes())
        return content

    def summary(self) -> str:
        """Say in one line what the split holds and what was left out."""
        a = self.annotations
        used, known = len(np.unique(a.category_ids)), len(self.categories)
        classes = f"{known} class{'es' if known > 1 else ''}"
        if used < known:
            classes = f"{used} of {classes}"
        empty = int((np.diff(a.first) == 0).sum())
        return (
            f"{self.split.name}: {_count(len(self), 'image')}"
            + (f" ({empty:,} without objects)" if empty else "")
            + f", {_count(len(a.boxes), 'instance')} of {classes}"
            + ("" if self.has_masks else " without masks")
            + (f", {_count(a.crowds, 'crowd region')}" if a.crowds else "")
            + (f", {_count(a.degenerate, 'degenerate annotation')} left out" * bool(a.degenerate))
        )


def load_split(split: Split) -> CocoData:
    """Read the annotation file of a split and check that it is sound and its images are there.

    Images without objects are kept. The images are looked for in root/STEM, root/images/STEM,
    root/images and root, where STEM is the file's name without `instances_` and `.json`.

    Args:
        split: the annotation file and the root of the COCO folder.

    Returns:
        The split. Its image folder is the first of the folders above that contains the first image.

    Raises:
        UserError: the annotation file contains an error, see `read_annotations`, or images are
            missing.
    """
    annotations = read_annotations(split.annotations)
    root, stem = split.root, _stem(split.annotations)
    folders = [root / stem, root / "images" / stem, root / "images", root]
    example = annotations.file_names[0]
    images = next((f for f in folders if (f / example).is_file()), None)
    if images is None:
        raise UserError(
            f"{split.annotations}: its first image, {example}, is in none of "
            f"{', '.join(map(str, folders))}; move the images into one of these folders"
        )
    missing = _missing(images, annotations.file_names)
    if missing:
        raise UserError(
            f"{split.annotations}: {len(missing):,} of {len(annotations.file_names):,} image files "
            f"are missing, the first is {images / missing[0]}; add them or remove their entries"
        )
    return CocoData(split, images, annotations)


def _stem(file: Path) -> str:
    return file.stem.removeprefix("instances_")


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _missing(folder: Path, file_names: tuple[str, ...]) -> list[str]:
    """The files that are not in `folder`, whose subfolders are listed rather than each file."""
    names_in: defaultdict[Path, list[str]] = defaultdict(list)
    for name in file_names:
        names_in[(folder / name).parent].append(name)
    missing: list[str] = []
    for parent, names in names_in.items():
        present = {f.name for f in parent.iterdir()} if parent.is_dir() else set()
        missing += [name for name in names if Path(name).name not in present]
    return missing
