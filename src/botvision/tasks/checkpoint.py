"""Weights in one file with all that is needed to use them."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import timm
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from timm.layers.norm_act import freeze_batch_norm_2d
from timm.models import PretrainedCfg
from torch import nn

import botvision
from botvision.config import (
    ClassificationConfig,
    DetectionConfig,
    DetectionTask,
    DetectorConfig,
    Norm,
)
from botvision.data.categories import Categories
from botvision.detection import Detector, build_detector
from botvision.errors import UserError
from botvision.models import check_model_args, create_model
from botvision.training.fsdp import whole_tensors


@dataclass(frozen=True)
class DetectorSpec:
    """What a detector is: how to build it, and what its labels mean."""

    model: str
    task: DetectionTask
    image_size: int
    norm: Norm
    model_args: dict[str, Any]
    detector: DetectorConfig
    categories: Categories

    @classmethod
    def of(
        cls, config: DetectionConfig, task: DetectionTask, categories: Categories
    ) -> DetectorSpec:
        """The card of the detector that ``config`` trains."""
        return cls(
            model=config.model,
            task=task,
            image_size=config.image_size,
            norm=config.norm,
            model_args=config.model_args,
            detector=config.detector,
            categories=categories,
        )

    @classmethod
    def from_fields(cls, fields: dict[str, Any]) -> DetectorSpec:
        """From what ``save_model`` wrote of it."""
        numbers = _tuples(fields["detector"])
        ids, names = (tuple(fields["categories"][key]) for key in ("ids", "names"))
        own = {"detector": DetectorConfig(**numbers), "categories": Categories(ids, names)}
        return cls(**{**fields, **own})

    def build(self) -> Detector:
        """The detector, its weights drawn at random."""
        check_model_args(self.model, self.model_args)
        detector = build_detector(
            self.model,
            len(self.categories),
            self.image_size,
            task=self.task,
            norm=self.norm,
            config=self.detector,
            model_args=self.model_args,
        )
        detector.to(memory_format=torch.channels_last)
        return detector


@dataclass(frozen=True)
class ClassifierSpec:
    """What a classifier is: how to build it, what it wants to see, what its outputs mean."""

    model: str
    image_size: int
    norm: Norm
    model_args: dict[str, Any]
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    crop_share: float
    task: Literal["classification"] = "classification"

    @classmethod
    def of(cls, config: ClassificationConfig, classes: tuple[str, ...]) -> ClassifierSpec:
        """The card of the classifier that ``config`` trains; size and colours are the model's."""
        cfg = timm.get_pretrained_cfg(config.model) or PretrainedCfg()
        return cls(
            model=config.model,
            image_size=config.image_size or cfg.input_size[-1],
            norm=config.norm,
            model_args=config.model_args,
            classes=classes,
            mean=cfg.mean,
            std=cfg.std,
            crop_share=config.crop_share,
        )

    @classmethod
    def from_fields(cls, fields: dict[str, Any]) -> ClassifierSpec:
        """From what ``save_model`` wrote of it."""
        return cls(**_tuples(fields))

    def build(self, **regularisation: Any) -> nn.Module:
        """The classifier, its weights drawn at random; ``regularisation`` in timm's words."""
        check_model_args(self.model, self.model_args)
        try:
            model = create_model(
                self.model,
                num_classes=len(self.classes),
                image_size=self.image_size,
                **self.model_args,
                **regularisation,
            )
        except (RuntimeError, AssertionError, TypeError) as error:
            raise UserError(f"--model {self.model}: cannot be built ({error})") from error
        if self.norm == "frozen":
            model = freeze_batch_norm_2d(model)  # type: ignore[no-untyped-call]
        return model.to(memory_format=torch.channels_last)


def _tuples(fields: dict[str, Any]) -> dict[str, Any]:
    """Lists, which JSON makes of tuples, as tuples."""
    return {k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()}


ModelSpec = DetectorSpec | ClassifierSpec


def save_model(path: Path, model: nn.Module, card: ModelSpec, *, writes: bool = True) -> None:
    """Write the weights as safetensors, the card as JSON in the file's metadata.

    Of several processes all have to call this, and one ``writes``.
    """
    text = json.dumps({"version": botvision.__version__, **asdict(card)})
    tensors = {k: v.detach().cpu().contiguous() for k, v in whole_tensors(model).items()}
    if not writes:
        return
    temporary = path.with_suffix(".tmp")
    save_file(tensors, temporary, metadata={"botvision": text})
    temporary.replace(path)


def load_model(run: Path) -> tuple[nn.Module, ModelSpec]:
    """The model of a run folder (its ``best.safetensors``) or of a weights file, in eval mode.

    Raises:
        UserError: no such run or file, or a file that this command did not write.
    """
    path = run / "best.safetensors" if run.is_dir() else run
    if not path.is_file():
        raise UserError(
            f"{path}: no such weights; give a run folder that `botvision train` has finished, or "
            "its best.safetensors"
        )
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get("botvision")
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: not a safetensors file; give a run's best.safetensors") from error
    if text is None:
        raise UserError(
            f"{path}: no botvision model, its metadata says nothing of one; give a run's "
            "best.safetensors, or start a training from the file with --weights"
        )
    fields = json.loads(text)
    del fields["version"]
    classifies = fields["task"] == "classification"
    card = (ClassifierSpec if classifies else DetectorSpec).from_fields(fields)
    model = card.build()
    model.load_state_dict(load_file(path))
    return model.eval(), card
