"""Blocks that the paper inserts into a ResNet, as ablations of the replacement (Table 7)."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, Literal, TypeVar

from torch import Tensor, nn

from botvision.attention.functional import attend, no_autocast
from botvision.attention.implementation import Implementation
from botvision.attention.module import Position, RelativeAttention2d
from botvision.config import TableResize
from botvision.models.surgery import BOTTLENECKS, map_size, map_stride

ResNetT = TypeVar("ResNetT", bound=nn.Module)
Stage = Literal["c4", "c5"]


def insert_bot(
    resnet: ResNetT,
    stages: Sequence[Stage] = ("c4",),
    image_size: int | tuple[int, int] = 224,
    *,
    num_heads: int = 4,
    position: Position = "relative",
    content: bool = True,
    scale_position: bool = True,
    table_resize: TableResize = "interpolate",
    impl: str | Implementation = "auto",
) -> ResNetT:
    """Insert one BoT block between the last two blocks of each stage, in place (Table 7).

    The block is a newly initialized bottleneck of the stage, with stride 1, without a projection
    shortcut, and with attention instead of its spatial convolution. The scale of its last batch
    norm starts at zero: behind a ReLU, the block starts as the identity. It is named ``bot``
    (``layer3.bot`` in c4) and all other names stay. It declares ``from_scratch = True``.

    The paper places its Non-Local baseline between the last two blocks of c4. That the BoT blocks,
    including the one in c5, follow the same rule is our reading.

    Args:
        resnet: a bottleneck ResNet of timm or torchvision, with or without weights.
        stages: ``("c4",)`` or ``("c4", "c5")`` in the paper.
        image_size: height and width in pixels, or one number for both, for which the position
            tables are made. The model accepts images of any size.
        num_heads: attention heads.
        position: see ``botvision.to_botnet``, like all that follow.
        content: whether to include the term ``q k^T``.
        scale_position: whether to scale the position logits by d^-0.5.
        table_resize: how other image sizes use the position tables.
        impl: attention implementation.

    Returns:
        The same module.

    Raises:
        ValueError: a stage is not c4 or c5, has fewer than two bottleneck blocks, or already has
            such a block.
    """
    for stage in stages:
        blocks = _blocks(resnet, stage)
        block = _fresh(blocks[-1])
        block.conv2 = RelativeAttention2d(
            block.conv1.out_channels,
            map_size(image_size, map_stride(resnet, int(stage[1]) - 1)),
            num_heads=num_heads,
            position=position,
            content=content,
            scale_position=scale_position,
            table_resize=table_resize,
            impl=impl,
        ).to(block.conv1.weight.device, block.conv1.weight.dtype)
        _insert(resnet, stage, "bot", block)
    return resnet


def insert_non_local(resnet: ResNetT, *, value: bool = False) -> ResNetT:
    """Insert a Non-Local block between the last two blocks of c4, in place (Table 7).

    It is named ``layer3.nl`` and all other names stay. It starts as the identity and declares
    ``from_scratch = True``.

    Args:
        resnet: a bottleneck ResNet of timm or torchvision, with or without weights.
        value: see ``NonLocal2d``.

    Returns:
        The same module.

    Raises:
        ValueError: c4 has fewer than two bottleneck blocks, or already has such a block.
    """
    kernel: Any = _blocks(resnet, "c4")[-1].conv3
    block = NonLocal2d(kernel.out_channels, value=value)
    _insert(resnet, "c4", "nl", block.to(kernel.weight.device, kernel.weight.dtype))
    return resnet


class NonLocal2d(nn.Module):
    """Non-Local block (Wang et al., 2018), (B, channels, H, W) -> (B, channels, H, W).

    This is the embedded Gaussian, ``x + norm(z(softmax(t(x) p(x)^T) g(x)))``, with half the
    channels inside (the paper's section 5) and unscaled logits. ``t``, ``p`` and ``g`` are theta,
    phi and g of Wang et al. The names are those of timm's ``NonLocalAttn``, so its weights load.
    Their released code can also scale the logits and pool the keys; the formula does neither.

    The BoTNet paper lists a value projection among the differences to the Non-Local block. Without
    one, the values are the input channels, so ``z`` maps all channels to all: this is our reading.

    The N x N logits are float32, also in half precision. PyTorch's fused attention does not store
    them, but its CPU kernel needs values as wide as the keys. Without a value projection, and for
    small maps in training, they are stored (64 MiB for a map of 64x64).

    Args:
        channels: input and output channels.
        value: whether the block has the value projection g.
    """

    def __init__(self, channels: int, *, value: bool = False) -> None:
        super().__init__()
        half = channels // 2
        self.t = nn.Conv2d(channels, half, kernel_size=1)
        self.p = nn.Conv2d(channels, half, kernel_size=1)
        self.g = nn.Conv2d(channels, half, kernel_size=1) if value else nn.Identity()
        self.z = nn.Conv2d(half if value else channels, channels, kernel_size=1)
        self.norm = nn.BatchNorm2d(channels)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw weights from N(0, 0.01^2), as the original code does, with a zero last scale."""
        for layer in (self.t, self.p, self.g, self.z):
            if isinstance(layer, nn.Conv2d):
                nn.init.normal_(layer.weight, std=0.01)
                nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
        nn.init.zeros_(self.norm.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Attend over the whole map: (B, channels, H, W) -> (B, channels, H, W)."""
        # One head: (B, C, H, W) -> (B, 1, N, C), without a copy of channels-last maps.
        q, k, v = (
            layer(x).flatten(2).mT.unsqueeze(1).contiguous() for layer in (self.t, self.p, self.g)
        )
        with no_autocast(x.device):
            out = attend(q, k, v.to(q.dtype), None, None, scale=1.0, impl="auto")
        out = out.squeeze(1).mT.reshape(x.shape[0], -1, *x.shape[-2:])
        projected: Tensor = self.norm(self.z(out))
        return x + projected


def _blocks(resnet: nn.Module, stage: str) -> nn.Sequential:
    """Return the blocks of c4 or c5, which are ``layer3`` or ``layer4``."""
    if stage not in ("c4", "c5"):
        raise ValueError(f"blocks are inserted into c4 and c5, not {stage!r}")
    blocks = getattr(resnet, f"layer{int(stage[1]) - 1}", None)
    if (
        not isinstance(blocks, nn.Sequential)
        or len(blocks) < 2
        or type(blocks[-1]) not in BOTTLENECKS
    ):
        raise ValueError(
            f"{type(resnet).__name__} has no last two bottleneck blocks in {stage} to insert a "
            "block between; use a bottleneck ResNet of timm or torchvision, such as resnet50"
        )
    return blocks


def _fresh(block: nn.Module) -> Any:
    """Return a copy of a block, initialized as timm and torchvision do, with a zero last scale."""
    fresh: Any = copy.deepcopy(block)
    for module in fresh.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    nn.init.zeros_(fresh.bn3.weight)
    return fresh


def _insert(resnet: nn.Module, stage: str, name: str, block: Any) -> None:
    """Insert the block between the last two of the stage, whose names stay as they are."""
    blocks = _blocks(resnet, stage)
    *before, (last_name, last) = blocks.named_children()
    if name in dict(before):
        raise ValueError(f"{stage} has a block {name!r} already")
    block.from_scratch = True
    delattr(blocks, last_name)
    blocks.add_module(name, block.train(blocks.training))
    blocks.add_module(last_name, last)
