"""Batches: in training a function of seed and step alone, in evaluation each image once."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from botvision.data.coco import CocoData, Target
from botvision.data.images import open_image
from botvision.data.views import Views
from botvision.errors import UserError

Batch = tuple[list[Tensor], list[Target]]
# Whole images as PIL has them, and their ids.
EvalBatch = tuple[list[Image.Image], list[int]]
_Image = TypeVar("_Image")
_Target = TypeVar("_Target")


class StepBatches(Sampler[list[tuple[int, int]]]):
    """The keys (epoch, index) of each step's images, from step ``start`` on.

    The run is one stream of samples, shuffled anew each epoch by (seed, epoch) and cut into
    batches, so a batch may end one epoch and begin the next and no image is left out. What a step
    trains on is a function of seed and step, wherever an interrupted run starts again.

    A step's images go through the model in ``accumulate`` parts, each cut evenly among
    ``processes``, of which this is number ``rank``.
    """

    def __init__(
        self,
        images: int,
        batch_size: int,
        steps: int,
        *,
        seed: int,
        start: int,
        accumulate: int = 1,
        rank: int = 0,
        processes: int = 1,
    ) -> None:
        """Take the size of the data and of the run; ``batch_size`` is a step's."""
        self.images, self.batch_size, self.steps = images, batch_size, steps
        self.seed, self.start = seed, start
        self.accumulate, self.rank, self.processes = accumulate, rank, processes

    def __len__(self) -> int:
        """Count the run's batches, those before ``start`` included."""
        return self.steps * self.accumulate

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        """Yield the keys of each batch from step ``start`` on."""
        part = self.batch_size // (self.accumulate * self.processes)
        for keys in self._steps():
            for first in range(self.rank * part, self.batch_size, self.processes * part):
                yield keys[first : first + part]

    def _steps(self) -> Iterator[list[tuple[int, int]]]:
        order: NDArray[np.int64] = np.empty(0, np.int64)
        shuffled = -1
        for step in range(self.start, self.steps):
            keys = []
            for sample in range(step * self.batch_size, (step + 1) * self.batch_size):
                epoch, position = divmod(sample, self.images)
                if epoch != shuffled:
                    order = np.random.default_rng((self.seed, epoch)).permutation(self.images)
                    shuffled = epoch
                keys.append((epoch, int(order[position])))
            yield keys


class WholeImages(Dataset[tuple[Image.Image, int]]):
    """The RGB images of a split as they are in their files, each with its id."""

    def __init__(self, data: CocoData) -> None:
        """Take a split."""
        self.data = data

    def __len__(self) -> int:
        """Count the images."""
        return len(self.data)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        """Read one image; raises UserError as ``open_image``."""
        annotations = self.data.annotations
        width, height = annotations.sizes[index].tolist()
        image = open_image(self.data.image_path(index), (width, height))
        return image, int(annotations.image_ids[index])


def fit_image(image: Image.Image, size: int) -> Tensor:
    """Resize so that the longer side has ``size`` pixels: uint8 (3, h, w)."""
    (whole,) = Views(size).of(*image.size)
    return whole.image(image)


def collate(samples: list[tuple[_Image, _Target]]) -> tuple[list[_Image], list[_Target]]:
    """Lists, since images and instances differ in size and number."""
    images, targets = zip(*samples, strict=True)
    return list(images), list(targets)


def train_loader(
    dataset: Dataset[Any],
    batches: StepBatches,
    collate_fn: Callable[[list[Any]], Any],
    *,
    workers: int = 0,
    pin_memory: bool = False,
) -> DataLoader[Any]:
    """The batches of a run; its length is the whole run's."""
    return DataLoader(
        dataset,
        batch_sampler=batches,
        num_workers=workers,
        collate_fn=collate_fn,
        pin_memory=pin_memory,
    )


def eval_loader(
    dataset: Dataset[Any],
    collate_fn: Callable[[list[Any]], Any],
    *,
    batch_size: int,
    workers: int = 0,
    rank: int = 0,
    processes: int = 1,
) -> DataLoader[Any]:
    """Every image once, over all processes: process ``rank`` has every ``processes``-th.

    Raises:
        UserError: there are fewer images than processes.
    """
    if len(dataset) < processes:  # type: ignore[arg-type]
        raise UserError(
            f"{len(dataset)} images to evaluate for {processes} processes; add images, or give "  # type: ignore[arg-type]
            "fewer --devices"
        )
    return DataLoader(
        dataset,
        batch_size=batch_size,
        sampler=range(rank, len(dataset), processes),  # type: ignore[arg-type]
        num_workers=workers,
        collate_fn=collate_fn,
    )


def draw_images(images: int, limit: int | None) -> list[int]:
    """Indices of ``limit`` of the images, drawn at random but always the same, in order.

    The first ones would be of a single class where files are sorted by it. More images include
    those of fewer; all, if no limit is less than that.

    Raises:
        UserError: a limit below 1.
    """
    if limit is not None and limit < 1:
        raise UserError(f"--limit {limit}: give at least 1")
    order = np.random.default_rng(0).permutation(images)
    return sorted(order[:limit].tolist())


def seed_everything(*numbers: int) -> int:
    """Seed what timm's transforms and Mixup draw from: Python, NumPy and torch on the CPU.

    Returns the seed. (``torch.manual_seed`` takes longer than an image of CIFAR.)
    """
    seed = int(np.random.SeedSequence(numbers).generate_state(1)[0])
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002, what they draw from
    torch.default_generator.manual_seed(seed)
    return seed


def worker_count(workers: int, accelerated: bool) -> int:
    """Resolve ``-1``: all cores but one (8 at most) beside an accelerator, else none.

    On a CPU the training itself uses every core, and a process beside it only slows both.
    """
    if workers >= 0:
        return workers
    return min(8, max(1, (os.cpu_count() or 2) - 1)) if accelerated else 0
