"""Predict on images, and write pictures and a JSON file."""

from __future__ import annotations

import time
from collections.abc import Iterable
from os import PathLike, fspath
from pathlib import Path
from typing import Any

from PIL import Image
from rich.console import Console
from torch import nn

from botvision.attention import Implementation
from botvision.config import PredictConfig
from botvision.errors import UserError
from botvision.settings import make_config
from botvision.tasks.load import (
    ClassificationModel,
    DetectionModel,
    OnError,
    check_batch_size,
    load,
    survey_files,
    with_pixels,
)
from botvision.tasks.prediction import DetectionPrediction
from botvision.tasks.results import Results
from botvision.tasks.task import refuse_options_of_the_other_task
from botvision.terminal import print_text, terminal
from botvision.text import printable
from botvision.visualize.classes import prediction_sheet
from botvision.visualize.figures import save_image

TOP = 5
_SHEET_IMAGES = 24


def predict(
    run: str | PathLike[str],
    images: Iterable[str | PathLike[str]],
    *,
    impl: Implementation | None = None,
    box_head: nn.Module | None = None,
    console: Console | None = None,
    **options: Any,
) -> Path:
    """Detect objects in images or classify images, and write pictures and ``predictions.json``.

    The JSON is a list with one entry per image: ``file``, ``width``, ``height`` and ``picture``,
    the name of the picture that shows the image (a classifier draws only the first 24). The list
    is written as it grows, so a process that is stopped loses nothing. For a detector an entry also
    contains ``instances``, each with ``class``, ``category_id`` (of the training
    data), ``score`` and ``bbox`` (x, y, width, height in pixels). Instances of a segmentation model
    also contain ``segmentation``, in ``mask_format``. For a classifier an entry also contains
    ``classes``, the five most probable classes, each with ``class`` and ``probability``.

    Args:
        run: a run, its folder, or its ``best.safetensors``.
        images: image files, or folders of image files.
        impl: attention implementation, required if the run was trained with a custom one.
        box_head: box head, required if the run was trained with a custom one.
        console: where to print. By default the terminal or notebook.
        options: fields of ``botvision.config.PredictConfig``, such as ``score_threshold=0.3``.

    Returns:
        The folder with the results.

    Raises:
        UserError: the run does not exist, or an option is invalid or does not apply to this kind of
            model. If images cannot be read, the error is raised after all others are processed.
    """
    config = make_config(PredictConfig, options)
    console = console or terminal()
    check_batch_size(config.batch_size)
    path = Path(run)
    folder = config.out or (path if path.is_dir() else path.parent) / "predictions"
    images = [images] if isinstance(images, str | PathLike) else list(images)
    # A link that the user names is followed.
    results = Results(folder if config.out is None else folder.resolve(), images)
    model = load(
        run, device=config.device, precision=config.precision, impl=impl, box_head=box_head
    )
    refuse_options_of_the_other_task(config, model.spec.task, fspath(run))
    model = with_pixels(model, config)
    for line in survey_files(images, model.spec.pixels):
        print_text(console, line)
    unread: list[UserError] = []

    def leave_out(error: UserError) -> None:
        unread.append(error)
        print_text(console, f"left out: {error}")

    try:
        if isinstance(model, DetectionModel):
            _detect(model, images, config, results, leave_out, console)
        else:
            _classify(model, images, config, results, leave_out, console)
    finally:
        results.close()
    if unread:
        more = f" (and {len(unread) - 1} more)" if len(unread) > 1 else ""
        others = f"the other results ({results.count}) are in {folder}"
        others = others if results.count else "there are no other results"
        raise UserError(f"{unread[0]}{more}; {others}")
    print_text(console, f"written to {folder}")
    return folder


def _detect(
    model: DetectionModel,
    images: Iterable[str | PathLike[str]],
    config: PredictConfig,
    results: Results,
    leave_out: OnError,
    console: Console,
) -> None:
    """Write the instances and a picture of every image."""
    predictions = model.predict(
        images,
        score_threshold=0.5 if config.score_threshold is None else config.score_threshold,
        max_detections=config.max_detections,
        flip=config.flip,
        scales=(1.0,) if config.scales is None else tuple(config.scales),
        tile=config.tile,
        batch_size=config.batch_size,
        on_error=leave_out,
    )
    limit = config.max_detections or model.spec.detector.max_detections
    drawing, start = 0.0, time.perf_counter()
    for prediction in predictions:
        assert prediction.file is not None
        instances = _instances(prediction, config.mask_format or "rle")
        full = " (limited by max_detections)" if len(prediction) == limit else ""
        print_text(console, f"{printable(prediction.file)}: {_counts(prediction.names)}{full}")
        paused = time.perf_counter()
        entry = {**_file_and_size(prediction), "picture": None, "instances": instances}
        try:
            drawn = prediction.draw()
        except UserError as error:  # the file has changed since it was read
            leave_out(error)
            results.add(entry)
            continue
        picture = results.picture(prediction.file.stem)
        results.add({**entry, "picture": picture.name})
        save_image(drawn, picture)
        drawing += time.perf_counter() - paused
    if results.count:
        seconds = time.perf_counter() - start - drawing
        what = "reading, detecting and encoding masks, without drawing"
        _print_rate(console, results.count, seconds, what)


def _instances(prediction: DetectionPrediction, mask_format: str) -> list[dict[str, Any]]:
    instances = []
    for index, (name, result) in enumerate(
        zip(prediction.names, prediction.to_coco(), strict=True)
    ):
        del result["image_id"]
        if mask_format == "polygon":
            result["segmentation"] = prediction.polygons(index)
        instances.append({"class": name, **result})
    return instances


def _classify(
    model: ClassificationModel,
    images: Iterable[str | PathLike[str]],
    config: PredictConfig,
    results: Results,
    leave_out: OnError,
    console: Console,
) -> None:
    """Write the best classes of every image, and a picture of the first 24 images."""
    predictions = model.predict(images, batch_size=config.batch_size, on_error=leave_out)
    shown: list[Image.Image] = []
    tops: list[list[tuple[str, float]]] = []
    picture: Path | None = None
    start = time.perf_counter()
    for prediction in predictions:
        top = prediction.top(TOP)
        classes = [{"class": name, "probability": share} for name, share in top]
        if picture is None:
            picture = results.picture("predictions")
        drawn = len(shown) < _SHEET_IMAGES
        if drawn:
            shown.append(prediction.image)
            tops.append(top)
        entry = {"picture": picture.name if drawn else None, "classes": classes}
        results.add({**_file_and_size(prediction), **entry})
        text = ", ".join(f"{printable(name)} {share:.1%}" for name, share in top[:2])
        print_text(console, f"{printable(prediction.file)}: {text}")
    if picture is not None:
        seconds = time.perf_counter() - start
        _print_rate(console, results.count, seconds, "reading and classifying")
        save_image(prediction_sheet(shown, tops), picture)


def _file_and_size(prediction: Any) -> dict[str, Any]:
    width, height = prediction.size
    return {"file": str(prediction.file), "width": width, "height": height}


def _print_rate(console: Console, images: int, seconds: float, what: str) -> None:
    print_text(console, f"{images / seconds:.3g} images per second ({what})")


def _counts(names: list[str]) -> str:
    """Count the names, such as ``2 circle, 1 square``."""
    counts = (f"{names.count(name)} {printable(name)}" for name in dict.fromkeys(names))
    return ", ".join(counts) or "nothing"
