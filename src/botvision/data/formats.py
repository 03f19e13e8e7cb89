"""The formats that the splits of a data set may have, one file each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from botvision.config import DetectionTask
from botvision.data.classification import ClassificationData
from botvision.data.coco import find_splits, load_split
from botvision.data.detection import DetectionData
from botvision.data.huggingface import HuggingFaceData, hugging_face_splits
from botvision.data.image_folder import ImageFolder
from botvision.data.listing import same_names
from botvision.data.sources import HUGGING_FACE, class_folders, find_shards, open_data
from botvision.data.webdataset import WebDataset
from botvision.errors import UserError

# A folder, an archive, a built-in set or hfds/NAME; or the splits as objects.
DetectionSource = str | Mapping[str, DetectionData]
ClassificationSource = str | Mapping[str, ClassificationData]
# Opened for a task, or None for the one that follows from the data, see ``load_split``.
DetectionSplits = dict[str, Callable[..., DetectionData]]
# Opened with the classes of the model, or None for their own.
ClassificationSplits = dict[str, Callable[[Sequence[str] | None], ClassificationData]]

# Names of a split's folder.
_SPLITS = {"train": ("train",), "val": ("val", "valid", "validation"), "test": ("test",)}


def detection_splits(data: DetectionSource) -> DetectionSplits:
    """The splits of detection data by name, ``train``, ``val`` and ``test`` among them.

    Args:
        data: a folder in COCO format, an archive of one or a built-in set; or the splits as
            objects.

    Returns:
        One function per split, which reads and checks the split when it is called with the task, or
        None for the one that follows from the data.

    Raises:
        UserError: no such data, or it is not in COCO format.
    """
    if isinstance(data, str):
        return {
            name: partial(load_split, split) for name, split in find_splits(open_data(data)).items()
        }
    return {name: partial(_as_it_is, split) for name, split in data.items()}


def _as_it_is(split: DetectionData, task: DetectionTask | None, **options: Any) -> DetectionData:
    return split


def classification_splits(data: ClassificationSource) -> ClassificationSplits:
    """The splits ``train``, ``val`` and ``test`` of classification data, those that it has.

    Args:
        data: a folder or archive of class folders or shards; ``hfds/NAME``, a data set of the
            Hugging Face Hub or a folder that its library reads; or the splits as objects.

    Returns:
        By name what opens the split: a function of the model's classes, None for the split's own.

    Raises:
        UserError: no such data, none of the splits, or one of them twice, such as ``val`` and
            ``valid``.
    """
    if not isinstance(data, str):
        return {name: partial(_with_classes, split, name) for name, split in data.items()}
    splits: ClassificationSplits = {}
    if data.startswith(HUGGING_FACE):
        name = data.removeprefix(HUGGING_FACE)
        there = hugging_face_splits(name)
        for own, names in _SPLITS.items():
            if split := _only_one([n for n in names if n in there], data):
                splits[own] = partial(HuggingFaceData, name, split)
        return splits
    root = open_data(data)
    for own, names in _SPLITS.items():
        present = [n for n in names if (root / n).is_dir() or find_shards(root, n)]
        if not (split := _only_one(present, str(root))):
            continue
        shards = find_shards(root, split)
        labeled = bool(class_folders(root / split))
        if shards and not labeled:
            splits[own] = partial(WebDataset, shards)
        elif labeled or own != "test":  # competitions give test images without labels
            # A folder without class folders is an error when it is opened.
            splits[own] = partial(ImageFolder, root / split)
    if not splits:
        raise UserError(
            f"{root}: no class folders or shards; expected train/CLASS/*.jpg or train-000.tar, and "
            "val or test likewise"
        )
    return splits


def _only_one(names: Sequence[str], data: str) -> str | None:
    """Return the only one of the names for a split, or None if there is none."""
    if len(names) > 1:
        raise UserError(
            f"{data}: contains {names[0]} and {names[1]}, which are the same split; keep one of "
            "them"
        )
    return names[0] if names else None


def _with_classes(
    split: ClassificationData, name: str, classes: Sequence[str] | None
) -> ClassificationData:
    if classes is not None and not same_names(classes, split.classes):
        raise UserError(f"{name}: its classes are not the model's; give them in the same order")
    return split
