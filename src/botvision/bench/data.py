"""The benchmark of data pipelines, compared with decoding and resizing only."""

from __future__ import annotations

import contextlib
import statistics
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import faster_coco_eval
import numpy as np
import torch
from torchvision.datasets import CocoDetection, wrap_dataset_for_transforms_v2
from torchvision.transforms import v2

from botvision.bench.config import DataBenchConfig
from botvision.bench.measure import alternate
from botvision.bench.report import data_table, header, save_rows, settings_of
from botvision.bench.rows import DataRow
from botvision.bench.validate import check_positive, check_writable
from botvision.config import ClassificationConfig
from botvision.data.classification import (
    ClassificationData,
    ClassificationDataset,
    eval_transform,
    train_transform,
)
from botvision.data.coco import CocoData
from botvision.data.detection import DetectionDataset
from botvision.data.formats import classification_splits, detection_splits
from botvision.data.images import open_image
from botvision.data.jitter import LargeScaleJitter
from botvision.data.sources import task_of
from botvision.data.transforms import fit_image
from botvision.terminal import terminal

PLAIN = "decoding and resizing alone"


def bench_data(config: DataBenchConfig, *, quiet: bool = False) -> list[DataRow]:
    """Measure how many images per second one process on one core loads and augments.

    Args:
        config: Options of the benchmark.
        quiet: Print nothing.

    Returns:
        One row per pipeline.

    Raises:
        UserError: The data cannot be read, an option is invalid, or a file cannot be written.
    """
    check_positive(image_size=config.image_size, images=config.images, seconds=config.seconds)
    check_writable(json=config.json)
    console = terminal(quiet)
    settings = {**settings_of(config), "data": Path(config.data).name}
    if task_of(config.data) == "classification":
        size = config.image_size or 224
        del settings["jitter"]
        splits = classification_splits(config.data)
        images = splits.get("train", next(iter(splits.values())))(None)
        console.print(images.summary())
        rows = measure_classification(images, config, image_size=size)
    else:
        size = config.image_size or 1024
        del settings["policy"]
        openers = detection_splits(config.data)
        coco = openers.get("train", next(iter(openers.values())))(None)
        assert isinstance(coco, CocoData)
        console.print(coco.summary())
        rows = measure_coco(coco, config, image_size=size)
    console.print(data_table(rows, size), soft_wrap=False)
    if config.json is not None:
        save_rows(config.json, header("data", {**settings, "image_size": size}), rows)
    return rows


def measure_classification(
    data: ClassificationData, config: DataBenchConfig, *, image_size: int
) -> list[DataRow]:
    """Time the training and evaluation pipelines of a classifier in turn.

    Args:
        data: A split.
        config: Number of images, augmentation policy and timing budget.
        image_size: Side of the loaded images in pixels.

    Returns:
        One row per pipeline, decoding and resizing first.

    Raises:
        UserError: An image cannot be read, or the policy is unknown.
    """
    indices = np.random.default_rng(0).choice(
        len(data), min(config.images, len(data)), replace=False
    )
    augmented = ClassificationConfig(data="", auto_augment=config.policy)
    datasets = {
        "evaluation": ClassificationDataset(data, eval_transform(image_size, augmented.crop_share)),
        "training": ClassificationDataset(
            data, train_transform(ClassificationConfig(""), image_size)
        ),
        f"training, {config.policy}": ClassificationDataset(
            data, train_transform(augmented, image_size)
        ),
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

    readers = {name: reader(dataset) for name, dataset in datasets.items()}
    return _rates({PLAIN: plain, **readers}, len(indices), config.seconds)


def measure_coco(data: CocoData, config: DataBenchConfig, *, image_size: int) -> list[DataRow]:
    """Time large-scale jitter and the same augmentation in torchvision's ``transforms.v2`` in turn.

    torchvision's pipeline consists of ``ScaleJitter``, ``RandomCrop``, ``RandomHorizontalFlip`` and
    ``SanitizeBoundingBoxes`` on its ``CocoDetection``, with a mask of the whole image for every
    instance. It is timed twice. The first variant uses uint8 tensors, which is faster and the same
    as in this library. The second uses Pillow images that are converted to float32 tensors, the
    default of torchvision's training scripts. This library's pipeline leaves the masks cropped, as
    they are sent to the training process.

    Args:
        data: A split with masks.
        config: Number of images, range of the scale and timing budget.
        image_size: Side of the loaded images in pixels.

    Returns:
        One row per pipeline, torchvision's with uint8 tensors first.

    Raises:
        UserError: An image cannot be read.
    """
    # torchvision's pipeline fails on images without objects.
    candidates = np.flatnonzero(np.diff(data.annotations.first) > 0)
    indices = np.random.default_rng(0).choice(
        candidates, min(config.images, len(candidates)), replace=False
    )
    ours = DetectionDataset(
        data, data.categories, jitter=LargeScaleJitter(image_size, config.jitter)
    )
    tensors = _torchvision_jitter(data, image_size, config.jitter, [v2.ToImage()], [])
    to_float = [v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True)]
    pillow = _torchvision_jitter(data, image_size, config.jitter, [], to_float)
    paths = [data.image_path(index) for index in indices]

    def plain() -> None:
        for path in paths:
            fit_image(open_image(path), image_size)

    runs = {
        "torchvision's transforms.v2": lambda: [tensors(i) for i in indices],
        "the same, Pillow to float32": lambda: [pillow(i) for i in indices],
        "large-scale jitter": lambda: [ours[0, int(i)] for i in indices],
        PLAIN: plain,
    }
    return _rates(runs, len(indices), config.seconds)


def _torchvision_jitter(
    data: CocoData,
    size: int,
    scale: tuple[float, float],
    before: list[v2.Transform],
    after: list[v2.Transform],
) -> Any:
    faster_coco_eval.init_as_pycocotools()  # torchvision would import pycocotools
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
    """Measure the images per second of each pipeline on one thread, compared with the first."""
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
