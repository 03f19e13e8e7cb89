"""What can be set about a model and a training run; plain data, read by the command at once.

Defaults of the detector are those of the paper's code base, the Cloud TPU detection models: where
the paper states no value (its section 4 gives batch, schedules, jitter and image size), that
code's default stands. Small runs on a CPU are other numbers in a recipe, not other code.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

DetectionTask = Literal["segmentation", "detection"]
Norm = Literal["plain", "sync", "frozen"]
Device = Literal["auto", "cpu", "cuda", "mps"]
Precision = Literal["auto", "32", "bf16", "16"]
Dtype = Literal["32", "bf16", "16"]
Strategy = Literal["ddp", "fsdp"]
Mode = Literal["forward", "train"]
MaskFormat = Literal["rle", "polygon"]
TableResize = Literal["slice", "interpolate"]


@dataclass
class DetectorConfig:
    """Mask R-CNN (or Faster R-CNN) on a feature pyramid.

    Args:
        fpn_channels: channels of every pyramid level p2 to p6.
        anchor_sizes: side of the square anchor at p2 to p6, pixels (8 strides in the code base).
        anchor_ratios: height over width of the anchors.
        rpn_convs: 3x3 convolutions of the proposal head.
        rpn_pre_nms: proposals a level before suppression, in training and in inference.
        rpn_post_nms: proposals an image after it, likewise.
        rpn_samples: anchors an image in the proposal loss, at most half of them positive.
        roi_samples: proposals an image in the heads' losses, at most a quarter of them positive.
        box_convs: 3x3 convolutions of the box head; with any, one fully connected layer follows
            them instead of two (4 of them: "4conv1fc").
        box_head_dim: width of the box head's fully connected layers.
        mask_convs: 3x3 convolutions of the mask head.
        mask_channels: their channels.
        head_norm: batch norm after the convolutions of the box and mask heads.
        score_threshold: detections below it are dropped.
        nms_threshold: overlap (IoU) above which the lower-scored detection of a class is dropped.
        max_detections: detections kept an image.
    """

    fpn_channels: int = 256
    anchor_sizes: tuple[int, int, int, int, int] = (32, 64, 128, 256, 512)
    anchor_ratios: tuple[float, ...] = (0.5, 1.0, 2.0)
    rpn_convs: int = 1
    rpn_pre_nms: tuple[int, int] = (2000, 1000)
    rpn_post_nms: tuple[int, int] = (1000, 1000)
    rpn_samples: int = 256
    roi_samples: int = 512
    box_convs: int = 0
    box_head_dim: int = 1024
    mask_convs: int = 4
    mask_channels: int = 256
    head_norm: bool = False
    score_threshold: float = 0.05
    nms_threshold: float = 0.5
    max_detections: int = 100


@dataclass
class TrainConfig:
    """What every training run has.

    Args:
        data: a folder, a zip or tar of one, or a built-in set.
        model: a name of `botvision models` or of timm.
        model_args: further options of the model, such as {position: none}.
        weights: what to start from: a file (.safetensors, or a weights-only .pth) of an ImageNet
            ResNet, for everything but the attention; a name of timm, fetched; or an earlier run.
            For a detector also a file of torchvision's maskrcnn_resnet50_fpn, or that name.
        norm: batch norm "plain", "sync" (statistics over all processes) or "frozen".
        epochs: passes over the training split.
        max_steps: stop after so many steps instead; 0 evaluates what --weights gave.
        batch_size: images a step, over all processes.
        accumulate: parts in which a step's images go through the model, one after the other.
        lr: peak learning rate; by default base_lr scaled to the batch size.
        base_lr: learning rate for a batch of base_batch_size images.
        base_batch_size: see base_lr.
        optimizer: "sgd" or "adamw".
        momentum: of SGD.
        nesterov: Nesterov's form of it.
        weight_decay: on the weights of convolutions and linear layers.
        decay_all: decay biases, norms and position tables too.
        schedule: after the warm-up "step" (a tenth at each milestone) or "cosine" (to zero).
        milestones: of "step", as shares of the run.
        warmup_steps: steps of linear warm-up.
        warmup_factor: the first step's learning rate, as a share of the peak.
        clip_norm: gradients are scaled down to this norm; 0 leaves them.
        ema_decay: of a moving average of the weights, which is then what is evaluated and saved;
            0 keeps none.
        eval_steps: evaluate on the validation split every so many steps; 0 only at the end.
        patience: stop early, once so many evaluations in a row were not better than the best; 0
            never does.
        checkpoint_steps: save a checkpoint every so many steps.
        checkpoint_minutes: and whenever so many minutes have passed since the last one.
        seed: of the weights, the order of the data and its augmentation.
        device: "auto", "cpu", "cuda" or "mps".
        devices: processes on this machine, each with a device of its own.
        nodes: machines.
        strategy: of several processes: "ddp" has the whole model in each, "fsdp" shares its
            weights, gradients and momentum out among them.
        precision: "32", "bf16" or "16" (automatic mixed precision); "auto" is bf16 on
            CUDA and on CPUs with AMX.
        compile: run the model, of a detector the backbone, through torch.compile.
        workers: processes that load data; -1 chooses.
        out: run folder; runs/DATA-MODEL by default.
    """

    data: str
    model: str = "botnet50"
    model_args: dict[str, Any] = field(default_factory=dict)
    weights: str | None = None
    norm: Norm = "plain"
    epochs: float = 12
    max_steps: int | None = None
    batch_size: int = 4
    accumulate: int = 1
    lr: float | None = None
    base_lr: float = 0.08
    base_batch_size: int = 64
    optimizer: Literal["sgd", "adamw"] = "sgd"
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 1e-4
    decay_all: bool = False
    schedule: Literal["step", "cosine"] = "step"
    milestones: tuple[float, float] = (2 / 3, 8 / 9)
    warmup_steps: int = 500
    warmup_factor: float = 0.0067 / 0.08
    clip_norm: float = 0.0
    ema_decay: float = 0.0
    eval_steps: int = 0
    patience: int = 0
    checkpoint_steps: int = 500
    checkpoint_minutes: float = 10.0
    seed: int = 0
    device: Device = "auto"
    devices: int = 1
    nodes: int = 1
    strategy: Strategy = "ddp"
    precision: Precision = "auto"
    compile: bool = False
    workers: int = -1
    out: Path | None = None

    @property
    def peak_lr(self) -> float:
        """The learning rate after warm-up: ``lr``, or ``base_lr`` scaled linearly to the batch."""
        if self.lr is not None:
            return self.lr
        return self.base_lr * self.batch_size / self.base_batch_size


@dataclass
class DetectionConfig(TrainConfig):
    """A training run of Mask R-CNN or Faster R-CNN.

    Args:
        task: "segmentation" (Mask R-CNN) or "detection" (Faster R-CNN); by default whichever the
            annotations allow.
        image_size: side of the square input, pixels; a multiple of 32.
        jitter: range of the random scale, as a share of the image size (large-scale jitter).
        flip: mirror half of the training images.
        max_instances: kept of a training image, drawn at random, to bound its memory; 0 keeps all.
        freeze_stages: stages of the backbone that keep their weights and statistics: 1 is the stem,
            2 the stem and c2, up to 5.
        grad_checkpointing: keep only the inputs of the backbone's blocks and compute the rest
            again in the backward pass: less memory, more time, the same gradients.
        detector: the detector's numbers.
    """

    task: DetectionTask | None = None
    image_size: int = 1024
    jitter: tuple[float, float] = (0.8, 1.25)
    flip: bool = True
    max_instances: int = 0
    freeze_stages: int = 0
    grad_checkpointing: bool = False
    detector: DetectorConfig = field(default_factory=DetectorConfig)


@dataclass
class ClassificationConfig(TrainConfig):
    """A training run of an image classifier; the defaults are the paper's standard recipe.

    The paper (section 4.7) has 100 epochs, a batch of 1024, weight decay 1e-4, a cosine and "the
    standard ResNet augmentation". It does not state the learning rate or the warm-up: 0.1 for 256
    images (Goyal et al., 2017) and 5 epochs are this project's choice.

    Args:
        task: always "classification".
        image_size: side of the square input, pixels; by default the model's own.
        crop_area: range of the random crop's area, as a share of the image.
        flip: mirror half of the training images.
        auto_augment: a policy in timm's words: "rand-m10-n2-p1" is RandAugment with 2 layers of
            magnitude 10 (without p1 each layer acts on half of the images).
        mixup: alpha of Mixup; 0 is none.
        cutmix: alpha of CutMix; 0 is none. With both, each batch takes one of them.
        smoothing: label smoothing.
        dropout: before the classifier.
        drop_path: stochastic depth, the last block's rate; it grows linearly from the first.
        crop_share: of an image, what an evaluation sees: the center of its shorter side.
    """

    task: Literal["classification"] = "classification"
    image_size: int | None = None
    crop_area: tuple[float, float] = (0.08, 1.0)
    flip: bool = True
    auto_augment: str | None = None
    mixup: float = 0.0
    cutmix: float = 0.0
    smoothing: float = 0.0
    dropout: float = 0.0
    drop_path: float = 0.0
    crop_share: float = 0.875
    epochs: float = 100
    batch_size: int = 1024
    base_lr: float = 0.1
    base_batch_size: int = 256
    schedule: Literal["step", "cosine"] = "cosine"
    warmup_steps: int = 6255
    warmup_factor: float = 0.0


@dataclass(kw_only=True)
class EvaluateConfig:
    """How a run is evaluated on a split.

    Args:
        split: by default val, else test, else the only one.
        limit: number of images to evaluate, drawn at random but always the same; all by default.
        batch_size: 32 images for a classifier, by default; 1 augmented view for a detector.
        score_threshold: of a detector: detections below it are dropped; 0.001 by default, 0.05 in
            the paper's code base and in evaluations during training.
        max_detections: of a detector: maximum detections per image; by default the run's (100 in
            COCO; more for crowded images).
        flip: of a detector: test-time augmentation by mirrored images.
        scales: of a detector: test-time augmentation at these multiples of the image size, such as
            0.75 1 1.25.
        tile: of a detector: tiled inference, besides the whole image, with overlapping tiles of
            this many of its pixels per side, each at the model's image size.
        image_size: of a classifier: pixels; by default the run's.
        table_resize: of a classifier: how position tables fit another size, slice or interpolate.
        workers: processes that load images; -1 chooses.
        out: folder for the results; by default the run folder.
        device: auto, cpu, cuda or mps.
        precision: 32, bf16 or 16; auto is bf16 on CUDA and on CPUs with AMX, else 32.
    """

    split: str | None = None
    limit: int | None = None
    batch_size: int | None = None
    score_threshold: float | None = None
    max_detections: int | None = None
    flip: bool = False
    scales: list[float] | None = None
    tile: int | None = None
    image_size: int | None = None
    table_resize: TableResize | None = None
    workers: int = -1
    out: Path | None = None
    device: Device = "auto"
    precision: Precision = "auto"


@dataclass(kw_only=True)
class PredictConfig:
    """How images are predicted and written.

    Args:
        score_threshold: of a detector: detections below it are left out; 0.5 by default.
        max_detections: of a detector: maximum detections per image; by default the run's.
        flip: of a detector: test-time augmentation by mirrored images.
        scales: of a detector: test-time augmentation at these multiples of the image size, such as
            0.75 1 1.25.
        tile: of a detector: tiled inference, besides the whole image, with overlapping tiles of
            this many of its pixels per side, each at the model's image size.
        mask_format: of a segmentation model: rle, by default, or polygon, which has the outer
            contours and no holes.
        batch_size: images, or augmented views of them, at once.
        out: folder for the results; by default RUN/predictions.
        device: auto, cpu, cuda or mps.
        precision: 32, bf16 or 16; auto is bf16 on CUDA and on CPUs with AMX, else 32.
    """

    score_threshold: float | None = None
    max_detections: int | None = None
    flip: bool = False
    scales: list[float] | None = None
    tile: int | None = None
    mask_format: MaskFormat | None = None
    batch_size: int = 1
    out: Path | None = None
    device: Device = "auto"
    precision: Precision = "auto"


# The options of evaluation and prediction that only one of the tasks has.
DETECTION_OPTIONS = (
    *("score_threshold", "max_detections", "flip", "scales", "tile", "mask_format"),
)
CLASSIFICATION_OPTIONS = ("image_size", "table_resize")
