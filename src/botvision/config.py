"""Settings of models, training, evaluation and prediction; plain data, which loads nothing heavy.

The docstrings are the help texts of the command. Names in backticks are other settings.

The detector's defaults are those of the paper's code base, the Cloud TPU detection models. The
paper itself states only the batch size, the schedules, the jitter and the image size (section 4).
Small runs on a CPU use other numbers in a recipe, not other code.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

DetectionTask = Literal["segmentation", "detection"]
Norm = Literal["plain", "sync", "frozen"]
Device = Literal["auto", "cpu", "cuda", "mps"]
Precision = Literal["auto", "32", "bf16", "16"]
PixelRange = tuple[float, float]
Dtype = Literal["32", "bf16", "16"]
Strategy = Literal["ddp", "fsdp"]
BadDataMode = Literal["error", "skip"]
Mode = Literal["forward", "train"]
MaskFormat = Literal["rle", "polygon"]
TableResize = Literal["slice", "interpolate"]


@dataclass
class DetectorConfig:
    """Mask R-CNN or Faster R-CNN on a feature pyramid.

    Args:
        fpn_channels: Channels of every pyramid level p2 to p6.
        anchor_sizes: Side of the square anchor at p2 to p6, in pixels (8 strides in the code base).
        anchor_ratios: Height over width of the anchors.
        rpn_convs: Number of 3x3 convolutions in the RPN head.
        rpn_pre_nms: Maximum proposals per level before NMS, in training and in inference.
        rpn_post_nms: Maximum proposals per image after NMS, in training and in inference.
        rpn_samples: Anchors per image in the RPN loss, at most half of them positive.
        roi_samples: Proposals per image in the losses of the heads, at most a quarter of them
            positive.
        box_convs: Number of 3x3 convolutions in the box head. If there are any, one fully connected
            layer follows them instead of two (4 convolutions: "4conv1fc").
        box_head_dim: Width of the fully connected layers of the box head.
        mask_convs: Number of 3x3 convolutions in the mask head.
        mask_channels: Channels of the mask head.
        head_norm: Use batch norm after the convolutions of the box and mask heads.
        score_threshold: Minimum score of a detection.
        nms_threshold: IoU above which NMS drops the lower-scored of two detections of a class.
        max_detections: Maximum detections per image.
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
    """Settings of every training run.

    Args:
        data: Data set: a folder, a zip or tar archive of one, or a built-in set.
        model: Model name, one of `botvision models` or of timm.
        model_args: Further arguments of the model, such as {position: none}.
        weights: Initial weights. A file (.safetensors, or a weights-only .pth) or timm name of an
            ImageNet ResNet initializes everything but the attention. An earlier run initializes the
            whole model. Detectors also accept a file or name of a torchvision detector, such as
            maskrcnn_resnet50_fpn.
        norm: Batch norm: plain, sync (statistics over all processes) or frozen.
        pixel_range: Values that become black and white in images with more than 8 bits: two
            numbers, or auto for the 0.1 and 99.9 percentile of a sample of the training images.
            It is stored with the model. 8-bit images are never changed.
        page: Page of multi-page files (TIFF stacks, animated GIF), counted from 0. It is stored
            with the model.
        epochs: Passes over the training split.
        max_steps: Number of training steps, instead of `epochs`. 0 only evaluates `weights`.
        batch_size: Global batch size: images per training step, split over `accumulate`
            micro-batches and all processes.
        accumulate: Gradient accumulation: number of micro-batches per training step.
        lr: Peak learning rate. By default `base_lr`, which for sgd is scaled linearly with the
            batch size.
        base_lr: Learning rate; for sgd that of a batch of `base_batch_size` images.
        base_batch_size: Batch size that `base_lr` is for, if the optimizer is sgd.
        optimizer: Optimizer: sgd or adamw.
        momentum: Momentum of SGD.
        nesterov: Use Nesterov momentum.
        weight_decay: Weight decay of the weights of convolutions and linear layers.
        decay_all: Apply weight decay to biases, norms and position tables too.
        schedule: Learning rate schedule after the warm-up: step (divided by 10 at each milestone)
            or cosine (to zero).
        milestones: Milestones of the step schedule, as fractions of the run.
        warmup_steps: Number of steps of linear warm-up.
        warmup_factor: Learning rate of the first step, as a fraction of the peak.
        clip_norm: Maximum gradient norm for gradient clipping. 0 disables it.
        ema_decay: Decay of a moving average of the weights, which is then evaluated and saved. 0
            disables it.
        eval_steps: Evaluate on the validation split every this many steps. 0 evaluates only at the
            end.
        patience: Early stopping: stop after this many evaluations without a better one. 0 disables
            it.
        checkpoint_steps: Save a checkpoint every this many steps.
        checkpoint_minutes: Also save a checkpoint this many minutes after the last one.
        bad_data: What to do about malformed annotations and images that cannot be read: error, or
            skip, which reads all images before the first step and lists what it leaves out in the
            run's skipped.json.
        seed: Random seed of the weights, the order of the data and its augmentation.
        device: Device: auto, cpu, cuda or mps.
        devices: Number of processes on each machine, each with its own device. Under torchrun or
            srun, the number that it has started.
        nodes: Number of machines. Under torchrun or srun, the number that it uses.
        strategy: Strategy for several processes: ddp replicates the model; fsdp shards its weights,
            gradients and optimizer state.
        precision: Precision: 32, or bf16 or 16 for automatic mixed precision. auto is bf16 on CUDA
            and on CPUs with AMX or avx512_bf16, else 32.
        compile: Compile the model with torch.compile; for detectors only the backbone.
        workers: Number of processes that load data. -1 selects it automatically.
        out: Run folder. By default runs/DATA-MODEL.
    """

    data: str
    model: str = "botnet50"
    model_args: dict[str, Any] = field(default_factory=dict)
    weights: str | None = None
    norm: Norm = "plain"
    pixel_range: PixelRange | Literal["auto"] | None = "auto"
    page: int = 0
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
    bad_data: BadDataMode = "error"
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
    def chosen_pixel_range(self) -> PixelRange | None:
        """The pixel range; None if it is still ``"auto"``, which all images of 8 bits leave."""
        return None if self.pixel_range == "auto" else self.pixel_range

    @property
    def peak_lr(self) -> float:
        """The learning rate after warm-up: ``lr``, or ``base_lr``.

        The linear scaling with the batch size is a rule for SGD (Goyal et al., 2017). AdamW, whose
        steps do not grow with the gradient, uses ``base_lr`` at every batch size.
        """
        if self.lr is not None:
            return self.lr
        if self.optimizer == "adamw":
            return self.base_lr
        return self.base_lr * self.batch_size / self.base_batch_size

    @property
    def lr_rule(self) -> str:
        """How ``peak_lr`` follows from the settings; empty if ``lr`` is set."""
        if self.lr is not None:
            return ""
        if self.optimizer == "adamw":
            return " (base_lr, not scaled with the batch size)"
        return f" (base_lr {self.base_lr:.4g} x {self.batch_size} / {self.base_batch_size})"


