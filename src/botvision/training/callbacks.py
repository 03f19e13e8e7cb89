"""Callbacks that log, evaluate, checkpoint and report the progress of a training run."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint

from botvision.evaluation.evaluator import Evaluator, Metrics, TaskEvaluator
from botvision.training.run import Run

# What an evaluation logs for early stopping: the task's main metric, larger being better.
SCORE = "score"


def ends_inside_a_step(trainer: L.Trainer, batch_idx: int) -> bool:
    """Whether more parts of a step follow after this batch."""
    return (batch_idx + 1) % trainer.accumulate_grad_batches != 0


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
            **{name: float(value) for name, value in outputs.items()},
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
            f"step {step}/{self.steps}  loss {float(outputs['loss']):.3f}  "
            f"{seconds:.2f} s/step  {left // 60}:{left % 60:02d} left",
            file=sys.stderr,
            flush=True,
        )


class Evaluation(Callback):
    """Drives evaluators through Lightning's validation loop.

    The first one is the task's: its score decides whether the model is the best so far, which
    survives a resume. ``metrics`` are those of all evaluators in the last pass, ``step`` is when it
    was.

    Args:
        evaluators: at least one.
        run: gets an event, the metrics and the best model; None only computes them.
        facts: of the split, for the metrics.
        save: writes the model, see ``Training.save``.
    """

    def __init__(
        self,
        evaluators: Sequence[Evaluator],
        run: Run | None = None,
        facts: Mapping[str, Any] | None = None,
        save: Callable[[Path, bool], None] = lambda path, writes: None,
    ) -> None:
        self.evaluators = evaluators
        self.run, self.facts, self.save = run, facts or {}, save
        self.best = -1.0
        self.metrics: Metrics = {}
        self.step = -1

    def on_validation_epoch_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Forget the last pass."""
        for evaluator in self.evaluators:
            evaluator.reset()

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
        """Compute the metrics."""
        self.metrics = {}
        for evaluator in self.evaluators:
            self.metrics |= evaluator.compute()
        self.step = trainer.global_step
        task: TaskEvaluator = self.evaluators[0]  # type: ignore[assignment]
        # Equal in all processes: a mean leaves it as it is.
        module.log(SCORE, task.score, logger=False, sync_dist=True)
        best = task.score > self.best
        self.best = max(self.best, task.score)
        if self.run is None:
            return
        event = {name: value for name, value in self.metrics.items() if name != "per_class"}
        self.run.log("eval", self.step, **event)
        self.run.write_metrics({"step": self.step, **self.facts, **self.metrics})
        if best:
            self.save(self.run.weights, self.run.writes)

    def state_dict(self) -> dict[str, Any]:
        """Keep the best score in checkpoints."""
        return {"best": self.best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the best score back from a checkpoint."""
        self.best = state_dict["best"]

    def on_load_checkpoint(
        self, trainer: L.Trainer, module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Take the best score from a checkpoint of before version 0.2."""
        for name in ("CocoEvaluation", "ClassEvaluation"):
            if name in checkpoint["callbacks"]:
                self.load_state_dict(checkpoint["callbacks"][name])


class Checkpoint(ModelCheckpoint):
    """Between steps only: a micro-batch leaves gradients that no checkpoint holds."""

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Save if it is time."""
        if not ends_inside_a_step(trainer, batch_idx):
            super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)


class LastCheckpoint(Callback):
    """At the end, before the moving average replaces the weights."""

    def __init__(self, run: Run) -> None:
        self.run = run

    def on_train_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Save."""
        trainer.save_checkpoint(self.run.checkpoint)


class Patience(EarlyStopping):
    """Lightning's early stopping, but a resumed run has the patience that it is given now."""

    def __init__(self, evaluations: int) -> None:
        super().__init__(SCORE, patience=evaluations, mode="max")

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over the count and the best score."""
        super().load_state_dict({**state_dict, "patience": self.patience})
