"""Blocks that the paper inserts into a ResNet to compare with its replacement (Table 7)."""

from __future__ import annotations

import copy
import math
import re
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, Literal, TypeVar

import timm.models.resnet
from torch import Tensor, nn

from botvision.attention.functional import attend, no_autocast
from botvision.attention.module import Position, RelativeAttention2d
from botvision.config import TableResize
from botvision.models.surgery import BOTTLENECKS

ResNetT = TypeVar("ResNetT", bound=nn.Module)
Stage = Literal["c4", "c5"]


def insert_bot(
    resnet: ResNetT,
    stages: Sequence[Stage] = ("c4",),
    image_size: int | tuple[int, int] = 224,
    *,
    heads: int = 4,
    position: Position = "relative",
    content: bool = True,
    scale_position: bool = True,
    table_resize: TableResize = "interpolate",
    impl: str = "auto",
) -> ResNetT:
    """Insert one BoT block between the last two blocks of each stage, in place (Table 7).

    The block is the stage's own bottleneck, drawn anew, at stride 1 and without a projection
    shortcut, with attention in place of its spatial convolution. The scale of its last batch norm
    starts at zero, so that behind a ReLU the ResNet starts by computing what it did. Its name is
    ``bot``, ``layer3.bot`` in c4, and every other name stays.

    The paper says where the blocks of its Non-Local baseline go, between the last two of c4; that
    the BoT blocks, and that in c5, go by the same rule is our reading.

    Args:
        resnet: a bottleneck ResNet of timm or torchvision, with or without weights.
        stages: ``("c4",)`` or ``("c4", "c5")`` in the paper.
        image_size: pixels (H, W) for which the position tables are made; others work too.
        heads: attention heads.
        position: see :func:`botvision.to_botnet`, like all that follows.
        content: with the term ``q k^T``.
        scale_position: scale the position logits by d^-0.5 too.
        table_resize: how other image sizes use the position tables.
        impl: attention implementation.

    Returns:
        The same module.

    Raises:
        ValueError: a stage that is not c4 or c5, has fewer than two bottleneck blocks or has such
            a block already.
    """
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    for stage in stages:
        blocks = _blocks(resnet, stage)
        # The stem's stride is 4; each rounding up composes to one.
        first: Any = [getattr(resnet, f"layer{n}")[0] for n in range(1, int(stage[1]))]
        reduction = 4 * math.prod(block.stride for block in first)
        block = _fresh(blocks[-1])
        block.conv2 = RelativeAttention2d(
            block.conv1.out_channels,
            (-(-height // reduction), -(-width // reduction)),
            num_heads=heads,
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

    Its name is ``layer3.nl``; every other name stays, and the ResNet starts by computing what it
    did.

    Args:
        resnet: a bottleneck ResNet of timm or torchvision, with or without weights.
        value: see :class:`NonLocal2d`.

    Returns:
        The same module.

    Raises:
        ValueError: c4 has fewer than two bottleneck blocks or has such a block already.
    """
    kernel: Any = _blocks(resnet, "c4")[-1].conv3
    block = NonLocal2d(kernel.out_channels, value=value)
    _insert(resnet, "c4", "nl", block.to(kernel.weight.device, kernel.weight.dtype))
    return resnet


class NonLocal2d(nn.Module):
    """Non-Local block (Wang et al., 2018), (B, channels, H, W) -> the same.

    Their embedded Gaussian, ``x + norm(z(softmax(t(x) p(x)^T) g(x)))``, of half the channels (the
    paper's section 5), whose logits have no scale; ``t``, ``p`` and ``g`` are their theta, phi and
    g. The names are those of timm's ``NonLocalAttn``, so that its weights load. Their released
    code can also scale the logits and pool the keys: neither is in the formula, nor here.

    The paper lists a value projection among what the Non-Local block lacks. Without one, each cell
    takes the other cells' channels as they are, so ``z`` maps all channels to all: our reading.

    The N x N logits are float32 also in half precision. PyTorch's fused attention keeps none of
    them, but its kernel for CPUs wants values as wide as the keys: without a value projection, and
    for small maps in training, they are kept (64 MiB for 64x64 cells).
    """

    def __init__(self, channels: int, *, value: bool = False) -> None:
        """Make the block for ``channels`` in and out; ``value``: with the value projection g."""
        super().__init__()
        half = channels // 2
        self.t = nn.Conv2d(channels, half, kernel_size=1)
        self.p = nn.Conv2d(channels, half, kernel_size=1)
        self.g = nn.Conv2d(channels, half, kernel_size=1) if value else nn.Identity()
        self.z = nn.Conv2d(half if value else channels, channels, kernel_size=1)
        self.norm = nn.BatchNorm2d(channels)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw weights from N(0, 0.01^2), as their code does; the block starts as the identity."""
        for layer in (self.t, self.p, self.g, self.z):
            if isinstance(layer, nn.Conv2d):
                nn.init.normal_(layer.weight, std=0.01)
                nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
        nn.init.zeros_(self.norm.weight)

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, H, W) -> (B, channels, H, W)."""
        # One head: (B, C, H, W) -> (B, 1, N, C), of which a channels-last map needs no copy.
        q, k, v = (
            layer(x).flatten(2).mT.unsqueeze(1).contiguous() for layer in (self.t, self.p, self.g)
        )
        with no_autocast(x.device):
            out = attend(q, k, v.to(q.dtype), None, None, scale=1.0, impl="auto")
        out = out.squeeze(1).mT.reshape(x.shape[0], -1, *x.shape[-2:])
        projected: Tensor = self.norm(self.z(out))
        return x + projected


def new_parts(model: nn.Module) -> list[str]:
    """Names of the modules that an ImageNet ResNet does not have.

    They are inserted blocks, and a c5 of bottleneck blocks behind a c4 of basic ones
    (``botnet18``, ``botnet34``). Attention in place of a convolution is not among them.
    """
    names = [name for name, _ in model.named_modules() if re.fullmatch(r"layer\d\.(bot|nl)", name)]
    c4, c5 = (getattr(model, name, None) for name in ("layer3", "layer4"))
    if isinstance(c4, nn.Sequential) and isinstance(c5, nn.Sequential):
        basic, bottleneck = timm.models.resnet.BasicBlock, timm.models.resnet.Bottleneck
        if isinstance(c4[-1], basic) and isinstance(c5[-1], bottleneck):
            names.append("layer4")
    return names


def _blocks(resnet: nn.Module, stage: str) -> nn.Sequential:
    """The blocks of c4 or c5, ``layer3`` or ``layer4``."""
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
            "block between; give a bottleneck ResNet of timm or torchvision, such as resnet50"
        )
    return blocks


def _fresh(block: nn.Module) -> Any:
    """A block like this one, drawn as both ResNets draw theirs and computing the identity."""
    fresh: Any = copy.deepcopy(block)
    for module in fresh.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    nn.init.zeros_(fresh.bn3.weight)
    return fresh


def _insert(resnet: nn.Module, stage: str, name: str, block: nn.Module) -> None:
    """Put the block between the last two of the stage, whose own names stay as they are."""
    blocks = _blocks(resnet, stage)
    *before, last = blocks.named_children()
    if name in dict(before):
        raise ValueError(f"{stage} has a block {name!r} already")
    longer = nn.Sequential(OrderedDict([*before, (name, block.train(blocks.training)), last]))
    longer.training = blocks.training
    setattr(resnet, f"layer{int(stage[1]) - 1}", longer)
