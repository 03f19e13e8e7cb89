"""The training loop, which knows no task."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
from rich.console import Console
from torch import nn
from torch.utils.data import DataLoader, Dataset

from botvision.attention.products import exact_products
from botvision.config import TrainConfig
from botvision.data.loaders import outlive_signals
from botvision.data.samplers import StepBatches
from botvision.device import Process, peak_memory, worker_count
from botvision.errors import UserError
from botvision.evaluation.evaluator import Evaluator, TaskEvaluator
from botvision.terminal import print_text
from botvision.training.callbacks import DataWait, Evaluation, EventLog
from botvision.training.control import RunControl
from botvision.training.fsdp import check_sharding
from botvision.training.processes import Processes
from botvision.training.run import Run
from botvision.training.signals import StopSignals
from botvision.training.trainer import training_trainer


@dataclass(frozen=True)
class Validation:
    """One pass over a split.

    Args:
        loader: the batches of this process.
        evaluator: the task's metrics.
        draw: writes pictures of the evaluator's last pass into a folder.
        facts: ``split``, ``images`` and ``images_in_split``, for metrics.json.
        summary: lines about what the model and the data do not have in common.
    """

    loader: DataLoader[Any]
    evaluator: TaskEvaluator
    draw: Callable[[Path], None]
    facts: dict[str, Any]
    summary: list[str]


@dataclass(frozen=True)
class Training:
    """Everything that the loop needs of a task.

    Args:
        model: drawn at random, or loaded.
        module: its training step.
        dataset: the training split, by keys (epoch, index).
        collate_fn: makes a batch of its samples.
        images: number of training images.
        validation: on the validation split, if there is one.
        save: writes the model with its description into a file; of several processes all call it,
            and the one writes that is told to.
        summary: lines about data, weights and model.
        resolved: what was resolved from the settings, for the run's config.yaml.
    """

    model: nn.Module
    module: L.LightningModule
    dataset: Dataset[Any]
    collate_fn: Callable[[list[Any]], Any]
    images: int
    validation: Validation | None
    save: Callable[[Path, bool], None]
    summary: list[str]
    resolved: dict[str, Any]


def fit(
    training: Training,
    config: TrainConfig,
    run: Run,
    *,
    start: int,
    steps: int,
    process: Process,
    processes: Processes,
    signals: StopSignals,
    evaluators: Sequence[Evaluator] = (),
    console: Console,
) -> None:
    """Train, evaluate, and write the run.

    Args:
        training: the model and its data.
        config: settings of the run.
        run: where to write.
        start: the first step.
        steps: length of the run.
        process: this process.
        processes: the processes of the run, which have not started yet.
        signals: the signals that stop the run.
        evaluators: further metrics.
        console: where to print.

    Raises:
        UserError: early stopping without a validation split, or a non-finite loss.
        Stopped: a signal has stopped the run, which is saved.
    """
    validation = training.validation
    if validation is None and config.patience:
        raise UserError(f"{config.data} has no validation split to judge by", parameter="patience")
    parameters = sum(p.numel() for p in training.model.parameters())
    several = f" x {process.count}" if process.count > 1 else ""
    for line in training.summary:
        print_text(console, line)
    print_text(
        console,
        f"{parameters / 1e6:.2f} M parameters; {steps} steps of {config.batch_size} images, "
        f"learning rate {config.peak_lr:.4g}{config.lr_rule}, {config.device}{several}, "
        f"precision {config.precision}",
    )
    if start:
        run.check_model(training.module)
        check_sharding(config, run.parameter_groups)
        print_text(console, f"resuming from step {start}")
    resolved = {"steps": steps, "learning_rate": config.peak_lr, "parameters": parameters}

    def begin() -> None:
        run.rewind()
        run.write_config(config, {**resolved, **training.resolved})

    wait = DataWait()
    callbacks: list[L.Callback] = [wait, EventLog(run, training.images, config.batch_size, wait)]
    evaluation = None
    if validation is not None:
        every = [validation.evaluator, *evaluators]
        logged = run.evaluated_steps()
        evaluation = Evaluation(every, run, validation.facts, training.save, logged)
        callbacks.append(evaluation)
    processes.start(config.devices)
    control = RunControl(config, run, steps, signals, evaluation, begin)
    # Lightning neither begins nor ends a run without a step left; `RunControl` ends that one.
    trainer = training_trainer(config, run, max(steps, start + 1), callbacks, control)
    if config.compile:
        # A detector's heads see another number of proposals every time.
        getattr(training.model, "backbone", training.model).compile()
    if steps == 0:
        begin()
    else:
        with exact_products():
            trainer.fit(
                training.module,
                _loader(training, config, start, steps, process),
                validation.loader if validation is not None else None,
                ckpt_path=run.checkpoint if start else None,
                weights_only=True,
            )
    stop = trainer.global_step
    signals.stopped_at(stop, steps)
    stopped = bool(signals.agreed or signals.received)
    if stopped and (validation is None or not run.weights.exists()):
        training.save(run.weights, run.writes)  # for `predict`; no evaluation has saved any
    signals.raise_if_received()
    if stop < steps:
        print_text(
            console, f"stopped at step {stop}: {config.patience} evaluations without a better one"
        )
    if validation is None or evaluation is None:
        training.save(run.weights, run.writes)
    else:
        # Of no steps, or to draw and report what an earlier process has evaluated.
        if not evaluation.metrics:
            with exact_products():
                trainer.validate(training.module, validation.loader, verbose=False)
        if process.rank == 0:
            for evaluator in evaluation.evaluators:
                evaluator.report(run.predictions, console)
            validation.draw(run.plots)
    run.end(stop, steps, config.patience)
    if wait.share is not None:
        print_text(console, f"waited for data {wait.share:.0%} of the time")
    print_text(console, f"peak memory {peak_memory(config.device) / 2**30:.2f} GiB")


def _loader(
    training: Training, config: TrainConfig, start: int, steps: int, process: Process
) -> DataLoader[Any]:
    """The batches of a run from step ``start`` on."""
    batches = StepBatches(
        training.images,
        config.batch_size,
        steps,
        seed=config.seed,
        start=start,
        accumulate=config.accumulate,
        rank=process.rank,
        processes=process.count,
    )
    return DataLoader(
        training.dataset,
        batch_sampler=batches,
        num_workers=worker_count(config.workers, config.device),
        collate_fn=training.collate_fn,
        worker_init_fn=outlive_signals,
        pin_memory=config.device == "cuda",
    )
