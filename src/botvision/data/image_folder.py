"""Class folders: a folder for each class, with its images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from timm.data.readers.img_extensions import get_img_extensions
from timm.data.readers.reader_factory import create_reader

from botvision.data.images import open_image
from botvision.errors import UserError


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
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return open_image(self.files[index]), self.labels[index]

    def summary(self) -> str:
        """One line: how many images of how many classes."""
        return f"{self.folder}: {len(self)} images of {len(set(self.labels))} classes"
