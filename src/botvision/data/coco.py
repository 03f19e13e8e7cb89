"""Data sets in COCO format: a folder with `annotations/*.json` and folders of images."""

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from botvision.data.annotations import Annotations, read_annotations
from botvision.data.categories import Categories
from botvision.data.images import open_image
from botvision.data.jitter import LargeScaleJitter
from botvision.errors import UserError

# COCO's own files that do not describe objects.
OTHER_TASKS = ("captions_", "person_keypoints_", "panoptic_", "stuff_", "image_info_")
LAYOUT = (
    "expected annotations/instances_train.json and annotations/instances_val.json, with the "
    "images in train/ and val/ or in images/"
)

# Tensors by name, and `Masks`.
Target = dict[str, Any]
Batch = tuple[list[Tensor], list[Target]]
# Whole images as PIL has them, and their ids.
EvalBatch = tuple[list[Image.Image], list[int]]
_Image = TypeVar("_Image")
_Target = TypeVar("_Target")


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
    `annotations/*.json` but those of COCO's other tasks. A name that starts with train, val or
    test is shortened to that: `train2017` is `train`, `valid` is `val`.

    Raises UserError if `root` is no COCO folder, or two files are the same split.
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


@dataclass(frozen=True)
class CocoData:
    """A split that was read and checked: its annotations and where its images are."""

    split: Split
    images: Path
    """The folder that the file names are relative to."""
    annotations: Annotations

    @property
    def categories(self) -> Categories:
        """The categories of this split's file."""
        return self.annotations.categories

    @property
    def has_masks(self) -> bool:
        """Whether every object has a mask."""
        return self.annotations.unmasked is None

    def __len__(self) -> int:
        """Count the images."""
        return len(self.annotations.file_names)

    def image_path(self, index: int) -> Path:
        """File of the image at `index`."""
        return self.images / self.annotations.file_names[index]

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

    Raises UserError as `read_annotations` does, and if images are missing.
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


def merge_categories(*data: CocoData) -> Categories:
    """Unite the categories of several splits, by id.

    Raises UserError if an id has two names, or a name two ids.
    """
    by_id: dict[int, tuple[str, Path]] = {}
    by_name: dict[str, tuple[int, Path]] = {}
    for split in data:
        file = split.annotations.file
        for category, name in zip(split.categories.ids, split.categories.names, strict=True):
            other_name, other_file = by_id.setdefault(category, (name, file))
            if other_name != name:
                raise UserError(
                    f"{file}: category {category} is '{name}', but '{other_name}' in {other_file}; "
                    "use the same categories in both"
                )
            other_id, other_file = by_name.setdefault(name, (category, file))
            if other_id != category:
                raise UserError(
                    f"{file}: '{name}' is category {category}, but {other_id} in {other_file}; "
                    "use the same categories in both"
                )
    pairs = ((category, name) for category, (name, _) in by_id.items())
    return Categories.from_pairs(pairs, "categories")


class CocoDataset(Dataset[tuple[Tensor, Target]]):
    """Images and targets of a split, for training.

    An item is the jittered image, uint8 (3, h, w), and a target with `boxes` float32 (n, 4), xyxy
    in pixels of that image; `labels` int64 (n,), from 1; with `masks`, `masks`, a `Masks`; and
    `image_id`, an int64 scalar. Crowd regions and instances less than a pixel wide or high in the
    view, or without a pixel in their mask, are left out; of more than `max_instances` so many are
    drawn at random (0 keeps all). An item is a function of `seed`, epoch and index alone, whatever
    process makes it and in whatever order.

    Raises UserError if `masks` are wanted of a split without, or `categories` lack one of its own.
    """

    def __init__(
        self,
        data: CocoData,
        categories: Categories,
        *,
        jitter: LargeScaleJitter,
        masks: bool = True,
        max_instances: int = 0,
        seed: int = 0,
    ) -> None:
        """Choose what an item is."""
        if masks and not data.has_masks:
            raise UserError(
                f"{data.annotations.file}: annotation {data.annotations.unmasked} has no "
                "segmentation; add it, or train a detector of boxes only"
            )
        category_ids = data.annotations.category_ids
        unknown = set(np.unique(category_ids).tolist()) - set(categories.ids)
        if unknown:
            raise UserError(
                f"{data.annotations.file}: category {min(unknown)} is not among the model's "
                f"{categories}; use the categories that it was trained with"
            )
        self.data, self.jitter, self.masks, self.seed = data, jitter, masks, seed
        self.max_instances = max_instances
        self._labels = np.array([categories.label_of[c] for c in category_ids.tolist()], np.int64)

    def __len__(self) -> int:
        """Count the images."""
        return len(self.data)

    def __getitem__(self, key: tuple[int, int] | int) -> tuple[Tensor, Target]:
        """Make the item (epoch, index), or index in epoch 0; raises UserError as `open_image`."""
        epoch, index = key if isinstance(key, tuple) else (0, key)
        a = self.data.annotations
        path = self.data.image_path(index)
        width, height = a.sizes[index].tolist()
        image = open_image(path, (width, height))
        target: Target = {"image_id": torch.tensor(a.image_ids[index])}
        rng = np.random.default_rng((self.seed, epoch, index))
        view = self.jitter.sample(rng, height, width)
        pixels = view.image(image)
        boxes = view.boxes(a.boxes[a.first[index] : a.first[index + 1]])
        visible = (boxes[:, 2:] - boxes[:, :2] >= 1).all(axis=1)
        kept = np.flatnonzero(visible)
        if 0 < self.max_instances < len(kept):
            kept = np.sort(rng.choice(kept, self.max_instances, replace=False))
        rows = a.first[index] + kept
        if self.masks:
            target["masks"], drawn = view.masks([a.segmentations[row] for row in rows])
            kept, rows = kept[drawn], rows[drawn]
        target["boxes"] = torch.from_numpy(boxes[kept].astype(np.float32))
        target["labels"] = torch.from_numpy(self._labels[rows])
        return pixels, target


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


class WholeImages(Dataset[tuple[Image.Image, int]]):
    """The RGB images of a split as they are in their files, each with its id."""

    def __init__(self, data: CocoData) -> None:
        """Take a split."""
        self.data = data

    def __len__(self) -> int:
        """Count the images."""
        return len(self.data)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        """Read one image; raises UserError as `open_image`."""
        annotations = self.data.annotations
        width, height = annotations.sizes[index].tolist()
        image = open_image(self.data.image_path(index), (width, height))
        return image, int(annotations.image_ids[index])


def collate(samples: list[tuple[_Image, _Target]]) -> tuple[list[_Image], list[_Target]]:
    """Lists, since images and instances differ in size and number."""
    images, targets = zip(*samples, strict=True)
    return list(images), list(targets)
