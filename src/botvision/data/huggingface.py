"""Classification data sets of the Hugging Face Hub."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any, BinaryIO

from PIL import Image
from timm.data.readers.reader_factory import create_reader

from botvision.data.images import open_image
from botvision.data.listing import same_names
from botvision.data.pixels import Pixels
from botvision.data.sources import HUGGING_FACE
from botvision.errors import UserError


def hugging_face_splits(name: str) -> list[str]:
    """The names of the splits of a data set.

    Args:
        name: name of the data set on the Hub, or a folder that the library reads.

    Returns:
        The data set's own names, such as ``validation``.

    Raises:
        UserError: the library is missing, or it cannot open the data set.
    """
    try:
        import datasets
    except ImportError:
        raise UserError(
            f"{HUGGING_FACE}{name}: needs the library; pip install botvision[huggingface]"
        ) from None
    try:
        names: list[str] = datasets.get_dataset_split_names(name)
    except Exception as error:  # its many kinds, and those of the network
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{HUGGING_FACE}{name}: cannot be opened ({reason})") from error
    return names


class HuggingFaceData:
    """A split of a Hugging Face data set with the columns ``image`` and ``label``.

    Args:
        name: of the data set, which is downloaded unless it is in the library's cache.
        split: name of the split.
        classes: the model's classes, which the split's have to be; any by default.

    Raises:
        UserError: other columns, labels without names, or other classes than ``classes``.
    """

    pixels = Pixels()
    """How images are read, which training, evaluation and prediction set."""

    def __init__(self, name: str, split: str, classes: Sequence[str] | None = None) -> None:
        self.name = f"{HUGGING_FACE}{name}, {split}"
        try:
            self.reader: Any = create_reader(f"{HUGGING_FACE}{name}", split=split)
            index = self.reader.class_to_idx
        except (KeyError, ValueError, AttributeError, AssertionError) as error:
            raise UserError(
                f"{self.name}: has no columns image and label with named classes ({error})"
            ) from error
        self.classes: tuple[str, ...] = tuple(sorted(index, key=index.__getitem__))
        if classes is not None and not same_names(classes, self.classes):
            raise UserError(f"{self.name}: its classes are not the model's")

    def __len__(self) -> int:
        return len(self.reader)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        content, label = self.reader[index]
        return open_image(content, name=self.image_name(index), pixels=self.pixels), label

    @cached_property
    def labels(self) -> list[int]:
        """The labels of all images, read without the images."""
        return [int(label) for label in self.reader.dataset[self.reader.label_key]]

    def image_name(self, index: int) -> str:
        """The number of the image at ``index``, from 0."""
        return f"{self.name}: image {index}"

    def image_file(self, index: int) -> BinaryIO:
        """The file of the image at ``index``."""
        content: BinaryIO = self.reader[index][0]
        return content

    def summary(self) -> str:
        """One line: how many images of how many classes."""
        return f"{self.name}: {len(self)} images of {len(self.classes)} classes"
