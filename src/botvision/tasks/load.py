"""Load a saved model and predict with it."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn

from botvision.attention import Implementation
from botvision.attention.products import exact_products
from botvision.config import Device, Dtype, EvaluateConfig, Precision, PredictConfig
from botvision.data.classification import eval_transform, readable_names
from botvision.data.images import open_image
from botvision.data.listing import is_image
from botvision.data.pixel_survey import ImageFileList
from botvision.data.pixels import Pixels
from botvision.detection import Detector
from botvision.detection.inference import check_limits, detect
from botvision.detection.tta import TTA
from botvision.device import autocast, resolve_device, resolve_precision
from botvision.errors import UserError
from botvision.tasks.checkpoint import ClassifierSpec, DetectorSpec, load_model
from botvision.tasks.classification import ClassificationInference
from botvision.tasks.prediction import ClassificationPrediction, DetectionPrediction
from botvision.tasks.task import pixel_notices

# A file, a folder of images, a PIL image, or RGB pixels, uint8 (height, width, 3).
ImageSource = str | PathLike[str] | Image.Image | NDArray[np.uint8]
OnError = Callable[[UserError], None]
_Opened = tuple[Path | None, Image.Image]


def load(
    source: str | PathLike[str],
    *,
    device: Device = "auto",
    precision: Precision = "auto",
    impl: Implementation | None = None,
    box_head: nn.Module | None = None,
) -> DetectionModel | ClassificationModel:
    """Load the model of a run or of a weights file.

    Args:
        source: run, run folder or ``best.safetensors``.
        device: device to run on.
        precision: precision, as in training.
        impl: attention implementation, required if the model was trained with a custom one.
        box_head: box head, required if the model was trained with a custom one. The weights are
            loaded into it.

    Returns:
        A model with the method ``predict``. ``module`` is the network and ``spec`` its
        specification.

    Raises:
        UserError: the run or file does not exist or was not written by this library, or a required
            object is missing.
    """
    device = resolve_device(device)
    dtype = resolve_precision(precision, device)
    module, spec = load_model(source, impl=impl, box_head=box_head)
    module.to(device)
    if isinstance(spec, ClassifierSpec):
        return ClassificationModel(module, spec, device, dtype)
    assert isinstance(module, Detector)
    return DetectionModel(module, spec, device, dtype)


@dataclass(frozen=True)
class DetectionModel:
    """A trained detector.

    Args:
        module: the network, in eval mode.
        spec: its specification, including ``spec.categories``.
        device: device of the network.
        precision: precision of inference.
    """

    module: Detector
    spec: DetectorSpec
    device: Device
    precision: Dtype

    def predict(
        self,
        images: ImageSource | Iterable[ImageSource],
        *,
        score_threshold: float = 0.5,
        max_detections: int | None = None,
        flip: bool = False,
        scales: Sequence[float] = (1.0,),
        tile: int | None = None,
        batch_size: int = 1,
        on_error: OnError | None = None,
    ) -> Iterator[DetectionPrediction]:
        """Detect objects in images and yield one prediction per image.

        Args:
            images: one or several files, folders, PIL images or uint8 (height, width, 3) arrays.
            score_threshold: minimum score of a detection.
            max_detections: maximum detections per image. By default the model's.
            flip: test-time augmentation: also run on the mirrored image.
            scales: test-time augmentation: run at these multiples of the image size.
            tile: tiled inference: also run on overlapping tiles with this many pixels per side.
            batch_size: number of augmented views per batch.
            on_error: called with the error of each unreadable image, which is then skipped. By
                default the error is raised.

        Returns:
            An iterator over the predictions, in the order of the images.

        Raises:
            UserError: an option is invalid or an image cannot be read.
        """
        check_batch_size(batch_size)
        check_limits(score_threshold, max_detections)
        tta = TTA(flip, tuple(scales), tile)

        def views(image: Image.Image) -> int:
            return len(tta.views(*image.size, self.spec.image_size))

        batches = _batches(read_images(images, on_error, self.spec.pixels), batch_size, views)
        return self._predict(batches, tta, score_threshold, max_detections, batch_size)

    def _predict(
        self,
        batches: Iterable[list[_Opened]],
        tta: TTA,
        score_threshold: float,
        max_detections: int | None,
        batch_size: int,
    ) -> Iterator[DetectionPrediction]:
        for batch in batches:
            with autocast(self.device, self.precision), exact_products():
                found = detect(
                    self.module,
                    [image for _, image in batch],
                    score_threshold=score_threshold,
                    max_detections=max_detections,
                    tta=tta,
                    batch_size=batch_size,
                )
            for (file, image), detection in zip(batch, found, strict=True):
                masks = detection.get("masks")
                yield DetectionPrediction(
                    file=file,
                    size=image.size,
                    pixels=image if file is None else None,
                    reading=self.spec.pixels,
                    boxes=detection["boxes"].numpy(),
                    scores=detection["scores"].float().numpy(),
                    class_ids=detection["labels"].numpy() - 1,
                    categories=self.spec.categories,
                    box_masks=None if masks is None else masks[:, 0].float().numpy(),
                )


@dataclass(frozen=True)
class ClassificationModel:
    """A trained classifier.

    Args:
        module: the network, in eval mode.
        spec: its specification, including ``spec.classes``.
        device: device of the network.
        precision: precision of inference.
    """

    module: nn.Module
    spec: ClassifierSpec
    device: Device
    precision: Dtype

    def predict(
        self,
        images: ImageSource | Iterable[ImageSource],
        *,
        batch_size: int = 1,
        on_error: OnError | None = None,
    ) -> Iterator[ClassificationPrediction]:
        """Classify images and yield one prediction per image.

        Args:
            images: one or several files, folders, PIL images or uint8 (height, width, 3) arrays.
            batch_size: number of images per batch.
            on_error: called with the error of each unreadable image, which is then skipped. By
                default the error is raised.

        Returns:
            An iterator over the predictions, in the order of the images.

        Raises:
            UserError: ``batch_size`` is less than 1 or an image cannot be read.
        """
        check_batch_size(batch_size)
        return self._predict(_batches(read_images(images, on_error, self.spec.pixels), batch_size))

    def _predict(self, batches: Iterable[list[_Opened]]) -> Iterator[ClassificationPrediction]:
        inference = ClassificationInference(self.module, self.spec).to(self.device)
        transform = eval_transform(self.spec.image_size, self.spec.crop_share)
        classes = readable_names(self.spec.classes)
        for batch in batches:
            pixels = torch.stack([transform(image) for _, image in batch]).to(self.device)
            with torch.inference_mode():
                with autocast(self.device, self.precision), exact_products():
                    logits = inference.logits(pixels)
                probabilities = logits.softmax(dim=-1).cpu().numpy()
            for (file, image), row in zip(batch, probabilities, strict=True):
                yield ClassificationPrediction(
                    file=file,
                    size=image.size,
                    pixels=image if file is None else None,
                    reading=self.spec.pixels,
                    probabilities=row,
                    classes=classes,
                )


def check_batch_size(batch_size: int | None) -> None:
    """Raise UserError if the batch size is less than 1. None stands for the default."""
    if batch_size is not None and batch_size < 1:
        raise UserError("must be at least 1", parameter="batch_size", value=batch_size)


def with_pixels(
    model: DetectionModel | ClassificationModel, config: EvaluateConfig | PredictConfig
) -> DetectionModel | ClassificationModel:
    """Return the model with the pixel range and the page of the options, if they are set."""
    own = model.spec.pixels
    page = own.page if config.page is None else config.page
    pixels = Pixels(config.pixel_range or own.range, page)
    spec: Any = dataclasses.replace(model.spec, pixel_range=pixels.range, page=pixels.page)
    return dataclasses.replace(model, spec=spec)


def read_images(
    images: ImageSource | Iterable[ImageSource],
    on_error: OnError | None = None,
    pixels: Pixels = Pixels(),  # noqa: B008, it is frozen
) -> Iterator[_Opened]:
    """Yield the images with their files.

    A folder contributes its files with an image extension, sorted by name.

    Args:
        images: one or several files, folders, PIL images or uint8 (height, width, 3) arrays.
        on_error: called with the error of each unreadable image, which is then skipped. By default
            the error is raised.
        pixels: how files, and PIL images of more than 8 bits, become 8-bit RGB.

    Yields:
        The file, or None for an image that was passed as pixels, and the RGB image.

    Raises:
        UserError: ``on_error`` is None, and an image cannot be read, a folder contains no images,
            or an array does not contain RGB pixels.
    """
    if isinstance(images, str | PathLike | Image.Image | np.ndarray):
        images = [images]
    for source in images:
        try:
            if isinstance(source, Image.Image):
                yield None, _from_pillow(source, pixels)
            elif isinstance(source, np.ndarray):
                yield None, _from_array(source)
            else:
                files = _files(Path(source))
                yield from _open_each(files, on_error, pixels)
        except UserError as error:
            if on_error is None:
                raise
            on_error(error)


def _from_pillow(image: Image.Image, pixels: Pixels) -> Image.Image:
    try:
        return pixels.to_rgb(image)
    except ValueError as error:
        raise UserError(
            f"{image.mode} colors cannot be converted to RGB", parameter="images"
        ) from error


def _open_each(
    files: Iterable[Path], on_error: OnError | None, pixels: Pixels
) -> Iterator[_Opened]:
    for file in files:
        try:
            image = open_image(file, pixels=pixels)
        except UserError as error:
            if on_error is None:
                raise
            on_error(error)
            continue
        yield file, image


def survey_files(paths: Iterable[str | PathLike[str]], pixels: Pixels) -> list[str]:
    """Return lines about the images of files and folders, see ``PixelSurvey``."""
    files: list[Path] = []
    for path in map(Path, paths):
        with contextlib.suppress(UserError):  # which is reported when the folder is read
            files += _files(path)
    return pixel_notices(ImageFileList(files, pixels), pixels)


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    try:
        inside = sorted(file for file in path.iterdir() if is_image(file.name))
    except OSError as error:
        raise UserError(f"{path}: cannot be listed ({error.strerror}); check the folder") from error
    if not inside:
        raise UserError(f"{path}: no image files in this folder")
    return inside


def _from_array(array: NDArray[np.uint8]) -> Image.Image:
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3:
        raise UserError(
            f"an array must contain RGB pixels, uint8 of shape (height, width, 3), but this one is "
            f"{array.dtype} of shape {array.shape}",
            parameter="images",
        )
    return Image.fromarray(array)


def _batches(
    images: Iterable[_Opened],
    batch_size: int,
    views: Callable[[Image.Image], int] = lambda image: 1,
) -> Iterator[list[_Opened]]:
    """Group images so that the augmented views of each group fill a batch.

    This limits memory use. A group ends with the image whose views fill the batch.

    Yields:
        The images of one group with their files, at least one.
    """
    batch: list[_Opened] = []
    seen = 0
    for file, image in images:
        batch.append((file, image))
        seen += views(image)
        if seen >= batch_size:
            yield batch
            batch, seen = [], 0
    if batch:
        yield batch
