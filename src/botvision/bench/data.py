"""How fast a process reads and augments images, beside decoding and resizing them alone."""

from __future__ import annotations

import contextlib
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import faster_coco_eval
import numpy as np
import torch
from torchvision.datasets import CocoDetection, wrap_dataset_for_transforms_v2
from torchvision.transforms import v2

from botvision.bench.measure import alternate
from botvision.config import ClassificationConfig
from botvision.data.coco import CocoData, CocoDataset
from botvision.data.image_folder import (
    ClassificationData,
    ClassificationDataset,
    eval_transform,
    train_transform,
)
from botvision.data.images import open_image
from botvision.data.jitter import LargeScaleJitter
from botvision.data.transforms import fit_image


@dataclass(frozen=True)
class DataRow:
    """One pipeline.

    Args:
        pipeline: what is done to an image.
        images_per_second: of one process on one core, from the median run.
        spread: interquartile range of that.
        ratio: its speed over that of the first pipeline.
    """

    pipeline: str
    images_per_second: float
    spread: float
    ratio: float


def bench_class_data(
    data: ClassificationData, *, image_size: int, images: int, policy: str, seconds: float
) -> list[DataRow]:
    """Time the training and evaluation pipelines of a classifier, the runs in turn.

    Args:
        data: a split.
        image_size: side of what comes out, pixels.
        images: drawn from the split, the same for every pipeline and run.
        policy: augmentation policy of the last row, in timm's words.
        seconds: to spend.

    Raises:
        UserError: an image that cannot be read, or an unknown policy.
    """
    indices = np.random.default_rng(0).choice(len(data), min(images, len(data)), replace=False)
    config = ClassificationConfig(data="", auto_augment=policy)
    datasets = {
        "evaluation": ClassificationDataset(data, eval_transform(image_size, config.crop_share)),
        "training": ClassificationDataset(
            data, train_transform(ClassificationConfig(""), image_size)
        ),
        f"training, {policy}": ClassificationDataset(data, train_transform(config, image_size)),
    }

    def plain() -> None:
        for index in indices:
            image, _ = data[int(index)]
            np.asarray(image.resize((image_size, image_size)))

    def reader(dataset: ClassificationDataset) -> Callable[[], None]:
        def run() -> None:
            for index in indices:
                dataset[0, int(index)]

        return run

    plainly = "decoding and resizing alone"
    runs = {plainly: plain, **{name: reader(dataset) for name, dataset in datasets.items()}}
    return _rates(runs, len(indices), seconds)


def bench_coco(
    data: CocoData, *, image_size: int, images: int, scale: tuple[float, float], seconds: float
) -> list[DataRow]:
    """Time large-scale jitter beside the same by torchvision's ``transforms.v2``, in turn.

    torchvision's is its ``ScaleJitter``, ``RandomCrop``, ``RandomHorizontalFlip`` and
    ``SanitizeBoundingBoxes`` on its own ``CocoDetection``, with a mask of the whole image for every
    instance: on uint8 tensors, its faster way and ours, and as its training scripts have it by
    default, on Pillow's images with float32 tensors in the end. Ours leaves the masks cropped, as
    they go to the training process.

    Args:
        data: a split with masks.
        image_size: side of what comes out, pixels.
        images: drawn from those of the split that have objects, the same for every pipeline.
        scale: range of the jitter.
        seconds: to spend.

    Raises:
        UserError: an image that cannot be read.
    """
    # torchvision's pipeline takes no image without objects.
    there = np.flatnonzero(np.diff(data.annotations.first) > 0)
    indices = np.random.default_rng(0).choice(there, min(images, len(there)), replace=False)
    ours = CocoDataset(data, data.categories, jitter=LargeScaleJitter(image_size, scale))
    tensors = _torchvision_jitter(data, image_size, scale, [v2.ToImage()], [])
    to_float = [v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True)]
    pillow = _torchvision_jitter(data, image_size, scale, [], to_float)
    paths = [data.image_path(index) for index in indices]

    def plain() -> None:
        for path in paths:
            fit_image(open_image(path), image_size)

    runs = {
        "torchvision's transforms.v2": lambda: [tensors(i) for i in indices],
        "the same, Pillow to float32": lambda: [pillow(i) for i in indices],
        "large-scale jitter": lambda: [ours[0, int(i)] for i in indices],
        "decoding and resizing alone": plain,
    }
    return _rates(runs, len(indices), seconds)


def _torchvision_jitter(
    data: CocoData,
    size: int,
    scale: tuple[float, float],
    before: list[v2.Transform],
    after: list[v2.Transform],
) -> Any:
    faster_coco_eval.init_as_pycocotools()  # which torchvision would import
    transform = v2.Compose(
        [
            *before,
            v2.ScaleJitter((size, size), scale_range=scale, antialias=True),
            v2.RandomCrop((size, size), pad_if_needed=True),
            v2.RandomHorizontalFlip(),
            *after,
            v2.SanitizeBoundingBoxes(),
        ]
    )
    with contextlib.redirect_stdout(None):
        dataset = CocoDetection(data.images, data.annotations.file, transforms=transform)
    wrapped = wrap_dataset_for_transforms_v2(dataset, target_keys=("boxes", "labels", "masks"))
    place = {image_id: index for index, image_id in enumerate(dataset.ids)}
    return lambda index: wrapped[place[int(data.annotations.image_ids[index])]]


def _rates(runs: Mapping[str, Callable[[], object]], images: int, seconds: float) -> list[DataRow]:
    """Images a second of each pipeline on one thread; the first is what others compare to."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        times = alternate(runs, seconds=seconds, device="cpu")
    finally:
        torch.set_num_threads(threads)
    rows: list[DataRow] = []
    for name, values in times.items():
        rates = [images / time for time in values]
        low, median, high = statistics.quantiles(rates, n=4)
        first = rows[0].images_per_second if rows else median
        rows.append(DataRow(name, median, high - low, median / first))
    return rows
