"""The paper's named models, registered with timm."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, ClassVar

from timm.layers.squeeze_excite import SEModule
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.resnet import BasicBlock, Bottleneck, ResNet
from torch import nn

from botvision.attention import RelativeAttention2d
from botvision.errors import UserError
from botvision.models.ablations import Stage, insert_bot, insert_non_local
from botvision.models.published import PUBLISHED
from botvision.models.surgery import to_botnet


def keyword_options(function: Callable[..., Any]) -> set[str]:
    """Return the names of the keyword-only parameters."""
    parameters = inspect.signature(function).parameters.values()
    return {parameter.name for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY}


class _PositionNet(ResNet):
    """timm's ResNet with position tables, made for an image size."""

    position_tables: ClassVar[bool] = True

    def no_weight_decay(self) -> set[str]:
        """Return the names of the position tables, as timm's optimizers expect."""
        layers = [(n, m) for n, m in self.named_modules() if isinstance(m, RelativeAttention2d)]
        return {f"{name}.{table}" for name, layer in layers for table in layer.no_weight_decay()}


class BotNet(_PositionNet):
    """timm's ResNet after ``to_botnet``, with the options of both.

    The last batch norm of each block starts at zero, as in the paper.

    Args:
        *args: arguments of timm's ``ResNet``.
        img_size: ``image_size`` of ``to_botnet``.
        se_in_bot: whether attention blocks keep the squeeze and excitation of the ResNet's blocks.
            The text of the paper's first version has it in the ResNet's own blocks only, but the
            published parameters count it in every block.
        **kwargs: keyword arguments of timm's ``ResNet`` and of ``to_botnet``. With
            ``output_stride=16`` the last stage has stride 1.
    """

    surgery = staticmethod(to_botnet)

    def __init__(
        self,
        *args: Any,
        img_size: int | tuple[int, int] = 224,
        se_in_bot: bool = True,
        **kwargs: Any,
    ) -> None:
        options = {name: kwargs.pop(name) for name in keyword_options(to_botnet) & kwargs.keys()}
        super().__init__(*args, **kwargs)
        to_botnet(self, img_size, **options)
        if not se_in_bot:
            blocks: Any = self.layer4
            for block in blocks:
                if isinstance(block.conv2, RelativeAttention2d):
                    block.se = None


