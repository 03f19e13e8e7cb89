"""The paper's one change: attention instead of ``conv2`` in the last stage of a ResNet."""

from __future__ import annotations

import copy
import math
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
    stride: int | None = None,
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

    Attention covers the whole map, so it has no dilation. A network whose strides are replaced by
    dilation, such as the backbone of torchvision's DeepLabV3, keeps the strides of its stages, and
    the convolutions that remain keep their dilation.

    Args:
        resnet: a bottleneck ResNet of timm or torchvision (ResNet-50 and deeper, including ``d``
            and wide variants), with or without weights.
        image_size: height and width in pixels, or one number for both, for which the position
            tables are made. The model accepts images of any size.
        num_heads: attention heads (4 in the paper).
        stride: stride of the last stage. 2 attends at the incoming resolution and averages 2x2
            positions after the attention of the first block (the default BoTNet, Table 1); 1 keeps
            the resolution (BoTNet-S1, section 4.7.1). By default the stride that the stage has: 2,
            or 1 if dilation replaces it.
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
        ValueError: the last stage does not consist of plain bottleneck blocks, ``stride`` would
            undo a dilation, or an option is invalid.
    """
    stage = getattr(resnet, "layer4", None)
    if not isinstance(stage, nn.Sequential) or not all(type(b) in BOTTLENECKS for b in stage):
        raise ValueError(
            f"{type(resnet).__name__} has no last stage `layer4` of plain bottleneck blocks; "
            "give a bottleneck ResNet of timm or torchvision, such as resnet50"
        )
    if stride not in (None, 1, 2):
        raise ValueError(f"stride is 1 or 2, not {stride}")
    own_stride = _stage_stride(stage)
    stride = stride or own_stride
    if stride > own_stride:
        raise ValueError(
            f"the last stage has stride {own_stride}, from an output stride or a dilation that "
            f"stride {stride} would undo; leave `stride` out, or build the network without them"
        )
    replaced = _indices(blocks, len(stage))
    reduction = map_stride(resnet, 3)
    size = map_size(image_size, reduction)
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
        elif index == 0 and stride != own_stride:
            block.conv2.stride = (block_stride, block_stride)
            _remove_blur(block)
        block.stride = block_stride
        if block.downsample is not None:
            if stride != own_stride:
                _set_shortcut_stride(block, stride)
            if shortcut_activation and index in replaced:
                activation = block.relu if hasattr(block, "relu") else block.act3
                block.downsample.append(copy.deepcopy(activation))
        size = (-(-size[0] // block_stride), -(-size[1] // block_stride))
    info: Any = getattr(resnet, "feature_info", None)
    if info is not None:  # timm's description of the maps of features_only
        info[-1]["reduction"] = reduction * stride
    return resnet


def map_size(image_size: int | tuple[int, int], reduction: int) -> tuple[int, int]:
    """Return the height and width of a map at a stride, for an image of ``image_size``."""
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    # Rounding up at each stride is the same as rounding up once.
    return -(-height // reduction), -(-width // reduction)


def map_stride(resnet: nn.Module, stages: int) -> int:
    """Return the stride of a ResNet's maps after the stem and the first ``stages`` stages.

    It is found from the layers themselves, since dilation may have replaced strides.
    """
    stem = []
    for name, child in resnet.named_children():
        if name == "layer1":
            break
        stem.append(child)
    strides = [_stage_stride(getattr(resnet, f"layer{n}")) for n in range(1, stages + 1)]
    return math.prod(map(_stride, stem)) * math.prod(strides)


def _stage_stride(stage: Any) -> int:
    """Return the stride of a stage, that of its first block's shortcut."""
    shortcut = stage[0].downsample
    return 1 if shortcut is None else _stride(shortcut)


def _stride(part: nn.Module) -> int:
    """Return the stride of layers that follow one another."""
    strides = (getattr(module, "stride", 1) for module in part.modules())
    return math.prod(stride[0] if isinstance(stride, tuple) else stride for stride in strides)


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


def _set_shortcut_stride(block: Any, stride: int) -> None:
    """Set the stride of the first block's projection shortcut."""
    for layer in block.downsample:
        if isinstance(layer, nn.AvgPool2d):  # ResNet-D: the pool has the stride
            layer.kernel_size = layer.stride = stride
            stride = 1
        elif isinstance(layer, nn.Conv2d):
            layer.stride = (stride, stride)
