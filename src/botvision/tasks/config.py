"""Resolve all settings of a training run before data is read or a model is built."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from botvision.config import ClassificationConfig, DetectionConfig, TrainConfig
from botvision.data.detection import DetectionData
from botvision.data.sources import task_of
from botvision.device import Process, check_device_count, resolve_device, resolve_precision
from botvision.errors import UserError
from botvision.launcher import Launcher
from botvision.models import check_model_args
from botvision.settings import load_recipe, make_config, read_settings
from botvision.tasks.checkpoint import upgrade_model_args
from botvision.training.run import Run

# Settings as a YAML file or as a mapping.
ConfigSource = str | Path | Mapping[str, Any]


def settle(
    data: object,
    *,
    recipe: str | None,
    config: ConfigSource | Sequence[ConfigSource] | None,
    resume: bool,
    settings: Mapping[str, Any],
) -> tuple[TrainConfig, Process]:
    """Resolve the settings of a training run on this machine.

    This selects the device, the precision and the run folder where the settings leave them open.
    The numbers of processes and machines are the launcher's, if there is one.

    Args:
        data: data of ``botvision.train``: a name, a path, or the splits as objects.
        recipe: name of a recipe.
        config: settings as a YAML file or a mapping, or several of them. Later ones override
            earlier ones.
        resume: whether the run in ``settings["out"]`` is continued.
        settings: settings by name. They override ``config`` and ``recipe``.

    Returns:
        The settings, without ``"auto"`` for the device and the precision, and this process.

    Raises:
        UserError: the settings contain an error or cannot work on this machine.
    """
    layered = training_config(data, recipe=recipe, config=config, resume=resume, settings=settings)
    layered = _with_launcher(layered, settings)
    _check(layered)
    out = layered.out or _new_folder(layered)
    device = resolve_device(layered.device)
    check_device_count(device, layered.devices)
    if layered.norm == "sync" and device != "cuda":
        raise UserError(
            f"torch synchronizes batch norm on GPUs only, and the device is {device}; use plain or "
            "frozen",
            parameter="norm",
            value="sync",
        )
    precision = resolve_precision(layered.precision, device)
    settled = dataclasses.replace(layered, device=device, precision=precision, out=out)
    return settled, Process.current(settled)


def training_config(
    data: object,
    *,
    recipe: str | None = None,
    config: ConfigSource | Sequence[ConfigSource] | None = None,
    resume: bool = False,
    settings: Mapping[str, Any],
) -> TrainConfig:
    """Merge and check the settings of a training run. ``"auto"`` is not resolved.

    Args:
        data: data of ``botvision.train``: a name, a path, or the splits as objects.
        recipe: name of a recipe.
        config: settings as a YAML file or a mapping, or several of them. Later ones override
            earlier ones.
        resume: whether the run in ``settings["out"]`` is continued.
        settings: settings by name. They override ``config`` and ``recipe``.

    Returns:
        The settings, of the class that belongs to the task.

    Raises:
        UserError: the settings contain an error.
    """
    layers: list[Mapping[str, Any]] = []
    configs = [config] if isinstance(config, str | Path | Mapping) else config or []
    for source in configs:
        layer = dict(source) if isinstance(source, Mapping) else read_settings(source)
        own_recipe = layer.pop("recipe", None)
        recipe = recipe or own_recipe
        layers.append(layer)
    layers.append(settings)
    if resume:
        if settings.get("out") is None:
            raise UserError("requires `out`, the run folder to continue", parameter="resume")
        own = _settings_before(Path(settings["out"]), settings)
        if own:
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
        of_recipe = load_recipe(recipe, "classification" if classifies else "detection")
        _check_recipe(recipe, of_recipe, layers)
        layers.insert(0, of_recipe)
    kind = ClassificationConfig if classifies else DetectionConfig
    return make_config(kind, *layers, {"data": name})


def _settings_before(out: Path, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a run that is resumed, without those that ``settings`` replace."""
    own = Run(out).settings
    if own:
        own["model_args"] = upgrade_model_args(own.get("model_args") or {})
        own.setdefault("pixel_range", None)  # earlier versions had none
    # Otherwise the first of each would have no effect.
    for name, other in (("epochs", "max_steps"), ("base_lr", "lr")):
        if settings.get(name) is not None:
            own.pop(other, None)
    task, wanted = own.get("task"), settings.get("task")
    if task and wanted and (task == "classification") != (wanted == "classification"):
        raise UserError(
            f"the run in {out} has {task}; leave it out to continue that run, or give another "
            "`out`",
            parameter="task",
            value=wanted,
        )
    return own


def _with_launcher(config: TrainConfig, settings: Mapping[str, Any]) -> TrainConfig:
    """Return the settings for the launcher's processes.

    They replace the numbers in a recipe or in the config of an earlier run. ``settings`` must not
    contradict them.
    """
    launcher = Launcher.current()
    if launcher is None:
        return config
    for name in ("devices", "nodes"):
        given, started = getattr(config, name), getattr(launcher, name)
        if settings.get(name) is not None and given != started:
            raise UserError(
                f"{launcher.name} has started {launcher.devices} processes per machine on "
                f"{launcher.nodes} machines, so the number is {started}; leave it out",
                parameter=name,
                value=given,
            )
    return dataclasses.replace(config, devices=launcher.devices, nodes=launcher.nodes)


def _check_recipe(
    name: str, recipe: Mapping[str, Any], layers: Sequence[Mapping[str, Any]]
) -> None:
    """Raise UserError if another model than the recipe's does not accept the recipe's arguments."""
    given = {key: value for layer in layers for key, value in layer.items()}
    if "model" not in given or "model_args" in given or "model_args" not in recipe:
        return
    try:
        check_model_args(given["model"], recipe["model_args"])
    except UserError as error:
        if error.parameter != "model_args":
            raise
        raise UserError(
            f"does not accept the arguments that recipe {name} sets ({error.message}); give its "
            "own, such as {}, with `model_args`",
            parameter="model",
            value=given["model"],
        ) from error


def _check(config: TrainConfig) -> None:
    """Raise UserError for settings that cannot work on any machine."""
    if config.patience and not config.eval_steps:
        raise UserError(
            "requires `eval_steps`, because it counts evaluations", parameter="patience"
        )
    parts = config.accumulate * config.devices * config.nodes
    if config.batch_size % parts:
        raise UserError(
            f"must be a multiple of {parts}; the global batch size is split into `accumulate` "
            "micro-batches on each process",
            parameter="batch_size",
            value=config.batch_size,
        )
    if config.nodes > 1 and Launcher.current() is None:
        raise UserError(
            "several machines require a launcher, torchrun or srun, which starts their processes; "
            "see docs/training-at-scale.md",
            parameter="nodes",
            value=config.nodes,
        )
    if config.devices * config.nodes > 1 and config.out is None:
        raise UserError("multiple processes require a common run folder; give `out`")
    if config.strategy == "fsdp" and (config.ema_decay or config.precision == "16"):
        raise UserError(
            "does not support a moving average of the weights or float16 gradient scaling; leave "
            "out `ema_decay` and set `precision` to bf16 or 32, or use ddp",
            parameter="strategy",
            value="fsdp",
        )


def _new_folder(config: TrainConfig) -> Path:
    """Return runs/DATA-MODEL, or the first of runs/DATA-MODEL-2, ... that does not exist."""
    name = f"{Path(config.data).name.split('.')[0]}-{config.model}"
    path, number = Path("runs") / name, 1
    while path.exists():
        number += 1
        path = Path("runs") / f"{name}-{number}"
    return path
