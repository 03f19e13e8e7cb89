"""Checkpoints, evaluations and the end of a run, between two training steps."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import lightning as L
import torch
from lightning.pytorch import Callback

from botvision.config import TrainConfig
from botvision.training.callbacks import Evaluation, ends_inside_a_step
from botvision.training.optimizer import current_settings, restore_settings
from botvision.training.run import Run
from botvision.training.signals import StopSignals


def largest(trainer: L.Trainer, *numbers: int) -> list[int]:
    """Return the largest value of each number over all processes, which must all call this."""
    if trainer.world_size == 1:
        return list(numbers)
    values = torch.tensor(numbers, device=trainer.strategy.root_device)
    found: list[int] = trainer.strategy.reduce(values, reduce_op="max").tolist()
    return found


class RunControl(Callback):
    """Saves checkpoints, evaluates, and ends the run early, at the end of a step.

    The checkpoint of a step precedes its evaluation. A run that is killed afterwards evaluates when
    it is resumed, with the same weights, unless a later checkpoint holds the evaluation. So no
    evaluation is missing, and none is counted twice.

    Args:
        config: settings of the run.
        run: the run.
        steps: number of training steps of the run.
        signals: the signals that stop the run.
        evaluation: the evaluation on the validation split, if there is one.
        begin: called before the first step, when the checkpoint has been loaded.
    """

    def __init__(
        self,
        config: TrainConfig,
        run: Run,
        steps: int,
        signals: StopSignals,
        evaluation: Evaluation | None,
        begin: Callable[[], None],
    ) -> None:
        self.config, self.run, self.steps = config, run, steps
        self.signals, self.evaluation, self.begin = signals, evaluation, begin
        self.settings: list[dict[str, Any]] = []
        self.saved = 0.0
        self.common_batches = 0

    def on_fit_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Note the optimizer's settings, which a checkpoint replaces."""
        self.settings = current_settings(trainer)

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Finish what the checkpoint lacks of its step."""
        self.signals.install()  # after Lightning's, which would broadcast inside the handler
        self.signals.deferred = True
        self.begin()
        self.saved = time.monotonic()
        # The last batch of a shorter run is not the last one of this run.
        trainer.fit_loop.epoch_loop.batch_progress.is_last_batch = False
        step = trainer.global_step
        if step:
            restore_settings(trainer, self.settings)
        due = False
        if self.evaluation is not None and step != self.evaluation.step:
            due = self._is_due(step) or step in self.evaluation.logged
        self._evaluate(trainer, module, due=due)

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Save, evaluate, and stop, whatever is due."""
        if ends_inside_a_step(trainer, batch_idx):
            return
        step = trainer.global_step
        late = trainer.is_global_zero and (
            time.monotonic() - self.saved >= 60 * self.config.checkpoint_minutes
        )
        self.signals.agreed, save = largest(trainer, self.signals.received, int(late))
        due = not self.signals.agreed and self._is_due(step)
        # At the end of the run, `LastCheckpoint` saves.
        if save or due or step % self.config.checkpoint_steps == 0:
            trainer.save_checkpoint(self.run.checkpoint)
            self.saved = time.monotonic()
        self._evaluate(trainer, module, due=due)

    def on_validation_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Find how many batches every process has."""
        self.common_batches = -largest(trainer, -int(sum(trainer.num_val_batches)))[0]

    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Break the evaluation off on a signal."""
        assert self.evaluation is not None
        if not self.signals.deferred or batch_idx >= self.common_batches:
            return
        self.signals.agreed = largest(trainer, self.signals.received)[0]
        if self.signals.agreed:
            self.evaluation.broken_off = True
            raise StopIteration  # which ends Lightning's loop over the batches

    def _is_due(self, step: int) -> bool:
        every = self.config.eval_steps
        return (
            self.evaluation is not None
            and step > 0
            and (step == self.steps or (every > 0 and step % every == 0))
        )

    def _evaluate(self, trainer: L.Trainer, module: L.LightningModule, *, due: bool) -> None:
        """Evaluate if it is due, and stop if there is a reason to."""
        if due:
            # As Lightning does between two batches, but it would not do it before the first one.
            connector = trainer._logger_connector
            first = connector._first_loop_iter
            module.on_validation_model_zero_grad()
            trainer.validating = True
            loop = trainer.fit_loop.epoch_loop.val_loop
            loop.restarting = False
            loop.run()
            trainer.training = True
            connector._first_loop_iter = first
        worse = 0 if self.evaluation is None else self.evaluation.since_best
        exhausted = 0 < self.config.patience <= worse
        if self.signals.agreed or exhausted or trainer.global_step >= self.steps:
            trainer.should_stop = True


class LastCheckpoint(Callback):
    """Saves at the end, before the moving average replaces the weights."""

    def __init__(self, run: Run) -> None:
        self.run = run

    def on_train_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Save."""
        trainer.save_checkpoint(self.run.checkpoint)
