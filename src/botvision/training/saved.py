"""Weights in one file with all that is needed to use them."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torchvision.models.detection import FasterRCNN

import botvision
from botvision.config import DetectorConfig, Norm, Task, TrainConfig
from botvision.data.categories import Categories
from botvision.detection import build_detector
from botvision.errors import UserError


@dataclass(frozen=True)
class ModelCard:
    """What a detector is: how to build it, and what its labels mean."""

    model: str
    task: Task
    image_size: int
    norm: Norm
    model_args: dict[str, Any]
    detector: DetectorConfig
    categories: Categories

    @classmethod
    def of(cls, config: TrainConfig, task: Task, categories: Categories) -> ModelCard:
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

    def build(self) -> FasterRCNN:
        """The detector, its weights drawn at random."""
        return build_detector(
            self.model,
            len(self.categories),
            self.image_size,
            task=self.task,
            norm=self.norm,
            config=self.detector,
            model_args=self.model_args,
        ).to(memory_format=torch.channels_last)


def save_model(path: Path, detector: FasterRCNN, card: ModelCard) -> None:
    """Write the weights as safetensors, the card as JSON in the file's metadata."""
    text = json.dumps({"version": botvision.__version__, **asdict(card)})
    tensors = {k: v.detach().cpu().contiguous() for k, v in detector.state_dict().items()}
    temporary = path.with_suffix(".tmp")
    save_file(tensors, temporary, metadata={"botvision": text})
    temporary.replace(path)


def load_model(run: Path) -> tuple[FasterRCNN, ModelCard]:
    """The detector of a run folder (its ``best.safetensors``) or of a weights file, in eval mode.

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
    numbers: dict[str, Any] = {
        k: tuple(v) if isinstance(v, list) else v for k, v in fields["detector"].items()
    }
    fields["detector"] = DetectorConfig(**numbers)
    fields["categories"] = Categories(
        tuple(fields["categories"]["ids"]), tuple(fields["categories"]["names"])
    )
    card = ModelCard(**fields)
    detector = card.build()
    detector.load_state_dict(load_file(path))
    return detector.eval(), card
