"""torchvision's proposal network and heads, with the few changes that this detector needs.

Each class is a small subclass of a torchvision class and keeps the names of its parameters, so
torchvision's weights fit. To change a head, write another subclass, or pass a ``box_head`` to
``botvision.detection.build_detector``.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection import faster_rcnn, mask_rcnn, roi_heads, rpn
from torchvision.ops import batched_nms, clip_boxes_to_image, remove_small_boxes

from botvision.detection.anchors import box_iou

# Boxes are decoded in the dtype of the deltas. In bf16 a coordinate of 1000 pixels would be off by
# up to 2, and a proposal of width 0 makes the loss NaN. `RPNHead` and `BoxPredictor` prevent this.


class RPNHead(rpn.RPNHead):  # type: ignore[misc]
    """Proposal head with float32 outputs, also under autocast."""

    def forward(self, x: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Return objectness logits and box deltas, one tensor of each per pyramid level."""
        logits, deltas = super().forward(x)
        return [level.float() for level in logits], [level.float() for level in deltas]


class RegionProposalNetwork(rpn.RegionProposalNetwork):  # type: ignore[misc]
    """Proposal network that matches anchors to objects with our ``box_iou``."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.box_similarity = box_iou


class BoxPredictor(faster_rcnn.FastRCNNPredictor):  # type: ignore[misc]
    """Box predictor with float32 outputs, also under autocast."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return class logits (N, classes + 1) and box deltas (N, 4 * (classes + 1)).

        ``x`` contains features (N, width).
        """
        logits, deltas = super().forward(x)
        return logits.float(), deltas.float()


class PaddedRows(nn.Module):
    """Mixin that pads the batch with zeros to a multiple of 16 and removes them from the output.

    The number of regions differs between steps. On a CPU, every new number causes the compilation
    of the kernels of each convolution, forward and backward, which takes up to 0.4 s per kernel on
    a CPU with AMX (about 10 ms at most on one without).
    Modules with batch norm cannot use this mixin, because the zeros would change their statistics.
    """

    multiple = 16

    def forward(self, x: Tensor) -> Tensor:
        """Return the output of the other base class for ``x`` (N, ...)."""
        rows = len(x)
        padding = (0, 0) * (x.ndim - 1) + (0, -rows % self.multiple)
        output: Tensor = super().forward(F.pad(x, padding))
        return output[:rows]


class MaskHead(PaddedRows, mask_rcnn.MaskRCNNHeads):  # type: ignore[misc]
    """Convolutions of the mask branch, on a padded batch of regions."""


class MaskPredictor(PaddedRows, mask_rcnn.MaskRCNNPredictor):  # type: ignore[misc]
    """Upsampling and mask logits per class, on a padded batch of regions."""


class RoIHeads(roi_heads.RoIHeads):  # type: ignore[misc]
    """Box and mask heads with score threshold and maximum detections as arguments of each call."""

    def forward(
        self,
        features: dict[str, Tensor],
        proposals: list[Tensor],
        image_shapes: list[tuple[int, int]],
        targets: list[dict[str, Tensor]] | None = None,
        *,
        score_threshold: float | None = None,
        max_detections: int | None = None,
    ) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
        """Run the heads on the proposals.

        Args:
            features: pyramid levels by name, each (B, channels, h, w).
            proposals: boxes (n, 4) per image, xyxy in pixels.
            image_shapes: height and width of each image on the canvas.
            targets: required in training: ``boxes``, ``labels`` and ``masks`` per image, as in
                torchvision.
            score_threshold: score that a detection must exceed; by default the heads' own.
            max_detections: maximum detections per image; by default the heads' own.

        Returns:
            Detections per image, empty in training, and the losses, empty in evaluation.
        """
        if self.training:
            losses: dict[str, Tensor]
            detections, losses = super().forward(features, proposals, image_shapes, targets)
            return detections, losses
        regions = self.box_head(self.box_roi_pool(features, proposals, image_shapes))
        logits, deltas = self.box_predictor(regions)
        boxes, scores, labels = self.postprocess_detections(
            logits, deltas, proposals, image_shapes, score_threshold, max_detections
        )
        detections = [
            {"boxes": b, "labels": n, "scores": s}
            for b, n, s in zip(boxes, labels, scores, strict=True)
        ]
        if self.has_mask():
            regions = self.mask_head(self.mask_roi_pool(features, boxes, image_shapes))
            masks = roi_heads.maskrcnn_inference(self.mask_predictor(regions), labels)
            for detection, mask in zip(detections, masks, strict=True):
                detection["masks"] = mask
        return detections, {}

    def postprocess_detections(
        self,
        class_logits: Tensor,
        box_regression: Tensor,
        proposals: list[Tensor],
        image_shapes: list[tuple[int, int]],
        score_threshold: float | None = None,
        max_detections: int | None = None,
    ) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """Select detections as torchvision does, with the settings as arguments.

        Args:
            class_logits: (N, classes + 1), for the proposals of all images.
            box_regression: box deltas (N, 4 * (classes + 1)).
            proposals: boxes (n, 4) per image, xyxy in pixels.
            image_shapes: height and width of each image on the canvas.
            score_threshold: score that a detection must exceed; by default the heads' own.
            max_detections: maximum detections per image; by default the heads' own.

        Returns:
            Boxes (n, 4), scores (n,) and labels (n,) per image, sorted by descending score.
        """
        threshold = self.score_thresh if score_threshold is None else score_threshold
        limit = self.detections_per_img if max_detections is None else max_detections
        counts = [len(boxes) for boxes in proposals]
        all_boxes = self.box_coder.decode(box_regression, proposals)
        all_boxes = all_boxes.reshape(*class_logits.shape, 4)  # also without proposals
        all_scores: Any = class_logits.softmax(-1)
        found: tuple[list[Tensor], list[Tensor], list[Tensor]] = ([], [], [])
        for boxes, scores, shape in zip(
            all_boxes.split(counts), all_scores.split(counts), image_shapes, strict=True
        ):
            rows, labels = torch.where(scores[:, 1:] > threshold)
            labels = labels + 1  # 0 is the background
            boxes, scores = clip_boxes_to_image(boxes[rows, labels], shape), scores[rows, labels]
            large = remove_small_boxes(boxes, min_size=1e-2)
            boxes, scores, labels = boxes[large], scores[large], labels[large]
            best = batched_nms(boxes, scores, labels, self.nms_thresh)[:limit]
            for part, values in zip(found, (boxes, scores, labels), strict=True):
                part.append(values[best])
        return found
