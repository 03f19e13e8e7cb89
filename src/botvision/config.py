"""What can be set about a detector and a training run; plain data, read by the command at once.

Defaults of the detector are those of the paper's code base, the Cloud TPU detection models: where
the paper states no value (its section 4 gives batch, schedules, jitter and image size), that
code's default stands. Small runs on a CPU are other numbers in a recipe, not other code.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

Task = Literal["segmentation", "detection"]
Norm = Literal["plain", "sync", "frozen"]
Device = Literal["auto", "cpu", "cuda", "mps"]
Precision = Literal["auto", "32", "bf16", "16"]
Compute = Literal["32", "bf16", "16"]
Mode = Literal["forward", "train"]


@dataclass
class DetectorConfig:
    """Mask R-CNN (or Faster R-CNN) on a feature pyramid.

    Args:
        fpn_channels: channels of every pyramid level p2 to p6.
        anchor_sizes: side of the square anchor at p2 to p6, pixels (8 strides in the code base).
        anchor_ratios: height over width of the anchors.
        rpn_pre_nms: proposals a level before suppression, in training and in inference.
        rpn_post_nms: proposals an image after it, likewise.
        rpn_samples: anchors an image in the proposal loss, at most half of them positive.
        roi_samples: proposals an image in the heads' losses, at most a quarter of them positive.
        box_head_dim: width of the two fully connected layers of the box head.
        mask_convs: 3x3 convolutions of the mask head.
        mask_channels: their channels.
        score_threshold: detections below it are dropped.
        nms_threshold: overlap (IoU) above which the lower-scored detection of a class is dropped.
        max_detections: detections kept an image.
    """

    fpn_channels: int = 256
    anchor_sizes: tuple[int, int, int, int, int] = (32, 64, 128, 256, 512)
    anchor_ratios: tuple[float, ...] = (0.5, 1.0, 2.0)
    rpn_pre_nms: tuple[int, int] = (2000, 1000)
    rpn_post_nms: tuple[int, int] = (1000, 1000)
    rpn_samples: int = 256
    roi_samples: int = 512
    box_head_dim: int = 1024
    mask_convs: int = 4
    mask_channels: int = 256
    score_threshold: float = 0.05
    nms_threshold: float = 0.5
    max_detections: int = 100


@dataclass
class TrainConfig:
    """One training run.

    Args:
        data: COCO folder (annotations/*.json and image folders), a zip or tar of one, or the
            built-in sets "shapes" and "shapes-context".
        task: "segmentation" (Mask R-CNN) or "detection" (Faster R-CNN); by default whichever the
            annotations allow.
        model: backbone, a name of `botvision models` or of timm.
        model_args: further options of the backbone, such as {position: none}.
        weights: ImageNet ResNet of timm or torchvision (.safetensors, or a weights-only .pth) for
            everything but the attention.
        norm: batch norm "plain", "sync" (statistics over all processes) or "frozen".
        image_size: side of the square input, pixels; a multiple of 32.
        jitter: range of the random scale, as a share of the image size (large-scale jitter).
        flip: mirror half of the training images.
        epochs: passes over the training split.
        max_steps: stop after so many steps instead.
        batch_size: images a step.
        lr: peak learning rate; by default base_lr scaled to the batch size.
        base_lr: learning rate for a batch of base_batch_size images.
        base_batch_size: see base_lr.
        optimizer: "sgd" or "adamw".
        momentum: of SGD.
        weight_decay: on the weights of convolutions and linear layers.
        schedule: after the warm-up "step" (a tenth at each milestone) or "cosine" (to zero).
        milestones: of "step", as shares of the run.
        warmup_steps: steps of linear warm-up.
        warmup_factor: the first step's learning rate, as a share of the peak.
        clip_norm: gradients are scaled down to this norm; 0 leaves them.
        eval_steps: evaluate on the validation split every so many steps; 0 only at the end.
        checkpoint_steps: save a checkpoint every so many steps.
        checkpoint_minutes: and whenever so many minutes have passed since the last one.
        seed: of the weights, the order of the data and its augmentation.
        device: "auto", "cpu", "cuda" or "mps".
        precision: "32", "bf16" or "16" (automatic mixed precision); "auto" is bf16 on
            CUDA and on CPUs with AMX.
        workers: processes that load data; -1 chooses.
        out: run folder; runs/DATA-MODEL by default.
        detector: the detector's numbers.
    """

    data: str
    task: Task | None = None
    model: str = "botnet50"
    model_args: dict[str, Any] = field(default_factory=dict)
    weights: Path | None = None
    norm: Norm = "plain"
    image_size: int = 1024
    jitter: tuple[float, float] = (0.8, 1.25)
    flip: bool = True
    epochs: float = 12
    max_steps: int | None = None
    batch_size: int = 4
    lr: float | None = None
    base_lr: float = 0.08
    base_batch_size: int = 64
    optimizer: Literal["sgd", "adamw"] = "sgd"
    momentum: float = 0.9
    weight_decay: float = 1e-4
    schedule: Literal["step", "cosine"] = "step"
    milestones: tuple[float, float] = (2 / 3, 8 / 9)
    warmup_steps: int = 500
    warmup_factor: float = 0.0067 / 0.08
    clip_norm: float = 0.0
    eval_steps: int = 0
    checkpoint_steps: int = 500
    checkpoint_minutes: float = 10.0
    seed: int = 0
    device: Device = "auto"
    precision: Precision = "auto"
    workers: int = -1
    out: Path | None = None
    detector: DetectorConfig = field(default_factory=DetectorConfig)

    @property
    def peak_lr(self) -> float:
        """The learning rate after warm-up: ``lr``, or ``base_lr`` scaled linearly to the batch."""
        if self.lr is not None:
            return self.lr
        return self.base_lr * self.batch_size / self.base_batch_size
