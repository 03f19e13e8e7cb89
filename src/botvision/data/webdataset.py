"""Webdataset shards: tars of ``KEY.jpg`` and ``KEY.cls`` pairs, read in any order by an index.

Streaming readers shuffle within a buffer, restart an interrupted epoch elsewhere and skip what they
cannot read. An index of the tars costs one pass over their headers and keeps all promises that
class folders keep.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from PIL import Image

from botvision.data.images import open_image
from botvision.errors import UserError

_IMAGES = (".jpg", ".jpeg", ".png", ".webp")


class WebDataset:
    """The images of a split's shards and their labels.

    Args:
        shards: uncompressed tars. A sample is an image and a ``.cls`` of the same key: the label,
            a number from 0.
        classes: names in the order of the labels; by default the lines of ``classes.txt`` next to
            the shards or, where there is none, the numbers.

    Raises:
        UserError: a tar that cannot be read, an image without a label or the other way round, or a
            label without a class.
    """

    def __init__(self, shards: Sequence[Path], classes: Sequence[str] | None = None) -> None:
        self.shards = tuple(sorted(shards))
        self.name = self.shards[0].parent / f"{self.shards[0].stem} ..."
        # Shard, key, offset and bytes of each image.
        self.images: list[tuple[Path, str, int, int]] = []
        self.labels: list[int] = []
        for shard in self.shards:
            self._index(shard)
        named = self.shards[0].parent / "classes.txt"
        if classes is None and named.is_file():
            classes = named.read_text(encoding="utf-8").splitlines()
        if classes is None:
            classes = [str(label) for label in range(max(self.labels, default=-1) + 1)]
        self.classes = tuple(classes)
        for (shard, key, _, _), label in zip(self.images, self.labels, strict=True):
            if not 0 <= label < len(self.classes):
                raise UserError(
                    f"{shard}: {key}.cls is {label}, but there are {len(self.classes)} classes, "
                    f"from 0; correct it, or {named}"
                )

    def _index(self, shard: Path) -> None:
        images: dict[str, tuple[int, int]] = {}
        labels: dict[str, int] = {}
        try:
            with tarfile.open(shard, "r:") as tar:
                for member in tar:
                    path = PurePosixPath(member.name)
                    key = str(path.with_suffix(""))
                    if path.suffix.lower() in _IMAGES:
                        images[key] = (member.offset_data, member.size)
                    elif path.suffix == ".cls":
                        content = tar.extractfile(member)
                        labels[key] = int(content.read()) if content else -1
        except (tarfile.TarError, OSError, ValueError) as error:
            raise UserError(f"{shard}: not a readable shard ({error}); write it again") from error
        for key in images.keys() ^ labels.keys():
            lacks = f"label {key}.cls" if key in images else "image"
            raise UserError(f"{shard}: {key} has no {lacks}; write it again")
        self.images += [(shard, key, *place) for key, place in images.items()]
        self.labels += [labels[key] for key in images]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        shard, key, offset, size = self.images[index]
        with shard.open("rb") as file:
            file.seek(offset)
            content = io.BytesIO(file.read(size))
        return open_image(content, name=f"{shard}: {key}"), self.labels[index]

    def summary(self) -> str:
        """One line: how many images of how many classes."""
        return (
            f"{self.name}: {len(self)} images of {len(set(self.labels))} classes in "
            f"{len(self.shards)} shards"
        )
