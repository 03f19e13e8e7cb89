"""The paper's one change: attention where ``conv2`` was in the last stage of a ResNet."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, TypeVar

import timm.models.resnet
import torchvision.models.resnet
from torch import nn

from botvision.attention.module import Position, RelativeAttention2d
from botvision.config import TableResize

ResNetT = TypeVar("ResNetT", bound=nn.Module)

BOTTLENECKS = (timm.models.resnet.Bottleneck, torchvision.models.resnet.Bottleneck)


def to_botnet(
    resnet: ResNetT,
    image_size: int | tuple[int, int] = 224,
    *,
    heads: int = 4,
    stride: int = 2,
    blocks: Sequence[int] | None = None,
    position: Position = "relative",
    content: bool = True,
    scale_position: bool = True,
    table_resize: TableResize = "interpolate",
    shortcut_activation: bool = False,
    impl: str = "auto",
) -> ResNetT:
    """Turn a ResNet into a BoTNet, in place: "and no other changes" (paper, section 3).

    Each bottleneck block of the last stage gets a :class:`RelativeAttention2d` in place of its
    spatial convolution. Every other weight stays as it was, pretrained ones too; the attention is
    drawn at random, as in the paper (section 4.1).

    Args:
        resnet: a bottleneck ResNet of timm or torchvision (ResNet-50 and deeper, also its ``d``
            and wide variants), with or without weights.
        image_size: pixels (H, W) for which the position tables are made; others work too.
        heads: attention heads (4 in the paper).
        stride: of the last stage. 2 attends at the incoming resolution and averages 2x2 cells
            after the attention of the first block (the default BoTNet, Table 1); 1 keeps the
            resolution (BoTNet-S1, section 4.7.1).
        blocks: which blocks of the last stage get attention, by index, from the end if negative;
            the others keep their convolution and its weight. ``None``, the default, is all of
            them ("Why replace all three c5 spatial convolutions?", section 4.4 of the paper's
            first version, whose numbers could not be had).
        position: ``"relative"``, or an ablation of Table 4: ``"absolute"`` or ``"none"``.
        content: with the term ``q k^T`` (Table 4).
        scale_position: scale the position logits by d^-0.5 too, as the authors' code does.
        table_resize: how other image sizes use the position tables, see
            :class:`RelativeAttention2d`: ``"interpolate"``, the default here, suits
            classification; detectors pass ``"slice"``.
        shortcut_activation: apply the activation on a BoT block's projection shortcut, after its
            batch norm, as the authors' reference code does. Off by default: the ResNet has none
            there, and the paper makes "no other changes".
        impl: attention implementation.

    Returns:
        The same module.

    Raises:
        ValueError: the last stage is not of plain bottleneck blocks, a bad ``stride``, or
            ``blocks`` names none or one that is not there.
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
    # Each of the four halvings before c5 rounds up, which composes to one rounding up.
    size = (-(-height // 16), -(-width // 16))
    block: Any
    for index, block in enumerate(stage):
        block_stride = stride if index == 0 else 1
        if index in replaced:
            block.conv2 = RelativeAttention2d(
                block.conv2.out_channels,
                size,
                num_heads=heads,
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
    if info is not None:  # timm's record of what features_only gives
        info[-1]["reduction"] = 16 * stride
    return resnet


def _indices(blocks: Sequence[int] | None, count: int) -> set[int]:
    """The indices from 0 on that ``blocks`` names among ``count`` blocks."""
    if blocks is None:
        return set(range(count))
    if not blocks or not all(-count <= index < count for index in blocks):
        raise ValueError(
            f"blocks is one or more of 0 to {count - 1}, the blocks of the last stage, not {blocks}"
        )
    return {index % count for index in blocks}


def _remove_blur(block: Any) -> None:
    """Take out the pool that carries the stride in anti-aliased variants: the new layer does."""
    if hasattr(block, "aa"):
        block.aa = nn.Identity()


def _set_shortcut(block: Any, stride: int, activation: bool) -> None:
    """Give the projection shortcut of the first block the block's stride."""
    shortcut = block.downsample
    for layer in shortcut:
        if isinstance(layer, nn.AvgPool2d):  # ResNet-D: the pool carries the stride
            layer.kernel_size = layer.stride = stride
            stride = 1
        elif isinstance(layer, nn.Conv2d):
            layer.stride = (stride, stride)
    if activation:
        shortcut.append(copy.deepcopy(block.relu if hasattr(block, "relu") else block.act3))
