"""Weights of an ImageNet ResNet, for all parts of a model that are not new (paper, section 4.1)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors import safe_open
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
from botvision.models.structure import new_parts
from botvision.text import printable


@dataclass(frozen=True)
class WeightsReport:
    """Report of what was loaded from a weights file.

    Args:
        file: the file.
        loaded: names of the model's tensors that were loaded.
        resized: names of the loaded tensors that were resized, which are position tables.
        new: names of the model's tensors that the file does not have.
        ignored: names of the file's tensors that the model does not use.
    """

    file: Path
    loaded: list[str]
    resized: list[str]
    new: list[str]
    ignored: list[str]

    def __str__(self) -> str:
        resized = f", {len(self.resized)} position tables resized" if self.resized else ""
        return (
            f"weights of {printable(self.file)}: {len(self.loaded)} tensors loaded{resized}\n"
            f"  new, drawn at random: {', '.join(map(printable, self.new)) or 'none'}\n"
            f"  in the file, not used: {', '.join(map(printable, self.ignored)) or 'none'}"
        )


def weights_file(source: str | Path) -> Path:
    """Return the file that ``source`` stands for: itself, or a run's ``best.safetensors``."""
    path = Path(source)
    return path / "best.safetensors" if path.is_dir() else path


def read_card(file: Path) -> Any:
    """Return the specification of a model in the metadata of a safetensors file.

    Args:
        file: the safetensors file.

    Returns:
        The JSON value, unchecked. None if the file contains no specification.

    Raises:
        UserError: it is not a safetensors file, or the specification is not JSON.
    """
    try:
        with safe_open(file, framework="pt") as opened:
            text = (opened.metadata() or {}).get("botvision")
    except Exception as error:  # whatever a damaged file may raise
        raise UserError(
            f"{file}: not a readable safetensors file, it is damaged or of another format; get it "
            "again, or give a run's best.safetensors"
        ) from error
    try:
        return None if text is None else json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{file}: the specification of the model is damaged; get the file again"
        ) from error


def read_weights(source: str | Path) -> dict[str, Tensor]:
    """Read the tensors of a file, a run or a pretrained model of timm.

    Args:
        source: a ``.safetensors`` or ``weights_only`` PyTorch file, a run folder, or a timm name
            such as ``resnet50.a1_in1k``, whose weights come from timm's cache or the network.

    Returns:
        Tensors by name, on the CPU.

    Raises:
        UserError: there is no such file or model, it cannot be fetched or read, or it contains no
            tensors.
    """
    path = weights_file(source)
    if not path.is_file():
        if timm.is_model(str(source).split(".")[0]):
            return _fetched(str(source))
        raise UserError(f"{path}: no such weights file, and timm has no model of this name")
    try:
        if path.suffix == ".safetensors":
            state: object = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except PermissionError as error:
        raise UserError(f"{path}: may not be read; change its permissions") from error
    except Exception as error:  # whatever a damaged file may raise
        raise UserError(
            f"{path}: not a readable safetensors or weights_only PyTorch file, it is damaged or "
            "of another format; get it again, or save only model.state_dict()"
        ) from error
    for key in ("state_dict", "model", "model_state"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict):
        raise UserError(f"{path}: contains no state dict; save model.state_dict()")
    tensors = {str(k).removeprefix("module."): v for k, v in state.items() if isinstance(v, Tensor)}
    if not tensors:
        raise UserError(f"{path}: contains no tensors; save model.state_dict()")
    for name, tensor in tensors.items():
        if not _is_plain(tensor):
            raise UserError(
                f"{path}: {name} is not a plain tensor of real numbers; save model.state_dict()"
            )
    return tensors


def _is_plain(tensor: Tensor) -> bool:
    """Whether a tensor of a file is dense, real and stored whole."""
    if tensor.layout is not torch.strided or tensor.is_quantized or tensor.is_meta:
        return False
    whole = tensor.untyped_storage().nbytes() >= tensor.numel() * tensor.element_size()
    return whole and not tensor.is_complex()


