"""``botvision train``: from a data set to a run folder."""

from __future__ import annotations

import dataclasses
import functools
import math
from pathlib import Path

from rich.console import Console

from botvision.config import ClassificationConfig, DetectionConfig, TrainConfig
from botvision.data.loaders import train_loader, worker_count
from botvision.data.samplers import StepBatches
from botvision.device import resolve_precision
from botvision.errors import UserError
from botvision.tasks.checkpoint import save_model
from botvision.tasks.task import Setup
from botvision.tasks.train_classification import ClassificationSetup
from botvision.tasks.train_detection import DetectionSetup
from botvision.training.activation_checkpoint import peak_memory
from botvision.training.callbacks import DataWait, EventLog
from botvision.training.run import RunFolder
from botvision.training.trainer import resolve_device, this_process, training_trainer
from botvision.visualize.curves import plot_curves


def train(config: TrainConfig, *, resume: bool = False, console: Console | None = None) -> Path:
    """Train a model, evaluate it on the validation split if there is one, and write the run.

    Args:
        config: all settings, of detection or of classification.
        resume: go on from the run folder's last checkpoint, if it has one.
        console: where to say what happens; the terminal by default.

    Returns:
        The run folder.

    Raises:
        UserError: a fault in the data, the settings or the weights file, or a non-finite loss.
    """
    config = _resolve(config)
    rank, processes = this_process(config)
    console = console or Console(quiet=rank > 0)
    say = functools.partial(console.print, highlight=False, soft_wrap=True)
    setup: Setup
    if isinstance(config, DetectionConfig):
        setup = DetectionSetup(config)
    else:
        assert isinstance(config, ClassificationConfig)
        setup = ClassificationSetup(config)
    run = RunFolder(config.out or _new_folder(config), writes=rank == 0)
    start = run.begin(resume=resume)
    steps = config.max_steps
    if steps is None:
        steps = math.ceil(config.epochs * setup.images / config.batch_size)
    if run.has_ended(steps, config.patience):
        more = "--patience" if start < steps else "--epochs"
        say(f"{run.path}: complete, {start} of {steps} steps; raise {more} to go on")
        return run.path

    job = setup.job(run, steps)
    if config.patience and job.evaluation is None:
        raise UserError(f"--patience: {config.data} has no validation split to judge by")
    for line in job.summary:
        say(line)
    parameters = sum(p.numel() for p in job.model.parameters())
    say(
        f"{config.model}, {parameters / 1e6:.2f} M parameters, {job.card.task}, "
        f"{job.card.image_size} px; {steps} steps of {config.batch_size} images, learning rate "
        f"{config.peak_lr:.4g}, {config.device}{f' x {processes}' if processes > 1 else ''}, "
        f"precision {config.precision}",
    )
    if start:
        say(f"going on from step {start}")
    resolved = {"steps": steps, "learning_rate": config.peak_lr, "parameters": parameters}
    run.write_config(setup.config, {**resolved, **job.resolved})
    loader = train_loader(
        job.dataset,
        StepBatches(
            setup.images,
            config.batch_size,
            steps,
            seed=config.seed,
            start=start,
            accumulate=config.accumulate,
            rank=rank,
            processes=processes,
        ),
        job.collate_fn,
        workers=worker_count(config.workers, config.device != "cpu"),
        pin_memory=config.device == "cuda",
    )
    if config.compile:
        # A detector's heads see another number of proposals every time.
        getattr(job.model, "backbone", job.model).compile()
    evaluation, wait = job.evaluation, DataWait()
    log = EventLog(run, setup.images, config.batch_size, wait)
    trainer = training_trainer(
        config, run, steps, [wait, log, *([evaluation] if evaluation else [])]
    )
    if steps:
        trainer.fit(
            job.module,
            loader,
            job.val_loader if config.eval_steps else None,
            ckpt_path=run.checkpoint if start else None,
            weights_only=True,
        )
    stop = trainer.global_step
    if stop < steps:
        say(f"stopped at step {stop}: {config.patience} evaluations without a better one")
    if evaluation is not None and evaluation.step != stop:
        trainer.validate(job.module, job.val_loader, verbose=False)
    if evaluation is None:
        save_model(run.weights, job.model, job.card, writes=run.writes)
    if rank == 0:
        job.report(run, console)
        if steps:
            plot_curves(run.events, run.plots)
    run.end(stop, steps, config.patience)
    if wait.share is not None:
        say(f"waited for data {wait.share:.0%} of the time")
    say(f"peak memory {peak_memory(config.device) / 2**30:.2f} GiB")
    say(f"run written to {run.path}")
    return run.path


def _resolve(config: TrainConfig) -> TrainConfig:
    """Settle what the machine decides, and refuse what cannot work."""
    least = {"batch-size": 1, "max-steps": 0, "accumulate": 1, "devices": 1, "nodes": 1}
    for flag, minimum in {**least, "patience": 0, "eval-steps": 0}.items():
        value = getattr(config, flag.replace("-", "_"))
        if value is not None and value < minimum:
            raise UserError(f"--{flag} {value}: give at least {minimum}")
    if config.patience and not config.eval_steps:
        raise UserError("--patience counts evaluations: give --eval-steps too")
    parts = config.accumulate * config.devices * config.nodes
    if config.batch_size % parts:
        raise UserError(
            f"--batch-size {config.batch_size}: is for the whole step, to be cut into {parts} "
            "equal parts (--accumulate times processes); give a multiple of it"
        )
    if config.devices * config.nodes > 1 and config.out is None:
        raise UserError("several processes have to agree on the run folder: give --out")
    if config.strategy == "fsdp" and (config.ema_decay or config.precision == "16"):
        raise UserError(
            "--strategy fsdp: keeps no moving average of the weights and scales no float16 "
            "gradients; leave out --ema-decay, give --precision bf16 or 32, or use ddp"
        )
    device = resolve_device(config.device)
    if config.norm == "sync" and device != "cuda":
        raise UserError(
            f"--norm sync: torch synchronises batch norm over GPUs only, not on {device}; use "
            "plain or frozen"
        )
    return dataclasses.replace(
        config,
        device=device,
        precision=resolve_precision(config.precision, device),
    )


def _new_folder(config: TrainConfig) -> Path:
    """runs/DATA-MODEL, or the first of runs/DATA-MODEL-2, ... that is free."""
    name = f"{Path(config.data).name.split('.')[0]}-{config.model}"
    path, number = Path("runs") / name, 1
    while path.exists():
        number += 1
        path = Path("runs") / f"{name}-{number}"
    return path
