"""An ImageNet ResNet's weights into everything but what is new (paper, section 4.1)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import timm
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
            f"weights of {self.file}: {len(self.loaded)} tensors loaded{resized}\n"
            f"  new, drawn at random: {', '.join(self.new) or 'none'}\n"
            f"  in the file, not used: {', '.join(self.ignored) or 'none'}"
        )


def weights_file(source: str | Path) -> Path:
    """The file that ``source`` names: itself, or the ``best.safetensors`` of a run folder."""
    path = Path(source)
    return path / "best.safetensors" if path.is_dir() else path


def read_weights(source: str | Path) -> dict[str, Tensor]:
    """The tensors of a file, a run folder, or a model that timm has weights of, by name.

    Args:
        source: a ``.safetensors`` or ``weights_only`` PyTorch file, a run folder, or a name of
            timm such as ``resnet50.a1_in1k``, whose weights come from timm's cache or the network.

    Raises:
        UserError: there is no such thing, it cannot be fetched or read, or it holds no tensors.
    """
    path = weights_file(source)
    if not path.is_file():
        if timm.is_model(str(source).split(".")[0]):
            return _fetched(str(source))
        raise UserError(f"{path}: no such weights file, and no model of timm is named so")
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


def _fetched(name: str) -> dict[str, Tensor]:
    """The weights that timm has of a model."""
    try:
        model: nn.Module = timm.create_model(name, pretrained=True)
    except Exception as error:  # whatever the network and the hub may raise
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(
            f"--weights {name}: timm could not fetch its weights ({reason}); give a file, or a "
            "name of timm.list_pretrained()"
        ) from error
    return model.state_dict()


def load_weights(model: nn.Module, source: str | Path) -> WeightsReport:
    """Load a ResNet of timm or torchvision into a backbone with the same body.

    The attention stays as it was drawn where the file has none, and so do a classifier of another
    size, an inserted block, and the c5 of ``botnet18`` and ``botnet34``, of which a ResNet-18 or 34
    has nothing. Position tables for another image size are resized by the layer's
    ``table_resize``. Every other tensor of the model must be in the file with its shape.

    Args:
        model: a BoTNet or ResNet, whole or ``features_only``.
        source: what :func:`read_weights` takes.

    Raises:
        UserError: no such weights, or those of another architecture; the model is unchanged.
    """
    return load_tensors(model, read_weights(source), weights_file(source))


def load_tensors(
    model: nn.Module, tensors: dict[str, Tensor], file: Path, *, may_be_new: Sequence[str] = ()
) -> WeightsReport:
    """Load what :func:`read_weights` read from ``file``; see :func:`load_weights`.

    ``may_be_new`` names further modules that the file may lack.
    """
    attention = tuple(
        f"{name}." for name, m in model.named_modules() if isinstance(m, RelativeAttention2d)
    )
    own = model.state_dict()
    resized = _resize_tables(model, tensors)
    fits = {n: tensors[n] for n in own if n in tensors and tensors[n].shape == own[n].shape}
    head = getattr(model, "default_cfg", {}).get("classifier", "fc")
    parts = tuple(f"{name}." for name in (*new_parts(model), head, *may_be_new))
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
            f"{file}: not the weights of this architecture: {name} {tuple(own[name].shape)} "
            f"{found} ({len(missing)} such tensors); give a ResNet of the same depth and width"
        )
    model.load_state_dict(fits, strict=False)
    ignored = [n for n in tensors if n not in fits and not n.endswith("num_batches_tracked")]
    return WeightsReport(file, list(fits), [n for n in resized if n in fits], new, ignored)


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
