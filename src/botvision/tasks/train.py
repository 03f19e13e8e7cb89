"""Train: from a data set to a run folder."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from torch import nn
from torch.utils.data import DataLoader

from botvision.attention import Implementation
from botvision.config import ClassificationConfig, DetectionConfig, TrainConfig
from botvision.data.detection import DetectionData
from botvision.data.formats import ClassificationSource, DetectionSource
from botvision.data.samplers import StepBatches
from botvision.data.sources import task_of
from botvision.device import (
    Process,
    peak_memory,
    resolve_device,
    resolve_precision,
    worker_count,
)
from botvision.errors import UserError
from botvision.evaluation.evaluator import Evaluator, Metrics
from botvision.settings import load_recipe, make_config, read_settings
from botvision.tasks.checkpoint import save_model, upgrade_model_args
from botvision.tasks.classification import ClassificationTraining
from botvision.tasks.detection import DetectionTraining
from botvision.tasks.task import Task, Training
from botvision.terminal import terminal
from botvision.training.callbacks import DataWait, Evaluation, EventLog
from botvision.training.run import Run
from botvision.training.trainer import training_trainer
from botvision.visualize.curves import plot_curves

# A YAML file of settings, or the settings.
ConfigSource = str | Path | Mapping[str, Any]


def train(
    data: str | Path | DetectionSource | ClassificationSource,
    *,
    recipe: str | None = None,
    config: ConfigSource | Sequence[ConfigSource] | None = None,
    resume: bool = False,
    impl: Implementation | None = None,
    box_head: nn.Module | None = None,
    evaluators: Sequence[Evaluator] = (),
    console: Console | None = None,
    **settings: Any,
) -> Run:
    """Train a model, evaluate it on the validation split if there is one, and write the run.

    Later beats earlier: the defaults, the recipe, the config, the settings; when resuming, the
    run's own config takes the place of the recipe. The task follows from the data, or is given as
    ``task``.

    Args:
        data: a folder, an archive or a built-in set, see docs/guide.md; or the splits as objects,
            such as ``{"train": ..., "val": ...}`` of :class:`DetectionData` or
            :class:`ClassificationData`.
        recipe: name of a recipe.
        config: settings as a YAML file, such as a run's ``config.yaml``, or as a mapping; or
            several, of which the later beat the earlier.
        resume: continue from the last checkpoint in ``out``, if there is one.
        impl: an attention implementation of your own.
        box_head: a box head of your own for a detector, see :func:`botvision.build_detector`.
        evaluators: further metrics, see :class:`Evaluator`.
        console: where to print; the terminal or notebook by default.
        settings: of :class:`botvision.config.DetectionConfig` or ``ClassificationConfig``, such as
            ``model="botnet50"``, ``epochs=12`` or ``out="runs/mine"``.

    Returns:
        The run, with ``path``, ``metrics`` and ``history``.

    Raises:
        UserError: a fault in the data, the settings or the weights file, or a non-finite loss.
    """
    resolved = _resolved(
        training_config(data, recipe=recipe, config=config, resume=resume, settings=settings)
    )
    process = Process.current(resolved)
    console = console or terminal(quiet=process.rank > 0)
    source: Any = resolved.data if isinstance(data, str | Path) else data
    task: Task
    if isinstance(resolved, DetectionConfig):
        task = DetectionTraining(resolved, source, impl=impl, box_head=box_head)
    elif isinstance(resolved, ClassificationConfig) and box_head is None:
        task = ClassificationTraining(resolved, source, impl=impl)
    else:
        raise UserError("is for detectors only; leave it out", parameter="box_head")
    run = Run(resolved.out or _new_folder(resolved), writes=process.rank == 0)
    start = run.begin(resume=resume)
    steps = resolved.max_steps
    if steps is None:
        steps = math.ceil(resolved.epochs * task.images / resolved.batch_size)
    if run.has_ended(steps, resolved.patience):
        more = "patience" if start < steps else "epochs"
        console.print(f"{run.path}: complete, {start} of {steps} steps; raise {more} to continue")
        return run
    _fit(task, run, start, steps, process, evaluators, console)
    return run


def training_config(
    data: object,
    *,
    recipe: str | None = None,
    config: ConfigSource | Sequence[ConfigSource] | None = None,
    resume: bool = False,
    settings: Mapping[str, Any],
) -> TrainConfig:
    """All settings of a training, see :func:`train`; ``"auto"`` is left as it is.

    Raises:
        UserError: a fault in the settings.
    """
    layers: list[Mapping[str, Any]] = []
    configs = [config] if isinstance(config, str | Path | Mapping) else config or []
    for source in configs:
        layer = dict(source) if isinstance(source, Mapping) else read_settings(source)
        recipe = recipe or layer.pop("recipe", None)
        layers.append(layer)
    layers.append(settings)
    if resume:
        if settings.get("out") is None:
            raise UserError("needs `out`, the run folder to continue", parameter="resume")
        own = Run(settings["out"]).settings
        if own:
            own["model_args"] = upgrade_model_args(own.get("model_args", {}))
            layers.insert(0, own)
            recipe = None
    task = next((layer["task"] for layer in reversed(layers) if layer.get("task")), None)
    if isinstance(data, str | Path):
        name = str(data)
        task = task or task_of(name)
    else:
        splits: Mapping[str, object] = data  # type: ignore[assignment]
        name = ", ".join(f"{key}: {type(split).__name__}" for key, split in splits.items())
        detects = any(isinstance(split, DetectionData) for split in splits.values())
        task = task or ("detection" if detects else "classification")
    classifies = task == "classification"
    if recipe is not None:
        layers.insert(0, load_recipe(recipe, "classification" if classifies else "detection"))
    kind = ClassificationConfig if classifies else DetectionConfig
    return make_config(kind, *layers, {"data": name})


def _resolved(config: TrainConfig) -> TrainConfig:
    """Settle what the machine decides, and refuse what cannot work."""
    least = {"batch_size": 1, "max_steps": 0, "accumulate": 1, "devices": 1, "nodes": 1}
    for name, minimum in {**least, "patience": 0, "eval_steps": 0}.items():
        value = getattr(config, name)
        if value is not None and value < minimum:
            raise UserError(f"give at least {minimum}", parameter=name, value=value)
    if config.patience and not config.eval_steps:
        raise UserError("counts evaluations: give `eval_steps` too", parameter="patience")
    parts = config.accumulate * config.devices * config.nodes
    if config.batch_size % parts:
        raise UserError(
            f"is the global batch size, split into {parts} equal parts (`accumulate` micro-batches "
            "times processes); give a multiple of it",
            parameter="batch_size",
            value=config.batch_size,
        )
    if config.devices * config.nodes > 1 and config.out is None:
        raise UserError("several processes have to agree on the run folder: give `out`")
    if config.strategy == "fsdp" and (config.ema_decay or config.precision == "16"):
        raise UserError(
            "keeps no moving average of the weights and scales no float16 gradients; leave out "
            "`ema_decay`, give `precision` bf16 or 32, or use ddp",
            parameter="strategy",
            value="fsdp",
        )
    device = resolve_device(config.device)
    if config.norm == "sync" and device != "cuda":
        raise UserError(
            f"torch synchronizes batch norm over GPUs only, not on {device}; use plain or frozen",
            parameter="norm",
            value="sync",
        )
    precision = resolve_precision(config.precision, device)
    return dataclasses.replace(config, device=device, precision=precision)


def _new_folder(config: TrainConfig) -> Path:
    """runs/DATA-MODEL, or the first of runs/DATA-MODEL-2, ... that is free."""
    name = f"{Path(config.data).name.split('.')[0]}-{config.model}"
    path, number = Path("runs") / name, 1
    while path.exists():
        number += 1
        path = Path("runs") / f"{name}-{number}"
    return path


def _fit(
    task: Task,
    run: Run,
    start: int,
    steps: int,
    process: Process,
    evaluators: Sequence[Evaluator],
    console: Console,
) -> None:
    """Train from step ``start`` to ``steps``, evaluate, and write the rest of the run."""
    config = task.config
    training = task.training(steps, process)
    validation = training.validation
    if validation is None and config.patience:
        raise UserError(f"{config.data} has no validation split to judge by", parameter="patience")
    parameters = sum(p.numel() for p in training.model.parameters())
    for line in training.summary:
        console.print(line)
    console.print(
        f"{config.model}, {parameters / 1e6:.2f} M parameters, {training.spec.task}, "
        f"{training.spec.image_size} px; {steps} steps of {config.batch_size} images, learning "
        f"rate {config.peak_lr:.4g}, {config.device}"
        f"{f' x {process.count}' if process.count > 1 else ''}, precision {config.precision}"
    )
    if start:
        console.print(f"resuming from step {start}")
    resolved = {"steps": steps, "learning_rate": config.peak_lr, "parameters": parameters}
    run.write_config(config, {**resolved, **training.resolved})

    def on_metrics(step: int, metrics: Metrics, best: bool) -> None:
        assert validation is not None
        run.log("eval", step, **{k: v for k, v in metrics.items() if k != "per_class"})
        run.write_metrics({"step": step, **validation.facts, **metrics})
        if best:
            save_model(run.weights, training.model, training.spec, writes=run.writes)

    evaluation = None
    if validation is not None:
        evaluation = Evaluation([validation.evaluator, *evaluators], on_metrics)
    wait = DataWait()
    log = EventLog(run, task.images, config.batch_size, wait)
    trainer = training_trainer(
        config, run, steps, [wait, log, *([evaluation] if evaluation is not None else [])]
    )
    if config.compile:
        # A detector's heads see another number of proposals every time.
        getattr(training.model, "backbone", training.model).compile()
    if steps:
        trainer.fit(
            training.module,
            _train_loader(training, config, task.images, start, steps, process),
            validation.loader if validation is not None and config.eval_steps else None,
            ckpt_path=run.checkpoint if start else None,
            weights_only=True,
        )
    stop = trainer.global_step
    if stop < steps:
        console.print(f"stopped at step {stop}: {config.patience} evaluations without a better one")
    if validation is None or evaluation is None:
        save_model(run.weights, training.model, training.spec, writes=run.writes)
    else:
        if evaluation.step != stop:
            trainer.validate(training.module, validation.loader, verbose=False)
        if process.rank == 0:
            for evaluator in evaluation.evaluators:
                evaluator.report(run.predictions, console)
            validation.draw(run.plots)
    if process.rank == 0 and steps:
        plot_curves(run.events_file, run.plots)
    run.end(stop, steps, config.patience)
    if wait.share is not None:
        console.print(f"waited for data {wait.share:.0%} of the time")
    console.print(f"peak memory {peak_memory(config.device) / 2**30:.2f} GiB")
    console.print(f"run written to {run.path}")


def _train_loader(
    training: Training, config: TrainConfig, images: int, start: int, steps: int, process: Process
) -> DataLoader[Any]:
    """The batches of a run from step ``start`` on."""
    batches = StepBatches(
        images,
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
        pin_memory=config.device == "cuda",
    )
