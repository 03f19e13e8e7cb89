"""Images with one class each: class folders, shards, or a Hugging Face data set."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from PIL import Image
from timm.data.imagenet_info import ImageNetInfo
from timm.data.readers.img_extensions import get_img_extensions
from timm.data.readers.reader_factory import create_reader
from timm.data.transforms_factory import create_transform
from torch import Tensor
from torch.utils.data import Dataset

from botvision.config import ClassificationConfig
from botvision.data.formats import HUGGING_FACE, class_folders, find_shards, open_data
from botvision.data.images import open_image
from botvision.data.samplers import seed_everything
from botvision.data.webdataset import WebDataset
from botvision.errors import UserError

Sample = tuple[Tensor, int]
ClassificationBatch = tuple[Tensor, Tensor]
Transform = Callable[[Image.Image], Tensor]

# Names of a split's folder, in the order of preference.
_SPLITS = {"train": ("train",), "val": ("val", "valid", "validation"), "test": ("test",)}
LAYOUT = "expected train/CLASS/*.jpg or train-000.tar, and val or test likewise"


class ClassificationData(Protocol):
    """The images of a split, RGB, and their labels from 0; ``classes`` are the labels' names."""

    classes: tuple[str, ...]

    def __len__(self) -> int:
        """Count the images."""

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        """An image and its label; raises UserError as ``open_image``."""

    def summary(self) -> str:
        """One line: where, how many images, of how many classes."""


Opener = Callable[[Sequence[str] | None], ClassificationData]


def find_classification_splits(data: str) -> dict[str, Opener]:
    """``train``, ``val`` and ``test`` of a data set, those it has; each opens by its classes.

    Args:
        data: a folder or archive of class folders or shards, or ``hfds/NAME``: a data set of the
            Hugging Face Hub, or a folder that its library reads.

    Raises:
        UserError: no such data, or none of the splits.
    """
    if data.startswith(HUGGING_FACE):
        return _hugging_face_splits(data.removeprefix(HUGGING_FACE))
    root = open_data(data)
    splits: dict[str, Opener] = {}
    for name, folders in _SPLITS.items():
        for folder in reversed(folders):
            if class_folders(root / folder):
                splits[name] = partial(ImageFolder, root / folder)
            elif shards := find_shards(root, folder):
                splits[name] = partial(WebDataset, shards)
    if not splits:
        raise UserError(f"{root}: no class folders or shards; {LAYOUT}")
    return splits


def _hugging_face_splits(name: str) -> dict[str, Opener]:
    try:
        import datasets
    except ImportError:
        raise UserError(
            f"{HUGGING_FACE}{name}: needs the library; pip install botvision[huggingface]"
        ) from None
    try:
        there: list[str] = datasets.get_dataset_split_names(name)
    except Exception as error:  # its many kinds, and those of the network
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{HUGGING_FACE}{name}: cannot be opened ({reason})") from error
    return {
        own: partial(HuggingFaceData, name, split)
        for own, names in _SPLITS.items()
        for split in reversed(names)
        if split in there
    }


class HuggingFaceData:
    """A split of a Hugging Face data set with the columns ``image`` and ``label``.

    Raises:
        UserError: other columns, labels without names, or other classes than ``classes``.
    """

    def __init__(self, name: str, split: str, classes: Sequence[str] | None = None) -> None:
        """Open the split, fetching it if it is not here."""
        self.name = f"{HUGGING_FACE}{name}, {split}"
        try:
            self.reader: Any = create_reader(f"{HUGGING_FACE}{name}", split=split)
            index = self.reader.class_to_idx
        except (KeyError, ValueError, AttributeError, AssertionError) as error:
            raise UserError(
                f"{self.name}: has no columns image and label with named classes ({error})"
            ) from error
        self.classes: tuple[str, ...] = tuple(sorted(index, key=index.__getitem__))
        if classes is not None and tuple(classes) != self.classes:
            raise UserError(f"{self.name}: its classes are not the model's")

    def __len__(self) -> int:
        """Count the images."""
        return len(self.reader)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        """The RGB image and its label."""
        content, label = self.reader[index]
        return open_image(content, name=f"{self.name}: image {index}"), label

    def summary(self) -> str:
        """One line: how many images of how many classes."""
        return f"{self.name}: {len(self)} images of {len(self.classes)} classes"


class ImageFolder:
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

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        """The RGB image and its label."""
        return open_image(self.files[index]), self.labels[index]

    def summary(self) -> str:
        """One line: how many images of how many classes."""
        return f"{self.folder}: {len(self)} images of {len(set(self.labels))} classes"


def readable_names(classes: Sequence[str]) -> tuple[str, ...]:
    """The classes' names; of ImageNet's synsets (``n02123045``) the words for them.

    Two synsets of one word, such as both cranes, keep their numbers beside it.
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


class ClassificationDataset(Dataset[Sample]):
    """uint8 images (3, S, S) and their labels.

    A key is an index or, in training, a pair (epoch, index): what is random about the sample is
    then a function of seed, epoch and index, whichever process loads it.
    """

    def __init__(self, data: ClassificationData, transform: Transform, *, seed: int = 0) -> None:
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
        image, label = self.data[index]
        return self.transform(image), label


def collate_classification(samples: list[Sample]) -> ClassificationBatch:
    """uint8 (B, 3, S, S) and int64 (B,)."""
    images, labels = zip(*samples, strict=True)
    return torch.stack(images), torch.tensor(labels)
