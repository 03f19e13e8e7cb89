"""What a training run writes and shows as it goes."""

from __future__ import annotations

import sys
import time
from typing import Any

import lightning as L
from lightning.pytorch import Callback

from botvision.training.run import RunFolder


class EventLog(Callback):
    """A line in the run's ``metrics.jsonl`` for every training step."""

    def __init__(self, run: RunFolder, images: int, batch_size: int) -> None:
        """Take the run, and what makes an epoch of a step."""
        self.run = run
        self.epochs_a_step = batch_size / images
        self.started = time.monotonic()

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Write losses, learning rate and seconds since the start."""
        step = trainer.global_step
        self.run.log(
            "train",
            step,
            epoch=round(step * self.epochs_a_step, 4),
            lr=trainer.optimizers[0].param_groups[0]["lr"],
            seconds=round(time.monotonic() - self.started, 3),
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
