"""The paper's named models, registered with timm."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import timm
import torch
from timm.layers.squeeze_excite import SEModule
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.resnet import BasicBlock, Bottleneck, ResNet
from torch import nn

from botvision.attention import RelativeAttention2d
from botvision.errors import UserError
from botvision.models.ablations import Stage, insert_bot, insert_non_local
from botvision.models.published import PUBLISHED
from botvision.models.surgery import to_botnet


def _options(function: Callable[..., Any]) -> set[str]:
    parameters = _parameters(function).items()
    return {name for name, parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY}


class BotNet(ResNet):
    """timm's ResNet after :func:`to_botnet`; the options are those of both.

    ``se_in_bot=False`` takes the squeeze and excitation, where the ResNet has one, out of the
    attention blocks: the text of the paper's first version has it in the ResNet's blocks alone,
    while the published parameters count it in every block.
    """

    surgery = staticmethod(to_botnet)

    def __init__(
        self,
        *args: Any,
        img_size: int | tuple[int, int] = 224,
        se_in_bot: bool = True,
        **kwargs: Any,
    ) -> None:
        """Build the ResNet (last batch norm of each block zero, as in the paper) and operate."""
        options = {name: kwargs.pop(name) for name in _options(to_botnet) & kwargs.keys()}
        super().__init__(*args, **kwargs)
        to_botnet(self, img_size, **options)
        if not se_in_bot:
            blocks: Any = self.layer4
            for block in blocks:
                if isinstance(block.conv2, RelativeAttention2d):
                    block.se = None


class InsertedBotNet(ResNet):
    """timm's ResNet after :func:`insert_bot`; the options are those of both."""

    surgery = staticmethod(insert_bot)

    def __init__(
        self,
        *args: Any,
        stages: Sequence[Stage] = ("c4",),
        img_size: int | tuple[int, int] = 224,
        **kwargs: Any,
    ) -> None:
        """Build the ResNet and insert one block into each stage."""
        options = {name: kwargs.pop(name) for name in _options(insert_bot) & kwargs.keys()}
        super().__init__(*args, **kwargs)
        insert_bot(self, stages, img_size, **options)


class NonLocalResNet(ResNet):
    """timm's ResNet after :func:`insert_non_local`; the options are those of both."""

    def __init__(self, *args: Any, value: bool = False, **kwargs: Any) -> None:
        """Build the ResNet and insert the block."""
        super().__init__(*args, **kwargs)
        insert_non_local(self, value=value)


# Input sizes of section 4.8; all other models are trained at 224 px.
_IMAGE_SIZES = {name: row.image_size for name, row in PUBLISHED.items()}
# The models with position tables, made for an image size.
BOTNETS = (
    *("botnet18", "botnet34", "botnet50", "botnet101", "botnet152", "botnet200", "botnet50_s1"),
    *("botnet_t3", "botnet_t4", "botnet_t5", "botnet_t6", "botnet_t7_320", "botnet_t7"),
    *("resnet50_bot_c4", "resnet50_bot_c4_c5"),
)
_NON_LOCAL = ("resnet50_nl_c4", "resnet50_nl_c4_value")
_SENETS = ("senet50", "senet101", "senet152", "senet350")

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
        for name in BOTNETS + _NON_LOCAL + _SENETS
    }
)

# Section 4.8: SiLU, and squeeze and excitation of 1/16 of a block's output channels, two layers
# without bias: with these the published parameters come out. Between those two layers no source
# names the activation; it is the ReLU of the SENet paper.
_SCALED = {
    "block": Bottleneck,
    "act_layer": nn.SiLU,
    "block_args": {"attn_layer": partial(SEModule, rd_ratio=1 / 16, bias=False)},
}


def _create(
    name: str,
    pretrained: bool,
    paper_args: dict[str, Any],
    kwargs: dict[str, Any],
    network: type[ResNet] = BotNet,
) -> nn.Module:
    if pretrained:
        raise UserError(
            f"no pretrained weights of {name} have been published; start from an ImageNet ResNet, "
            "as the paper does: --weights FILE, or botvision.load_weights(model, FILE)"
        )
    model_args = {"block": Bottleneck, **paper_args, **kwargs}
    if name in BOTNETS:
        model_args.setdefault("img_size", _IMAGE_SIZES.get(name, 224))
    try:
        model: nn.Module = build_model_with_cfg(network, name, pretrained, **model_args)
    except ValueError as error:
        raise UserError(f"{name}: {error}") from error
    return model


# The ResNet-18 and 34 of the paper's first version: basic blocks, and in c5 BoT bottlenecks.
_SHALLOW = {"block": (BasicBlock, BasicBlock, BasicBlock, Bottleneck)}


