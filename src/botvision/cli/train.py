"""``botvision train``."""

from __future__ import annotations

import functools
import shlex
from collections.abc import Sequence
from typing import Any

import yaml

from botvision.cli.parsers import Parser, join_numbers, take
from botvision.config import ClassificationConfig, DetectionConfig
from botvision.errors import UserError
from botvision.settings import Task, plain, recipe_names
from botvision.training.signals import StopSignals

_CONFIGS = {"detection": DetectionConfig, "classification": ClassificationConfig}
_DESCRIPTIONS = {
    "detection": "Train Mask R-CNN or Faster R-CNN on COCO-format data. The options for class "
    "folders are in botvision train --task classification --help.",
    "classification": "Train an image classifier on class folders.",
}
# The settings under each title of the help.
GROUPS = {
    "settings": ["recipe", "config", "print_config", "seed"],
    "data and augmentation": [
        *("task", "image_size", "jitter", "crop_area", "crop_share", "flip", "max_instances"),
        *("auto_augment", "mixup", "cutmix", "pixel_range", "page", "bad_data", "workers"),
    ],
    "model": [
        *("model", "model_args", "weights", "norm", "freeze_stages", "dropout", "drop_path"),
    ],
    "optimization": [
        *("epochs", "max_steps", "batch_size", "accumulate", "optimizer", "lr", "base_lr"),
        *("base_batch_size", "momentum", "nesterov", "weight_decay", "decay_all", "schedule"),
        *("milestones", "warmup_steps", "warmup_factor", "clip_norm", "smoothing", "ema_decay"),
    ],
    "evaluation, checkpoints and output": [
        *("out", "resume", "eval_steps", "patience", "checkpoint_steps", "checkpoint_minutes"),
    ],
    "hardware": [
        *("device", "devices", "nodes", "strategy", "precision", "compile", "grad_checkpointing"),
    ],
    "detector": ["detector", "detector."],
}
# Options without a value.
_SWITCHES = ("--resume", "--print-config", "-h", "--help")


def train_parser(task: Task = "detection") -> Parser:
    """``botvision train`` for a task."""
    parser = Parser(description=_DESCRIPTIONS[task])
    names = ", ".join(recipe_names(task))
    parser.add_argument("--recipe", type=str, help=f"Recipe to start from: {names}.")
    parser.add_argument(
        "--config",
        type=str,
        action="append",
        metavar="FILE",
        help="YAML file of settings, such as a run's config.yaml. It overrides the recipe; options "
        "override both. May be repeated.",
    )
    parser.add_argument(
        "--resume",
        action="store_true",
        help="Resume from the last checkpoint in --out, if there is one.",
    )
    parser.add_argument(
        "--print-config",
        action="store_true",
        help="Print the resolved settings as YAML and exit.",
    )
    parser.add_train_config(_CONFIGS[task])
    parser.usage = "botvision train [options] DATA"
    parser.set_groups(GROUPS)
    return parser


def task_of_arguments(arguments: Sequence[str]) -> Task:
    """Return the task of ``--task``, else the task of DATA, else detection."""
    rest, tasks = take(join_numbers(arguments), "--task")
    if tasks:
        return "classification" if tasks[-1] == "classification" else "detection"
    data = _data(rest)
    if data is None or {"-h", "--help"} & {*arguments}:
        return "detection"
    from botvision.data.sources import task_of  # Loads NumPy, which --help does not need.

    return task_of(data)


def parse_train(parser: Parser, arguments: Sequence[str]) -> dict[str, Any]:
    """Parse the arguments into ``data``, ``recipe``, ``config``, ``resume`` and ``settings``."""
    settings = parser.given(join_numbers(arguments))
    settings.pop("print_config", None)
    options = {name: settings.pop(name, None) for name in ("data", "recipe", "config")}
    return {**options, "resume": settings.pop("resume", False), "settings": settings}


def run(parser: Parser, arguments: Sequence[str]) -> None:
    """Train, or print the settings."""
    try:
        own = train_parser(task_of_arguments(arguments))
    except UserError:
        from botvision.training.processes import Processes

        with Processes():  # which may all fail for this reason
            raise
    own.prog, own.epilog = parser.prog, parser.epilog
    own.other_options = functools.partial(_options_of_the_other_task, own)
    printing = "--print-config" in arguments
    # The settings can be printed without data. A built-in set is not opened.
    bare = printing and _data(join_numbers(arguments)) is None
    options = parse_train(own, [*(["shapes"] if bare else []), *arguments])
    if not printing:
        with StopSignals(_resume_command) as signals:
            from botvision.tasks.train import train_until_stopped

            train_until_stopped(signals, options.pop("data"), **options)
        return
    from botvision.tasks.config import training_config

    config = plain(training_config(**options))
    if bare:
        del config["data"]
    print(yaml.safe_dump(config, sort_keys=False), end="")


def _resume_command(data: str | None, out: str) -> str:
    return shlex.join(["botvision", "train", str(data), "--out", out, "--resume"])


def _options_of_the_other_task(parser: Parser) -> dict[str, str]:
    kinds: dict[Task, str] = {"detection": "detectors", "classification": "classifiers"}
    own = parser.options()
    return {
        option: kind
        for task, kind in kinds.items()
        for option in train_parser(task).options() - own
    }


def _data(arguments: Sequence[str]) -> str | None:
    """Return DATA, the first positional argument, or None."""
    remaining = iter(arguments)
    for argument in remaining:
        if not argument.startswith("-"):
            return argument
        if "=" not in argument and argument not in _SWITCHES:
            next(remaining, None)
    return None
