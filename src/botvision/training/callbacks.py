"""Callbacks that log, evaluate, checkpoint and report the progress of a training run."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch import Callback

from botvision.evaluation.evaluator import Evaluator, Metrics, TaskEvaluator
from botvision.training.run import Run


def ends_inside_a_step(trainer: L.Trainer, batch_idx: int) -> bool:
    """Whether more parts of a step follow after this batch."""
    return (batch_idx + 1) % trainer.accumulate_grad_batches != 0


def step_values(trainer: L.Trainer, outputs: Mapping[str, Any]) -> dict[str, float]:
    """Values of a training step. Lightning divides the loss by the number of micro-batches."""
    values = {name: float(value) for name, value in outputs.items()}
    return {**values, "loss": values["loss"] * trainer.accumulate_grad_batches}


class BatchCount(Callback):
    """Resumes with another ``accumulate``: Lightning's checkpoints count micro-batches.

    Lightning would see the end of the data too early, and begin again with the first batch.
    """

    def on_load_checkpoint(
        self, trainer: L.Trainer, module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Count the micro-batches of this run's steps."""
        count = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]["current"]
        missing = checkpoint["global_step"] * trainer.accumulate_grad_batches - count["ready"]
        for name in count:
            count[name] += missing


class DataWait(Callback):
    """How long the training waits for its data: from a batch's end to the next one's start."""

    def __init__(self) -> None:
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

    With several micro-batches or processes the loss is that of the first process's last
    micro-batch.

    Args:
        run: the run.
        images: training images, an epoch.
        batch_size: images per step.
        wait: the clock of the data.
    """

    def __init__(self, run: Run, images: int, batch_size: int, wait: DataWait) -> None:
        self.run = run
        self.epochs_per_step = batch_size / images
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
            epoch=round(step * self.epochs_per_step, 4),
            lr=trainer.optimizers[0].param_groups[0]["lr"],
            seconds=round(time.monotonic() - self.started, 3),
            data_seconds=round(self.wait.take(), 4),
            **step_values(trainer, outputs),
        )


class ProgressLines(Callback):
    """A line every so often where nothing can show a bar: step, loss, rate, time left.

    Args:
        steps: length of the run.
        every_seconds: how often to print.
    """

    def __init__(self, steps: int, every_seconds: float = 15.0) -> None:
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
            f"step {step}/{self.steps}  loss {step_values(trainer, outputs)['loss']:.3f}  "
            f"{seconds:.2f} s/step  {left // 60}:{left % 60:02d} left",
            file=sys.stderr,
            flush=True,
        )


class Evaluation(Callback):
    """Drives evaluators through Lightning's validation loop.

    The first one is the task's: its score decides whether the model is the best so far. What it has
    decided is part of a checkpoint. ``metrics`` are those of all evaluators in the last pass.

    Args:
        evaluators: at least one.
        run: gets an event, the metrics and the best model; None only computes them.
        facts: of the split, for the metrics.
        save: writes the model, see ``Training.save``.
        logged: steps whose evaluation an earlier process has written, whatever the checkpoint has.
    """

    def __init__(
        self,
        evaluators: Sequence[Evaluator],
        run: Run | None = None,
        facts: Mapping[str, Any] | None = None,
        save: Callable[[Path, bool], None] = lambda path, writes: None,
        logged: Collection[int] = (),
    ) -> None:
        self.evaluators = evaluators
        self.run, self.facts, self.save, self.logged = run, facts or {}, save, logged
        self.best = -math.inf
        self.since_best = 0
        self.step = -1
        self.metrics: Metrics = {}
        self.broken_off = False

    def on_validation_epoch_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Forget the last pass."""
        self.broken_off = False
        for evaluator in self.evaluators:
            evaluator.reset()

    def on_validation_batch_start(
        self,
        trainer: L.Trainer,
        module: L.LightningModule,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Save the model before its first evaluation, which may fail."""
        if batch_idx == 0 and self.run is not None and self.best == -math.inf:
            self.save(self.run.weights, self.run.writes)

    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Add a batch; outputs are ``{"predictions": ...}``."""
        for evaluator in self.evaluators:
            evaluator.update(outputs["predictions"], batch)

    def on_validation_epoch_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Compute the metrics, and judge the model by them."""
        if self.broken_off:
            return
        self.metrics = {}
        for evaluator in self.evaluators:
            self.metrics |= evaluator.compute()
        judged, self.step = self.step, trainer.global_step
        if self.run is None:
            return
        self.run.write_metrics({"step": self.step, **self.facts, **self.metrics})
        if judged == self.step:  # a repetition, to draw and report what was lost
            return
        task: TaskEvaluator = self.evaluators[0]  # type: ignore[assignment]
        event = {name: value for name, value in self.metrics.items() if name != "per_class"}
        self.run.log("eval", self.step, **event)
        first, better = self.best == -math.inf, task.score > self.best
        self.best = max(self.best, task.score)
        self.since_best = 0 if better else self.since_best + 1
        # A score below 0 means that there is nothing to judge by: the last model is kept.
        if not first and (better or task.score < 0):
            self.save(self.run.weights, self.run.writes)

    def state_dict(self) -> dict[str, Any]:
        """Keep what was judged in checkpoints."""
        return {"best": self.best, "since_best": self.since_best, "step": self.step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over what was judged before the checkpoint."""
        self.best = state_dict["best"]
        self.since_best = state_dict.get("since_best", self.since_best)
        self.step = state_dict.get("step", self.step)

    def on_load_checkpoint(
        self, trainer: L.Trainer, module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Take over the states of version 0.1 and of Lightning's early stopping."""
        for name, state in checkpoint["callbacks"].items():
            if name in ("CocoEvaluation", "ClassEvaluation"):
                self.load_state_dict(state)
            elif name.startswith("Patience"):
                self.since_best = state["wait_count"]
