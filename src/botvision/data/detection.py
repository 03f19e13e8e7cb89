"""Detection data: what a split has to offer, and the datasets of training and evaluation."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from faster_coco_eval import mask as coco_mask
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from botvision.data.categories import Categories
from botvision.data.jitter import LargeScaleJitter
from botvision.data.transforms import Segmentation
from botvision.errors import UserError

# Tensors by name, and `Masks`.
Target = dict[str, Any]
Batch = tuple[list[Tensor], list[Target]]
# Whole images as PIL has them, and their ids.
EvalBatch = tuple[list[Image.Image], list[int]]
_Image = TypeVar("_Image")
_Target = TypeVar("_Target")


class Objects(NamedTuple):
    """The objects of one image to train on; crowd regions are not among them."""

    boxes: NDArray[np.float64]
    """(n, 4), xyxy in pixels of the image."""
    category_ids: NDArray[np.int64]
    """(n,), ids of the split's categories."""
    segmentations: Sequence[Segmentation | None]
    """n polygons or RLEs, see ``Segmentation``, or None for an object without a mask."""


class DetectionData(ABC):
    """The images of one split and their objects.

    A format is a subclass with ``categories``, ``__len__``, ``image`` and ``objects``; the rest
    has a default that a subclass may override. ``botvision.train`` accepts instances as
    ``{"train": ..., "val": ...}``, ``botvision.evaluate`` accepts one.
    """

    categories: Categories
    """The ids and names of the split's classes."""
    unmasked: object = None
    """An object without a mask, for the error message; None if every object has one."""
    num_objects: int | None = None
    """Number of objects; None if they were not counted."""
    num_masks: int | None = None
    """Number of objects with a mask; None if they were not counted."""
    num_suspicious: int = 0
    """Number of objects that are left out, or are probably wrong, as the summary describes."""

    @abstractmethod
    def __len__(self) -> int:
        """Number of images."""

    @abstractmethod
    def image(self, index: int) -> Image.Image:
        """The 8-bit RGB image at ``index``; raises UserError if it cannot be read."""

    @abstractmethod
    def objects(self, index: int) -> Objects:
        """The objects in the image at ``index``."""

    @property
    def name(self) -> str:
        """The name of the split in messages."""
        return type(self).__name__

    @property
    def has_masks(self) -> bool:
        """Whether every object has a mask."""
        return self.unmasked is None

    @property
    def image_ids(self) -> Sequence[int]:
        """The ids of the images in ``ground_truth`` and in results, in order."""
        return range(1, len(self) + 1)

    def image_name(self, index: int) -> str:
        """The name of the image at ``index`` in messages, such as its file name."""
        return f"image {index} of {self.name}"

    def summary(self) -> str:
        """One line: how many images, objects and classes, and what was left out."""
        classes = len(self.categories)
        return f"{self.name}: {len(self):,} images of {classes} class{'es' * (classes > 1)}"

    def ground_truth(self) -> dict[str, Any]:
        """The content of a COCO annotation file, against which detections are evaluated.

        The default is built from ``objects``, with areas of the masks, or of the boxes where there
        are none.

        Returns:
            The lists ``images``, ``annotations`` and ``categories``. A ``bbox`` is
            [left, top, width, height] in pixels. A ``segmentation`` is a compressed RLE, and is
            absent for an object without a mask.
        """
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for index, image_id in enumerate(self.image_ids):
            width, height = self.image(index).size
            images.append({"id": image_id, "width": width, "height": height})
            for box, category, mask in zip(*self.objects(index), strict=True):
                left, top, right, bottom = box.tolist()
                entry = {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": int(category),
                    "bbox": [left, top, right - left, bottom - top],
                    "area": (right - left) * (bottom - top),
                    "iscrowd": 0,
                }
                if mask is not None:
                    rle = mask
                    if isinstance(mask, list):
                        rle = coco_mask.merge(coco_mask.frPyObjects(mask, height, width))
                    entry |= {"segmentation": rle, "area": float(coco_mask.area(rle))}
                annotations.append(entry)
        categories = zip(self.categories.ids, self.categories.names, strict=True)
        return {
            "images": images,
            "annotations": annotations,
            "categories": [{"id": id_, "name": name} for id_, name in categories],
        }


