"""Initial weights of a detector, from a backbone, an earlier run or torchvision's COCO weights."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import URLError

import torchvision
from torch import Tensor

from botvision.detection.detector import Detector
from botvision.errors import UserError
from botvision.models.weights import (
    WeightsReport,
    load_tensors,
    read_card,
    read_weights,
    weights_file,
)
from botvision.text import printable

# These weights were published for frozen batch norm that adds no epsilon to the variance
# (torchvision's `overwrite_eps`). The file with this name contains the same weights.
_NO_EPSILON = "rcnn_resnet50_fpn_coco"
_EPSILON = 1e-5

# torchvision has renamed these since it published its first weights.
_RENAMED: list[tuple[str, str | Callable[[re.Match[str]], str]]] = [
    (r"(backbone\.fpn\.(?:inner|layer)_blocks\.\d)\.(weight|bias)", r"\1.0.\2"),
    (r"(rpn\.head\.conv)\.(weight|bias)", r"\1.0.0.\2"),
    (
        r"(roi_heads\.mask_head)\.mask_fcn(\d)\.(weight|bias)",
        lambda m: f"{m[1]}.{int(m[2]) - 1}.0.{m[3]}",
    ),
]
# One row per class and for the background. The box deltas have four.
_BY_CLASS = (
    "roi_heads.box_predictor.cls_score.",
    "roi_heads.box_predictor.bbox_pred.",
    "roi_heads.mask_predictor.mask_fcn_logits.",
)


@dataclass(frozen=True)
class DetectorWeightsReport:
    """Report of what was loaded into a detector.

    Attributes:
        tensors: tensors loaded, new and ignored.
        kept: names of the classes whose weights come from the file.
        new: names of the detector's classes that the file does not contain.
        unused: names of the classes in the file that the detector does not have.
    """

    tensors: WeightsReport
    kept: list[str]
    new: list[str]
    unused: list[str]

    def __str__(self) -> str:
        lines = [
            str(self.tensors),
            f"  classes with weights in the file: {_listed(self.kept) or 'none'}",
        ]
        if self.new:
            lines.append(f"  new classes with random weights: {_listed(self.new)}")
        if self.unused:
            lines.append(f"  unused classes of the file: {_listed(self.unused)}")
        return "\n".join(lines)


def load_detector_weights(
    detector: Detector, source: str | Path, classes: Sequence[str]
) -> WeightsReport | DetectorWeightsReport:
    """Load the weights of ``source`` into a detector.

    Weights of a backbone are loaded into the body only, see ``load_weights``. Weights of a
    detector are loaded into all parts. Rows of the predictors are matched by class name, and rows
    of other classes keep their random weights. A detector with a ResNet can provide all weights of
    a BoTNet detector except those of the attention. A Faster R-CNN can provide all weights of a
    Mask R-CNN except those of the mask branch.

    Args:
        detector: detector to load the weights into.
        source: one of the following. A run folder or its ``best.safetensors``. A weights file of a
            backbone or of a torchvision detector such as ``maskrcnn_resnet50_fpn``. The name of
            such a detector, whose COCO weights are downloaded. The name of a timm model, whose
            ImageNet weights are downloaded.
        classes: names of the detector's classes, in the order of its labels.

    Returns:
        A report of the loaded tensors and, unless the weights are those of a backbone, the classes.

    Raises:
        UserError: the file or name does not exist, the download failed, or the weights belong to
            another architecture.
    """
    if str(source) in torchvision.models.list_models(torchvision.models.detection):
        names, tensors = _published(str(source))
        file = Path(str(source))
    else:
        tensors, file = read_weights(source), weights_file(source)
        if not any(name.startswith("backbone.body.") for name in tensors):
            return load_tensors(detector.backbone.body, tensors, file)
        names = _class_names(file, tensors)
        tensors = _with_epsilon(tensors, file.name)
    tensors = {_renamed(name): tensor for name, tensor in tensors.items()}
    scores = tensors.get(f"{_BY_CLASS[0]}bias")
    if names and scores is not None and scores.shape != (len(names) + 1,):
        raise UserError(
            f"{file}: contains {len(names)} class names and weights for another number of classes; "
            "get the file again"
        )
    rows = {names.index(name) + 1: k + 1 for k, name in enumerate(classes) if name in names}
    own = detector.state_dict()
    for name in own:
        if name.startswith(_BY_CLASS) and name in tensors:
            tensors[name] = _with_rows(own[name], tensors[name], rows, len(classes))
    may_be_new: list[str] = []
    if not any(name.startswith("roi_heads.mask_") for name in tensors):
        may_be_new += ["roi_heads.mask_head", "roi_heads.mask_predictor"]
    try:
        report = load_tensors(detector, tensors, file, may_be_new=may_be_new)
    except UserError as error:
        differing = _differing_settings(own, tensors)
        hint = f"; it was trained with {', '.join(differing)}" if differing else ""
        raise UserError(
            f"{error.message}{hint}", parameter=error.parameter, value=error.value
        ) from error
    return DetectorWeightsReport(
        report,
        kept=[name for name in classes if name in names],
        new=[name for name in classes if name not in names],
        unused=[name for name in names if name not in classes and name != "N/A"],
    )


def _listed(names: Sequence[str]) -> str:
    return ", ".join(map(printable, names))


def _published(name: str) -> tuple[tuple[str, ...], dict[str, Tensor]]:
    """Return the classes and COCO weights of a torchvision detector, cached or downloaded."""
    weights: Any = torchvision.models.get_model_weights(name).DEFAULT
    try:
        tensors = weights.get_state_dict(progress=False, check_hash=True)
    except (URLError, OSError) as error:
        raise UserError(
            f"could not be downloaded ({error}); get the file {Path(weights.url).name} elsewhere "
            "and give its path",
            parameter="weights",
            value=name,
        ) from error
    file = Path(weights.url).name
    return tuple(weights.meta["categories"][1:]), _with_epsilon(tensors, file)


def _class_names(file: Path, tensors: dict[str, Tensor]) -> tuple[str, ...]:
    """Return the class names in a detector's file, or none if the file does not contain them."""
    if file.suffix == ".safetensors":
        card = read_card(file)
        categories = card.get("categories") if isinstance(card, dict) else None
        listed = categories.get("names") if isinstance(categories, dict) else None
        return tuple(map(str, listed)) if isinstance(listed, list) else ()
    coco = torchvision.models.get_model_weights("maskrcnn_resnet50_fpn").DEFAULT
    names = tuple(coco.meta["categories"][1:])
    scores = tensors.get(f"{_BY_CLASS[0]}bias")
    return names if scores is not None and scores.shape == (len(names) + 1,) else ()


