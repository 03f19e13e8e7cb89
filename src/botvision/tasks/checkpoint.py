"""Saved models: one file with the weights and the specification of the model."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from os import PathLike
from pathlib import Path
from typing import Any, Literal

import timm
import torch
from safetensors.torch import load_file, save_file
from timm.layers.norm_act import freeze_batch_norm_2d
from timm.models import PretrainedCfg
from torch import nn

from botvision.attention import Implementation
from botvision.config import (
    ClassificationConfig,
    DetectionConfig,
    DetectionTask,
    DetectorConfig,
    Norm,
    PixelRange,
)
from botvision.data.categories import Categories
from botvision.data.pixels import Pixels
from botvision.detection import Detector, build_detector
from botvision.environment import versions
from botvision.errors import UserError
from botvision.files import atomic
from botvision.models import check_model_args, create_model
from botvision.models.weights import check_finite, check_tensors, read_card, weights_file
from botvision.settings import plain
from botvision.tasks.card import check_card
from botvision.training.fsdp import whole_tensors

# Version of the metadata in the weights file, which files of version 0.1 do not contain.
SCHEMA = 2


@dataclass(frozen=True)
class DetectorSpec:
    """Specification of a detector: how to build it, and the meaning of its labels.

    Args:
        model: name of the backbone.
        task: ``"segmentation"`` (with masks) or ``"detection"``.
        image_size: side of the square input in pixels.
        norm: batch norm, see ``PyramidBackbone``.
        model_args: further arguments of the backbone.
        detector: settings of the detector.
        categories: ids and names of the classes. Label k of the detector is entry k - 1.
        objects: names of the parts that were passed as objects: ``"impl"``, ``"box_head"``. They
            must be passed again when the model is loaded, so a file never decides which code runs.
        pixel_range: values that become 0 and 255 in images of more than 8 bits, see ``Pixels``.
        page: page of multi-page files, from 0.
    """

    model: str
    task: DetectionTask
    image_size: int
    norm: Norm
    model_args: dict[str, Any]
    detector: DetectorConfig
    categories: Categories
    objects: tuple[str, ...] = ()
    pixel_range: PixelRange | None = None
    page: int = 0

    @property
    def pixels(self) -> Pixels:
        """How image files are read."""
        return Pixels(self.pixel_range, self.page)

    @classmethod
    def of(
        cls,
        config: DetectionConfig,
        task: DetectionTask,
        categories: Categories,
        objects: Sequence[str] = (),
    ) -> DetectorSpec:
        """Return the specification of the detector that ``config`` trains.

        Args:
            config: settings of the run.
            task: the task, since ``config.task`` may be None.
            categories: ids and names of the classes.
            objects: names of the parts that were passed as objects.

        Returns:
            The specification.

        Raises:
            UserError: a setting is out of the range that ``load_model`` accepts.
        """
        spec = cls(
            model=config.model,
            task=task,
            image_size=config.image_size,
            norm=config.norm,
            model_args=config.model_args,
            detector=config.detector,
            categories=categories,
            objects=tuple(objects),
            pixel_range=config.chosen_pixel_range,
            page=config.page,
        )
        check_card(plain(spec))
        return spec

    @classmethod
    def from_fields(cls, fields: dict[str, Any]) -> DetectorSpec:
        """Create the specification from the metadata that ``save_model`` wrote."""
        numbers = _tuples(fields["detector"])
        ids, names = (tuple(fields["categories"][key]) for key in ("ids", "names"))
        own = {"detector": DetectorConfig(**numbers), "categories": Categories(ids, names)}
        return cls(**{**_tuples(fields), **own})

    def build(
        self, *, impl: Implementation | None = None, box_head: nn.Module | None = None
    ) -> Detector:
        """Build the detector with random weights.

        Args:
            impl: custom attention implementation, required if ``objects`` contains it.
            box_head: custom box head, required if ``objects`` contains it.

        Returns:
            The detector, channels-last, in training mode.

        Raises:
            UserError: an object is missing or was not used in training, or an argument of the
                model is invalid.
        """
        _check_objects(self.objects, impl=impl, box_head=box_head)
        check_model_args(self.model, self.model_args)
        detector = build_detector(
            self.model,
            len(self.categories),
            self.image_size,
            task=self.task,
            norm=self.norm,
            config=self.detector,
            model_args=_with_impl(self.model_args, impl),
            box_head=box_head,
        )
        return detector.to(memory_format=torch.channels_last)  # type: ignore[no-any-return]


@dataclass(frozen=True)
class ClassifierSpec:
    """Specification of a classifier: how to build it, its input, and the meaning of its outputs.

    Args:
        model: name of the model.
        image_size: side of the square input in pixels.
        norm: batch norm. ``"frozen"`` keeps statistics and affine parameters fixed.
        model_args: further arguments of the model.
        classes: class names, in the order of the logits.
        mean: mean of each color channel, for values in [0, 1].
        std: standard deviation of each color channel, for values in [0, 1].
        crop_share: fraction of the shorter side of an image that the center crop covers.
        task: always ``"classification"``.
        objects: names of the parts that were passed as objects, as in ``DetectorSpec``.
        pixel_range: as in ``DetectorSpec``.
        page: as in ``DetectorSpec``.
    """

    model: str
    image_size: int
    norm: Norm
    model_args: dict[str, Any]
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    crop_share: float
    task: Literal["classification"] = "classification"
    objects: tuple[str, ...] = ()
    pixel_range: PixelRange | None = None
    page: int = 0

    @property
    def pixels(self) -> Pixels:
        """How image files are read."""
        return Pixels(self.pixel_range, self.page)

    @classmethod
    def of(
        cls, config: ClassificationConfig, classes: Sequence[str], objects: Sequence[str] = ()
    ) -> ClassifierSpec:
        """Return the specification of the classifier that ``config`` trains.

        Mean and standard deviation are those of the model in timm. So is the image size if the
        config does not set it.

        Args:
            config: settings of the run.
            classes: class names, in the order of the logits.
            objects: names of the parts that were passed as objects.

        Returns:
            The specification.

        Raises:
            UserError: a setting is out of the range that ``load_model`` accepts.
        """
        cfg = timm.get_pretrained_cfg(config.model) or PretrainedCfg()
        spec = cls(
            model=config.model,
            image_size=config.image_size or cfg.input_size[-1],
            norm=config.norm,
            model_args=config.model_args,
            classes=tuple(classes),
            mean=cfg.mean,
            std=cfg.std,
            crop_share=config.crop_share,
            objects=tuple(objects),
            pixel_range=config.chosen_pixel_range,
            page=config.page,
        )
        check_card(plain(spec))
        return spec

    @classmethod
    def from_fields(cls, fields: dict[str, Any]) -> ClassifierSpec:
        """Create the specification from the metadata that ``save_model`` wrote."""
        return cls(**_tuples(fields))

    def build(
        self,
        *,
        impl: Implementation | None = None,
        box_head: nn.Module | None = None,
        regularization: Mapping[str, Any] | None = None,
    ) -> nn.Module:
        """Build the classifier with random weights.

        Args:
            impl: custom attention implementation, required if ``objects`` contains it.
            box_head: must be None, since a classifier has no box head.
            regularization: timm arguments that apply to training only, such as ``drop_rate``.

        Returns:
            The classifier, channels-last, in training mode.

        Raises:
            UserError: an object is missing or was not used in training, or the model cannot be
                built with these arguments.
        """
        _check_objects(self.objects, impl=impl, box_head=box_head)
        check_model_args(self.model, self.model_args)
        try:
            model = create_model(
                self.model,
                num_classes=len(self.classes),
                image_size=self.image_size,
                **_with_impl(self.model_args, impl),
                **(regularization or {}),
            )
        except UserError:
            raise
        except (RuntimeError, AssertionError, TypeError, ValueError) as error:
            raise UserError(
                f"cannot be built ({error})", parameter="model", value=self.model
            ) from error
        if self.norm == "frozen":
            model = freeze_batch_norm_2d(model)  # type: ignore[no-untyped-call]
        return model.to(memory_format=torch.channels_last)


ModelSpec = DetectorSpec | ClassifierSpec


def _check_objects(wanted: Sequence[str], **given: object) -> None:
    for name, value in given.items():
        if name in wanted and value is None:
            raise UserError(
                "the model was trained with a custom object; pass the same object", parameter=name
            )
        if name not in wanted and value is not None:
            raise UserError(
                "the model was trained without a custom object; leave it out", parameter=name
            )


def _with_impl(model_args: dict[str, Any], impl: Implementation | None) -> dict[str, Any]:
    return model_args if impl is None else {**model_args, "impl": impl}


def _tuples(fields: dict[str, Any]) -> dict[str, Any]:
    """Convert lists back to tuples, since JSON stores tuples as lists."""
    return {k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()}


def save_model(model: nn.Module, spec: ModelSpec, path: Path, writes: bool = True) -> None:
    """Write the weights as safetensors, with the specification as JSON in the metadata.

    Args:
        model: model to save. It may be sharded, so every process must call this function.
        spec: specification of the model.
        path: file to write.
        writes: whether this process writes the file.
    """
    text = json.dumps({"schema": SCHEMA, "version": versions()["botvision"], **asdict(spec)})
    tensors = {k: v.detach().cpu().contiguous() for k, v in whole_tensors(model).items()}
    if not writes:
        return
    with atomic(path) as temporary:
        save_file(tensors, temporary, metadata={"botvision": text})


def load_model(
    source: str | PathLike[str],
    *,
    impl: Implementation | None = None,
    box_head: nn.Module | None = None,
) -> tuple[nn.Module, ModelSpec]:
    """Load a model from a run folder (its ``best.safetensors``) or a weights file.

    Args:
        source: run folder or weights file.
        impl: attention implementation, required if the model was trained with a custom one.
        box_head: box head, required if the model was trained with a custom one. The weights are
            loaded into it.

    Returns:
        The model in eval mode, and its specification.

    Raises:
        UserError: the run or file does not exist, is damaged, was not written by this library or
            was written by a later version, or a required object is missing.
    """
    path = weights_file(Path(source))
    if not path.is_file():
        raise UserError(
            f"{path}: no such weights file; give the folder of a completed run, or its "
            "best.safetensors"
        )
    spec = _spec(read_card(path), path)
    _check_objects(spec.objects, impl=impl, box_head=box_head)
    # Without memory: the specification may be of a far larger model than the file contains.
    with torch.device("meta"):
        outline = _built(spec, path, impl, box_head)
    check_tensors(outline, path)
    model = _built(spec, path, impl, box_head)
    tensors = load_file(path)
    check_finite(tensors, path)
    model.load_state_dict(tensors)
    return model.eval(), spec


def _spec(card: Any, path: Path) -> ModelSpec:
    if card is None:
        raise UserError(
            f"{path}: not a botvision model, its metadata contains no specification; give a run's "
            "best.safetensors, or use the file as initial weights with `weights`"
        )
    fields = dict(card) if isinstance(card, dict) else {}
    schema, version = fields.pop("schema", 0), fields.pop("version", "")
    if type(schema) is int and schema > SCHEMA:
        raise UserError(
            f"{path}: written by a later version of botvision ({version}); upgrade botvision"
        )
    if schema == 0 and isinstance(fields.get("model_args"), dict):
        fields["model_args"] = upgrade_model_args(fields["model_args"])
    try:
        check_card(fields)
    except UserError as error:
        raise UserError(
            f"{path}: the specification of the model is damaged: {error}; get the file again, or "
            "save the model again"
        ) from error
    classifies = fields["task"] == "classification"
    return (ClassifierSpec if classifies else DetectorSpec).from_fields(fields)


def _built(
    spec: ModelSpec, path: Path, impl: Implementation | None, box_head: nn.Module | None
) -> nn.Module:
    """Build the model of a file, whose arguments may fit no model."""
    try:
        return spec.build(impl=impl, box_head=box_head)
    except Exception as error:  # whatever an architecture raises for arguments of any kind
        parameter = getattr(error, "parameter", None)
        if parameter in ("impl", "box_head"):
            raise
        reason = f" ({error})" if isinstance(error, UserError) and parameter != "model" else ""
        raise UserError(
            f"{path}: the specification of the model describes no {spec.model} that can be "
            f"built{reason}; get the file again, or save the model again"
        ) from error


def upgrade_model_args(model_args: dict[str, Any]) -> dict[str, Any]:
    """Rename model arguments of version 0.1 to their current names."""
    return {"num_heads" if k == "heads" else k: v for k, v in model_args.items()}
