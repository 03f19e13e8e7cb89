"""Classification data: what a split has to offer, transforms, and the dataset."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from PIL import Image
from timm.data.imagenet_info import ImageNetInfo
from timm.data.transforms_factory import create_transform
from torch import Tensor
from torch.utils.data import Dataset

from botvision.config import ClassificationConfig
from botvision.data.samplers import seed_everything
from botvision.errors import UserError

Sample = tuple[Tensor, int]
ClassificationBatch = tuple[Tensor, Tensor]
Transform = Callable[[Image.Image], Tensor]


class ClassificationData(Protocol):
    """The images of one split and their labels.

    A format is a class with these members, such as ``ImageFolder``. ``botvision.train`` accepts
    instances as ``{"train": ..., "val": ...}``.
    """

    @property
    def classes(self) -> Sequence[str]:
        """The names of the labels 0, 1, ..."""

    def __len__(self) -> int:
        """Number of images."""

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        """An 8-bit RGB image and its label; raises UserError if it cannot be read."""

    def summary(self) -> str:
        """One line: where, how many images, of how many classes."""


def readable_names(classes: Sequence[str]) -> tuple[str, ...]:
    """The classes' names; of ImageNet's synsets (``n02123045``) the words for them.

    Args:
        classes: names of the classes.

    Returns:
        One name per class, in the same order. The names are not changed unless all of them are
        synsets. Synsets of one word, such as both cranes, keep their numbers after it.
    """
    info = ImageNetInfo("imagenet-22k")
    known = set(info.label_names())  # type: ignore[no-untyped-call]
    if not all(name in known for name in classes):
        return tuple(classes)
    words = [info.label_name_to_description(name).split(",")[0] for name in classes]
    shared = {word for word, count in Counter(words).items() if count > 1}
    return tuple(
        f"{word} ({name})" if word in shared else word
        for word, name in zip(words, classes, strict=True)
    )


def train_transform(config: ClassificationConfig, size: int) -> Transform:
    """timm's crop, flip and augmentation policy, from an RGB image to (3, size, size).

    Args:
        config: settings of the run: ``crop_area``, ``flip`` and ``auto_augment``.
        size: side of the output in pixels.

    Returns:
        A function from an RGB image to a uint8 tensor. It draws from the random numbers of Python,
        NumPy and torch.

    Raises:
        UserError: ``auto_augment`` is not a policy of timm.
    """
    try:
        transform: Transform = create_transform(
            size,
            is_training=True,
            scale=config.crop_area,
            hflip=0.5 if config.flip else 0.0,
            color_jitter=0.0,
            auto_augment=config.auto_augment,
            interpolation="bicubic",
            use_prefetcher=True,
        )
    except (AssertionError, ValueError) as error:
        raise UserError(
            f"not a policy of timm ({error}); give one such as rand-m10-n2-p1",
            parameter="auto_augment",
            value=config.auto_augment,
        ) from error
    return transform


def eval_transform(size: int, crop_share: float) -> Transform:
    """The center ``crop_share`` of an image's shorter side, as (3, size, size)."""
    transform: Transform = create_transform(
        size, crop_pct=crop_share, interpolation="bicubic", use_prefetcher=True
    )
    return transform


class ClassificationDataset(Dataset[Sample]):
    """uint8 images (3, S, S) and their labels.

    A key is an index or, in training, a pair (epoch, index): what is random about the sample is
    then a function of seed, epoch and index, whichever process loads it.

    Args:
        data: the split.
        transform: from an RGB image to a uint8 tensor (3, S, S).
        seed: of what is random in ``transform``.
    """

    def __init__(self, data: ClassificationData, transform: Transform, *, seed: int = 0) -> None:
        self.data, self.transform, self.seed = data, transform, seed

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, key: int | tuple[int, int]) -> Sample:
        """Read and transform one image; raises UserError as ``open_image``."""
        if isinstance(key, tuple):
            seed_everything(self.seed, *key)
        index = key[1] if isinstance(key, tuple) else key
        image, label = self.data[index]
        return self.transform(image), label


def collate_classification(samples: list[Sample]) -> ClassificationBatch:
    """uint8 (B, 3, S, S) and int64 (B,)."""
    images, labels = zip(*samples, strict=True)
    return torch.stack(images), torch.tensor(labels)
