"""The contact sheet of a check: images with their annotations, most suspicious first."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from faster_coco_eval import mask as coco_mask
from numpy.typing import NDArray
from PIL import Image

from botvision.data.detection import DetectionData
from botvision.data.findings import Finding, Split
from botvision.data.inspection import ImageFacts
from botvision.data.transforms import Segmentation
from botvision.visualize.check_sheet import captioned_sheet
from botvision.visualize.overlays import draw_instances

IMAGES = 12


def draw_sheet(
    splits: Mapping[str, Split],
    findings: Sequence[Finding],
    facts: Mapping[str, Sequence[ImageFacts]],
) -> Image.Image | None:
    """Draw the most suspicious images, and others if these are few.

    Args:
        splits: the splits by name.
        findings: what is probably wrong.
        facts: the images of each split.

    Returns:
        A sheet of up to 12 images, or None if no image can be read.
    """
    reasons: defaultdict[tuple[str, int], list[str]] = defaultdict(list)
    for finding in findings:
        for split, index in dict.fromkeys(finding.images):
            if facts[split][index].error is None:
                reasons[split, index].append(finding.message)
    chosen = _most_suspicious(reasons, findings)
    readable = [
        (split, index)
        for split, own in facts.items()
        for index, image in enumerate(own)
        if image.error is None and (split, index) not in reasons
    ]
    if len(chosen) < IMAGES and readable:
        order = np.random.default_rng(0).permutation(len(readable))
        chosen += [readable[place] for place in order[: IMAGES - len(chosen)]]
    if not chosen:
        return None
    pictures = [_picture(splits[split], index) for split, index in chosen]
    captions = [
        (f"{split}: {facts[split][index].name}", "; ".join(reasons.get((split, index), ())))
        for split, index in chosen
    ]
    return captioned_sheet(pictures, captions)


def _most_suspicious(
    reasons: Mapping[tuple[str, int], Sequence[str]], findings: Sequence[Finding]
) -> list[tuple[str, int]]:
    """Images of many findings first; of equal ones, an image of each finding in turn."""
    turn = {
        image: place
        for finding in reversed(findings)
        for place, image in enumerate(dict.fromkeys(finding.images))
    }
    ordered = sorted(reasons, key=lambda image: (-len(reasons[image]), turn[image], image))
    return ordered[:IMAGES]


def _picture(split: Split, index: int) -> Image.Image:
    """Draw an image with its boxes and masks, or with its class."""
    if not isinstance(split, DetectionData):
        return split[index][0]
    image = split.image(index)
    objects = split.objects(index)
    name_of = dict(zip(split.categories.ids, split.categories.names, strict=True))
    names = [name_of[category] for category in objects.category_ids.tolist()]
    masks = objects.segmentations
    shown = _masks(masks, image.size) if any(mask is not None for mask in masks) else None
    return draw_instances(image, objects.boxes, names, None, shown)


def _masks(
    masks: Sequence[Segmentation | None], size: tuple[int, int]
) -> Iterator[NDArray[np.bool_]]:
    width, height = size
    for mask in masks:
        rle: Any = mask
        if isinstance(mask, list):
            rle = coco_mask.merge(coco_mask.frPyObjects(mask, height, width))
        yield np.zeros((height, width), np.bool_) if mask is None else _decoded(rle)


def _decoded(rle: Any) -> NDArray[np.bool_]:
    pixels: NDArray[np.bool_] = coco_mask.decode(rle).astype(np.bool_)
    return pixels
