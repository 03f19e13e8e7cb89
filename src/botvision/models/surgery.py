"""The paper's one change: attention instead of ``conv2`` in the last stage of a ResNet."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, TypeVar

import timm.models.resnet
import torchvision.models.resnet
from torch import nn

from botvision.attention.implementation import Implementation
from botvision.attention.module import Position, RelativeAttention2d
from botvision.config import TableResize

ResNetT = TypeVar("ResNetT", bound=nn.Module)

BOTTLENECKS = (timm.models.resnet.Bottleneck, torchvision.models.resnet.Bottleneck)


def to_botnet(
    resnet: ResNetT,
    image_size: int | tuple[int, int] = 224,
    *,
    num_heads: int = 4,
    stride: int = 2,
    blocks: Sequence[int] | None = None,
    position: Position = "relative",
    content: bool = True,
    scale_position: bool = True,
    table_resize: TableResize = "interpolate",
    shortcut_activation: bool = False,
    impl: str | Implementation = "auto",
) -> ResNetT:
    """Turn a ResNet into a BoTNet, in place: "and no other changes" (paper, section 3).

    A ``RelativeAttention2d`` replaces the spatial convolution of each bottleneck block of the
    last stage. All other weights stay as they are, pretrained or not; the attention is initialized
    at random, as in the paper (section 4.1).

    Args:
        resnet: a bottleneck ResNet of timm or torchvision (ResNet-50 and deeper, including ``d``
            and wide variants), with or without weights.
        image_size: height and width in pixels, or one number for both, for which the position
            tables are made. The model accepts images of any size.
        num_heads: attention heads (4 in the paper).
        stride: stride of the last stage. 2 attends at the incoming resolution and averages 2x2
            positions after the attention of the first block (the default BoTNet, Table 1); 1 keeps
            the resolution (BoTNet-S1, section 4.7.1).
        blocks: indices of the last stage's blocks that get attention, negative from the end; the
            others keep their convolution and its weight. ``None`` selects all of them (section 4.4
            of the paper's first version, "Why replace all three c5 spatial convolutions?").
        position: ``"relative"``, or an ablation of Table 4: ``"absolute"`` or ``"none"``.
        content: whether to include the term ``q k^T`` (Table 4).
        scale_position: whether to scale the position logits by d^-0.5, as the authors' code does.
        table_resize: how other image sizes use the position tables, see
            ``RelativeAttention2d``. ``"interpolate"``, the default here, is for
            classification; detectors use ``"slice"``.
        shortcut_activation: whether to apply the activation to the projection shortcut of a BoT
            block, after its batch norm, as the authors' reference code does. The default is
            ``False``: the ResNet has none there, and the paper makes "no other changes".
        impl: attention implementation, see ``RelativeAttention2d``.

    Returns:
        The same module.

    Raises:
        ValueError: the last stage does not consist of plain bottleneck blocks, or an option is
            invalid.
    """
    stage = getattr(resnet, "layer4", None)
    if not isinstance(stage, nn.Sequential) or not all(type(b) in BOTTLENECKS for b in stage):
        raise ValueError(
            f"{type(resnet).__name__} has no last stage `layer4` of plain bottleneck blocks; "
            "give a bottleneck ResNet of timm or torchvision, such as resnet50"
        )
    if stride not in (1, 2):
        raise ValueError(f"stride is 1 or 2, not {stride}")
    replaced = _indices(blocks, len(stage))
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    # Each of the four halvings before c5 rounds up, which is the same as rounding up once.
    size = (-(-height // 16), -(-width // 16))
    block: Any
    for index, block in enumerate(stage):
        block_stride = stride if index == 0 else 1
        if index in replaced:
            block.conv2 = RelativeAttention2d(
                block.conv2.out_channels,
                size,
                num_heads=num_heads,
                position=position,
                content=content,
                scale_position=scale_position,
                stride=block_stride,
                table_resize=table_resize,
                impl=impl,
            ).to(block.conv1.weight.device, block.conv1.weight.dtype)
            _remove_blur(block)
        elif block.stride != block_stride:
            block.conv2.stride = (block_stride, block_stride)
            _remove_blur(block)
        block.stride = block_stride
        if block.downsample is not None:
            _set_shortcut(block, block_stride, shortcut_activation and index in replaced)
        size = (-(-size[0] // block_stride), -(-size[1] // block_stride))
    info: Any = getattr(resnet, "feature_info", None)
    if info is not None:  # timm's description of the maps of features_only
        info[-1]["reduction"] = 16 * stride
    return resnet


def _indices(blocks: Sequence[int] | None, count: int) -> set[int]:
    """Return ``blocks`` as indices from 0 to ``count - 1``."""
    if blocks is None:
        return set(range(count))
    if not blocks or not all(-count <= index < count for index in blocks):
        raise ValueError(
            f"blocks is one or more of 0 to {count - 1}, the blocks of the last stage, not {blocks}"
        )
    return {index % count for index in blocks}


def _remove_blur(block: Any) -> None:
    """Remove the pool that has the stride in anti-aliased variants: the new layer has it."""
    if hasattr(block, "aa"):
        block.aa = nn.Identity()


def _set_shortcut(block: Any, stride: int, activation: bool) -> None:
    """Set the stride of the first block's projection shortcut."""
    shortcut = block.downsample
    for layer in shortcut:
        if isinstance(layer, nn.AvgPool2d):  # ResNet-D: the pool has the stride
            layer.kernel_size = layer.stride = stride
            stride = 1
        elif isinstance(layer, nn.Conv2d):
            layer.stride = (stride, stride)
    if activation:
        shortcut.append(copy.deepcopy(block.relu if hasattr(block, "relu") else block.act3))