@dataclass
class DetectionConfig(TrainConfig):
    """A training run of Mask R-CNN or Faster R-CNN.

    Args:
        task: Task: segmentation (Mask R-CNN) or detection (Faster R-CNN). By default segmentation
            if the annotations have masks.
        image_size: Side of the square input in pixels, a multiple of 32.
        jitter: Large-scale jitter: range of the random scale, as fractions of the image size.
        flip: Mirror half of the training images.
        max_instances: Maximum instances per training image, drawn at random, to limit memory. 0
            keeps all.
        freeze_stages: Number of backbone stages whose weights and statistics are frozen: 1 is the
            stem, 2 the stem and c2, up to 5.
        grad_checkpointing: Activation checkpointing: store only the inputs of the backbone's blocks
            and recompute the rest in the backward pass. Uses less memory and more time; the
            gradients are the same.
        detector: Settings of the detector.
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

    The paper (section 4.7) states 100 epochs, a batch size of 1024, weight decay 1e-4, a cosine
    schedule and "the standard ResNet augmentation". It does not state the learning rate or the
    warm-up: 0.1 for 256 images (Goyal et al., 2017) and 5 epochs are this project's choice.

    Args:
        task: Task: always classification.
        image_size: Side of the square input in pixels. By default the model's own.
        crop_area: Range of the area of the random crop, as fractions of the image.
        flip: Mirror half of the training images.
        auto_augment: Augmentation policy in timm's notation: rand-m10-n2-p1 is RandAugment with 2
            layers of magnitude 10 (without p1 each layer is applied to half of the images).
        mixup: Alpha of Mixup. 0 disables it.
        cutmix: Alpha of CutMix. 0 disables it. If both are enabled, each batch uses one of the two.
        smoothing: Label smoothing.
        dropout: Dropout rate before the classifier.
        drop_path: Stochastic depth: drop rate of the last block; it grows linearly from the first.
        crop_share: Fraction of the shorter side of an image that the center crop of an evaluation
            covers.
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
        split: Split to evaluate. By default val, else test, else the only one.
        limit: Number of images to evaluate, a random but reproducible sample. By default all.
        batch_size: Batch size. By default 32 images for classifiers and 1 augmented view for
            detectors.
        score_threshold: Minimum score of a detection. By default 0.001; the paper's code base and
            evaluations during training use 0.05.
        max_detections: Maximum detections per image. By default the run's (100 in COCO; use more
            for crowded images).
        flip: Test-time augmentation: also run on the mirrored image.
        scales: Test-time augmentation: run at these multiples of the image size, such as 0.75 1
            1.25.
        tile: Tiled inference: also run on overlapping tiles with this many pixels of the image per
            side, each resized to the model's image size.
        image_size: Side of the input in pixels. By default the run's.
        table_resize: How position tables are fitted to another image size: slice or interpolate.
        pixel_range: Values that become black and white in images with more than 8 bits. By default
            the model's.
        page: Page of multi-page files (TIFF stacks, animated GIF), counted from 0. By default the
            model's.
        workers: Number of processes that load images. -1 selects it automatically.
        out: Folder for the results. By default the run folder.
        device: Device: auto, cpu, cuda or mps.
        precision: Precision: 32, bf16 or 16. auto is bf16 on CUDA and on CPUs with AMX or
            avx512_bf16, else 32.
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
    pixel_range: PixelRange | None = None
    page: int | None = None
    workers: int = -1
    out: Path | None = None
    device: Device = "auto"
    precision: Precision = "auto"


@dataclass(kw_only=True)
class PredictConfig:
    """How images are predicted and what is written.

    Args:
        score_threshold: Minimum score of a detection. By default 0.5.
        max_detections: Maximum detections per image. By default the run's.
        flip: Test-time augmentation: also run on the mirrored image.
        scales: Test-time augmentation: run at these multiples of the image size, such as 0.75 1
            1.25.
        tile: Tiled inference: also run on overlapping tiles with this many pixels of the image per
            side, each resized to the model's image size.
        mask_format: Format of masks: rle (the default) or polygon, which has outer contours only
            and no holes.
        pixel_range: Values that become black and white in images with more than 8 bits. By default
            the model's.
        page: Page of multi-page files (TIFF stacks, animated GIF), counted from 0. By default the
            model's.
        batch_size: Number of images, or of augmented views, per batch.
        out: Folder for the results. By default RUN/predictions.
        device: Device: auto, cpu, cuda or mps.
        precision: Precision: 32, bf16 or 16. auto is bf16 on CUDA and on CPUs with AMX or
            avx512_bf16, else 32.
    """

    score_threshold: float | None = None
    max_detections: int | None = None
    flip: bool = False
    scales: list[float] | None = None
    tile: int | None = None
    mask_format: MaskFormat | None = None
    pixel_range: PixelRange | None = None
    page: int | None = None
    batch_size: int = 1
    out: Path | None = None
    device: Device = "auto"
    precision: Precision = "auto"


@dataclass(kw_only=True)
class CheckConfig:
    """How a data set is checked.

    Args:
        task: Task to check for: detection ignores masks, segmentation requires them, classification
            reads class folders. By default the task of the data.
        workers: Number of threads that read images. -1 selects it automatically.
        out: Folder for the contact sheet. By default runs/DATA-check.
    """

    task: DetectionTask | Literal["classification"] | None = None
    workers: int = -1
    out: Path | None = None


# The options of evaluation and prediction that apply to only one of the tasks.
DETECTION_OPTIONS = (
    *("score_threshold", "max_detections", "flip", "scales", "tile", "mask_format"),
)
CLASSIFICATION_OPTIONS = ("image_size", "table_resize")
