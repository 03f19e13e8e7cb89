"""Class folders: a folder for each class, with its images."""

from __future__ import annotations

import copy
from collections.abc import Collection, Sequence
from pathlib import Path

from PIL import Image

from botvision.data.images import open_image
from botvision.data.listing import (
    FolderWalk,
    LeftOut,
    count_classes,
    is_image,
    natural_key,
    opens,
    unicode_form,
)
from botvision.data.pixels import Pixels
from botvision.errors import UserError

# Images in no class folder, in the counts of what is left out.
OUTSIDE = "outside the class folders"


class ImageFolder:
    """The images of a split and their labels; the classes are the names of its folders.

    Hidden files and folders, such as ``.ipynb_checkpoints``, are ignored. Files that are no images,
    and images in no class folder, are left out and counted in the summary.

    Args:
        folder: ``CLASS/*.jpg`` of one split, at any depth: ``CLASS/2023/1.jpg`` is of ``CLASS``.
        classes: names in the order of the labels; by default those of the folders, in natural
            order (``class2`` before ``class10``). Names are compared in Unicode's composed form.

    Raises:
        UserError: no images, a class without images, or a folder that is none of ``classes``.
    """

    pixels = Pixels()
    """How images are read, which training, evaluation and prediction set."""

    def __init__(self, folder: Path, classes: Sequence[str] | None = None) -> None:
        self.folder = folder
        found, self.left_out = _class_files(folder)
        own = sorted(found, key=natural_key)
        self.classes = tuple(own if classes is None else classes)
        label_of = {unicode_form(name): label for label, name in enumerate(self.classes)}
        for name in own:
            if name not in label_of:
                raise UserError(
                    f"{folder / name}: the class {name!r} is not one of the model's "
                    f"{len(self.classes)} ({', '.join(self.classes[:5])}, ...); rename the folder "
                    "or remove it"
                )
        pairs = [(file, label_of[name]) for name, files in found.items() for file in files]
        pairs.sort(key=lambda pair: natural_key(str(pair[0])))
        self.files = [file for file, _ in pairs]
        self.labels = [label for _, label in pairs]

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return open_image(self.files[index], pixels=self.pixels), self.labels[index]

    def image_name(self, index: int) -> str:
        """The path of the image at ``index``."""
        return str(self.files[index])

    def image_file(self, index: int) -> Path:
        """The path of the image at ``index``."""
        return self.files[index]

    def without_images(self, images: Collection[int]) -> ImageFolder:
        """The split without the images at some indices."""
        other = copy.copy(self)
        other.files = [file for i, file in enumerate(self.files) if i not in images]
        other.labels = [label for i, label in enumerate(self.labels) if i not in images]
        return other

    def summary(self) -> str:
        """One line: how many images of how many classes, and what was left out."""
        left_out = f" (left out: {self.left_out})" if self.left_out else ""
        return f"{self.folder}: {len(self)} images of {count_classes(self.labels)}{left_out}"


def _class_files(folder: Path) -> tuple[dict[str, list[Path]], LeftOut]:
    """Return the image files of each class, and the numbers of the other files."""
    walk = FolderWalk(folder)
    found: dict[str, list[Path]] = {}
    folder_of: dict[str, Path] = {}
    for entry in walk.entries(folder):
        path = Path(entry.path)
        if not walk.is_new_folder(entry):
            if is_image(entry.name):
                walk.left_out[OUTSIDE] += 1
            elif not path.is_dir():
                walk.left_out.add_file(entry.name)
            continue
        name = unicode_form(entry.name)
        if name in found:
            raise UserError(
                f"{path}: the same class as {folder_of[name].name!r}, whose name differs only in "
                "its Unicode form; merge the two folders"
            )
        if not name.isprintable():
            raise UserError(
                f"{str(path)!r}: the name contains characters that cannot be printed; rename the "
                "folder"
            )
        others = walk.left_out.copy()
        found[name], folder_of[name] = list(walk.images(path)), path
        if not found[name]:
            there = LeftOut(walk.left_out - others)
            what = f" (only {there})" if there else ""
            raise UserError(f"{path}: a class without images{what}; fill it or remove it")
        if not any(map(opens, found[name])):
            raise UserError(
                f"{path}: none of its {len(found[name])} files can be read as an image; replace or "
                "remove them"
            )
    if not found:
        what = f" (only {walk.left_out})" if walk.left_out else ""
        raise UserError(
            f"{folder}: no class folders{what}; put the images of each class in a folder CLASS/"
        )
    return found, walk.left_out