class ShallowBotNet(BotNet):
    """BoTNet on a ResNet-18 or 34, whose last stage of basic blocks becomes BoT bottlenecks."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        last_stage: Any = self.layer4
        last_stage.from_scratch = True


class InsertedBotNet(_PositionNet):
    """timm's ResNet after ``insert_bot``, with the options of both.

    Args:
        *args: arguments of timm's ``ResNet``.
        stages: see ``insert_bot``.
        img_size: ``image_size`` of ``insert_bot``.
        **kwargs: keyword arguments of timm's ``ResNet`` and of ``insert_bot``.
    """

    surgery = staticmethod(insert_bot)

    def __init__(
        self,
        *args: Any,
        stages: Sequence[Stage] = ("c4",),
        img_size: int | tuple[int, int] = 224,
        **kwargs: Any,
    ) -> None:
        options = {name: kwargs.pop(name) for name in keyword_options(insert_bot) & kwargs.keys()}
        super().__init__(*args, **kwargs)
        insert_bot(self, stages, img_size, **options)


class NonLocalResNet(ResNet):
    """timm's ResNet after ``insert_non_local``, with the options of both.

    Args:
        *args: arguments of timm's ``ResNet``.
        value: see ``botvision.models.ablations.NonLocal2d``.
        **kwargs: keyword arguments of timm's ``ResNet``.
    """

    def __init__(self, *args: Any, value: bool = False, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        insert_non_local(self, value=value)


_NETWORKS: dict[str, type[ResNet]] = {
    **dict.fromkeys(("botnet18", "botnet34"), ShallowBotNet),
    **dict.fromkeys(("botnet50", "botnet101", "botnet152", "botnet200", "botnet50_s1"), BotNet),
    **dict.fromkeys(("botnet_t3", "botnet_t4", "botnet_t5", "botnet_t6"), BotNet),
    **dict.fromkeys(("botnet_t7_320", "botnet_t7"), BotNet),
    **dict.fromkeys(("resnet50_bot_c4", "resnet50_bot_c4_c5"), InsertedBotNet),
    **dict.fromkeys(("resnet50_nl_c4", "resnet50_nl_c4_value"), NonLocalResNet),
    **dict.fromkeys(("senet50", "senet101", "senet152", "senet350"), ResNet),
}

# Input sizes of section 4.8; all other models are trained at 224 px.
_IMAGE_SIZES = {name: row.image_size for name, row in PUBLISHED.items()}

default_cfgs = generate_default_cfgs(
    {
        name: {
            "num_classes": 1000,
            "input_size": (3, _IMAGE_SIZES.get(name, 224), _IMAGE_SIZES.get(name, 224)),
            "pool_size": (7, 7),
            "crop_pct": 0.875,
            "interpolation": "bicubic",
            "mean": (0.485, 0.456, 0.406),
            "std": (0.229, 0.224, 0.225),
            "first_conv": "conv1",
            "classifier": "fc",
            "paper_ids": "arXiv:2101.11605",
        }
        for name in _NETWORKS
    }
)

# Section 4.8: SiLU, and squeeze and excitation of 1/16 of a block's output channels by two layers
# without bias, which reproduces the published parameters. No source names the activation between
# the two layers; it is the ReLU of the SENet paper.
_SCALED = {
    "block": Bottleneck,
    "act_layer": nn.SiLU,
    "block_args": {"attn_layer": partial(SEModule, rd_ratio=1 / 16, bias=False)},
}


def _create(
    name: str, pretrained: bool, paper_args: dict[str, Any], kwargs: dict[str, Any]
) -> nn.Module:
    if pretrained:
        raise UserError(
            f"no pretrained weights of {name} have been published; start from an ImageNet ResNet, "
            "as the paper does: set `weights`, or call botvision.load_weights(model, FILE)"
        )
    model_args = {"block": Bottleneck, **paper_args, **kwargs}
    output_strides, reason = [8, 16, 32], ""
    if has_position_tables(name):
        model_args.setdefault("img_size", _IMAGE_SIZES.get(name, 224))
        output_strides, reason = [16, 32], ", since attention has no dilation"
    output_stride = model_args.get("output_stride", 32)
    if output_stride not in output_strides:
        listed = " or ".join(map(str, output_strides))
        raise UserError(f"{name}: output_stride is {listed}, not {output_stride}{reason}")
    try:
        model: nn.Module = build_model_with_cfg(_NETWORKS[name], name, pretrained, **model_args)
    except ValueError as error:
        raise UserError(f"{name}: {error}") from error
    return model


# ResNet-18 and 34 in the paper's first version: basic blocks, with BoT bottlenecks in c5.
_SHALLOW = {"block": (BasicBlock, BasicBlock, BasicBlock, Bottleneck)}


@register_model
def botnet18(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ResNet-18 with BoT bottleneck blocks, 256 to 2048 channels, in c5 (paper, first version).

    No source of its published results was available.

    Returns:
        The model with random weights, in training mode.
    """
    return _create("botnet18", pretrained, {**_SHALLOW, "layers": (2, 2, 2, 2)}, kwargs)


