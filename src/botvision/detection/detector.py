"""Mask R-CNN and Faster R-CNN from torchvision's parts, on a fixed square canvas."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN, MaskRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import (
    FastRCNNConvFCHead,
    FastRCNNPredictor,
    TwoMLPHead,
)
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.rpn import RPNHead
from torchvision.ops import MultiScaleRoIAlign
from torchvision.ops.poolers import LevelMapper

from botvision.config import DetectionTask, DetectorConfig, Norm
from botvision.detection.backbone import PyramidBackbone

Target = dict[str, Tensor]


class FixedCanvas(nn.Module):
    """Normalise, then pad with zeros on the right and at the bottom to a square of one size.

    As the paper's code base: every image of every batch lies on the same canvas, so what the
    attention sees never depends on the other images of the batch. Stands where torchvision has
    its ``GeneralizedRCNNTransform``, without resizing: images come as large as they shall be seen.
    """

    def __init__(self, size: int, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        """Keep the side of the canvas in pixels, and the mean and std of pixels in [0, 1]."""
        super().__init__()
        self.mean: Tensor
        self.std: Tensor
        self.size = size
        self.register_buffer("mean", torch.tensor(mean)[:, None, None] * 255, persistent=False)
        self.register_buffer("std", torch.tensor(std)[:, None, None] * 255, persistent=False)

    def forward(
        self, images: list[Tensor], targets: list[Target] | None = None
    ) -> tuple[ImageList, list[Target] | None]:
        """uint8 images (3, h, w), h and w at most ``size``, on a canvas (B, 3, size, size).

        Raises:
            ValueError: an image is larger than the canvas.
        """
        canvas = torch.zeros(
            (len(images), 3, self.size, self.size), device=images[0].device
        ).contiguous(memory_format=torch.channels_last)
        for image, place in zip(images, canvas, strict=True):
            height, width = image.shape[-2:]
            if max(height, width) > self.size:
                raise ValueError(f"an image of {height}x{width} exceeds the canvas of {self.size}")
            place[:, :height, :width] = (image - self.mean) / self.std
        sizes = [(image.shape[-2], image.shape[-1]) for image in images]
        return ImageList(canvas, sizes), targets

    def postprocess(
        self, result: list[Target], image_shapes: Any, original_image_sizes: Any
    ) -> list[Target]:
        """Leave boxes in canvas pixels and masks at 28x28: evaluation pastes them one by one."""
        return result


class _Anchors(AnchorGenerator):  # type: ignore[misc]
    """Anchors in float32: torchvision's are in the features' dtype.

    In bf16 a side at 500 pixels would be off by up to 1 and at 1000 by up to 2, of anchors that
    are a dozen pixels wide.
    """

    def forward(self, image_list: ImageList, feature_maps: list[Tensor]) -> list[Tensor]:
        """One (anchors, 4) an image; of the maps only shape and device count."""
        maps = [
            level.new_empty((), dtype=torch.float32).expand(level.shape) for level in feature_maps
        ]
        anchors: list[Tensor] = super().forward(image_list, maps)
        return anchors


def box_iou(boxes: Tensor, others: Tensor) -> Tensor:
    """Intersection over union of boxes (n, 4) with boxes (m, 4), xyxy in float32: (n, m).

    torchvision's to the bit. That works on pairs of coordinates and takes 3 to 4 times as long on a
    CPU, where all anchors with the objects of crowded images were a sixth of a training step.
    """
    left, top, right, bottom = boxes[:, None].unbind(-1)
    lefts, tops, rights, bottoms = others.unbind(-1)
    widths = torch.minimum(right, rights).sub_(torch.maximum(left, lefts)).clamp_(min=0)
    heights = torch.minimum(bottom, bottoms).sub_(torch.maximum(top, tops)).clamp_(min=0)
    intersection = widths.mul_(heights)
    areas, other_areas = (right - left) * (bottom - top), (rights - lefts) * (bottoms - tops)
    return intersection.div_((areas + other_areas).sub_(intersection))


def build_detector(
    model: str,
    num_classes: int,
    image_size: int,
    *,
    task: DetectionTask = "segmentation",
    norm: Norm = "plain",
    config: DetectorConfig | None = None,
    model_args: Mapping[str, Any] | None = None,
) -> MaskRCNN | FasterRCNN:
    """Mask R-CNN (``task="segmentation"``) or Faster R-CNN (``"detection"``) on p2 to p6.

    Args:
        model: backbone, a name of botvision or of timm.
        num_classes: object classes, without the background.
        image_size: side of the square input, pixels; a multiple of 32.
        task: with or without masks.
        norm: batch norm of the backbone and the pyramid, see :class:`PyramidBackbone`.
        config: the detector's numbers; the paper's code base's by default.
        model_args: further options of the backbone.

    Returns:
        A module that in training takes uint8 images (3, h, w) and torchvision's targets and gives
        its dict of losses, and otherwise gives per image ``boxes`` (n, 4) xyxy in pixels of the
        image as it came in, ``labels`` (n,), ``scores`` (n,) and ``masks`` (n, 1, 28, 28),
        probabilities inside the box.

    Raises:
        UserError: the backbone gives no feature pyramid.
    """
    config = config or DetectorConfig()
    backbone = PyramidBackbone(
        model, image_size, channels=config.fpn_channels, norm=norm, model_args=model_args or {}
    )
    anchors = _Anchors(
        tuple((size,) for size in config.anchor_sizes),
        (tuple(config.anchor_ratios),) * len(config.anchor_sizes),
    )
    channels = config.fpn_channels
    head_norm = nn.BatchNorm2d if config.head_norm else None
    box_head: nn.Module = TwoMLPHead(channels * 7 * 7, config.box_head_dim)
    if config.box_convs:
        convs = [channels] * config.box_convs
        box_head = FastRCNNConvFCHead((channels, 7, 7), convs, [config.box_head_dim], head_norm)
    parts: dict[str, Any] = {
        "rpn_anchor_generator": anchors,
        "rpn_head": RPNHead(channels, anchors.num_anchors_per_location()[0], config.rpn_convs),
        "rpn_pre_nms_top_n_train": config.rpn_pre_nms[0],
        "rpn_pre_nms_top_n_test": config.rpn_pre_nms[1],
        "rpn_post_nms_top_n_train": config.rpn_post_nms[0],
        "rpn_post_nms_top_n_test": config.rpn_post_nms[1],
        "rpn_batch_size_per_image": config.rpn_samples,
        "box_roi_pool": _roi_align(backbone.strides, 7),
        "box_head": box_head,
        "box_predictor": FastRCNNPredictor(config.box_head_dim, num_classes + 1),
        "box_batch_size_per_image": config.roi_samples,
        "box_score_thresh": config.score_threshold,
        "box_nms_thresh": config.nms_threshold,
        "box_detections_per_img": config.max_detections,
    }
    if task == "segmentation":
        convs = [config.mask_channels] * config.mask_convs
        heads = MaskRCNNHeads(channels, convs, 1, head_norm)
        predictor = MaskRCNNPredictor(config.mask_channels, config.mask_channels, num_classes + 1)
        if not config.head_norm:  # whose batch statistics the zeros would change
            rows = _FullRows()
            heads.register_forward_pre_hook(rows.fill)
            predictor.register_forward_hook(rows.cut)
        detector: MaskRCNN | FasterRCNN = MaskRCNN(
            backbone,
            mask_roi_pool=_roi_align(backbone.strides, 14),
            mask_head=heads,
            mask_predictor=predictor,
            **parts,
        )
    else:
        detector = FasterRCNN(backbone, **parts)
    detector.rpn.box_similarity = box_iou
    detector.transform = FixedCanvas(image_size, backbone.mean, backbone.std)
    # torchvision decodes boxes in the dtype of what the heads give: in bf16 a coordinate of 1000
    # pixels would be off by up to 2, and a thin proposal without width makes the loss NaN.
    detector.rpn.head.register_forward_hook(_in_float32)
    detector.roi_heads.box_predictor.register_forward_hook(_in_float32)
    return detector


def _in_float32(
    module: nn.Module, inputs: Any, outputs: tuple[Any, ...]
) -> tuple[Tensor | list[Tensor], ...]:
    """Scores and box deltas, lists of them for the proposal head, in float32 under autocast."""
    return tuple(
        [level.float() for level in part] if isinstance(part, list) else part.float()
        for part in outputs
    )


class _FullRows:
    """Fills the mask head's batch of regions up to a multiple with zeros, and cuts its output.

    The number of regions differs from step to step, and on a CPU every new number costs the
    compilation of each convolution's kernels, forward and backward: up to 0.4 s apiece.
    """

    multiple = 64

    def __init__(self) -> None:
        self.regions = 0

    def fill(self, head: nn.Module, args: tuple[Tensor]) -> tuple[Tensor]:
        self.regions = len(args[0])
        return (nn.functional.pad(args[0], (0,) * 7 + (-self.regions % self.multiple,)),)

    def cut(self, predictor: nn.Module, args: tuple[Tensor], logits: Tensor) -> Tensor:
        return logits[: self.regions]


def _roi_align(strides: list[int], output_size: int) -> MultiScaleRoIAlign:
    """RoIAlign over p2 to p5 with the pyramid's true strides.

    torchvision infers them from the unpadded size of the first images that it sees, which on a
    padded canvas gives wrong scales.
    """
    pool = MultiScaleRoIAlign([str(i) for i in range(len(strides))], output_size, sampling_ratio=2)
    pool.scales = [1 / stride for stride in strides]
    pool.map_levels = LevelMapper(k_min=2, k_max=len(strides) + 1)
    return pool