def _renamed(name: str) -> str:
    for pattern, new in _RENAMED:
        name = re.sub(f"^{pattern}$", new, name)
    return name


def _with_epsilon(tensors: dict[str, Tensor], file: str) -> dict[str, Tensor]:
    """Adapt variances to batch norm layers that add an epsilon, as in this library."""
    if _NO_EPSILON not in file:
        return tensors
    return {n: t - _EPSILON if n.endswith("running_var") else t for n, t in tensors.items()}


def _with_rows(own: Tensor, theirs: Tensor, rows: dict[int, int], classes: int) -> Tensor:
    """Return ``own`` with the file's rows of the background and of ``rows`` (its label: ours)."""
    per_class = len(own) // (classes + 1)
    needed = (max(rows, default=0) + 1) * per_class
    fits = theirs.ndim == own.ndim and theirs.shape[1:] == own.shape[1:]
    if not fits or len(theirs) % per_class or len(theirs) < needed:
        return theirs
    by_class = (-1, per_class, *own.shape[1:])
    merged = own.clone().reshape(by_class)
    for their_label, label in {0: 0, **rows}.items():
        merged[label] = theirs.reshape(by_class)[their_label]
    return merged.reshape(own.shape)


def _differing_settings(own: dict[str, Tensor], tensors: dict[str, Tensor]) -> list[str]:
    """Return the settings of the file's detector that differ from those of ``own``."""
    wanted, given = _settings(tensors), _settings(own)
    return [f"`{name}` {value}" for name, value in wanted.items() if given[name] != value]


def _settings(tensors: dict[str, Tensor]) -> dict[str, str]:
    def convolutions(pattern: str) -> int:
        return len({m[1] for name in tensors if (m := re.match(pattern, name))})

    def size(name: str, axis: int) -> int | None:
        shape = tensors[name].shape if name in tensors else ()
        return shape[axis] if axis < len(shape) else None

    norm = any(name.startswith("backbone.fpn.inner_blocks.0.1.") for name in tensors)
    heads = ("roi_heads.box_head.0.1.", "roi_heads.mask_head.0.1.")
    settings = {
        # A file does not distinguish plain from synchronized batch norm.
        "norm": "plain" if norm else "frozen",
        "detector.fpn_channels": size("backbone.fpn.layer_blocks.0.0.weight", 0),
        "detector.rpn_convs": convolutions(r"rpn\.head\.conv\.(\d+)\.0\.weight"),
        "detector.box_convs": convolutions(r"roi_heads\.box_head\.(\d+)\.0\.weight"),
        "detector.box_head_dim": size("roi_heads.box_predictor.cls_score.weight", 1),
        "detector.mask_convs": convolutions(r"roi_heads\.mask_head\.(\d+)\.0\.weight"),
        "detector.mask_channels": size("roi_heads.mask_head.0.0.weight", 0),
        "detector.head_norm": any(name.startswith(heads) for name in tensors),
    }
    return {name: str(value) for name, value in settings.items()}
