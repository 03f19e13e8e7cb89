"""Common interface of the tasks, and the choice of splits and options."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import lightning as L

from botvision.config import (
    CLASSIFICATION_OPTIONS,
    DETECTION_OPTIONS,
    EvaluateConfig,
    PredictConfig,
    TrainConfig,
)
from botvision.data.pixel_survey import StoredImages, survey_pixels
from botvision.data.pixels import Pixels
from botvision.device import Process
from botvision.errors import UserError
from botvision.training.loop import Training, Validation

# Images whose pixels are read for a line about their values.
_NOTICE_IMAGES = 10
ConfigT = TypeVar("ConfigT", bound=TrainConfig)


class Task(Protocol):
    """The data and checked settings of a training run."""

    images: int
    """Number of training images."""

    @property
    def config(self) -> TrainConfig:
        """The settings, including those that depend on the data."""

    @property
    def resolved(self) -> dict[str, Any]:
        """Facts that follow from the settings and the data, for the run's config.yaml."""

    def training(self, steps: int, process: Process) -> Training:
        """Build the model, its data sets and its validation for a run of ``steps`` steps."""


@dataclass(frozen=True)
class EvaluationPass:
    """An evaluation of a saved model, ready to run.

    Args:
        module: the model as a Lightning module.
        validation: data loader and evaluator of the split.
        summary: lines that describe the data. The first describes its images.
    """

    module: L.LightningModule
    validation: Validation
    summary: list[str]


def settle_pixels(config: ConfigT, train: object, val: object) -> tuple[ConfigT, list[str]]:
    """Determine how the images of a run are read, from a sample of the training images.

    Args:
        config: settings of the run.
        train: training split. Its images, and those of ``val``, are read as the settings describe
            if it is ``StoredImages``. The images of other objects are 8-bit RGB already.
        val: validation split, or None.

    Returns:
        The settings, whose ``pixel_range`` is ``"auto"`` only if all images have 8 bits, and lines
        about the images.

    Raises:
        UserError: ``pixel_range`` or ``page`` is invalid.
    """
    pixels = Pixels(config.chosen_pixel_range, config.page)
    survey = survey_pixels(train, config.page) if isinstance(train, StoredImages) else None
    if survey is not None and survey.range is not None and config.pixel_range == "auto":
        config = dataclasses.replace(config, pixel_range=survey.range)
        pixels = Pixels(survey.range, config.page)
    for split in (train, val):
        if isinstance(split, StoredImages):
            split.pixels = pixels
    return config, [] if survey is None else survey.notices(pixels)


def pixel_notices(data: object, pixels: Pixels) -> list[str]:
    """Set how the images of a split are read, if they are files, and return lines about them."""
    if not isinstance(data, StoredImages):
        return []
    data.pixels = pixels
    return survey_pixels(data, pixels.page, decoded=_NOTICE_IMAGES).notices(pixels)


def choose_split(splits: Sequence[str], wanted: str | None, data: str) -> str:
    """Return the split to evaluate. By default val, else test, else the first.

    Args:
        splits: names of the splits of the data.
        wanted: requested split, or None for the default.
        data: name of the data, for the error message.

    Returns:
        The name of the split.

    Raises:
        UserError: the data does not contain the requested split.
    """
    if wanted is None:
        return next(name for name in ("val", "test", *splits) if name in splits)
    if wanted not in splits:
        raise UserError(
            f"not in {data}; choose one of {', '.join(splits)}", parameter="split", value=wanted
        )
    return wanted


def refuse_options_of_the_other_task(
    config: EvaluateConfig | PredictConfig, task: str, run: str
) -> None:
    """Check that every option that is set applies to the task of a run.

    Args:
        config: options of the evaluation or prediction.
        task: task of the run's model.
        run: path of the run, for the error message.

    Raises:
        UserError: an option applies only to another kind of model.
    """
    classifies = task == "classification"
    kind = "detectors" if classifies else "classifiers"
    options: tuple[str, ...] = DETECTION_OPTIONS if classifies else CLASSIFICATION_OPTIONS
    default = type(config)()
    for name in options:
        if getattr(config, name, None) != getattr(default, name, None):
            refuse_option(name, kind, run)
    if task == "detection" and getattr(config, "mask_format", None) is not None:
        refuse_option("mask_format", "segmentation models", run)


def refuse_option(name: str, kind: str, run: str) -> None:
    """Reject an option that does not apply to the model of a run.

    Args:
        name: name of the option.
        kind: the models that support the option, in the plural, such as ``"detectors"``.
        run: path of the run.

    Raises:
        UserError: always.
    """
    raise UserError(f"applies only to {kind}; leave it out for {run}", parameter=name)