@register_model
def botnet18(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ResNet-18 with BoT bottleneck blocks, 256 to 2048 channels, in c5 (paper, first version).

    Its results could not be had.
    """
    return _create("botnet18", pretrained, {**_SHALLOW, "layers": (2, 2, 2, 2)}, kwargs)


@register_model
def botnet34(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ResNet-34 with BoT bottleneck blocks in c5, as :func:`botnet18`."""
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
    """BoTNet-S1-128 at 320 px, the T7 of the 2.33x in the paper's first version."""
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
    """
    return _create("resnet50_bot_c4", pretrained, {"layers": (3, 4, 6, 3)}, kwargs, InsertedBotNet)


@register_model
def resnet50_bot_c4_c5(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ResNet-50 and two BoT blocks, one inserted into c4 and one into c5 (paper, Table 7).

    44.9 box and 39.7 mask AP in the setting of :func:`resnet50_bot_c4`.
    """
    paper_args = {"layers": (3, 4, 6, 3), "stages": ("c4", "c5")}
    return _create("resnet50_bot_c4_c5", pretrained, paper_args, kwargs, InsertedBotNet)


@register_model
def resnet50_nl_c4(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ResNet-50 and one Non-Local block inserted into c4 (paper, Table 7).

    43.1 box and 38.4 mask AP in the setting of :func:`resnet50_bot_c4`.
    """
    return _create("resnet50_nl_c4", pretrained, {"layers": (3, 4, 6, 3)}, kwargs, NonLocalResNet)


@register_model
def resnet50_nl_c4_value(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ResNet-50 and one Non-Local block with a value projection in c4 (paper, first version).

    43.3 box and 38.6 mask AP in the setting of :func:`resnet50_bot_c4`.
    """
    paper_args = {"layers": (3, 4, 6, 3), "value": True}
    return _create("resnet50_nl_c4_value", pretrained, paper_args, kwargs, NonLocalResNet)


def _senet(
    name: str, pretrained: bool, layers: tuple[int, ...], kwargs: dict[str, Any]
) -> nn.Module:
    return _create(name, pretrained, {**_SCALED, "layers": layers}, kwargs, ResNet)


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
    """Names of the paper's models; ``create_model`` also takes any name of timm."""
    return list(default_cfgs)


def check_model_args(name: str, model_args: Mapping[str, Any]) -> None:
    """Refuse what the architecture's constructor does not take.

    Model arguments come from configuration and weights files of others, while ``timm.create_model``
    also takes arguments that open files and connections.

    Raises:
        UserError: no such model, or an argument that it does not take.
    """
    if not model_args:
        return
    with torch.device("meta"):
        network = type(create_model(name))
    known = set().union(*(_arguments(base) for base in network.__mro__))
    known -= _parameters(timm.create_model).keys()
    for argument in model_args:
        if argument not in known:
            close = difflib.get_close_matches(argument, known, 1)
            hint = (
                f"did you mean {close[0]!r}?" if close else f"it takes {', '.join(sorted(known))}"
            )
            raise UserError(f"--model-args: {name} does not take {argument!r}; {hint}")


def _arguments(network: type) -> set[str]:
    surgery = vars(network).get("surgery")
    own = set(_parameters(vars(network)["__init__"])) if "__init__" in vars(network) else set()
    return own | (_options(surgery.__func__) if surgery is not None else set())


def _parameters(function: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(function).parameters


def create_model(
    name: str,
    *,
    pretrained: bool = False,
    num_classes: int = 1000,
    image_size: int | tuple[int, int] | None = None,
    **kw: Any,
) -> nn.Module:
    """Make a model of the paper or any of timm's.

    Args:
        name: one of :func:`list_models`, or a timm name such as ``"resnet50"``.
        pretrained: fetch timm's weights (the paper's models have none published).
        num_classes: outputs of the classifier.
        image_size: pixels, (H, W) or one number; what the position tables are made for. Models
            that take any size ignore it.
        **kw: passed on to the model: for the paper's models the options of :func:`to_botnet`,
            :func:`insert_bot` or :func:`insert_non_local` and of timm's ``ResNet``, and timm's
            ``features_only=True``.

    Raises:
        UserError: no such model, no weights for it, or one of the paper's models refuses an option.
    """
    architecture = name.split(".")[0]
    if not timm.is_model(architecture):
        close = difflib.get_close_matches(architecture, timm.list_models(), 3)
        hint = f"did you mean {', '.join(close)}?" if close else "see `botvision models`"
        raise UserError(f"no model is named {name!r}; {hint}")
    try:
        pretrained_cfg = timm.get_pretrained_cfg(name)
    except RuntimeError as error:
        tags = ", ".join(timm.list_pretrained(f"{architecture}.*")[:5]) or "none"
        raise UserError(
            f"no weights of {architecture} have that name: {name}; timm has {tags}"
        ) from error
    fixed_size = pretrained_cfg is not None and pretrained_cfg.fixed_input_size
    if image_size is not None and (architecture in BOTNETS or fixed_size):
        kw["img_size"] = image_size
    model: nn.Module = timm.create_model(name, pretrained=pretrained, num_classes=num_classes, **kw)
    return model
