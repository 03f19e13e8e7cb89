"""What a training run writes and shows as it goes."""

from __future__ import annotations

import sys
import time
from typing import Any

import lightning as L
from lightning.pytorch import Callback

from botvision.training.run import RunFolder


def ends_inside_a_step(trainer: L.Trainer, batch_idx: int) -> bool:
    """Whether more parts of a step follow after this batch."""
    return (batch_idx + 1) % trainer.accumulate_grad_batches != 0


class DataWait(Callback):
    """How long the training waits for its data: from a batch's end to the next one's start."""

    def __init__(self) -> None:
        """Start at nothing."""
        self.waited = self.total = 0.0
        self.began = self.free = 0.0

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Start the clock."""
        self.began = self.free = time.perf_counter()

    def on_train_batch_start(
        self, trainer: L.Trainer, module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Add the wait for this batch."""
        wait = time.perf_counter() - self.free
        self.waited += wait
        self.total += wait

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Wait from here on."""
        self.free = time.perf_counter()

    def on_validation_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """An evaluation is no wait for data."""
        spent = time.perf_counter() - self.free
        self.began += spent
        self.free += spent

    def take(self) -> float:
        """Seconds waited since this was last asked."""
        waited, self.waited = self.waited, 0.0
        return waited

    @property
    def share(self) -> float | None:
        """Share of the training time until the last batch's end; ``None`` before the first."""
        return self.total / (self.free - self.began) if self.free > self.began else None


class EventLog(Callback):
    """A line in the run's ``metrics.jsonl`` for every training step.

    Of a step in several parts or processes the loss is that of the first process's last part.
    """

    def __init__(self, run: RunFolder, images: int, batch_size: int, wait: DataWait) -> None:
        """Take the run, what makes an epoch of a step, and the clock of the data."""
        self.run = run
        self.epochs_a_step = batch_size / images
        self.wait = wait
        self.started = time.monotonic()

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Write losses, learning rate, and seconds since the start and for data in the step."""
        if ends_inside_a_step(trainer, batch_idx):
            return
        step = trainer.global_step
        self.run.log(
            "train",
            step,
            epoch=round(step * self.epochs_a_step, 4),
            lr=trainer.optimizers[0].param_groups[0]["lr"],
            seconds=round(time.monotonic() - self.started, 3),
            data_seconds=round(self.wait.take(), 4),
            **{name: float(value) for name, value in outputs.items()},
        )


class ProgressLines(Callback):
    """A line every so often where no terminal can show a bar: step, loss, rate, time left."""

    def __init__(self, steps: int, every_seconds: float = 15.0) -> None:
        """Take the length of the run, and how often to speak."""
        self.steps = steps
        self.every_seconds = every_seconds
        self.first = 0
        self.started = self.spoken = 0.0

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Start the clock."""
        self.first = trainer.global_step
        self.started = self.spoken = time.monotonic()

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Print if the last line is old enough, and at the end."""
        if ends_inside_a_step(trainer, batch_idx) or trainer.global_rank > 0:
            return
        now, step = time.monotonic(), trainer.global_step
        if now - self.spoken < self.every_seconds and step != self.steps:
            return
        self.spoken = now
        seconds = (now - self.started) / max(1, step - self.first)
        left = round(seconds * (self.steps - step))
        print(
            f"step {step}/{self.steps}  loss {float(outputs['loss']):.3f}  "
            f"{seconds:.2f} s/step  {left // 60}:{left % 60:02d} left",
            file=sys.stderr,
            flush=True,
        )
