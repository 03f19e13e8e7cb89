"""Parameters and multiply-adds of a model."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from botvision.attention import RelativeAttention2d


def count(build: Callable[[], nn.Module], image_size: int) -> tuple[int, int]:
    """Parameters of a model, and multiply-adds (convolutions and products) of one square image.

    Args:
        build: makes the model; called where tensors have shapes and no values.
        image_size: side of the image, pixels.
    """
    with torch.device("meta"):
        model = build().eval()
        image = torch.empty(1, 3, image_size, image_size)
    for module in model.modules():
        if isinstance(module, RelativeAttention2d):
            module.impl = "reference"  # its products are plain, so the counter sees them
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        model(image)
    return sum(p.numel() for p in model.parameters()), counter.get_total_flops() // 2
