"""Options of the benchmarks. Imports nothing heavy, so that ``botvision bench --help`` is quick.

The docstrings of the classes are the help texts of the command, and positional fields are its
positional arguments.
"""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import Literal

from botvision.config import Dtype, Mode

# Other accelerators do not report their peak memory.
BenchDevice = Literal["auto", "cpu", "cuda"]


@dataclass(kw_only=True)
class AttentionBenchConfig:
    """Measure single attention layers.

    Compares every implementation, timm's layer with the same weights, attention without positions,
    and the 3x3 convolution that attention replaces.

    Args:
        sizes: Maps in cells: a side, or HEIGHTxWIDTH.
        dim: Input and output channels: a multiple of 8 and of the number of heads.
        num_heads: Number of attention heads.
        batch_size: Images per run. Default: as many as have 2048 cells, from 1 to 8.
        impl: Implementations. Default: all that run on the device.
        precision: One or more; 32 excludes TF32, the others use autocast.
        mode: "forward" for inference, "train" for a forward and a backward pass, or both.
        seconds: Timing budget in seconds for each map, precision and mode.
        compile: Compile every layer with torch.compile.
        device: Device to run on; auto prefers CUDA.
        json: JSON file for the rows, saved after each map.
        plot: PNG file for a plot of time and memory over cells.
    """

    sizes: list[str] = field(
        default_factory=lambda: ["7", "14", "20", "24", "32", "40", "64", "80", "50x84"]
    )
    dim: int = 512
    num_heads: int = 4
    batch_size: int | None = None
    impl: list[str] | None = None
    precision: list[Dtype] = field(default_factory=lambda: ["32", "bf16"])
    mode: list[Mode] = field(default_factory=lambda: ["forward", "train"])
    seconds: float = 5.0
    compile: bool = False
    device: BenchDevice = "auto"
    json: Path | None = None
    plot: Path | None = None


@dataclass
class ModelBenchConfig:
    """Measure whole models in turn and compare them with the first.

    Args:
        models: Models of botvision or timm: NAME, or NAME@PIXELS for another image size.
        image_size: Side of the square images in pixels.
        batch_size: Images per run.
        precision: One or more; 32 excludes TF32, the others use autocast.
        mode: "forward" for inference, "train" for a forward and a backward pass, or both.
        seconds: Timing budget in seconds for each precision and mode.
        compile: Compile every model with torch.compile.
        device: Device to run on; auto prefers CUDA.
        json: JSON file for the rows, saved after each precision and mode.
    """

    models: list[str] = field(default_factory=lambda: ["resnet50", "botnet50"])
    _: KW_ONLY
    image_size: int = 224
    batch_size: int = 1
    precision: list[Dtype] = field(default_factory=lambda: ["32"])
    mode: list[Mode] = field(default_factory=lambda: ["forward"])
    seconds: float = 20.0
    compile: bool = False
    device: BenchDevice = "auto"
    json: Path | None = None


@dataclass
class DataBenchConfig:
    """Measure how many images per second one process on one core loads and augments.

    Compares the pipelines of the training split with decoding and resizing only and, for
    COCO-format data, with torchvision's transforms.

    Args:
        data: Data set, as for `botvision train`.
        image_size: Side of the loaded images in pixels. Default: 224; 1024 for COCO-format data.
        images: Number of images from the training split, the same for every pipeline.
        policy: Classification only: augmentation policy, as timm writes it.
        jitter: COCO-format data only: range of the scale in large-scale jitter.
        seconds: Timing budget in seconds.
        json: JSON file for the rows.
    """

    data: str
    _: KW_ONLY
    image_size: int | None = None
    images: int = 256
    policy: str = "rand-m10-n2-p1"
    jitter: tuple[float, float] = (0.1, 2.0)
    seconds: float = 20.0
    json: Path | None = None
