"""Evaluate a run on a data set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike, fspath
from pathlib import Path
from typing import Any

from rich.console import Console
from torch import nn

from botvision.attention import Implementation
from botvision.attention.products import exact_products
from botvision.config import EvaluateConfig
from botvision.data.classification import ClassificationData
from botvision.data.detection import DetectionData
from botvision.data.formats import ClassificationSource, DetectionSource
from botvision.evaluation.evaluator import Evaluator, Metrics
from botvision.evaluation.report import print_limit
from botvision.files import make_folder
from botvision.settings import make_config
from botvision.tasks.classification import classification_pass
from botvision.tasks.detection import detection_pass
from botvision.tasks.load import DetectionModel, check_batch_size, load, with_pixels
from botvision.tasks.task import refuse_options_of_the_other_task
from botvision.terminal import print_text, terminal
from botvision.training.callbacks import Evaluation
from botvision.training.run import Run
from botvision.training.trainer import evaluation_trainer


def evaluate(
    run: str | PathLike[str],
    data: str | Path | DetectionSource | ClassificationSource | DetectionData | ClassificationData,
    *,
    impl: Implementation | None = None,
    box_head: nn.Module | None = None,
    evaluators: Sequence[Evaluator] = (),
    console: Console | None = None,
    **options: Any,
) -> Metrics:
    """Evaluate a run on a split and write ``metrics.json``.

    For a detector this also writes ``predictions/results.json``,
    ``predictions/precision_recall.csv`` and ``plots/precision_recall.png``. For a classifier it
    writes ``predictions/confusion.csv`` and ``plots/confusion.png``. Classes are matched by name,
    so their ids in the annotation file may differ from those in training.

    Args:
        run: a run, its folder, or its ``best.safetensors``.
        data: data as for ``botvision.train``, or one split as an object.
        impl: attention implementation, required if the run was trained with a custom one.
        box_head: box head, required if the run was trained with a custom one.
        evaluators: additional metrics, see ``Evaluator``.
        console: where to print. By default the terminal or notebook.
        options: fields of ``botvision.config.EvaluateConfig``, such as ``split="val"``.

    Returns:
        The metrics by name.

    Raises:
        UserError: the run, the data or the split does not exist, the model and the data share no
            class, or an option is invalid or does not apply to this kind of model.
    """
    config = make_config(EvaluateConfig, options)
    console = console or terminal()
    check_batch_size(config.batch_size)
    model = load(
        run, device=config.device, precision=config.precision, impl=impl, box_head=box_head
    )
    refuse_options_of_the_other_task(config, model.spec.task, fspath(run))
    model = with_pixels(model, config)
    config.device = model.device
    source: Any = data
    if isinstance(data, Path):
        source = str(data)
    elif not isinstance(data, str | Mapping):
        source = {config.split or "val": data}
    if isinstance(model, DetectionModel):
        one = detection_pass(model.module, model.spec, source, config)
    else:
        one = classification_pass(model.module, model.spec, source, config)
    first, *more = one.summary
    for line in (f"{first}, {model.device}, precision {model.precision}", *more):
        print_text(console, line)
    facts = one.validation.facts
    print_limit(console, facts["images"], facts["images_in_split"])
    evaluation = Evaluation([one.validation.evaluator, *evaluators])
    with exact_products():
        evaluation_trainer(model.device, model.precision, [evaluation]).validate(
            one.module, one.validation.loader, verbose=False
        )
    path = Path(run)
    folder = Run(config.out or (path if path.is_dir() else path.parent))
    make_folder(folder.path.resolve())  # it may be a link, since the user has named it
    folder.write_metrics({**facts, "precision": model.precision, **evaluation.metrics})
    for evaluator in evaluation.evaluators:
        evaluator.report(folder.predictions, console)
    one.validation.draw(folder.plots)
    print_text(console, f"written to {folder.metrics_file}")
    return evaluation.metrics