def check_tensors(model: nn.Module, file: Path) -> None:
    """Compare the tensors in a safetensors file with a model's, without loading them.

    Args:
        model: the model, which may be on the meta device.
        file: the safetensors file.

    Raises:
        UserError: a name, a shape or the kind of number differs.
    """
    own = model.state_dict()
    with safe_open(file, framework="pt") as opened:
        names = set(opened.keys())
        for name in sorted(own.keys() | names):
            found = None
            if name not in names:
                found = "is missing"
            elif name not in own:
                found = "is not a part of the model"
            else:
                part = opened.get_slice(name)
                shape, dtype = tuple(part.get_shape()), str(part.get_dtype())
                floats = dtype in ("F64", "F32", "F16", "BF16")
                if shape != tuple(own[name].shape):
                    found = f"has the shape {shape} instead of {tuple(own[name].shape)}"
                elif floats != own[name].is_floating_point():
                    found = f"has the type {dtype}"
            if found:
                raise UserError(
                    f"{file}: the weights do not match the specification: {name} {found}; get the "
                    "file again, or pass the objects that the model was trained with"
                )


def check_finite(tensors: Mapping[str, Tensor], file: Path) -> None:
    """Raise UserError if a tensor of a weights file contains NaN or infinity."""
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise UserError(
                f"{file}: {name} contains NaN or infinity; get the file again, or use the weights "
                "of a run that did not diverge"
            )


def _fetched(name: str) -> dict[str, Tensor]:
    """Return timm's weights of a model."""
    try:
        model: nn.Module = timm.create_model(name, pretrained=True)
    except Exception as error:  # whatever the network and the hub may raise
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(
            f"timm could not fetch its weights ({reason}); give a file, or a name of "
            "timm.list_pretrained()",
            parameter="weights",
            value=name,
        ) from error
    return model.state_dict()


def load_weights(model: nn.Module, source: str | Path) -> WeightsReport:
    """Load the weights of a timm or torchvision ResNet, or of an earlier run, into a model.

    Attention keeps its initialization if the file has none. So do a classifier of another size,
    and the parts that an ImageNet ResNet does not have (``botvision.models.new_parts``).
    Position tables for another image size are resized by the layer's ``table_resize``. All other
    tensors of the model must be in the file with the same shape.

    Args:
        model: a BoTNet or ResNet, whole or ``features_only``.
        source: see ``read_weights``.

    Returns:
        A report of what was loaded.

    Raises:
        UserError: there are no such weights, or they belong to another architecture. The model is
            then unchanged.
    """
    return load_tensors(model, read_weights(source), weights_file(source))


def load_tensors(
    model: nn.Module, tensors: dict[str, Tensor], file: Path, *, may_be_new: Sequence[str] = ()
) -> WeightsReport:
    """Load tensors into a model, as ``load_weights`` does.

    Args:
        model: any module that contains a BoTNet or ResNet.
        tensors: result of ``read_weights``, whose position tables are resized in place.
        file: file of the tensors, for messages.
        may_be_new: names of further modules that the file may lack.

    Returns:
        A report of what was loaded.

    Raises:
        UserError: the weights belong to another architecture. The model is then unchanged.
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
            # All or nothing: in c5, batch norms of a basic block have the names and shapes of ours.
            fits = {n: t for n, t in fits.items() if not n.startswith(part)}
    new = [n for n in own if n not in fits and not n.endswith("num_batches_tracked")]
    missing = [n for n in new if not n.startswith((*attention, *parts))]
    if missing:
        name = missing[0]
        found = f"is {tuple(tensors[name].shape)} there" if name in tensors else "is not there"
        raise UserError(
            f"{file}: not the weights of this architecture: {name} {tuple(own[name].shape)} "
            f"{found} ({len(missing)} such tensors); use a ResNet of the same depth and width"
        )
    check_finite(fits, file)
    model.load_state_dict(fits, strict=False)
    ignored = [n for n in tensors if n not in fits and not n.endswith("num_batches_tracked")]
    return WeightsReport(file, list(fits), [n for n in resized if n in fits], new, ignored)


def _resize_tables(model: nn.Module, tensors: dict[str, Tensor]) -> list[str]:
    """Resize the position tables in ``tensors`` to the model's; return their names."""
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