@register_model
def botnet34(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ResNet-34 with BoT bottleneck blocks in c5, as ``botnet18``."""
    return _create("botnet34", pretrained, {**_SHALLOW, "layers": (3, 4, 6, 3)}, kwargs)


@register_model
def botnet50(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """BoTNet-50 (paper, Table 1): 20.852 M parameters at 224 px."""
    return _create("botnet50", pretrained, {"layers": (3, 4, 6, 3)}, kwargs)


@register_model
def botnet101(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """BoTNet-101 (paper, Table 5)."""
    return _create("botnet101", pretrained, {"layers": (3, 4, 23, 3)}, kwargs)


@register_model
def botnet152(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """BoTNet-152 (paper, Tables 5 and 8)."""
    return _create("botnet152", pretrained, {"layers": (3, 8, 36, 3)}, kwargs)


@register_model
def botnet200(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """BoTNet-200 (paper, Table 8), on the code base's ResNet-200 of 3, 24, 36 and 3 blocks."""
    return _create("botnet200", pretrained, {"layers": (3, 24, 36, 3)}, kwargs)


@register_model
def botnet50_s1(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """BoTNet-S1-50 (paper, section 4.7.1): c5 at stride 1, 20.859 M parameters at 224 px."""
    return _create("botnet50_s1", pretrained, {"layers": (3, 4, 6, 3), "stride": 1}, kwargs)


def _botnet_t(
    name: str, pretrained: bool, layers: tuple[int, ...], kwargs: dict[str, Any]
) -> nn.Module:
    return _create(name, pretrained, {**_SCALED, "layers": layers, "stride": 1}, kwargs)


@register_model
def botnet_t3(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """BoTNet-T3 (paper, section 4.8), BoTNet-S1-59 at 224 px."""
    return _botnet_t("botnet_t3", pretrained, (3, 4, 6, 6), kwargs)


@register_model
def botnet_t4(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """BoTNet-T4 (paper, section 4.8), BoTNet-S1-110 at 224 px."""
    return _botnet_t("botnet_t4", pretrained, (3, 4, 23, 6), kwargs)


@register_model
def botnet_t5(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """BoTNet-T5 (paper, section 4.8), BoTNet-S1-128 at 256 px."""
    return _botnet_t("botnet_t5", pretrained, (3, 4, 23, 12), kwargs)


@register_model
def botnet_t6(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """BoTNet-T6 (paper, section 4.8), BoTNet-S1-77 at 320 px."""
    return _botnet_t("botnet_t6", pretrained, (3, 4, 6, 12), kwargs)


@register_model
def botnet_t7_320(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """BoTNet-S1-128 at 320 px, the T7 behind the 2.33x of the paper's first version."""
    return _botnet_t("botnet_t7_320", pretrained, (3, 4, 23, 12), kwargs)


@register_model
def botnet_t7(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """BoTNet-T7 (paper, section 4.8), BoTNet-S1-128 at 384 px: 84.7 % on ImageNet."""
    return _botnet_t("botnet_t7", pretrained, (3, 4, 23, 12), kwargs)


@register_model
def resnet50_bot_c4(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ResNet-50 and one BoT block inserted into c4 (paper, Table 7).

    43.7 box and 38.9 mask AP on COCO (ResNet-50: 42.1 and 37.7), 36 epochs at 1024 px with jitter
    [0.8, 1.25].

    Returns:
        The model with random weights, in training mode.
    """
    return _create("resnet50_bot_c4", pretrained, {"layers": (3, 4, 6, 3)}, kwargs)


@register_model
def resnet50_bot_c4_c5(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ResNet-50 and two BoT blocks, one inserted into c4 and one into c5 (paper, Table 7).

    44.9 box and 39.7 mask AP in the setting of ``resnet50_bot_c4``.

    Returns:
        The model with random weights, in training mode.
    """
    paper_args = {"layers": (3, 4, 6, 3), "stages": ("c4", "c5")}
    return _create("resnet50_bot_c4_c5", pretrained, paper_args, kwargs)


@register_model
def resnet50_nl_c4(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ResNet-50 and one Non-Local block inserted into c4 (paper, Table 7).

    43.1 box and 38.4 mask AP in the setting of ``resnet50_bot_c4``.

    Returns:
        The model with random weights, in training mode.
    """
    return _create("resnet50_nl_c4", pretrained, {"layers": (3, 4, 6, 3)}, kwargs)


@register_model
def resnet50_nl_c4_value(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ResNet-50 and one Non-Local block with a value projection in c4 (paper, first version).

    43.3 box and 38.6 mask AP in the setting of ``resnet50_bot_c4``.

    Returns:
        The model with random weights, in training mode.
    """
    paper_args = {"layers": (3, 4, 6, 3), "value": True}
    return _create("resnet50_nl_c4_value", pretrained, paper_args, kwargs)


def _senet(
    name: str, pretrained: bool, layers: tuple[int, ...], kwargs: dict[str, Any]
) -> nn.Module:
    return _create(name, pretrained, {**_SCALED, "layers": layers}, kwargs)


@register_model
def senet50(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """SENet-50 as the paper trains it (section 4.8): SiLU, ratio 1/16."""
    return _senet("senet50", pretrained, (3, 4, 6, 3), kwargs)


@register_model
def senet101(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """SENet-101 as the paper trains it (section 4.8)."""
    return _senet("senet101", pretrained, (3, 4, 23, 3), kwargs)


@register_model
def senet152(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """SENet-152 as the paper trains it (section 4.8), at 288 px."""
    return _senet("senet152", pretrained, (3, 8, 36, 3), kwargs)


@register_model
def senet350(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """SENet-350 as the paper trains it (section 4.8), at 320 px: blocks of 3, 44, 66 and 3."""
    return _senet("senet350", pretrained, (3, 44, 66, 3), kwargs)


def list_models() -> list[str]:
    """Return the names of the paper's models; ``create_model`` also accepts timm's names."""
    return list(_NETWORKS)


def has_position_tables(name: str) -> bool:
    """Return whether a model has position tables, which are made for an image size."""
    network = _NETWORKS.get(name.split(".")[0])
    return bool(getattr(network, "position_tables", False))
