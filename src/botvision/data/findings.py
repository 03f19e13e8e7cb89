"""What is probably wrong with the splits of a data set."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from botvision.data.classification import ClassificationData
from botvision.data.coco import CocoData
from botvision.data.detection import DetectionData
from botvision.data.image_folder import OUTSIDE
from botvision.data.inspection import ImageFacts, identical
from botvision.data.object_checks import suspicious_objects, without_mask
from botvision.data.skipped import Skipped

Split = DetectionData | ClassificationData
# Names that are listed after a finding.
_NAMES = 3
# An 8-bit image whose values differ by less shows nearly nothing.
_LEAST_RANGE = 16


@dataclass(frozen=True)
class Finding:
    """Something that is probably wrong with a data set.

    Args:
        kind: a word for programs, such as ``"unreadable"``.
        split: name of the split, or names of the splits.
        message: what was found, in one line.
        count: how many images, objects or entries.
        names: names of the images or entries.
        images: split and index of each image among them that can be drawn.
    """

    kind: str
    split: str
    message: str
    count: int
    names: tuple[str, ...]
    images: tuple[tuple[str, int], ...] = field(default=(), repr=False)

    def __str__(self) -> str:
        shown = ", ".join(self.names[:_NAMES]) + ", ..." * (len(self.names) > _NAMES)
        return f"{self.split}: {self.message}: {self.count:,}" + (f" ({shown})" if shown else "")


def skipped_findings(split: str, skipped: Sequence[Skipped]) -> Iterator[Finding]:
    """Entries that cannot be used, by reason."""
    for reason, count in Counter(entry.reason for entry in skipped).items():
        names = tuple(entry.what for entry in skipped if entry.reason == reason)
        yield Finding("malformed", split, f"entries that cannot be used, {reason}", count, names)


def image_findings(split: str, facts: Sequence[ImageFacts]) -> Iterator[Finding]:
    """Images that cannot be read, show nothing, or have several pages.

    Args:
        split: name of the split.
        facts: the images of the split.

    Yields:
        The findings.
    """
    read = [index for index, image in enumerate(facts) if image.error is None]
    # Without the advice that follows a semicolon.
    broken = tuple(f"{i.name}: {i.error.partition('; ')[0]}" for i in facts if i.error is not None)
    if broken:
        yield Finding("unreadable", split, "images that cannot be used", len(broken), broken)
    deep = [index for index in read if facts[index].deep]
    few_deep = 2 * len(deep) <= len(read)
    kinds: list[tuple[str, str, Callable[[ImageFacts], bool]]] = [
        ("flat", "images of a single color", lambda image: image.contrast == 0),
        (
            "narrow",
            "images nearly without contrast",
            lambda image: not image.deep and 0 < image.contrast < _LEAST_RANGE,
        ),
        ("pages", "images with several pages, of which one is used", lambda i: i.pages > 1),
    ]
    if 0 < len(deep) < len(read):
        what = "of more than 8 bits" if few_deep else "of 8 bits"
        kinds.append(("depth", f"images {what} among others", lambda i: i.deep == few_deep))
    for kind, message, applies in kinds:
        found = [index for index in read if applies(facts[index])]
        if found:
            names = tuple(facts[index].name for index in found)
            drawn = tuple((split, index) for index in found)
            yield Finding(kind, split, message, len(found), names, drawn)


def file_findings(split: str, data: Split) -> Iterator[Finding]:
    """Images that belong to no class."""
    count = getattr(data, "left_out", {}).get(OUTSIDE, 0)
    if count:
        yield Finding("left out", split, f"images {OUTSIDE}", count, ())


def object_findings(split: str, data: CocoData) -> Iterator[Finding]:
    """Objects that are left out, or are probably wrong, see ``suspicious_objects``."""
    for kind, what, images in suspicious_objects(data):
        if len(images):
            yield _of_objects(kind, split, what, data, images)


def mask_findings(splits: Mapping[str, Split]) -> Iterator[Finding]:
    """Objects without a mask, if other objects of the data have one."""
    data = {name: split for name, split in splits.items() if isinstance(split, CocoData)}
    absent = {name: without_mask(split) for name, split in data.items()}
    objects = sum(split.num_objects for split in data.values())
    if 0 < sum(map(len, absent.values())) < objects:
        for name, images in absent.items():
            if len(images):
                what = "objects without a mask, unlike others"
                yield _of_objects("no mask", name, what, data[name], images)


def _of_objects(
    kind: str, split: str, what: str, data: CocoData, images: NDArray[np.int64]
) -> Finding:
    """The finding of objects by their images."""
    indices = dict.fromkeys(images.tolist())
    names = tuple(data.image_name(index) for index in indices)
    return Finding(kind, split, what, len(images), names, tuple((split, i) for i in indices))


def identical_findings(
    facts: Mapping[str, Sequence[ImageFacts]], classes: Mapping[str, Sequence[str]]
) -> Iterator[Finding]:
    """Identical images within a split, across splits, and with different labels.

    Args:
        facts: the images of each split.
        classes: name of the class of each image of each split; empty for detection.

    Yields:
        The findings, with one name per group of identical images.
    """
    images = [(split, index) for split, own in facts.items() for index in range(len(own))]
    groups = identical(image for own in facts.values() for image in own)
    kinds: dict[tuple[str, str], list[list[tuple[str, int]]]] = {}
    for group in groups:
        members = [images[place] for place in group]
        names_of_splits = dict.fromkeys(split for split, _ in members)
        splits = ", ".join(names_of_splits)
        own = {classes[split][index] for split, index in members if split in classes}
        kind = "shared" if len(names_of_splits) > 1 else "identical"
        kinds.setdefault((kind, splits), []).append(members)
        if len(own) > 1:
            kinds.setdefault(("contradiction", splits), []).append(members)
    what = {
        "shared": "images that are in more than one split",
        "identical": "images that are there more than once",
        "contradiction": "identical images with different classes",
    }
    for (kind, splits), found in kinds.items():
        names = tuple(
            " = ".join(f"{split}: {facts[split][index].name}" for split, index in members)
            for members in found
        )
        drawn = tuple(image for members in found for image in members)
        yield Finding(kind, splits, what[kind], len(found), names, drawn)


def class_findings(counts: Mapping[str, Mapping[str, int]]) -> Iterator[Finding]:
    """Classes that another split has examples of, but the training split has none.

    Args:
        counts: number of examples of each class, by split and name.

    Yields:
        The findings.
    """
    trained = counts.get("train")
    for split, own in counts.items():
        if trained is None or split == "train":
            continue
        missing = tuple(name for name, count in own.items() if count and not trained.get(name))
        if missing:
            message = "classes without examples in train"
            yield Finding("untrained class", split, message, len(missing), missing)
