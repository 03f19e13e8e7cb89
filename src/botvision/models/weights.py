"""An ImageNet ResNet's weights into everything but what is new (paper, section 4.1)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from botvision.attention import RelativeAttention2d
from botvision.attention.position import (
    AbsolutePosition,
    RelativePosition,
    resize_absolute,
    resize_relative,
)
from botvision.errors import UserError
from botvision.models.ablations import new_parts


@dataclass(frozen=True)
class WeightsReport:
    """What became of a weights file: names of the model's or the file's tensors."""

    file: Path
    loaded: list[str]
    resized: list[str]
    new: list[str]
    ignored: list[str]

    def __str__(self) -> str:
        """Short lines: loaded, resized if any were, new and ignored."""
        resized = f", {len(self.resized)} position tables resized" if self.resized else ""
        return (
            f"weights of {self.file.name}: {len(self.loaded)} tensors loaded{resized}\n"
            f"  new, drawn at random: {', '.join(self.new) or 'none'}\n"
            f"  in the file, not used: {', '.join(self.ignored) or 'none'}"
        )


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a ``.safetensors`` or a ``weights_only`` PyTorch file, by name.

    Raises:
        UserError: the file is missing, is neither, or holds no tensors.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such weights file")
    try:
        if path.suffix == ".safetensors":
            state: object = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, OSError, RuntimeError, EOFError, ValueError, KeyError) as error:
        raise UserError(f"{path}: not a readable weights file ({error})".splitlines()[0]) from error
    except Exception as error:  # pickle.UnpicklingError and what a broken pickle may raise
        raise UserError(
            f"{path}: not a safetensors or weights_only PyTorch file; save model.state_dict() alone"
        ) from error
    for key in ("state_dict", "model", "model_state"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict):
        raise UserError(f"{path}: holds no state dict; save model.state_dict()")
    tensors = {k.removeprefix("module."): v for k, v in state.items() if isinstance(v, Tensor)}
    if not tensors:
        raise UserError(f"{path}: holds no tensors; save model.state_dict()")
    return tensors


def load_weights(model: nn.Module, path: str | Path) -> WeightsReport:
    """Load a ResNet of timm or torchvision into a backbone with the same body.

    The attention stays as it was drawn where the file has none, and so do a classifier of another
    size, an inserted block, and the c5 of ``botnet18`` and ``botnet34``, of which a ResNet-18 or 34
    has nothing. Position tables for another image size are resized by the layer's
    ``table_resize``. Every other tensor of the model must be in the file with its shape.

    Args:
        model: a BoTNet or ResNet, whole or ``features_only``.
        path: ``.safetensors``, or a PyTorch file that ``torch.load(weights_only=True)`` accepts.

    Raises:
        UserError: an unreadable file, or weights of another architecture; the model is unchanged.
    """
    path = Path(path)
    tensors = read_weights(path)
    attention = tuple(
        f"{name}." for name, m in model.named_modules() if isinstance(m, RelativeAttention2d)
    )
    own = model.state_dict()
    resized = _resize_tables(model, tensors)
    fits = {n: tensors[n] for n in own if n in tensors and tensors[n].shape == own[n].shape}
    head = getattr(model, "default_cfg", {}).get("classifier", "fc")
    parts = tuple(f"{name}." for name in (*new_parts(model), head))
    for part in parts:
        body = [n for n in own if n.startswith(part) and not n.startswith(attention)]
        if not all(n in fits or n.endswith("num_batches_tracked") for n in body):
            # All or nothing: in c5 a basic block has batch norms named and shaped as ours.
            fits = {n: t for n, t in fits.items() if not n.startswith(part)}
    new = [n for n in own if n not in fits and not n.endswith("num_batches_tracked")]
    missing = [n for n in new if not n.startswith((*attention, *parts))]
    if missing:
        name = missing[0]
        found = f"is {tuple(tensors[name].shape)} there" if name in tensors else "is not there"
        raise UserError(
            f"{path}: not the weights of this architecture: {name} {tuple(own[name].shape)} "
            f"{found} ({len(missing)} such tensors); give a ResNet of the same depth and width"
        )
    model.load_state_dict(fits, strict=False)
    ignored = [n for n in tensors if n not in fits and not n.endswith("num_batches_tracked")]
    return WeightsReport(path, list(fits), [n for n in resized if n in fits], new, ignored)


def _resize_tables(model: nn.Module, tensors: dict[str, Tensor]) -> list[str]:
    """Fit the position tables among ``tensors`` to the model's; returns the names of those."""
    resized = []
    for prefix, module in model.named_modules():
        if not isinstance(module, RelativePosition | AbsolutePosition):
            continue
        for name, own in module.named_parameters(prefix):
            table = tensors.get(name)
            if table is None or table.shape == own.shape or table.shape[1:] != own.shape[1:]:
                continue
            if isinstance(module, RelativePosition):
                length = (own.shape[0] + 1) // 2
                tensors[name] = resize_relative(table, length, module.table_resize)
            else:
                tensors[name] = resize_absolute(table, own.shape[0], module.table_resize)
            resized.append(name)
    return resized
