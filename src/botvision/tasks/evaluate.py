"""``botvision eval``: COCO metrics, or accuracy, of a run on a data set."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from torch.utils.data import Subset

from botvision.config import Device, Precision, TableResize
from botvision.data.coco import WholeImages, collate, find_splits, load_split
from botvision.data.formats import open_data
from botvision.data.loaders import eval_loader, worker_count
from botvision.data.samplers import sample_images
from botvision.detection import TTA, Detector
from botvision.detection.inference import check_limits
from botvision.device import resolve_precision
from botvision.errors import UserError
from botvision.evaluation.callback import CocoEvaluator
from botvision.evaluation.coco import Metrics
from botvision.evaluation.precision_recall import write_precision_recall
from botvision.evaluation.report import print_limit, print_metrics, write_results
from botvision.tasks.checkpoint import ClassifierSpec, load_model
from botvision.tasks.classify import evaluate_classifier, refuse_flags
from botvision.tasks.detection import DetectorInference
from botvision.training.run import RunFolder
from botvision.training.trainer import evaluation_trainer, resolve_device
from botvision.visualize.precision_recall import plot_precision_recall


def evaluate(
    run: Path,
    data: str,
    *,
    split: str | None = None,
    limit: int | None = None,
    max_detections: int | None = None,
    score_threshold: float | None = None,
    flip: bool = False,
    scales: Sequence[float] | None = None,
    tile: int | None = None,
    image_size: int | None = None,
    table_resize: TableResize | None = None,
    batch_size: int | None = None,
    device: Device = "auto",
    precision: Precision = "auto",
    workers: int = -1,
    out: Path | None = None,
    console: Console | None = None,
) -> Metrics:
    """Evaluate a run and write ``metrics.json``.

    Of a detector also ``predictions/results.json``, ``predictions/precision_recall.csv`` and
    ``plots/precision_recall.png``, of a classifier ``predictions/confusion.csv`` and
    ``plots/confusion.png``. Classes are matched by name, so an annotation file may number them
    differently.

    Args:
        run: run folder, or its ``best.safetensors``.
        data: COCO folder, archive or built-in set.
        split: by default ``val``, else ``test``, else the only one.
        limit: images to evaluate, drawn at random but always the same; all by default.
        max_detections: kept an image; the run's own number by default.
        score_threshold: a detector's detections below it are dropped; 0.001 by default. COCO's
            metrics rank all detections, so that is lower than for use; the paper's code base
            evaluates at 0.05, which the evaluations during training keep.
        flip: a detector also sees every view mirrored.
        scales: at which a detector sees the images, as shares of its image size; 1 by default.
        tile: of this many pixels a side are the tiles that a detector sees besides the image.
        image_size: at which a classifier sees the images; its own by default.
        table_resize: how a classifier's position tables fit that; its own way by default.
        batch_size: images at once, of a detector also views; 32 by default, of a detector 1.
        device: where to run.
        precision: as of a training, whose evaluation this repeats where it ran in the same one.
        workers: processes that load images; -1 chooses.
        out: folder to write to; the run folder by default.
        console: where to say what happens; the terminal by default.

    Raises:
        UserError: no such run, data or split, not one class in common, a limit below 1, or an
            argument that means nothing for this kind of model.
    """
    console = console or Console()
    device = resolve_device(device)
    compute = resolve_precision(precision, device)
    detector, card = load_model(run)
    if isinstance(card, ClassifierSpec):
        refuse_flags(
            run,
            "detectors",
            max_detections=max_detections,
            score_threshold=score_threshold,
            flip=flip,
            scales=scales,
            tile=tile,
        )
        return evaluate_classifier(
            detector,
            card,
            run,
            data,
            split=split,
            limit=limit,
            image_size=image_size,
            table_resize=table_resize,
            batch_size=32 if batch_size is None else batch_size,
            device=device,
            precision=compute,
            workers=workers,
            out=out,
            console=console,
        )
    assert isinstance(detector, Detector)
    refuse_flags(run, "classifiers", image_size=image_size, table_resize=table_resize)
    check_limits(score_threshold, max_detections)
    tta = TTA(flip, (1.0,) if scales is None else tuple(scales), tile)
    batch_size = 1 if batch_size is None else batch_size
    if batch_size < 1:
        raise UserError(f"--batch-size {batch_size}: give at least 1")
    splits = find_splits(open_data(data))
    if split is None:
        split = next(name for name in ("val", "test", *splits) if name in splits)
    if split not in splits:
        raise UserError(f"--split {split}: {data} has only {', '.join(splits)}")
    coco = load_split(splits[split])
    console.print(
        f"{coco.summary()}, {device}, precision {compute}", highlight=False, soft_wrap=True
    )
    chosen = sample_images(len(coco), limit)
    print_limit(console, len(chosen), len(coco))
    evaluation = CocoEvaluator(
        coco,
        card.categories,
        masks=card.task == "segmentation",
        max_detections=max_detections or card.detector.max_detections,
        images=coco.annotations.image_ids[chosen].tolist(),
    )
    if str(evaluation.labels):
        console.print(str(evaluation.labels), highlight=False, soft_wrap=True)
    loader = eval_loader(
        Subset(WholeImages(coco), chosen),
        collate,
        batch_size=batch_size,
        workers=worker_count(workers, device != "cpu"),
    )
    inference = DetectorInference(
        detector,
        score_threshold=0.001 if score_threshold is None else score_threshold,
        max_detections=max_detections,
        tta=tta,
        batch_size=batch_size,
    )
    evaluation_trainer(device, compute, [evaluation]).validate(inference, loader, verbose=False)
    folder = RunFolder(out or (run if run.is_dir() else run.parent))
    write_results(folder.predictions, evaluation.results)
    write_precision_recall(folder.predictions, evaluation.curves)
    plot_precision_recall(evaluation.curves, folder.plots)
    settings = {
        "split": split,
        "images": len(chosen),
        "images_in_split": len(coco),
        "precision": compute,
    }
    folder.write_metrics({**settings, **evaluation.metrics})
    print_metrics(console, evaluation.metrics)
    console.print(f"written to {folder.metrics}", highlight=False, soft_wrap=True)
    return evaluation.metrics
