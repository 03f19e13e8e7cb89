"""A feature pyramid p2 to p6 on any timm model that has features at strides 4 to 32."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

import timm
from timm.layers.norm_act import freeze_batch_norm_2d
from timm.models import PretrainedCfg
from torch import Tensor, nn
from torchvision.ops.feature_pyramid_network import FeaturePyramidNetwork, LastLevelMaxPool

from botvision.config import Norm
from botvision.errors import UserError
from botvision.models import create_model, has_position_tables, new_parts


class PyramidBackbone(nn.Module):
    """``body`` (c2 to c5) and ``fpn`` (p2 to p6), as in Detectron (paper, section 4).

    The pyramid's convolutions have batch norm, as in the paper's code base. With frozen batch norm
    they have none, because a new layer has no statistics worth freezing.

    Args:
        name: a model of botvision or timm.
        image_size: side of the square input, pixels.
        channels: channels of every pyramid level.
        norm: ``"plain"`` batch norm; ``"sync"``, which the trainer synchronizes over processes; or
            ``"frozen"``, where statistics and affine parameters stay as loaded, except in blocks
            that an ImageNet ResNet does not have.
        model_args: further arguments of the model.

    Raises:
        UserError: the model has no features of strides 4 to 32 in NCHW layout, or does not accept
            an argument.
    """

    def __init__(
        self,
        name: str,
        image_size: int,
        *,
        channels: int,
        norm: Norm,
        model_args: Mapping[str, Any],
    ) -> None:
        super().__init__()
        if has_position_tables(name):
            # An object covers the same number of cells on every canvas, so distances stay the same.
            model_args = {"table_resize": "slice", **model_args}
        try:
            body: Any = create_model(
                name,
                image_size=image_size,
                features_only=True,
                out_indices=(-4, -3, -2, -1),
                **model_args,
            )
        except TypeError as error:
            raise UserError(
                f"{name} does not accept {model_args} ({error})", parameter="model_args"
            ) from error
        except (RuntimeError, AssertionError, IndexError) as error:
            raise UserError(
                f"cannot be built with a feature pyramid of four levels ({error}); "
                "give a convolutional or hierarchical model such as resnet50",
                parameter="model",
                value=name,
            ) from error
        strides = body.feature_info.reduction()
        if strides[0] != 4 or getattr(body, "output_fmt", "NCHW") != "NCHW":
            raise UserError(
                f"must return NCHW features from stride 4 on, but its strides are {strides}; "
                "give a convolutional model such as resnet50",
                parameter="model",
                value=name,
            )
        if norm == "frozen":
            # Parts that an ImageNet ResNet lacks stay trainable: their zero scales would stay zero.
            new = {name: copy.deepcopy(body.get_submodule(name)) for name in new_parts(body)}
            body = freeze_batch_norm_2d(body)  # type: ignore[no-untyped-call]
            for name, part in new.items():
                body.set_submodule(name, part)
        self.body = body
        norm_layer: Callable[..., nn.Module] | None = None if norm == "frozen" else nn.BatchNorm2d
        self.fpn = FeaturePyramidNetwork(
            body.feature_info.channels(),
            channels,
            extra_blocks=LastLevelMaxPool(),
            norm_layer=norm_layer,
        )
        self.strides: list[int] = strides
        self.out_channels = channels
        cfg = timm.get_pretrained_cfg(name) or PretrainedCfg()
        self.mean: tuple[float, ...] = cfg.mean
        self.std: tuple[float, ...] = cfg.std

    def first_stages(self, count: int) -> list[nn.Module]:
        """Return the modules of the body's first ``count`` stages: the stem, c2, c3, c4, c5.

        Raises:
            UserError: ``count`` is not within 0 to 5, or the body is not a sequence of stages.
        """
        ends = [name.replace(".", "_") for name in self.body.feature_info.module_name()]
        children = dict(self.body.named_children())
        if not 0 <= count <= 5 or not children.keys() >= set(ends):
            raise UserError(
                "give 0 to 5 (the stem, c2, c3, c4, c5), with a `model` that is a sequence of "
                "stages, such as resnet50 or botnet50",
                parameter="freeze_stages",
                value=count,
            )
        names = list(children)
        # The stem is everything before c2.
        stop = names.index(ends[0]) if count == 1 else names.index(ends[count - 2]) + 1
        return list(children.values())[:stop] if count else []

    def forward(self, x: Tensor) -> OrderedDict[str, Tensor]:
        """Return the levels "0" to "3" (p2 to p5) and "pool" (p6) of images (B, 3, S, S)."""
        features = OrderedDict((str(i), f) for i, f in enumerate(self.body(x)))
        levels: OrderedDict[str, Tensor] = self.fpn(features)
        return levels
