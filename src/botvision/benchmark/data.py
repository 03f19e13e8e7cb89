"""How fast a process reads and augments images, beside decoding and resizing them alone."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from botvision.benchmark.measure import alternate
from botvision.config import ClassificationConfig
from botvision.data.classes import ClassData, ClassDataset, eval_transform, train_transform


@dataclass(frozen=True)
class DataRow:
    """One pipeline.

    Args:
        pipeline: what is done to an image.
        images_per_second: of one process on one core, from the median run.
        spread: interquartile range of that.
        ratio: its speed over that of decoding and resizing alone.
    """

    pipeline: str
    images_per_second: float
    spread: float
    ratio: float


def bench_class_folder(
    data: ClassData, *, image_size: int, images: int, policy: str, seconds: float
) -> list[DataRow]:
    """Time the training and evaluation pipelines of class folders, the runs in turn.

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
        "evaluation": ClassDataset(data, eval_transform(image_size, config.crop_share)),
        "training": ClassDataset(data, train_transform(ClassificationConfig(""), image_size)),
        f"training, {policy}": ClassDataset(data, train_transform(config, image_size)),
    }

    def plain() -> None:
        for index in indices:
            image, _ = data[int(index)]
            np.asarray(image.resize((image_size, image_size)))

    def reader(dataset: ClassDataset) -> Callable[[], None]:
        def run() -> None:
            for index in indices:
                dataset[0, int(index)]

        return run

    plainly = "decoding and resizing alone"
    runs = {plainly: plain, **{name: reader(dataset) for name, dataset in datasets.items()}}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        times = alternate(runs, seconds=seconds, device="cpu")
    finally:
        torch.set_num_threads(threads)
    rates = {name: [len(indices) / time for time in values] for name, values in times.items()}
    medians = {name: statistics.median(values) for name, values in rates.items()}
    rows = []
    for name, values in rates.items():
        low, _, high = statistics.quantiles(values, n=4)
        ratio = medians[name] / medians[plainly]
        rows.append(DataRow(name, medians[name], high - low, ratio))
    return rows
