"""Mask R-CNN and Faster R-CNN on a fixed square canvas, composed of torchvision's parts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead, TwoMLPHead
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor

from botvision.config import DetectionTask, DetectorConfig, Norm
from botvision.detection.anchors import Anchors
from botvision.detection.backbone import PyramidBackbone
from botvision.detection.heads import (
    BoxPredictor,
    MaskHead,
    MaskPredictor,
    RegionProposalNetwork,
    RoIHeads,
    RPNHead,
)
from botvision.detection.roi_align import PyramidRoIAlign
from botvision.errors import UserError

Target = dict[str, Tensor]
Detection = dict[str, Tensor]


class FixedCanvas(nn.Module):
    """Normalizes images and pads them with zeros, right and bottom, to squares of one size.

    As in the paper's code base, every image of every batch has the same canvas, so the input of the
    attention does not depend on the other images of the batch. This class replaces torchvision's
    ``GeneralizedRCNNTransform``. It does not resize images, so they must have their final size.

    Args:
        size: side of the canvas, pixels.
        mean: mean of each color channel, for values in [0, 1].
        std: standard deviation of each color channel, for values in [0, 1].
    """

    def __init__(self, size: int, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.mean: Tensor
        self.std: Tensor
        self.size = size
        self.register_buffer("mean", torch.tensor(mean)[:, None, None] * 255, persistent=False)
        self.register_buffer("std", torch.tensor(std)[:, None, None] * 255, persistent=False)

    def forward(
        self,
        images: list[Tensor],
        targets: list[Target] | None = None,
        size: int | None = None,
    ) -> tuple[ImageList, list[Target] | None]:
        """Put images on canvases.

        Args:
            images: uint8 (3, h, w), with h and w at most ``size``.
            targets: returned unchanged.
            size: side of the canvas in pixels. By default the module's own.

        Returns:
            The canvases (B, 3, size, size) with height and width of each image, and the targets.

        Raises:
            ValueError: an image is not uint8, or larger than the canvas.
        """
        size = self.size if size is None else size
        shape = (len(images), 3, size, size)
        canvas = torch.zeros(shape, device=images[0].device).contiguous(
            memory_format=torch.channels_last
        )
        for image, place in zip(images, canvas, strict=True):
            if image.dtype != torch.uint8:
                raise ValueError(
                    f"images are uint8, 0 to 255, not {image.dtype}; give (255 * image).round()"
                    ".to(torch.uint8) for a float image of 0 to 1"
                )
            height, width = image.shape[-2:]
            if max(height, width) > size:
                raise ValueError(f"an image of {height}x{width} exceeds the canvas of {size}")
            place[:, :height, :width] = (image - self.mean) / self.std
        sizes = [(image.shape[-2], image.shape[-1]) for image in images]
        return ImageList(canvas, sizes), targets

    def postprocess(
        self, result: list[Detection], image_shapes: Any, original_image_sizes: Any
    ) -> list[Detection]:
        """Return the detections unchanged: boxes in canvas pixels, masks of 28x28.

        Evaluation pastes the masks into the image one by one.

        Args:
            result: detections per image.
            image_shapes: not used.
            original_image_sizes: not used.

        Returns:
            ``result``.
        """
        return result


class Detector(GeneralizedRCNN):  # type: ignore[misc]
    """Mask R-CNN or Faster R-CNN, see ``build_detector``.

    Attributes:
        backbone: images (B, 3, S, S) -> pyramid levels by name.
        rpn: proposes regions.
        roi_heads: box head and, for Mask R-CNN, mask head.
        transform: images -> canvases.
    """

    backbone: PyramidBackbone
    rpn: RegionProposalNetwork
    roi_heads: RoIHeads
    transform: FixedCanvas

    @property
    def image_size(self) -> int:
        """Side of the canvas, pixels."""
        return self.transform.size

    @property
    def num_classes(self) -> int:
        """Number of object classes, without the background."""
        rows: int = self.roi_heads.box_predictor.cls_score.out_features
        return rows - 1

    @property
    def has_masks(self) -> bool:
        """Whether it is a Mask R-CNN."""
        masks: bool = self.roi_heads.has_mask()
        return masks

    def forward(
        self,
        images: list[Tensor],
        targets: list[Target] | None = None,
        *,
        score_threshold: float | None = None,
        max_detections: int | None = None,
        canvas_size: int | None = None,
    ) -> dict[str, Tensor] | list[Detection]:
        """Compute the losses in training mode, or detect objects in evaluation mode.

        The keyword arguments apply to this call only, and only in evaluation mode. By default the
        detector's own settings are used.

        Args:
            images: uint8 (3, h, w), h and w at most the canvas size. Other types are a ValueError.
            targets: in training, per image ``boxes`` (n, 4) float32, xyxy in pixels of the image,
                ``labels`` (n,) int64 from 1 on and, for Mask R-CNN, ``masks`` (n, h, w) uint8.
            score_threshold: score that a detection must exceed.
            max_detections: maximum detections per image.
            canvas_size: side of the square canvas in pixels. It must be a multiple of 64 if it
                differs from the detector's ``image_size``.

        Returns:
            In training, the losses by name. In evaluation, the detections of each image, sorted by
            descending score: ``boxes`` (n, 4) float32, xyxy in pixels of the input image,
            ``labels`` (n,) int64, ``scores`` (n,) float32 and, for Mask R-CNN, ``masks``
            (n, 1, 28, 28), probabilities inside the box.
        """
        if self.training:
            losses: dict[str, Tensor] = super().forward(images, targets)
            return losses
        canvases, _ = self.transform(images, size=canvas_size)
        features = self.backbone(canvases.tensors)
        proposals, _ = self.rpn(canvases, features)
        detections: list[Detection]
        detections, _ = self.roi_heads(
            features,
            proposals,
            canvases.image_sizes,
            score_threshold=score_threshold,
            max_detections=max_detections,
        )
        return detections


def build_detector(
    model: str,
    num_classes: int,
    image_size: int,
    *,
    task: DetectionTask = "segmentation",
    norm: Norm = "plain",
    config: DetectorConfig | None = None,
    model_args: Mapping[str, Any] | None = None,
    box_head: nn.Module | None = None,
) -> Detector:
    """Build a Mask R-CNN (``task="segmentation"``) or Faster R-CNN (``"detection"``) on p2 to p6.

    Args:
        model: name of the backbone, a model of botvision or timm.
        num_classes: number of object classes, without the background.
        image_size: side of the square input in pixels, a multiple of 32.
        task: ``"segmentation"`` adds a mask branch, ``"detection"`` does not.
        norm: batch norm of the backbone and the pyramid, see ``PyramidBackbone``.
        config: settings of the detector. By default those of the paper's code base.
        model_args: further arguments of the backbone.
        box_head: module that replaces the box head that ``config`` describes. It maps regions
            (N, fpn_channels, 7, 7) to features (N, width) of any width.

    Returns:
        The detector with random weights.

    Raises:
        UserError: the backbone has no feature pyramid, or ``box_head`` does not return (N, width).
    """
    config = config or DetectorConfig()
    backbone = PyramidBackbone(
        model, image_size, channels=config.fpn_channels, norm=norm, model_args=model_args or {}
    )
    # The order in which the parts are created determines the random weights of each part.
    if box_head is None:
        box_head, box_width = _box_head(config), config.box_head_dim
    else:
        box_width = _output_width(box_head, config.fpn_channels)
    rpn = _region_proposal_network(config)
    roi_heads = RoIHeads(
        PyramidRoIAlign(backbone.strides, 7),
        box_head,
        BoxPredictor(box_width, num_classes + 1),
        fg_iou_thresh=0.5,
        bg_iou_thresh=0.5,
        batch_size_per_image=config.roi_samples,
        positive_fraction=0.25,
        bbox_reg_weights=(10.0, 10.0, 5.0, 5.0),
        score_thresh=config.score_threshold,
        nms_thresh=config.nms_threshold,
        detections_per_img=config.max_detections,
        **(_mask_branch(config, backbone.strides, num_classes) if task == "segmentation" else {}),
    )
    transform = FixedCanvas(image_size, backbone.mean, backbone.std)
    return Detector(backbone, rpn, roi_heads, transform)


def _region_proposal_network(config: DetectorConfig) -> RegionProposalNetwork:
    anchors = Anchors(
        tuple((size,) for size in config.anchor_sizes),
        (tuple(config.anchor_ratios),) * len(config.anchor_sizes),
    )
    per_location = anchors.num_anchors_per_location()[0]
    return RegionProposalNetwork(
        anchors,
        RPNHead(config.fpn_channels, per_location, config.rpn_convs),
        fg_iou_thresh=0.7,
        bg_iou_thresh=0.3,
        batch_size_per_image=config.rpn_samples,
        positive_fraction=0.5,
        pre_nms_top_n=dict(zip(("training", "testing"), config.rpn_pre_nms, strict=True)),
        post_nms_top_n=dict(zip(("training", "testing"), config.rpn_post_nms, strict=True)),
        nms_thresh=0.7,
    )


def _box_head(config: DetectorConfig) -> nn.Module:
    channels, width = config.fpn_channels, config.box_head_dim
    head: nn.Module
    if config.box_convs:
        norm = nn.BatchNorm2d if config.head_norm else None
        head = FastRCNNConvFCHead((channels, 7, 7), [channels] * config.box_convs, [width], norm)
    else:
        head = TwoMLPHead(channels * 7 * 7, width)
    return head


def _mask_branch(
    config: DetectorConfig, strides: list[int], num_classes: int
) -> dict[str, nn.Module]:
    channels = config.mask_channels
    convs = [channels] * config.mask_convs
    head: nn.Module
    predictor: nn.Module
    if config.head_norm:
        head = MaskRCNNHeads(config.fpn_channels, convs, 1, nn.BatchNorm2d)
        predictor = MaskRCNNPredictor(channels, channels, num_classes + 1)
    else:
        head = MaskHead(config.fpn_channels, convs, 1)
        predictor = MaskPredictor(channels, channels, num_classes + 1)
    roi_pool = PyramidRoIAlign(strides, 14)
    return {"mask_roi_pool": roi_pool, "mask_head": head, "mask_predictor": predictor}


def _output_width(box_head: nn.Module, channels: int) -> int:
    """Return the width of the head's output for two regions of zeros. Its modes do not change."""
    modes = {part: part.training for part in box_head.modules()}
    device = next((p.device for p in box_head.parameters()), None)
    shape = (2, channels, 7, 7)
    box_head.eval()
    try:
        with torch.no_grad():
            output = box_head(torch.zeros(shape, device=device))
    except (RuntimeError, ValueError, AssertionError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise UserError(f"does not run on {shape} ({reason})", parameter="box_head") from error
    finally:
        for part, mode in modes.items():
            part.training = mode
    if not isinstance(output, Tensor) or output.ndim != 2 or len(output) != 2:
        got = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise UserError(
            f"returns {got} for regions {shape}; return features (N, width)", parameter="box_head"
        )
    return output.shape[1]
