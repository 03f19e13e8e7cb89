"""``botvision train`` on class folders."""

from __future__ import annotations

import torch
from rich.console import Console

from botvision.config import ClassificationConfig
from botvision.data.image_folder import (
    ClassificationDataset,
    collate_classification,
    eval_transform,
    find_classification_splits,
    readable_names,
    train_transform,
)
from botvision.data.loaders import eval_loader, worker_count
from botvision.errors import UserError
from botvision.evaluation.classification import (
    ClassificationEvaluator,
    Metrics,
    print_class_metrics,
)
from botvision.models import load_weights
from botvision.tasks.checkpoint import ClassifierSpec, save_model
from botvision.tasks.classification import ClassifierModule
from botvision.tasks.classify import write_class_report
from botvision.tasks.task import Job
from botvision.training.run import RunFolder
from botvision.training.trainer import this_process


class ClassificationSetup:
    """Class folders, listed and checked."""

    def __init__(self, config: ClassificationConfig) -> None:
        """List the images; the validation split is ``val`` or, without one, ``test``.

        Raises:
            UserError: a fault in the data or the settings.
        """
        self.config = config
        splits = find_classification_splits(config.data)
        if "train" not in splits:
            raise UserError(f"{config.data}: has no training split, only {', '.join(splits)}")
        self.train = splits["train"](None)
        self.held_out = next((name for name in ("val", "test") if name in splits), None)
        self.val = splits[self.held_out](self.train.classes) if self.held_out else None
        self.images = len(self.train)
        if config.mixup or config.cutmix:
            parts = config.accumulate * config.devices * config.nodes
            if config.batch_size // parts % 2:
                raise UserError("--mixup, --cutmix: pair the images, so --batch-size is to be even")

    def job(self, run: RunFolder, steps: int) -> Job:
        """Build the classifier and what surrounds it."""
        config, val = self.config, self.val
        names = readable_names(self.train.classes)
        torch.manual_seed(config.seed)
        card = ClassifierSpec.of(config, self.train.classes)
        regularisation = {"drop_rate": config.dropout, "drop_path_rate": config.drop_path}
        model = card.build(**{name: rate for name, rate in regularisation.items() if rate})
        summary = [data.summary() for data in (self.train, val) if data is not None]
        if config.weights is not None:
            summary.append(str(load_weights(model, config.weights)))
        evaluation = val_loader = None
        rank, processes = this_process(config)
        if val is not None:

            def on_metrics(step: int, metrics: Metrics, best: bool) -> None:
                run.log("eval", step, **{k: v for k, v in metrics.items() if k != "per_class"})
                run.write_metrics({"step": step, "split": self.held_out, **metrics})
                if best:
                    save_model(run.weights, model, card, writes=run.writes)

            evaluation = ClassificationEvaluator(names, on_metrics=on_metrics)
            val_loader = eval_loader(
                ClassificationDataset(val, eval_transform(card.image_size, card.crop_share)),
                collate_classification,
                batch_size=config.batch_size // (config.accumulate * processes),
                workers=worker_count(config.workers, config.device != "cpu"),
                rank=rank,
                processes=processes,
            )

        def report(run: RunFolder, console: Console) -> None:
            if evaluation is not None:
                write_class_report(run, evaluation)
                print_class_metrics(console, evaluation.metrics)

        transform = train_transform(config, card.image_size)
        return Job(
            model=model,
            card=card,
            module=ClassifierModule(model, card, config, steps),
            dataset=ClassificationDataset(self.train, transform, seed=config.seed),
            collate_fn=collate_classification,
            val_loader=val_loader,
            evaluation=evaluation,
            report=report,
            summary=summary,
            resolved={
                "task": "classification",
                "image_size": card.image_size,
                "classes": list(card.classes),
            },
        )
