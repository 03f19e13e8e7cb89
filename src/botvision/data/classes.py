"""Data sets of class folders, of a stored Hugging Face set, or of any reader of timm's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from timm.data.imagenet_info import ImageNetInfo
from timm.data.readers.img_extensions import get_img_extensions
from timm.data.readers.reader_factory import create_reader
from timm.data.transforms_factory import create_transform
from torch import Tensor
from torch.utils.data import Dataset

from botvision.config import ClassificationConfig
from botvision.data.images import open_image
from botvision.data.loading import seed_everything
from botvision.errors import UserError

Sample = tuple[Tensor, int]
ClassBatch = tuple[Tensor, Tensor]
Transform = Callable[[Image.Image], Tensor]

# Names of a split's folder, in the order of preference.
_SPLITS = {"train": ("train",), "val": ("val", "valid", "validation"), "test": ("test",)}
LAYOUT = "expected train/CLASS/*.jpg, and val/ or test/ likewise"


def find_class_splits(root: Path) -> dict[str, Path]:
    """The folders of ``train``, ``val`` and ``test`` that hold class folders, by these names.

    Raises:
        UserError: ``root`` has none of them.
    """
    splits = {
        name: root / folder
        for name, folders in _SPLITS.items()
        for folder in reversed(folders)
        if (root / folder).is_dir() and any(p.is_dir() for p in (root / folder).iterdir())
    }
    if not splits:
        raise UserError(f"{root}: no class folders; {LAYOUT}")
    return splits


class ClassFolder:
    """The images of a split and their labels; the classes are the names of its folders.

    Args:
        folder: ``CLASS/*.jpg`` of one split, at any depth.
        classes: names in the order of the labels; by default those of the folders, in natural
            order (``class2`` before ``class10``).

    Raises:
        UserError: no images, an empty class, or a folder that is none of ``classes``.
    """

    def __init__(self, folder: Path, classes: Sequence[str] | None = None) -> None:
        """List the files."""
        self.folder = folder
        found = sorted(path.name for path in folder.iterdir() if path.is_dir())
        try:
            reader: Any = create_reader("", root=str(folder))
        except RuntimeError as error:
            endings = ", ".join(get_img_extensions())  # type: ignore[no-untyped-call]
            raise UserError(
                f"{folder}: no images in its class folders (looked for {endings})"
            ) from error
        own: list[str] = sorted(reader.class_to_idx, key=reader.class_to_idx.__getitem__)
        empty = [name for name in found if not any((folder / name).iterdir())]
        if empty:
            raise UserError(f"{folder / empty[0]}: a class without images; fill it or remove it")
        self.classes = tuple(own if classes is None else classes)
        unknown = [name for name in own if name not in self.classes]
        if unknown:
            raise UserError(
                f"{folder / unknown[0]}: the class {unknown[0]!r} is not one of the model's "
                f"{len(self.classes)} ({', '.join(self.classes[:5])}, ...); rename the folder or "
                "remove it"
            )
        label_of = {name: label for label, name in enumerate(self.classes)}
        self.files = [Path(file) for file, _ in reader.samples]
        self.labels = [label_of[own[index]] for _, index in reader.samples]

    def __len__(self) -> int:
        """Count the images."""
        return len(self.files)

    def summary(self) -> str:
        """One line: how many images of how many classes."""
        return f"{self.folder}: {len(self)} images of {len(set(self.labels))} classes"


def readable_names(classes: Sequence[str]) -> tuple[str, ...]:
    """The classes' names; of ImageNet's synsets (``n02123045``) the words for them."""
    info = ImageNetInfo("imagenet-22k")
    known = set(info.label_names())  # type: ignore[no-untyped-call]
    if not all(name in known for name in classes):
        return tuple(classes)
    return tuple(info.label_name_to_description(name).split(",")[0] for name in classes)


def train_transform(config: ClassificationConfig, size: int) -> Transform:
    """timm's crop, flip and augmentation policy, from an RGB image to (3, size, size).

    Raises:
        UserError: a policy that timm does not know.
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
            f"--auto-augment {config.auto_augment}: not a policy of timm ({error}); give one such "
            "as rand-m10-n2-p1"
        ) from error
    return transform


def eval_transform(size: int, crop_share: float) -> Transform:
    """The centre ``crop_share`` of an image's shorter side, as (3, size, size)."""
    transform: Transform = create_transform(
        size, crop_pct=crop_share, interpolation="bicubic", use_prefetcher=True
    )
    return transform


class ClassDataset(Dataset[Sample]):
    """uint8 images (3, S, S) and their labels.

    A key is an index or, in training, a pair (epoch, index): what is random about the sample is
    then a function of seed, epoch and index, whichever process loads it.
    """

    def __init__(self, data: ClassFolder, transform: Transform, *, seed: int = 0) -> None:
        """Take a split and what to do to its images."""
        self.data, self.transform, self.seed = data, transform, seed

    def __len__(self) -> int:
        """Count the images."""
        return len(self.data)

    def __getitem__(self, key: int | tuple[int, int]) -> Sample:
        """Read and transform one image; raises UserError as ``open_image``."""
        if isinstance(key, tuple):
            seed_everything(self.seed, *key)
        index = key[1] if isinstance(key, tuple) else key
        image = self.transform(open_image(self.data.files[index]))
        return image, self.data.labels[index]


def collate_classes(samples: list[Sample]) -> ClassBatch:
    """uint8 (B, 3, S, S) and int64 (B,)."""
    images, labels = zip(*samples, strict=True)
    return torch.stack(images), torch.tensor(labels)
