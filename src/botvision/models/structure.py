"""Parts of a network, found by what its modules declare or contain.

Weight loading, optimizers, sharding and activation checkpointing all ask these functions.
"""

from __future__ import annotations

from torch import nn


def new_parts(model: nn.Module) -> list[str]:
    """Return the names of the modules that an ImageNet ResNet does not have.

    Such a module declares ``from_scratch = True``: an inserted block, or the last stage of
    ``botnet18`` and ``botnet34``. Attention in place of a convolution does not.
    """
    return [name for name, part in model.named_modules() if getattr(part, "from_scratch", False)]


def no_weight_decay(model: nn.Module) -> set[str]:
    """Return the names of the parameters that get no weight decay.

    They are those that the model or any of its submodules declares by timm's method
    ``no_weight_decay()``, such as position tables.
    """
    names: set[str] = set()
    for prefix, part in model.named_modules():
        if hasattr(part, "no_weight_decay"):
            names |= {f"{prefix}.{name}" if prefix else name for name in part.no_weight_decay()}
    return names


def stage_blocks(model: nn.Module) -> list[nn.Module]:
    """Return the residual blocks of a network, in order.

    They are the elements of its ``nn.Sequential`` stages that have submodules and parameters. Where
    such elements contain others (stages in a sequence of stages), the innermost are the blocks.
    """
    blocks: list[nn.Module] = []
    for child in model.children():
        inner = stage_blocks(child)
        composite = any(True for _ in child.children()) and any(True for _ in child.parameters())
        if inner:
            blocks += inner
        elif (
            composite and isinstance(model, nn.Sequential) and not isinstance(child, nn.Sequential)
        ):
            blocks.append(child)
    return blocks
