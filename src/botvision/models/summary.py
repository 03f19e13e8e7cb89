"""One line per model: its parameters and multiply-adds, and what the paper prints of it."""

from __future__ import annotations

from dataclasses import dataclass

import timm
import torch

from botvision.models.factory import create_model
from botvision.models.flops import count_multiply_adds, count_parameters
from botvision.models.published import PUBLISHED, Published


@dataclass(frozen=True)
class ModelSummary:
    """A model, counted at its own input size.

    Args:
        name: of the model.
        parameters: their number.
        multiply_adds: of one image, in convolutions and matrix products.
        image_size: side of the square input, pixels.
        paper: the paper's figures, if it has the model.
    """

    name: str
    parameters: int
    multiply_adds: int
    image_size: int
    paper: Published | None


def summarize(name: str, image_size: int | None = None) -> ModelSummary:
    """Count a model's parameters and multiply-adds, by default at its own input size."""
    cfg = timm.get_pretrained_cfg(name)
    assert cfg is not None
    size = image_size or cfg.input_size[-1]
    with torch.device("meta"):
        model = create_model(name, image_size=size)
    return ModelSummary(
        name=name,
        parameters=count_parameters(model),
        multiply_adds=count_multiply_adds(model, size),
        image_size=size,
        paper=PUBLISHED.get(name),
    )
