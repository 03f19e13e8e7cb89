"""Which images come when: in training a function of seed and step only."""

from __future__ import annotations

import random
from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Sampler

from botvision.errors import UserError


class StepBatches(Sampler[list[tuple[int, int]]]):
    """The keys (epoch, index) of each step's images, from step ``start`` on.

    The run is one stream of samples, shuffled again in each epoch by (seed, epoch) and cut into
    batches, so a batch may end one epoch and begin the next and no image is left out. What a step
    trains on is a function of seed and step, wherever an interrupted run starts again.

    A step's images go through the model in ``accumulate`` parts, each cut evenly among
    ``processes``, of which this is number ``rank``.

    Args:
        images: number of images of the split.
        batch_size: images per step (the global batch size).
        steps: length of the run.
        seed: of the order.
        start: the first step that is yielded.
        accumulate: micro-batches per step.
        rank: number of this process.
        processes: number of processes.
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
        self.images, self.batch_size, self.steps = images, batch_size, steps
        self.seed, self.start = seed, start
        self.accumulate, self.rank, self.processes = accumulate, rank, processes

    def __len__(self) -> int:
        return self.steps * self.accumulate

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
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


def sample_images(images: int, limit: int | None) -> list[int]:
    """Indices of ``limit`` of the images, drawn at random but always the same, in order.

    The first ones would be of a single class where files are sorted by it. A larger sample
    includes the smaller ones.

    Args:
        images: number of images of the split.
        limit: size of the sample. None, or a number of at least ``images``, selects all.

    Returns:
        The indices from 0 to ``images - 1``, ascending.

    Raises:
        UserError: ``limit`` is less than 1.
    """
    if limit is not None and limit < 1:
        raise UserError("must be at least 1", parameter="limit", value=limit)
    order = np.random.default_rng(0).permutation(images)
    return sorted(order[:limit].tolist())


def seed_everything(*numbers: int) -> int:
    """Seed what timm's transforms and Mixup draw from: Python, NumPy and torch on the CPU.

    ``torch.manual_seed`` is not used, because it takes longer than an image of CIFAR.

    Args:
        *numbers: non-negative integers that determine the seed, such as seed, epoch and index.

    Returns:
        The seed, an unsigned 32-bit number.
    """
    seed = int(np.random.SeedSequence(numbers).generate_state(1)[0])
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002, what they draw from
    torch.default_generator.manual_seed(seed)
    return seed
