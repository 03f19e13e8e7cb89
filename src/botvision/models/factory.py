"""Models by name."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Mapping
from typing import Any

import timm
import torch
from torch import nn

from botvision.errors import UserError
from botvision.models.botnet import has_position_tables, keyword_options


def create_model(
    name: str,
    *,
    pretrained: bool = False,
    num_classes: int = 1000,
    image_size: int | tuple[int, int] | None = None,
    **kw: Any,
) -> nn.Module:
    """Create a model of the paper or of timm.

    Args:
        name: one of ``list_models``, or a timm name such as ``"resnet50"``.
        pretrained: whether to fetch timm's weights (the paper's models have none published).
        num_classes: outputs of the classifier.
        image_size: height and width in pixels, or one number for both, for which position tables
            are made. Models without a fixed size ignore it.
        **kw: arguments of the model: timm's ``features_only=True``, and for the paper's models the
            options of timm's ``ResNet`` and of ``to_botnet``, ``insert_bot`` or
            ``insert_non_local``.

    Returns:
        The model, in training mode.

    Raises:
        UserError: there is no such model, it has no weights, or a model of the paper rejects an
            option.
    """
    architecture = name.split(".")[0]
    if not timm.is_model(architecture):
        close = difflib.get_close_matches(architecture, timm.list_models(), 3)
        hint = f"did you mean {', '.join(close)}?" if close else "see botvision.list_models()"
        raise UserError(f"no model is named {name!r}; {hint}")
    try:
        pretrained_cfg = timm.get_pretrained_cfg(name)
    except RuntimeError as error:
        tags = ", ".join(timm.list_pretrained(f"{architecture}.*")[:5]) or "none"
        raise UserError(
            f"timm has no weights named {name}; of {architecture} it has {tags}"
        ) from error
    fixed_size = pretrained_cfg is not None and pretrained_cfg.fixed_input_size
    if image_size is not None and (has_position_tables(name) or fixed_size):
        kw["img_size"] = image_size
    model: nn.Module = timm.create_model(name, pretrained=pretrained, num_classes=num_classes, **kw)
    return model


def check_model_args(name: str, model_args: Mapping[str, Any]) -> None:
    """Reject arguments that the architecture's constructor does not accept.

    Model arguments come from configuration and weights files of others, and ``timm.create_model``
    also accepts arguments that open files and connections.

    Raises:
        UserError: there is no such model, or it does not accept an argument.
    """
    if not model_args:
        return
    with torch.device("meta"):
        network = type(create_model(name))
    known = set().union(*(_arguments(base) for base in network.__mro__))
    known -= inspect.signature(timm.create_model).parameters.keys()
    for argument in model_args:
        if argument not in known:
            close = difflib.get_close_matches(argument, known, 1)
            hint = (
                f"did you mean {close[0]!r}?" if close else f"it takes {', '.join(sorted(known))}"
            )
            raise UserError(f"{name} does not accept {argument!r}; {hint}", parameter="model_args")


def _arguments(network: type) -> set[str]:
    """Return the arguments that a class itself adds to those of its bases."""
    arguments: set[str] = set()
    if "__init__" in vars(network):
        arguments |= inspect.signature(vars(network)["__init__"]).parameters.keys()
    if "surgery" in vars(network):
        arguments |= keyword_options(vars(network)["surgery"].__func__)
    return arguments
