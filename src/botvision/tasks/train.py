"""Train a model on a data set and write a run folder."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from torch import nn

from botvision.attention import Implementation
from botvision.config import ClassificationConfig, DetectionConfig
from botvision.data.formats import ClassificationSource, DetectionSource
from botvision.errors import UserError
from botvision.evaluation.evaluator import Evaluator
from botvision.tasks.classification import ClassificationTraining
from botvision.tasks.config import ConfigSource, settle
from botvision.tasks.detection import DetectionTraining
from botvision.tasks.resume import check_resume
from botvision.tasks.task import Task
from botvision.terminal import print_text, terminal
from botvision.training.failures import in_one_line
from botvision.training.loop import fit
from botvision.training.processes import Processes
from botvision.training.run import Run
from botvision.training.signals import StopSignals
from botvision.visualize.curves import plot_curves


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

    Settings override the config, the config overrides the recipe, and the recipe overrides the
    defaults. When resuming, the run's own config replaces the recipe. The task is inferred from the
    data unless ``task`` is set.

    Args:
        data: a folder, an archive or the name of a built-in data set, see docs/guide.md. The splits
            can also be passed as objects: a mapping such as ``{"train": ..., "val": ...}`` with
            ``DetectionData`` or ``ClassificationData`` objects.
        recipe: name of a recipe.
        config: settings as a YAML file, such as a run's ``config.yaml``, or as a mapping. In a
            sequence of them, later ones override earlier ones.
        resume: continue from the last checkpoint in ``out``, if there is one.
        impl: custom attention implementation.
        box_head: custom box head for a detector, see ``botvision.build_detector``.
        evaluators: additional metrics, see ``Evaluator``.
        console: where to print. By default the terminal or notebook.
        settings: fields of ``botvision.config.DetectionConfig`` or ``ClassificationConfig``, such
            as ``model="botnet50"``, ``epochs=12`` or ``out="runs/mine"``.

    Returns:
        The run, with ``path``, ``metrics`` and ``history``.

    Raises:
        UserError: the data, the settings or the weights file contain an error, or the loss is not
            finite.
        KeyboardInterrupt: the run was interrupted (SIGINT). Like the next one, this is raised after
            the current step, when the run is saved.
        SystemExit: the run received SIGTERM or SIGUSR1; the status is 128 + the signal's number.
    """
    with StopSignals() as signals:
        return train_until_stopped(
            signals,
            data,
            recipe=recipe,
            config=config,
            resume=resume,
            impl=impl,
            box_head=box_head,
            evaluators=evaluators,
            console=console,
            settings=settings,
        )


def train_until_stopped(
    signals: StopSignals,
    data: str | Path | DetectionSource | ClassificationSource,
    *,
    recipe: str | None = None,
    config: ConfigSource | Sequence[ConfigSource] | None = None,
    resume: bool = False,
    impl: Implementation | None = None,
    box_head: nn.Module | None = None,
    evaluators: Sequence[Evaluator] = (),
    console: Console | None = None,
    settings: Mapping[str, Any],
) -> Run:
    """Train in the context of ``signals``.

    Args:
        signals: the signals that stop the run.
        data: see ``train``, as for the other arguments.
        recipe: name of a recipe.
        config: settings as YAML files or mappings.
        resume: continue from the last checkpoint.
        impl: custom attention implementation.
        box_head: custom box head.
        evaluators: additional metrics.
        console: where to print.
        settings: settings by name.

    Returns:
        The run.

    Raises:
        UserError: see ``train``.
        Stopped: a signal has stopped the run.
    """
    with Processes() as processes:
        settled, process = settle(
            data, recipe=recipe, config=config, resume=resume, settings=settings
        )
        assert settled.out is not None
        console = console or terminal(quiet=process.rank > 0)
        signals.print = functools.partial(print_text, console)
        named = isinstance(data, str | Path)
        signals.command = signals.resume_with(str(data) if named else None, str(settled.out))
        run = Run(settled.out, writes=process.rank == 0)
        run.check(resume=resume)
        with in_one_line(settled, run.path):
            source: Any = settled.data if named else data
            task: Task
            if isinstance(settled, DetectionConfig):
                task = DetectionTraining(settled, source, impl=impl, box_head=box_head)
            elif isinstance(settled, ClassificationConfig) and box_head is None:
                task = ClassificationTraining(settled, source, impl=impl)
            else:
                raise UserError("applies only to detectors; leave it out", parameter="box_head")
            steps = settled.max_steps
            if steps is None:
                steps = math.ceil(settled.epochs * task.images / settled.batch_size)
            with run.locked():
                start = run.begin()
                signals.stopped_at(start, steps)
                changes = (
                    check_resume(run, task.config, task.resolved, recipe, settings) if start else []
                )
                if run.has_ended(steps, settled.patience):
                    length = "epochs" if settled.max_steps is None else "max_steps"
                    more = "patience" if start < steps else length
                    print_text(
                        console,
                        f"{run.path}: complete, {start} of {steps} steps; raise {more} to continue",
                    )
                    return run
                for line in changes:
                    print_text(console, line)
                if resume and not start:
                    print_text(
                        console, f"{run.path}: no checkpoint to resume from, starting at step 0"
                    )
                fit(
                    task.training(steps, process),
                    task.config,
                    run,
                    start=start,
                    steps=steps,
                    process=process,
                    processes=processes,
                    signals=signals,
                    evaluators=evaluators,
                    console=console,
                )
                if run.writes and steps:
                    plot_curves(run.events_file, run.plots)
        print_text(console, f"run written to {run.path}")
        return run