def merge_categories(*data: DetectionData) -> Categories:
    """Unite the categories of several splits, by name.

    Args:
        *data: the splits. Each may have ids of its own.

    Returns:
        The categories that at least one split has, with the ids of the first split that has them. A
        category whose id another one has in an earlier split gets the next free id.
    """
    ids: dict[str, int] = {}
    for split in data:
        for category, name in zip(split.categories.ids, split.categories.names, strict=True):
            if name not in ids:
                taken = category in ids.values()
                ids[name] = max(ids.values()) + 1 if taken else category
    return Categories.from_pairs(((id_, name) for name, id_ in ids.items()), "categories")


class DetectionDataset(Dataset[tuple[Tensor, Target]]):
    """Images and targets of a split, for training.

    An item is the jittered image, uint8 (3, h, w), and a target with ``boxes`` float32 (n, 4), xyxy
    in pixels of that image; ``labels`` int64 (n,), from 1; with ``masks``, ``masks``, a ``Masks``;
    and ``index``, an int64 scalar. Instances less than a pixel wide or high after the transform,
    or without a pixel in their mask, are left out. An item is a function of ``seed``, epoch and
    index only, whichever process makes it and in whatever order.

    Args:
        data: the split.
        categories: the model's, which decide the labels.
        jitter: the random transform.
        masks: targets have masks.
        max_instances: of more instances in an image this many are drawn at random; 0 keeps all.
        seed: of everything random.

    Raises:
        UserError: ``masks`` of a split without, or a category of the split that the model lacks.
    """

    def __init__(
        self,
        data: DetectionData,
        categories: Categories,
        *,
        jitter: LargeScaleJitter,
        masks: bool = True,
        max_instances: int = 0,
        seed: int = 0,
    ) -> None:
        if masks and not data.has_masks:
            raise UserError(
                f"{data.name}: not every object has a mask ({data.unmasked}); add it, or train a "
                "detector of boxes only"
            )
        unknown = [name for name in data.categories.names if name not in categories.names]
        if unknown:
            raise UserError(
                f"{data.name}: the class '{unknown[0]}' is not among the model's {categories}; use "
                "the classes that it was trained with"
            )
        named = zip(data.categories.ids, data.categories.names, strict=True)
        self.label_of = {id_: categories.label_of_name[name] for id_, name in named}
        self.data, self.jitter, self.masks, self.seed = data, jitter, masks, seed
        self.max_instances = max_instances

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, key: tuple[int, int] | int) -> tuple[Tensor, Target]:
        """Make the item (epoch, index), or index in epoch 0."""
        epoch, index = key if isinstance(key, tuple) else (0, key)
        image = self.data.image(index)
        objects = self.data.objects(index)
        labels = np.array([self.label_of[k] for k in objects.category_ids.tolist()], np.int64)
        rng = np.random.default_rng((self.seed, epoch, index))
        transform = self.jitter.sample(rng, image.height, image.width)
        pixels = transform.image(image)
        boxes = transform.boxes(objects.boxes)
        visible = (boxes[:, 2:] - boxes[:, :2] >= 1).all(axis=1)
        kept = np.flatnonzero(visible)
        if 0 < self.max_instances < len(kept):
            kept = np.sort(rng.choice(kept, self.max_instances, replace=False))
        target: Target = {"index": torch.tensor(index)}
        if self.masks:
            segmentations = [objects.segmentations[row] for row in kept.tolist()]
            target["masks"], drawn = transform.masks([s for s in segmentations if s is not None])
            kept = kept[drawn]
        target["boxes"] = torch.from_numpy(boxes[kept].astype(np.float32))
        target["labels"] = torch.from_numpy(labels[kept])
        return pixels, target


class WholeImages(Dataset[tuple[Image.Image, int]]):
    """The RGB images of a split as they are in their files, each with its id."""

    def __init__(self, data: DetectionData) -> None:
        self.data = data

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return self.data.image(index), int(self.data.image_ids[index])


def collate(samples: list[tuple[_Image, _Target]]) -> tuple[list[_Image], list[_Target]]:
    """Lists, since images and instances differ in size and number."""
    images, targets = zip(*samples, strict=True)
    return list(images), list(targets)
