"""The paper's named models, registered with timm."""

from __future__ import annotations

import difflib
import inspect
from typing import Any

import timm
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.resnet import Bottleneck, ResNet
from torch import nn

from botvision.errors import UserError
from botvision.models.surgery import to_botnet

_SURGERY = {
    name
    for name, parameter in inspect.signature(to_botnet).parameters.items()
    if parameter.kind is parameter.KEYWORD_ONLY
}


class BotNet(ResNet):
    """timm's ResNet after :func:`to_botnet`; the options are those of both."""

    def __init__(self, *args: Any, img_size: int | tuple[int, int] = 224, **kwargs: Any) -> None:
        """Build the ResNet (last batch norm of each block zero, as in the paper) and operate."""
        surgery = {name: kwargs.pop(name) for name in _SURGERY & kwargs.keys()}
        super().__init__(*args, **kwargs)
        to_botnet(self, img_size, **surgery)


default_cfgs = generate_default_cfgs(
    {
        name: {
            "num_classes": 1000,
            "input_size": (3, 224, 224),
            "pool_size": (7, 7),
            "crop_pct": 0.875,
            "interpolation": "bicubic",
            "mean": (0.485, 0.456, 0.406),
            "std": (0.229, 0.224, 0.225),
            "first_conv": "conv1",
            "classifier": "fc",
            "paper_ids": "arXiv:2101.11605",
        }
        for name in ("botnet50", "botnet101", "botnet152", "botnet200", "botnet50_s1")
    }
)


def _create(
    name: str, pretrained: bool, paper_args: dict[str, Any], kwargs: dict[str, Any]
) -> nn.Module:
    if pretrained:
        raise UserError(
            f"no pretrained weights of {name} have been published; start from an ImageNet ResNet, "
            "as the paper does: --weights FILE, or botvision.load_weights(model, FILE)"
        )
    model_args = {"block": Bottleneck, **paper_args, **kwargs}
    model: nn.Module = build_model_with_cfg(BotNet, name, pretrained, **model_args)
    return model


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


def list_models() -> list[str]:
    """Names of the paper's models; ``create_model`` also takes any name of timm."""
    return list(default_cfgs)


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
        **kw: passed on to the model: for the paper's models the options of :func:`to_botnet` and
            of timm's ``ResNet``, and timm's ``features_only=True``.

    Raises:
        UserError: no such model, or no weights for it.
    """
    architecture = name.split(".")[0]
    if not timm.is_model(architecture):
        close = difflib.get_close_matches(architecture, timm.list_models(), 3)
        hint = f"did you mean {', '.join(close)}?" if close else "see `botvision models`"
        raise UserError(f"no model is named {name!r}; {hint}")
    pretrained_cfg = timm.get_pretrained_cfg(name)
    fixed_size = pretrained_cfg is not None and pretrained_cfg.fixed_input_size
    if image_size is not None and (architecture in default_cfgs or fixed_size):
        kw["img_size"] = image_size
    model: nn.Module = timm.create_model(name, pretrained=pretrained, num_classes=num_classes, **kw)
    return model
