"""Parameters and multiply-adds of a model."""

from __future__ import annotations

import copy

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from botvision.attention import RelativeAttention2d


def count_parameters(model: nn.Module) -> int:
    """Return the number of parameters."""
    return sum(parameter.numel() for parameter in model.parameters())


def count_multiply_adds(model: nn.Module, image_size: int) -> int:
    """Return the multiply-adds of convolutions and matrix products in the inference of an image.

    The count does not depend on the attention implementation. It runs on a copy without data, so
    the model may be on any device (``"meta"`` is cheapest) and is not changed.

    Args:
        model: network that maps a batch of images to any output.
        image_size: height and width of the image, pixels.
    """
    copied = copy.deepcopy(model).to("meta").eval()
    for module in copied.modules():
        if isinstance(module, RelativeAttention2d):
            module.impl = "reference"  # The counter sees its products.
    image = torch.empty(1, 3, image_size, image_size, device="meta")
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        copied(image)
    flops: int = counter.get_total_flops()
    return flops // 2
