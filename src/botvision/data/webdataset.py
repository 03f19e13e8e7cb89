"""Webdataset shards: tars of ``KEY.jpg`` and ``KEY.cls`` pairs, read in any order by an index.

Streaming readers shuffle within a buffer, restart an interrupted epoch elsewhere and skip what they
cannot read. An index of the tars costs one pass over their headers and keeps all promises that
class folders keep.
"""

from __future__ import annotations

import copy
import io
import json
import tarfile
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path, PurePosixPath

from PIL import Image

from botvision.data.archives import check_end
from botvision.data.images import open_image
from botvision.data.listing import (
    LeftOut,
    count_classes,
    is_hidden,
    is_image,
    unicode_form,
)
from botvision.data.pixels import Pixels
from botvision.errors import UserError

# The largest number of classes without names; ImageNet-22k has 21,841.
_MOST_NUMBERED = 32_768


class WebDataset:
    """The images of a split's shards and their labels.

    Hidden members, such as ``._1.jpg``, are ignored. Members that are not images or labels are
    left out and counted in the summary.

    Args:
        shards: uncompressed tars. A sample is an image and a ``.cls`` of the same key: the label,
            a number from 0.
        classes: names in the order of the labels; by default the lines of ``classes.txt`` next to
            the shards or, where there is none, the numbers. If both are given, the labels of the
            shards count the lines of ``classes.txt``, and classes are matched by name.

    Raises:
        UserError: a tar that cannot be read, a key that is not exactly one image and one label, a
            label without a class, or an error in ``classes.txt``.
    """

    pixels = Pixels()
    """How images are read, which training, evaluation and prediction set."""

    def __init__(self, shards: Sequence[Path], classes: Sequence[str] | None = None) -> None:
        self.shards = tuple(sorted(shards))
        self.name = self.shards[0].parent / f"{self.shards[0].stem} ..."
        self.left_out = LeftOut()
        # Shard, member, offset and bytes of each image.
        self.images: list[tuple[Path, str, int, int]] = []
        self.labels: list[int] = []
        for shard in self.shards:
            self._index(shard)
        if not self.images:
            raise UserError(f"{self.name}: no images in the shards; write them again")
        named = self.shards[0].parent / "classes.txt"
        names = _names(named) if named.is_file() else None
        if names is None and classes is None:
            names = self._numbers(named)
        self.classes = tuple(names or () if classes is None else classes)
        self._check_range(len(names if names is not None else self.classes), named)
        if names is not None and classes is not None:
            self._match(names, named)

    def _index(self, shard: Path) -> None:
        images: dict[str, tuple[str, int, int]] = {}
        labels: dict[str, int] = {}
        try:
            for key, image, label in _members(shard, self.left_out):
                if key in (images if label is None else labels):
                    kind = "image" if label is None else "label"
                    raise UserError(f"{shard}: {key} has more than one {kind}; write it again")
                if label is None:
                    images[key] = image
                else:
                    labels[key] = label
        except (tarfile.TarError, OSError, EOFError) as error:
            raise UserError(f"{shard}: not a readable shard ({error}); write it again") from error
        for key in [*images, *labels]:
            if key not in images or key not in labels:
                lacks = f"label {key}.cls" if key in images else "image"
                raise UserError(f"{shard}: {key} has no {lacks}; write it again")
        self.images += [(shard, *place) for place in images.values()]
        self.labels += [labels[key] for key in images]

    def _numbers(self, named: Path) -> list[str]:
        """Return the names of the classes of shards without ``classes.txt``."""
        self._check_range(_MOST_NUMBERED, named, " without names")
        return [str(label) for label in range(max(self.labels) + 1)]

    def _check_range(self, count: int, named: Path, kind: str = "") -> None:
        for (shard, member, _, _), label in zip(self.images, self.labels, strict=True):
            if not 0 <= label < count:
                key = PurePosixPath(member).with_suffix("")
                most = f"at most {count:,}" if kind else f"{count}"
                raise UserError(
                    f"{shard}: {key}.cls is {label}, but there are {most} classes{kind}, "
                    f"from 0; correct it, or {named}"
                )

    def _match(self, names: Sequence[str], named: Path) -> None:
        """Renumber the labels from ``names`` to the model's classes."""
        label_of = {unicode_form(name): label for label, name in enumerate(self.classes)}
        for label in set(self.labels):
            if names[label] not in label_of:
                raise UserError(
                    f"{named}: the class {names[label]!r} is not one of the model's "
                    f"{len(self.classes)} ({', '.join(self.classes[:5])}, ...); correct the name"
                )
        self.labels = [label_of[names[label]] for label in self.labels]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        name, content = self.image_name(index), self.image_file(index)
        return open_image(content, name=name, pixels=self.pixels), self.labels[index]

    def image_name(self, index: int) -> str:
        """The shard and the member that is the image at ``index``."""
        shard, member, _, _ = self.images[index]
        return f"{shard}: {member}"

    def image_file(self, index: int) -> io.BytesIO:
        """The file of the image at ``index``."""
        shard, _, offset, size = self.images[index]
        with shard.open("rb") as file:
            file.seek(offset)
            return io.BytesIO(file.read(size))

    def without_images(self, images: Collection[int]) -> WebDataset:
        """The split without the images at some indices."""
        other = copy.copy(self)
        other.images = [image for i, image in enumerate(self.images) if i not in images]
        other.labels = [label for i, label in enumerate(self.labels) if i not in images]
        return other

    def summary(self) -> str:
        """One line: how many images of how many classes, and what was left out."""
        left_out = f" (left out: {self.left_out})" if self.left_out else ""
        return (
            f"{self.name}: {len(self)} images of {count_classes(self.labels)} in "
            f"{len(self.shards)} shards{left_out}"
        )


def _members(
    shard: Path, left_out: LeftOut
) -> Iterator[tuple[str, tuple[str, int, int], int | None]]:
    """Yield of each image and label the key, the name, offset and size, and the label or None."""
    with tarfile.open(shard, "r:") as tar:
        for member in tar:
            path = PurePosixPath(member.name)
            if member.isdir() or any(map(is_hidden, path.parts)):
                continue
            is_label = path.suffix.lower() == ".cls"
            if not is_label and not is_image(path.name):
                left_out.add_file(path.name)
                continue
            if not member.isreg() or member.issparse():
                raise UserError(f"{shard}: {member.name} is a link; write the shard with its files")
            label = None
            if is_label:
                content = tar.extractfile(member)
                text = content.read(32).strip() if content else b""
                if not text.isdigit() or member.size > 32:
                    raise UserError(
                        f"{shard}: {member.name} is not a number from 0; write the number of the "
                        "class"
                    )
                label = int(text)
            yield str(path.with_suffix("")), (member.name, member.offset_data, member.size), label
        check_end(tar)


def _names(file: Path) -> list[str]:
    """Read ``classes.txt``: one name per line, in the order of the labels."""
    content = file.read_bytes()
    try:
        text = content.decode(json.detect_encoding(content))
    except UnicodeDecodeError as error:
        raise UserError(f"{file}: not a text in UTF-8; save it as UTF-8") from error
    names = [unicode_form(line.strip()) for line in text.rstrip().split("\n")]
    line_of: dict[str, int] = {}
    for line, name in enumerate(names, start=1):
        if not name:
            raise UserError(f"{file}: line {line} is blank; write one class per line")
        if name in line_of:
            raise UserError(
                f"{file}: {name!r} is in line {line_of[name]} and in line {line}; give each class "
                "its own name"
            )
        line_of[name] = line
    return names
